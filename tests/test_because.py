"""The rows of the context that an answer comes from: their parts of the score, against the definition in float64 NumPy."""

# Axes: T vectors of the context, D width, M points of a line, V vectors mixed, L lags.

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.errors import SettingsError
from nextvec.inference import Engine, Expected, PredictionRequest
from nextvec.kernels.weights import FORMATS, WeightFormat
from nextvec.models import GRU, MemoryGRU, Pooled, Recurrent
from nextvec.models.packed import pack
from nextvec.models.pooling import LagPooling
from nextvec.models.space import InSpace
from nextvec.models.working_memory import WorkingMemory
from tests.conftest import walk_bank
from tests.oracles import unit
from tests.spaces import a_space

DIM, WORKING = 12, 20
Frozen = Callable[[np.ndarray], np.ndarray]
"""Scores of one candidate at contexts [M, T, D]; all weights stay those of the true context."""


def shaken(model: Recurrent[Any], seed: int = 0) -> Recurrent[Any]:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def centre() -> torch.Tensor:
    return torch.full((DIM,), 0.08)


MODELS: dict[str, Callable[[], Recurrent[Any]]] = {
    "pooled": lambda: Pooled(DIM, 0.5, pooled=5, working=WORKING),
    "pooled without gates": lambda: Pooled(DIM, 0.5, pooled=5, working=WORKING, gates=False),
    "pooled, one lag": lambda: Pooled(DIM, 0.5, pooled=1, working=WORKING),
    "pooled, no lag": lambda: Pooled(DIM, 0.5, pooled=0, working=WORKING),
    "pooled in a space": lambda: InSpace(a_space(DIM), Pooled(DIM, 0.5, pooled=5, working=WORKING)),
    "memory gru": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=16, working=WORKING),
    "memory gru without slots": lambda: MemoryGRU(centre(), 0.5, hidden=8, slots=0, working=WORKING),
    "memory gru in a space": lambda: InSpace(a_space(DIM), MemoryGRU(0 * centre(), 0.5, hidden=8, slots=16, working=WORKING)),
}
every_model = pytest.mark.parametrize("name", MODELS)


# The definition


