"""A bank without a run, whose rows the weights of the package predict; and a run whose space is fitted to another bank."""

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.candidate_map import CandidateMap
from nextvec.cli.main import main
from nextvec.errors import DataError, NextvecError, RunError, SettingsError
from nextvec.evaluation import Exam
from nextvec.evaluation.runs import evaluate
from nextvec.index import open_index
from nextvec.inference import Engine
from nextvec.models.space import InSpace, Space
from nextvec.runs import Run, load, load_model, open_source, spaces
from nextvec.runs.shipped import SHIPPED, SHIPPED_FILE, shipped_weights
from nextvec.runs.sources import served_name
from tests import oracles
from tests.conftest import walk_bank
from tests.serving.server import make_run
from tests.serving.test_mapped_run import SETTINGS
from tests.test_cli import printed, write_bank

POWER = 0.5


def weights() -> dict[str, np.ndarray]:
    return {name.removeprefix("model."): tensor.double().numpy() for name, tensor in shipped_weights().items()}


def random_bank(lengths: list[int], dim: int = 12, seed: int = 0) -> Bank:
    """Rows of unequal variance, with a mean that is not 0."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((sum(lengths), dim)) * np.geomspace(3, 0.1, dim) + 0.5
    return Bank.from_numpy(rows.astype(np.float32), lengths)


def expected(bank: Bank, read: np.ndarray) -> np.ndarray:
    """The scores of all rows by hand, in float64: the space of the rows of the bank, then the weights of the package."""
    mapped = oracles.in_space(bank.rows, bank.rows, POWER)
    return oracles.shipped_scores(oracles.in_space(oracles.unit(read), bank.rows, POWER), mapped, weights())


# Predictions of a bank


@pytest.mark.parametrize("lengths", [[60] * 20, [40], [9, 8, 7], [4], [2]], ids=str)
@pytest.mark.parametrize("read", [1, 5, 30, 300])
def test_predictions_are_those_computed_by_hand(lengths: list[int], read: int) -> None:
    """For many rows; for fewer than twice the dimensions, which shrinks the covariance; and for fewer than the dimensions."""
    bank = random_bank(lengths)
    context = oracles.unit(np.random.default_rng(1).standard_normal((read, bank.dim)) + 0.3).astype(np.float32)
    session = Engine.open(bank).session()
    session.push_many(context)
    found, scores = session.predict(len(bank)), expected(bank, context)
    assert sorted(e.row for e in found) == list(range(len(bank)))
    np.testing.assert_allclose([e.score for e in found], scores[[e.row for e in found]], rtol=0, atol=1e-4)
    assert (np.diff(scores[[e.row for e in found]]) < 1e-4).all()


def test_a_context_of_the_bank_is_left_out_and_read_step_by_step() -> None:
    bank = random_bank([30, 25])
    session = Engine.open(bank).session()
    for row in bank.rows[:14]:
        session.push(row)
    scores = expected(bank, bank.rows[:14].astype(np.float64))
    scores[:14] = -np.inf
    assert [e.row for e in session.predict(5)] == np.argsort(-scores)[:5].tolist()


@given(seed=st.integers(0, 1000))
def test_the_order_of_the_documents_does_not_matter(seed: int) -> None:
    bank = random_bank([7, 20, 11, 3, 30], seed=seed)
    order = np.random.default_rng(seed).permutation(5)
    places = np.concatenate([np.arange(bank.offsets[m], bank.offsets[m + 1]) for m in order])
    other = Bank.from_numpy(bank.rows[places], bank.lengths[order])
    context = random_bank([9], seed=seed + 1).rows
    answers = []
    for held, names in ((bank, np.arange(len(bank))), (other, places)):
        session = Engine.open(held).session()
        session.push_many(context)
        answers.append({int(names[e.row]): e.score for e in session.predict(len(held))})
    assert answers[0].keys() == answers[1].keys()
    np.testing.assert_allclose([answers[1][row] for row in answers[0]], list(answers[0].values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [np.ones((1, 6)), np.ones((5, 6)), np.eye(6)[:2]], ids=["one", "equal", "two"])
def test_a_bank_of_hardly_any_rows_answers(rows: np.ndarray) -> None:
    bank = Bank.from_numpy(rows.astype(np.float32), [len(rows)])
    session = Engine.open(bank).session()
    session.push_many(np.random.default_rng(0).standard_normal((3, 6)))
    found = session.predict(10)
    assert [e.row for e in found] == sorted({0, len(bank.distinct) - 1}, key=[e.row for e in found].index)
    assert np.isfinite([e.score for e in found]).all()
    session.push_many(bank.rows)
    assert session.predict(3) == []


# The space of a bank, kept beside its rows


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_bank(tmp_path / "books.bank", random_bank([30, 25, 40]))


def kept(folder: Path) -> Path:
    return folder / "space-0.5.safetensors"


def test_the_space_is_kept_beside_the_bank_and_not_fitted_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Engine.open(place)
    assert kept(place).is_file()
    monkeypatch.setattr(spaces, "moments", lambda *_, **__: pytest.fail("fitted again"))
    again = Engine.open(place)
    assert again.digest == first.digest
    copied = shutil.copytree(place, place.with_name("copy"))
    assert Engine.open(copied).restore(first.session().snapshot()).length == 0


def flipped(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    return bytes(content)


DAMAGE: dict[str, Callable[[Path], bytes]] = {
    "a bit of the matrix": flipped,
    "the end": lambda file: file.read_bytes()[:-8],
    "everything": lambda _: b"",
    "another bank": lambda file: file.read_bytes().replace(b'"bank":"', b'"bank":"0', 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_foreign_space_is_fitted_again(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, file, fitted = Engine.open(place).digest, kept(place), list[Bank]()
    monkeypatch.setattr(spaces, "moments", lambda bank, **more: fitted.append(bank) or moments(bank, **more))
    changed = DAMAGE[name](file)
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    assert [Engine.open(place).digest for _ in range(2)] == [first, first]
    assert len(fitted) == 1, "and kept again"


def test_rows_that_are_added_change_the_space(place: Path) -> None:
    small = Engine.open(place)
    snapshot, old = small.session().snapshot(), kept(place).read_bytes()
    shutil.rmtree(place)
    write_bank(place, random_bank([30, 25, 40, 50]))
    kept(place).write_bytes(old)
    grown = Engine.open(place)
    context = random_bank([9], seed=5).rows.astype(np.float64)
    session = grown.session()
    session.push_many(context)
    found = session.predict(len(grown.bank))
    scores = expected(grown.bank, context)
    np.testing.assert_allclose([e.score for e in found], scores[[e.row for e in found]], rtol=0, atol=1e-4)
    with pytest.raises(DataError, match="this snapshot is of model"):
        grown.restore(snapshot)


def test_fitting_reports_its_progress(place: Path) -> None:
    said: list[tuple[str, int, int]] = []
    Engine.open(place, progress=lambda *at: said.append(at))
    assert said[:2] == [("mean and covariance", 95, 95), ("mapping rows", 95, 95)]


# A run or a bank: the manifest decides


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run0`` in a fitted space and its ``bank``; ``raw/run0`` of raw rows; ``other.bank``, of another distribution."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, settings=SETTINGS)
    make_run(folder / "raw")
    other = walk_bank(seed=7)
    write_bank(folder / "other.bank", Bank.from_numpy(other.rows * np.geomspace(2, 0.2, other.dim), other.lengths))
    return folder


def test_the_manifest_of_the_folder_decides(runs: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(runs / "run0"), Run)
    assert isinstance(open_source(runs / "bank"), Bank)
    assert [served_name(runs / name) for name in ("run0", "bank", "other.bank")] == ["run0", "bank", "other"]
    with pytest.raises(RunError, match="is neither a run") as refused:
        open_source(tmp_path)
    assert "bank.json" in str(refused.value) and "run.json" in str(refused.value)


def test_a_bank_predicts_its_own_rows_only(runs: Path) -> None:
    bank = Bank.open(runs / "bank")
    with pytest.raises(SettingsError, match="another bank goes with a run"):
        Engine.open(bank, Bank.open(runs / "other.bank"))
    assert Engine.open(bank, bank).digest == Engine.open(runs / "bank").digest


def test_refit_fits_the_space_of_a_run_to_the_other_bank_and_keeps_its_weights(runs: Path) -> None:
    run, other = Run.open(runs / "run0"), Bank.open(runs / "other.bank")
    model, fit = load(run, other, refit=True).model, moments(other)
    plain = load(run, other).model
    assert isinstance(model, InSpace) and isinstance(plain, InSpace)
    wanted = Space.fitted(fit.mean, fit.covariance, run.origin.power or 0.0, fit.rows)
    torch.testing.assert_close(model.space.state_dict(), wanted.state_dict())
    for name, tensor in load_model(run).state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor)
        assert name.startswith("space.") or torch.equal(model.state_dict()[name], tensor)
    assert not torch.equal(model.space.matrix, plain.space.matrix)


def test_engines_in_other_spaces_share_neither_snapshots_nor_indexes(runs: Path) -> None:
    """The run, the run in the space of the whole bank, and the weights of the package in the same space."""
    run, bank = Run.open(runs / "run0"), Bank.open(runs / "bank")
    engines = [Engine.open(run), Engine.open(run, refit=True), Engine.open(bank)]
    for engine, other in itertools.permutations(engines, 2):
        session = engine.session()
        session.push_many(bank.rows[:5])
        assert engine.restore(session.snapshot()).predict(3) == session.predict(3)
        with pytest.raises(DataError, match="this snapshot is of model"):
            other.restore(session.snapshot())
        if engines[0] in (engine, other):
            with pytest.raises(DataError, match="an index of rows in map"):
                Engine(engine.model, bank, other.index)
        else:
            assert Engine(engine.model, bank, other.index).index is other.index


def test_a_run_of_raw_rows_has_no_space_to_fit(runs: Path) -> None:
    with pytest.raises(SettingsError, match="leave --refit out"):
        Engine.open(runs / "raw" / "run0", refit=True)


# Evaluation


def test_evaluate_of_a_bank_takes_the_exam_of_a_run_in_the_space_of_its_training_rows(runs: Path) -> None:
    run, bank = Run.open(runs / "run0"), Bank.open(runs / "bank")
    report, trained = evaluate(bank, pool=30, context=20), evaluate(run, pool=30)
    train = run.split(bank).train
    assert report.exam == trained.exam
    assert (report.model, evaluate(bank, pool=30).context) == (SHIPPED, 256)
    assert report.to_json()["fitted_to"] == trained.to_json()["fitted_to"]
    assert report.fitted_to.of == "training rows"
    assert report.fitted_to.rows == int(bank.lengths[train].sum())
    for name, ranks in trained.baselines.items():
        assert (report.baselines[name].above == ranks.above).all()


def test_evaluate_ranks_as_the_weights_do_by_hand(runs: Path) -> None:
    bank = Bank.open(runs / "bank")
    for part in ("test", "all"):
        report = evaluate(bank, part=part, pool=None, max_rows=40)  # type: ignore[arg-type]
        held = range(bank.num_documents) if part == "all" else Run.open(runs / "run0").split(bank).train
        fitted_on = np.concatenate([bank.document(int(m)) for m in held])
        assert report.fitted_to.rows == len(fitted_on)
        rows = oracles.in_space(bank.rows, fitted_on, POWER)
        documents = np.arange(bank.num_documents) if part == "all" else Run.open(runs / "run0").split(bank).test
        exam = Exam.over(bank, documents, part, None, 40)
        for r, (first, row) in enumerate(oracles.contexts(exam, 256)):
            scores = oracles.shipped_scores(rows[first:row], rows, weights())
            assert abs(int(report.ranks.above[r]) - oracles.above(exam, r, scores)) <= 1


@pytest.mark.parametrize("refit", [False, True])
def test_evaluate_says_which_rows_the_spaces_are_fitted_to(refit: bool, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", str(runs / "run0"), "--bank", str(runs / "other.bank"), "--split", "all", "--pool", "30"]
    flags = ["--refit"] if refit else []
    assert main([*line, *flags, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    run, other = Run.open(runs / "run0"), Bank.open(runs / "other.bank")
    (warning,) = [said for said in err.splitlines() if said.startswith("nextvec: ")]
    assert ("its space is fitted to the rows of this bank" in warning) == refit
    assert ("--refit fits it to this bank" in warning) != refit
    of_run = {"of": "training rows", "bank": run.origin.bank, "rows": run.moments().rows}
    assert report["fitted_to"] == ({"of": "all rows", "bank": other.fingerprint, "rows": len(other)} if refit else of_run)
    assert main([*line, *flags]) == 0
    fitted = (
        f"all {len(other)} rows of this bank" if refit else f"training rows of bank {run.origin.bank[:12]}, not of this one"
    )
    assert fitted in " ".join(capsys.readouterr().out.split())


def test_refit_changes_the_figures_of_a_foreign_bank(runs: Path) -> None:
    run, other = Run.open(runs / "run0"), Bank.open(runs / "other.bank")
    plain, refitted = (evaluate(run, other, "all", pool=None, refit=refit) for refit in (False, True))
    assert plain.exam == refitted.exam
    assert (plain.ranks.above != refitted.ranks.above).any()
    copy = "copy last"
    assert (plain.baselines[copy].above == refitted.baselines[copy].above).all()
    spaced = "exponential mean 0.5, power 0.5"
    assert (plain.baselines[spaced].above != refitted.baselines[spaced].above).any()


# Verbs


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of text."""
    folder = tmp_path_factory.mktemp("texts")
    books = folder / "books"
    books.mkdir()
    for m in range(4):
        story = " ".join(f"Chapter {m}, part {i}: the {'fox' if i % 2 else 'hen'} walked {i + m} miles." for i in range(20))
        (books / f"{m}.txt").write_text(story)
    assert main(["ingest", str(books), str(folder / "books.bank"), "--size", "80", "--json"]) == 0
    return folder / "books.bank"


