"""The files of a bank, and its manifest."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nextvec.errors import DataError, SettingsError
from nextvec.settings import from_json

PLAIN, WITH_ITEMS = 1, 2  # formats: every row an item of its own; a table of items, and the item of each row
MANIFEST = "bank.json"
ROWS, OFFSETS, DOCUMENTS = "rows.bin", "offsets.bin", "documents.jsonl"
IDS, TIMES, ITEMS = "ids.bin", "times.bin", "items.jsonl"  # of a bank of items
TEXT, SPANS, TOKENS = "text.bin", "spans.bin", "tokens.bin"
VERIFIED = "verified.json"
CENSUS, CLASSES = "census.json", "classes.bin"

TimeDtype = Literal["uint32", "int64", "float64"]


@dataclass(frozen=True)
class Manifest:
    """The description of a bank.

    Attributes:
        rows, dim, documents: its size.
        dtype: ``float16`` or ``float32``, of the vectors.
        encoder, encoder_fingerprint: name and fingerprint of the encoder.
        fingerprint: sha256 over :attr:`content` and the encoder.
        text: whether chunk texts are stored.
        chunking: the settings the text was cut with, in words.
        source: name of the source.
        format: version of this layout.
        max_tokens: the most tokens that the encoder reads, special tokens included; None if the encoder does not state it.
        items: number of items, whose vectors are stored once each, with the item of each row beside them; None where each
            row is an item of its own.
        times: dtype of the times of the rows; None without times.
    """

    rows: int
    dim: int
    documents: int
    dtype: Literal["float16", "float32"]
    encoder: str
    encoder_fingerprint: str
    fingerprint: str
    text: bool
    chunking: str
    source: str
    format: int = PLAIN
    max_tokens: int | Literal["any"] | None = None
    items: int | None = None
    times: TimeDtype | None = None

    @property
    def vectors(self) -> int:
        """How many vectors are stored."""
        return self.rows if self.items is None else self.items

    @property
    def content(self) -> tuple[str, ...]:
        """The files that the fingerprint covers."""
        items = () if self.items is None else (IDS, ITEMS) if self.times is None else (IDS, ITEMS, TIMES)
        return (ROWS, OFFSETS, DOCUMENTS, *items)

    @property
    def reads_text(self) -> bool:
        """Whether nextvec cut and encoded the text of the rows, so that it can encode more text in the same way."""
        return self.text and self.chunking != "none"

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """
        Raises:
            DataError: the folder holds no whole bank of this format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} is not a bank: it has no {MANIFEST}")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") not in (PLAIN, WITH_ITEMS):
                raise DataError(
                    f"{path} has format {values.get('format')}; this version reads formats {PLAIN} and {WITH_ITEMS}"
                )
            return from_json(Manifest, values)
        except (ValueError, TypeError, AttributeError, SettingsError) as error:
            raise DataError(f"{path} is damaged: {error}; ingest the source again") from None

    def write(self, folder: Path) -> None:
        # A bank without items is written as earlier versions wrote it, so that they can read it.
        fields = {name: value for name, value in asdict(self).items() if name not in ("items", "times") or value is not None}
        write_atomically(folder / MANIFEST, json.dumps(fields, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file is not whole JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def keep(path: Path, content: str | bytes) -> None:
    """Write content that can be computed again; do nothing where the folder cannot be written."""
    with suppress(OSError):
        write_atomically(path, content)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to disk, and rename it: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
