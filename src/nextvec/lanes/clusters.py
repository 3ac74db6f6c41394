"""Lanes without text: spherical k-means on the vectors, of any sizes or of equal ones."""

# Axes: N rows, D width, K clusters, B rows of a block.

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8

from nextvec.bank.sequences import Rows
from nextvec.errors import DataError, SettingsError
from nextvec.progress import Progress, silent

BLOCK = 16_384  # rows in memory as float32 at a time
SAMPLE = 65_536  # rows that first centres and prices are computed from
ITERATIONS, SWEEPS = 100, 30
ENOUGH = 1e-5  # the iterations end when the mean cosine rises by less
TOLERANCE = 0.02  # share of a lane's size; below it the search for prices ends and single rows are moved
SAME = 1e-6  # 1 - cosine of rows that do not differ
FEWEST, MOST = 2, 256  # a lane is a byte


@dataclass(frozen=True, eq=False)
class Clusters:
    """What :func:`spherical_kmeans` found.

    Attributes:
        centres: [K, D], unit length.
        prices: [K], subtracted from the scores of a cluster to make sizes equal; zeros unless balanced.
        lane: [N], the cluster of each row: the highest cosine minus price, except for rows that were moved to make sizes equal.
        objective: the mean of 1 - cosine with the row's own centre, after each iteration; it never rises.
    """

    centres: Float32[np.ndarray, "K D"]
    prices: Float32[np.ndarray, " K"]
    lane: UInt8[np.ndarray, " N"]
    objective: tuple[float, ...]


def spherical_kmeans(rows: Rows, count: int, seed: int = 0, balanced: bool = False, progress: Progress = silent) -> Clusters:
    """Cluster unit rows by direction (Dhillon and Modha 2001), block by block; the same seed gives the same clusters.

    First centres are drawn by k-means++ (Arthur and Vassilvitskii 2007) on 1 - cosine. A cluster that lost all its rows
    restarts at the row that lies farthest from its centre. ``balanced`` makes sizes differ by one at most, by prices
    that rise with the size of a cluster (:func:`dealt`), and holds [N, K] float32 scores in memory.

    Raises:
        SettingsError: fewer than 2 or more than 256 clusters.
        DataError: fewer different rows than clusters.
    """
    if not FEWEST <= count <= MOST:
        raise SettingsError(f"{count} lanes: choose from {FEWEST} to {MOST}")
    centres, prices = _first(rows, count, np.random.default_rng(seed)), np.zeros(count, np.float32)
    lane, cosine, prices = _assigned(rows, centres, prices, balanced)
    objective = [_objective(cosine)]
    for iteration in range(ITERATIONS):
        progress("clustering", iteration, ITERATIONS)
        lane = _refilled(lane, cosine, count)
        centres = mean_directions(rows, lane, count)
        found = _assigned(rows, centres, prices, balanced)
        if _objective(found[1]) > objective[-1]:  # the assignment to equal sizes is only nearly optimal
            break
        lane, cosine, prices = found
        objective.append(_objective(cosine))
        if objective[-2] - objective[-1] < ENOUGH:
            break
    progress("clustering", ITERATIONS, ITERATIONS)
    return Clusters(centres, prices, lane, tuple(objective))


def mean_directions(rows: Rows, lane: Integer[np.ndarray, " N"], count: int) -> Float32[np.ndarray, "K D"]:
    """The mean row of each lane, of unit length; zeros for an empty lane and for one whose rows cancel out.

    Rows whose lane is -1 are left out.
    """
    sums = np.zeros((count, rows.shape[1]))
    for start, block in blocks(rows):
        members = lane[start : start + len(block)] == np.arange(count)[:, None]
        sums += members.astype(np.float32) @ block
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0).astype(np.float32)


def blocks(rows: Rows) -> Iterator[tuple[int, Float32[np.ndarray, "B D"]]]:
    """The start of each block, and the block, so that a mapped bank is never completely in memory."""
    for start in range(0, len(rows), BLOCK):
        yield start, rows[start : start + BLOCK].astype(np.float32)


