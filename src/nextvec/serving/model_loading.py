"""Opens a run for serving: it must fit the other models, and it must answer once before it is served."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nextvec.errors import ServingError
from nextvec.inference import PredictionRequest
from nextvec.serving.answering import Answering


def load(name: str, run: Path, open_run: Callable[[Path], Answering], other: tuple[str, Answering] | None) -> Answering:
    """An open engine that has answered one request: the first answer takes longer than all later ones.

    Args:
        other: name and engine of a served model; None for the first.

    Raises:
        NextvecError: the run cannot be opened, does not fit, or cannot answer; no process of it is left.
    """
    engine = open_run(run)
    try:
        if other is not None:
            _check_fits(name, engine, *other)
        engine.bank.distinct.rows(0)  # reads the whole bank, once for each model
        first = PredictionRequest(engine.session(), np.asarray(engine.bank.rows[:1], np.float32), 1)
        (answer,) = engine.answers([first])
        if isinstance(answer, Exception):
            raise answer
    except BaseException:
        engine.close()
        raise
    return engine


def _check_fits(name: str, engine: Answering, other_name: str, other: Answering) -> None:
    if (engine.dim, engine.encoder_fingerprint) != (other.dim, other.encoder_fingerprint):
        raise ServingError(f"model {name!r} reads vectors of another encoder or width than {other_name!r}; serve it apart")
