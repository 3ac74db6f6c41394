"""Banks of items: each vector is stored once, rows name it, and all results equal those of a bank that stores every row."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nextvec.bank import Bank, BankWriter, Distinct, ItemWriter, VectorDocument, census
from nextvec.bank.item_writer import Items
from nextvec.bank.layout import Manifest
from nextvec.bank.moments import moments
from nextvec.bank.sequences import Sequences
from nextvec.batches import candidates
from nextvec.errors import DataError
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.runs import evaluate
from nextvec.index import ExactIndex, allowed_rows
from nextvec.lanes import by_chance, by_clusters
from nextvec.runs import TrainSettings
from nextvec.training import begin, train

DIM, ITEMS, SESSIONS = 16, 120, 40


def catalogue(count: int = ITEMS) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, DIM)).astype(np.float32)


def events(items: int = ITEMS) -> tuple[np.ndarray, list[int]]:
    """The item of each row, every item at least once, and the lengths of the sessions."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(8, 30, SESSIONS).tolist()
    ids = rng.integers(0, items, sum(lengths))
    ids[rng.permutation(len(ids))[:items]] = np.arange(items)
    return ids, lengths


def both(unread: int = 0) -> tuple[Bank, Bank]:
    """The same events as a bank of items, with some items that no event holds, and as a bank that stores every row."""
    vectors, (ids, lengths) = catalogue(ITEMS + unread), events()
    return Bank.from_items(vectors, ids, lengths), Bank.from_numpy(vectors[ids], lengths)


def written(folder: Path, unread: int = 0, texts: bool = False) -> Bank:
    vectors, (ids, lengths) = catalogue(ITEMS + unread), events()
    plan = Manifest(0, DIM, 0, "float16", "t", "t", "", texts, "none", "memory", times="uint32")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.arange(len(ids), dtype=np.uint32)
    with ItemWriter(folder, plan) as writer:
        for start in range(0, len(vectors), 50):
            part = range(start, min(start + 50, len(vectors)))
            names = [(f"i{n}", f"Item {n}") for n in part]
            writer.append(Items(names, vectors[list(part)], [f"über {n}" for n in part] if texts else None))
        sessions = [f"s{m}" for m in range(len(lengths))]
        return writer.finish(sessions, Sequences(offsets, ids.astype(np.int32), times))


