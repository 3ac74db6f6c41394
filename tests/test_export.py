"""An exported model answers as the model does, with numpy and ONNX Runtime alone."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import RunError
from nextvec.inference import export as exporting
from nextvec.inference import export_graphs
from nextvec.inference.export import export
from nextvec.inference.export_check import TOLERANCE
from nextvec.inference.export_files import EXAMPLE_CODE
from nextvec.inference.export_graphs import Graphs
from nextvec.inference.forms import Forms
from nextvec.models import Recurrent
from nextvec.models.hierarchical import Unbranched, UnbranchedState
from nextvec.models.space import InSpace
from nextvec.runs import Run, load_model
from nextvec.runs.loading import build
from nextvec.runs.run import BEST
from nextvec.training import begin
from nextvec.training.begin import basis_of_run
from tests.conftest import walk_bank
from tests.laws.test_models import MODELS, passage, shaken
from tests.laws.test_models import stepped as stepwise
from tests.settings import fitting
from tests.test_cli import write_bank

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DIM = 16
SMALL = {"hidden": 8, "slots": 16, "working": 5, "window": 5, "chunk": 7, "pool": 30}
VARIANTS: dict[str, dict[str, Any]] = {
    "memory_gru": {},
    "memory_gru without memories": {"working": 0, "slots": 0},
    "gru": {"layers": 2},
    "lstm": {"layers": 2},
    "transformer": {"layers": 2},
    "transformer, window of 1": {"window": 1},
    "mixture": {},
    "hierarchical": {"layers": 2},
    "linear": {"layers": 2},
    "experts": {"experts": 4, "expert_width": 8, "gate_on": "both", "top": 2, "common_width": 6},
    "experts of random lanes": {"lanes": "random", "expert_width": 8, "route_per": "document"},
    "published": {"layers": 2},
    "gru in a space": {"space": "fitted"},
    "pooled in a space": {"space": "fitted", "power": 0.5, "pooled": 4},
    "pooled without queries": {"pooled": 0, "working": 0},
}


class Exported(NamedTuple):
    folder: Path
    manifest: dict[str, Any]
    model: Recurrent[Any]
    step: Any
    passage: Any


@pytest.fixture(scope="module")
def bank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("export") / "bank", walk_bank(documents=24))


def begun(path: Path, bank: Path, variant: str) -> Run:
    changes = {"model": variant.split()[0].strip(","), **SMALL, **VARIANTS[variant]}
    return begin(path, variant, fitting(**changes), Bank.open(bank))


def finished(path: Path, bank: Path, variant: str) -> Run:
    """A run whose weights lie far from their neutral start, as if trained."""
    run = begun(path, bank, variant)
    opened = Bank.open(bank)
    basis = basis_of_run(run, opened, run.split(opened).train)
    torch.manual_seed(1)
    model = build(run.settings, basis)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    run.save(BEST, model.state_dict(), 1)
    run.record([], "updates")
    return run


# Simpler forms of a variant beside them; each costs 10 to 20 s of tracing.
SIMPLER = ("memory_gru without memories", "transformer, window of 1", "experts of random lanes")
MARKS = {
    variant: () if variant == "gru" else pytest.mark.slow if variant in SIMPLER else pytest.mark.integration
    for variant in VARIANTS
}


@pytest.fixture(scope="module", params=[pytest.param(variant, marks=marks) for variant, marks in MARKS.items()])
def exported(request: pytest.FixtureRequest, bank_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    if request.param == "gru":
        run, folder = request.getfixturevalue("gru"), request.getfixturevalue("gru_export")
    else:
        folder = tmp_path_factory.mktemp("exported") / "out"
        run = finished(folder.parent / "run", bank_path, request.param)
        export(run, folder)
    step, passage = (session(folder / name) for name in ("step.onnx", "passage.onnx"))
    return Exported(folder, json.loads((folder / "manifest.json").read_text()), load_model(run), step, passage)


@pytest.fixture(scope="module")
def gru(bank_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("gru") / "run", bank_path, "gru")


@pytest.fixture(scope="module")
def gru_export(gru: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gru-export") / "out"
    assert export(gru, folder) == json.loads((folder / "manifest.json").read_text())
    return folder


def session(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def start(manifest: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    """Exactly as the manifest says it is made."""
    assert manifest["start"] == "zeros in every tensor of the state"
    return {p["input"]: np.zeros([batch if n == "batch" else n for n in p["shape"]], p["dtype"]) for p in manifest["state"]}


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def wanted(model: Recurrent[Any], x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def stepped(found: Exported, x: np.ndarray) -> np.ndarray:
    state, out = start(found.manifest, len(x)), []
    for t in range(x.shape[1]):
        y, *after = found.step.run(None, {"x": x[:, t], **state})
        state = dict(zip((p["input"] for p in found.manifest["state"]), after, strict=True))
        out.append(y)
    return np.stack(out, axis=1)


# Beyond the window and the working memory of 5, the chunk of 7, and the 16 vectors that a passage computes at once.
@given(batch=st.sampled_from((1, 3)), length=st.sampled_from((1, 4, 7, 16, 17, 40)), seed=st.integers(0, 2**31))
def test_step_and_passage_are_the_model(exported: Exported, batch: int, length: int, seed: int) -> None:
    x = unit(batch, length, DIM, seed=seed)
    y = wanted(exported.model, x)
    np.testing.assert_allclose(stepped(exported, x), y, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(exported.passage.run(None, {"x": x})[0], y, rtol=0, atol=TOLERANCE)


def test_passages_of_one_batch_may_have_begun_at_different_times(exported: Exported) -> None:
    x, early = unit(2, 20, DIM), 9
    names = [p["input"] for p in exported.manifest["state"]]
    first = start(exported.manifest, 1)
    for t in range(early):
        _, *after = exported.step.run(None, {"x": x[:1, t], **first})
        first = dict(zip(names, after, strict=True))
    axes = [p["shape"].index("batch") for p in exported.manifest["state"]]
    second = start(exported.manifest, 1)
    state = {n: np.concatenate([first[n], second[n]], axis) for n, axis in zip(names, axes, strict=True)}
    for t in range(20 - early):
        y, *after = exported.step.run(None, {"x": np.stack([x[0, early + t], x[1, t]]), **state})
        state = dict(zip(names, after, strict=True))
    np.testing.assert_allclose(y[0], wanted(exported.model, x[:1])[0, -1], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(y[1], wanted(exported.model, x[1:, : 20 - early])[0, -1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_traceable_model_predicts_as_the_model_does(name: str) -> None:
    torch.manual_seed(0)
    model, x = shaken(MODELS[name]()).eval(), passage(2, 40)
    traceable = model.traceable()
    torch.testing.assert_close(stepwise(traceable, x), model(x), rtol=0, atol=1e-5)
    assert traceable.window_length == model.window_length
    assert traceable.traceable() is traceable


@pytest.mark.parametrize("variant", ["memory_gru", "transformer", "transformer, window of 1", "mixture"])
def test_a_start_with_all_places_unfilled_is_the_models_own(variant: str, bank_path: Path, tmp_path: Path) -> None:
    model = load_model(finished(tmp_path / "run", bank_path, variant))
    x = torch.from_numpy(unit(2, 12, DIM))
    with torch.no_grad():
        _, y = model.run(Forms(model).full_start(2), x)
        torch.testing.assert_close(y, model(x), rtol=0, atol=1e-6)


def test_the_manifest_describes_the_files(exported: Exported) -> None:
    said, folder = exported.manifest, exported.folder
    assert json.loads((folder / "manifest.json").read_text()) == said
    parts = {"step": exported.step, "passage": exported.passage}
    if exported.model.maps_candidates:
        parts["candidates"] = session(folder / "candidates.onnx")
    else:
        assert said["candidates"] is None
    assert {entry.name for entry in folder.iterdir()} == {*(f"{part}.onnx" for part in parts), "manifest.json", "example.py"}
    for part, run in parts.items():
        data = (folder / said[part]["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == said[part]["sha256"]
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
        assert str(Path(exporting.__file__).parents[2]).encode() not in data, "the machine it was made on"
        for told, held in ((said[part]["inputs"], run.get_inputs()), (said[part]["outputs"], run.get_outputs())):
            assert [t["name"] for t in told] == [h.name for h in held]
            assert [t["shape"] for t in told] == [h.shape for h in held]
    assert [p["input"] for p in said["state"]] == [t["name"] for t in said["step"]["inputs"][1:]]
    assert [p["output"] for p in said["state"]] == [t["name"] for t in said["step"]["outputs"][1:]]
    assert set(said["checked"]["largest_difference"]) == {*parts, "scores"}
    assert all(difference <= TOLERANCE for difference in said["checked"]["largest_difference"].values())
    assert len(said["checked"]["passages"]) == 8, "the bank's rows, too"


def test_the_document_shows_the_example() -> None:
    document = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    assert EXAMPLE_CODE.split("\n", 1)[1] in document


def true_scores(model: Recurrent[Any], y_W: np.ndarray, rows_CD: np.ndarray) -> np.ndarray:
    """In float64, from the definition: the soft maximum of the products of the queries with the rows of the space."""
    y, rows = y_W.astype(np.float64), rows_CD.astype(np.float64)
    if isinstance(model, InSpace):
        mapped = (rows - model.space.mean.double().numpy()) @ model.space.matrix.double().numpy()
        rows = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    if model.num_queries == 1:
        return rows @ y
    queries, log_weights = y[: -model.num_queries].reshape(model.num_queries, -1), y[-model.num_queries :]
    sharpness = float(model.sharpness.detach())
    return np.log((np.exp(sharpness * (rows @ queries.T)) * np.exp(log_weights)).sum(1)) / sharpness


# 2 vectors: two of the queries have not been read.
@pytest.mark.parametrize("length", [2, 30])
def test_the_example_needs_numpy_and_onnxruntime_alone(exported: Exported, length: int, tmp_path: Path) -> None:
    context = unit(length, DIM, seed=1)
    candidates = np.concatenate([np.tile(unit(100, DIM, seed=2), (2, 1)), context])  # each twice, and what was read
    np.save(tmp_path / "context.npy", 3 * context)
    np.save(tmp_path / "candidates.npy", 2 * candidates)
    script = str(exported.folder / "example.py")
    code = (
        "import runpy, sys; sys.modules.update(nextvec=None, torch=None)\n"
        f"sys.argv = [{script!r}, 'context.npy', 'candidates.npy']; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    scores = true_scores(exported.model, wanted(exported.model, context[None])[0, -1], candidates[:100])
    nearest = np.argsort(-scores)[:5]
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [int(number) for number, _ in printed] == nearest.tolist()
    np.testing.assert_allclose([float(score) for _, score in printed], scores[nearest], rtol=0, atol=1e-4)


def test_a_map_of_candidates_that_differs_is_not_written(
    bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, mapping = exporting.graphs, export_graphs._mapping

    def of_another_space(model: InSpace) -> Graphs:
        found = made(model)
        model.space.mean.add_(1e-2)
        other = mapping(model.traceable()).SerializeToString()
        model.space.mean.sub_(1e-2)
        return found._replace(candidates=other)

    monkeypatch.setattr(exporting, "graphs", of_another_space)
    run = finished(tmp_path / "run", bank_path, "gru in a space")
    with pytest.raises(RunError, match=r"the exported (scores differ|candidates differs) from the model by"):
        export(run, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.integration
def test_the_verb_says_nothing_but_its_object_and_replaces_an_export(
    gru: Run, gru_export: Path, tmp_path: Path, command: list[str], quiet_environment: dict[str, str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(gru_export, out)
    (out / "step.onnx").write_bytes(b"old")
    done = subprocess.run(
        [*command, "export", str(gru.path), str(out), "--json"],
        env=quiet_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["folder"], facts["model"], facts["state_tensors"]) == (str(out), "gru", 2)
    assert facts["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    said = json.loads((out / "manifest.json").read_text())
    assert hashlib.sha256((out / "step.onnx").read_bytes()).hexdigest() == said["step"]["sha256"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.integration
def test_a_graph_that_differs_is_not_written(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_run = Unbranched.run

    def never_ending(self: Unbranched, state: UnbranchedState, x: torch.Tensor) -> tuple[UnbranchedState, torch.Tensor]:
        return true_run(self, state._replace(num_read=torch.zeros_like(state.num_read)), x)

    monkeypatch.setattr(Unbranched, "run", never_ending)
    run = finished(tmp_path / "run", bank_path, "hierarchical")
    with pytest.raises(RunError, match=r"the exported step differs from the model by .* vectors; at most 1e-04"):
        export(run, tmp_path / "made" / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_weights_beyond_what_a_file_can_hold_are_refused(gru: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "LARGEST", 1000)
    with pytest.raises(RunError, match=r"GiB; an \.onnx file ends at 2"):
        export(gru, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def unfinished(place: Path, bank: Path, out: Path) -> Path:
    return begun(place / "run", bank, "gru").path


def not_a_run(place: Path, bank: Path, out: Path) -> Path:
    return place


def occupied(place: Path, bank: Path, out: Path) -> Path:
    (out / "example.py").parent.mkdir()
    (out / "example.py").write_text("print('mine')")
    return finished(place / "run", bank, "gru").path


def a_file(place: Path, bank: Path, out: Path) -> Path:
    out.write_text("mine")
    return finished(place / "run", bank, "gru").path


@pytest.mark.parametrize(
    ("given_run", "says"),
    [
        (unfinished, "is not finished; train it to its end"),
        (not_a_run, "is neither a run (it has no run.json) nor a bank"),
        (occupied, "exists and is not an export; choose another name"),
        (a_file, "exists and is not an export; choose another name"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    given_run: Callable[[Path, Path, Path], Path],
    says: str,
    bank_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    run = given_run(tmp_path, bank_path, out)
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(run), str(out)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_what_is_not_installed_is_named(
    library: str, gru: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(gru.path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f'needs {library}, which is not installed: pip install "nextvec[onnx]"' in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