def test_predict_reads_a_text_and_prints_chunks_of_the_bank(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Chapter 3, part 4: the hen walked 7 miles."
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(text.encode())))
    answer = printed(capsys, "predict", str(texts), "-k", "3")
    session = Engine.open(texts).session()
    session.push_text(text)
    assert [e["row"] for e in answer["expected"]] == [e.row for e in session.predict(3)]
    assert answer["bank"] == Bank.open(texts).fingerprint


def test_predict_of_a_bank_of_vectors_needs_files(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = str(runs / "bank")
    assert main(["predict", bank]) == 2
    assert "vectors only" in capsys.readouterr().err
    out = tmp_path / "out.parquet"
    facts = printed(capsys, "predict", bank, "--input", bank, "--output", str(out), "-k", "2")
    assert facts["predictions"] == len(Bank.open(bank))
    line = pq.read_table(out).to_pylist()[4]
    session = Engine.open(bank).session()
    session.push_many(Bank.open(bank).rows[:5])
    np.testing.assert_allclose(line["score"], [e.score for e in session.predict(2)], atol=1e-4)


def test_the_verb_index_makes_the_index_of_a_bank_and_of_a_refitted_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, run = runs / "bank", runs / "run0"
    for name, flags, opened in (
        ("shipped", ["--run", str(bank)], Engine.open(bank)),
        ("refitted", ["--run", str(run), "--refit"], Engine.open(run, refit=True)),
    ):
        facts = printed(capsys, "index", str(bank), str(tmp_path / name), *flags)
        assert opened.candidate_map is not None
        assert facts["map"] == opened.candidate_map.digest
        assert open_index(tmp_path / name, Bank.open(bank), mapping=opened.candidate_map).map_digest == facts["map"]
        with pytest.raises(DataError, match="build one with nextvec index BANK OUT --run RUN"):
            open_index(tmp_path / name, Bank.open(bank), mapping=CandidateMap.of(load_model(Run.open(run))))


def test_the_verb_latency_measures_a_bank(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = str(runs / "bank")
    found = printed(
        capsys, "latency", bank, "--contexts", "5", "--budget", "60000", "--ratio", "60000", "--candidates", "900",
        "--against", str(runs / "run0"),
    )  # fmt: skip
    assert (found["run"], found["model"], found["parameters"], found["index"]["rows"]) == (bank, "pooled", 975, 900)
    assert found["cold"]["answer_seconds"] > 0


def test_the_verb_export_writes_the_weights_of_the_package_in_the_space_of_the_bank(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export itself compares outputs and scores with the model, and refuses a difference above 1e-4."""
    pytest.importorskip("onnxruntime", reason='needs ONNX Runtime: pip install "nextvec[onnx]"')
    bank = Bank.open(runs / "bank")
    facts = printed(capsys, "export", str(runs / "bank"), str(tmp_path / "out"))
    assert facts["model"] == "pooled"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["weights"] == hashlib.sha256(SHIPPED_FILE.read_bytes()).hexdigest()
    assert (manifest["bank"], manifest["num_queries"], manifest["dim"]) == (bank.fingerprint, 12, bank.dim)
    assert max(manifest["checked"]["largest_difference"].values()) <= 1e-4
    assert printed(capsys, "export", str(runs / "bank"), str(tmp_path / "b.parquet"))["rows"] == len(bank)


def test_inspect_tells_a_run_from_a_bank(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [printed(capsys, "inspect", str(runs / name))["kind"] for name in ("run0", "bank")] == ["run", "bank"]


BAD = {
    "neither": (["predict", "none"], "none is neither a run (it has no run.json) nor a bank (it has no bank.json)"),
    "evaluate neither": (["evaluate", "none"], "neither a run"),
    "latency neither": (["latency", "none"], "neither a run"),
    "serve neither": (["serve", "none"], "neither a run"),
    "export neither": (["export", "none", "out"], "neither a run"),
    "a bank and another bank": (["evaluate", "bank", "--bank", "other.bank"], "another bank goes with a run"),
    "serve a bank with another": (["serve", "bank", "--bank", "other.bank"], "another bank goes with a run"),
    "refit of raw rows": (["evaluate", "raw/run0", "--refit", "--pool", "30"], "leave --refit out"),
    "serve refit of raw rows": (["serve", "raw/run0", "--refit", "--sessions", "s"], "leave --refit out"),
    "index of another bank": (["index", "other.bank", "out", "--run", "bank"], "another bank goes with a run"),
    "a folder is no table": (["export", "bank", "made.pdf"], "write .parquet or .npz; or"),
    "status of a bank": (["status", "bank"], "is not a run"),
    "two of one name": (["serve", "other.bank", "other.bank"], "each once"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_one_line(name: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    words, message = BAD[name]
    assert main([*words, *(["--watchdog", "0", "--port", "0"] if words[0] == "serve" else [])]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err


def test_the_evaluation_of_a_bank_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    small = Bank.from_numpy(np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32), [40])
    with pytest.raises(NextvecError, match="a split needs at least 3"):
        evaluate(small, pool=None)
    assert evaluate(small, part="all", pool=None).fitted_to.of == "all rows"
