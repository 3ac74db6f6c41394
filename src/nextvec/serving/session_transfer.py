"""Sessions as bytes, to move them to another server: the context, and the model state that has read it."""

# Axes: T vectors, D width.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from nextvec.errors import DataError
from nextvec.inference import snapshot
from nextvec.inference.snapshot import Context
from nextvec.serving.answering import Answering, SessionState
from nextvec.serving.context_view import View, narrow
from nextvec.serving.refusal import RefusedError
from nextvec.serving.round_robin import Steps
from nextvec.serving.state_rebuild import read
from nextvec.vectors import check_usable
from nextvec.wire.limits import MOST_LENGTH


@dataclass(frozen=True)
class TransferredSession:
    """A session of another server, after all checks.

    Attributes:
        rows: as they were appended; float16 if that loses nothing.
        state: after all rows; None if the snapshot is of another model or bank.
    """

    rows: Float[np.ndarray, "T D"]
    context: Context
    state: SessionState | None


def pack(state: SessionState, unread: Float32[np.ndarray, "T D"], view: View, encoder: str) -> Steps[bytes]:
    """A session as bytes; the inverse of :func:`unpack`.

    Args:
        state: reads ``unread`` first.
        view: the whole context.
        encoder: fingerprint of the encoder that made the vectors.
    """
    if len(unread):
        yield from read(state, unread)
    saved = state.snapshot()
    yield
    rows = view.read()
    yield
    return snapshot.with_context(saved, Context(narrow(rows), view.head.seq, view.head.digest, encoder))


def unpack(data: bytes, engine: Answering) -> Steps[TransferredSession]:
    """The session that :func:`pack` wrote, perhaps on another server.

    Raises:
        DataError: the snapshot is damaged, has no context, holds a vector that an append would refuse, or a
            state of another engine.
        RefusedError: 413 too many vectors for a session; 422 another width or encoder.
    """
    saved = snapshot.read(data)
    context = saved.context
    if context is None:
        raise DataError("this snapshot holds a state and no context; take the snapshot of a session from a server")
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
    return TransferredSession(narrow(rows), context, engine.restore(data) if same else None)


def _kinds(context: Context, engine: Answering) -> tuple[tuple[int, str], tuple[int, str]]:
    return (context.rows.shape[1], context.encoder), (engine.dim, engine.encoder_fingerprint)
