"""A session as bytes: checked to the last bit, and restored only by the engine that it belongs to.

Layout: magic, sha256 of the rest, then a safetensors file whose metadata is
one JSON object. Nothing is read from it before the hash fits, and the hash is
not a signature: who can write snapshots can write what they like.
"""

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nextvec.errors import DataError
from nextvec.inference.states import leaves, like

if TYPE_CHECKING:
    from nextvec.inference.engine import Engine
    from nextvec.inference.session import Session

MAGIC = b"nextvec session 1\n"
LARGEST = 2**30  # bytes
HASH = 32


def dump(session: "Session") -> bytes:
    """The session's state, prediction and place, with what they belong to."""
    parts = leaves(session.state)
    tensors = {f"state.{n}": leaf.contiguous() for n, leaf in enumerate(parts) if isinstance(leaf, Tensor)}
    if session.prediction is not None:
        tensors["prediction"] = torch.from_numpy(session.prediction)
    tensors["seen"] = torch.from_numpy(session.rows_seen())
    facts = {
        "model": session.engine.digest,
        "bank": session.engine.bank.fingerprint,
        "length": session.length,
        "numbers": {str(n): leaf for n, leaf in enumerate(parts) if isinstance(leaf, int)},
    }
    content = save({name: tensor.clone() for name, tensor in tensors.items()}, {"session": json.dumps(facts)})
    return MAGIC + hashlib.sha256(content).digest() + content


def restore(engine: "Engine", data: bytes) -> "Session":
    """A session as it was when :func:`dump` wrote it.

    Raises:
        DataError: not a snapshot, damaged anywhere, larger than 1 GiB, or of another model, weight format or bank.
    """
    facts, tensors = _opened(data)
    if facts["model"] != engine.digest:
        raise DataError(f"this snapshot is of model {facts['model'][:12]}, not of {engine.digest[:12]}; read the context again")
    if facts["bank"] != engine.bank.fingerprint:
        raise DataError(f"this snapshot goes with bank {facts['bank'][:12]}, not with {engine.bank.fingerprint[:12]}")
    session = engine.session()
    start = leaves(session.state)
    parts = [
        tensors[f"state.{n}"] if isinstance(leaf, Tensor) else int(facts["numbers"][str(n)]) for n, leaf in enumerate(start)
    ]
    state = like(session.state, parts)
    prediction = tensors["prediction"].numpy() if "prediction" in tensors else None
    # Snapshots of earlier versions hold every row, not the first of each vector.
    seen = np.unique(engine.bank.distinct.classes[tensors["seen"].numpy()])
    return session.restored(state, int(facts["length"]), prediction, seen)


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of bytes whose hash fits: what was written, so their form needs no further proof."""
    if len(data) > LARGEST:
        raise DataError(f"a snapshot of {len(data):,} bytes; at most {LARGEST:,} are read")
    start = len(MAGIC) + HASH
    if not data.startswith(MAGIC) or len(data) < start:
        raise DataError("these bytes are not a session's snapshot of this version, or they are cut short")
    content = data[start:]
    if hashlib.sha256(content).digest() != data[len(MAGIC) : start]:
        raise DataError("this snapshot is damaged: its hash does not fit; take a new one, or read the context again")
    try:
        (length,) = struct.unpack("<Q", content[:8])
        facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["session"])
        return facts, load(content)
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise DataError(f"this snapshot was not written by nextvec: {error}") from None
