"""The command line: ``nextvec VERB``. Exit code 0 done, 1 a check failed, 2 misuse or bad input."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nextvec.cli.verbs import VERBS
from nextvec.errors import NextvecError, SettingsError

DESCRIPTION = """\
Read a long context of embedding vectors, predict the next vector, and measure the quality of the predictions.

  nextvec demo                                   predict, train and report, on text that Python contains
  nextvec ingest books/ books.bank               your own text, or ready vectors
  nextvec predict books.bank < chapter.txt       the chunks that are expected next, without training
  nextvec train default runs/first --bank books.bank
  nextvec evaluate runs/first                    Hit@K with intervals, for the model and every baseline
  nextvec predict runs/first < chapter.txt       the chunks that the trained model expects next
"""
EPILOG = "Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input. `nextvec VERB --help` explains one verb."


class _Parser(argparse.ArgumentParser):
    """Misuse gets one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. Errors that a user can correct are one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character still shows the figures
    try:
        arguments = _parser().parse_args(argv)
        return arguments.call(arguments)
    except NextvecError as error:
        print(f"nextvec: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader closed the pipe; stop quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"nextvec: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (MemoryError, OverflowError) as error:
        print(f"nextvec: a number is too large for this machine: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nextvec: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _parser() -> _Parser:
    parser = _Parser("nextvec", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(json=False, parser=parser)  # the parser is for the verb that prints its completion
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_to(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
