"""The laws of models/protocol.py, for every model in ``MODELS``. A family whose model is missing there fails a test."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.models import (
    GRU,
    LSTM,
    AttentionMixture,
    Hierarchical,
    LinearRecurrence,
    MemoryGRU,
    Model,
    Pooled,
    Recurrent,
    Transformer,
)
from nextvec.models.baselines import Constant, CopyLast, ExponentialMean, MeanAndLags, MeanOfAll, PooledLags, Successor
from nextvec.models.space import InSpace, Space
from nextvec.models.working_memory import BLOCK
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.gate import On
from nextvec.reproduction.lane_scores import LaneScores, Per, RandomLanes
from nextvec.reproduction.published import PublishedMemoryGRU
from nextvec.runs import TrainSettings
from nextvec.runs.families import Basis, family_names
from nextvec.runs.loading import build
from tests.conftest import unchecked

DIM = 12


def centre() -> Tensor:
    return 0.1 * torch.randn(DIM)


def experts(per: Per, on: On, top: int, common: int = 0) -> ExpertGRU:
    lanes = LaneScores(DIM, 6, per)
    lanes.anchors.copy_(normalize(torch.randn(6, DIM), dim=-1))
    lanes.prices.copy_(0.1 * torch.rand(6))
    shared = MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=5)
    return ExpertGRU(shared, lanes, 16, common, on, top, constants=per == "position")


def randomly_laned(per: Per) -> ExpertGRU:
    return ExpertGRU(MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=5), RandomLanes(DIM, per), 16)


def space() -> Space:
    mixed = 0.5 * torch.randn(DIM, DIM) + torch.eye(DIM)
    return Space(centre(), mixed @ mixed.T)


def shaken(model: Recurrent[Any]) -> Recurrent[Any]:
    """Away from its neutral start: every law must hold for trained weights, too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


MODELS: dict[str, Callable[[], Recurrent[Any]]] = {
    "gru": lambda: GRU(centre(), 0.5, hidden=8, layers=2),
    "lstm": lambda: LSTM(centre(), 0.5, hidden=8, layers=2),
    "transformer, window of 5": lambda: Transformer(centre(), 0.5, hidden=8, layers=2, heads=2, window=5),
    "transformer, window of 1024": lambda: Transformer(centre(), 0.5, hidden=8, layers=1, heads=2),
    "mixture, window of 5": lambda: AttentionMixture(centre(), 0.5, hidden=8, window=5),
    "mixture, window of 256": lambda: AttentionMixture(centre(), 0.5, hidden=8),
    "hierarchical, chunks of 7": lambda: Hierarchical(centre(), 0.5, hidden=8, layers=2, chunk=7),
    "hierarchical, chunks of 200": lambda: Hierarchical(centre(), 0.5, hidden=8),
    "linear recurrence": lambda: LinearRecurrence(centre(), 0.5, hidden=8, layers=2),
    "memory gru": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=5),
    "memory gru, long working memory": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=400),
    "memory gru without slots": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=0, working=5),
    "memory gru without working memory": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=0),
    "pooled": lambda: Pooled(DIM, 0.5, pooled=4, working=6),
    "pooled, long working memory": lambda: Pooled(DIM, 0.5, pooled=12, working=400),
    "pooled without gates": lambda: Pooled(DIM, 0.5, pooled=4, working=6, gates=False),
    "pooled, as many lags as it holds": lambda: Pooled(DIM, 0.5, pooled=6, working=6),
    "pooled, one lag": lambda: Pooled(DIM, 0.5, pooled=1, working=6),
    "pooled, no lag": lambda: Pooled(DIM, 0.5, pooled=0, working=6),
    "pooled, no lag and no memory": lambda: Pooled(DIM, 0.5, pooled=0, working=0),
    "pooled in a space": lambda: InSpace(space(), Pooled(DIM, 0.5, pooled=4, working=6)),
    "gru in a space": lambda: InSpace(space(), GRU(torch.zeros(DIM), 0.5, hidden=8)),
    "experts, top-1 by a document's lane": lambda: experts("document", "lane", 1),
    "experts, top-2 by a position's lane and state": lambda: experts("position", "both", 2),
    "adapters, top-1 by state": lambda: experts("position", "state", 1, common=12),
    "experts, random lanes of documents": lambda: randomly_laned("document"),
    "experts, random lanes of positions": lambda: randomly_laned("position"),
    "published memory gru": lambda: PublishedMemoryGRU(DIM, hidden=8, layers=2, slots=16),
    "copy last": lambda: CopyLast(DIM),
    "exponential mean": lambda: ExponentialMean(centre(), 0.7),
    "pooled lags": lambda: PooledLags(DIM, 0.7),
    "pooled lags in a space": lambda: InSpace(space(), PooledLags(DIM, 0.7)),
    "mean and lags": lambda: MeanAndLags(DIM, 0.8, 0.7),
    "mean and lags in a space": lambda: InSpace(space(), MeanAndLags(DIM, 0.8, 0.7)),
    "mean of all": lambda: MeanOfAll(centre()),
    "constant": lambda: Constant(torch.randn(DIM)),
    "successor": lambda: Successor(torch.randn(9, DIM), torch.randn(9, DIM)),
}

