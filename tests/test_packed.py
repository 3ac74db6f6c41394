"""A packed model answers as the model does whose weights were rounded as its own were, and keeps every law of models."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nextvec.errors import DataError, SettingsError
from nextvec.kernels.weights import WeightFormat
from nextvec.kernels.weights_chain import Stage
from nextvec.models import GRU, MemoryGRU, Recurrent, packed
from nextvec.models.packed import fastest_format, pack, weight_bytes
from nextvec.models.packed_layers import PackedChain, PackedGRU, PackedLinear, PackedLSTM, Unit
from nextvec.reproduction.published import PublishedMemoryGRU
from tests.laws.test_models import (
    DIM,
    MODELS,
    centre,
    check_future_never_reaches_past,
    check_outputs,
    check_passages_do_not_meet,
    check_step_is_forward,
    passage,
    shaken,
    stepped,
)

FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8")
UNTRAINED = ("copy last", "exponential mean", "mean of all", "constant", "successor")
TRAINED = [name for name in MODELS if name not in UNTRAINED]

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
every_format = pytest.mark.parametrize("weights", FORMATS)
every_trained = pytest.mark.parametrize("make", [MODELS[n] for n in TRAINED], ids=TRAINED)
# Packing leaves models that learn nothing as they are, so that one format stands for all.
every_packed = pytest.mark.parametrize(
    ("make", "weights"),
    [
        pytest.param(make, weights, id=f"{name}, {weights}")
        for name, make in MODELS.items()
        for weights in (FORMATS if name in TRAINED else FORMATS[-1:])
    ],
)
shapes = {"batch": st.integers(1, 4), "length": st.integers(1, 40), "seed": st.integers(0, 2**31)}


@pytest.fixture(autouse=True, scope="module")
def small_layers_are_packed_too() -> Any:
    """The laws' models are small; all that could be packed in a large one shall be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "MIN_ROWS", 1)
        yield


def plain_stage(stage: Stage) -> nn.Module:
    if stage.w is None and stage.scale is None:
        return {"gelu": nn.GELU(), "unit": Unit(), "softmax": nn.Softmax(-1)}[stage.kind]
    if stage.w is None:
        layer: nn.Module = nn.LayerNorm(len(stage.scale), stage.epsilon)
        layer.load_state_dict({"weight": stage.scale, "bias": stage.bias})
    else:
        layer = nn.Linear(stage.w.width, stage.w.rows, bias=stage.bias is not None)
        layer.load_state_dict({"weight": stage.w.widened()} | ({} if stage.bias is None else {"bias": stage.bias}))
    return layer


def unpacked(module: nn.Module) -> nn.Module:
    """A copy with torch's own layers, of the weights that the packed ones stand for."""
    module = deepcopy(module)
    if isinstance(module, PackedLinear):
        return plain_stage(Stage("product", module.matrix, bias=module.bias))
    if isinstance(module, PackedChain):
        return nn.Sequential(*map(plain_stage, module.chain.stages))
    if isinstance(module, PackedGRU | PackedLSTM):
        kind = nn.GRU if isinstance(module, PackedGRU) else nn.LSTM
        recurrence = kind(module.cells[0].input.width, module.hidden_size, module.num_layers, batch_first=True)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        state = {
            f"{name}_l{n}": part
            for n, cell in enumerate(module.cells)
            for name, part in zip(names, cell.widened(), strict=True)
        }
        recurrence.load_state_dict(state)
        return recurrence
    for name, child in module.named_children():
        setattr(module, name, unpacked(child))
    return module


