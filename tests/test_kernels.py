"""Products with packed weights and the small parts of a step, against float64 and torch, at every level this processor runs."""

import ctypes
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nextvec.errors import DataError, SettingsError
from nextvec.inference.states import leaves
from nextvec.kernels import build, library, pooled, steps, weights, weights_library
from nextvec.kernels.weights_cells import Cell, gru, lstm
from nextvec.models import Recurrent
from nextvec.models.packed import pack
from nextvec.models.pooled import Pooled
from nextvec.models.space import InSpace, Space
from nextvec.models.trunk import Trunk
from nextvec.models.window_attention import WindowAttention
from nextvec.models.working_memory import WorkingMemory

ALL = ("any", "avx2", "avx512")
COMPILED = ALL[: ALL.index(library.level()) + 1] if library.level() in ALL else ()
forms = st.sampled_from(weights.FORMATS)
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module", params=[*COMPILED, "torch"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """All products computed at one level, whichever this processor would choose."""
    loaded = None if request.param == "torch" else ctypes.CDLL(str(build.library(request.param)))
    with pytest.MonkeyPatch.context() as patch:
        for module in (weights_library, steps, pooled):
            patch.setattr(module, "library", lambda: loaded)
            module.loaded.cache_clear()
        yield request.param
    for module in (weights_library, steps, pooled):
        module.loaded.cache_clear()


every_compiled_level = pytest.mark.parametrize("level", COMPILED, indirect=True)


def check_product(x: Tensor, w: weights.Matrix, bias: Tensor | None) -> None:
    """Within what summing floats in any order may lose (Higham 2002, 3.1), and what 24 bits of a vector lose."""
    wide, wide_x = w.widened().double(), x.double()
    exact = wide_x @ wide.T + (0 if bias is None else bias.double())
    summed = (w.width + 4) * 2.0**-24 * (wide_x.abs() @ wide.T.abs() + (0 if bias is None else bias.double().abs()))
    fixed = 6.1e-8 * wide_x.abs().amax(-1, keepdim=True).clamp(min=1e-30) * wide.abs().sum(1)
    assert ((weights.product(x, w, bias).double() - exact).abs() <= summed + fixed + 1e-36).all()


@given(
    rows=st.integers(1, 200), width=st.integers(1, 300), batch=st.integers(1, 40), form=forms, seed=seeds, biased=st.booleans()
)
def test_a_product_is_that_of_float64(
    level: str, rows: int, width: int, batch: int, form: weights.WeightFormat, seed: int, biased: bool
) -> None:
    torch.manual_seed(seed)
    w = weights.pack_matrix(torch.randn(rows, width) * torch.rand(rows, 1) * 3, form)
    check_product(torch.randn(batch, width), w, torch.randn(rows) if biased else None)


@pytest.mark.parametrize("form", weights.FORMATS)
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20, 1e30])
def test_a_product_holds_for_vectors_of_any_size(level: str, form: weights.WeightFormat, scale: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(70, 130)
    matrix[3] = 0
    matrix[5] *= 1e-39
    matrix[6] *= 1e6
    x = torch.randn(5, 130) * scale
    x[2] = 0
    x[3, 7] = 100 * scale
    check_product(x, weights.pack_matrix(matrix, form), None)


@pytest.mark.parametrize("form", weights.FORMATS)
@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_a_vector_that_is_not_finite_spoils_its_own_products_alone(
    level: str, form: weights.WeightFormat, wrong: float
) -> None:
    torch.manual_seed(0)
    w, x = weights.pack_matrix(torch.randn(70, 65), form), torch.randn(3, 65)
    clean = weights.product(x, w)
    x[1, 64] = wrong
    spoilt = weights.product(x, w)
    assert not spoilt[1].isfinite().any()
    torch.testing.assert_close(spoilt[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("form", weights.FORMATS)
def test_a_product_reads_vectors_however_they_lie(level: str, form: weights.WeightFormat) -> None:
    torch.manual_seed(0)
    w, x = weights.pack_matrix(torch.randn(66, 33), form), torch.randn(2, 33, 5)
    torch.testing.assert_close(weights.product(x.transpose(1, 2), w), weights.product(x.transpose(1, 2).contiguous(), w))
    torch.testing.assert_close(weights.product(x[:1, :, :1].transpose(1, 2), w)[0, 0], weights.product(x[0, :, 0].clone(), w))


@every_compiled_level
@pytest.mark.parametrize("form", weights.FORMATS)
def test_more_vectors_than_are_worth_it_are_multiplied_by_torch(
    level: str, form: weights.WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    w, x, bias = weights.pack_matrix(torch.randn(1100, 33), form), torch.randn(9, 33), torch.randn(1100)
    compiled = weights.product(x, w, bias)
    by_torch = weights._product_torch(x, w, bias)
    torch.testing.assert_close(by_torch, compiled, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(weights, "_product_torch", lambda *_: by_torch)
    monkeypatch.setattr(weights_library.loaded(), "most", 9)
    assert torch.equal(weights.product(x, w, bias), compiled)
    monkeypatch.setattr(weights_library.loaded(), "most", 8)
    assert weights.product(x, w, bias) is by_torch


@given(rows=st.integers(1, 130), width=st.integers(1, 70), seed=seeds)
def test_packing_rounds_as_it_says(rows: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(rows, width)
    assert torch.equal(weights.pack_matrix(matrix, "float32").widened(), matrix)
    assert torch.equal(weights.pack_matrix(matrix, "bfloat16").widened(), matrix.bfloat16().float())
    error = (weights.pack_matrix(matrix, "int8").widened() - matrix).abs()
    assert (error <= matrix.abs().amax(1, keepdim=True) / 254 * 1.001).all()


def test_a_matrix_takes_no_more_room_than_its_format_needs() -> None:
    matrix = torch.randn(128, 64)
    sizes = {form: weights.pack_matrix(matrix, form).codes.nbytes for form in weights.FORMATS}
    assert sizes == {"float32": 4 * 8192, "bfloat16": 2 * 8192, "int8": 8192}


@pytest.mark.parametrize("form", weights.FORMATS)
def test_a_copy_does_not_need_what_it_was_copied_from(level: str, form: weights.WeightFormat) -> None:
    torch.manual_seed(0)
    w, x = weights.pack_matrix(torch.randn(70, 33), form), torch.randn(1, 33)
    before = weights.product(x, w)
    copied = deepcopy(w)
    w.codes.zero_()
    assert torch.equal(weights.product(x, copied), before)


Make = Callable[..., nn.GRU | nn.LSTM]


def cells_of(source: nn.GRU | nn.LSTM, form: weights.WeightFormat) -> list[Cell]:
    """Its weights packed; its own replaced by what the packed ones stand for."""
    cells: list[Cell] = []
    for n in range(source.num_layers):
        parts = [getattr(source, f"{part}_l{n}") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        cell = Cell(*(weights.pack_matrix(part, form) for part in parts[:2]), *(part.detach() for part in parts[2:]))
        cells.append(cell)
        with torch.no_grad():
            parts[0].copy_(cell.input.widened())
            parts[1].copy_(cell.hidden.widened())
    return cells


@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3)),
    batch=st.integers(1, 9), length=st.integers(1, 12), form=forms, seed=seeds, most=st.sampled_from([4, 1024]),
)  # fmt: skip
@torch.no_grad()
def test_recurrences_are_those_of_torch(
    level: str, sizes: tuple[int, int, int], batch: int, length: int, form: weights.WeightFormat, seed: int, most: int
) -> None:
    torch.manual_seed(seed)
    width, hidden, layers = sizes
    x, h, c = torch.randn(batch, length, width), torch.randn(layers, batch, hidden), torch.randn(layers, batch, hidden)
    kept = (h.clone(), c.clone())
    plain_gru, plain_lstm = (kind(width, hidden, layers, batch_first=True) for kind in (nn.GRU, nn.LSTM))
    with pytest.MonkeyPatch.context() as patch:
        if weights_library.loaded():
            patch.setattr(weights_library.loaded(), "most", most)
        ours = (*gru(x, h, cells_of(plain_gru, form)), *lstm(x, h, c, cells_of(plain_lstm, form)))
    out, (after, cell) = plain_lstm(x, (h, c))
    for our, expected in zip(ours, (*plain_gru(x, h), out, after, cell), strict=True):
        torch.testing.assert_close(our, expected, rtol=0, atol=1e-5)
    assert torch.equal(h, kept[0]), "the state that went in has changed"
    assert torch.equal(c, kept[1]), "the state that went in has changed"


@torch.no_grad()
def test_gates_hold_where_they_are_shut_or_wide_open(level: str) -> None:
    torch.manual_seed(0)
    plain_gru, plain_lstm = nn.GRU(9, 20, batch_first=True), nn.LSTM(9, 20, batch_first=True)
    x, h = 1e4 * torch.randn(2, 6, 9), torch.randn(1, 2, 20)
    ours, (expected, _) = gru(x, h, cells_of(plain_gru, "float32"))[0], plain_gru(x, h)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    ours, (expected, _) = lstm(x, h, h, cells_of(plain_lstm, "float32"))[0], plain_lstm(x, (h, h))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_threads_that_multiply_at_once_do_not_meet(level: str) -> None:
    torch.manual_seed(0)
    xs = [torch.randn(3, 200) for _ in range(2)]
    packed = [weights.pack_matrix(torch.randn(400, 200), form) for form in weights.FORMATS]
    alone = [[weights.product(x, w) for w in packed] for x in xs]

    def often(n: int) -> bool:
        return all(torch.equal(weights.product(xs[n], w), alone[n][i]) for _ in range(200) for i, w in enumerate(packed))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(often, range(2)))


def one_line(call: Callable[[], Any], kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_what_does_not_fit_is_refused_in_one_line(level: str) -> None:
    w = weights.pack_matrix(torch.randn(66, 33), "int8")
    unchecked: Any = inspect.unwrap(weights.pack_matrix)  # the tests' type checker would refuse it first
    one_line(lambda: unchecked(torch.randn(2, 2), "int4"), SettingsError, "int4", "bfloat16")
    one_line(lambda: weights.pack_matrix(torch.full((2, 3), torch.inf), "int8"), DataError, "[2, 3]", "finite")
    one_line(lambda: weights.pack_matrix(torch.empty(0, 3), "float32"), DataError, "empty")
    one_line(lambda: weights.product(torch.randn(2, 34), w), DataError, "[2, 34]", "33")
    one_line(lambda: weights.product(torch.randn(2, 33).double(), w), SettingsError, "float64")
    one_line(lambda: weights.product(torch.randn(2, 33).requires_grad_(), w), SettingsError, "gradient")
    cells = cells_of(nn.GRU(5, 6, 2), "float32")
    one_line(lambda: gru(torch.randn(2, 3, 5), torch.randn(1, 2, 6), cells), DataError, "2 layers")
    unchecked = inspect.unwrap(gru)
    one_line(lambda: unchecked(torch.randn(2, 3, 5), torch.randn(2, 3, 6), cells), DataError, "[2, 3, 5]")
    one_line(lambda: gru(torch.randn(2, 3, 4), torch.randn(2, 2, 6), cells), DataError, "width 5")


# The small parts of a step stand in for lines of the models: those are the reference.

shapes = {"batch": st.integers(1, 4), "length": st.integers(1, 20), "dim": st.integers(1, 70), "seed": seeds}


@every_compiled_level
@given(**shapes)
@torch.no_grad()
def test_a_trunk_in_four_calls_is_the_trunk(level: str, batch: int, length: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    trunk = Trunk(torch.randn(dim), 0.5)
    for parameter in trunk.parameters():
        parameter.add_(torch.randn_like(parameter))
    x, carried = torch.randn(batch, length, dim), torch.randn(batch, trunk.num_means, dim)
    after, centred, means = trunk.read(carried, x)
    ours_centred, ours = steps.means(x, trunk.centre, trunk.means.decays, carried)
    torch.testing.assert_close(ours_centred, centred)
    torch.testing.assert_close(ours, means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[:, -1], after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(steps.features(centred, means), trunk.features(centred, means), rtol=1e-5, atol=1e-5)
    gates, residual = torch.randn(batch, length, trunk.num_means), torch.randn(batch, length, dim)
    for g in (None, gates):
        mixed = trunk.mix(means, g)
        torch.testing.assert_close(steps.mix(means, trunk.weights, g, trunk.bias), mixed, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(steps.finish(mixed, residual, trunk.scale), trunk.finish(mixed, residual), rtol=0, atol=1e-5)


@every_compiled_level
def test_vectors_of_zeros_stay_zeros(level: str) -> None:
    nothing = torch.zeros(1, 1, 9)
    assert torch.equal(steps.finish(nothing, nothing, torch.ones(9)), nothing)
    assert torch.equal(steps.features(nothing, torch.zeros(1, 1, 3, 9)), torch.zeros(1, 1, 8))


def some_filled(batch: int, places: int) -> Tensor:
    """As states are: unfilled places first, the newest always filled."""
    return torch.arange(places) >= torch.randint(0, max(1, places), (batch, 1))


@every_compiled_level
@given(batch=st.integers(1, 3), places=st.integers(1, 40), heads=st.integers(1, 3), wide=st.integers(1, 20), seed=seeds)
def test_attention_of_one_query_is_window_attention(
    level: str, batch: int, places: int, heads: int, wide: int, seed: int
) -> None:
    torch.manual_seed(seed)
    attention = WindowAttention(places, heads)
    query = torch.randn(batch, 1, heads * 7)
    keys, values = torch.randn(batch, places, heads * 7), torch.randn(batch, places, heads * wide)
    filled = some_filled(batch, places)
    held = attention.start(batch, 0, 0)._replace(keys=keys[:, :-1], values=values[:, :-1], filled=filled[:, :-1])
    _, expected = attention(held, query, keys[:, -1:], values[:, -1:])
    ours = steps.attend(query[:, 0], keys, values, filled, attention.slopes)
    torch.testing.assert_close(ours, expected[:, 0], rtol=0, atol=1e-5)


@every_compiled_level
@given(batch=st.integers(1, 3), size=st.integers(1, 40), dim=st.integers(1, 40), seed=seeds, data=st.data())
@torch.no_grad()
def test_recall_at_one_place_is_the_working_memorys(
    level: str, batch: int, size: int, dim: int, seed: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    memory = WorkingMemory(size)
    for parameter in memory.parameters():
        parameter.add_(torch.randn_like(parameter))
    places = data.draw(st.integers(1, size + 1))
    rows, written, filled = torch.randn(batch, places, dim), torch.randn(batch, places), some_filled(batch, places)
    heads = (memory.log_sharpness.exp(), memory.log_fading.exp(), memory.sink)
    ours = steps.recall(rows[:, -1], rows, written, filled, heads)
    expected = memory._recall(rows[:, -1:], rows, written, filled)[:, 0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(np.sqrt(dim)))


def drawn_pooled(dim: int, lags: int, gates: bool) -> Pooled:
    model = Pooled(dim, 0.5, pooled=lags, working=6, gates=gates).eval()
    for parameter in model.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    return model


@every_compiled_level
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), dim=st.integers(1, 140), lags=st.sampled_from([0, 1, 4, 12]),
    gates=st.booleans(), mapped=st.booleans(), seed=seeds,
)  # fmt: skip
@torch.no_grad()
def test_a_step_of_pooled_in_one_compiled_call_is_its_run(
    level: str, lengths: list[int], dim: int, lags: int, gates: bool, mapped: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model: Recurrent[Any] = drawn_pooled(dim, lags, gates)
    if mapped:
        model = InSpace(Space(torch.randn(dim) / dim**0.5, torch.randn(dim, dim)), model)
    ours = pack(model, "float32")
    assert ours.steps_each
    states = [model.run(model.start(1), torch.randn(1, n, dim))[0] if n else model.start(1) for n in lengths]
    filled = [some_filled(1, state.held.filled.shape[1]) for state in states]
    states = [state._replace(held=state.held._replace(filled=own)) for state, own in zip(states, filled, strict=True)]
    ended = states
    for x in torch.randn(3, len(states), dim):  # the later steps find free places behind the rows
        (ended, our_y), before = ours.step_each(ended, x), states
        found = [model.step(state, one) for state, one in zip(before, x[:, None], strict=True)]
        states = [after for after, _ in found]
        torch.testing.assert_close(our_y, torch.cat([y for _, y in found]), rtol=1e-4, atol=1e-4)
        for our_after, after in zip(ended, states, strict=True):
            torch.testing.assert_close(leaves(our_after), leaves(after), rtol=1e-4, atol=1e-4)


@every_compiled_level
@torch.no_grad()
def test_a_step_of_pooled_copies_no_rows_and_changes_no_state(level: str) -> None:
    torch.manual_seed(0)
    model = pack(drawn_pooled(5, 3, True), "float32")
    state, moved = model.step(model.start(1), torch.randn(1, 5))[0], 0
    for x in torch.randn(60, 1, 5):
        before = [leaf.clone() for leaf in leaves(state)]
        (after, y), (other, again) = model.step(state, x), model.step(state, x)
        assert torch.equal(y, again)
        torch.testing.assert_close(leaves(after), leaves(other), rtol=0, atol=0)
        torch.testing.assert_close(leaves(state), before, rtol=0, atol=0)
        assert after.log is not other.log, "both steps wrote the same place"
        moved, state = moved + (after.log is not state.log), after
    assert moved < 20, "a log of seven rows has at least four free places"


@every_compiled_level
@torch.no_grad()
def test_threads_that_step_from_one_state_do_not_meet(level: str) -> None:
    torch.manual_seed(0)
    model, x = pack(drawn_pooled(64, 3, True), "float32"), torch.randn(3, 1, 64)
    start, _ = model.step(model.start(1), x[2])
    alone = [(leaves(after), y) for after, y in (model.step(start, x[n]) for n in range(2))]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(50):
            start, _ = model.step(model.start(1), x[2])  # one place behind its row, for one of the two
            found = pool.map(lambda n, start=start: model.step(start, x[n]), range(2))
            torch.testing.assert_close([(leaves(after), y) for after, y in found], alone, rtol=0, atol=0)


@every_compiled_level
@torch.no_grad()
def test_vectors_of_zeros_give_no_direction(level: str) -> None:
    model = Pooled(5, 0.5, pooled=3, working=6).eval()
    state, y = model.packed("float32").run(model.start(1), torch.zeros(1, 1, 5))
    assert torch.equal(y[0, 0, :15], torch.zeros(15))
    assert torch.isfinite(y).all() and torch.equal(state.parts().total, torch.zeros(1, 5))
