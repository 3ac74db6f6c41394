"""The verb that prints a script for completion in a shell."""

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec

from nextvec.cli.verb import Verb
from nextvec.errors import SettingsError

SHELLS = ("bash", "zsh", "fish")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def _completion(arguments: Namespace) -> int:
    if find_spec("shtab") is None:
        raise SettingsError("the script for completion is made by shtab: pip install 'nextvec[completion]'")
    from nextvec.cli.completion import completion

    return completion(arguments)


COMPLETION = Verb(
    "completion",
    "print the script for completion in a shell",
    "Prints a script with which bash, zsh or fish completes verbs, options and paths. The script does not start nextvec, so "
    "completion costs no time.",
    "nextvec completion bash > ~/.local/share/bash-completion/completions/nextvec",
    _arguments,
    _completion,
)
