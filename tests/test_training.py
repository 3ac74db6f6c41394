"""Training: what is told apart from what, that it learns, and that being killed changes nothing."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.batches import candidates, passages
from nextvec.cli.main import main
from nextvec.errors import DataError, ExamError, RunError, SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.models import MemoryGRU
from nextvec.objective import info_nce, negative_counts
from nextvec.reproduction.published import PublishedMemoryGRU
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.runs.families import Basis
from nextvec.runs.loading import build
from nextvec.runs.records import Timing
from nextvec.runs.settings import override
from nextvec.settings import to_json
from nextvec.training import Evaluated, Finished, Stepped, begin, train
from nextvec.windows import rows_of, training_windows
from tests.conftest import walk_bank
from tests.waiting import until

SMALL = TrainSettings.of(context=20, batch=3, updates=12, evaluate_every=4, hidden=8, slots=16, working=8, pool=30)


def on_disk(bank: Bank, path: Path) -> Bank:
    with BankWriter(path, encoder="t", encoder_fingerprint="t", dim=bank.dim) as writer:
        for m, name in enumerate(bank.ids):
            writer.append(VectorDocument(name, name, bank.document(m)))
        return writer.finish()


def rotating_bank(documents: int = 30, length: int = 60, dim: int = 16) -> Bank:
    """Each row is the last one turned by one fixed rotation, and a little noise: copy-last is poor, the rule is learnable."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    rows = []
    for _ in range(documents):
        row = rng.standard_normal(dim)
        for _ in range(length):
            row = turn @ row + 0.05 * rng.standard_normal(dim)
            rows.append(row)
    return Bank.from_numpy(np.array(rows, np.float32), [length] * documents)


# Batches and negatives


@given(st.integers(1, 30), st.integers(0, 1000))
def test_a_passage_holds_at_each_position_the_row_before_its_target(context: int, seed: int) -> None:
    bank = walk_bank(seed=seed)
    windows = training_windows(bank, [0, 1, 2], context, np.random.default_rng(seed))
    batch = passages(bank, windows, np.arange(min(4, len(windows))))
    scored = batch.targets >= 0
    before = bank.rows[batch.targets[scored].numpy() - 1].astype(np.float32)
    np.testing.assert_array_equal(batch.x[scored].numpy(), before)
    assert (batch.x[~scored] == 0).all()


