"""Why a model could not answer, in words: for the ledger, the log and the dashboard."""

from collections import Counter
from collections.abc import Mapping

from nextvec.serving.answering import Answering

SHOWN = 3  # causes in a text


def cause(reason: str, engine: Answering | None, late: float) -> str:
    """Why a model did not answer.

    Args:
        reason: as in an answer: ``canary late``, ``canary not finite``, ``canary EndedError``.
        engine: of the model; None if the model is not served any more.
        late: seconds after which another model answers.
    """
    what = reason.partition(" ")[2]
    if what == "late":
        rounded = float(f"{1e3 * late:.2g}")  # limits differ between requests; rounded, equal causes are counted together
        return f"no answer within {rounded:g} ms"
    if what == "not finite":
        return "a score that is not finite"
    if what == "EndedError" and engine is not None and engine.place.last_end:
        return engine.place.last_end
    return f"it raised {what}" if what else reason


def most(causes: Mapping[str, int]) -> str:
    """The most frequent causes, each with its count: ``no answer within 200 ms (14 times)``."""
    return ", ".join(f"{what} ({count} times)" for what, count in Counter(causes).most_common(SHOWN))
