"""Sources of documents: paths and Python objects, with a record of the parts that are not read."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nextvec.bank.arrays import numpy_documents, open_npz
from nextvec.bank.documents import VectorDocument
from nextvec.bank.layout import MANIFEST
from nextvec.bank.objects import Row, table_of, table_of_rows
from nextvec.bank.ready_vectors import UNKNOWN, Provenance, ready_vectors
from nextvec.bank.table import EVENTS, ITEMS, VECTOR_COLUMNS, Columns, Table
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.document import Document
from nextvec.ingestion.files import ARROW, CSV, JSON_LINES, TABLES, open_file, open_table, saved_dataset, shards, visible
from nextvec.ingestion.text import checked, text_document
from nextvec.ingestion.text_table import text_documents
from nextvec.progress import Progress, silent

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
LARGEST_TEXT = 256 * 2**20  # bytes in one document
WANTED = "want .txt .md .markdown .rst .jsonl .ndjson .csv .tsv .parquet .arrow .feather .npz"


@dataclass
class Unread:
    """The parts of a source that were not read.

    Attributes:
        files: how many, by ending; hidden ones are not counted.
        skipped: files that could not be read, with the reason.
        columns: of a table, or arrays of a ``.npz``.
        truncated: items whose text has more tokens than the encoder reads.
    """

    files: Counter[str] = field(default_factory=Counter[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    columns: list[str] = field(default_factory=list[str])
    truncated: int = 0

    def notes(self) -> list[str]:
        """One line for each kind."""
        found: list[str] = []
        if self.files:
            found.append(f"{_count(self.files.total(), 'file')} not read: {by_ending(self.files)}")
        if self.skipped:
            found.append(f"{_count(len(self.skipped), 'file')} skipped: {'; '.join(self.skipped.values())}")
        if self.columns:
            found.append(f"columns not read: {', '.join(self.columns)}")
        if self.truncated:
            found.append(
                f"{_count(self.truncated, 'item')} with more text than the encoder reads; the end is not in the vector"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """``files`` by ending, ``skipped`` with reasons, ``columns``, ``truncated``; empty ones are left out."""
        kinds = {"files": dict(self.files), "skipped": self.skipped, "columns": self.columns, "truncated": self.truncated}
        return {kind: value for kind, value in kinds.items() if value}


@dataclass(frozen=True)
class EventTables:
    """Events, each an item in a session, and the items."""

    events: Table
    items: Table


@dataclass(frozen=True)
class Source:
    """A source of texts, of ready vectors, or of events. Reading it twice gives the same documents in the same order.

    Attributes:
        events: the events of a bank of items, with its items.
        provenance: encoder and chunking of ready vectors.
        encoder_name: of :class:`Opening`, for the vectors of items.
        has_text: whether ready vectors come with the text of their rows.
        unread: complete only after the source was read.
    """

    name: str
    texts: Callable[[], Iterator[Document]] | None = None
    vectors: Callable[[], Iterator[VectorDocument]] | None = None
    events: EventTables | None = None
    provenance: Provenance = UNKNOWN
    encoder_name: str | None = None
    has_text: bool = False
    unread: Unread = field(default_factory=Unread)


@dataclass(frozen=True)
class Opening:
    """How a source is opened.

    Attributes:
        scratch: a folder for temporary files without a name.
        encoder_name: name of the encoder of ready vectors, if their source does not state it.
        skip_unreadable: leave out files of a folder that cannot be read, instead of raising an error.
    """

    scratch: Path | None = None
    encoder_name: str | None = None
    skip_unreadable: bool = False
    progress: Progress = silent


def open_source(path: Path, how: Opening) -> Source:
    """The source that ``path`` holds.

    Raises:
        DataError: the path does not exist, or nothing of it can be read.
    """
    if path.is_dir():
        return _folder(path, how)
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return Source(path.name, texts=lambda: iter([_text_file(path, path.name)]))
    if suffix in TABLES:
        return _of_table(open_file(path, how.scratch, how.progress), path.name, how)
    if suffix == ".npz":
        file = open_npz(path)
        if how.encoder_name and file.encoder not in (None, how.encoder_name):
            raise DataError(f"{path}: its vectors are of {file.encoder!r}, not {how.encoder_name!r}")
        encoder = file.encoder or how.encoder_name or "unknown"
        return Source(
            path.name, vectors=file.documents, provenance=Provenance(encoder, encoder), unread=Unread(columns=file.unread)
        )
    if suffix == ".npy":
        raise DataError(f"{path}: an array alone has no documents; save vectors and lengths as .npz")
    raise DataError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; {WANTED}")


def open_object(value: Any, how: Opening) -> Source:
    """Documents, texts, rows, columns, tables and dataframes; see :func:`~nextvec.bank.objects.table_of`.

    Raises:
        DataError: anything else, by its type.
    """
    if isinstance(value, Mapping) and {"vectors", "lengths"} <= value.keys():
        ids, encoder = value.get("ids"), how.encoder_name or "unknown"
        return Source(
            "arrays",
            vectors=lambda: numpy_documents(value["vectors"], value["lengths"], ids, "the arrays"),
            provenance=Provenance(encoder, encoder),
            unread=Unread(columns=[str(name) for name in value if name not in ("vectors", "lengths", "ids")]),
        )
    table = table_of(value, "the table", how.scratch)
    if table is not None:
        return _of_table(table, "table", how)
    try:
        items = None if isinstance(value, bytes | bytearray) else iter(value)
    except TypeError:
        items = None
    if items is None:
        raise DataError(f"cannot read {type(value).__name__}; want a path, texts, documents, rows, a table or a dataframe")
    first = next(items, None)
    if isinstance(first, Document) or (isinstance(value, Sequence) and isinstance(first, str)):
        _no_encoder(how, "documents")
        held: Sequence[Any] = value if isinstance(value, Sequence) else [first, *items]
        return Source("documents", texts=lambda: map(_checked, enumerate(held)))
    rows = (_row(number, item) for number, item in enumerate(chain([first], items)))
    if first is None:
        raise DataError("the source holds no document")
    return _of_table(table_of_rows(rows, "the source", how.scratch), "documents", how)


def open_events(events: Any, items: Any, how: Opening) -> Source:
    """The source of a bank of items: paths, tables, dataframes or rows.

    Raises:
        DataError: one of them cannot be read.
    """
    tables = EventTables(_any_table(events, "the events", EVENTS, how), _any_table(items, "the items", ITEMS, how))
    unread = [f"{column} of {table.where}" for table, read in ((tables.events, EVENTS), (tables.items, ITEMS))
              for column in _others(table, read.known)]  # fmt: skip
    named = [
        Path(value).name if isinstance(value, str | Path) else kind for value, kind in ((events, "events"), (items, "items"))
    ]
    return Source("+".join(named), events=tables, unread=Unread(columns=unread), encoder_name=how.encoder_name)


def _any_table(value: Any, where: str, columns: Columns, how: Opening) -> Table:
    if isinstance(value, str | Path):
        return open_table(Path(value), how.scratch, how.progress, columns)
    table = table_of(value, where, how.scratch, columns)
    if table is not None:
        return table
    try:
        rows = iter(value)
    except TypeError:
        raise DataError(f"{where}: cannot read {type(value).__name__}; want a path, rows, a table or a dataframe") from None
    return table_of_rows((_mapping(number, row, where) for number, row in enumerate(rows)), where, how.scratch, columns)


def _mapping(number: int, row: Any, where: str) -> Row:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}, row {number} is {type(row).__name__}; want a mapping from column names")
    return f"{where}, row {number}", {str(key): value for key, value in row.items()}


def by_ending(files: Counter[str]) -> str:
    """Like ``2 .pdf, 1 .docx``."""
    return ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in files.most_common())


def _row(number: int, item: Any) -> Row:
    where = f"row {number}"
    if isinstance(item, str):
        return where, {"id": f"{number:08d}", "text": item}
    if isinstance(item, Mapping):
        return where, {str(key): value for key, value in item.items()}
    raise DataError(
        f"{where} is {type(item).__name__}; want texts, documents, or rows with 'text' or with 'vector', 'document', 'index'"
        + ("; for vectors alone, Bank.from_numpy takes lengths" if hasattr(item, "__len__") else "")
    )


def _checked(entry: tuple[int, Any]) -> Document:
    number, item = entry
    if isinstance(item, str):
        item = Document(f"{number:08d}", f"{number:08d}", str(item))
    if not isinstance(item, Document) or not (isinstance(item.id, str) and isinstance(item.title, str)):
        raise DataError(f"document {number} is {item!r:.80}; want a string, or a Document with id, title and text as strings")
    return _document(item, f"document {item.id!r}")


def _of_table(table: Table, name: str, how: Opening) -> Source:
    if "vector" in table.names:
        found = ready_vectors(table, how.encoder_name, how.scratch, how.progress)
        unread = Unread(columns=_others(table, VECTOR_COLUMNS))
        return Source(name, vectors=found.documents, provenance=found.provenance, has_text=found.has_text, unread=unread)
    if "text" not in table.names:
        raise DataError(
            f"{table.where} has columns {', '.join(table.names)}; want 'text', or 'vector' with 'document' and 'index'"
        )
    _no_encoder(how, table.where)
    documents, used = text_documents(table)
    checked = lambda: (_document(document, where) for document, where in documents())  # noqa: E731
    return Source(name, texts=checked, unread=Unread(columns=_others(table, used)))


def _others(table: Table, used: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(table.names) if name not in used]


def _no_encoder(how: Opening, where: str) -> None:
    if how.encoder_name is not None:
        raise SettingsError(f"{where}: --encoder selects the encoder of texts; --encoder-name is for ready vectors")


def _folder(path: Path, how: Opening) -> Source:
    """A saved dataset, texts, or tables of one kind; other files of the folder are counted as unread."""
    if (path / MANIFEST).exists():
        raise DataError(f"{path} is a bank already; export it to read it again")
    saved = saved_dataset(path)
    if saved is not None:
        return _of_table(saved, path.name, how)
    files = visible(path)
    texts = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    counts = Counter(file.suffix.lower() for file in files)
    kinds = [kind for kind in ((".parquet",), ARROW, JSON_LINES, tuple(CSV)) if any(counts[ending] for ending in kind)]
    if len(kinds) > 1 if not texts else any(kind not in (JSON_LINES, tuple(CSV)) for kind in kinds):
        raise DataError(
            f"{path} holds both texts and tables, or tables of two kinds: {by_ending(counts)}; keep one kind in a folder"
        )
    chosen = texts or [file for file in files if kinds and file.suffix.lower() in kinds[0]]
    if not chosen:
        held = f"; it holds {by_ending(counts)}" if counts else ""
        raise DataError(f"{path} holds no .txt or .md file and no table{held}; {WANTED}")
    unread = Unread(files=Counter(file.suffix.lower() for file in files if file not in set(chosen)))
    if texts:
        _no_encoder(how, str(path))
        return Source(path.name, texts=lambda: _text_folder(path, texts, how.skip_unreadable, unread), unread=unread)
    opened = _of_table(_shards(path, chosen, how, unread), path.name, how)
    unread.columns += opened.unread.columns
    return replace(opened, unread=unread)


def _shards(path: Path, files: list[Path], how: Opening, unread: Unread) -> Table:
    tables: list[Table] = []
    read: list[Path] = []
    for file in files:
        try:
            tables.append(open_file(file, how.scratch, how.progress))
            read.append(file)
        except DataError as error:
            _skip(file, path, error, how.skip_unreadable, unread)
    if not tables:
        raise DataError(f"{path}: none of {_count(len(files), 'file')} can be read: {next(iter(unread.skipped.values()))}")
    return shards(read, str(path), tables)


def _text_folder(path: Path, files: list[Path], skip: bool, unread: Unread) -> Iterator[Document]:
    for file in files:
        try:
            document = _text_file(file, file.relative_to(path).as_posix())
        except (DataError, OSError) as error:
            _skip(file, path, error, skip, unread)
        else:
            yield document
    if len(unread.skipped) == len(files):
        raise DataError(f"{path}: none of {_count(len(files), 'file')} can be read: {next(iter(unread.skipped.values()))}")


def _skip(file: Path, folder: Path, error: DataError | OSError, skip: bool, unread: Unread) -> None:
    """Record a file that cannot be read, or raise its error."""
    if not skip:
        raise error
    unread.skipped[file.relative_to(folder).as_posix()] = (
        str(error) if isinstance(error, DataError) else f"{file}: {error.strerror}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text_file(file: Path, name: str) -> Document:
    if file.stat().st_size > LARGEST_TEXT:
        raise DataError(f"{file} is larger than {LARGEST_TEXT // 2**20} MiB; split it into documents")
    return text_document(file.read_bytes(), name, file)


def _document(document: Document, where: str) -> Document:
    try:
        f"{document.id}{document.title}".encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: its id or title holds half a surrogate pair; it is not Unicode text") from None
    return replace(document, text=checked(document.text, where))