@given(st.integers(0, 1000))
def test_what_was_read_is_no_negative_and_everything_else_is(seed: int) -> None:
    """Against the definition, candidate by candidate."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (40, 3)).astype(np.float32) + 0.01  # many rows twice
    bank = Bank.from_numpy(rows, [10] * 4)
    classes = bank.distinct.classes
    scored = np.sort(rng.choice(np.setdiff1d(np.arange(40), [0, 10, 20, 30]), 12, replace=False))
    copies = np.bincount(classes, minlength=40)
    named = candidates(bank, classes, copies, scored, rng.integers(0, 40, 5))
    columns = np.unique(classes[np.concatenate([scored, np.arange(0)])])
    for n, row in enumerate(scored.tolist()):
        first = row - row % 10
        said = {bank.rows[r].tobytes() for r in range(first, row)}
        truth = bank.rows[row].tobytes()
        for c in range(len(named.vectors)):
            vector = named.vectors[c].numpy().astype(np.float16).tobytes()
            assert bool(named.forbidden[n, c]) == (vector in said and vector != truth)
            assert (c == int(named.truth[n])) == (vector == truth)
    assert len(columns) <= len(named.vectors)


@given(st.integers(0, 1000))
def test_other_targets_are_negatives_out_of_the_batch_only_if_they_are_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (40, 3)).astype(np.float32) + 0.01  # many rows twice
    bank = Bank.from_numpy(rows, [10] * 4)
    classes = bank.distinct.classes
    scored = np.sort(rng.choice(np.setdiff1d(np.arange(40), [0, 10, 20, 30]), 12, replace=False))
    drawn = rng.integers(0, 40, 5)
    copies = np.bincount(classes, minlength=40)
    inside, outside = (candidates(bank, classes, copies, scored, drawn, in_batch) for in_batch in (True, False))
    assert torch.equal(inside.vectors, outside.vectors)
    assert torch.equal(inside.truth, outside.truth)
    of_drawn = {bank.rows[r].tobytes() for r in drawn.tolist()}
    for n in range(len(scored)):
        for c in range(len(outside.vectors)):
            vector = outside.vectors[c].numpy().astype(np.float16).tobytes()
            refused = bool(inside.forbidden[n, c]) or (vector not in of_drawn and c != int(outside.truth[n]))
            assert bool(outside.forbidden[n, c]) == refused


def test_info_nce_is_the_cross_entropy_of_the_truth() -> None:
    predicted = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    forbidden = torch.tensor([[False, False, False], [False, False, True]])
    loss = info_nce(predicted @ vectors.T, torch.tensor([0, 1]), forbidden, torch.tensor(0.5))
    first = -np.log(np.exp(2.0) / (np.exp(2.0) + 1 + np.exp(1.2)))
    second = -np.log(np.exp(2.0) / (np.exp(2.0) + 1))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert negative_counts(forbidden).tolist() == [2, 1]


def test_a_forbidden_candidate_gets_no_gradient() -> None:
    vectors = torch.eye(3).requires_grad_()
    forbidden = torch.tensor([[False, True, False]])
    info_nce(torch.ones(1, 3) @ vectors.T, torch.tensor([0]), forbidden, torch.tensor(1.0)).backward()
    assert vectors.grad is not None
    assert vectors.grad[1].abs().sum() == 0
    assert vectors.grad[2].abs().sum() > 0


# Models in training


def test_the_published_model_counts_layer_by_layer() -> None:
    model = PublishedMemoryGRU()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {
        "norm": 1_536,
        "recurrence": 3_148_800 + 3 * 1_575_936,
        "query": 393_984,
        "write_gate": 1_050_624,
        "fusion": 656_896,
        "output": 1_312_512,
    }
    assert sum(p.numel() for p in model.parameters()) == 11_292_160
    assert model.memory.shape == (2048, 768)
    assert not model.memory.requires_grad


def test_the_published_write_is_a_convex_step_and_only_its_own_method_writes() -> None:
    torch.manual_seed(0)
    model = PublishedMemoryGRU(8, hidden=4, layers=1, slots=6).eval()
    before = model.memory.clone()
    model(torch.randn(2, 5, 8))
    assert torch.equal(model.memory, before)
    model.after_update(torch.randn(2, 5, 8))
    outer = (model.memory - 0.9 * before) / 0.1
    assert torch.linalg.matrix_rank(outer, atol=1e-4) == 1


def test_the_published_prediction_is_the_last_vector_and_the_difference() -> None:
    torch.manual_seed(0)
    model = PublishedMemoryGRU(8, hidden=4, layers=2, slots=6).eval()
    x = torch.nn.functional.normalize(torch.randn(3, 5, 8), dim=-1)
    with torch.no_grad():
        u = model.difference(x)
        torch.testing.assert_close(u.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(model(x)[:, -1], torch.nn.functional.normalize(x[:, -1] + u, dim=-1))


def test_gradient_reaches_every_part_of_our_memory() -> None:
    torch.manual_seed(0)
    model = MemoryGRU(torch.zeros(8), 0.5, hidden=6, slots=10, working=4)
    x = torch.nn.functional.normalize(torch.randn(2, 12, 8), dim=-1)
    for _ in range(3):  # values start at zero, so keys learn from the second update on
        model.zero_grad()
        loss = -(model(x)[:, :-1] * x[:, 1:]).sum()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad if parameter.grad is not None else 0
    untouched = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert untouched == []


def test_the_working_memory_recalls_what_followed_the_last_time() -> None:
    """a b c d … a: the memory, and nothing else, knows that b comes next."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(30, 32), dim=-1)
    x = torch.cat([rows, rows[:1]])[None]
    model = MemoryGRU(torch.zeros(32), 0.5, hidden=4, slots=0, working=64).eval()
    with torch.no_grad():
        model.recall_weights[0].fill_(5.0)
        assert (model(x)[0, -1] @ rows.T).argmax().item() == 1
        model.recall_weights.zero_()
        assert (model(x)[0, -1] @ rows.T).argmax().item() != 1


# The loop


def test_training_learns_a_rule_that_no_mean_of_the_context_can_use(tmp_path: Path) -> None:
    bank = rotating_bank()
    settings = TrainSettings.of(
        model="gru", context=20, batch=16, updates=150, evaluate_every=50, hidden=64, dropout=0.0, lr=3e-3, pool=200
    )
    run = begin(tmp_path / "run", "test", settings, bank)
    events = list(train(run, bank))
    assert isinstance(events[-1], Finished)
    report = evaluate(run, bank, "test", pool=200)
    means = [name for name in report.baselines if name != "successor of nearest"]
    assert min(report.lift(5, over=name).low for name in means) > 0.2, str(report)


