"""One verb of the command line: its name, its help, its arguments and its call."""

import shutil
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill
from typing import Protocol, runtime_checkable


@runtime_checkable
class Parsers(Protocol):
    """What :meth:`ArgumentParser.add_subparsers` returns, as far as verbs use it."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,  # noqa: A002
        description: str,
        epilog: str | None,
        formatter_class: type[RawDescriptionHelpFormatter],
    ) -> ArgumentParser: ...


@dataclass(frozen=True)
class Verb:
    """A verb that runs.

    Attributes:
        summary: one line for the list of verbs.
        about: what it does, reads and writes.
        example: one command line.
        add_arguments: adds its arguments to its parser; ``--json`` is added to every verb.
        run: does it and returns the exit code. It imports what it needs when it is called, because ``nextvec --help``
            must not wait for torch.
    """

    name: str
    summary: str
    about: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]

    def add_to(self, parsers: Parsers) -> None:
        """Add the parser of this verb; ``arguments.call(arguments)`` then runs it."""
        parser = _parser(parsers, self.name, self.summary, self.about, f"Example:\n  {self.example}")
        self.add_arguments(parser)
        parser.set_defaults(call=self.run)


@dataclass(frozen=True)
class VerbGroup:
    """A verb whose first argument names one of several verbs.

    Attributes:
        dest: the attribute of the arguments that holds the chosen name.
    """

    name: str
    summary: str
    about: str
    dest: str
    verbs: tuple[Verb, ...]

    def add_to(self, parsers: Parsers) -> None:
        """Add the parser of this verb and those of its verbs."""
        parser = _parser(parsers, self.name, self.summary, self.about, None)
        inner = parser.add_subparsers(dest=self.dest, required=True, metavar=self.dest.upper())
        for verb in self.verbs:
            verb.add_to(inner)


def _parser(parsers: Parsers, name: str, summary: str, about: str, epilog: str | None) -> ArgumentParser:
    width = min(shutil.get_terminal_size().columns, 100) - 2
    parser = parsers.add_parser(
        name, help=summary, description=fill(about, width), epilog=epilog, formatter_class=RawDescriptionHelpFormatter
    )
    # Without a default, so that a verb does not undo the --json of its group; `nextvec` itself has the default.
    parser.add_argument("--json", action="store_true", default=SUPPRESS, help="print one JSON object and nothing else")
    return parser
