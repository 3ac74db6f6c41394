"""Models that map candidates and ask with several queries: what they rank in an exam is what indexes and engines deliver."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap, index_of
from nextvec.errors import DataError
from nextvec.evaluation import Exam
from nextvec.index import ApproximateIndex, ExactIndex, open_index
from nextvec.inference import Engine, snapshot
from nextvec.kernels.scan_rows import FORMATS, RowFormat
from nextvec.kernels.weights import FORMATS as WEIGHTS
from nextvec.kernels.weights import WeightFormat
from nextvec.models import GRU, Recurrent
from nextvec.models.packed import pack
from nextvec.models.space import InSpace
from tests.conftest import walk_bank
from tests.spaces import a_space, pooled_in_space
from tests.test_cli import write_bank
from tests.test_distinct import DIM, KS, items_bank, some_repeat, unit


def gru_in_space() -> Recurrent[Any]:
    torch.manual_seed(0)
    return InSpace(a_space(DIM), GRU(torch.zeros(DIM), 0.5, hidden=32)).eval()


MODELS: dict[str, Any] = {
    "several queries in a space": lambda: pooled_in_space(DIM),
    "one query in a space": lambda: pooled_in_space(DIM, queries=0),
    "several queries": lambda: pooled_in_space(DIM).model,
    "a GRU in a space": gru_in_space,
}
BANKS = {"items that occur many times": items_bank, "a few rows that repeat": some_repeat}


def mapped(model: Recurrent[Any], rows: np.ndarray) -> np.ndarray:
    """The rows in the model's space, in double."""
    if not isinstance(model, InSpace):
        return rows.astype(np.float64)
    moved = (rows.astype(np.float64) - model.space.mean.double().numpy()) @ model.space.matrix.double().numpy()
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def brute_force(model: Recurrent[Any], output: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The scores of rows, in double, from the definition."""
    width, count = DIM, model.num_queries
    candidates = mapped(model, rows)
    if count == 1:
        return candidates @ output.astype(np.float64)
    products = output[: count * width].reshape(count, width).astype(np.float64) @ candidates.T
    sharpness = float(model.sharpness.detach())
    weights = output[count * width :].astype(np.float64)
    return np.logaddexp.reduce(sharpness * products + weights[:, None], axis=0) / sharpness


@pytest.mark.parametrize("bank_name", BANKS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_delivered_is_what_the_exam_ranks_to_the_last_hit(name: str, bank_name: str) -> None:
    model, (bank, chosen) = MODELS[name](), BANKS[bank_name]()
    engine = Engine(model, bank)
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
    hits = {k: exam.rank(torch.from_numpy(np.stack(predicted)), model).hits(k) for k in KS}
    for n, (row, answer) in enumerate(zip(exam.rows.tolist(), delivered, strict=True)):
        got = [int(chosen[e.row]) for e in answer]
        for k in KS:
            assert hits[k][n] == (chosen[row] in got[:k])
        scores = brute_force(model, predicted[n], bank.rows[[e.row for e in answer]])
        np.testing.assert_allclose([e.score for e in answer], scores, atol=2e-6)
        assert (np.diff(scores) < 1e-6).all()


@pytest.mark.parametrize("name", MODELS)
def test_step_is_forward_and_one_session_answers_as_in_a_batch(name: str) -> None:
    model, (bank, _) = MODELS[name](), some_repeat()
    engine, rows = Engine(model, bank), unit(bank.rows[:33].astype(np.float32))
    with torch.inference_mode():
        expected = model(torch.from_numpy(rows)[None])[0].numpy()
    assert expected.shape == (33, model.output_width)
    one, many = engine.session(), engine.session()
    for t, row in enumerate(rows):
        np.testing.assert_allclose(one.push(row), expected[t], atol=2e-5)
    np.testing.assert_allclose(many.push_many(rows), expected[-1], atol=2e-5)
    others = [engine.session() for _ in range(4)]
    engine.step(others, bank.rows[40:44].astype(np.float32))
    together = engine.predict([*others, one], 7, documents=[0, 2, 5])
    for session, answer in zip([*others, one], together, strict=True):
        assert session.predict(7, documents=[0, 2, 5]) == answer


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_model_maps_rows_as_the_plain_one(name: str, weights: WeightFormat) -> None:
    model, (bank, _) = MODELS[name](), some_repeat()
    packed, rows = pack(model, weights), bank.rows[:20].astype(np.float32)
    assert packed.output_width == model.output_width
    assert (packed.candidates(torch.from_numpy(rows)) == model.candidates(torch.from_numpy(rows))).all()
    np.testing.assert_allclose(mapped(model, rows), packed.candidates(torch.from_numpy(rows)).numpy(), atol=1e-5)
    maps = [CandidateMap.of(each) for each in (model, packed)]
    assert [each and each.digest for each in maps] == [maps[0] and maps[0].digest] * 2
    with torch.inference_mode():
        plain, other = (each(torch.from_numpy(rows)[None])[0] for each in (model, packed))
    tolerance = 1e-5 if weights == "float32" else 0.05
    if "GRU" not in name:
        tolerance = 1e-5  # its layers are too small to be packed
    assert (plain - other).abs().max() < tolerance


def test_the_digest_of_an_engine_covers_the_space_and_models_of_one_space_share_an_index() -> None:
    bank, _ = some_repeat()
    first, other = pooled_in_space(DIM), pooled_in_space(DIM)
    with torch.no_grad():
        other.model.weights.add_(0.1)  # type: ignore[union-attr]
    elsewhere = InSpace(a_space(DIM, seed=1), first.model).eval()
    index = index_of(bank, CandidateMap.of(first))
    assert index.form == "int8"
    engines = [Engine(first, bank, index), Engine(other, bank, index), Engine(elsewhere, bank)]
    assert len({engine.digest for engine in engines}) == 3
    for model, held in ((elsewhere, index), (first.model, index), (first, ExactIndex.build(bank))):
        with pytest.raises(DataError, match="build one with nextvec index BANK OUT") as refused:
            Engine(model, bank, held)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_snapshot_goes_on_in_another_process(name: str, tmp_path: Path) -> None:
    bank, _ = some_repeat()
    session = Engine(pack(MODELS[name](), "int8"), bank).session()
    session.push_many(bank.rows[:20])
    (tmp_path / "session").write_bytes(session.snapshot())
    code = """
import sys, numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, ".")
from tests.test_mapped_candidates import MODELS, Engine, pack, some_repeat
bank, _ = some_repeat()
session = Engine(pack(MODELS[sys.argv[1]](), "int8"), bank).restore(open(sys.argv[2], "rb").read())
first = session.predict(4)
session.push(bank.rows[30])
print([[(e.row, e.score) for e in found] for found in (first, session.predict(4))])
"""
    command = [sys.executable, "-c", code, name, str(tmp_path / "session")]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    here = [[(e.row, e.score) for e in session.predict(4)]]
    session.push(bank.rows[30])
    here.append([(e.row, e.score) for e in session.predict(4)])
    assert done.stdout.strip() == str(here)


def test_a_prediction_of_another_width_is_refused() -> None:
    bank, _ = some_repeat()
    engine = Engine(pooled_in_space(DIM), bank)
    session = engine.session()
    session.push_many(bank.rows[:5])
    facts, tensors = snapshot._opened(session.snapshot())
    width = 4 * (DIM + 1)
    assert tensors["prediction"].shape == (width,)
    for wrong in (tensors["prediction"][:DIM], tensors["prediction"][:-1], tensors["prediction"] * torch.nan):
        with pytest.raises(DataError, match=rf"its prediction is no finite float32 vector of width {width}"):
            engine.restore(snapshot._packed({**tensors, "prediction": wrong.clone()}, facts))


@pytest.mark.parametrize("bank_name", BANKS)
@pytest.mark.parametrize("form", FORMATS)
def test_an_index_with_a_map_searches_the_mapped_rows(form: RowFormat, bank_name: str) -> None:
    model, (bank, _) = pooled_in_space(DIM), BANKS[bank_name]()
    mapping = CandidateMap.of(model)
    done: list[tuple[str, int, int]] = []
    index = ExactIndex.build(bank, form, progress=lambda *at: done.append(at), mapping=mapping)
    assert done[0] == ("mapping rows", len(bank.distinct), len(bank.distinct))
    queries = unit(np.random.default_rng(3).standard_normal((9, DIM)))
    found, firsts = index.search(queries, len(bank.distinct) + 1), bank.distinct.firsts
    products = queries.astype(np.float64) @ mapped(model, bank.rows[firsts]).T
    assert found.rows[:, :-1].tolist() == firsts[np.argsort(-products, axis=1)].tolist()
    np.testing.assert_allclose(found.scores[:, :-1], -np.sort(-products, axis=1), atol=1e-6)
    assert (found.rows[:, -1] == -1).all()
    assert (index.scores(firsts, queries[0]) == dict_of(found.rows[0], found.scores[0], firsts)).all()


def dict_of(rows: np.ndarray, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    held = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    return np.array([held[row] for row in wanted.tolist()], np.float32)


@pytest.mark.parametrize("kind", [ExactIndex, ApproximateIndex])
@pytest.mark.parametrize("form", [None, "int8", "float16"])
def test_a_saved_index_with_a_map(kind: Any, form: RowFormat | None, tmp_path: Path) -> None:
    if kind is ApproximateIndex:
        pytest.importorskip("faiss", reason='needs faiss: pip install "nextvec[ann]"')
        form = None
    bank = Bank.open(write_bank(tmp_path / "bank", walk_bank(dim=DIM)))
    mapping, other = CandidateMap(pooled_in_space(DIM)), CandidateMap(pooled_in_space(DIM, seed=1))
    index = kind.build(bank, form, mapping=mapping)
    rng = np.random.default_rng(0)
    new, queries = rng.standard_normal((3, DIM)), unit(rng.standard_normal((5, DIM)))
    assert index.add(np.concatenate([new, bank.rows[7:8].astype(np.float32)])).tolist() == [*range(len(bank), len(bank) + 3), 7]
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index", bank, mapping=mapping)
    assert (opened.kind, opened.form, opened.map_digest, len(opened)) == (index.kind, index.form, mapping.digest, len(bank) + 3)
    before, after = index.search(queries, 20), opened.search(queries, 20)
    assert (before.rows == after.rows).all() and (before.scores == after.scores).all()
    assert opened.add(new).tolist() == list(range(len(bank), len(bank) + 3)), "added rows are known by their own vectors"
    asked = mapping(unit(new))
    assert opened.search(asked, 1).rows[:, 0].tolist() == list(range(len(bank), len(bank) + 3))
    for given in (None, other):
        with pytest.raises(DataError, match="build one with nextvec index BANK OUT") as refused:
            open_index(tmp_path / "index", bank, mapping=given)
        assert "\n" not in str(refused.value)
    kind.build(bank, form).save(tmp_path / "plain")
    with pytest.raises(DataError, match="an index of rows as they are"):
        open_index(tmp_path / "plain", bank, mapping=mapping)


@pytest.mark.parametrize("name", MODELS)
def test_nearest_is_nearest_after_the_map(name: str) -> None:
    model, (bank, _) = MODELS[name](), some_repeat()
    engine = Engine(model, bank)
    vectors = np.random.default_rng(1).standard_normal((9, DIM)).astype(np.float32)
    products = mapped(model, unit(vectors)) @ mapped(model, bank.rows).T
    assert engine.nearest(vectors).tolist() == bank.distinct.classes[products.argmax(1)].tolist()
    assert engine.nearest(bank.rows[5:7]).tolist() == bank.distinct.classes[5:7].tolist()


def test_a_broken_map_is_one_line() -> None:
    model = pooled_in_space(DIM)
    model.space.matrix.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="the model is broken"):
        Engine(model, some_repeat()[0])
