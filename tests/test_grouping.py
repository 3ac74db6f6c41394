"""Near-duplicate documents are found by what few documents hold; what many hold connects none of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.bank import Bank, BankWriter, VectorDocument, census
from nextvec.errors import DataError
from nextvec.windows import missed_shares, split

DIM = 16


def texts(documents: int, rows: int, seed: int = 0) -> list[np.ndarray]:
    """Documents of rows that no other holds."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, DIM)).astype(np.float32) for _ in range(documents)]


def bank_of(documents: Sequence[np.ndarray]) -> Bank:
    return Bank.from_numpy(np.concatenate(documents), [len(rows) for rows in documents])


def sessions(users: int, items: int, shortest: int, longest: int, popularity: float, seed: int = 0) -> Bank:
    """Sessions of random items, of which the n-th is asked for in proportion to n ** -popularity."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((items, DIM)).astype(np.float32)
    likely = np.arange(1, items + 1) ** -popularity
    lengths = rng.integers(shortest, longest + 1, users)
    return Bank.from_numpy(vectors[rng.choice(items, lengths.sum(), p=likely / likely.sum())], lengths)


@pytest.mark.parametrize("popularity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lengths", [(2, 6), (2, 40), (20, 60)])
def test_sessions_over_shared_items_split_by_their_shares(lengths: tuple[int, int], popularity: float) -> None:
    bank = sessions(500, 500, *lengths, popularity)
    # Sessions are drawn independently: no two are copies but by chance.
    assert sum(map(len, census(bank).document_groups)) <= 20
    parts = split(bank, 0.15, 0.2)
    held = {name: bank.lengths[parts.part(name)].sum() / len(bank) for name in ("valid", "test")}
    assert held == pytest.approx({"valid": 0.15, "test": 0.2}, abs=0.03)


def test_a_copied_session_is_found_among_sessions_of_the_same_items() -> None:
    bank = sessions(300, 500, 20, 60, 0.5)
    copied = bank.document(7).copy()
    changed = copied.copy()
    changed[:3] = bank.document(9)[:3]
    together = bank_of([*(bank.document(m) for m in range(300)), copied, changed])
    groups = census(together).document_groups
    assert {7, 300, 301} <= set(next(group for group in groups if 7 in group))
    assert sum(map(len, groups)) <= 12


def test_two_editions_of_a_book_share_a_group_and_a_licence_in_every_book_makes_none() -> None:
    """Every book ends with the same licence; the second edition keeps 70 % of the first's rows, some of them set anew."""
    rng = np.random.default_rng(1)
    licence = texts(1, 30, seed=2)[0]
    books = [np.concatenate([rows, licence]) for rows in texts(60, 50)]
    edition = books[4].copy()
    edition[:15] = texts(1, 15, seed=3)[0]  # a new preface
    edition[15:30] += 0.005 * rng.standard_normal((15, DIM)).astype(np.float32)
    assert census(bank_of([*books, edition])).document_groups == ((4, 60),)
    parts = split(bank_of([*books, edition]), 0.2, 0.2)
    assert any({4, 60} <= set(part.tolist()) for part in (parts.train, parts.valid, parts.test))


def test_an_extract_shares_a_group_with_the_book_that_holds_it() -> None:
    books = texts(40, 100)
    assert census(bank_of([*books, books[3][20:60]])).document_groups == ((3, 40),)
    # A quarter of its rows are the book's: an anthology, not an extract.
    anthology = np.concatenate([books[m][:10] for m in (3, 4, 5, 6)])
    assert census(bank_of([*books, anthology])).document_groups == ()


def test_exact_copies_are_found_however_common_their_rows_are() -> None:
    notice = texts(1, 10)[0]
    bank = bank_of([*texts(5, 10, seed=1), *[notice] * 100])
    assert census(bank).document_groups == (tuple(range(5, 105)),)


