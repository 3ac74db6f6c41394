"""The script with which a shell completes the commands, made from their parsers."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab

from nextvec.cli.output import as_json


def completion(arguments: Namespace) -> int:
    """Print the script for ``arguments.shell``; return exit code 0."""
    parser: ArgumentParser = arguments.parser
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE
    script = shtab.complete(parser, arguments.shell)
    if arguments.json:
        return as_json({"shell": arguments.shell, "script": script})
    print(script)
    return 0


def _actions(parser: ArgumentParser) -> Iterator[Any]:
    """All arguments of a parser and of its verbs."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        yield action
        if isinstance(action.choices, dict):
            for verb in action.choices.values():
                yield from _actions(verb)
