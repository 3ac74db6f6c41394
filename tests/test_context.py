"""The context experiment: equal runs, one exam, and a far context that is disturbed exactly as specified."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import ExamError, SettingsError
from nextvec.evaluation import Exam, predict_rows
from nextvec.experiments.context import context_experiment
from nextvec.experiments.context_effects import ContextExperiment
from nextvec.experiments.disturbance import foreign, intact, predict_disturbed, shuffled
from nextvec.models import GRU, Recurrent
from nextvec.models.baselines import CopyLast, MeanOfAll
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.windows import split
from tests.conftest import walk_bank
from tests.here import Here
from tests.test_phases import rates
from tests.test_training import on_disk

SETS = ["updates=4", "evaluate_every=2", "hidden=8", "slots=16", "working=8", "pool=30", "batch=2", "negatives=4"]
TEST = np.array([0, 3, 7, 9])
CONTEXT, NEAR = 30, 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    on_disk(walk_bank(documents=24, length=120), folder / "bank")
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> ContextExperiment:
    return context_experiment(place / "out", Bank.open(place / "bank"), (5, 10, 20), 2, "memory", SETS, Here(), pool=200)


@pytest.fixture(scope="module")
def content(found: ContextExperiment) -> dict[str, Any]:
    return found.to_json()


# The disturbed context


def exam(bank: Bank) -> Exam:
    return Exam.over(bank, TEST, "test", 40)


def disturbed(model: Recurrent[Any], bank: Bank, far: Any) -> Tensor:
    return predict_disturbed(model.eval(), bank, exam(bank).rows, CONTEXT, NEAR, far)


def hits(bank: Bank, predicted: Tensor) -> list[float]:
    return exam(bank).rank(predicted).hits(5).tolist()


def test_copy_last_does_not_notice_its_far_context(bank: Bank) -> None:
    model = CopyLast(bank.dim)
    untouched = disturbed(model, bank, partial(intact, NEAR))
    for far in (partial(shuffled, NEAR), partial(foreign, bank, TEST)):
        assert torch.equal(disturbed(model, bank, far), untouched)


def test_a_mean_notices_other_rows_but_not_their_order(bank: Bank) -> None:
    model = MeanOfAll(torch.zeros(bank.dim))
    untouched = disturbed(model, bank, partial(intact, NEAR))
    again = disturbed(model, bank, partial(shuffled, NEAR))
    torch.testing.assert_close(again, untouched, atol=1e-5, rtol=0)
    assert hits(bank, again) == hits(bank, untouched)
    other = disturbed(model, bank, partial(foreign, bank, TEST))
    far = exam(bank).rows - bank.offsets[exam(bank).clusters] > NEAR
    changed = (other - untouched).abs().amax(1).numpy() > 1e-4
    assert changed[far].all()
    assert not changed[~far].any()
    assert hits(bank, other) != hits(bank, untouched)


class Weighted(MeanOfAll):
    """Weighs what it read by when it read it: order matters, everywhere."""

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        when = torch.arange(1, x_BTD.shape[1] + 1, dtype=x_BTD.dtype)[None, :, None]
        return normalize((x_BTD * when).cumsum(1), dim=-1)


def test_a_model_that_counts_notices_the_order(bank: Bank) -> None:
    model = Weighted(torch.zeros(bank.dim))
    assert hits(bank, disturbed(model, bank, partial(shuffled, NEAR))) != hits(
        bank, disturbed(model, bank, partial(intact, NEAR))
    )


def test_an_intact_context_predicts_what_the_exam_predicts(bank: Bank) -> None:
    torch.manual_seed(0)
    model = GRU(torch.zeros(bank.dim), 0.5, 8, 1, 0.1)
    rows = exam(bank).rows
    expected = predict_rows(model.eval(), bank, rows, CONTEXT)
    torch.testing.assert_close(disturbed(model, bank, partial(intact, NEAR)), expected, atol=1e-5, rtol=0)


def test_what_is_read_in_place_of_the_far_part(bank: Bank) -> None:
    """The same rows shuffled; or as many of one other document of the part, however often it is asked."""
    for m in TEST.tolist():
        row, count = int(bank.offsets[m + 1]) - 1, 20
        assert intact(NEAR, row, count).tolist() == list(range(row - NEAR - count, row - NEAR))
        mixed = shuffled(NEAR, row, count)
        assert sorted(mixed.tolist()) == intact(NEAR, row, count).tolist() != mixed.tolist()
        assert mixed.tolist() == shuffled(NEAR, row, count).tolist()
        other = foreign(bank, TEST, row, count)
        owners = set(bank.document_of(other).tolist())
        assert len(other) == count
        assert len(owners) == 1
        assert owners <= set(TEST.tolist()) - {m}
    assert foreign(bank, TEST, int(bank.offsets[3]) + 5, 0).tolist() == []


def test_a_far_part_longer_than_any_document_is_taken_from_several(bank: Bank) -> None:
    row = int(bank.offsets[1]) - 1
    longest = int(bank.lengths[TEST[1:]].max())
    taken = foreign(bank, TEST, row, longest + 5)
    assert len(taken) == longest + 5
    assert len(set(bank.document_of(taken).tolist())) == 2
    with pytest.raises(ExamError, match="in place of its own"):
        foreign(bank, TEST[:1], row, 5)


# The experiment


def test_runs_differ_in_nothing_but_their_context(found: ContextExperiment, content: dict[str, Any]) -> None:
    settings = []
    for trained in content["trained"]:
        assert trained["updates"] == [4, 4]
        assert all(update in (0, 2, 4) for update in trained["kept_at"])
        run = Run.open(run_folder(found, trained["context"]))
        settings.append({**run.settings.flat(), "context": 0, "batch": 0})
        assert (run.settings.passages.context, run.settings.optimizer.batch) == (trained["context"], trained["batch"])
    assert all(other == settings[0] for other in settings)
    targets = [trained["targets_per_update"] for trained in content["trained"]]
    assert max(targets) / min(targets) < 1.1
    batches = [trained["batch"] for trained in content["trained"]]
    assert batches == sorted(batches, reverse=True)


def run_folder(found: ContextExperiment, context: int) -> Path:
    assert found.exam.bank.path is not None
    return found.exam.bank.path.parent / "out" / f"context-{context}" / "seed-0"


def test_all_sit_one_exam_of_rows_with_a_full_context(found: ContextExperiment, content: dict[str, Any]) -> None:
    past = found.exam.rows - found.exam.bank.offsets[found.exam.clusters]
    assert past.min() >= 20
    assert (content["exam"]["history"], content["full"]["share"]) == (20, 1.0)
    assert content["notes"][0] == "every scored row has 20 rows before it"
    assert content["notes"][1] == f"the intervals resample {content['exam']['documents']} documents; " + (
        "of so few they are narrower than they ought to be"
    )
    assert content["notes"][2].startswith("context-5, seed-0: ")
    assert all(effect["full"] is None for effect in content["trained"])


def test_truncation_is_what_predict_rows_predicts(found: ContextExperiment, content: dict[str, Any]) -> None:
    runs = [Run.open(run_folder(found, 20).with_name(f"seed-{seed}")) for seed in (0, 1)]
    assert [effect["name"] for effect in content["truncated"]] == ["1", "5", "20"]
    for effect in content["truncated"]:
        context = int(effect["name"])
        predicted = [predict_rows(load_model(run), found.exam.bank, found.exam.rows, context) for run in runs]
        values = [found.exam.rank(p).hits(5).mean() for p in predicted]
        assert effect["hit@5"]["value"] == pytest.approx(np.mean(values))
        assert (effect["hit@5"]["lowest"], effect["hit@5"]["highest"]) == (min(values), max(values))


def test_what_is_compared_with_itself_changes_nothing(content: dict[str, Any]) -> None:
    for effect in (content["trained"][0], content["truncated"][-1], content["disturbed"]["effects"][0]):
        assert effect["change"]["value"] == pytest.approx(0, abs=1e-15)
    names = [effect["name"] for effect in content["disturbed"]["effects"]]
    assert names == ["intact", "far part shuffled", "far part of another document", "far part left out"]
    assert content["disturbed"]["near"] == 4


def test_verdicts_follow_from_the_intervals(content: dict[str, Any]) -> None:
    for said, trained in zip(content["verdicts"], content["trained"][1:], strict=False):
        change = trained["change"]
        words = "gains" if change["low"] > 0 else "loses" if change["high"] < 0 else "is not shown"
        assert said.startswith(f"context {trained['name']} {words}")
        assert f"{100 * change['value']:+.1f}" in said
    assert content["verdicts"][-1].startswith("the context beyond the last 4 vectors ")


def test_where_few_rows_have_the_context_all_are_asked_and_it_is_said(place: Path) -> None:
    found = context_experiment(
        place / "long", Bank.open(place / "bank"), (5, 80), 1, "memory", SETS, Here(), pool=200
    ).to_json()
    assert found["exam"]["history"] == 1
    assert 30 <= found["full"]["rows"] < 300
    assert f"{found['full']['rows']} of {found['exam']['rows']} scored rows have 80" in found["notes"][0]
    for effect in found["trained"]:
        assert effect["full"]["hit@5"]["n"] == found["full"]["rows"]
    none = context_experiment(
        place / "longer", Bank.open(place / "bank"), (5, 200), 1, "memory", SETS, Here(), pool=200
    ).to_json()
    assert none["full"]["rows"] == 0
    assert "Too few for figures of their own" in none["notes"][0]
    assert all(effect["full"] is None for effect in none["trained"])
    page = (place / "longer" / "context.html").read_text()
    assert "Too few for figures of their own" in page


def test_the_second_call_trains_and_answers_nothing(place: Path, content: dict[str, Any]) -> None:
    kept = {file: file.stat().st_mtime_ns for file in (place / "out").rglob("*.safetensors")}
    again = context_experiment(place / "out", Bank.open(place / "bank"), (20, 5, 10), 2, "memory", SETS, Here(), pool=200)
    assert again.to_json() == content
    assert {file: file.stat().st_mtime_ns for file in (place / "out").rglob("*.safetensors")} == kept


def test_the_page_holds_every_figure(place: Path, content: dict[str, Any], found: ContextExperiment) -> None:
    page = (place / "out" / "context.html").read_text()
    for outside in ("http", "<script", "src=", "@import", "{{", "{%", "None", "nan", "undefined"):
        assert outside not in page, outside
    for rate in held_rates(content):
        assert f"{100 * rate['value']:.1f}" in page
        ends = ((f"{100 * rate['low']:{sign}.1f} to {100 * rate['high']:{sign}.1f}") for sign in ("", "+"))
        assert any(interval in page for interval in ends)
    for trained in content["trained"]:
        shown = [trained["baseline"]["name"], f"{trained['targets_per_update']:,.1f}", ", ".join(map(str, trained["seconds"]))]
        assert [text for text in shown if text not in page] == []
    for said in (*content["verdicts"], *content["notes"]):
        assert said[1:] in page
    assert content["exam"]["id"] in page


def held_rates(content: dict[str, Any]) -> Iterator[dict[str, float]]:
    yield from rates(content)


def test_what_cannot_be_is_refused_in_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = Bank.open(place / "bank")
    with pytest.raises(SettingsError, match="at least two different contexts"):
        context_experiment(tmp_path, bank, (5, 5))
    for name in ("seed=1", "context=5", "patience=2"):
        with pytest.raises(SettingsError, match="cannot be set"):
            context_experiment(tmp_path, bank, (5, 10), sets=[name])
    assert list(tmp_path.iterdir()) == []
    line = ["experiment", "context", "--bank", str(place / "bank"), "--out", str(tmp_path / "out")]
    assert main([*line, "--contexts", "5,x"]) == 2
    assert main([*line, "--contexts", "5,10", "--pool", "999999"]) == 2
    assert main(["experiment"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert not (tmp_path / "out").exists()


def test_the_command_prints_tables_and_one_object(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for s in SETS for part in ("--set", s)]
    line = ["experiment", "context", "--bank", str(place / "bank"), "--out", str(place / "out"), "--contexts", "5,10,20"]
    line += ["--recipe", "memory", "--seeds", "2", "--pool", "200", *flags]
    assert main(line) == 0
    assert "far part shuffled" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["longest"] == 20


def test_the_split_is_the_one_the_runs_hold_out(found: ContextExperiment) -> None:
    run = Run.open(run_folder(found, 5))
    bank, settings = found.exam.bank, TrainSettings.of()
    parts = split(bank, settings.split.valid, settings.split.test)
    assert np.array_equal(run.split(bank).test, parts.test)
    assert set(found.exam.clusters.tolist()) <= set(parts.test.tolist())