@every_trained
@given(**shapes)
@torch.no_grad()
def test_float32_weights_answer_as_the_model_does(
    make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = shaken(make()), passage(batch, length)
    ours = pack(model, "float32")
    # 2e-5: a drawn model can scale a short vector to unit length, which enlarges its rounding.
    torch.testing.assert_close(ours(x), model(x), rtol=0, atol=2e-5)  # and so do single steps, by the law of each of the two
    torch.testing.assert_close(ours.last(x), model.last(x), rtol=0, atol=2e-5)


@every_trained
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@given(**shapes)
@torch.no_grad()
def test_rounded_weights_change_an_answer_by_their_rounding_alone(
    make: Callable[[], Recurrent[Any]], weights: WeightFormat, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ours, x = pack(shaken(make()), weights), passage(batch, length)
    torch.testing.assert_close(ours(x), unpacked(ours)(x), rtol=0, atol=1e-5)


@every_packed
@given(**shapes)
def test_packed_models_keep_the_laws(
    make: Callable[[], Recurrent[Any]], weights: WeightFormat, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = pack(shaken(make()), weights), passage(batch, length)
    check_step_is_forward(model, x)
    check_future_never_reaches_past(model, x, cut=max(1, length // 2))
    check_passages_do_not_meet(model, x)
    check_outputs(model, x)


@every_model
def test_a_state_that_was_read_from_can_be_read_from_again(make: Callable[[], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    model, x = pack(shaken(make()), "float32"), passage(2, 12)
    with torch.no_grad():
        state, _ = model.run(model.start(2), x[:, :9])
        first, second = (model.step(state, x[:, 9])[1] for _ in range(2))
        assert torch.equal(first, second)


@every_packed
def test_copies_and_pickles_answer_alike(make: Callable[[], Recurrent[Any]], weights: WeightFormat) -> None:
    torch.manual_seed(0)
    model, x = pack(shaken(make()), weights), passage(2, 5)
    with torch.no_grad():
        before = model(x).clone()
        copies = [deepcopy(model), pickle.loads(pickle.dumps(model))]
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
        for copy in copies:
            assert torch.equal(copy(x), before)


@every_model
def test_the_model_itself_stays_as_it_was(make: Callable[[], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    model = shaken(make()).train()
    before, x = deepcopy(model.state_dict()), passage(2, 5)
    ours = pack(model, "int8")
    with torch.no_grad():
        ours(x)
    assert model.training
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_learns_nothing_is_not_rounded(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), passage(2, 9)
    for weights in FORMATS:
        ours = pack(model, weights)
        assert torch.equal(ours(x), model(x))
        assert torch.equal(stepped(ours, x), stepped(model, x))
        assert torch.equal(ours.last(x), model.last(x))


def test_small_matrices_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MIN_ROWS", 32)
    model = pack(MemoryGRU(centre(), 0.5, hidden=40, slots=0), "int8")
    assert isinstance(model, MemoryGRU)
    assert isinstance(model.write, nn.Linear)
    assert isinstance(model.content, PackedLinear)


def test_a_step_reads_a_quarter_of_the_bytes_with_int8() -> None:
    model = GRU(torch.zeros(64), 0.5, hidden=128, layers=2)
    plain, exact, half, quarter = (weight_bytes(m) for m in (model, *(pack(model, weights) for weights in FORMATS)))
    assert plain == 4 * (sum(p.numel() for p in model.parameters()) + 64)
    assert exact == pytest.approx(plain, rel=0.001)
    assert half == pytest.approx(plain / 2, rel=0.05)
    assert quarter == pytest.approx(plain / 4, rel=0.1)


@pytest.mark.parametrize(
    "level, expected", [("avx512", "int8"), ("avx2", "bfloat16"), ("any", "bfloat16"), ("torch", "float32")]
)
def test_the_format_suits_the_processor(level: str, expected: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "level", lambda: level)
    assert fastest_format() == expected


@torch.no_grad()
def test_the_published_memory_is_the_one_of_the_moment_of_packing() -> None:
    torch.manual_seed(0)
    model, x = shaken(PublishedMemoryGRU(DIM, hidden=8, layers=2, slots=16)), passage(3, 9)
    assert isinstance(model, PublishedMemoryGRU)
    before = pack(model, "float32")
    expected = model(x)
    model.after_update(x)
    torch.testing.assert_close(before(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(pack(model, "float32")(x), model(x), rtol=0, atol=1e-5)


class Halving(nn.Module):
    """A module that declares a packed form, or none where its layers are to be packed."""

    def __init__(self, form: nn.Module | None) -> None:
        super().__init__()
        self.form, self.inner = form, nn.Linear(DIM, 64)

    def packed(self, form: WeightFormat) -> nn.Module:
        return self if self.form is None else self.form


def test_a_module_declares_its_own_packed_form() -> None:
    own, model = nn.Identity(), GRU(centre(), 0.5, hidden=4)
    setattr(model, "residual", nn.Sequential(Halving(own), Halving(None), nn.ReLU()))  # noqa: B010
    done = pack(model, "int8").residual
    assert isinstance(done[0], nn.Identity)
    assert isinstance(done[1], Halving) and isinstance(done[1].inner, PackedLinear)
    assert isinstance(model.residual[1].inner, nn.Linear), "the model itself stays"


class Backwards(GRU):
    def __init__(self) -> None:
        super().__init__(centre(), 0.5, hidden=4)
        self.recurrence = nn.GRU(DIM, 4, batch_first=True, bidirectional=True)


class Odd(GRU):
    """The step of a batch of one forgets its state: what the laws are there to catch."""

    def run(self, state: Any, x_BTD: Tensor) -> Any:
        return super().run(self.start(len(x_BTD)) if x_BTD.shape[1] == 1 else state, x_BTD)


def test_what_cannot_be_packed_is_refused_in_one_line() -> None:
    broken = GRU(centre(), 0.5, hidden=4)
    with torch.no_grad():
        broken.residual.weight[0, 0] = torch.nan
    cases: list[tuple[Recurrent[Any], type[Exception], str]] = [
        (GRU(centre(), 0.5, hidden=4).double(), SettingsError, "float64"),
        (Backwards(), SettingsError, "direction"),
        (broken, DataError, "finite"),
    ]
    for model, kind, word in cases:
        with pytest.raises(kind, match=word) as raised:
            pack(model, "int8")
        assert "\n" not in str(raised.value)


def test_a_packed_model_that_breaks_a_law_is_caught() -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        check_step_is_forward(pack(shaken(Odd(centre(), 0.5, hidden=8)), "int8"), passage(1, 5))