def test_events_say_what_the_history_keeps(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    events = list(train(run, bank))
    assert [e.update for e in events if isinstance(e, Stepped)] == list(range(1, 13))
    looks = [e for e in events if isinstance(e, Evaluated)]
    assert [look.record for look in looks] == run.history()
    assert [look.update for look in looks] == [0, 4, 8, 12]
    assert run.best_hit5 == max(look.record["valid"]["hit@5"] for look in looks)
    model = load_model(run)
    assert model.training is False


def test_patience_ends_training(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    bank = Bank.from_numpy(rows, [20] * 20)  # noise: nothing to learn
    settings = TrainSettings.of(
        context=10, batch=2, updates=400, evaluate_every=2, patience=3, hidden=8, slots=0, working=0, pool=50
    )
    run = begin(tmp_path / "run", "test", settings, bank)
    last = list(train(run, bank))[-1]
    assert isinstance(last, Finished)
    assert last.update < 400
    assert "no better for 3 validations" in (run.finished or "")


STANDING_STILL = """
import sys, time
from nextvec.cli import training
from nextvec.cli.main import main
whole, last = training.run_train, int(sys.argv.pop())
def until_last(*given):
    for event in whole(*given):
        yield event
        if getattr(event, "update", 0) >= last:
            time.sleep(600)
training.run_train = until_last
sys.exit(main(sys.argv[1:]))
"""


def killed_at(update: int, arguments: list[str], environment: dict[str, str], history: Path) -> None:
    """SIGKILL a process that trains until this update, as soon as it has recorded the last validation before it."""
    command = [sys.executable, "-c", STANDING_STILL, *arguments, str(update)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    validations = 1 + update // 5

    def recorded() -> bool:
        return history.exists() and len(json.loads(history.read_text())["evaluations"]) >= validations

    until(lambda: process.poll() is not None or recorded(), pause=0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.integration
def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, quiet_environment: dict[str, str]) -> None:
    on_disk(walk_bank(documents=20), tmp_path / "bank")
    sets = ["context=20", "batch=3", "updates=40", "evaluate_every=5", "hidden=8", "slots=16", "working=8", "pool=30"]
    sets += ["patience=50", "negatives=7"]
    flags = ["--bank", str(tmp_path / "bank"), *(part for s in sets for part in ("--set", s))]
    whole, killed = (["train", "memory", str(tmp_path / name), *flags] for name in ("whole", "killed"))
    assert main(whole) == 0
    for update in (8, 22):
        killed_at(update, killed, quiet_environment, tmp_path / "killed" / "training_history.json")
    assert main(killed) == 0
    for name in ("training_history.json", "best.safetensors", "checkpoint.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    "sets",
    [
        {"queue": 50, "hard": 2, "hard_low": 0.3, "mine_every": 5, "accumulate": 2},
        {"ema": 0.9, "precision": "bfloat16", "segment": 7},
        {"model": "pooled", "pooled": 4, "space": "fitted", "misses": 1.0, "negatives": 9, "in_batch": False, "targets": 3},
        {
            "model": "pooled",
            "pooled": 4,
            "space": "fitted",
            "power": 0.5,
            "folds": 3,
            "queue": 50,
            "hard": 2,
            "ema": 0.9,
            "hard_low": 0.3,
            "mine_every": 4,
        },
        {"model": "published", "supervision": "last", "across": True, "cached": False, "accumulate": 3, "coherence": 0.0},
        {"model": "published", "supervision": "last", "loss_on": "delta", "stop_on": "cosine"},
        {
            "model": "experts",
            "experts": 3,
            "top": 2,
            "gate_on": "both",
            "balance": 0.1,
            "accumulate": 2,
            "router_fraction": 0.3,
        },
        {"model": "transformer", "window": 9, "alpha": 0.03, "cosine": 0.5, "mse": 0.1, "learn_temperature": False},
    ],
    ids=lambda sets: "-".join(sets),
)
def test_whatever_the_settings_a_stopped_training_goes_on_bit_for_bit(sets: dict[str, Any], tmp_path: Path) -> None:
    """Stopped between two looks, in one process; what is on disk is all that the second half has."""
    bank = walk_bank(documents=20)
    settings = SMALL.replaced(updates=20, patience=50, **sets)
    whole, stopped = (begin(tmp_path / name, "test", settings, bank) for name in ("whole", "stopped"))
    list(train(whole, bank))
    events = train(stopped, bank)
    for event in events:
        if isinstance(event, Stepped) and event.update == 10:
            break
    events.close()
    list(train(stopped, bank))
    for name in ("training_history.json", "best.safetensors", "checkpoint.safetensors"):
        assert (stopped.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("model", ["pooled", "gru"])
def test_an_accelerator_trains_in_a_fitted_space(model: str, device: str, tmp_path: Path) -> None:
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not there:
        pytest.skip(f"this machine has no {device}")
    bank = walk_bank(documents=20)
    values = {"pooled": {"pooled": 4}, "gru": {"hidden": 8, "dropout": 0.0}}[model]
    settings = TrainSettings.of(
        model, context=20, batch=3, updates=4, evaluate_every=4, pool=30, space="fitted", power=0.5, misses=1.0, hard=2,
        mine_every=2, hard_low=0.0, negatives=9, **values,
    )  # fmt: skip
    found: list[dict[str, Any]] = []
    for where in ("cpu", device):
        run = begin(tmp_path / where, "test", settings.replaced(device=where), bank)
        list(train(run, bank))
        found.append(run.history()[-1])
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-3)
    assert found[1]["valid"]["cosine"] == pytest.approx(found[0]["valid"]["cosine"], abs=1e-3)


def test_averaged_weights_are_the_average(tmp_path: Path) -> None:
    """With every step's weights at hand: a(t) = 0.75 a(t - 1) + 0.25 w(t)."""
    bank = walk_bank(documents=20)
    seen: dict[str, list[torch.Tensor]] = {}
    for ema in (0.0, 0.75):
        run = begin(tmp_path / f"ema-{ema}", "test", SMALL.replaced(updates=3, evaluate_every=1, ema=ema, patience=50), bank)
        for event in train(run, bank):
            if isinstance(event, Evaluated):
                tensors, _ = run.load("checkpoint.safetensors")
                seen.setdefault(f"{ema}", []).append(tensors["trunk.weights"])
                if ema:
                    seen.setdefault("average", []).append(tensors[f"ema.{_place_of('trunk.weights', settings=run.settings)}"])
    assert all(torch.equal(a, b) for a, b in zip(seen["0.0"], seen["0.75"], strict=True))
    expected = seen["0.0"][0]
    for weights, average in zip(seen["0.0"][1:], seen["average"][1:], strict=True):
        expected = 0.75 * expected + 0.25 * weights
        torch.testing.assert_close(average, expected)


def _place_of(name: str, settings: TrainSettings) -> int:
    return [n for n, _ in build(settings, Basis(torch.zeros(16), 0.5)).named_parameters()].index(name)


def test_patience_knows_the_interval(tmp_path: Path) -> None:
    """Noise makes new bests; only the plain rule takes them for progress."""
    rows = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    bank = Bank.from_numpy(rows, [20] * 20)
    plain = TrainSettings.of(
        context=10, batch=2, updates=60, evaluate_every=2, patience=99, hidden=8, slots=0, working=0, pool=50
    )
    progress = {}
    for rule in ("hit@5", "interval"):
        for seed in range(3):
            run = begin(tmp_path / f"{rule}-{seed}", "test", plain.replaced(seed=seed, stop_on=rule), bank)
            list(train(run, bank))
            looks = run.history()
            progress[rule] = progress.get(rule, 0) + sum(look["progress"] for look in looks[1:])
            best = max(range(len(looks)), key=lambda n: looks[n]["valid"]["hit@5"])
            assert run.load("best.safetensors")[1] == looks[best]["update"]
    assert progress["interval"] < progress["hit@5"]


def test_the_time_foretold_is_measured_against_what_it_became(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL.replaced(updates=100), bank)
    assert (run.eta(), run.timing().remaining_error()) == (None, None)
    run.record_timing(Timing(((0, 1.0, 2.0), (20, 10.0, 20.0), (40, 20.0, 40.0))))
    assert run.eta() == pytest.approx(60.0)  # one second of the wall an update
    assert run.seconds() == 20.0
    run.record_timing(Timing(((0, 1.0, 2.0), *((u, u / 2, float(u)) for u in (20, 40, 60)), (80, 60.0, 120.0))))
    # After two looks, 40 more updates were to take 40 seconds; they took 80.
    assert run.timing().remaining_error() == pytest.approx(40 / 80 - 1)


def test_training_ends_when_its_seconds_are_used_up(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    settings = SMALL.replaced(updates=100_000, evaluate_every=2, patience=10_000, warmup=0, seconds=1.0)
    run = begin(tmp_path / "run", "test", settings, bank)
    last = list(train(run, bank))[-1]
    assert isinstance(last, Finished)
    assert last.reason == "seconds used up"
    assert run.seconds() >= 1
    assert [update for update, _ in run.timing().clock] == [record["update"] for record in run.history()]
    assert run.history()[-1]["lr"] < run.history()[len(run.history()) // 2]["lr"]  # the rate falls by the clock


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_alike(tmp_path: Path, command: list[str], quiet_environment: dict[str, str]) -> None:
    """In processes of its own: the compiler cannot look through the type checks of the tests."""
    on_disk(walk_bank(documents=20), tmp_path / "bank")
    sets = ["context=20", "batch=3", "updates=4", "evaluate_every=2", "hidden=16", "pool=30", "model=transformer", "dropout=0"]
    flags = ["--bank", str(tmp_path / "bank"), *(part for s in sets for part in ("--set", s))]
    environment = {**quiet_environment, "PYTHONWARNINGS": "ignore"}
    losses = []
    for compiled in ("false", "true"):
        run = [*command, "train", "memory", str(tmp_path / compiled), *flags, "--set", f"compile={compiled}"]
        subprocess.run(run, env=environment, check=True, stdout=subprocess.DEVNULL)
        losses.append([record["loss"] for record in Run.open(tmp_path / compiled).history()[1:]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    list(train(run, bank))
    assert [type(event) for event in train(run, bank)] == [Finished]


def test_two_trainings_of_one_run_do_not_meet(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    first = train(run, bank)
    next(first)
    assert run.is_training
    with pytest.raises(RunError, match="another process"):
        next(train(run, bank))
    first.close()
    assert not run.is_training


def test_a_run_refuses_other_settings_and_other_banks(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    list(train(run, bank))
    with pytest.raises(RunError, match="other settings"):
        begin(tmp_path / "run", "test", TrainSettings.of(), bank)
    other = walk_bank(documents=20, seed=5)
    with pytest.raises(RunError, match="another bank"):
        begin(tmp_path / "run", "test", SMALL, other)
    with pytest.raises(RunError, match="--split all"):
        evaluate(run, other, "test")


def test_on_another_bank_what_was_trained_on_is_left_out(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    list(train(run, bank))
    fresh = walk_bank(documents=8, seed=9)
    rows = np.concatenate([bank.document(m) for m in (0, 1, 2, 3)] + [fresh.rows])
    mixed = Bank.from_numpy(rows, np.concatenate([bank.lengths[:4], fresh.lengths]))
    trained = len({f"{m:06d}" for m in range(4)} & set(run.origin.parts["train"]))
    report = evaluate(run, mixed, "all", pool=30)
    assert report.documents == 12 - trained
    left_out = f"{trained} documents that the run was trained on are left out"
    assert (left_out in report.notes) == (trained > 0)
    assert "the encoders of both banks are unknown" in report.notes[-1]
    wide = Bank.from_documents([VectorDocument(n, n, mixed.document(m)) for m, n in enumerate(mixed.ids)], "unknown", "float32")
    assert len(run.unseen(wide)) == 12 - trained


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    list(train(run, bank))
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"best\.safetensors is damaged"):
        load_model(run)
    best.unlink()
    with pytest.raises(RunError, match="has it been trained"):
        load_model(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "transformer", "hidden": 12}, "must be a multiple of heads"),
        ({"supervision": "last", "coherence": 1.0}, "none of .* passages is that coherent"),
        ({"supervision": "last", "context": 500}, "choose a shorter context"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((SettingsError, DataError), match=message):
        begin(tmp_path / "run", "test", SMALL.replaced(**change), walk_bank(documents=20))
    assert not (tmp_path / "run").exists()


def test_too_small_a_bank_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises((ExamError, DataError)):
        begin(tmp_path / "run", "test", SMALL, walk_bank(documents=3, length=6))
    assert not (tmp_path / "run").exists()


# Settings and recipes


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("contxt=5", "did you mean 'context'"),
        ("context", "not of the form name=value"),
        ("context=many", "must be of type int"),
        ("context=0", "between 1 and 1,000,000; the nearest right one is 1"),
        ("model=lstm2", "must be one of"),
        ("dropout=1.5", "the nearest right one is 0.95"),
        ("lr=-1", "the nearest right one is 1e-08"),
        ("pool=1", "the nearest right one is 2"),
    ],
)
def test_settings_that_make_no_sense_are_named(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        override(TrainSettings.of(), [assignment])


def test_settings_are_read_back_as_they_were_written() -> None:
    settings = override(TrainSettings.of(), ["context=7", "lr=0.5", "pool=none", "model=gru"])
    assert (settings.passages.context, settings.optimizer.lr, settings.validation.pool, settings.model) == (7, 0.5, None, "gru")
    assert TrainSettings.from_json(json.loads(json.dumps(to_json(settings)))) == settings


def test_all_rows_of_a_bank_are_listed_once() -> None:
    bank = walk_bank()
    assert rows_of(bank, range(bank.num_documents)).tolist() == list(range(len(bank)))


def test_a_run_opens_as_it_was_created(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    assert Run.open(tmp_path / "run") == run
