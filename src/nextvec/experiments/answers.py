"""What an experiment keeps of an exam: ranks on disk, and several seeds of one recipe as one answer."""

# Axes: Q queries.

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nextvec.bank.layout import write_atomically
from nextvec.errors import RunError
from nextvec.ranks import Ranks, Rate, clustered_rate, paired_lift
from nextvec.runs import Run

ENOUGH_DOCUMENTS = 10
FIELDS = ("above", "tied", "candidates", "clusters")


def average(seeds: Sequence[Ranks], k: int) -> Rate:
    """Hit@k with every row's hits averaged over seeds, so that the interval is over documents and no row counts twice."""
    hits = np.mean([ranks.hits(k) for ranks in seeds], axis=0)
    return clustered_rate(hits, seeds[0].clusters)


def average_lift(a: Sequence[Ranks], b: Sequence[Ranks], k: int) -> Rate:
    """Hit@k of ``a`` minus that of ``b``, each averaged over its seeds, paired by row, resampled by document.

    Every seed of ``a`` is paired with every seed of ``b``: per row, the mean of
    these differences is the difference of the means.

    Raises:
        ExamError: they did not sit the same exam.
    """
    paired = [(x, y) for x in a for y in b]
    lift = paired_lift(_end_to_end([x for x, _ in paired]), _end_to_end([y for _, y in paired]), k)
    return replace(lift, n=len(a[0]))


def kept_at(run: Run) -> int:
    """The update whose weights a run kept; 0 is the untrained model."""
    return next(look["update"] for look in reversed(run.history()) if look["best"])


def few_documents(clusters: Int64[np.ndarray, " Q"]) -> list[str]:
    """What a reader must know of intervals over few documents."""
    documents = len(np.unique(clusters))
    if documents >= ENOUGH_DOCUMENTS:
        return []
    return [f"the intervals resample {documents} documents; of so few they are narrower than they ought to be"]


def write_ranks(file: Path, answers: Mapping[str, Ranks]) -> None:
    """Keep answers by name, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = {f"{name}/{field}": getattr(ranks, field) for name, ranks in answers.items() for field in FIELDS}
    write_atomically(file, save(held))


def read_ranks(file: Path) -> dict[str, Ranks]:
    """The answers that :func:`write_ranks` kept, in the order of their names.

    Raises:
        RunError: the file is damaged.
    """
    try:
        held = load(file.read_bytes())
        names = sorted({key.rpartition("/")[0] for key in held})
        return {name: Ranks(*(held[f"{name}/{field}"] for field in FIELDS)) for name in names}
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{file} is damaged: {error}; delete it, and it is made anew") from None


def digest(*parts: str | bytes | None) -> str:
    """A short name for all that an answer depends on."""
    named = hashlib.sha256()
    for part in parts:
        named.update(part if isinstance(part, bytes) else str(part).encode())
        named.update(b"\0")
    return named.hexdigest()[:16]


def _end_to_end(seeds: Sequence[Ranks]) -> Ranks:
    clusters = seeds[0].clusters
    if len(np.unique(clusters)) == 1:
        # The bootstrap would fall back to rows: a row and its other seeds must then move together.
        clusters = np.arange(len(clusters))
    above, tied, candidates = (np.concatenate([getattr(ranks, name) for ranks in seeds]) for name in FIELDS[:3])
    return Ranks(above, tied, candidates, np.tile(clusters, len(seeds)))
