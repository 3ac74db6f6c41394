"""Several seeds of one recipe as one result: hits averaged over seeds, row by row."""

# Axes: Q queries.

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from nextvec.ranks import Ranks, Rate, clustered_rate, paired_lift
from nextvec.runs import Run

ENOUGH_DOCUMENTS = 10


def average(seeds: Sequence[Ranks], k: int) -> Rate:
    """Hit@k with every row's hits averaged over seeds, so that the interval is over documents and no row counts twice."""
    hits = np.mean([ranks.hits(k) for ranks in seeds], axis=0)
    return clustered_rate(hits, seeds[0].clusters)


def average_lift(a: Sequence[Ranks], b: Sequence[Ranks], k: int) -> Rate:
    """Hit@k of ``a`` minus that of ``b``, each averaged over its seeds, paired by row, resampled by document.

    Every seed of ``a`` is paired with every seed of ``b``: per row, the mean of
    these differences is the difference of the means.

    Raises:
        ExamError: the ranks come from different exams.
    """
    paired = [(x, y) for x in a for y in b]
    lift = paired_lift(_end_to_end([x for x, _ in paired]), _end_to_end([y for _, y in paired]), k)
    return replace(lift, n=len(a[0]))


def kept_at(run: Run) -> int:
    """The update whose weights a run kept; 0 for the untrained model."""
    return next(validation["update"] for validation in reversed(run.history()) if validation["best"])


def few_documents(clusters: Int64[np.ndarray, " Q"]) -> list[str]:
    """A note where the intervals rest on few documents; else none."""
    documents = len(np.unique(clusters))
    if documents >= ENOUGH_DOCUMENTS:
        return []
    return [f"the intervals resample {documents} documents; of so few they are narrower than they ought to be"]


def _end_to_end(seeds: Sequence[Ranks]) -> Ranks:
    clusters = seeds[0].clusters
    if len(np.unique(clusters)) == 1:
        # The bootstrap would fall back to rows: a row and its other seeds must then move together.
        clusters = np.arange(len(clusters))
    above, tied, candidates = (
        np.concatenate([getattr(ranks, name) for ranks in seeds]) for name in ("above", "tied", "candidates")
    )
    return Ranks(above, tied, candidates, np.tile(clusters, len(seeds)))
