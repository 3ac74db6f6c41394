"""A fitted space: the map of rows by definition, and a model that reads and ranks in it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.models import GRU, Pooled
from nextvec.models.baselines import CopyLast
from nextvec.models.space import InSpace, Space
from tests import oracles

DIM = 12
SCALES = np.array([3.0, 2.0, *[0.3] * 9, 0.05])


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Of unequal variance, correlated, with a mean that is not 0."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    return rng.standard_normal((count, DIM)) * SCALES @ turn + 0.5


def unit(count: int, seed: int = 0) -> np.ndarray:
    """Such rows of unit length."""
    found = rows(count, seed)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def fitted(on: np.ndarray, power: float) -> Space:
    return Space.fitted(on.mean(0), np.cov(on.T, bias=True).reshape(DIM, DIM), power, len(on))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


@pytest.mark.parametrize("count", [1, 2, 7, DIM, 2 * DIM - 1, 200])
@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 0.75, 1.0])
@given(seed=st.integers(0, 1000))
def test_the_map_is_its_definition(power: float, count: int, seed: int) -> None:
    """With fewer than 2 D rows the covariance is shrunk."""
    on, others = rows(count, seed), rows(20, seed + 1)
    found = fitted(on, power)(tensor(others))
    np.testing.assert_allclose(found.numpy(), oracles.in_space(others, on, power), rtol=0, atol=3e-6)


def test_power_0_centres_and_power_1_whitens() -> None:
    on = rows(400)
    np.testing.assert_allclose(fitted(on, 0.0).matrix.numpy(), np.eye(DIM), atol=1e-6)
    white = (on - on.mean(0)) @ fitted(on, 1.0).matrix.numpy().astype(np.float64)
    # The floor of 1e-4 of the largest variance is a third of the smallest one here.
    values = np.linalg.eigvalsh(np.cov(white.T, bias=True))
    assert values[0] > 0.5
    np.testing.assert_allclose(values[1:], 1.0, atol=0.02)


def test_few_rows_leave_other_directions_as_they_are() -> None:
    """Two rows vary in one direction alone; without shrinkage all others would be enlarged ten times as much."""
    on = np.zeros((2, DIM))
    on[1, 0] = 1.0
    scales = fitted(on, 0.5).matrix.numpy().diagonal()
    shrinkage = 1 - 2 / (2 * DIM)
    values = np.full(DIM, shrinkage * 0.25 / DIM)
    values[0] += (1 - shrinkage) * 0.25
    np.testing.assert_allclose(scales, (values + 1e-4 * values[0]) ** -0.25, rtol=1e-5)
    assert scales[1] / scales[0] < 1.25


@pytest.mark.parametrize("power", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_rows_than_dimensions_give_a_finite_space(power: float, count: int) -> None:
    """Of one row, too: its covariance is 0."""
    on = rows(count)
    space = fitted(on, power)
    assert torch.isfinite(space.matrix).all()
    mapped = space(tensor(rows(30, seed=1)))
    torch.testing.assert_close(mapped.norm(dim=-1), torch.ones(30))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_inverse_finds_the_row_of_a_mapped_row(power: float) -> None:
    space, x = fitted(unit(200), power), tensor(unit(30, seed=1))
    np.testing.assert_allclose(space.inverse(space(x)).numpy(), x.numpy(), rtol=0, atol=2e-5)


def test_the_inverse_of_a_space_of_equal_rows_is_their_vector() -> None:
    one = np.repeat(unit(1), 5, axis=0)
    space = fitted(one, 0.5)
    np.testing.assert_allclose(space.inverse(space(tensor(one))).numpy(), one, rtol=0, atol=1e-5)


def in_space(power: float = 0.5) -> InSpace:
    torch.manual_seed(0)
    model = Pooled(DIM, 0.5, pooled=3, working=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return InSpace(fitted(rows(200), power), model).eval()


@torch.no_grad()
def test_the_model_reads_mapped_rows_and_knows_nothing_of_the_space() -> None:
    model, x = in_space(), tensor(rows(22)).view(2, 11, DIM)
    expected = model.model(model.space(x))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.last(x), expected[:, -1])
    state = model.start(2)
    for t in range(11):
        state, y = model.step(state, x[:, t])
        torch.testing.assert_close(y, expected[:, t], rtol=0, atol=2e-5)


@torch.no_grad()
def test_candidates_are_mapped_as_the_context_is() -> None:
    """Else copy last would not find a copy: its own map has the product 1 with it, and nothing has a larger one."""
    space, x = fitted(rows(200), 0.5), tensor(rows(9))
    model = InSpace(space, CopyLast(DIM))
    read = model(x[:, None])[:, 0]
    torch.testing.assert_close(model.candidates(x), read)
    scores = model.scores(read, model.candidates(x))
    torch.testing.assert_close(scores.diagonal(), torch.ones(9))
    assert scores.argmax(1).tolist() == list(range(9))


def test_weights_are_taken_over_and_the_space_is_kept() -> None:
    first, second = in_space(0.5), InSpace(fitted(rows(100, seed=3), 0.25), Pooled(DIM, 0.5, pooled=3, working=6))
    own = {name: held.clone() for name, held in second.space.state_dict().items()}
    second.take_over(first.state_dict())
    for name, held in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], held), name
    for name, held in own.items():
        assert torch.equal(second.space.state_dict()[name], held), name
        assert not torch.equal(first.space.state_dict()[name], held), name


def test_weights_of_raw_rows_are_refused() -> None:
    raw = GRU(torch.zeros(DIM), 0.5, hidden=4)
    with pytest.raises(RuntimeError, match="Missing key"):
        InSpace(fitted(rows(100), 0.5), GRU(torch.zeros(DIM), 0.5, hidden=4)).take_over(raw.state_dict())
