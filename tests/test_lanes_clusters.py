"""Spherical k-means: it descends, it repeats, it does not see which way up the vectors are, and equal sizes are equal."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import DataError, SettingsError
from nextvec.lanes import clusters
from nextvec.lanes.clusters import dealt, mean_directions, spherical_kmeans
from tests.conftest import walk_bank


def directions(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def objective(rows: np.ndarray, centres: np.ndarray, lane: np.ndarray) -> float:
    return 1 - float(np.einsum("nd,nd->n", rows.astype(np.float64), centres[lane].astype(np.float64)).mean())


@given(st.integers(20, 300), st.integers(2, 9), st.integers(2, 12), st.booleans(), st.integers(0, 99))
def test_the_objective_never_rises(count: int, dim: int, k: int, balanced: bool, seed: int) -> None:
    rows = directions(count, dim, seed)
    found = spherical_kmeans(rows, k, seed, balanced)
    assert all(after <= before for before, after in zip(found.objective, found.objective[1:], strict=False))
    assert objective(rows, found.centres, found.lane) <= found.objective[-1] + 1e-6
    assert np.allclose(np.linalg.norm(found.centres, axis=1), 1, atol=1e-5)
    # The last centres are those of the lanes, or the lanes those of the centres: a fixed point up to the last step.
    better = mean_directions(rows, found.lane, k)
    assert objective(rows, better, found.lane) <= found.objective[-1] + 1e-6


@given(st.integers(30, 400), st.integers(2, 16), st.integers(0, 99))
def test_equal_sizes_differ_by_one_at_most(count: int, k: int, seed: int) -> None:
    sizes = np.bincount(spherical_kmeans(directions(count, 6, seed), k, seed, balanced=True).lane, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == count


def test_equal_sizes_of_many_equal_rows() -> None:
    """Every row twenty times, nearly all of them in one place: prices alone cannot tell equal rows apart."""
    crowd = directions(1, 8, 0) + 1e-3 * directions(30, 8, 1)
    rows = np.repeat(np.concatenate([crowd / np.linalg.norm(crowd, axis=1, keepdims=True), directions(10, 8, 2)]), 20, axis=0)
    sizes = np.bincount(spherical_kmeans(rows, 7, balanced=True).lane, minlength=7)
    assert sorted(sizes) == [114, 114, 114, 114, 114, 115, 115]


@given(st.integers(2, 9), st.integers(0, 999))
def test_two_lanes_are_dealt_at_the_least_cost(count: int, seed: int) -> None:
    scores = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    lane, _ = dealt(scores, np.zeros(2, np.float32))
    deals = np.array([deal for deal in product(range(2), repeat=count) if abs(2 * sum(deal) - count) <= 1])
    best = scores[np.arange(count), deals].sum(1).max()
    assert scores[np.arange(count), lane].sum() == pytest.approx(best, abs=1e-5)


@given(st.integers(400, 2_000), st.integers(2, 12), st.integers(0, 999))
def test_many_lanes_are_dealt_at_nearly_the_least_cost(count: int, k: int, seed: int) -> None:
    """No deal of these sizes beats the bound that its prices give (weak duality), and ours comes near it."""
    scores = (directions(count, 8, seed) @ directions(k, 8, seed + 1_000).T).astype(np.float32)
    lane, prices = dealt(scores, np.zeros(k, np.float32))
    bound = (scores - prices).max(1).sum() + (np.bincount(lane, minlength=k) * prices).sum()
    assert bound - scores[np.arange(count), lane].sum() < 2e-3 * count


def test_prices_explain_the_deal() -> None:
    """All but the few rows that were moved lie where score less price is highest."""
    scores = directions(3_000, 12, 0) @ directions(9, 12, 1).T
    scores[:, 0] += 0.5  # a lane that everybody wants
    lane, prices = dealt(scores.astype(np.float32), np.zeros(9, np.float32))
    assert ((scores - prices).argmax(1) == lane).mean() > 0.97
    assert (scores.argmax(1) == 0).mean() > 0.5
    assert prices.argmax() == 0 and prices.min() == 0


@pytest.mark.parametrize("balanced", [False, True])
def test_the_same_seed_gives_the_same_clusters(balanced: bool) -> None:
    rows = walk_bank().rows
    a, b, c = (spherical_kmeans(rows, 6, seed, balanced) for seed in (3, 3, 4))
    assert (a.lane == b.lane).all() and (a.centres == b.centres).all() and (a.prices == b.prices).all()
    assert a.objective == b.objective
    assert (a.lane != c.lane).any()


@pytest.mark.parametrize("balanced", [False, True])
def test_turning_all_vectors_changes_nothing(balanced: bool) -> None:
    rows = walk_bank().rows.astype(np.float32)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))
    turned = (rows @ turn).astype(np.float32)
    plain, other = spherical_kmeans(rows, 5, 0, balanced), spherical_kmeans(turned, 5, 0, balanced)
    # Rows between two clusters may fall either way by the last bit.
    assert (plain.lane == other.lane).mean() > 0.99
    assert np.allclose(plain.centres @ turn, other.centres, atol=2e-2)
    assert plain.objective[-1] == pytest.approx(other.objective[-1], abs=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_blocks_change_nothing(balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = walk_bank().rows
    whole = spherical_kmeans(rows, 5, 0, balanced)
    monkeypatch.setattr(clusters, "BLOCK", 37)
    pieces = spherical_kmeans(rows, 5, 0, balanced)
    assert (whole.lane == pieces.lane).mean() > 0.99
    assert whole.objective[-1] == pytest.approx(pieces.objective[-1], abs=1e-4)


def test_clusters_that_are_there_are_found() -> None:
    centres = np.eye(8, 32, dtype=np.float32)
    truth = np.repeat(np.arange(8), 50)
    rows = centres[truth] + 0.05 * np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32)
    found = spherical_kmeans(rows / np.linalg.norm(rows, axis=1, keepdims=True), 8, 0, balanced=True)
    assert all(len(set(found.lane[truth == k])) == 1 for k in range(8))
    assert len(set(found.lane[::50])) == 8


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    lane, cosine = np.array([0, 0, 0, 2, 2], np.uint8), np.array([0.9, 0.2, 0.8, 0.1, 0.7], np.float32)
    assert clusters._refilled(lane, cosine, 4).tolist() == [0, 3, 0, 1, 2]
    assert lane.tolist() == [0, 0, 0, 2, 2], "what was given is not changed"
    lone = clusters._refilled(np.array([0, 1, 1], np.uint8), np.array([-1.0, 0.5, 0.9], np.float32), 3)
    assert lone.tolist() == [0, 2, 1], "a cluster's only row is left to it"


def test_refilling_never_costs() -> None:
    rows = directions(60, 5, 0)
    lane = np.zeros(60, np.uint8)
    before = mean_directions(rows, lane, 4)
    cosine = (rows @ before[0]).astype(np.float32)
    refilled = clusters._refilled(lane, cosine, 4)
    assert np.bincount(refilled, minlength=4).tolist() == [57, 1, 1, 1]
    assert objective(rows, mean_directions(rows, refilled, 4), refilled) < objective(rows, before, lane)


def test_means_count_only_their_own_rows() -> None:
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    means = mean_directions(rows, np.array([0, 0, -1, 2]), 4)
    assert np.allclose(means, [[0.5**0.5, 0.5**0.5], [0, 0], [-1, 0], [0, 0]])


@pytest.mark.parametrize("count", [-1, 0, 1, 257])
def test_too_few_or_too_many_lanes_are_refused(count: int) -> None:
    with pytest.raises(SettingsError, match="choose from 2 to 256"):
        spherical_kmeans(directions(300, 4, 0), count)


def test_fewer_different_rows_than_lanes_are_refused() -> None:
    rows = np.repeat(directions(3, 8, 0), 50, axis=0)
    with pytest.raises(DataError, match="only 3 rows that differ"):
        spherical_kmeans(rows, 4)
    assert sorted(np.bincount(spherical_kmeans(rows, 3).lane)) == [50, 50, 50]
