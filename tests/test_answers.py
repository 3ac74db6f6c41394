"""The answers that a calibration is fitted to and judged on are those that an engine gives, with the same probabilities."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nextvec.bank import Bank
from nextvec.confidence import FIRST, Calibration, RankDistribution
from nextvec.errors import RunError
from nextvec.evaluation import Exam
from nextvec.evaluation.answers import Answers, answers
from nextvec.evaluation.calibration import KEPT, UNCALIBRATED, calibrate
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.runs import FITTED_ON_VALID, evaluate
from nextvec.inference import Engine, joint_probability
from nextvec.inference.batch import predict_file
from nextvec.models import GRU, Recurrent
from nextvec.runs import Run, load_model
from nextvec.runs.run import CALIBRATION
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.settings import fitting
from tests.spaces import pooled_in_space
from tests.test_cli import write_bank
from tests.test_distinct import DIM, items_bank

CALIBRATED = Calibration(level=1.7, growth=0.1)


MODELS = {"one query": lambda: GRU(torch.zeros(DIM), 0.5).eval(), "several queries in a space": lambda: pooled_in_space(DIM)}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Recurrent[Any]:
    return MODELS[request.param]()


@pytest.fixture(params=["all distinct", "repeated rows"])
def bank(request: pytest.FixtureRequest) -> Bank:
    return walk_bank(dim=DIM) if request.param == "all distinct" else items_bank()[0]


def answered(bank: Bank, model: Recurrent[Any]) -> tuple[Exam, Answers]:
    exam = Exam.over(bank, np.arange(4), "test", None)
    return exam, answers(exam, model, predict_rows(model, bank, exam.rows, None), None)


def test_the_places_are_the_ranks_of_the_exam_among_all_candidates(bank: Bank, model: Recurrent[Any]) -> None:
    exam, found = answered(bank, model)
    ranks = exam.rank(predict_rows(model, bank, exam.rows, None), model)
    assert found.scores.candidates.tolist() == ranks.candidates.tolist()
    assert found.scores.read.tolist() == (exam.rows - bank.offsets[exam.clusters]).tolist()
    for k in (1, 5, FIRST):
        assert (found.places < k).tolist() == (ranks.hits(k) > 0.5).tolist()


def test_an_engine_gives_the_probabilities_that_a_report_judges(bank: Bank, model: Recurrent[Any]) -> None:
    exam, found = answered(bank, model)
    engine = Engine(model, bank, calibration=CALIBRATED)
    for r in range(0, len(exam.rows), 7):
        session = engine.session()
        row, first = int(exam.rows[r]), int(bank.offsets[exam.clusters[r]])
        session.push_many(bank.rows[first:row].astype(np.float32))
        for k in (1, 5, 12):
            expected = session.predict(k)
            joint = joint_probability(expected)
            judged = found.reliability(CALIBRATED, k) if k <= FIRST else None
            assert joint is not None
            if judged is not None:
                assert joint == pytest.approx(judged.probabilities[r], abs=2e-4)
                assert judged.found[r] == any(e.row == bank.distinct.classes[row] for e in expected)
            each = [e.probability for e in expected]
            assert sum(p for p in each if p is not None) == pytest.approx(joint)
            assert each == sorted(each, key=lambda p: -(p or 0))


def test_a_probability_does_not_depend_on_what_else_is_asked(model: Recurrent[Any]) -> None:
    bank = walk_bank(dim=DIM)
    engine = Engine(model, bank, calibration=CALIBRATED)
    sessions = [engine.session() for _ in range(3)]
    for n, session in enumerate(sessions):
        session.push_many(bank.document(n)[: 3 + n].astype(np.float32))
    together = engine.predict(sessions, 20)
    for session, answer in zip(sessions, together, strict=True):
        alone = session.predict(3)
        assert [e.row for e in alone] == [e.row for e in answer[:3]]
        assert [e.probability for e in alone] == pytest.approx([e.probability for e in answer[:3]], abs=1e-9)


def test_a_search_of_some_documents_has_their_vectors_as_candidates(bank: Bank, model: Recurrent[Any]) -> None:
    engine = Engine(model, bank, calibration=CALIBRATED)
    session = engine.session()
    session.push_many(bank.document(0)[:5].astype(np.float32))
    inside = {tuple(row) for m in (0, 1) for row in bank.document(m).tolist()}
    read = {tuple(row) for row in bank.document(0)[:5].tolist()}
    everything = session.predict(len(bank), documents=[0, 1])
    assert len(everything) == len(inside - read)
    assert joint_probability(everything) == pytest.approx(1, abs=0.01)
    among = session.predict(5, documents=[0, 1])
    of_all = {e.row: e.probability for e in session.predict(len(bank))}
    assert all(e.probability is not None for e in among)
    assert sum(e.probability or 0 for e in among) > sum(of_all[e.row] or 0 for e in among if e.row in of_all)


def test_answers_without_a_calibration_have_no_probability(model: Recurrent[Any]) -> None:
    bank = walk_bank(dim=DIM)
    session = Engine(model, bank).session()
    session.push(bank.rows[0].astype(np.float32))
    expected = session.predict(3)
    assert [e.probability for e in expected] == [None] * 3
    assert joint_probability(expected) is None
    assert joint_probability([]) is None


def test_rows_that_were_added_to_the_index_are_candidates(model: Recurrent[Any]) -> None:
    bank = walk_bank(dim=DIM)
    engine = Engine(model, bank, calibration=CALIBRATED)
    session = engine.session()
    session.push_many(bank.document(0)[:9].astype(np.float32))
    rng = np.random.default_rng(0)
    engine.index.add(rng.standard_normal((40, DIM)).astype(np.float32))
    everything = session.predict(len(bank) + 40)
    assert len(everything) == len(bank.distinct) + 40 - 9
    assert joint_probability(everything) == pytest.approx(1, abs=0.01)
    assert sum(e.row >= len(bank) and e.probability is not None for e in everything) == 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Bank]:
    bank = walk_bank(documents=40)
    sizes = {"context": 20, "batch": 4, "updates": 4, "evaluate_every": 2, "pool": 40, "pooled": 4, "working": 8}
    settings = fitting("pooled", space="fitted", folds=2, **sizes)
    run = begin(tmp_path_factory.mktemp("run") / "run", "test", settings, bank)
    for _ in train(run, bank):
        pass
    return run, bank


def test_a_training_ends_with_a_calibration_of_the_valid_documents(run: tuple[Run, Bank]) -> None:
    made, bank = run
    calibration, parts = made.calibration(), made.split(bank)
    assert calibration is not None and calibration.documents == len(parts.valid)
    assert Run.open(made.path).calibration() == calibration == calibrate(load_model(made), bank, parts)
    engine = Engine.open(made, bank)
    assert engine.confidence is not None and engine.confidence.calibration == calibration


def test_a_calibration_holds_for_its_own_candidates_and_space_alone(run: tuple[Run, Bank]) -> None:
    made, bank = run
    assert Engine.open(made, walk_bank(seed=1)).confidence is None
    assert Engine.open(made, bank, refit=True).confidence is None


def test_the_report_judges_the_probabilities_of_the_test_documents(run: tuple[Run, Bank]) -> None:
    made, bank = run
    report = evaluate(made, bank)
    confidence = report.to_json()["confidence"]
    assert [answer["k"] for answer in confidence["answers"]] == [1, 5, 10]
    assert confidence["calibration"]["level"] == getattr(made.calibration(), "level", None)
    for answer in confidence["answers"]:
        assert sum(each["found"]["n"] for each in answer["bins"]) == len(report.ranks)
        assert 0 <= answer["calibration_error"]["low"] <= answer["calibration_error"]["value"] <= 1
        shares = [row["found"] for row in answer["prefetch"]]
        assert shares == sorted(shares, reverse=True) and shares[0] == pytest.approx(answer["found"]["value"])
    whole = evaluate(made, bank, pool=None)
    assert whole.to_json()["confidence"] == confidence, "the candidates of an answer do not depend on the pool of the exam"
    for k, reliability in zip((1, 5, 10), whole.reliability, strict=True):
        assert reliability.found.mean() == pytest.approx(whole.ranks.hits(k).mean(), abs=1e-9)
    valid = evaluate(made, bank, "valid").to_json()
    assert valid["confidence"] is None and FITTED_ON_VALID in valid["notes"]


def test_a_run_without_a_calibration_says_so_and_a_damaged_one_is_refused(run: tuple[Run, Bank]) -> None:
    made, bank = run
    file = made.path / CALIBRATION
    content = file.read_text()
    try:
        file.unlink()
        report = evaluate(made, bank).to_json()
        assert report["confidence"] is None and f"no probabilities: {UNCALIBRATED}" in report["notes"]
        assert Engine.open(made, bank).confidence is None
        for damaged in ('{"level": "high", "growth": 0}', '{"growth": 0}', '{"slope": 1}', "[]", "{"):
            file.write_text(damaged)
            with pytest.raises(RunError, match=r"calibration\.json is damaged"):
                made.calibration()
    finally:
        file.write_text(content)


def test_a_bank_keeps_the_calibration_of_the_weights_of_the_package(tmp_path: Path) -> None:
    bank = Bank.open(write_bank(tmp_path / "some.bank", walk_bank(documents=40)))
    kept = tmp_path / "some.bank" / KEPT
    engine = Engine.open(bank)
    assert engine.confidence is not None and kept.is_file()
    found, content = engine.confidence.calibration, kept.read_text()
    report = evaluate(bank)
    assert report.calibration == found, "an exam judges the probabilities that an engine gives"
    other = json.loads(content)
    other["calibration"]["level"] += 1
    kept.write_text(json.dumps(other))
    again = Engine.open(bank).confidence
    assert again is not None and again.calibration.level == found.level + 1, "what is kept is read"
    for damaged in (
        "{",
        "[]",
        "{}",
        json.dumps({**other, "bank": "another"}),
        json.dumps({**other, "calibration": {"growth": 1}}),
    ):
        kept.write_text(damaged)
        again = Engine.open(bank).confidence
        assert again is not None and again.calibration == found
        assert kept.read_text() == content


def test_a_bank_that_cannot_be_split_has_no_probabilities() -> None:
    bank = walk_bank(documents=2)
    session = Engine.open(bank).session()
    session.push(bank.rows[0].astype(np.float32))
    assert [e.probability for e in session.predict(3)] == [None] * 3


def test_predictions_of_a_file_have_the_probabilities_of_sessions(run: tuple[Run, Bank], tmp_path: Path) -> None:
    made, bank = run
    engine = Engine.open(made, bank, weights="float32")
    source = tmp_path / "some.bank"
    write_bank(source, bank)
    predict_file(engine, source, tmp_path / "out.parquet", k=3)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    session, places = engine.session(), iter(table)
    for vector in bank.document(0)[:12].astype(np.float32):
        session.push(vector)
        line = next(places)
        assert line["probability"] == pytest.approx([e.probability for e in session.predict(3)], abs=1e-4)


def test_the_distribution_of_a_report_is_that_of_the_calibration(run: tuple[Run, Bank]) -> None:
    made, bank = run
    calibration = made.calibration()
    assert calibration is not None
    report = evaluate(made, bank)
    exam = Exam.over(bank, made.split(bank).test, "test")
    model = load_model(made)
    found = answers(exam, model, predict_rows(model, bank, exam.rows, 20), 20)
    assert found.scores.read.max() == 20
    for reliability in report.reliability:
        wanted = RankDistribution(found.scores, calibration).within(reliability.k)
        assert reliability.probabilities == pytest.approx(wanted, abs=1e-9)
