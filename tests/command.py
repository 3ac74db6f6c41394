"""The command line in this process: no interpreter is started, and torch is imported once."""

from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from nextvec.cli.main import main


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def nextvec(*words: str, folder: Path | None = None) -> Done:
    """Run ``nextvec WORDS`` in ``folder``. What it prints goes to files, since the server's log writes to a descriptor.

    A server that is refused late has started its watchdog, which ends the process a minute later; here there is none.
    """
    if words[0] == "serve":
        words = (*words, "--watchdog", "0")
    place = nullcontext() if folder is None else chdir(folder)
    with place, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
        for file in (out, err):
            file.seek(0)
        return Done(code, out.read(), err.read())
