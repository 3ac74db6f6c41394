"""Approximate search finds most of what exact search finds, and as many rows as there are."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import DataError, SettingsError
from nextvec.index import ApproximateIndex, allowed_rows, open_index
from nextvec.index import approximate as module
from tests.conftest import walk_bank
from tests.test_cli import printed, write_bank

pytest.importorskip("faiss", reason='needs faiss: pip install "nextvec[ann]"')


@pytest.fixture(scope="module")
def large() -> Bank:
    """Large enough that searches walk."""
    return walk_bank(documents=100, length=100, dim=24, topics=40)


@pytest.fixture(scope="module")
def index(large: Bank) -> ApproximateIndex:
    return ApproximateIndex.build(large)


def asked(bank: Bank, count: int = 60) -> torch.Tensor:
    return torch.from_numpy(module.predicted_like(bank, count, seed=1))


def test_recall_and_scores(large: Bank, index: ApproximateIndex) -> None:
    found, true = index.search(asked(large), 10), index.reference.search(asked(large), 10)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(found.rows, true.rows, strict=True)])
    assert recall > 0.95 and index.measured["recall@10"] > 0.95
    assert found.decided < 60 * len(large) / 16, "it walks"
    for q in range(60):
        exact = dict(zip(true.rows[q].tolist(), true.scores[q].tolist(), strict=True))
        both = [
            (exact[row], score)
            for row, score in zip(found.rows[q].tolist(), found.scores[q].tolist(), strict=True)
            if row in exact
        ]
        assert all(a == b for a, b in both), "a row that both find has one score"
        assert (np.diff(found.scores[q]) <= 0).all()


def test_one_query_and_many_answer_the_same(large: Bank, index: ApproximateIndex) -> None:
    many = index.search(asked(large), 5)
    alone = [index.search(query[None], 5) for query in asked(large)]
    assert all((one.rows[0] == many.rows[q]).all() for q, one in enumerate(alone))


@pytest.mark.parametrize("k", [1, 10, 400])
def test_filters_leave_k_rows_when_k_exist(large: Bank, index: ApproximateIndex, k: int) -> None:
    queries = asked(large, 8)
    near = index.reference.search(queries, 300).rows
    found = index.search(queries, k, excluded=list(near))
    assert (found.rows >= 0).all() and not any(np.isin(found.rows[q], near[q]).any() for q in range(8))
    mask = allowed_rows(large, [7])
    found = index.search(queries, k, allowed=mask)
    assert ((found.rows >= 0).sum(1) == min(k, mask.sum())).all()
    assert mask[found.rows[found.rows >= 0]].all()
    wanted = index.reference.search(queries, k, list(near), ~mask).rows
    share = np.mean(
        [np.isin(a, b).mean() for a, b in zip(index.search(queries, k, list(near), ~mask).rows, wanted, strict=True)]
    )
    assert share > 0.9


def test_added_rows_are_found_at_once(large: Bank) -> None:
    index = ApproximateIndex.build(large)
    new = -asked(large, 3).numpy()
    names = index.add(new)
    found = index.search(torch.from_numpy(new), 2)
    assert found.rows[:, 0].tolist() == names.tolist() and (found.rows[:, 1] >= 0).all()
    assert (np.sort(found.rows, axis=1)[:, 1:] != np.sort(found.rows, axis=1)[:, :-1]).all()
    everything = index.search(torch.from_numpy(new), len(index)).rows
    assert (np.sort(everything, axis=1) == np.arange(len(index))).all()


def test_the_same_bank_gives_the_same_graph(large: Bank, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ApproximateIndex.build(large).save(tmp_path / name)
    assert (tmp_path / "a" / "graph.bin").read_bytes() == (tmp_path / "b" / "graph.bin").read_bytes()


def test_a_saved_index_answers_the_same(large: Bank, tmp_path: Path) -> None:
    index = ApproximateIndex.build(large)
    index.add(-asked(large, 3).numpy())
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index", large)
    assert isinstance(opened, ApproximateIndex) and opened.measured == index.measured
    assert (opened.search(asked(large), 10).rows == index.search(asked(large), 10).rows).all()
    graph = tmp_path / "index" / "graph.bin"
    whole = graph.read_bytes()
    graph.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"graph\.bin is damaged"):
        open_index(tmp_path / "index", large)
    graph.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"graph\.bin is damaged"):
        open_index(tmp_path / "index", large)
    with pytest.raises(DataError, match="not of this one"):
        open_index(tmp_path / "index", walk_bank(seed=1))


def test_bad_questions_are_refused(index: ApproximateIndex) -> None:
    with pytest.raises(SettingsError, match="k=0"):
        index.search(torch.ones(1, 24), 0)
    with pytest.raises(DataError, match="want"):
        index.search(torch.ones(1, 23), 1)
    with pytest.raises(DataError, match="no row"):
        index.search(torch.ones(1, 24), 1, [np.array([10**9])])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bank(tmp_path / "bank", walk_bank())
    facts = printed(capsys, "index", str(tmp_path / "bank"), str(tmp_path / "index"), "--kind", "approximate")
    assert (facts["kind"], facts["format"]) == ("approximate", "float16")
    assert facts["recall@10"] == 1.0, "so few rows are all read"


def test_without_the_library_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bank(tmp_path / "bank", walk_bank())
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["index", str(tmp_path / "bank"), str(tmp_path / "index"), "--kind", "approximate"]) == 2
    out = capsys.readouterr().err
    assert out.count("\n") == 1 and 'pip install "nextvec[ann]"' in out
