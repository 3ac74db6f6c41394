"""The split of documents, and windows: ranges of rows that are read and scored. No row is copied."""

# Axes: W windows, M documents, R rows.

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank, census
from nextvec.errors import DataError, SettingsError

Part = Literal["train", "valid", "test"]
SALT = "nextvec-1"
FAR = 2.0  # a part misses its share when it holds more than FAR times as many rows, or less than 1 / FAR
BLOCK = 65_536


@dataclass(frozen=True)
class Split:
    """Documents of a bank in three disjoint parts; near-duplicates of a document share its part.

    Attributes:
        train, valid, test: document indices, ascending.
        salt: salt of the hash that selects the part of a document.
    """

    train: Int64[np.ndarray, " train"]
    valid: Int64[np.ndarray, " valid"]
    test: Int64[np.ndarray, " test"]
    salt: str = SALT

    def part(self, name: Part) -> Int64[np.ndarray, " M"]:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def split(bank: Bank, valid: float = 0.1, test: float = 0.1, salt: str = SALT) -> Split:
    """Split by document: the smallest salted hashes go to test, the next to valid, until their share of rows is reached.

    Near-duplicate documents go to one part. Parts are filled by rows, so that no
    part of a bank of few long documents is empty. One document may be so long
    that a part misses its share by far (:func:`missed_shares`).

    Raises:
        SettingsError: shares that leave nothing to train on.
        DataError: fewer than three independent documents, or a group of near-duplicates so large that a part misses its
            share of the rows by far.
    """
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise SettingsError(f"valid={valid} and test={test} must be above 0 and leave something to train on")
    groups = _groups(bank)
    if len(groups) < 3:
        raise DataError(f"the bank has {len(groups)} independent documents; a split needs at least 3")
    parts = _dealt(bank, groups, valid, test, salt)
    if missed := missed_shares(bank, parts, valid, test):
        largest = max(groups, key=lambda group: int(bank.lengths[list(group)].sum()))
        alone = _dealt(bank, [(m,) for m in range(bank.num_documents)], valid, test, salt)
        if len(largest) > 1 and missed.keys() - missed_shares(bank, alone, valid, test).keys():
            raise DataError(f"{'; '.join(missed.values())}: {_blamed(bank, largest)}")
    return parts


def missed_shares(bank: Bank, parts: Split, valid: float, test: float) -> dict[Part, str]:
    """A sentence for each part that holds less than half or more than twice its share of the bank's rows."""
    wanted: dict[Part, float] = {"train": 1 - valid - test, "valid": valid, "test": test}
    held = {name: float(bank.lengths[parts.part(name)].sum()) / len(bank) for name in wanted}
    return {
        name: f"the {name} documents hold {held[name]:.1%} of the rows; {share:.0%} were requested"
        for name, share in wanted.items()
        if not share / FAR <= held[name] <= share * FAR
    }


def _blamed(bank: Bank, group: tuple[int, ...]) -> str:
    """The message for a group of near-duplicates that makes a part miss its share."""
    share = float(bank.lengths[list(group)].sum()) / len(bank)
    return (
        f"{len(group):,} documents, {bank.ids[group[0]]!r} and {bank.ids[group[1]]!r} among them, are near-duplicates with "
        f"{share:.1%} of the rows, and must share a part; leave copies out of the bank, or choose shares that fit (valid, test)"
    )


def _dealt(bank: Bank, groups: list[tuple[int, ...]], valid: float, test: float, salt: str) -> Split:
    ids, lengths = bank.ids, bank.lengths
    groups = sorted(groups, key=lambda group: salted(salt, min(ids[m] for m in group)))
    rows = np.array([lengths[list(group)].sum() for group in groups])
    edges = (test * len(bank), (test + valid) * len(bank))
    before = np.cumsum(rows) - rows
    cuts = [int(np.searchsorted(before, edge)) for edge in edges]
    cuts[0] = min(max(cuts[0], 1), len(groups) - 2)
    cuts[1] = min(max(cuts[1], cuts[0] + 1), len(groups) - 1)
    parts = (groups[cuts[1] :], groups[cuts[0] : cuts[1]], groups[: cuts[0]])
    train, held, last = (np.array(sorted(m for group in part for m in group), dtype=np.int64) for part in parts)
    return Split(train, held, last, salt)


def salted(salt: str, name: str) -> str:
    """A hash of a name, the same on every machine."""
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def _groups(bank: Bank) -> list[tuple[int, ...]]:
    together = census(bank).document_groups
    grouped = {m for group in together for m in group}
    return [*together, *((m,) for m in range(bank.num_documents) if m not in grouped)]


