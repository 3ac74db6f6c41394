"""The errors that nextvec raises. Each message is one line: what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class NextvecError(Exception):
    """The base of all errors; the command line prints its message and exits with 2."""


class DataError(NextvecError):
    """Input that cannot become a bank, or a bank that is damaged."""


class SettingsError(NextvecError):
    """A setting, flag or recipe that does not exist or does not fit."""


class RunError(NextvecError):
    """A run directory that is missing, unfinished, foreign or damaged."""


class NotFiniteError(RunError):
    """A prediction has NaN or infinity. The cause is the model, not the input."""


class ExamError(NextvecError):
    """An exam that cannot be made, or two reports that cannot be compared."""


class ServingError(NextvecError):
    """A request that a server, a session or a rollout cannot fulfil."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known name that is most like it, or all known names."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
