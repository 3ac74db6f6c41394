"""The smooth share of misses, against a slow loop in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextvec.objective import smooth_misses

K, POOL, STEEPNESS = 5, 1000, 1.5


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def missed(above: float, negatives: int, pool: int) -> float:
    """The smooth miss of a truth with this many negatives above it."""
    return logistic(STEEPNESS * (math.log(above * (pool - 1) / negatives + 0.5) - math.log(K)))


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.uniform(-1, 1, (6, 40)))
    truth = torch.from_numpy(rng.integers(0, 40, 6))
    forbidden = torch.from_numpy(rng.random((6, 40)) < 0.3)
    forbidden[torch.arange(6), truth] = False
    return scores, truth, forbidden


@given(st.integers(0, 1000), st.sampled_from([0.01, 0.05, 0.3]), st.sampled_from([20, POOL]))
def test_smooth_misses_are_their_definition(seed: int, temperature: float, pool: int) -> None:
    scores, truth, forbidden = drawn(seed)
    expected = []
    for n in range(6):
        own = float(scores[n, truth[n]])
        negatives = [c for c in range(40) if c != int(truth[n]) and not forbidden[n, c]]
        above = sum(logistic((float(scores[n, c]) - own) / temperature) for c in negatives)
        expected.append(missed(above, len(negatives), pool))
    found = smooth_misses(scores, truth, forbidden, torch.tensor(temperature, dtype=torch.float64), pool=pool)
    assert float(found) == pytest.approx(sum(expected) / 6, rel=1e-6)


@given(st.integers(0, 1000))
def test_at_a_tiny_temperature_only_the_rank_counts(seed: int) -> None:
    scores, truth, forbidden = drawn(seed)
    tiny = torch.tensor(1e-7, dtype=torch.float64)
    own = scores.gather(1, truth[:, None])
    above = ((scores > own) & ~forbidden).sum(1).tolist()
    negatives = (39 - forbidden.sum(1)).tolist()
    expected = sum(missed(a, n, POOL) for a, n in zip(above, negatives, strict=True)) / 6
    assert float(smooth_misses(scores, truth, forbidden, tiny)) == pytest.approx(expected, rel=1e-6)
    # Any other scores with the same order have the same loss.
    ordered = scores.argsort(1).argsort(1).double()
    assert float(smooth_misses(ordered, truth, forbidden, tiny)) == pytest.approx(expected, rel=1e-6)


def test_at_a_tiny_temperature_a_truth_at_place_1_is_a_hit_and_one_at_the_end_a_miss() -> None:
    scores, tiny = torch.linspace(1, 0, POOL)[None], torch.tensor(1e-7)
    nothing = torch.zeros(1, POOL, dtype=torch.bool)
    misses = [float(smooth_misses(scores, torch.tensor([place]), nothing, tiny)) for place in (0, 4, 5, 50, 999)]
    assert misses == sorted(misses)
    assert misses[0] < 0.05
    assert misses[1] < 0.5 < misses[2]
    assert misses[4] > 0.99


@given(st.integers(0, 1000))
def test_forbidden_candidates_do_not_matter_and_get_no_gradient(seed: int) -> None:
    scores, truth, forbidden = drawn(seed)
    temperature = torch.tensor(0.1)
    changed = torch.where(forbidden, 100 * torch.randn_like(scores), scores).requires_grad_()
    loss = smooth_misses(changed, truth, forbidden, temperature)
    assert loss.item() == pytest.approx(float(smooth_misses(scores, truth, forbidden, temperature)), rel=1e-6)
    loss.backward()
    assert changed.grad is not None
    assert (changed.grad[forbidden] == 0).all()
    assert (changed.grad[~forbidden] != 0).all()


@pytest.mark.parametrize("size", [0.0, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("truth_is", ["first", "last"])
def test_the_gradient_is_finite_at_extreme_scores(size: float, truth_is: str) -> None:
    scores = torch.full((2, 8), size)
    scores[:, 0] = -size if truth_is == "last" else size
    scores[:, 1:] = size if truth_is == "last" else -size
    scores.requires_grad_()
    temperature = torch.tensor(1e-3, requires_grad=True)
    smooth_misses(scores, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 8, dtype=torch.bool), temperature).backward()
    assert scores.grad is not None
    assert temperature.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert torch.isfinite(temperature.grad)


def test_a_truth_without_negatives_is_no_miss_and_is_finite() -> None:
    scores = torch.randn(1, 3, requires_grad=True)
    loss = smooth_misses(scores, torch.tensor([1]), torch.tensor([[True, False, True]]), torch.tensor(0.1))
    loss.backward()
    assert loss.item() < 0.05
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0