@dataclass(frozen=True)
class Windows:
    """Ranges over the rows of a bank: window w reads ``starts[w]:stops[w]`` and is scored on ``scored[w]:stops[w]``.

    The scored rows do not depend on the context. Each is scored once, and
    predicted from rows of its own document.
    """

    starts: Int64[np.ndarray, " W"]
    scored: Int64[np.ndarray, " W"]
    stops: Int64[np.ndarray, " W"]

    def __len__(self) -> int:
        return len(self.starts)

    def __post_init__(self) -> None:
        if not ((self.starts < self.scored) & (self.scored < self.stops)).all():
            raise DataError("every window must read at least one row before the first it scores")

    @staticmethod
    def none() -> "Windows":
        return Windows(*(np.empty(0, np.int64) for _ in range(3)))

    @property
    def targets(self) -> int:
        """How many rows are scored."""
        return int((self.stops - self.scored).sum())

    def rows(self, chosen: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " R"]:
        """All rows that the ``chosen`` windows score."""
        ranges = zip(self.scored[chosen].tolist(), self.stops[chosen].tolist(), strict=True)
        return np.concatenate([np.arange(first, stop, dtype=np.int64) for first, stop in ranges])


def scoring_windows(bank: Bank, rows: Int64[np.ndarray, " R"], context: int) -> Windows:
    """One window per scored row: it reads the ``context`` rows before it, or as many as its document has.

    Raises:
        SettingsError: a context below 1.
        DataError: a row that starts its document, so that it has no context.
    """
    if context < 1:
        raise SettingsError(f"context={context}: a prediction needs at least one vector to read")
    first = bank.offsets[bank.document_of(rows)]
    if (rows <= first).any():
        raise DataError(f"row {int(rows[(rows <= first).argmax()])} starts its document; a scored row needs one before it")
    return Windows(np.maximum(first, rows - context), rows, rows + 1)


def training_windows(
    bank: Bank, documents: Sequence[int] | Int64[np.ndarray, " M"], context: int, rng: np.random.Generator
) -> Windows:
    """Shuffled passages of ``context`` inputs. They score every row of ``documents`` once, except the first row of each.

    The first passage of each document is shortened at random, so that the contexts
    of the rows change from epoch to epoch.
    """
    starts: list[np.ndarray] = []
    stops: list[np.ndarray] = []
    for m in documents:
        first, last = int(bank.offsets[m]), int(bank.offsets[m + 1])
        if last - first < 2:
            continue
        shift = int(rng.integers(min(context, last - first - 1)))
        edges = np.unique(np.concatenate([[first], np.arange(first + shift, last - 1, context), [last - 1]]))
        starts.append(edges[:-1])
        stops.append(edges[1:] + 1)
    if not starts:
        raise DataError("no training document has two rows; there is nothing to predict")
    order = rng.permutation(sum(map(len, starts)))
    begin, end = np.concatenate(starts)[order], np.concatenate(stops)[order]
    return Windows(begin, begin + 1, end)


def last_windows(
    bank: Bank,
    documents: Int64[np.ndarray, " M"],
    context: int,
    across: bool,
    rng: np.random.Generator,
) -> Windows:
    """Passages of exactly ``context`` inputs that overlap by half; only the last row is scored, as in the predecessor.

    Args:
        across: whether a passage may continue into the next document, if that is a training document.

    Raises:
        DataError: no document is that long.
    """
    firsts, lasts = bank.offsets[documents], bank.offsets[documents + 1]
    if across:
        apart = firsts[1:] != lasts[:-1]
        firsts, lasts = firsts[np.r_[True, apart]], lasts[np.r_[apart, True]]
    stride = max(1, context // 2)
    starts = np.concatenate([np.arange(a, b - context, stride, dtype=np.int64) for a, b in zip(firsts, lasts, strict=True)])
    if not len(starts):
        raise DataError(f"no training document has more than {context} rows; choose a shorter context")
    starts = rng.permutation(starts)
    return Windows(starts, starts + context, starts + context + 1)


def coherent(bank: Bank, windows: Windows, least: float) -> Windows:
    """The windows in which the mean cosine of neighbouring *inputs* is at least ``least``.

    The scored rows are not read: a filter that reads the target would select
    easy targets.
    """
    if least <= -1:
        return windows
    neighbours = np.zeros(len(bank))
    for start in range(0, len(bank) - 1, BLOCK):
        stop = min(start + BLOCK, len(bank) - 1)
        a, b = (bank.rows[start + k : stop + k].astype(np.float32) for k in (0, 1))
        neighbours[start:stop] = (a * b).sum(1)
    total = np.concatenate([[0.0], np.cumsum(neighbours)])
    # Inputs are starts .. stops - 2; a passage of one input has no neighbours and is kept.
    pairs = windows.stops - 2 - windows.starts
    means = (total[windows.stops - 2] - total[windows.starts]) / np.maximum(pairs, 1)
    kept = (pairs < 1) | (means >= least)
    return Windows(windows.starts[kept], windows.scored[kept], windows.stops[kept])


def rows_of(bank: Bank, documents: Iterable[int] | Int64[np.ndarray, " M"], skip: int = 0) -> Int64[np.ndarray, " R"]:
    """All rows of some documents, ascending, without the first ``skip`` of each."""
    parts = [np.arange(bank.offsets[m] + skip, bank.offsets[m + 1], dtype=np.int64) for m in documents]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
