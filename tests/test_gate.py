"""Gates: an interval must clear, what is unknown is named, and the record is whole."""

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.experiments.comparison import compare
from nextvec.experiments.decision import decide
from nextvec.experiments.gate import Gate, Gates, read_gates, shipped
from nextvec.experiments.metrics import METRICS, Terms
from nextvec.inference import Engine
from nextvec.inference.latency import PER_ROUND, answers, gates, read_seconds
from nextvec.models import Recurrent
from nextvec.runs import Run
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.test_training import SMALL, on_disk

TERMS = Terms(pool=30)
EXAM = "[exam]\npool = 30\n"
WHOLE = """
[exam]
part = "valid"
context = 7
pool = "all"
rows = 500

[[gate]]
name = "enough hits"
metric = "hit@10"
at_most = 0.9
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    bank = on_disk(walk_bank(documents=24), folder / "bank")
    for name, settings in {"run": SMALL, "other": SMALL.replaced(seed=1)}.items():
        list(train(begin(folder / name, "test", settings, bank), bank))
    return folder


@pytest.fixture
def run(place: Path) -> Run:
    return Run.open(place / "run")


@pytest.fixture
def bank(place: Path) -> Bank:
    return Bank.open(place / "bank")


def passes(run: Run, bank: Bank, gate: Gate) -> bool:
    return decide(run, bank, Gates("test", TERMS, (gate,))).passed


@pytest.mark.parametrize("metric", ["hit@1", "hit@5", "hit@10", "mrr", "lift:hit@5"])
def test_a_figure_passes_only_where_its_whole_interval_does(run: Run, bank: Bank, metric: str) -> None:
    report = evaluate(run, bank, pool=30)
    figure = report.lift() if metric.startswith("lift") else report.ranks.mrr() if metric == "mrr" else None
    figure = figure or report.ranks.hit(int(metric[4:]))
    assert figure.low < figure.value < figure.high
    assert passes(run, bank, Gate("g", metric, "at_least", figure.low - 1e-9))
    above = figure.low + 1e-9
    assert figure.value > above, "the value itself clears"
    assert not passes(run, bank, Gate("g", metric, "at_least", above))
    assert passes(run, bank, Gate("g", metric, "at_most", figure.high + 1e-9))
    assert not passes(run, bank, Gate("g", metric, "at_most", figure.high - 1e-9))


def test_a_gain_is_that_of_compare(run: Run, bank: Bank, place: Path) -> None:
    other = place / "other"
    lift = compare(run, Run.open(other), bank, pool=30).lift(10)
    assert passes(run, bank, Gate("g", "gain:hit@10", "at_least", lift.low, str(other)))
    assert not passes(run, bank, Gate("g", "gain:hit@10", "at_least", lift.low + 1e-9, str(other)))
    assert not passes(run, bank, Gate("g", "gain:hit@10", "at_least", 1e-9, str(run.path))), "over itself there is none"


def test_figures_without_an_interval_count_as_they_are(run: Run, bank: Bank) -> None:
    exact = {"updates": 12.0, "alarms": float(len(run.alarms())), "best_hit5": run.best_hit5 or 0.0}
    for metric, value in exact.items():
        assert passes(run, bank, Gate("g", metric, "at_least", value))
        assert passes(run, bank, Gate("g", metric, "at_most", value))
        assert not passes(run, bank, Gate("g", metric, "at_least", value + 1e-9))


def test_every_metric_can_be_measured(run: Run, bank: Bank, place: Path) -> None:
    gates = tuple(Gate(name, name, "at_most", 1.0, str(place / "other")) for name in METRICS)
    for outcome in decide(run, bank, Gates("all", TERMS, gates)).outcomes:
        value = outcome.to_json()["measured"]["value"]
        assert METRICS[outcome.gate.metric].least <= value <= METRICS[outcome.gate.metric].most


def test_a_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(WHOLE)
    assert read_gates(tmp_path / "mine.toml") == Gates(
        "mine", Terms("valid", 7, None, 500), (Gate("enough hits", "hit@10", "at_most", 0.9),)
    )


def test_the_shipped_gates_are_those_that_were_published() -> None:
    seed = read_gates("seed")
    assert [(g.metric, g.bound, g.threshold) for g in seed.gates] == [
        ("hit@5", "at_least", 0.68),
        ("hit@10", "at_least", 0.76),
        ("alarms", "at_most", 0),
        ("step_p95_ms", "at_most", 5),
    ]
    hard = read_gates("hard_negatives", over="runs/plain")
    assert [(g.metric, g.bound, g.threshold, g.over) for g in hard.gates] == [
        ("gain:hit@5", "at_least", 0.005, "runs/plain"),
        ("gain:hit@10", "at_least", 0.015, "runs/plain"),
    ]
    assert {read_gates(name).terms.pool for name in shipped()} == {1000}


def test_the_flag_fills_in_only_what_is_missing(tmp_path: Path) -> None:
    gate = '[[gate]]\nmetric = "gain:hit@5"\nat_least = 0\n'
    (tmp_path / "g.toml").write_text(gate + 'over = "named"\n' + gate)
    assert [g.over for g in read_gates(tmp_path / "g.toml", over="flag").gates] == ["named", "flag"]


GATE = '[[gate]]\nmetric = "hit@5"\nat_least = 0.5\n'
BAD = {
    "unknown metric": (GATE.replace("hit@5", "hit@55"), "did you mean 'hit@5'?"),
    "nothing like it": (GATE.replace("hit@5", "zzz"), "known: hit@1"),
    "unknown key": (GATE.replace("at_least", "at_leest"), "did you mean 'at_least'?"),
    "unknown key of the exam": ("[exam]\npol = 3\n" + GATE, "did you mean 'pool'?"),
    "unknown table": ("[exm]\n" + GATE, "did you mean 'exam'?"),
    "unknown part": ('[exam]\npart = "tset"\n' + GATE, "did you mean 'test'?"),
    "pool in words": ('[exam]\npool = "some"\n' + GATE, "whole number of at least 2 or 'all'"),
    "context zero": ("[exam]\ncontext = 0\n" + GATE, "at least 1 or 'own' or 'all'"),
    "rows true": ("[exam]\nrows = true\n" + GATE, "whole number of at least 1"),
    "exam a number": ("exam = 3\n" + GATE, "[exam]"),
    "per cent": (GATE.replace("0.5", "68"), "did you mean 0.68?"),
    "negative": (GATE.replace("0.5", "-0.2"), "did you mean 0?"),
    "not a number": (GATE.replace("0.5", '"half"'), "'half' is not a number"),
    "not finite": (GATE.replace("0.5", "nan"), "nan is not a number"),
    "no bound": (GATE.replace("at_least = 0.5", ""), "one of at_least and at_most, not none"),
    "both bounds": (GATE + "at_most = 0.9\n", "not at_least and at_most"),
    "over without a gain": (GATE + 'over = "x"\n', "over belongs to a gain"),
    "gain over nothing": (GATE.replace("hit@5", "gain:hit@5"), "--over RUN"),
    "no gate": (EXAM, "write at least one [[gate]]"),
    "gate a table": ("[gate]\n", "write at least one [[gate]]"),
    "gates in words": ("gate = ['x']\n", "list of tables"),
    "not toml": ("[exam\n", "is not TOML"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_named_and_nothing_is_decided(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[name]
    (tmp_path / "g.toml").write_text(text)
    assert main(["gate", str(place / "run"), str(tmp_path / "g.toml")]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert not (place / "run" / "decision-g.json").exists()


def test_a_misspelt_shipped_name_is_named() -> None:
    with pytest.raises(SettingsError, match="did you mean 'hard_negatives'"):
        read_gates("hard_negative")


def test_the_record_is_whole_and_the_exit_code_is_the_verdict(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bank = place / "run", Bank.open(place / "bank")
    hit = evaluate(Run.open(run), bank, pool=30).ranks.hit(5)
    text = f'{EXAM}[[gate]]\nname = "hits"\nmetric = "hit@5"\nat_least = {hit.low}\n'
    (tmp_path / "mine.toml").write_text(text)
    asked = datetime.now(UTC).replace(microsecond=0)  # the record says whole seconds
    assert main(["gate", str(run), str(tmp_path / "mine.toml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((run / "decision-mine.json").read_text())
    assert printed == {**record, "record": str(run / "decision-mine.json")}
    weights = hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest()
    assert (record["passed"], record["bank"], record["weights"]) == (True, bank.fingerprint, weights)
    report = evaluate(Run.open(run), bank, pool=30)
    assert record["exam"] == {
        "id": report.exam,
        "part": "test",
        "context": 20,
        "pool": 30,
        "candidates": {"least": 30, "most": 30},
        "rows": hit.n,
        "chance": {f"hit@{k}": report.ranks.chance(k) for k in (1, 5, 10)},
    }
    assert record["outcomes"] == [
        {"name": "hits", "metric": "hit@5", "at_least": hit.low, "measured": hit.to_json(), "passed": True}
    ]
    assert asked <= datetime.fromisoformat(record["date"]) <= datetime.now(UTC)
    assert record["alarms"] == Run.open(run).alarms()
    page = (run / "decision-mine.md").read_text()
    for part in ("# mine: passed", "| pass | hits |", report.exam, weights, bank.fingerprint, "chance: hit@1", record["date"]):
        assert part in page
    (tmp_path / "mine.toml").write_text(
        text + '[[gate]]\nmetric = "alarms"\nat_most = 0\n[[gate]]\nmetric = "updates"\nat_least = 13\n'
    )
    assert main(["gate", str(run), str(tmp_path / "mine.toml")]) == 1
    assert "not passed" in capsys.readouterr().out
    again = json.loads((run / "decision-mine.json").read_text())
    assert (again["passed"], [o["passed"] for o in again["outcomes"]][::2]) == (False, [True, False])
    assert list(run.glob("*.tmp")) + list(run.glob(".*.tmp")) == []


class Sleeper(Recurrent[Tensor]):
    """Takes a known time for a single vector, and none for a passage; notes what its states had read."""

    def __init__(self, dim: int, seconds: float) -> None:
        super().__init__()
        self.dim, self.seconds = dim, seconds
        self.met: list[tuple[int, int]] = []

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch)

    def run(self, state: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        self.met.append((int(state[0]), x_BTD.shape[1]))
        time.sleep(self.seconds if x_BTD.shape[1] == 1 else 0)
        return state + x_BTD.shape[1], x_BTD


def test_latency_is_that_of_one_step_after_the_context() -> None:
    bank = walk_bank(documents=4)
    model = Sleeper(bank.dim, 0.003)
    threads = torch.get_num_threads()
    short, long = answers(Engine(model, bank), (2, 300), bank.rows, plain=model, rounds=2)
    assert (short.context, long.context) == (2, 300)
    assert long.step.n == long.search.n == long.both.n == 2 * PER_ROUND
    assert 3 <= long.step.p50 <= long.step.p95 <= long.step.p99
    assert long.both.p50 >= long.step.p50
    assert long.reread is not None
    assert model.met[:2] == [(0, 2), (0, 300)], "longer than the bank: read again from its start"
    read = [met for met in model.met[2:] if met[1] == 1]
    assert set(read) == {(2, 1), (300, 1)}, "every answer comes after the same context"
    assert torch.get_num_threads() == threads


def test_gates_on_latency_judge_every_context() -> None:
    bank = walk_bank(documents=4)
    slow = answers(Engine(Sleeper(bank.dim, 0.004), bank), (5, 9), bank.rows, rounds=1)
    fast = answers(Engine(Sleeper(bank.dim, 0.0), bank), (5, 9), bank.rows, rounds=1)
    assert [gate.passed for gate in gates(slow, budget_ms=1e4)] == [True, True]
    assert [gate.passed for gate in gates(slow, budget_ms=3.9)] == [False, False]
    assert [gate.passed for gate in gates(slow, None, against=fast, ratio=1e-3)] == [False, False]
    assert [gate.passed for gate in gates(slow, None, against=slow, ratio=1.0)] == [True, True]
    assert gates(slow, None) == []


def test_more_bytes_take_longer_to_read() -> None:
    assert read_seconds(64_000_000, rounds=5) > read_seconds(64_000, rounds=5)