@pytest.mark.parametrize("jitter", [0.0, 0.005])
def test_many_near_copies_are_one_group_though_more_documents_hold_their_rows_than_a_rare_row_has(jitter: float) -> None:
    """Sixty notices of 20 rows differ in two; beside them sessions share as many common rows by chance."""
    rng = np.random.default_rng(4)
    notice = texts(1, 20)[0]
    notices = [notice + jitter * rng.standard_normal(notice.shape).astype(np.float32) for _ in range(60)]
    for rows in notices:
        rows[[3, 11]] = texts(1, 2, seed=int(rng.integers(1 << 30)))[0]
    drawn = sessions(100, 50, 5, 20, 0.5)
    bank = bank_of([*(drawn.document(m) for m in range(100)), *notices])
    largest = max(census(bank).document_groups, key=len)
    assert set(range(100, 160)) == set(largest)


def test_a_split_that_near_duplicates_spoil_is_refused_with_the_reason() -> None:
    """Thirty editions of one book are 75 % of the rows; the smallest part that can hold them is the training part."""
    book = texts(1, 60)[0]
    editions = [np.concatenate([book, rows]) for rows in texts(30, 5, seed=1)]
    bank = bank_of([*texts(11, 60, seed=2), *editions])
    refused = [salt for salt in map(str, range(12)) if "near-duplicates" in outcome(bank, salt)]
    assert refused, "in some order of documents the editions must come first"
    assert "30 documents, '000011' and '000012' among them" in outcome(bank, refused[0])
    assert "choose shares that fit" in outcome(bank, refused[0])


def outcome(bank: Bank, salt: str) -> str:
    """What a split says: its refusal, or nothing where every part has its share."""
    try:
        parts = split(bank, 0.15, 0.2, salt)
    except DataError as error:
        return str(error)
    assert not missed_shares(bank, parts, 0.15, 0.2)
    return ""


def test_a_part_that_one_long_document_fills_is_no_fault_but_is_said() -> None:
    bank = bank_of([*texts(2, 10), *texts(1, 980, seed=1)])
    parts = split(bank, 0.1, 0.1)
    assert {len(part) for part in (parts.train, parts.valid, parts.test)} == {1}
    missed = missed_shares(bank, parts, 0.1, 0.1)
    assert len(missed) >= 2
    assert all("of the rows;" in sentence for sentence in missed.values())


def test_a_census_of_no_content_or_of_other_content_is_counted_again(tmp_path: Path) -> None:
    books = texts(6, 20)
    with BankWriter(tmp_path / "bank", encoder="e", encoder_fingerprint="e", dim=DIM) as writer:
        for m, rows in enumerate(books):
            writer.append(VectorDocument(str(m), str(m), rows))
        bank = writer.finish()
    collapsed = {"rows": 120, "exact_duplicates": 0, "near_duplicates": 0, "document_groups": [[0, 1, 2, 3, 4, 5]]}
    (tmp_path / "bank" / "census.json").write_text(json.dumps({**collapsed, "threshold": 0.995}))
    assert census(bank).document_groups == ()
    kept = tmp_path / "bank" / "census.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **collapsed}))
    assert census(bank).document_groups == ((0, 1, 2, 3, 4, 5),), "what is kept is believed"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "bank": "another"}))
    assert census(bank).document_groups == ()


def test_a_census_that_is_damaged_is_counted_again(tmp_path: Path) -> None:
    with BankWriter(tmp_path / "bank", encoder="e", encoder_fingerprint="e", dim=DIM) as writer:
        for m, rows in enumerate(texts(3, 20)):
            writer.append(VectorDocument(str(m), str(m), rows))
        bank = writer.finish()
    kept = tmp_path / "bank" / "census.json"
    whole, counted = kept.read_text(), census(bank)
    assert (counted.rows, counted.document_groups) == (60, ())
    values: dict[str, Any] = json.loads(whole)
    edits: list[dict[str, Any]] = [
        {"rows": None}, {"rows": 59}, {"near_duplicates": "0"}, {"threshold": 0.5},
        {"document_groups": None}, {"document_groups": [0]}, {"document_groups": [[0, 3]]}, {"document_groups": [["0"]]},
    ]  # fmt: skip
    for content in ("", whole[: len(whole) // 2], "[]", "null", "[" * 100_000, *(json.dumps({**values, **e}) for e in edits)):
        kept.write_text(content)
        assert census(bank) == counted
        assert kept.read_text() == whole, content[:80]
    for name in values:
        kept.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
        assert census(bank) == counted
    kept.write_bytes(b"\xff")
    assert census(bank) == counted