def number(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def recalled(memory: WorkingMemory, rows: np.ndarray, written: np.ndarray) -> np.ndarray:
    """[2, T]: the weight of each row in both heads at the newest row; the rest is the sink's."""
    newest, found = len(rows) - 1, np.zeros((2, len(rows)))
    sharpness, fading = np.exp(number(memory.log_sharpness)), np.exp(number(memory.log_fading))
    for head in (0, 1):
        logits = np.full(len(rows) + 1, -np.inf)
        logits[-1] = number(memory.sink)[head]
        for r in range(len(rows)):
            lag = newest - r
            key, allowed = (r - 1, r > 0 and lag < memory.size) if head == 0 else (r, 1 <= lag <= memory.size)
            if allowed:
                logits[r] = sharpness[head] * (rows[newest] @ rows[key]) - fading[head] * lag + written[r]
        found[head] = softmax(logits)[:-1]
    return found


def frozen_pooled(model: Pooled, rows: np.ndarray, candidate: np.ndarray) -> Frozen:
    assert model.working is not None
    count = len(rows)
    decays = sigmoid(number(model.means.logits))[:, None]
    means = (1 - decays) * decays ** np.arange(count)[::-1]
    shares_VT = np.concatenate([means, np.ones((1, count)), recalled(model.working, rows, np.zeros(count))])
    vectors_VD = shares_VT @ rows
    lengths_V = np.maximum(np.linalg.norm(vectors_VD, axis=1), 1e-6)
    lags = 0 if model.pooling is None else model.pooling.lags
    last_LD = np.zeros((lags, DIM))
    last_LD[: min(lags, count)] = rows[::-1][:lags]
    weights_V, log_weights_L, amplitude = number(model.weights), np.zeros(lags), 0.0
    if model.pooling is not None:
        log_weights_L, amplitude = number(model.pooling.lag_logits), number(model.pooling.amplitude)
    if model.gates is not None:
        first, _, second = model.gates
        seen = np.concatenate([vectors_VD / lengths_V[:, None], last_LD]) @ rows[-1] * 3 - 1
        norms = np.linalg.norm(means @ rows, axis=1) * 2 - 1
        hidden = np.tanh(number(first.weight) @ np.concatenate([[np.log(count) / 2 - 1], norms, seen]) + number(first.bias))
        gates = number(second.weight) @ hidden + number(second.bias)
        weights_V = weights_V + gates[: len(weights_V)]
        log_weights_L, amplitude = log_weights_L + gates[len(weights_V) :][:lags], amplitude + gates[-1]
    mix_T = (weights_V / lengths_V) @ shares_VT
    length = np.linalg.norm(mix_T @ rows + (amplitude * rows[-1] if lags else 0))

    def frozen(x: np.ndarray) -> np.ndarray:
        products = x @ candidate
        mixture_M = products @ mix_T
        if lags <= 1:
            return (mixture_M + (amplitude * products[:, -1] if lags else 0)) / length
        assert model.pooling is not None
        sharpness, own = np.exp(number(model.pooling.log_sharpness)), min(lags, count)
        weights = softmax(log_weights_L[:own])
        return mixture_M + np.log(np.exp(sharpness * amplitude * products[:, ::-1][:, :own]) @ weights) / sharpness

    return frozen


def frozen_memory_gru(model: MemoryGRU, state: Any, rows: np.ndarray, candidate: np.ndarray) -> Frozen:
    assert model.working is not None
    trunk, count = model.trunk, len(rows)
    centred = rows - number(trunk.centre)
    lengths_T = np.linalg.norm(centred, axis=1)
    decays = sigmoid(number(trunk.means.logits))[:, None]
    means_KT = (1 - decays) * decays ** np.arange(count)[::-1]
    recall_RT = recalled(model.working, unit(centred), number(state.held.written[0]))
    hidden = state.hidden[:, 0]
    gates = 1 + number(model.gates.weight) @ number(hidden[0]) + number(model.gates.bias)
    weights_KD = gates[: len(decays), None] * number(trunk.weights)
    recall_RD = gates[len(decays) :, None] * number(model.recall_weights)
    residual = np.zeros(DIM)
    if model.slots is not None:
        newest = torch.from_numpy(centred[-1]) * DIM**0.5
        residual = number(model.slots(torch.cat([hidden[0], model.content(newest)])[None, None])[0, 0])

    def mixed(x: np.ndarray) -> np.ndarray:
        of_means = np.einsum("kd,kt,mtd->md", weights_KD, means_KT, x)
        of_recall = np.einsum("rd,rt,mtd->md", recall_RD, recall_RT, x / lengths_T[:, None])
        return of_means + of_recall + number(trunk.bias)

    length = np.linalg.norm(mixed(centred[None]))
    whole = np.linalg.norm((mixed(centred[None]) / length + residual) * number(trunk.scale))

    def frozen(x: np.ndarray) -> np.ndarray:
        return (mixed(x) / length + residual) * number(trunk.scale) / whole @ candidate

    return frozen


def integrated(frozen: Frozen, rows: np.ndarray) -> np.ndarray:
    """The integrated gradient of each row: Simpson's rule over central differences."""
    line, step = np.linspace(0, 1, 601), 1e-5
    shares = np.where(np.arange(len(line)) % 2, 4.0, 2.0)
    shares[[0, -1]] = 1
    at, parts = line[:, None, None] * rows, np.zeros(len(rows))
    for r in range(len(rows)):
        moved = np.zeros_like(rows)
        moved[r] = step * rows[r]
        parts[r] = (shares / 1800) @ ((frozen(at + moved) - frozen(at - moved)) / (2 * step))
    return parts


def definition(model: Recurrent[Any], state: Any, context: np.ndarray, candidate: np.ndarray) -> tuple[Frozen, np.ndarray]:
    """The score of a candidate with fixed weights, and the rows of the context as it reads them."""
    inner = model.model if isinstance(model, InSpace) else model
    if isinstance(model, InSpace):
        context = unit((context - number(model.space.mean)) @ number(model.space.matrix))
    if isinstance(inner, Pooled):
        return frozen_pooled(inner, context, candidate), context
    assert isinstance(inner, MemoryGRU)
    return frozen_memory_gru(inner, state, context, candidate), context - number(inner.trunk.centre)


def vectors(count: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, DIM)))


@every_model
@given(length=st.integers(1, WORKING), seed=st.integers(0, 1000))
@torch.no_grad()
def test_the_parts_are_integrated_gradients_and_add_up_to_the_score(name: str, length: int, seed: int) -> None:
    model, context = shaken(MODELS[name](), seed).double(), vectors(length, seed)
    assert model.names_rows
    state, y_BTW = model.run(model.start(1), torch.from_numpy(context)[None])
    mapped_CE = model.candidates(torch.from_numpy(vectors(3, seed + 1)))
    scores = model.scores(y_BTW[:, -1], mapped_CE)[0].numpy()
    rows_CH, learned_C = (part.numpy() for part in model.attribution(state, mapped_CE))
    assert rows_CH.shape == (3, length)
    np.testing.assert_allclose(rows_CH.sum(1) + learned_C, scores, rtol=0, atol=1e-6)
    for c in range(3):
        frozen, rows = definition(model, state, context, mapped_CE[c].numpy())
        np.testing.assert_allclose(
            frozen(rows[None]), scores[c], rtol=0, atol=1e-9, err_msg="the fixed weights are the model's"
        )
        np.testing.assert_allclose(frozen(0 * rows[None]), learned_C[c], rtol=0, atol=1e-9)
        np.testing.assert_allclose(rows_CH[c], integrated(frozen, rows), rtol=0, atol=1e-6)


