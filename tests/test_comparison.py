"""Two runs on one exam: nothing is nothing, what is shown is shown, and different exams are no comparison."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import ExamError
from nextvec.evaluation.results import EvaluationResult
from nextvec.evaluation.runs import evaluate
from nextvec.experiments.comparison import Comparison, TimeToReach, compare, time_to_reach
from nextvec.ranks import Ranks
from nextvec.runs import Run
from nextvec.runs.records import Timing
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.test_training import SMALL, on_disk


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank and two trained runs that differ in seed and context, made once."""
    folder = tmp_path_factory.mktemp("comparison")
    bank = on_disk(walk_bank(documents=24), folder / "bank")
    for name, settings in {"a": SMALL, "b": SMALL.replaced(seed=1, context=5, lr=3e-2)}.items():
        list(train(begin(folder / name, "test", settings, bank), bank))
    return folder


@pytest.fixture
def runs(place: Path) -> tuple[Run, Run, Bank]:
    return Run.open(place / "a"), Run.open(place / "b"), Bank.open(place / "bank")


def test_a_run_is_not_better_than_itself(runs: tuple[Run, Run, Bank]) -> None:
    a, _, bank = runs
    found = compare(a, a, bank, pool=30)
    for k in (1, 5, 10):
        assert (found.lift(k).value, found.lift(k).low, found.lift(k).high) == (0, 0, 0)
        assert found.verdict(k) == "cannot be told apart"
    assert found.time.a_seconds == found.time.b_seconds


def test_the_figures_are_those_of_evaluate_and_the_lift_is_their_difference(runs: tuple[Run, Run, Bank]) -> None:
    a, b, bank = runs
    found, back = compare(a, b, bank, pool=30), compare(b, a, bank, pool=30)
    reports = [evaluate(run, bank, pool=30) for run in (a, b)]
    for side, report in zip(("a", "b"), reports, strict=True):
        assert found.to_json()["exam"]["id"] == report.exam
        assert found.to_json()[side]["hit@5"] == report.ranks.hit(5).to_json()
        assert found.to_json()[side]["context"] == report.context
    by_row = reports[0].ranks.hits(5) - reports[1].ranks.hits(5)
    assert found.lift().value == pytest.approx(by_row.mean(), abs=1e-12)
    assert back.lift().value == -found.lift().value
    assert {found.result_a.context, found.result_b.context} == {20, 5}


def test_one_context_may_be_given_to_both(runs: tuple[Run, Run, Bank]) -> None:
    a, b, bank = runs
    found = compare(a, b, bank, "valid", context=3, pool=30)
    assert (found.result_a.context, found.result_b.context, found.part) == (3, 3, "valid")


@pytest.mark.parametrize(("above", "verdict"), [(0, "better"), (20, "worse"), (7, "cannot be told apart")])
def test_the_verdict_is_what_the_interval_allows(runs: tuple[Run, Run, Bank], above: int, verdict: str) -> None:
    a, b, _ = runs
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(10), 20)
    other = Ranks(rng.integers(0, 15, 200), np.zeros(200, int), np.full(200, 30), clusters)
    own = replace(other, above=rng.integers(0, 15, 200) if verdict.startswith("cannot") else np.full(200, above))
    results = [EvaluationResult("x", 30, 5, ranks, np.arange(len(ranks))) for ranks in (own, other)]
    assert Comparison(a, b, "test", *results, TimeToReach(None, None, None)).verdict() == verdict


def test_other_banks_and_other_test_documents_are_no_comparison(runs: tuple[Run, Run, Bank], tmp_path: Path) -> None:
    a, _, bank = runs
    elsewhere = walk_bank(documents=24, seed=5)
    foreign = begin(tmp_path / "foreign", "test", SMALL, elsewhere)
    with pytest.raises(ExamError, match="foreign was trained on another bank"):
        compare(a, foreign, bank, pool=30)
    with pytest.raises(ExamError, match="a was trained on another bank"):
        compare(a, a, elsewhere, pool=30)
    fewer = begin(tmp_path / "fewer", "test", SMALL.replaced(valid=0.05, test=0.05), bank)
    known = set(fewer.origin.parts["train"]) & set(a.origin.parts["test"])
    assert known
    with pytest.raises(ExamError, match=f"fewer was trained on {len(known)} test documents of .*a;"):
        compare(a, fewer, bank, pool=30)


def test_the_same_examined_part_does_not_excuse_training_on_the_test(runs: tuple[Run, Run, Bank]) -> None:
    a, _, bank = runs
    parts = a.origin.parts
    leaky = replace(
        a, path=Path("leaky"), origin=replace(a.origin, parts={**parts, "train": parts["train"] + parts["test"][:1]})
    )
    for pair in ((a, leaky), (leaky, a)):
        with pytest.raises(ExamError, match="leaky was trained on 1 test documents"):
            compare(*pair, bank, "valid", pool=30)
    short = replace(a, path=Path("short"), origin=replace(a.origin, parts={**parts, "test": parts["test"][1:]}))
    with pytest.raises(ExamError, match="hold out different test documents"):
        compare(a, short, bank, pool=30)


def validated(path: Path, bank: Bank, hits: list[float], seconds: list[float], **settings: object) -> Run:
    """A run whose validations are given."""
    run = begin(path, "test", SMALL.replaced(**settings), bank)
    run.record([{"update": 4 * n, "valid": {"hit@5": h}, "best": h == max(hits)} for n, h in enumerate(hits)], None)
    run.record_timing(Timing(tuple((4 * n, s, s) for n, s in enumerate(seconds))))
    return run


def test_time_to_reach_is_read_off_the_validations(runs: tuple[Run, Run, Bank], tmp_path: Path) -> None:
    bank = runs[2]
    slow = validated(tmp_path / "slow", bank, [0.1, 0.2, 0.5, 0.4], [0.0, 20.0, 30.0, 40.0])
    fast = validated(tmp_path / "fast", bank, [0.1, 0.6, 0.7], [0.0, 5.0, 11.0])
    other = validated(tmp_path / "other", bank, [0.9], [1.0], pool=20)
    assert time_to_reach(fast, slow) == TimeToReach(0.5, 5.0, 30.0)
    assert time_to_reach(fast, slow).ratio == 6.0
    assert time_to_reach(slow, fast) == TimeToReach(0.7, None, 11.0)
    assert time_to_reach(slow, fast).ratio is None
    assert time_to_reach(other, slow) == TimeToReach(None, None, None)


def test_the_verb_prints_one_object_or_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(place / "a"), str(place / "b")]
    assert main(["compare", *names, "--pool", "30", "--split", "valid", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert (found["exam"]["part"], found["exam"]["pool"]) == ("valid", 30)
    assert found["verdict"] == found["lift"]["hit@5"]["verdict"]
    assert found["lift"]["hit@5"].keys() == {"value", "low", "high", "n", "verdict"}
    assert main(["compare", *names, "--pool", "all"]) == 0
    assert found["verdict"] in capsys.readouterr().out
    assert main(["compare", names[0], str(place / "none")]) == 2
    assert "is not a run" in capsys.readouterr().err
