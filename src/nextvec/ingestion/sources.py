"""Files to documents: folders of text, JSON lines, Parquet and Arrow tables."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from nextvec.bank.exchange import Table, npz_documents, table_documents
from nextvec.bank.writer import VectorDocument
from nextvec.errors import DataError
from nextvec.ingestion.document import Document
from nextvec.ingestion.text import checked, decode, text_document

TEXT_SUFFIXES = (".txt", ".md")
LARGEST_TEXT = 256 * 2**20  # bytes in one document


@dataclass(frozen=True)
class Source:
    """What is to be ingested: texts, or ready vectors. Reading it twice gives the same documents in the same order."""

    name: str
    texts: Callable[[], Iterator[Document]] | None = None
    vectors: Callable[[], Iterator[VectorDocument]] | None = None


def open_source(path: Path) -> Source:
    """Find out what ``path`` holds.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    if path.is_dir():
        if not any(file.suffix in TEXT_SUFFIXES for file in path.rglob("*")):
            raise DataError(f"{path} holds no .txt or .md file")
        return Source(path.name, texts=lambda: _folder(path))
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    match path.suffix:
        case ".txt" | ".md":
            return Source(path.name, texts=lambda: iter([_text_file(path, path.name)]))
        case ".jsonl":
            return Source(path.name, texts=lambda: _json_lines(path))
        case ".parquet" | ".arrow" | ".feather":
            return _table(path)
        case ".npz":
            return Source(path.name, vectors=lambda: npz_documents(path))
        case _:
            raise DataError(
                f"{path}: cannot read {path.suffix or 'a file without suffix'}; want .txt .md .jsonl .parquet .arrow .npz"
            )


def open_table(table: Table) -> Source:
    """A Hugging Face ``datasets`` object, or whatever has column names and columns by name.

    Raises:
        DataError: neither a vector nor a text column.
    """
    names = table.column_names
    if "vector" in names:
        return Source("table", vectors=lambda: table_documents(table, "the table"))
    if "text" not in names:
        raise DataError(f"the table has columns {', '.join(names)}; want 'text', or 'vector' with 'document' and 'index'")
    chosen = [name for name in names if name in _TEXT_COLUMNS]
    return Source("table", texts=lambda: _row_texts(_as_rows(table, chosen), "the table"))


def _as_rows(table: Table, names: list[str]) -> list[dict[str, Any]]:
    columns = [list(table[name]) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _folder(path: Path) -> Iterator[Document]:
    files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    for file in files:
        yield _text_file(file, file.relative_to(path).as_posix())


def _text_file(file: Path, name: str) -> Document:
    if file.stat().st_size > LARGEST_TEXT:
        raise DataError(f"{file} is larger than {LARGEST_TEXT // 2**20} MiB; split it into documents")
    return text_document(file.read_bytes(), name, file)


def _document(name: str, title: str, text: Any, where: str) -> Document:
    try:
        f"{name}{title}".encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: its id or title holds half a surrogate pair; it is not Unicode text") from None
    return Document(name, title, checked(text, where))


def _json_lines(path: Path) -> Iterator[Document]:
    all_named: bool | None = None  # a null id is a missing one; ids are given to all lines or to none
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                entry = json.loads(decode(line, where))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON: {error}") from None
            if not isinstance(entry, dict) or "text" not in entry:
                raise DataError(f"{where}: want an object with 'text', and optionally 'id' and 'title'")
            named = entry.get("id") is not None
            if all_named is not None and named != all_named:
                raise DataError(
                    f"{where} has {'an' if named else 'no'} id, unlike the lines before; give one to all or to none"
                )
            all_named = named
            name = str(entry["id"]) if named else f"{number:08d}"
            title = entry.get("title")
            yield _document(name, name if title is None else str(title), entry["text"], where)


def _table(path: Path) -> Source:
    try:
        table: Any = pq.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None
    names: list[str] = table.column_names
    if "vector" in names:
        columns = {name: table.column(name).to_pylist() for name in names if name in ("vector", "document", "index", "title")}
        return Source(path.name, vectors=lambda: table_documents(columns, str(path)))
    if "text" in names:
        chosen = table.select([name for name in names if name in _TEXT_COLUMNS])
        return Source(path.name, texts=lambda: _row_texts(chosen.to_pylist(), str(path)))
    raise DataError(f"{path} has columns {', '.join(names)}; want 'text', or 'vector' with 'document' and 'index'")


def _row_texts(rows: list[dict[str, Any]], where: str) -> Iterator[Document]:
    """One document a row, or, where ``document`` and ``index`` say so, one document from several rows in that order."""
    if rows and {"document", "index"} <= rows[0].keys():
        for number, row in enumerate(rows):
            if not isinstance(row["index"], int) or row["document"] is None:
                raise DataError(f"{where}, row {number}: document and index must be given; order is never implied")
        rows.sort(key=lambda row: (str(row["document"]), row["index"]))
        parts: dict[str, list[str]] = {}
        for row in rows:
            if not isinstance(row["text"], str):
                raise DataError(f"{where}, document {row['document']!r}: text is {type(row['text']).__name__}, not a string")
            parts.setdefault(str(row["document"]), []).append(row["text"])
        for name, texts in parts.items():
            yield _document(name, name, "\n\n".join(texts), f"{where}, document {name!r}")
        return
    for number, row in enumerate(rows):
        name = str(row.get("id", f"{number:08d}"))
        yield _document(name, str(row.get("title", name)), row["text"], f"{where}, row {number}")


_TEXT_COLUMNS = ("id", "title", "text", "document", "index")