CHECKED = 9  # steps: past the windows of 5 and the chunks of 7
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
shapes = {"batch": st.integers(1, 4), "length": st.integers(1, 80), "seed": st.integers(0, 2**31)}


def passage(batch: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normalize(torch.randn(batch, length, DIM, dtype=dtype), dim=-1)


def stepped(model: Recurrent[Any], x: Tensor) -> Tensor:
    """One step for each vector. Shapes are checked in the first steps; in all of them that would cost half of the time."""
    state, out = model.start(len(x)), []
    for t in range(x.shape[1]):
        with unchecked() if t >= CHECKED else nullcontext():
            state, y = model.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, dim=1)


@torch.no_grad()
def check_step_is_forward(model: Recurrent[Any], x: Tensor) -> None:
    tolerance = 1e-9 if x.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(stepped(model, x), model(x), rtol=0, atol=tolerance)


@torch.no_grad()
def check_future_never_reaches_past(model: Recurrent[Any], x: Tensor, cut: int) -> None:
    changed = x.clone()
    changed[:, cut:] = passage(len(x), x.shape[1] - cut)
    torch.testing.assert_close(model(changed)[:, :cut], model(x)[:, :cut], rtol=0, atol=2e-5)


@torch.no_grad()
def check_passages_do_not_meet(model: Recurrent[Any], x: Tensor) -> None:
    alone = torch.cat([model(x[b : b + 1]) for b in range(len(x))])
    torch.testing.assert_close(alone, model(x), rtol=0, atol=2e-5)


