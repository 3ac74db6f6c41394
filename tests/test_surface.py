"""Exports, documents and code agree."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nextvec
from nextvec.cli.main import _parser
from nextvec.index.open import KINDS
from tests.serving.server import serving

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", nextvec.__all__)
def test_every_public_name_exists_and_is_explained(name: str) -> None:
    assert getattr(nextvec, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predictor'"):
        _ = nextvec.predictor  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", ["import nextvec", "from nextvec.cli.main import _parser; _parser().format_help()"])
def test_a_start_imports_only_the_standard_library(start: str) -> None:
    """So it is fast, whatever the machine: PyTorch, NumPy and pyarrow are imported on first use."""
    code = f"""import sys
before = set(sys.modules)
{start}
added = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(sorted(added - sys.stdlib_module_names - {{'nextvec'}}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def verbs() -> set[str]:
    actions = _parser()._subparsers._group_actions  # type: ignore[union-attr]
    return set(actions[0].choices)  # type: ignore[arg-type]


def test_the_verb_index_offers_every_kind() -> None:
    verbs = _parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    (kind,) = [action for action in verbs["index"]._actions if action.dest == "kind"]  # type: ignore[index,call-overload]
    assert set(kind.choices) == set(KINDS)


def test_the_readme_names_every_verb() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [verb for verb in verbs() if f"nextvec {verb}" not in readme]
    assert missing == []


def test_commands_in_the_documents_parse() -> None:
    """Every `nextvec …` line of a fenced block is a command that the parser accepts."""
    found = 0
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.splitlines():
                command = line.split("#")[0].split("<")[0].split(">")[0].split("|")[-1].strip()
                if command.startswith("nextvec "):
                    _parser().parse_args(shlex.split(command)[1:])
                    found += 1
    assert found >= 8


@pytest.mark.integration
def test_the_python_examples_run_on_a_small_bank(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    answer, because, client = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    books = tmp_path / "books"
    books.mkdir()
    for m in range(16):
        story = " ".join(
            f"On day {i} of year {m} the {'fox' if i % 3 else 'hen'} walked {i + m} miles home." for i in range(200)
        )
        (books / f"{m}.txt").write_text(story)
    recipe = 'nv.recipe("default", len(bank))'
    smaller = example.replace(recipe, f"{recipe}.replaced(updates=20, pool=50)").replace("context=500)", "context=20, pool=50)")
    prelude = "import nextvec as nv\n"
    smaller += "vector = bank.rows[0]\n" + answer + because + "assert nv.Engine.open('runs/first').restore(data).length == 1\n"
    done = subprocess.run([sys.executable, "-c", prelude + smaller], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hit@5" in done.stdout
    assert "lift" in done.stdout
    with serving(tmp_path / "runs" / "first", tmp_path / "sessions") as server:
        talk = client.replace("http://127.0.0.1:8080", server.url)
        done = subprocess.run([sys.executable, "-c", talk], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "miles home" in done.stdout
    assert len(done.stdout.splitlines()) == 6


def test_every_test_that_a_document_names_exists() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for path in (ROOT / "docs").glob("*.md") for name in re.findall(r"`(test_\w+)`", path.read_text())}
    assert len(named) > 20
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


def test_every_path_that_a_document_of_the_code_names_exists() -> None:
    """Paths are relative to the package or to the repository."""
    named: set[str] = set()
    for name in ("architecture.md", "glossary.md"):
        named |= set(re.findall(r"`((?:[\w.]+/)+(?:\w+\.py)?)`", (ROOT / "docs" / name).read_text()))
    assert len(named) > 40
    assert [path for path in sorted(named) if not any((top / path).exists() for top in (ROOT, ROOT / "src/nextvec"))] == []