def old_layout(folder: Path) -> Bank:
    vectors, (ids, lengths) = catalogue(), events()
    stops = np.cumsum(lengths)
    with BankWriter(folder, encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
        for m, (length, stop) in enumerate(zip(lengths, stops, strict=True)):
            writer.append(VectorDocument(f"s{m}", f"s{m}", vectors[ids[stop - length : stop]]))
        return writer.finish()


def test_rows_are_those_of_a_bank_that_stores_every_row() -> None:
    new, old = both(unread=5)
    assert (len(new), len(new.table), new.num_documents) == (len(old), ITEMS + 5, old.num_documents)
    for rows in (3, slice(4, 9), np.array([7, 2, 2]), slice(None)):
        np.testing.assert_array_equal(new.rows[rows], old.rows[rows])
    np.testing.assert_array_equal(new.document(11), old.document(11))
    np.testing.assert_array_equal(new.new_in_document, old.new_in_document)
    # Rows hold the same vector in one bank exactly where they do in the other.
    np.testing.assert_array_equal(new.first_rows[new.distinct.numbers[new.classes]], old.classes)


@pytest.mark.parametrize("pool", [20, 60, None])
def test_an_exam_of_items_equals_that_of_rows(pool: int | None) -> None:
    new, old = both()
    predicted = torch.from_numpy(np.random.default_rng(2).standard_normal((2_000, DIM)).astype(np.float32))
    ranks: list[tuple[list[int], ...]] = []
    for bank in (new, old):
        exam = Exam.over(bank, np.arange(10), "test", pool)
        found = exam.rank(predicted[: len(exam.rows)])
        ranks.append((exam.rows.tolist(), found.above.tolist(), found.tied.tolist(), found.candidates.tolist()))
        assert exam.copies_of_the_past() == 0
        assert exam.rank(exam.truths()).hits(1).min() == 1
    assert ranks[0] == ranks[1]


def test_items_that_no_event_holds_are_candidates() -> None:
    (new, old), (fewer, _) = both(unread=30), both()
    exam, plain = (Exam.over(bank, np.arange(10), "test", None) for bank in (new, fewer))
    assert (exam.candidates - plain.candidates).tolist() == [30] * len(exam.rows)
    assert set(range(ITEMS, ITEMS + 30)) <= set(exam.candidate_sets.columns.tolist())
    assert census(new).document_groups == census(old).document_groups
    index = ExactIndex.build(new)
    queries = new.table.vectors.astype(np.float32)
    assert index.search(queries, 1).rows[:, 0].tolist() == list(range(ITEMS + 30))
    # A filter by document admits the items that its rows hold, and no others.
    allowed = allowed_rows(new, [3])
    assert np.flatnonzero(allowed).tolist() == sorted(set(new.sequences.items(slice(*new.offsets[3:5].tolist())).tolist()))
    assert set(index.search(queries, 1, allowed=allowed).rows[:, 0].tolist()) == set(np.flatnonzero(allowed).tolist())


def test_a_bank_of_items_holds_each_vector_once_and_four_bytes_an_event(tmp_path: Path) -> None:
    bank, old = written(tmp_path / "new", unread=5), old_layout(tmp_path / "old")
    np.testing.assert_array_equal(np.asarray(bank.rows), np.asarray(old.rows))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "new").iterdir()}
    assert sizes["rows.bin"] == 2 * DIM * (ITEMS + 5)
    assert (sizes["ids.bin"], sizes["times.bin"]) == (4 * len(bank), 4 * len(bank))
    assert bank.table.names is not None and bank.table.names[4] == ("i4", "Item 4")
    assert (bank.ids, bank.title(4), bank.manifest.format) == (old.ids, "Item 4", 2)
    assert bank.sequences.times is not None and bank.sequences.times.tolist() == list(range(len(bank)))


def test_texts_belong_to_items(tmp_path: Path) -> None:
    bank = written(tmp_path / "bank", texts=True)
    row = 17
    item = int(bank.sequences.items(np.array([row]))[0])
    assert bank.text(row) == bank.table.text(item) == f"über {item}"
    assert bank.table.text(ITEMS - 1) == f"über {ITEMS - 1}"


def test_a_bank_of_rows_is_written_as_before(tmp_path: Path) -> None:
    """Its manifest has no field that an earlier version does not know, and its items are its rows."""
    bank = old_layout(tmp_path / "bank")
    assert bank.manifest.format == 1
    assert not {"items", "times"} & {
        line.split('"')[1] for line in (tmp_path / "bank/bank.json").read_text().splitlines()[1:-1]
    }
    assert np.shares_memory(np.asarray(bank.rows), bank.table.vectors)
    assert bank.classes is bank.distinct.classes


@pytest.mark.parametrize("name", ["rows.bin", "ids.bin", "items.jsonl", "times.bin", "offsets.bin", "documents.jsonl"])
def test_a_change_of_any_part_is_found(tmp_path: Path, name: str) -> None:
    written(tmp_path / "bank")
    path = tmp_path / "bank" / name
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="was changed after it was written"):
        Bank.open(tmp_path / "bank", "always")
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is damaged: no file"):
        Bank.open(tmp_path / "bank")


