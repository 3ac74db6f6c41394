"""One definition of the same vector: what an exam ranks is what is delivered, to the last hit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank, Distinct
from nextvec.bank.distinct import ROUNDING
from nextvec.evaluation import Exam
from nextvec.index import ApproximateIndex, ExactIndex, allowed_rows
from nextvec.inference import Engine, PredictionRequest
from nextvec.kernels.scan_rows import FORMATS, RowFormat
from nextvec.models.baselines import ExponentialMean
from nextvec.vectors import unit_rows

DIM = 16
KS = (1, 2, 5, 10, 20, 100)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def items_bank(seed: int = 0, items: int = 30, documents: int = 12, length: int = 20) -> tuple[Bank, np.ndarray]:
    """Sessions over few items, each of which occurs many times; and the item of each row."""
    rng = np.random.default_rng(seed)
    catalogue = unit(rng.standard_normal((items, DIM)))
    chosen = rng.integers(0, items, documents * length)
    return Bank.from_numpy(catalogue[chosen], [length] * documents), chosen


def some_repeat() -> tuple[Bank, np.ndarray]:
    """Documents of which a tenth of all rows is one of three vectors: they are searched where they lie."""
    rng = np.random.default_rng(1)
    chosen = np.where(rng.random(240) < 0.1, rng.integers(0, 3, 240), np.arange(3, 243))
    return Bank.from_numpy(unit(rng.standard_normal((243, DIM)))[chosen], [20] * 12), chosen


BANKS = {"items that occur many times": items_bank, "a few rows that repeat": some_repeat}


@pytest.fixture(scope="module", params=BANKS)
def repeating(request: pytest.FixtureRequest) -> tuple[Bank, np.ndarray]:
    return BANKS[request.param]()


def test_what_is_delivered_is_what_the_exam_ranks_to_the_last_hit(repeating: tuple[Bank, np.ndarray]) -> None:
    bank, chosen = repeating
    engine = Engine(ExponentialMean(torch.zeros(DIM), 0.5), bank)
    exam = Exam.over(bank, np.arange(bank.num_documents), "all", pool=None)
    predicted, delivered = [], []
    for m in range(bank.num_documents):
        session = engine.session()
        for row in range(int(bank.offsets[m]), int(bank.offsets[m + 1])):
            if row in exam.rows:
                assert session.prediction is not None
                predicted.append(session.prediction)
                delivered.append(session.predict(max(KS)))
            session.push(bank.rows[row])
    hits = {k: exam.rank(torch.from_numpy(np.stack(predicted))).hits(k) for k in KS}
    assert len(delivered) == len(exam.rows)
    for n, (row, answer) in enumerate(zip(exam.rows.tolist(), delivered, strict=True)):
        said = set(chosen[bank.offsets[exam.clusters[n]] : row].tolist())
        got = [int(chosen[e.row]) for e in answer]
        assert len(got) == min(max(KS), len(set(chosen.tolist()) - said)), "as many as there are"
        assert len(set(got)) == len(got) and not said & set(got), "each once, and none that was read"
        for e in answer[:3]:
            assert (e.row, e.count) == (int(np.flatnonzero(chosen == chosen[e.row])[0]), int((chosen == chosen[e.row]).sum()))
        for k in KS:
            assert hits[k][n] == (chosen[row] in got[:k])


def test_a_row_that_repeats_its_document_is_not_scored(repeating: tuple[Bank, np.ndarray]) -> None:
    bank, chosen = repeating
    exam = Exam.over(bank, np.arange(bank.num_documents), "all", pool=None)
    wanted = [
        row
        for m in range(bank.num_documents)
        for row in range(int(bank.offsets[m]) + 1, int(bank.offsets[m + 1]))
        if chosen[row] not in chosen[bank.offsets[m] : row]
    ]
    assert exam.rows.tolist() == wanted


def test_engines_answer_distinct_vectors_in_batches_too(repeating: tuple[Bank, np.ndarray]) -> None:
    bank, chosen = repeating
    engine = Engine(ExponentialMean(torch.zeros(DIM), 0.5), bank)
    requests = [PredictionRequest(engine.session(), bank.rows[n : n + 1].astype(np.float32), 10) for n in range(5)]
    for answer in engine.answers(requests):
        assert not isinstance(answer, Exception)
        assert len({int(chosen[e.row]) for e in answer}) == 10


def test_one_text_of_two_batches_is_one_vector() -> None:
    """Two encodings of one text differ by 1e-6, which changes bits of float16; a neighbour at 3e-3 is another vector."""
    rng = np.random.default_rng(0)
    texts = unit(rng.standard_normal((20, 384)))
    again = unit(np.repeat(texts, 30, axis=0) + 1e-6 * unit(rng.standard_normal((600, 384))))
    other = unit(texts + 3e-3 * unit(rng.standard_normal((20, 384))))
    bank = Bank.from_numpy(np.concatenate([again, other]), [30] * 20 + [20])
    assert len({row.tobytes() for row in bank.rows[:30]}) > 1, "the case that matters"
    assert bank.distinct.classes.tolist() == [30 * (n // 30) for n in range(600)] + list(range(600, 620))
    assert bank.distinct.counts.tolist() == [30] * 20 + [1] * 20
    assert bank.distinct.rows(45).tolist() == list(range(30, 60))


@given(
    st.integers(0, 2**20), st.sampled_from([2, 8, 48]), st.sampled_from([np.float16, np.float32]), st.sampled_from([2e-4, 1e-3])
)
def test_vectors_are_joined_where_a_comparison_of_all_pairs_joins_them(seed: int, dim: int, dtype: type, spread: float) -> None:
    rng = np.random.default_rng(seed)
    rows = unit(
        np.repeat(unit(rng.standard_normal((12, dim))), 12, axis=0) + spread * rng.standard_normal((144, dim)) / dim**0.5
    )
    rows = rng.permutation(rows).astype(dtype)
    wide = rows.astype(np.float64)
    apart = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    if (np.abs(apart - ROUNDING) < 1e-6).any():
        return  # on the border, float32 may say either
    _, first, rounds = np.unique(rows.astype(np.float16), axis=0, return_index=True, return_inverse=True)
    alike = first[rounds.reshape(-1)]  # float32 rows that round alike are one vector from the start
    classes = np.arange(144)
    for row in range(144):
        names = [other for other in range(row) if classes[other] == other == alike[other] and apart[row, other] <= ROUNDING]
        classes[row] = classes[alike[row]] if alike[row] < row else min(names, default=row)
    assert Distinct.of(rows).classes.tolist() == classes.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_slow_series_is_not_one_vector(dtype: type) -> None:
    """Each row lies within ROUNDING of the next; rows far from each other are different vectors all the same."""
    angles = np.arange(4_000) * 0.9 * ROUNDING
    rows = np.zeros((4_000, 16))
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    rows = rows.astype(dtype)
    distinct = Distinct.of(rows)
    apart = np.linalg.norm(rows.astype(np.float64) - rows[distinct.classes].astype(np.float64), axis=1)
    assert apart.max() <= 2 * ROUNDING  # a rounding of its own, and one row that names it
    assert len(distinct) >= 4_000 * 0.9 / 4


@given(st.integers(0, 2**20), st.sampled_from([1e-6, 1e-4, 5e-4, 2e-3]))
def test_a_vector_from_elsewhere_is_that_of_the_nearest_row_within_rounding(seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((300, 48))).astype(np.float16)
    vectors = unit(rows[rng.integers(0, 300, 20)].astype(np.float32) + far * unit(rng.standard_normal((20, 48))))
    apart = np.linalg.norm(rows[None].astype(np.float64) - vectors[:, None], axis=2)
    clear = np.abs(apart.min(1) - ROUNDING) > 1e-6
    wanted = np.where(apart.min(1) <= ROUNDING, apart.argmin(1), -1)
    assert Distinct.of(rows).find(vectors)[clear].tolist() == wanted[clear].tolist()


def test_a_row_of_the_bank_finds_its_own_vector_whatever_batch_it_is_read_in(repeating: tuple[Bank, np.ndarray]) -> None:
    bank, _ = repeating
    distinct = bank.distinct
    assert (distinct.find(unit_rows(bank.rows, DIM)) == distinct.classes).all()
    for row in range(0, len(bank), 37):
        assert distinct.find(unit_rows(bank.rows[row : row + 1], DIM))[0] == distinct.classes[row]


@pytest.mark.parametrize("form", FORMATS)
def test_a_search_is_sorting_the_distinct_vectors(repeating: tuple[Bank, np.ndarray], form: RowFormat) -> None:
    bank, chosen = repeating
    index, queries = ExactIndex.build(bank, form), noise(2, 9, DIM)
    documents = [3, 5, 8]
    allowed = allowed_rows(bank, documents)
    barred = [np.random.default_rng(q).permutation(len(bank))[:40] for q in range(9)]
    bare, filtered = index.search(queries, 70), index.search(queries, 70, barred, allowed)
    for found, mask, out in ((bare, np.ones(len(bank), bool), [np.empty(0, int)] * 9), (filtered, allowed, barred)):
        for q in range(9):
            gone = set(chosen[out[q]].tolist())
            first = {int(item): int(row) for row, item in reversed(list(enumerate(chosen))) if mask[row] and item not in gone}
            scores = bank.rows.astype(np.float64) @ queries[q].astype(np.float64)
            lead = {item: int(np.flatnonzero(chosen == item)[0]) for item in first}
            wanted = [first[item] for item in sorted(first, key=lambda item: -scores[lead[item]])][:70]
            assert found.rows[q][: len(wanted)].tolist() == wanted
            assert (found.rows[q][len(wanted) :] == -1).all()


def test_a_search_reads_distinct_rows_where_most_repeat_and_copies_none_where_few_do() -> None:
    many, few = items_bank()[0], some_repeat()[0]
    assert ExactIndex.build(many).searched == 30 == len(many.distinct)
    index = ExactIndex.build(few)
    assert index.searched == len(few) > len(few.distinct)
    assert np.shares_memory(index._parts[0].rows, few.rows)


def test_a_row_that_an_index_holds_is_not_added_again(repeating: tuple[Bank, np.ndarray]) -> None:
    bank, _ = repeating
    index, size = ExactIndex.build(bank, "int8"), len(bank)
    new = noise(4, 3, DIM)
    vectors = np.concatenate([3 * bank.rows[41:42].astype(np.float32), new[:2], new[:1] * 2])
    assert index.add(vectors).tolist() == [bank.distinct.classes[41], size, size + 1, size]
    assert index.add(new).tolist() == [size, size + 1, size + 2]
    assert len(index) == size + 3
    found = index.search(unit(new), len(bank.distinct) + 3).rows
    assert all(sorted(line) == [*bank.distinct.firsts.tolist(), size, size + 1, size + 2] for line in found.tolist())
    only = index.search(unit(new), 5, allowed=np.zeros(size + 1, bool) | (np.arange(size + 1) == size))
    assert only.rows.tolist() == [[size, -1, -1, -1, -1]] * 3


def test_a_walk_finds_distinct_vectors() -> None:
    pytest.importorskip("faiss", reason='needs faiss: pip install "nextvec[ann]"')
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 4000, 12_000)
    bank = Bank.from_numpy(unit(rng.standard_normal((4000, DIM)))[chosen], [100] * 120)
    index, queries = ApproximateIndex.build(bank), noise(5, 20, DIM)
    found = index.search(queries, 10)
    assert found.decided < 20 * len(bank.distinct) / 4, "it walks"
    assert all(len({int(chosen[row]) for row in line}) == 10 for line in found.rows.tolist())
    allowed = allowed_rows(bank, range(60, 120))
    barred = [np.flatnonzero(chosen == chosen[line[0]])[-1:] for line in found.rows]
    filtered = index.search(queries, 10, barred, allowed)
    for q, line in enumerate(filtered.rows.tolist()):
        assert all(allowed[row] and not allowed[np.flatnonzero(chosen[:row] == chosen[row])].any() for row in line)
        assert chosen[barred[q][0]] not in chosen[line]
        assert len(set(chosen[line].tolist())) == 10
