"""Labels: lanes of documents from a CSV of document and lane."""

# Axes: M documents, N rows.

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import DataError

COLUMNS = ["document", "lane"]
NONE = -1


@dataclass(frozen=True, eq=False)
class Labels:
    """The lane of each document, where it has one.

    Attributes:
        names: of the lanes.
        lane: [M], numbers of names; -1 where a document has no label.
    """

    names: tuple[str, ...]
    lane: Int64[np.ndarray, " M"]

    def of_rows(self, bank: Bank) -> Int64[np.ndarray, " N"]:
        """Each row has the label of its document."""
        return np.repeat(self.lane, bank.lengths)


def read_labels(path: str | Path, bank: Bank, names: tuple[str, ...] | None = None) -> Labels:
    """Labels from a CSV whose first line is ``document,lane``; documents by their ids in the bank.

    ``names`` are the known lanes; by default the lanes that the file names, sorted.

    Raises:
        DataError: other columns, no label at all, a document that the bank does not have or that has two, an unknown lane.
    """
    given = _read(Path(path))
    numbers = {name: m for m, name in enumerate(bank.ids)}
    foreign = next((document for document in given if document not in numbers), None)
    if foreign is not None:
        raise DataError(f"{path}: the bank has no document {foreign!r}; its first is {bank.ids[0]!r}")
    known = names or tuple(sorted(set(given.values())))
    unknown = next((lane for lane in given.values() if lane not in known), None)
    if unknown is not None:
        raise DataError(f"{path}: there is no lane {unknown!r}; lanes are {', '.join(known)}")
    lane = np.full(bank.num_documents, NONE, np.int64)
    for document, name in given.items():
        lane[numbers[document]] = known.index(name)
    return Labels(known, lane)


def _read(path: Path) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if header != COLUMNS:
                raise DataError(f"{path}: the first line is {','.join(header)!r}; want 'document,lane'")
            rows = [(lines.line_num, row) for row in lines if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    given: dict[str, str] = {}
    for number, row in rows:
        if len(row) != len(COLUMNS) or not all(cell.strip() for cell in row):
            raise DataError(f"{path}, line {number}: want a document and its lane, not {','.join(row)!r}")
        if row[0] in given:
            raise DataError(f"{path}, line {number}: document {row[0]!r} has a lane already")
        given[row[0]] = row[1].strip()
    if not given:
        raise DataError(f"{path} labels no document")
    return given
