"""Which files make an index, and what its manifest says. Rows stay in the bank; only what was made of them lies here."""

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
from nextvec.errors import DataError
from nextvec.kernels.scan import FORMATS, RowFormat

FORMAT = 1
MANIFEST = "index.json"
CODES, SCALES, ERRORS, ADDED, GRAPH = "codes.bin", "scales.bin", "errors.bin", "added.bin", "graph.bin"
SMALL = (SCALES, ERRORS, ADDED)  # hashed; of larger files the size is known


@dataclass(frozen=True)
class Manifest:
    """What an index says of itself.

    Attributes:
        kind: ``exact`` or ``approximate``.
        bank, encoder: fingerprints of the bank and of what made its rows.
        form: how rows are read: ``float32``, ``float16`` or ``int8``.
        rows, dim: of the bank.
        added: rows that came later and lie here.
        longest, error: :class:`~nextvec.kernels.scan.Stored`, of the bank's rows.
        sizes: bytes of every file.
        sha256: of the small ones.
        measured: of an approximate index: recall, and what it was measured with.
        distinct: the bank's distinct vectors, which are what is searched; 0 where every row was.
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
    format: int = FORMAT

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """
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
            manifest = Manifest(**values)
            if manifest.kind not in ("exact", "approximate") or manifest.form not in FORMATS:
                raise ValueError(f"no {manifest.kind!r} index reads {manifest.form!r}")
            return manifest
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {error}; build the index again") from None

    def check(self, folder: Path, bank: Bank) -> None:
        """
        Raises:
            DataError: the index was made of another bank or encoder, or a file is not as it was written.
        """
        if (self.bank, self.encoder) != (bank.fingerprint, bank.manifest.encoder_fingerprint):
            raise DataError(
                f"{folder} is an index of bank {self.bank[:12]} ({self.encoder}), not of this one, {bank.fingerprint[:12]} "
                f"({bank.manifest.encoder_fingerprint}); build one of this bank"
            )
        if (self.rows, self.dim) != (len(bank), bank.dim):
            raise DataError(f"{folder / MANIFEST} is damaged: it speaks of {self.rows:,} rows of {self.dim}; build it again")
        for name, wanted in self.sizes.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != wanted:
                got = "no file" if size is None else f"{size:,} bytes"
                raise DataError(f"{path} is damaged: {got} where the manifest says {wanted:,} bytes; build the index again")
        for name, wanted in self.sha256.items():
            if _sha256(folder / name) != wanted:
                raise DataError(f"{folder / name} is damaged: it is not what was written; build the index again")


def publish(folder: Path, manifest: Manifest, write: Callable[[Path], None]) -> None:
    """Write the files of an index beside its name, then give them the name.

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


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """
    Raises:
        DataError: the file is not as large as that.
    """
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != wanted:
        raise DataError(f"{path} is damaged: it does not hold {wanted:,} bytes; build the index again")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape) if wanted else np.empty(shape, dtype)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
