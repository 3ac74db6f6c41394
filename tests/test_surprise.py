"""Surprise: its definition in float64, the verb and its page, and the area under a curve of the benchmark."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from benchmarks.surprise import area_under_curve, sequences
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.confidence import FIRST, AnswerScores, Calibration, RankDistribution
from nextvec.evaluation.calibration import calibration_of
from nextvec.evaluation.surprise import surprise
from nextvec.models.baselines import CopyLast
from nextvec.runs import Run, load
from nextvec.runs.run import CALIBRATION
from nextvec.training import begin, train
from tests.command import nextvec
from tests.conftest import walk_bank
from tests.settings import fitting
from tests.spaces import pooled_in_space
from tests.test_cli import write_bank
from tests.test_distinct import DIM, items_bank

CALIBRATED = Calibration(level=1.6, growth=0.05)


@pytest.mark.parametrize("kind", ["all distinct", "repeated rows"])
def test_surprise_is_that_of_its_definition(kind: str) -> None:
    bank = walk_bank(documents=6, dim=DIM) if kind == "all distinct" else items_bank(documents=6)[0]
    rows = np.concatenate([np.arange(3, 12), np.arange(bank.offsets[3], bank.offsets[3] + 9), [5]])
    found = surprise(CopyLast(DIM), CALIBRATED, bank, rows)
    distinct, which = np.unique(bank.rows.astype(np.float64), axis=0, return_inverse=True)
    assert len(distinct) == len(bank.distinct)
    firsts = np.array([np.flatnonzero(which == n)[0] for n in range(len(distinct))])
    for t in range(len(rows)):
        held = set(which[rows[:t]].tolist())
        if t == 0 or which[rows[t]] in held:
            assert np.isnan(found.bits[t]) and np.isnan(found.ranks[t])
            continue
        left = [n for n in range(len(distinct)) if n not in held]
        scores = distinct @ bank.rows[rows[t - 1]].astype(np.float64)
        own = scores[which[rows[t]]]
        rank = 1 + sum(scores[n] > own for n in left)
        assert found.ranks[t] == rank
        best = np.full(FIRST, -np.inf)
        first = np.sort([scores[n] for n in left])[::-1][:FIRST]
        best[: len(first)] = first
        typical = bank.rows[firsts].astype(np.float64).mean(0) @ bank.rows[rows[t - 1]].astype(np.float64)
        of = AnswerScores(best[None], np.array([typical]), np.array([len(left)]), np.array([t]))
        assert found.bits[t] == pytest.approx(RankDistribution(of, CALIBRATED).bits(np.array([float(rank)]))[0], abs=1e-3)
    assert np.isfinite(found.bits[1:-1]).any() and np.isnan(found.bits[-1])


def test_the_surprise_of_a_document_does_not_depend_on_how_it_is_read() -> None:
    bank, model = walk_bank(documents=6, dim=DIM), pooled_in_space(DIM)
    rows = np.arange(bank.offsets[1], bank.offsets[2])
    whole = surprise(model, CALIBRATED, bank, rows)
    part = surprise(model, CALIBRATED, bank, rows[:20])
    assert part.bits == pytest.approx(whole.bits[:20], abs=1e-3, nan_ok=True)
    assert part.ranks.tolist()[1:] == whole.ranks.tolist()[1:20]


def test_a_row_that_no_context_announces_surprises_most() -> None:
    rng = np.random.default_rng(0)
    topics = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    rows = np.concatenate([topics[n // 12] + 0.2 * rng.standard_normal((1, DIM)) for n in range(120)])
    bank = Bank.from_numpy(rows.astype(np.float32), [120])
    bits = surprise(CopyLast(DIM), CALIBRATED, bank, np.arange(120)).bits
    starts = np.arange(12, 120, 12)
    others = np.setdiff1d(np.arange(1, 120), starts)
    assert area_under_curve(np.concatenate([bits[starts], bits[others]]), np.arange(119) < len(starts)) > 0.95


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    values, positive = np.array([float(v) for v, _ in pairs]), np.array([p for _, p in pairs])
    if not 0 < positive.sum() < len(positive):
        return
    wanted = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert area_under_curve(values, positive) == pytest.approx(float(np.mean(wanted)))


def test_neighbouring_segments_of_a_sequence_come_from_different_documents() -> None:
    bank = walk_bank(documents=12, length=400)
    made = sequences(bank, np.arange(12), 4, 0)
    assert made
    used: list[int] = []
    for segments in made:
        owners = [set(bank.document_of(segment).tolist()) for segment in segments]
        assert all(len(owner) == 1 for owner in owners) and all(a != b for a, b in pairwise(owners))
        used += np.concatenate(segments).tolist()
    assert len(used) == len(set(used))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank ``some.bank`` and a run ``run`` of it."""
    folder = tmp_path_factory.mktemp("surprise")
    write_bank(folder / "some.bank", walk_bank(documents=30, dim=DIM))
    bank = Bank.open(folder / "some.bank")
    sizes = {"context": 20, "batch": 4, "updates": 2, "evaluate_every": 2, "pool": 40, "pooled": 4, "working": 8}
    settings = fitting("pooled", space="fitted", folds=2, **sizes)
    for _ in train(begin(folder / "run", "test", settings, bank), bank):
        pass
    return folder


