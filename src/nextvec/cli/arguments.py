"""Types of arguments, and the arguments that several verbs take."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

WEIGHTS = ("auto", "float32", "bfloat16", "int8")
LARGEST = 2**40
SOURCE = "a trained run; or a bank, whose rows the weights of the package predict without training"


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _number(text, 1)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return _number(text, 0)


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def pool(text: str) -> int | None:
    """A number of candidates, or None for ``all``."""
    return None if text == "all" else _number(text, 2)


def pools(text: str) -> tuple[int | None, ...]:
    """Numbers of candidates with commas between them."""
    return tuple(map(pool, names(text)))


def counts(text: str) -> tuple[int, ...]:
    """Positive whole numbers with commas between them."""
    return tuple(map(positive, names(text)))


def names(text: str) -> tuple[str, ...]:
    """A list with commas between its names; no name may be empty."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise ArgumentTypeError(f"{text!r} is not a list like a,b,c")
    return found


def add_verify(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the hash of the bank's content, even if its files have not changed since the last check",
    )


def add_source(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN|BANK", help=SOURCE)


def add_refit(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--refit",
        action="store_true",
        help="fit the space of a run to all rows of the bank whose rows it predicts (its weights stay; needs no labels)",
    )


def add_training_bank(parser: ArgumentParser) -> None:
    parser.add_argument("--bank", type=Path, required=True, help="the bank to train on")
    add_verify(parser)


def add_bank_of_run(parser: ArgumentParser) -> None:
    parser.add_argument("--bank", type=Path, help="present path of the bank (default: its path when the run was trained)")
    add_verify(parser)


def add_candidate_bank(parser: ArgumentParser) -> None:
    parser.add_argument("--bank", type=Path, help="the bank of the candidates (default: the bank that the run was trained on)")
    add_verify(parser)


def add_settings(parser: ArgumentParser, of: str = "a setting of the recipe") -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help=f"change {of}; may be given several times"
    )


def add_lanes(parser: ArgumentParser, what: str = "also report each lane") -> None:
    parser.add_argument("--lanes", type=Path, metavar="FOLDER", help=f"{what}; made by nextvec lanes BANK --out FOLDER")


def add_exam(parser: ArgumentParser) -> None:
    """The size of the exam."""
    parser.add_argument(
        "--pool", type=pool, default=1000, metavar="N|all", help="candidates of each scored row (default: 1000)"
    )
    add_rows(parser)


def add_rows(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=positive, default=2000, help="largest number of scored rows (default: 2000)")


def add_jobs(parser: ArgumentParser) -> None:
    parser.add_argument("--jobs", type=positive, default=1, help="runs that are trained at the same time (default: 1)")


def add_weights(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="format of the weights (default: auto, which chooses for this processor)",
    )


def _number(text: str, least: int) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = least - 1
    if not least <= value <= LARGEST:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value
