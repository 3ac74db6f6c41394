"""Sessions that move to another server: the context, which is the truth there too, and the state that has read it."""

# Axes: T vectors, D width.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from nextvec.errors import DataError
from nextvec.inference import snapshot
from nextvec.inference.snapshot import Context
from nextvec.serving.contexts import View, narrow
from nextvec.serving.isolated import Answering, Reading
from nextvec.serving.rebuild import read
from nextvec.serving.refusal import RefusedError
from nextvec.serving.turns import Steps
from nextvec.vectors import check_usable
from nextvec.wire.limits import MOST_LENGTH


@dataclass(frozen=True)
class Moved:
    """A session of another server, checked.

    Attributes:
        rows: as they were appended, float16 where that loses nothing.
        state: that has read them all; None where the snapshot is of another model or bank.
    """

    rows: Float[np.ndarray, "T D"]
    context: Context
    state: Reading | None


def packed(state: Reading, unread: Float32[np.ndarray, "T D"], view: View, encoder: str) -> Steps[bytes]:
    """A session as bytes.

    Args:
        state: reads ``unread`` first.
        view: the whole context.
        encoder: fingerprint of what made its vectors.
    """
    if len(unread):
        yield from read(state, unread)
    saved = state.snapshot()
    yield
    rows = view.read()
    yield
    return snapshot.with_context(saved, Context(narrow(rows), view.head.seq, view.head.digest, encoder))


def opened(data: bytes, engine: Answering) -> Steps[Moved]:
    """What :func:`packed` made, perhaps on another server.

    Raises:
        DataError: damaged, without a context, with a vector that no append may hold, or with a state that is not the engine's.
        RefusedError: 413 more vectors than a session has at most; 422 of another width or encoder.
    """
    saved = snapshot.read(data)
    context = saved.context
    if context is None:
        raise DataError("this snapshot holds a state and no context; take a new one from a server of this version")
    length, dim = context.rows.shape
    if dim != engine.dim or context.encoder != engine.encoder_fingerprint:
        theirs, mine = (f"width {width} of encoder {name[:40]!r}" for width, name in _kinds(context, engine))
        raise RefusedError(422, f"this snapshot holds vectors of {theirs}; this server reads {mine}")
    if length > MOST_LENGTH:
        raise RefusedError(413, f"this snapshot holds {length} vectors; a session has at most {MOST_LENGTH}")
    yield
    rows = context.rows.astype(np.float32, copy=False)
    check_usable(rows)
    yield
    same = (saved.model, saved.bank) == (engine.digest, engine.bank.fingerprint)
    return Moved(narrow(rows), context, engine.restore(data) if same else None)


def _kinds(context: Context, engine: Answering) -> tuple[tuple[int, str], tuple[int, str]]:
    return (context.rows.shape[1], context.encoder), (engine.dim, engine.encoder_fingerprint)
