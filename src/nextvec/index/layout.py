"""The files of a saved index and its manifest. The rows stay in the bank; the index holds only what was derived from them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.bank.mapped import mapped_array
from nextvec.errors import DataError
from nextvec.index.places import Places
from nextvec.kernels.scan_rows import FORMATS, RowFormat, Stored

FORMAT = 1
MANIFEST = "index.json"
CODES, SCALES, ERRORS, ADDED, GRAPH = "codes.bin", "scales.bin", "errors.bin", "added.bin", "graph.bin"
SMALL = (SCALES, ERRORS, ADDED)  # files that are hashed; of larger ones only the size is checked


@dataclass(frozen=True)
class IndexManifest:
    """The facts about a saved index.

    Attributes:
        kind: a name of :data:`nextvec.index.open.KINDS`.
        bank, encoder: fingerprints of the bank and of the encoder that made its rows.
        form: format in which rows are read: ``float32``, ``float16`` or ``int8``.
        rows, dim: number and width of the bank's vectors.
        added: number of rows that were added later; the index holds them.
        longest, error: of the bank's rows (:class:`~nextvec.kernels.scan_rows.Stored`).
        sizes: bytes of every file.
        sha256: of the small files.
        measured: of an approximate index: recall, and what it was measured with.
        distinct: number of distinct vectors of the bank, which are searched.
        mapping: digest of the map of the rows (:class:`~nextvec.index.protocol.RowMap`); empty without one.
        format: version of this layout.
    """

    kind: str
    bank: str
    encoder: str
    form: RowFormat
    rows: int
    dim: int
    added: int
    longest: float
    error: float
    sizes: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    distinct: int = 0
    mapping: str = ""
    format: int = FORMAT

    @staticmethod
    def read(folder: Path) -> "IndexManifest":
        """The manifest of the index in a folder.

        Raises:
            DataError: the folder holds no index of this format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} is not an index: it has no {MANIFEST}")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise DataError(f"{path} has format {values.get('format')}; this version reads format {FORMAT}")
            manifest = IndexManifest(**values)
            if manifest.form not in FORMATS:
                raise ValueError(f"no index reads {manifest.form!r}")
            return manifest
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {error}; build the index again") from None

    def check(self, folder: Path, bank: Bank, mapping: str = "") -> None:
        """
        Args:
            mapping: digest of the map of the rows; empty without one.

        Raises:
            DataError: the index was built from another bank, encoder or map, or a file was changed.
        """
        if (self.bank, self.encoder) != (bank.fingerprint, bank.manifest.encoder_fingerprint):
            raise DataError(
                f"{folder} is an index of bank {self.bank[:12]} ({self.encoder}), not of this one, {bank.fingerprint[:12]} "
                f"({bank.manifest.encoder_fingerprint}); build one of this bank"
            )
        if self.mapping != mapping:
            raise DataError(f"{folder} is {other_map(self.mapping, mapping)}")
        if (self.rows, self.dim) != (len(bank.table), bank.dim):
            raise DataError(
                f"{folder / MANIFEST} is damaged: it states {self.rows:,} rows of {self.dim}; build the index again"
            )
        for name, wanted in self.sizes.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != wanted:
                got = "no file" if size is None else f"{size:,} bytes"
                raise DataError(f"{path} is damaged: {got} where the manifest says {wanted:,} bytes; build the index again")
        for name, wanted in self.sha256.items():
            if _sha256(folder / name) != wanted:
                raise DataError(f"{folder / name} is damaged: its content was changed; build the index again")


def other_map(held: str, wanted: str) -> str:
    """Why an index with one map of rows cannot be used with another, and what to do; after "it is".

    Args:
        held, wanted: digests; empty without a map.
    """
    holds = f"an index of rows in map {held[:12]}" if held else "an index of rows as they are"
    wants = f"in map {wanted[:12]}" if wanted else "as they are"
    return f"{holds}; rows {wants} are wanted; build one with nextvec index BANK OUT{' --run RUN' if wanted else ''}"


def publish(folder: Path, manifest: IndexManifest, write: Callable[[Path], None]) -> None:
    """Write the files of an index into a temporary folder, then rename it.

    Raises:
        DataError: the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder} already exists; choose another name or delete it first")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        hashes = {name: _sha256(partial / name) for name in SMALL if name in sizes}
        whole = {**asdict(manifest), "sizes": sizes, "sha256": hashes}
        write_atomically(partial / MANIFEST, json.dumps(whole, indent=1) + "\n")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.ascontiguousarray(array).tofile(file)
        file.flush()
        os.fsync(file.fileno())


def opened(folder: Path, m: IndexManifest, bank: Bank) -> Stored:
    """The rows of a bank with the codes of a saved index without a map.

    Raises:
        DataError: an index of an earlier version, or a file is missing or of another size.
    """
    places = Places(bank.distinct)
    if m.form != bank.manifest.dtype and places.compact and m.distinct != len(bank.distinct):
        raise DataError(f"{folder} holds codes of all {m.rows:,} rows, not of the distinct ones; build the index again")
    rows = codes = places.read(bank.table.vectors)
    scales, errors = (np.empty(0, np.float32) for _ in range(2))
    if m.form != rows.dtype:
        codes = read_array(folder / CODES, m.form, rows.shape)
    if m.form == "int8":
        scales, errors = (read_array(folder / name, np.float32, (len(rows),)) for name in (SCALES, ERRORS))
    return Stored(rows, codes, scales, errors, m.longest, m.error)


def read_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a saved index, memory-mapped.

    Raises:
        DataError: the file is missing or of another size.
    """
    return mapped_array(path, np.dtype(dtype), shape, "build the index again")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