@pytest.mark.parametrize("damage", ["none", "bytes", "bank", "missing"])
def test_distinct_vectors_are_found_once_and_read_again(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = old_layout(tmp_path / "bank")
    kept = tmp_path / "bank" / "classes.bin"
    assert kept.stat().st_size == 32 + 4 * len(bank)
    whole, found = kept.read_bytes(), Distinct.of(bank.table.vectors)
    if damage == "bytes":
        kept.write_bytes(whole[:-1] + b"\x01")
    elif damage == "bank":
        with BankWriter(tmp_path / "other", encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
            writer.append(VectorDocument("a", "a", catalogue(len(bank))))
            writer.finish()
        assert (tmp_path / "other" / "classes.bin").stat().st_size == 32  # no row repeats another
        kept.write_bytes((tmp_path / "other" / "classes.bin").read_bytes())
    elif damage == "missing":
        kept.unlink()
    calls = list[int]()
    of = Distinct.of
    monkeypatch.setattr(Distinct, "of", staticmethod(lambda rows: calls.append(1) or of(rows)))
    again = Bank.open(tmp_path / "bank").distinct
    assert len(calls) == (damage != "none")
    assert kept.read_bytes() == whole
    np.testing.assert_array_equal(again.firsts, found.firsts)
    np.testing.assert_array_equal(again.numbers, found.numbers)
    vectors = bank.table.vectors[5:9].astype(np.float32)
    np.testing.assert_array_equal(again.find(vectors), found.find(vectors))


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 1 has item 5; there are 5 items"):
        Bank.from_items(catalogue(5), [0, 5], [2])
    with pytest.raises(DataError, match="lengths add up to 3"):
        Bank.from_items(catalogue(5), [0, 1], [3])
    with pytest.raises(DataError, match="1 different ids for 2 documents"):
        Bank.from_items(catalogue(5), [0, 1], [1, 1], documents=["a", "a"])


def test_the_candidates_of_an_update_equal_those_of_rows() -> None:
    """The same vectors, negatives and counts, in another order of the columns."""
    scored, drawn = np.array([12, 13, 14, 90, 91]), np.arange(200, 260)
    found: list[tuple[np.ndarray, ...]] = []
    for bank in both():
        copies = np.bincount(bank.classes[np.arange(300)], minlength=len(bank.table))
        made = candidates(bank, bank.classes, copies, scored, drawn)
        order = np.lexsort(made.vectors.numpy().T)
        found.append((made.vectors.numpy()[order], made.forbidden.numpy()[:, order], made.log_q.numpy()[order]))
        np.testing.assert_array_equal(made.vectors[made.truth].numpy(), bank.rows[scored].astype(np.float32))
    for new, old in zip(*found, strict=True):
        np.testing.assert_array_equal(new, old)


def test_lanes_and_moments_of_items_equal_those_of_rows() -> None:
    new, old = both(unread=5)
    for made in (lambda bank: by_clusters(bank, 4), lambda bank: by_chance(bank, 3)):
        lanes, theirs = made(new), made(old)
        np.testing.assert_array_equal(lanes.lane, theirs.lane)
        np.testing.assert_array_equal(lanes.confidence, theirs.confidence)
    one, two = moments(new), moments(old)
    np.testing.assert_array_equal(one.covariance, two.covariance)
    assert one.rows == two.rows == len(old)


def test_a_training_on_items_gives_the_weights_of_one_on_rows(tmp_path: Path) -> None:
    """With items in the order of their first events, even the order of all sums is the same."""
    vectors, (ids, lengths) = catalogue(), events()
    _, first = np.unique(ids, return_index=True)
    number = np.argsort(np.argsort(first))
    banks = Bank.from_items(vectors[np.argsort(first)], number[ids], lengths), Bank.from_numpy(vectors[ids], lengths)
    settings = TrainSettings.of(
        model="gru", context=10, batch=3, updates=6, evaluate_every=3, hidden=8, pool=20, queue=20, hard=2, hard_low=-1.0
    )
    weights: list[bytes] = []
    ranks: list[dict[str, list[int]]] = []
    for name, bank in zip(("items", "rows"), banks, strict=True):
        run = begin(tmp_path / name, "test", settings, bank)
        list(train(run, bank))
        weights.append((run.path / "best.safetensors").read_bytes())
        report = evaluate(run, bank, pool=20)
        ranks.append({"": report.ranks.above.tolist(), **{n: r.above.tolist() for n, r in report.baselines.items()}})
    assert weights[0] == weights[1]
    assert ranks[0] == ranks[1]