def dealt(
    scores: Float32[np.ndarray, "N K"], prices: Float32[np.ndarray, " K"]
) -> tuple[UInt8[np.ndarray, " N"], Float32[np.ndarray, " K"]]:
    """A lane for each row, and the lanes' prices. Sizes differ by one at most; the sum of scores is nearly the highest.

    Every row takes the lane of the highest score minus price. Prices are the dual variables of the transportation
    problem: one lane after the other gets the price at which the number of rows that choose it equals its share
    (Bertsekas 1988, an auction). Where there are many rows, prices are found on a sample. Then rows are moved from lanes
    that are too full to lanes that have room, where it costs least.
    """
    prices = _prices(scores[:: max(1, len(scores) // SAMPLE)], prices)
    adjusted = scores - prices
    lane = adjusted.argmax(1)
    sizes = np.bincount(lane, minlength=scores.shape[1])
    share, rest = divmod(len(scores), scores.shape[1])
    capacity = np.full(scores.shape[1], share)
    capacity[np.argsort(-sizes, kind="stable")[:rest]] += 1  # the lanes that most rows choose get one row more
    return _moved(adjusted, lane, capacity).astype(np.uint8), prices


def _assigned(
    rows: Rows, centres: Float32[np.ndarray, "K D"], prices: Float32[np.ndarray, " K"], balanced: bool
) -> tuple[UInt8[np.ndarray, " N"], Float32[np.ndarray, " N"], Float32[np.ndarray, " K"]]:
    """The lane of each row, its cosine with that lane's centre, and the prices."""
    lane, cosine = np.empty(len(rows), np.uint8), np.empty(len(rows), np.float32)
    if balanced:
        scores = np.concatenate([block @ centres.T for _, block in blocks(rows)])
        lane, prices = dealt(scores, prices)
        return lane, np.take_along_axis(scores, lane[:, None].astype(np.int64), 1)[:, 0], prices
    for start, block in blocks(rows):
        scores = block @ centres.T
        lane[start : start + len(block)] = scores.argmax(1)
        cosine[start : start + len(block)] = scores.max(1)
    return lane, cosine, prices


def _objective(cosine: Float32[np.ndarray, " N"]) -> float:
    return 1.0 - float(cosine.mean(dtype=np.float64))


def _first(rows: Rows, count: int, rng: np.random.Generator) -> Float32[np.ndarray, "K D"]:
    """k-means++: each centre is a row, drawn with a probability proportional to 1 - cosine to the nearest earlier centre."""
    chosen = np.sort(rng.choice(len(rows), min(len(rows), SAMPLE), replace=False))
    sample = rows[chosen].astype(np.float32)
    centres = [sample[rng.integers(len(sample))]]
    far = np.full(len(sample), np.inf)
    while len(centres) < count:
        far = np.minimum(far, 1.0 - (sample @ centres[-1]).astype(np.float64))
        far[far < SAME] = 0.0
        if not far.any():
            raise DataError(f"the bank has only {len(centres)} rows that differ, too few for {count} lanes")
        centres.append(sample[rng.choice(len(sample), p=far / far.sum())])
    return np.stack(centres)


def _refilled(lane: UInt8[np.ndarray, " N"], cosine: Float32[np.ndarray, " N"], count: int) -> UInt8[np.ndarray, " N"]:
    """Every empty cluster takes the row farthest from its centre, which never lowers the sum of cosines."""
    sizes = np.bincount(lane, minlength=count)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return lane
    lane, farthest = lane.copy(), iter(np.argsort(cosine, kind="stable"))
    for cluster in empty:
        row = next(row for row in farthest if sizes[lane[row]] > 1)
        sizes[lane[row]] -= 1
        lane[row] = cluster
    return lane


def _prices(scores: Float32[np.ndarray, "N K"], prices: Float32[np.ndarray, " K"]) -> Float32[np.ndarray, " K"]:
    prices, wanted = prices.copy(), max(1, len(scores) // scores.shape[1])
    for _ in range(SWEEPS):
        sizes = np.bincount((scores - prices).argmax(1), minlength=len(prices))
        if abs(sizes - wanted).max() <= TOLERANCE * wanted:
            break
        for k in np.argsort(-sizes, kind="stable"):
            others = np.delete(scores - prices, k, axis=1).max(1)
            worth = scores[:, k] - others  # the price below which a row chooses this lane
            prices[k] = np.partition(worth, len(worth) - wanted)[len(worth) - wanted]
    return prices - prices.min()


def _moved(
    adjusted: Float32[np.ndarray, "N K"], lane: Int64[np.ndarray, " N"], capacity: Int64[np.ndarray, " K"]
) -> Int64[np.ndarray, " N"]:
    """Move rows of lanes that are too full to lanes with room, cheapest moves first."""
    lane, sizes = lane.copy(), np.bincount(lane, minlength=len(capacity))
    while (sizes > capacity).any():
        movable = np.flatnonzero((sizes > capacity)[lane])
        open_to = np.where(sizes < capacity, adjusted[movable], -np.inf)
        target = open_to.argmax(1)
        cost = adjusted[movable, lane[movable]] - open_to.max(1)
        for i in np.argsort(cost, kind="stable"):
            source, row = lane[movable[i]], movable[i]
            if sizes[source] > capacity[source] and sizes[target[i]] < capacity[target[i]]:
                lane[row] = target[i]
                sizes[source] -= 1
                sizes[target[i]] += 1
    return lane