@given(st.integers(0, 1000))
@torch.no_grad()
def test_the_parts_of_sharply_pooled_lags_add_up(seed: int) -> None:
    """As sharply as trained weights pool; the quadrature has a fixed number of nodes."""
    torch.manual_seed(seed)
    pooling = LagPooling(12).double()
    pooling.log_sharpness.fill_(np.log(60))
    pooling.amplitude.fill_(1.0)
    products_CL, gates_L, there_L = 2 * torch.rand(50, 12).double() - 1, torch.randn(12).double(), torch.arange(12) < 9
    parts_CL = pooling.parts(products_CL, there_L, gates_L, torch.zeros(1).double())
    weights_L = (pooling.lag_logits + gates_L).exp() * there_L
    density_C = (weights_L / weights_L.sum() * (60 * products_CL).exp()).sum(1)
    torch.testing.assert_close(parts_CL.sum(1), density_C.log() / 60, rtol=0, atol=1e-5)
    assert not parts_CL[:, 9:].any()


# What sessions answer


@pytest.fixture(scope="module")
def bank() -> Bank:
    return walk_bank(documents=6, dim=DIM)


def parts_of(expected: Expected) -> dict[int, float]:
    """The part of each named row, by position; the largest come first, and all parts add up to the score."""
    because = expected.because
    assert because is not None
    parts = [row.part for row in because.rows]
    assert parts == sorted(parts, reverse=True)
    assert sum(parts) + because.others + because.learned == pytest.approx(expected.score, abs=1e-6)
    return {row.position: row.part for row in because.rows}


@given(length=st.integers(WORKING + 1, 60), seed=st.integers(0, 1000))
def test_rows_that_have_left_the_state_count_among_the_others(length: int, seed: int) -> None:
    """Exact where the working memory has no weight: its newest loss takes part in its weights."""
    torch.manual_seed(seed)
    model = Pooled(DIM, 0.9, pooled=5, working=WORKING, gates=False)
    with torch.no_grad():
        model.weights[:9] = 0.5 * torch.rand(9)
        model.pooling.amplitude.fill_(0.5)  # type: ignore[union-attr]
    session = Engine(model.eval(), walk_bank(documents=2, dim=DIM)).session()
    context = vectors(length, seed).astype(np.float32)
    session.push_many(context)
    for expected in session.predict(2, because=length):
        candidate = session.engine.bank.rows[expected.row].astype(np.float64)
        wanted = integrated(frozen_pooled(model, unit(context.astype(np.float64)), candidate), context.astype(np.float64))
        parts, because = parts_of(expected), expected.because
        assert because is not None and sorted(parts) == list(range(length - WORKING, length))
        np.testing.assert_allclose([parts[p] for p in sorted(parts)], wanted[-WORKING:], rtol=0, atol=1e-5)
        assert because.others == pytest.approx(wanted[:-WORKING].sum(), abs=1e-5)


@pytest.mark.parametrize("weights", FORMATS)
@every_model
def test_a_packed_model_names_rows_as_the_plain_one(name: str, weights: WeightFormat, bank: Bank) -> None:
    model = shaken(MODELS[name]())
    plain, packed = Engine(model, bank).session(), Engine(pack(model, weights), bank).session()
    tolerance = 1e-5 if weights == "float32" else 0.05  # a rounded model has parts of its own
    for session in (plain, packed):
        session.push_many(vectors(14, 3))
    found = {expected.row: expected for expected in packed.predict(len(bank), because=14)}
    for expected in plain.predict(4, because=14):
        wanted, got = parts_of(expected), parts_of(found[expected.row])
        assert sorted(wanted) == sorted(got) == list(range(14))
        np.testing.assert_allclose([got[p] for p in range(14)], [wanted[p] for p in range(14)], rtol=0, atol=tolerance)


