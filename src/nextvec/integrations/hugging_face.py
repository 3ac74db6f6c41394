"""Banks as Hugging Face datasets, and datasets as banks; needs ``datasets``."""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo

from nextvec.bank import Bank
from nextvec.bank.exchange import reader
from nextvec.bank.vector_table import METADATA
from nextvec.errors import DataError
from nextvec.ingestion import ingest

KEY = METADATA.decode()
ROWS = 1_000  # of a dataset that are in memory at one time


def to_dataset(bank: Bank, file: str | Path) -> Dataset:
    """The rows of a bank as a dataset that is memory-mapped from an Arrow file.

    The columns are those of ``nextvec export BANK FILE.parquet``. A dataset keeps no metadata of Arrow, so the description of
    the dataset has the encoder and the chunking as JSON; :func:`from_dataset` reads it.

    Args:
        file: the Arrow file to write; the dataset needs it as long as it is used.

    Raises:
        DataError: the file exists.
    """
    path = Path(file)
    if path.exists():
        raise DataError(f"{path} exists; choose another name, or open it with datasets.Dataset.from_file")
    rows = reader(bank)
    temporary = path.with_name(f".{path.name}.tmp")
    with pa.ipc.new_stream(temporary, rows.schema) as writer:
        for batch in rows:
            writer.write_batch(batch)
    os.replace(temporary, path)
    made = json.loads(rows.schema.metadata[METADATA])
    return Dataset.from_file(str(path), info=DatasetInfo(description=json.dumps({KEY: made})))


def from_dataset(dataset: Dataset, bank: str | Path) -> Bank:
    """The bank of a dataset at the path ``bank``, as ``nextvec.ingest`` makes it.

    A dataset of :func:`to_dataset`, also one that was filtered, selected from or saved since, keeps its encoder and chunking.
    ``nextvec.ingest`` takes other datasets directly, iterable ones included.

    Raises:
        DataError: the description is not of :func:`to_dataset`, or the rows cannot be read.
    """
    try:
        made = json.loads(dataset.info.description)[KEY]
    except (ValueError, KeyError, TypeError):
        raise DataError("the dataset was not made by to_dataset; give it to nextvec.ingest, which takes any dataset") from None
    parts: Any = dataset.with_format("arrow").iter(batch_size=ROWS)
    tables: Iterator[pa.Table] = iter(parts)
    first = next(tables, None)
    if first is None:
        raise DataError("the dataset has no row")
    schema = first.schema.with_metadata({METADATA: json.dumps(made).encode()})
    batches = (batch for table in chain([first], tables) for batch in table.cast(schema).to_batches())
    return ingest(pa.RecordBatchReader.from_batches(schema, batches), bank)
