"""Banks, reports and answers as Arrow, pandas and polars.

What :func:`to_arrow` returns has ``__arrow_c_stream__``, so that every package
of the Arrow PyCapsule interface reads it, for example DuckDB. ``to_pandas``
needs ``pandas`` and ``to_polars`` needs ``polars``.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nextvec.bank import Bank
from nextvec.bank.exchange import reader
from nextvec.bank.vector_table import METADATA
from nextvec.evaluation import Report
from nextvec.evaluation.report import HITS
from nextvec.inference import Expected

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Tabular = Bank | Report | Sequence[Expected]
RATE = ("value", "low", "high")
ANSWER = pa.schema(
    [
        ("rank", pa.int64()),
        ("row", pa.int64()),
        ("score", pa.float64()),
        ("document", pa.string()),
        ("text", pa.string()),
        ("count", pa.int64()),
    ]
)


def to_arrow(value: Tabular) -> pa.RecordBatchReader | pa.Table:
    """A bank as a stream of its rows, a report or an answer as a table.

    - Of a bank, the columns of ``nextvec export BANK FILE.parquet``. The stream can be read once, and holds 10,000 rows in
      memory.
    - Of a report, one row for the model and one for each baseline: ``predictor``, ``kind`` (``model`` or ``baseline``), ``n``
      scored rows, and Hit@1, Hit@5, Hit@10 and the mean reciprocal rank, each with the ends of its interval. The metadata
      ``nextvec`` of the schema is the exam as JSON.
    - Of an answer of :meth:`~nextvec.inference.Session.predict`, one row for each expected vector, the best first.
    """
    if isinstance(value, Bank):
        return reader(value)
    if isinstance(value, Report):
        return _of_report(value)
    names = ANSWER.names[1:]
    rows = [{"rank": rank, **{name: getattr(each, name) for name in names}} for rank, each in enumerate(value, 1)]
    return pa.Table.from_pylist(rows, schema=ANSWER)


def to_pandas(value: Tabular) -> "pd.DataFrame":
    """:func:`to_arrow` as a pandas dataframe; the rows of a bank are then in memory."""
    return _table(value).to_pandas()


def to_polars(value: Tabular) -> "pl.DataFrame":
    """:func:`to_arrow` as a polars dataframe; the rows of a bank are then in memory."""
    import polars as pl

    return pl.DataFrame(_table(value))


def _table(value: Tabular) -> pa.Table:
    found = to_arrow(value)
    return found if isinstance(found, pa.Table) else found.read_all()


def _of_report(report: Report) -> pa.Table:
    whole = report.to_json()
    predictors = [("model", whole["model"]["name"], whole["model"])]
    predictors += [("baseline", name, figures) for name, figures in whole["baselines"].items()]
    terms = pa.schema([], {METADATA: json.dumps(whole["exam"]).encode()}).metadata
    rows = [_figures(kind, name, figures) for kind, name, figures in predictors]
    return pa.Table.from_pylist(rows).replace_schema_metadata(terms)


def _figures(kind: str, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"predictor": name, "kind": kind, "n": figures["mrr"]["n"]}
    for measure in (*(f"hit@{k}" for k in HITS), "mrr"):
        rate = figures[measure]
        row |= {measure if end == "value" else f"{measure}_{end}": rate[end] for end in RATE}
    return row