@every_model
def test_reasons_are_the_same_on_every_road(name: str, bank: Bank) -> None:
    """Vector by vector, in a batch with other sessions, as one request, and after a snapshot; nothing else changes."""
    engine = Engine(shaken(MODELS[name]()), bank)
    context = vectors(WORKING + 7, 5).astype(np.float32)
    one, other = engine.session(), engine.session()
    other.push_many(context[:3])
    one.push_many(context)
    wanted = one.predict(3, because=4)
    assert [e.because for e in one.predict(3)] == [None] * 3
    assert [(e.row, e.score) for e in one.predict(3)] == [(e.row, e.score) for e in wanted]
    assert engine.restore(one.snapshot()).predict(3, because=4) == wanted
    assert engine.predict([other, one], 3, because=4)[1] == wanted
    stepped = engine.session()
    for row in context:
        stepped.push(row)
    for a, b in zip(stepped.predict(3, because=4), wanted, strict=True):
        np.testing.assert_allclose(list(parts_of(a).values()), list(parts_of(b).values()), rtol=0, atol=1e-4)
    requests = [
        PredictionRequest(engine.session(), context, 3, because=4),
        PredictionRequest(engine.session(), context, 2),
        PredictionRequest(engine.session(), context[:1], 2, because=9),
    ]
    first, second, third = engine.answers(requests)
    assert first == wanted
    assert isinstance(second, list) and [e.because for e in second] == [None, None]
    assert isinstance(third, list) and [list(parts_of(e)) for e in third] == [[0], [0]]


@given(st.integers(0, 1000), st.integers(0, 11))
def test_the_row_that_obviously_causes_an_answer_is_named_first(seed: int, lag: int) -> None:
    """One row of the context nearly is a vector of the bank; the other rows are random."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((200, 64)))
    model = Pooled(64, 0.5, pooled=12, working=WORKING)
    assert model.pooling is not None
    with torch.no_grad():
        model.weights.mul_(0.1)
        model.pooling.amplitude.fill_(1.0)
        model.pooling.log_sharpness.fill_(np.log(20))
        model.pooling.lag_logits.zero_()
    session = Engine(model.eval(), Bank.from_numpy(rows.astype(np.float32), [100, 100])).session()
    context = unit(rng.standard_normal((15, 64)))
    context[14 - lag] = unit(rows[77] + 0.05 * rng.standard_normal(64))
    session.push_many(context)
    best = session.predict(1, because=2)[0]
    assert best.row == 77
    (position, part), (_, second) = parts_of(best).items()
    assert position == 14 - lag and part > 0.5 * best.score and part > 3 * second


@given(st.integers(0, 1000), st.integers(2, 15))
def test_what_followed_a_similar_vector_is_named_first(seed: int, lag: int) -> None:
    """The newest row nearly repeats an earlier one, and the working memory recalls what followed that."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((200, 64)))
    model = MemoryGRU(torch.zeros(64), 0.5, hidden=8, slots=0, working=WORKING).eval()
    assert model.working is not None
    with torch.no_grad():
        model.recall_weights[0] = 3.0
        model.working.log_sharpness.fill_(np.log(20))
    session = Engine(model, Bank.from_numpy(rows.astype(np.float32), [100, 100])).session()
    context = unit(rng.standard_normal((18, 64)))
    context[17 - lag] = unit(context[17] + 0.02 * rng.standard_normal(64))
    context[18 - lag] = unit(rows[77] + 0.02 * rng.standard_normal(64))
    session.push_many(context)
    best = session.predict(1, because=1)[0]
    assert best.row == 77
    assert list(parts_of(best)) == [18 - lag]


def test_rows_that_were_added_to_the_index_have_reasons_too(bank: Bank) -> None:
    engine = Engine(shaken(MODELS["pooled in a space"]()), bank)
    context = vectors(9, 1).astype(np.float32)
    added = set(engine.index.add(vectors(300, 2)).tolist())
    session = engine.session()
    session.push_many(context)
    found = session.predict(20, because=9)
    assert added & {e.row for e in found}
    for expected in found:
        assert sum(parts_of(expected).values()) == pytest.approx(expected.score, abs=1e-5)


def test_what_cannot_be_named_is_one_line(bank: Bank) -> None:
    for model in (
        GRU(centre(), 0.5, hidden=8),
        Pooled(DIM, 0.5, pooled=0, working=0),
        MemoryGRU(centre(), 0.5, 8, 0, working=0),
    ):
        engine = Engine(model.eval(), bank)
        assert not engine.names_rows
        session = engine.session()
        session.push_many(vectors(3, 0))
        with pytest.raises(SettingsError, match="this model does not name the rows that an answer comes from"):
            session.predict(2, because=1)
        refused = engine.answers([PredictionRequest(session, vectors(0, 0).astype(np.float32), 2, because=1)])[0]
        assert isinstance(refused, SettingsError)
        assert [e.because for e in session.predict(2)] == [None, None]
    session = Engine(shaken(MODELS["pooled"]()), bank).session()
    session.push_many(vectors(3, 0))
    with pytest.raises(SettingsError, match="because=-1: the number of rows to name must be at least 0"):
        session.predict(2, because=-1)
