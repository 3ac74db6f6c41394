"""Figures lane by lane, whom experts' predictions heard, and the experiment that says what experts are worth."""

import json
import os
import subprocess
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import ExamError, SettingsError
from nextvec.evaluation import Exam, predict_rows
from nextvec.evaluation.by_lane import UNSURE, ExpertUse, expert_use, lane_figures, places_by_lane
from nextvec.experiments.comparison import compare
from nextvec.lanes import Lanes, by_chance, by_clusters
from nextvec.models.baselines import CopyLast
from nextvec.ranks import Ranks
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.expert_kinds import KINDS, settings_of_kind
from nextvec.runs import Run, TrainSettings
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.laws.test_models import experts
from tests.test_training import on_disk

SMALL = TrainSettings.of(context=20, batch=3, updates=4, evaluate_every=4, hidden=8, slots=16, working=8, pool=30)
HITS = (1, 5)


def finished(path: Path, bank: Bank, **changes: object) -> Run:
    run = begin(path, "test", SMALL.replaced(**changes), bank)
    list(train(run, bank))
    return run


def dealt(bank: Bank, count: int = 3) -> Lanes:
    return by_chance(bank, count)


# By lane


def test_every_scored_row_lies_in_one_lane_that_of_its_document() -> None:
    bank = walk_bank(documents=20)
    lanes, rows = dealt(bank), np.arange(3, len(bank), 7)
    places = places_by_lane(lanes, bank, rows)
    assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(len(rows)))
    for name, some in places.items():
        assert set(lanes.lane[rows[some]].tolist()) == {lanes.names.index(name)}


def test_documents_whose_confidence_lies_nowhere_are_unsure() -> None:
    bank = walk_bank(documents=6)
    lanes = by_clusters(bank, 3)
    torn = Lanes(
        np.resize(np.array([0, 1, 2], np.uint8), len(bank)), np.ones(len(bank), np.float16), lanes.anchors, lanes.manifest
    )
    places = places_by_lane(torn, bank, np.arange(len(bank)))
    assert list(places) == [UNSURE]
    assert len(places[UNSURE]) == len(bank)


def test_the_truth_has_every_lane_and_figures_of_lanes_average_to_the_whole() -> None:
    bank = walk_bank(documents=20)
    exam = Exam.over(bank, np.arange(20), "test", 30, 500)
    places = places_by_lane(dealt(bank), bank, exam.rows)
    truth = exam.rank(exam.truths())
    last = exam.rank(predict_rows(CopyLast(bank.dim), bank, exam.rows, None))
    perfect = lane_figures(places, truth, last, HITS)
    assert all(lane["hit@1"]["value"] == 1 for lane in perfect.values())
    copied = lane_figures(places, last, last, HITS)
    assert all(lane["lift"]["hit@5"]["value"] == lane["lift"]["hit@5"]["low"] == 0 for lane in copied.values())
    total = sum(lane["rows"] * lane["hit@5"]["value"] for lane in copied.values())
    assert total / len(exam.rows) == pytest.approx(last.hits(5).mean())
    lifts = sum(lane["rows"] * lane["lift"]["hit@5"]["value"] for lane in perfect.values())
    assert lifts / len(exam.rows) == pytest.approx(1 - last.hits(5).mean())


def test_answers_are_replaced_where_asked_and_nowhere_else() -> None:
    clusters, pool = np.arange(6) // 2, np.full(6, 10)
    a, b = Ranks(np.arange(6), np.zeros(6, int), pool, clusters), Ranks(9 - np.arange(6), np.zeros(6, int), pool, clusters)
    assert a.replaced(np.array([1, 4]), b).above.tolist() == [0, 8, 2, 3, 5, 5]
    with pytest.raises(ExamError, match="different exams"):
        a.replaced(np.array([1]), Ranks(b.above, b.tied, pool + 1, clusters))


# Whom predictions heard


def test_use_counts_the_positions_that_each_prediction_ended_at() -> None:
    """Beside the routing of every context alone."""
    torch.manual_seed(0)
    bank, model = walk_bank(documents=4, dim=12), experts("position", "both", 2)
    rows = np.array([5, 9, 20, 44])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = expert_use(model.eval(), bank, rows, 4)
    for n, row in enumerate(rows.tolist()):
        first = max(row - 4, int(bank.offsets[bank.document_of(np.array([row]))[0]]))
        x = torch.from_numpy(bank.rows[None, first:row].astype(np.float32))
        with torch.no_grad():
            _, _, routing = model.routed(model.start(1), x)
        p = routing.probabilities[0, -1].double()
        np.testing.assert_allclose(found.weights[n], routing.weights[0, -1], atol=1e-5)
        assert found.entropy[n] == pytest.approx(float(-(p * p.log2()).sum()), abs=1e-4)
    assert found.weights.shape == (4, 6)
    assert not model.training


def test_use_of_an_even_gate_and_of_a_decided_one() -> None:
    even = ExpertUse(np.zeros((5, 8)), np.full(5, log2(8))).to_json()
    assert (even["nobody"], even["entropy_share"], even["used"]) == (1, 1, 0)
    one = ExpertUse(np.tile(np.eye(8)[2], (5, 1)), np.zeros(5)).to_json({"a": np.array([1, 3])})
    assert (one["nobody"], one["entropy_bits"], one["used"], one["use"][2], one["by_lane"]["a"][2]) == (0, 0, 1, 1, 1)


# On runs


