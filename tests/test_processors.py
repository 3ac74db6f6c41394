"""Every model, precision and weight format computes on every processor; what a machine cannot compute is refused first."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from nextvec.errors import SettingsError
from nextvec.kernels import build as compiled
from nextvec.kernels import library
from nextvec.runs.families import family_names
from nextvec.runs.groups import Precision
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.settings import fitting
from tests.test_training import on_disk

# What oneDNN, torch and the kernels are told to see. They read it when they are loaded, so each is a process of its own.
PROCESSORS = {
    "this": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "oldest": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "NEXTVEC_KERNELS": "any"},
    "without kernels": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "NEXTVEC_KERNELS": "torch"},
}
SETS = ("context=20", "batch=3", "updates=2", "evaluate_every=1", "hidden=8", "pool=30")
VALUES: dict[str, Any] = {
    "context": 20, "batch": 3, "updates": 2, "evaluate_every": 1, "pool": 30,
    "hidden": 8, "slots": 16, "working": 8, "experts": 2,
}  # fmt: skip
SMALL = fitting("memory_gru", **VALUES)


def computed_as_on(processor: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **PROCESSORS[processor]}
    done = subprocess.run(
        [sys.executable, "-m", "tests.every_model", str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return computed_as_on("this", tmp_path_factory.mktemp("this"))


@pytest.mark.integration
@pytest.mark.parametrize("processor", ["avx2", pytest.param("oldest", marks=pytest.mark.slow), "without kernels"])
def test_every_model_precision_and_format_computes_alike_on_every_processor(
    processor: str, here: dict[str, Any], tmp_path: Path
) -> None:
    found = computed_as_on(processor, tmp_path)
    assert found["losses"].keys() == {f"{model} {p}" for model in family_names() for p in ("float32", "bfloat16")}
    for name, loss in found["losses"].items():
        assert loss == pytest.approx(here["losses"][name], rel=1e-2 if "bfloat16" in name else 1e-4), name
    assert len(found["predictions"]) == 3 * len(family_names())
    for name, prediction in found["predictions"].items():
        np.testing.assert_allclose(prediction, here["predictions"][name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_accelerator_trains_every_model_or_its_absence_is_told_before_anything_is_written(
    device: Any, precision: Any, tmp_path: Path
) -> None:
    bank = walk_bank()
    settings = SMALL.replaced(device=device, precision=precision)
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        with pytest.raises(SettingsError, match=f"device={device}: this machine has none.*the nearest right one is"):
            begin(tmp_path / "run", "test", settings, bank)
        assert not (tmp_path / "run").exists()
        return
    for model in family_names():
        run = begin(tmp_path / model, "test", fitting(model, **VALUES, device=device, precision=precision), bank)
        list(train(run, bank))
        assert np.isfinite(run.history()[-1]["loss"]), model


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="auto is an accelerator here")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_float16_on_the_processor_is_refused_before_anything_is_written(device: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the nearest right one is bfloat16"):
        begin(tmp_path / "run", "test", SMALL.replaced(device=device, precision="float16"), walk_bank())
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "bank"
    on_disk(walk_bank(), path)
    return path


def refused(program: str, stored: Path, run: Path, environment: dict[str, str], *sets: str) -> str:
    """The one line that the command ends with, given that it wrote nothing."""
    flags = ["train", "memory", str(run), "--bank", str(stored), *(part for s in sets for part in ("--set", s))]
    command = [sys.executable, "-c", f"{program}from nextvec.cli.main import main; sys.exit(main())", *flags]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, run.exists()) == (2, "", False), done.stderr
    return done.stderr


@pytest.mark.integration
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's levels are those of x86")
def test_an_operation_that_the_processor_lacks_is_refused_with_what_to_choose(stored: Path, tmp_path: Path) -> None:
    """oneDNN's own refusal, which the model no longer meets: here its own way round it is taken away."""
    bare = "import sys; from nextvec.models import lstm; lstm._has_bfloat16 = lambda: True; "
    told = refused(bare, stored, tmp_path / "run", PROCESSORS["avx2"], "model=lstm", "precision=bfloat16", "device=cpu", *SETS)
    assert "model=lstm precision=bfloat16 device=cpu: this machine does not compute it" in told
    assert told.rstrip().endswith("choose precision=float32") and told.count("\n") == 1


@pytest.mark.slow
def test_without_a_compiler_a_compiled_model_is_refused_with_what_to_choose(stored: Path, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = refused("import sys; ", stored, tmp_path / "run", environment, "compile=true", "device=cpu", *SETS)
    assert "compile=true: this machine does not compute it" in told
    assert told.rstrip().endswith("choose compile=false") and told.count("\n") == 1


def test_the_level_of_the_kernels_can_be_lowered_but_not_chosen_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [*compiled.levels()]
    best = library.level()
    if best == "torch":
        pytest.skip("the kernels were not compiled")
    for asked in [*order, "torch", "avx3"]:
        monkeypatch.setenv(library.VARIABLE, asked)
        library.library.cache_clear()
        library.level.cache_clear()
        if asked in order[: order.index(best) + 1] or asked == "torch":
            assert library.level() == asked
        else:
            with pytest.raises(SettingsError, match=r"no such level|cannot run it"):
                library.level()
    monkeypatch.undo()
    library.library.cache_clear()
    library.level.cache_clear()
    assert library.level() == best
