"""The files of a bank, and its manifest."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nextvec.errors import DataError, SettingsError
from nextvec.settings import from_json

FORMAT = 1
MANIFEST = "bank.json"
ROWS, OFFSETS, DOCUMENTS = "rows.bin", "offsets.bin", "documents.jsonl"
TEXT, SPANS, TOKENS = "text.bin", "spans.bin", "tokens.bin"
VERIFIED = "verified.json"
CENSUS = "census.json"


@dataclass(frozen=True)
class Manifest:
    """The description of a bank.

    Attributes:
        rows, dim, documents: its size.
        dtype: ``float16`` or ``float32``.
        encoder, encoder_fingerprint: name and fingerprint of the encoder.
        fingerprint: sha256 over rows, offsets, documents and encoder.
        text: whether chunk texts are stored.
        chunking: the settings the text was cut with, in words.
        source: name of the source.
        format: version of this layout.
        max_tokens: the most tokens that the encoder reads, special tokens included; None if the encoder does not state it.
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
    format: int = FORMAT
    max_tokens: int | Literal["any"] | None = None

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
            if values.get("format") != FORMAT:
                raise DataError(f"{path} has format {values.get('format')}; this version reads format {FORMAT}")
            return from_json(Manifest, values)
        except (ValueError, TypeError, AttributeError, SettingsError) as error:
            raise DataError(f"{path} is damaged: {error}; ingest the source again") from None

    def write(self, folder: Path) -> None:
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")


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