def test_a_run_with_experts_is_told_lane_by_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = on_disk(walk_bank(documents=30), tmp_path / "bank")
    dealt(bank).save(tmp_path / "lanes")
    run = finished(tmp_path / "run", bank, model="experts", experts=4, expert_width=8)
    assert main(["evaluate", str(run.path), "--pool", "30", "--lanes", str(tmp_path / "lanes"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(lane["rows"] for lane in found["lanes"].values()) == found["exam"]["rows"]
    assert found["experts"]["experts"] == 4
    assert set(found["experts"]["by_lane"]) == set(found["lanes"])
    assert main(["evaluate", str(run.path), "--pool", "30", "--lanes", str(tmp_path / "lanes")]) == 0
    shown = capsys.readouterr().out
    assert "random 1" in shown
    assert "experts heard" in shown or "of 4 active" in shown
    by_chance(walk_bank(documents=30, seed=4), 3).save(tmp_path / "others")
    assert main(["evaluate", str(run.path), "--pool", "30", "--lanes", str(tmp_path / "others")]) == 2
    assert "not of this one" in capsys.readouterr().err


def test_an_expert_answers_its_lane_in_the_shared_models_place(tmp_path: Path) -> None:
    """Overall and in every lane, the comparison is that of the answers put together by hand."""
    bank = on_disk(walk_bank(documents=80), tmp_path / "bank")
    lanes = dealt(bank)
    lanes.save(tmp_path / "lanes")
    shared = finished(tmp_path / "shared", bank)
    expert = finished(
        tmp_path / "expert", bank, lane_folder=str(tmp_path / "lanes"), lane_filter=lanes.names[1], updates=12, lr=0.01
    )
    routed = compare(shared, shared, bank, pool=30, lanes=lanes, experts={lanes.names[1]: expert})
    alone = compare(expert, shared, bank, pool=30, lanes=lanes)
    mine = lanes.names[1]
    for name, lane in routed.to_json()["lanes"].items():
        expected = alone.to_json()["lanes"][name]["lift"]["hit@5"]["value"] if name == mine else 0
        assert lane["lift"]["hit@5"]["value"] == pytest.approx(expected)
    assert alone.lanes[mine].size
    with pytest.raises(SettingsError, match="an expert is named for lane 'law'; known: random 0"):
        compare(shared, shared, bank, pool=30, lanes=lanes, experts={"law": expert})
    knows = finished(tmp_path / "knows", bank, valid=0.1, test=0.05)
    with pytest.raises(ExamError, match="or on test documents of"):
        compare(shared, shared, bank, pool=30, lanes=lanes, experts={mine: knows})


# The experiment


def test_kinds_are_equal_in_what_they_say_they_are() -> None:
    """Parameters of the whole, and of what one position computes, to the few that gates have."""
    base = SMALL.replaced(model="experts", expert_width=32)
    sizes: dict[str, int] = {}
    for kind in KINDS:
        model = _built(settings_of_kind(base, kind))
        sizes[kind] = sum(parameter.numel() for parameter in model.parameters())
        if isinstance(model, ExpertGRU):
            sizes[f"{kind}, each"] = sum(parameter.numel() for parameter in model.experts.blocks[0].parameters())
    # One layer's biases and norms belong to each of sixteen, and to the one large one once.
    narrow = 15 * (8 + 2 * 8)
    assert sizes["clusters"] - sizes["total"] == pytest.approx(narrow, abs=1)
    assert sizes["clusters"] - 15 * sizes["clusters, each"] == pytest.approx(sizes["active"], abs=1)
    assert sizes["active"] - sizes["one"] == sizes["active, each"] + 1
    with pytest.raises(SettingsError, match="no kind 'many'"):
        settings_of_kind(base, "many")


def test_the_experiment_trains_examines_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = on_disk(walk_bank(documents=30), tmp_path / "bank")
    lanes = dealt(bank)
    lanes.save(tmp_path / "lanes")
    small = [f"--set={name}={SMALL.flat()[name]}" for name in ("context", "batch", "updates", "hidden", "slots", "working")]
    command = ["experiment", "experts", "--bank", str(tmp_path / "bank"), "--out", str(tmp_path / "out"), "--seeds", "2"]
    command += ["--pool", "30", "--lanes", str(tmp_path / "lanes"), "--kinds", "one,active,clusters", *small]
    assert main([*command, "--set", "pool=30", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [kind["kind"] for kind in found["kinds"]] == ["one", "active", "clusters"]
    one, active, clusters = found["kinds"]
    assert len(one["seeds"]) == 2
    assert set(one["lift"]) == {"active"}
    assert one["lift"]["active"]["value"] == pytest.approx(-active["lift"]["one"]["value"])
    assert clusters["lift"]["one"]["value"] == pytest.approx(np.mean(clusters["seeds"]) - np.mean(one["seeds"]))
    assert clusters["experts"]["experts"] == 16
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("best.safetensors")}
    assert main([*command, "--set", "pool=30"]) == 0
    shown = capsys.readouterr().out
    assert "over one" in shown
    assert "random 2" in shown
    assert weights == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("best.safetensors")}
    assert json.loads((tmp_path / "out" / "experts.json").read_text())["exam"] == found["exam"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kinds", "many"], "there is no kind 'many'"),
        (["--set", "model=gru"], "model is decided by the experiment"),
        (["--set", "hiden=4"], "did you mean 'hidden'"),
    ],
)
def test_what_the_experiment_cannot_do_is_refused(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_disk(walk_bank(documents=30), tmp_path / "bank")
    assert main(["experiment", "experts", "--bank", str(tmp_path / "bank"), "--out", str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_help_names_every_kind(command: list[str]) -> None:
    wide = {**os.environ, "COLUMNS": "400"}
    done = subprocess.run([*command, "experiment", "experts", "--help"], capture_output=True, text=True, check=True, env=wide)
    assert ",".join(KINDS) in done.stdout


def _built(settings: TrainSettings) -> torch.nn.Module:
    from nextvec.runs.families import Basis
    from nextvec.runs.loading import build

    return build(settings, Basis(torch.zeros(16), 0.5))