@torch.no_grad()
def check_outputs(model: Recurrent[Any], x: Tensor) -> None:
    """One query has unit length; the weights of several sum to one.

    Of a passage and of one step; that all steps are the passage is a law of its own.
    """
    for y in (model(x), model.step(model.start(len(x)), x[:, 0])[1]):
        assert y.shape[-1] == model.output_width
        made = model.queries(y.flatten(0, -2))
        if model.num_queries == 1:
            torch.testing.assert_close(y.norm(dim=-1), torch.ones(y.shape[:-1]), rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(made.log_weights.logsumexp(-1), torch.zeros(len(made.log_weights)), rtol=0, atol=1e-5)
        assert torch.isfinite(made.scores(model.candidates(x.flatten(0, 1)))).all()


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(**shapes)
def test_step_is_forward_one_vector_at_a_time(
    make: Callable[[], Recurrent[Any]], dtype: torch.dtype, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    check_step_is_forward(shaken(make()).to(dtype), passage(batch, length, dtype))


@every_model
def test_step_is_forward_across_the_blocks_of_a_long_passage(make: Callable[[], Recurrent[Any]]) -> None:
    torch.manual_seed(3)
    check_step_is_forward(shaken(make()).double(), passage(1, 2 * BLOCK + 40, torch.float64))


@every_model
@given(**shapes)
def test_a_passage_may_be_read_in_any_pieces(make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = shaken(make()), passage(batch, length)
    pieces = x.split([length // 3, length - length // 3] if length >= 3 else [length], dim=1)
    state, out = model.start(batch), []
    with torch.no_grad():
        for piece in pieces:
            state, y = model.run(state, piece)
            out.append(y)
        torch.testing.assert_close(torch.cat(out, dim=1), model(x), rtol=0, atol=2e-5)


@every_model
@given(**shapes)
def test_the_future_never_reaches_the_past(make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    check_future_never_reaches_past(shaken(make()), passage(batch, length), cut=max(1, length // 2))


@every_model
@given(**shapes)
def test_a_passage_never_sees_its_batch_neighbours(
    make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    check_passages_do_not_meet(shaken(make()), passage(batch, length))


@every_model
@given(**shapes)
def test_one_query_has_unit_length_and_the_weights_of_several_sum_to_one(
    make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    check_outputs(shaken(make()), passage(batch, length))


@every_model
@given(**shapes)
def test_the_short_way_to_the_last_position_gets_there(
    make: Callable[[], Recurrent[Any]], batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = shaken(make()), passage(batch, length)
    with torch.no_grad():
        torch.testing.assert_close(model.last(x), model(x)[:, -1], rtol=0, atol=2e-5)


@every_model
@given(length=st.integers(1, 5), seed=shapes["seed"])
def test_the_parts_of_the_rows_and_of_learned_values_add_up_to_a_score(
    make: Callable[[], Recurrent[Any]], length: int, seed: int
) -> None:
    """Where the state holds the whole context. A model that does not name rows refuses."""
    torch.manual_seed(seed)
    model, x = shaken(make()), passage(1, length)
    with torch.no_grad():
        state, y = model.run(model.start(1), x)
        mapped = model.candidates(passage(1, 7)[0])
        if not model.names_rows:
            with pytest.raises(NotImplementedError, match="does not name rows"):
                model.attribution(state, mapped)
            return
        rows, learned = model.attribution(state, mapped)
        assert rows.shape == (7, length)
        torch.testing.assert_close(rows.sum(1) + learned, model.scores(y[:, -1], mapped)[0], rtol=0, atol=2e-5)


BOUNDED = ("copy last", "exponential mean", "pooled lags", "pooled lags in a space", "mean and lags", "constant", "successor")


@pytest.mark.parametrize("name", BOUNDED)
@given(**shapes)
def test_nothing_beyond_its_reach_changes_an_output(name: str, batch: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    assert model.reach is not None
    x = passage(batch, length + model.reach)
    changed = torch.cat([passage(batch, length), x[:, length:]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(changed)[:, -1], model(x)[:, -1], rtol=0, atol=1e-6)


@every_model
def test_nothing_is_written_inside_forward(make: Callable[[], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    model = shaken(make()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(passage(2, 9))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@every_model
def test_every_model_keeps_the_protocol(make: Callable[[], Recurrent[Any]]) -> None:
    model = make()
    assert isinstance(model, Model)
    assert model.dim == DIM


def test_the_model_of_every_family_is_checked() -> None:
    built = {name: type(build(TrainSettings.of(name), Basis(torch.zeros(DIM), 0.5))) for name in family_names()}
    checked = {type(make()) for make in MODELS.values()}
    assert [name for name, model in built.items() if model not in checked] == []


# A law that nothing can break is no law: each fault is planted, and must be caught.


class UnnormalisedStep(CopyLast):
    def step(self, state: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        return state, 2 * x_BD


class HeavyLags(PooledLags):
    def run(self, state: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        after, y_BTW = super().run(state, x_BTD)
        return after, torch.cat([y_BTW[..., : -self.LAGS], y_BTW[..., -self.LAGS :] + 0.1], dim=-1)


class LookAhead(CopyLast):
    def run(self, state: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return state, x_BTD.roll(-1, dims=1)


class BatchLeak(CopyLast):
    def run(self, state: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return state, normalize(x_BTD + 0.1 * x_BTD.mean(0, keepdim=True), dim=-1)


def test_an_unnormalised_step_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_step_is_forward(UnnormalisedStep(DIM), passage(2, 5))
    with pytest.raises(AssertionError):
        check_outputs(UnnormalisedStep(DIM), passage(2, 5))


def test_weights_that_do_not_sum_to_one_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_outputs(HeavyLags(DIM, 0.5), passage(2, 5))


def test_look_ahead_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_future_never_reaches_past(LookAhead(DIM), passage(2, 6), cut=3)
    with pytest.raises(AssertionError):
        check_step_is_forward(LookAhead(DIM), passage(2, 6))


def test_batch_leakage_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_passages_do_not_meet(BatchLeak(DIM), passage(3, 6))
