"""Why a model could not answer, in words: for the ledger, the log and the dashboard."""

from collections import Counter
from collections.abc import Mapping

from nextvec.serving.isolated import EngineProcess

SHOWN = 3  # causes in a text


def cause(reason: str, engine: object, late: float) -> str:
    """Why a model did not answer.

    Args:
        reason: as in an answer: ``canary late``, ``canary not finite``, ``canary EndedError``.
        engine: of the model.
        late: seconds after which another model answers.
    """
    what = reason.partition(" ")[2]
    if what == "late":
        rounded = float(f"{1e3 * late:.2g}")  # limits differ between requests; rounded, equal causes are counted together
        return f"no answer within {rounded:g} ms"
    if what == "not finite":
        return "a score that is not finite"
    if what == "EndedError" and isinstance(engine, EngineProcess) and engine.ended:
        return engine.ended
    return f"it raised {what}" if what else reason


def most(causes: Mapping[str, int]) -> str:
    """The most frequent causes, each with its count: ``no answer within 200 ms (14 times)``."""
    return ", ".join(f"{what} ({count} times)" for what, count in Counter(causes).most_common(SHOWN))
