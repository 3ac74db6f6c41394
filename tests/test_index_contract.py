"""The contract of every index: what :class:`nextvec.index.Index` promises, with the abilities that each index declares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.index import ExactIndex, Index, Neighbours, allowed_rows, open_index
from nextvec.index.open import KINDS
from nextvec.inference import Engine
from nextvec.models import GRU
from nextvec.models.packed import pack
from tests.conftest import walk_bank
from tests.test_cli import write_bank

DIM = 24
BUILDS: dict[str, Callable[[Bank], Index]] = {
    "exact, float32": lambda bank: ExactIndex.build(bank, "float32"),
    "exact, float16": lambda bank: ExactIndex.build(bank, "float16"),
    "exact, int8": lambda bank: ExactIndex.build(bank, "int8"),
    **{name: kind.build for name, kind in KINDS.items() if kind is not ExactIndex},
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """So many rows that an approximate search walks its graph; some rows appear twice."""
    walked = walk_bank(documents=80, length=100, dim=DIM, topics=40)
    again = walked.rows[:3000:7]
    lengths = [*np.diff(walked.offsets).tolist(), len(again)]
    repeating = Bank.from_numpy(np.concatenate([walked.rows, again]), lengths)
    return Bank.open(write_bank(tmp_path_factory.mktemp("contract") / "bank", repeating))


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> Callable[[Bank], Index]:
    if request.param == "approximate":
        pytest.importorskip("faiss", reason='needs faiss: pip install "nextvec[ann]"')
    return BUILDS[request.param]


@pytest.fixture(scope="module")
def index(build: Callable[[Bank], Index], bank: Bank) -> Index:
    return build(bank)


def queries(bank: Bank, count: int = 30, seed: int = 0) -> np.ndarray:
    """Directions between neighbouring rows, as predictions lie."""
    at = np.random.default_rng(seed).integers(1, len(bank), count)
    return (bank.rows[at - 1] + bank.rows[at]).astype(np.float32)


def by_sorting(bank: Bank, query: np.ndarray, k: int, may: np.ndarray) -> list[int]:
    """The first admitted row of each of the k best distinct vectors."""
    scores = bank.rows.astype(np.float64) @ query.astype(np.float64)
    order = [row for row in np.lexsort((np.arange(len(bank)), -scores)).tolist() if may[row]]
    first: dict[int, int] = {}
    for row in order:
        number = int(bank.distinct.numbers[row])
        first[number] = min(row, first.get(number, row))
    return [*first.values()][:k]


def check_order(bank: Bank, asked: np.ndarray, found: Neighbours, may: np.ndarray) -> None:
    """Rows are admitted and hold different vectors; scores are their products, and descend."""
    for query, rows, scores in zip(asked, found.rows, found.scores, strict=True):
        held = rows[rows >= 0]
        assert may[held].all()
        assert len(set(bank.distinct.numbers[held].tolist())) == len(held)
        exact = bank.rows[held].astype(np.float64) @ query.astype(np.float64)
        np.testing.assert_allclose(scores[rows >= 0], exact, rtol=0, atol=1e-6)
        assert (np.diff(scores[rows >= 0]) <= 0).all()
        assert (rows[len(held) :] == -1).all() and (scores[len(held) :] == -np.inf).all()


def test_an_index_is_an_index(index: Index, bank: Bank) -> None:
    assert isinstance(index, Index)
    assert (index.dim, len(index)) == (DIM, len(bank))
    assert (index.distinct.numbers == bank.distinct.numbers).all()
    assert bool(index.measured) is not index.exact, "an index that may miss rows states its recall"


def test_a_search_finds_the_nearest_distinct_vectors(index: Index, bank: Bank) -> None:
    asked, everything = queries(bank), np.ones(len(bank), bool)
    found = index.search(asked, 10)
    check_order(bank, asked, found, everything)
    assert (found.rows >= 0).all()
    right = [row in by_sorting(bank, q, 10, everything) for q, rows in zip(asked, found.rows, strict=True) for row in rows]
    assert all(right) if index.exact else np.mean(right) > 0.9
    for same in (torch.from_numpy(asked), np.asfortranarray(asked), asked.astype(np.float64)):
        again = index.search(same, 10)
        assert (again.rows == found.rows).all() and (again.scores == found.scores).all()


def test_vectors_are_the_rows_that_decide(build: Callable[[Bank], Index], bank: Bank) -> None:
    """Added rows are among them, and a row that repeats another one has its vector."""
    index, rows = build(bank), np.array([5, 0, len(bank) - 1, 5])
    if index.grows:
        rows = np.append(rows, index.add(np.random.default_rng(1).standard_normal((3, DIM))))
    found = index.vectors(rows)
    assert found.dtype == np.float32
    own = rows < len(bank)
    held = bank.rows[bank.distinct.classes[rows[own]]].astype(np.float32)
    assert (found[own] == held).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-3)
    for query in queries(bank, 3):
        exact = found.astype(np.float64) @ query.astype(np.float64)
        np.testing.assert_allclose(index.scores(rows, query), exact, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="there is no row"):
        index.vectors(np.array([len(index)]))


def test_one_query_and_many_have_the_same_answers(index: Index, bank: Bank) -> None:
    asked = queries(bank)
    many = index.search(asked, 5)
    for q in range(len(asked)):
        one = index.search(asked[q : q + 1], 5)
        assert (one.rows[0] == many.rows[q]).all() and (one.scores[0] == many.scores[q]).all()


@pytest.mark.parametrize("k", [1, 10, 300])
def test_filters_leave_k_rows_where_k_exist(index: Index, bank: Bank, k: int) -> None:
    if not index.filters:
        pytest.skip("this index has no filters")
    asked = queries(bank, 8)
    excluded = [np.random.default_rng(q).permutation(len(bank))[: 400 * q] for q in range(8)]
    allowed = allowed_rows(bank, range(0, 80, 3))
    found = index.search(asked, k, excluded, allowed)
    check_order(bank, asked, found, allowed)
    for q in range(8):
        barred = np.isin(bank.distinct.numbers, bank.distinct.numbers[excluded[q]])
        wanted = by_sorting(bank, asked[q], k, allowed & ~barred)
        held = found.rows[q][found.rows[q] >= 0].tolist()
        assert len(held) == len(wanted)
        assert not barred[held].any()
        assert held == wanted or not index.exact


def test_an_added_row_is_found_by_the_next_search(build: Callable[[Bank], Index], bank: Bank) -> None:
    index = build(bank)
    if not index.grows:
        pytest.skip("this index does not grow")
    new = -queries(bank, 3, seed=1)
    numbers = index.add(np.concatenate([5 * new, bank.rows[40:41].astype(np.float32)]))
    assert numbers.tolist() == [len(bank), len(bank) + 1, len(bank) + 2, bank.distinct.classes[40]]
    assert len(index) == len(bank) + 3
    assert index.search(new, 2).rows[:, 0].tolist() == numbers[:3].tolist()
    with pytest.raises(DataError, match="zero vector"):
        index.add(np.zeros((1, DIM)))
    assert len(index) == len(bank) + 3


def test_a_saved_index_answers_the_same(build: Callable[[Bank], Index], bank: Bank, tmp_path: Path) -> None:
    index = build(bank)
    if index.grows:
        index.add(-queries(bank, 3, seed=1))
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index", bank)
    assert (opened.kind, opened.form, opened.measured, len(opened)) == (index.kind, index.form, index.measured, len(index))
    before, after = (each.search(queries(bank), 10) for each in (index, opened))
    assert (before.rows == after.rows).all() and (before.scores == after.scores).all()
    with pytest.raises(DataError, match="already exists"):
        index.save(tmp_path / "index")


def test_wrong_arguments_are_refused(index: Index, bank: Bank) -> None:
    asked = queries(bank, 2)
    filtered = DataError if index.filters else SettingsError  # an index without filters refuses every filter
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: index.search(asked, 0), SettingsError, "k=0"),
        (lambda: index.search(asked[:, 1:], 1), DataError, "want"),
        (lambda: index.search(asked * np.nan, 1), DataError, "not finite"),
        (lambda: index.search(asked, 1, [np.array([0])]), filtered, "2 queries need as many lists" if index.filters else ""),
        (lambda: index.search(asked, 1, [np.array([10**9])] * 2), filtered, "no row" if index.filters else ""),
        (
            lambda: index.search(asked, 1, allowed=np.ones(10**6, bool)),
            filtered,
            "mask of allowed rows" if index.filters else "",
        ),
    ]
    for call, kind, says in cases:
        with pytest.raises(kind, match=says):
            call()


def test_an_engine_refuses_an_index_without_filters(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pack(GRU(torch.zeros(DIM), 0.5, hidden=4), "float32")
    monkeypatch.setattr(ExactIndex, "filters", False)
    with pytest.raises(SettingsError, match="exact index has no filters"):
        Engine(model, bank, ExactIndex.build(bank))
