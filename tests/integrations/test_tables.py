"""Banks, reports and answers as Arrow, pandas and polars."""

import json

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pandas", reason="needs pandas: pip install 'nextvec[integrations]'")
pytest.importorskip("polars", reason="needs polars: pip install 'nextvec[integrations]'")

import polars as pl

import nextvec as nv
from nextvec.bank import Bank
from nextvec.inference import Engine
from nextvec.integrations.tables import to_arrow, to_pandas, to_polars

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def report() -> nv.Report:
    from tests.conftest import walk_bank

    return nv.evaluate(walk_bank(), pool=20, max_rows=40)


def test_an_answer_is_a_table_of_its_expected_vectors(engine: Engine, read: str) -> None:
    session = engine.session()
    session.push_text(read)
    found = session.predict(3)
    for frame in (to_pandas(found), to_polars(found)):
        assert list(frame["rank"]) == [1, 2, 3]
        assert list(frame["row"]) == [each.row for each in found]
        assert list(frame["score"]) == [each.score for each in found]
        assert list(frame["text"]) == [each.text for each in found]


def test_an_answer_without_vectors_has_the_same_columns(engine: Engine, read: str) -> None:
    session = engine.session()
    session.push_text(read)
    assert to_polars([]).schema == to_polars(session.predict(1)).schema


def test_a_report_keeps_its_terms(report: nv.Report) -> None:
    table = to_arrow(report)
    assert isinstance(table, pa.Table)
    assert json.loads(table.schema.metadata[b"nextvec"])["id"] == report.exam
    frame = to_polars(report)
    assert set(frame["n"]) == {len(report.ranks)}
    own = frame.row(by_predicate=pl.col("kind") == "model", named=True)
    rate = report.ranks.hit(5)
    assert (own["hit@5"], own["hit@5_low"], own["hit@5_high"]) == (rate.value, rate.low, rate.high)
    assert set(frame.filter(kind="baseline")["predictor"]) == set(report.baselines)
    assert to_pandas(report).to_dict("list") == frame.to_dict(as_series=False)


def test_a_bank_is_a_stream_that_other_packages_read(text_bank: Bank) -> None:
    found = pa.RecordBatchReader.from_stream(to_arrow(text_bank)).read_all()
    assert found["text"].to_pylist() == [text_bank.text(row) for row in range(len(text_bank))]
    np.testing.assert_array_equal(np.stack(to_polars(text_bank)["vector"].to_numpy()), text_bank.rows)
    np.testing.assert_array_equal(np.stack(to_pandas(text_bank)["vector"]), text_bank.rows)
    assert Bank.from_numpy(to_arrow(text_bank)).lengths.tolist() == text_bank.lengths.tolist()
