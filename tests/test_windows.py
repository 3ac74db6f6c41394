"""Splits and ranges: documents never meet, every row is scored once, the exam does not know the context."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.windows import Windows, coherent, last_windows, rows_of, scoring_windows, split, training_windows
from tests.conftest import walk_bank


def check_windows_stay_inside_documents(bank: Bank, windows: Windows) -> None:
    assert (bank.document_of(windows.starts) == bank.document_of(windows.stops - 1)).all()


@given(st.integers(3, 30), st.integers(0, 1000))
def test_a_split_covers_every_document_once(documents: int, seed: int) -> None:
    bank = walk_bank(documents, length=12, seed=seed)
    parts = split(bank, 0.2, 0.2)
    together = np.concatenate([parts.train, parts.valid, parts.test])
    assert sorted(together.tolist()) == list(range(documents))
    assert min(len(parts.train), len(parts.valid), len(parts.test)) >= 1


def test_a_split_is_a_function_of_names_and_salt() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    names = [f"book {m}" for m in range(30)]
    bank = Bank.from_numpy(rows, [10] * 30, names)
    turned = Bank.from_numpy(rows[::-1].copy(), [10] * 30, names[::-1])
    ours, theirs = split(bank), split(turned)
    assert {bank.ids[m] for m in ours.test} == {turned.ids[m] for m in theirs.test}
    assert split(bank, salt="another").test.tolist() != ours.test.tolist()


def test_near_duplicate_documents_share_a_part() -> None:
    rng = np.random.default_rng(3)
    base = [rng.standard_normal((12, 16)).astype(np.float32) for _ in range(12)]
    copies = [rows + 0.01 * rng.standard_normal(rows.shape).astype(np.float32) for rows in base]
    bank = Bank.from_numpy(np.concatenate(base + copies), [12] * 24)
    parts = split(bank, 0.25, 0.25)
    for part in (parts.train, parts.valid, parts.test):
        assert {m % 12 for m in part if m < 12} == {m % 12 for m in part if m >= 12}


def test_a_split_needs_three_documents() -> None:
    with pytest.raises(DataError, match="2 independent documents"):
        split(walk_bank(documents=2))


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.5, 0.5), (-0.1, 0.2)])
def test_shares_must_leave_something(shares: tuple[float, float]) -> None:
    with pytest.raises(SettingsError):
        split(walk_bank(), *shares)


@given(st.integers(1, 200), st.integers(0, 1000))
def test_the_rows_scored_do_not_depend_on_the_context(context: int, seed: int) -> None:
    bank = walk_bank(seed=seed)
    rows = rows_of(bank, [1, 4, 5], skip=1)
    windows = scoring_windows(bank, rows, context)
    assert windows.scored.tolist() == rows.tolist()
    assert windows.targets == len(rows)
    assert (windows.scored - windows.starts <= context).all()
    full = windows.starts > bank.offsets[bank.document_of(rows)]
    assert (windows.scored - windows.starts)[full].tolist() == [context] * full.sum()
    check_windows_stay_inside_documents(bank, windows)


@given(st.integers(1, 80), st.integers(0, 1000))
def test_training_scores_every_row_but_the_first_once_an_epoch(context: int, seed: int) -> None:
    bank = walk_bank(documents=5, length=50, seed=seed)
    windows = training_windows(bank, [0, 2, 3], context, np.random.default_rng(seed))
    scored = np.concatenate([np.arange(a, b) for a, b in zip(windows.scored, windows.stops, strict=True)])
    assert sorted(scored.tolist()) == rows_of(bank, [0, 2, 3], skip=1).tolist()
    assert (windows.stops - windows.starts - 1 <= context).all()
    check_windows_stay_inside_documents(bank, windows)


def test_cross_document_windows_are_caught() -> None:
    """The predecessor's windows: fixed strides over all rows, blind to documents."""
    bank = walk_bank(documents=5)
    stops = np.arange(20, len(bank), 10)
    with pytest.raises(AssertionError):
        check_windows_stay_inside_documents(bank, Windows(stops - 20, stops - 1, stops))


def test_the_first_row_of_a_document_cannot_be_scored() -> None:
    bank = walk_bank()
    with pytest.raises(DataError, match="starts its document"):
        scoring_windows(bank, np.array([int(bank.offsets[2])]), 10)


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(SettingsError, match="context=0"):
        scoring_windows(walk_bank(), np.array([3]), 0)


# The predecessor's windows, to be measured against


@given(st.integers(2, 40), st.booleans(), st.integers(0, 1000))
def test_the_published_way_scores_one_row_a_window_and_overlaps_by_half(context: int, across: bool, seed: int) -> None:
    bank = walk_bank(seed=seed)
    documents = np.array([0, 1, 2, 5, 6])
    try:
        windows = last_windows(bank, documents, context, across, np.random.default_rng(seed))
    except DataError:
        assert bank.lengths[documents].max() <= context
        return
    assert (windows.stops - windows.scored == 1).all()
    assert (windows.scored - windows.starts == context).all()
    starts = np.sort(windows.starts)
    apart = np.diff(starts)
    assert (apart >= max(1, context // 2)).all()
    # A training passage may run across documents, never into one that is held out.
    for start, stop in zip(windows.starts, windows.stops, strict=True):
        assert set(bank.document_of(np.arange(start, stop))) <= set(documents.tolist())
    if not across:
        check_windows_stay_inside_documents(bank, windows)


def test_across_documents_there_are_more_windows() -> None:
    bank = Bank.from_numpy(np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32), [10] * 6)
    rng = np.random.default_rng(0)
    documents = np.array([0, 1, 2, 4, 5])  # 30 rows end to end, and 20
    assert len(last_windows(bank, documents, 8, False, rng)) == 5
    assert len(last_windows(bank, documents, 8, True, rng)) == len(range(0, 30 - 8, 4)) + len(range(0, 20 - 8, 4))


@given(st.integers(0, 200), st.floats(-0.5, 0.9))
def test_the_gate_on_coherence_never_looks_at_the_target(seed: int, least: float) -> None:
    bank = walk_bank(seed=seed)
    windows = last_windows(bank, np.arange(6), 7, False, np.random.default_rng(seed))
    rows = bank.rows.astype(np.float64)
    inputs = [rows[a:b] for a, b in zip(windows.starts, windows.scored, strict=True)]
    expected = [float(np.mean((x[1:] * x[:-1]).sum(1))) >= least for x in inputs]
    kept = set(coherent(bank, windows, least).starts.tolist())
    assert [int(a) in kept for a in windows.starts] == expected


def test_a_passage_of_one_vector_is_never_gated() -> None:
    bank = walk_bank()
    windows = Windows(np.array([0, 5]), np.array([1, 6]), np.array([2, 7]))
    assert len(coherent(bank, windows, 1.0)) == 2
