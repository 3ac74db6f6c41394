"""The rooms of the package: short modules and functions, no import cycle, imports only from rooms below."""

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from benchmarks.rooms import Module, cycles_of, functions_of, modules_of

ROOT = Path(__file__).parents[1]
MODULE, MEDIAN, FUNCTION = 400, 140, 60  # lines
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return modules_of(ROOT)


def test_no_module_is_longer_than_the_limit(modules: list[Module]) -> None:
    assert {module.name: module.lines for module in modules if module.lines > MODULE} == {}


def test_the_median_module_is_short(modules: list[Module]) -> None:
    assert median(module.lines for module in modules) <= MEDIAN


def test_no_function_is_longer_than_the_limit(modules: list[Module]) -> None:
    assert [(lines, name) for lines, name in functions_of(modules) if lines > FUNCTION] == []


def test_no_modules_import_each_other(modules: list[Module]) -> None:
    assert cycles_of(modules) == []


PLANTED = {
    "at the top": "from nextvec.bank.distinct import Distinct\n",
    "inside a function": "\n\ndef planted() -> None:\n    from nextvec.bank.distinct import Distinct\n",
    "for types alone": (
        "\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from nextvec.bank.distinct import Distinct\n"
    ),
}


@pytest.mark.parametrize("place", PLANTED)
def test_a_planted_cycle_is_found(place: str, tmp_path: Path) -> None:
    plant(copied(tmp_path) / "bank/hashing.py", PLANTED[place])
    (found,) = [cycle for cycle in cycles_of(modules_of(tmp_path)) if "nextvec.bank.hashing" in cycle]
    assert found == ["nextvec.bank.distinct", "nextvec.bank.hashing"]


def test_a_package_that_a_module_of_it_imports_is_a_cycle(tmp_path: Path) -> None:
    plant(copied(tmp_path) / "bank/hashing.py", "from nextvec.bank import Bank\n")
    (found,) = [cycle for cycle in cycles_of(modules_of(tmp_path)) if "nextvec.bank.hashing" in cycle]
    assert {"nextvec.bank", "nextvec.bank.bank", "nextvec.bank.hashing"} <= set(found)


def test_the_import_linter_finds_nothing(tmp_path: Path) -> None:
    copied(tmp_path)
    code, said = linted(tmp_path)
    assert code == 0, said


def test_the_import_linter_names_a_planted_cycle(tmp_path: Path) -> None:
    plant(copied(tmp_path) / "bank/hashing.py", PLANTED["inside a function"])
    code, said = linted(tmp_path)
    assert code == 1
    assert "No cycles are allowed in nextvec.bank." in said
    assert ".hashing" in said
    assert ".distinct" in said


def test_the_import_linter_names_a_planted_import_from_above(tmp_path: Path) -> None:
    (copied(tmp_path) / "bank/planted.py").write_text("from nextvec.training import train\n")
    code, said = linted(tmp_path)
    assert code == 1
    assert "nextvec.bank is not allowed to import nextvec.training" in said
    assert "nextvec.bank.planted -> nextvec.training" in said


def test_the_import_linter_names_a_package_that_only_integrations_may_import(tmp_path: Path) -> None:
    plant(copied(tmp_path) / "bank/hashing.py", "\n\ndef planted() -> None:\n    import pandas\n")
    code, said = linted(tmp_path)
    assert code == 1
    assert "nextvec is not allowed to import pandas" in said
    assert "nextvec.bank.hashing -> pandas" in said


def copied(folder: Path) -> Path:
    """The package of a copy of the sources in ``folder``, and the contracts beside it."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    return Path(shutil.copytree(ROOT / "src/nextvec", folder / "src/nextvec", ignore=shutil.ignore_patterns("*.so", "*.pyc")))


def plant(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def linted(folder: Path) -> tuple[int, str]:
    """Exit code and output of the import linter, its lines joined."""
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": "", "COLUMNS": "200"}
    done = subprocess.run(LINT, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())
