"""The completion script, run by the shell itself."""

import json
import shutil
import subprocess

import pytest

pytest.importorskip("shtab", reason="needs shtab: pip install 'nextvec[completion]'")

from tests.command import nextvec

pytestmark = pytest.mark.integration


def completed(*words: str) -> set[str]:
    """What bash proposes for the last word of a command line."""
    script = nextvec("completion", "bash").out
    line = " ".join(words)
    asked = f"""
    COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
    COMP_LINE='{line}'; COMP_POINT={len(line)}
    $(complete -p nextvec | sed 's/.*-F \\([^ ]*\\).*/\\1/') nextvec '{words[-1]}' '{words[-2]}'
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes_verbs_options_and_choices() -> None:
    assert completed("nextvec", "ex") == {"export", "experiment"}
    assert "--because" in completed("nextvec", "predict", "--b")
    assert completed("nextvec", "index", "--format", "f") == {"float32", "float16"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_script(shell: str) -> None:
    done = nextvec("completion", shell, "--json")
    script = json.loads(done.out)["script"]
    assert "nextvec" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; its script was made but not parsed")
    subprocess.run([shell, "-n"], input=script, text=True, check=True, capture_output=True)
