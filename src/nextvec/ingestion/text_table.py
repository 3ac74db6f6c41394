"""Documents from tables of text: one per row, or one per ``document``, with rows ordered by ``index``."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from nextvec.bank.table import Table, one_title, order_of, strings
from nextvec.errors import DataError
from nextvec.ingestion.document import Document

Placed = tuple[Document, str]  # a document, and how messages name it


def text_documents(table: Table) -> tuple[Callable[[], Iterator[Placed]], tuple[str, ...]]:
    """A function that reads the documents of a table with ``text``, and the columns that it reads.

    With ``document`` and ``index`` the rows of a document are joined in the
    order of ``index`` with blank lines between them, and documents are ordered by
    id. Without both columns, every row is a document, in the order of the rows.

    Raises:
        DataError: one of ``document`` and ``index`` without the other, or rows without a clear order.
    """
    table.columns_of(("id", "document", "index", "title", "text"))
    grouped = [name for name in ("document", "index") if name in table.names]
    if grouped == ["document"]:
        raise DataError(
            f"{table.where}: column 'document' without 'index'; add 'index' to give the order, "
            "or call the column 'id' if every row is a document"
        )
    if grouped == ["index"]:
        raise DataError(f"{table.where}: column 'index' without 'document'; add 'document', or leave 'index' out")
    return (_grouped(table), ("document", "index", "title", "text")) if grouped else (_rows(table), ("id", "title", "text"))


def _rows(table: Table) -> Callable[[], Iterator[Placed]]:
    columns = table.columns_of(("id", "title", "text"))

    def documents() -> Iterator[Placed]:
        row, all_named = 0, None
        for batch in table.batches(columns):
            nothing: list[str | None] = [None] * batch.num_rows
            held = {name: _large(batch, name, table.where, row).to_pylist() for name in columns}
            for name, title, text in zip(held.get("id", nothing), held.get("title", nothing), held["text"], strict=True):
                where = f"{table.where}, row {row}"
                if all_named is not None and all_named != (name is not None):
                    raise DataError(
                        f"{where} has {'an' if name else 'no'} id, unlike the rows before; give one to all or to none"
                    )
                all_named = name is not None
                name = f"{row:08d}" if name is None else name  # a null id counts as missing
                yield Document(name, name if title is None else title, text), where
                row += 1

    return documents


def _grouped(table: Table) -> Callable[[], Iterator[Placed]]:
    order = order_of(table)
    columns = table.columns_of(("title", "text"))

    def in_order() -> Iterator[dict[str, list[str | None]]]:
        row = 0
        batches: list[pa.RecordBatch] = []
        for batch in table.batches(columns):
            held = pa.RecordBatch.from_arrays([_large(batch, name, table.where, row) for name in columns], names=columns)
            row += batch.num_rows
            if order.rows is None:
                yield held.to_pydict()
            else:
                batches.append(held)
        if order.rows is not None:
            whole = pa.Table.from_batches(batches).combine_chunks().take(pa.array(order.rows))
            for batch in whole.to_batches(max_chunksize=1_000):
                yield batch.to_pydict()

    def documents() -> Iterator[Placed]:
        rows = (
            (block["text"][n] or "", block["title"][n] if "title" in block else None)
            for block in in_order()
            for n in range(len(block["text"]))
        )
        for name, length in zip(order.ids, order.lengths.tolist(), strict=True):
            where = f"{table.where}, document {name!r}"
            parts = [part for _, part in zip(range(length), rows, strict=False)]
            if len(parts) < length:
                raise DataError(f"{table.where} changed while it was read")
            yield (
                Document(
                    name, one_title((title for _, title in parts), name, table.where), "\n\n".join(text for text, _ in parts)
                ),
                where,
            )

    return documents


def _large(batch: pa.RecordBatch, name: str, where: str, row: int) -> pa.Array:
    numbers = name != "text"
    return strings(batch.column(name), name, where, row, missing=numbers, numbers=numbers)
