"""Ranks, rates and intervals against values derived independently of them."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import ExamError
from nextvec.ranks import Ranks, clustered_rate, paired_lift, wilson


def ranks(above: list[int], tied: list[int], candidates: int, clusters: list[int] | None = None) -> Ranks:
    n = len(above)
    owner = np.arange(n) if clusters is None else np.array(clusters)
    return Ranks(np.array(above, np.int64), np.array(tied, np.int64), np.full(n, candidates), owner.astype(np.int64))


@given(st.integers(0, 3), st.integers(0, 2), st.integers(1, 6))
def test_a_tie_counts_as_the_average_over_all_orders_of_the_tied(above: int, tied: int, k: int) -> None:
    places = [above + order.index(0) + 1 for order in permutations(range(tied + 1))]
    found = ranks([above], [tied], 10)
    assert found.hits(k)[0] == pytest.approx(np.mean([place <= k for place in places]))
    assert found.reciprocals()[0] == pytest.approx(np.mean([1 / place for place in places]))


def test_a_scorer_that_ties_everything_does_exactly_chance() -> None:
    found = ranks([0] * 7, [99] * 7, 100)
    for k in (1, 5, 10):
        assert found.hits(k).mean() == pytest.approx(k / 100, rel=1e-14)
        assert found.chance(k) == pytest.approx(k / 100, rel=1e-14)


def test_optimistic_ties_would_be_caught() -> None:
    """Counting a tie as a win scores 100 % for a constant scorer, which chance forbids."""
    constant = ranks([0] * 7, [99] * 7, 100)
    optimistic = ranks([0] * 7, [0] * 7, 100)
    assert constant.hits(5).mean() == pytest.approx(constant.chance(5))
    assert optimistic.hits(5).mean() != pytest.approx(optimistic.chance(5))


def test_wilson_agrees_with_published_values() -> None:
    """87 of 115, the predecessor's best figure: 67.1 to 82.6 % (its own record, recomputed by hand)."""
    low, high = wilson(87 / 115, 115)
    assert (round(low, 3), round(high, 3)) == (0.671, 0.826)


def test_wilson_contains_its_value_and_stays_between_zero_and_one() -> None:
    for hits in range(21):
        low, high = wilson(hits / 20, 20)
        assert 0 <= low <= hits / 20 <= high <= 1


def test_queries_of_one_document_widen_the_interval() -> None:
    """Ten documents that are wholly hit or wholly missed hold ten facts, not a thousand."""
    values = np.repeat([1.0, 0.0] * 5, 100)
    dependent = clustered_rate(values, np.repeat(np.arange(10), 100))
    independent = clustered_rate(values, np.arange(1000))
    assert dependent.high - dependent.low > 5 * (independent.high - independent.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        means = np.clip(rng.normal(0.5, 0.1, 40), 0, 1)
        values = (rng.random((40, 25)) < means[:, None]).astype(float).reshape(-1)
        rate = clustered_rate(values, np.repeat(np.arange(40), 25))
        covered += rate.low <= 0.5 <= rate.high
    # 95 % nominal; 200 trials have a standard error of 1.5 points.
    assert 0.89 <= covered / 200 <= 1.0


def test_a_paired_lift_sees_what_two_separate_intervals_cannot() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(500) < 0.5
    better = base | (rng.random(500) < 0.05)
    a, b = (ranks([0 if hit else 50 for hit in hits], [0] * 500, 100) for hits in (better, base))
    lift = paired_lift(a, b, 5)
    assert lift.low > 0
    assert a.hit(5).low < b.hit(5).high


def test_no_difference_is_no_lift() -> None:
    same = ranks([0, 3, 20], [0, 0, 0], 100)
    lift = paired_lift(same, same, 5)
    assert (lift.value, lift.low, lift.high) == (0, 0, 0)


def test_ranks_of_different_exams_are_not_compared() -> None:
    with pytest.raises(ExamError, match="different exams"):
        paired_lift(ranks([0], [0], 100), ranks([0], [0], 99), 5)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ExamError, match="no rows were scored"):
        ranks([], [], 10).hit(5)