def test_the_verb_reads_a_bank_with_the_weights_of_the_package(folder: Path) -> None:
    bank = Bank.open(folder / "some.bank")
    done = nextvec("surprise", "some.bank", "--json", folder=folder)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    calibration = calibration_of(bank, bank)
    assert calibration is not None
    wanted = surprise(load(bank).model, calibration, bank, np.arange(bank.offsets[1]))
    assert found["model"] == "shipped" and found["document"]["id"] == bank.ids[0]
    assert [chunk["row"] for chunk in found["chunks"]] == list(range(int(bank.offsets[1])))
    assert found["chunks"][0]["bits"] is None
    bits = [chunk["bits"] for chunk in found["chunks"][1:]]
    assert bits == pytest.approx(wanted.bits[1:])
    assert found["mean_bits"] == pytest.approx(np.mean(bits))


def test_the_verb_reads_a_run_and_writes_a_page(folder: Path) -> None:
    name = Bank.open(folder / "some.bank").ids[4]
    done = nextvec("surprise", "run", "--document", name, "--top", "3", "--page", "page.html", folder=folder)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if "█" in line]
    assert len(lines) == 3
    assert [int(line.split()[0]) for line in lines] == sorted(int(line.split()[0]) for line in lines)
    page = (folder / "page.html").read_text()
    assert "Most surprising chunks" in page and "<polyline" in page and "http" not in page.replace("http-equiv", "")
    found = json.loads(nextvec("surprise", "run", "--document", name, "--json", folder=folder).out)
    most = sorted(found["chunks"][1:], key=lambda chunk: -chunk["bits"])[:3]
    assert sorted(chunk["index"] + 1 for chunk in most) == [int(line.split()[0]) for line in lines]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["some.bank", "--document", "nothing"], "the bank has 30 documents"),
        (["some.bank", "--bank", "run"], "some.bank is a bank and predicts its own rows"),
        (["nowhere"], "nowhere"),
        (["run", "--top", "0"], "at least 1"),
    ],
)
def test_the_verb_refuses_what_it_cannot_read(folder: Path, words: list[str], says: str) -> None:
    done = nextvec("surprise", *words, folder=folder)
    assert done.code == 2
    assert says in done.err and "Traceback" not in done.err


def test_the_verb_needs_a_calibration(folder: Path) -> None:
    run = Run.open(folder / "run")
    held = (run.path / CALIBRATION).read_bytes()
    (run.path / CALIBRATION).unlink()
    try:
        done = nextvec("surprise", "run", folder=folder)
    finally:
        (run.path / CALIBRATION).write_bytes(held)
    assert done.code == 2 and "there is no calibration" in done.err
