"""A session as bytes: checked to the last bit, and restored only by the engine that it belongs to.

Layout: magic, sha256 of the rest, then a safetensors file whose metadata is
one JSON object. Nothing is read from it before the hash fits. The hash is not a
signature: anyone can compute it for other content. So the shapes, types and
bounds of everything that the compiled kernels or the bank would read are
checked too. The values of a state are not: they decide what this one session
predicts, and nothing else.

A snapshot may also hold the context: the vectors that the session has read. A
server needs them, because there the state is only a cache of the context.
"""

# Axes: T vectors, D width.

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
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
DIGEST = re.compile("[0-9a-f]{32}")
WIDTHS = (torch.float16, torch.float32)  # of the rows of a context


@dataclass(frozen=True)
class Context:
    """What a session has read, and in how many appends.

    Attributes:
        rows: as they were appended, of any length; float16 or float32.
        seq: appends.
        digest: 16 bytes that name the last append's payload, so that a repeated one is recognised.
        encoder: fingerprint of what made the vectors.
    """

    rows: Float[np.ndarray, "T D"]
    seq: int
    digest: bytes
    encoder: str


@dataclass(frozen=True)
class Saved:
    """What a snapshot belongs to, and what it holds beside the state.

    Attributes:
        model: digest of the engine whose state it holds.
        bank: fingerprint of the bank.
        context: None where the snapshot holds a state only.
    """

    model: str
    bank: str
    context: Context | None


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
    return _packed({name: tensor.clone() for name, tensor in tensors.items()}, facts)


def with_context(data: bytes, context: Context) -> bytes:
    """The snapshot ``data`` with the context that its state has read; :func:`restore` reads it as before.

    Raises:
        DataError: not a snapshot, or damaged.
    """
    facts, tensors = _opened(data)
    facts["context"] = {"seq": context.seq, "digest": context.digest.hex(), "encoder": context.encoder}
    return _packed({**tensors, "context": torch.from_numpy(context.rows)}, facts)


def read(data: bytes) -> Saved:
    """What a snapshot belongs to, and its context.

    Raises:
        DataError: not a snapshot, damaged anywhere, or of a context that contradicts itself.
    """
    facts, tensors = _opened(data)
    saved = Saved(str(facts.get("model")), str(facts.get("bank")), None)
    if "context" not in facts:
        return saved
    about, rows = facts["context"], tensors.get("context")
    if not isinstance(about, dict) or rows is None or rows.dtype not in WIDTHS or rows.ndim != 2:
        raise DataError("this snapshot was not written by nextvec: its context is no float16 or float32 matrix")
    seq, digest, encoder = about.get("seq"), about.get("digest"), about.get("encoder")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest) or not isinstance(encoder, str):
        raise DataError("this snapshot was not written by nextvec: its context has no digest or no encoder")
    # Each append has at least one vector.
    if type(seq) is not int or not min(len(rows), 1) <= seq <= len(rows) or facts.get("length") != len(rows):
        raise DataError(f"this snapshot was not written by nextvec: {len(rows)} vectors contradict its length or seq")
    return Saved(saved.model, saved.bank, Context(rows.numpy(), seq, bytes.fromhex(digest), encoder))


def restore(engine: "Engine", data: bytes) -> "Session":
    """A session as it was when :func:`dump` wrote it; a context beside the state is not read.

    Raises:
        DataError: not a snapshot, damaged anywhere, larger than 1 GiB, of another model, weight format or bank, or with a state
            of another form than the model's.
    """
    facts, tensors = _opened(data)
    model, bank = str(facts.get("model")), str(facts.get("bank"))
    if model != engine.digest:
        raise DataError(f"this snapshot is of model {model[:12]}, not of {engine.digest[:12]}; read the context again")
    if bank != engine.bank.fingerprint:
        raise DataError(f"this snapshot goes with bank {bank[:12]}, not with {engine.bank.fingerprint[:12]}")
    session, length, numbers = engine.session(), facts.get("length"), facts.get("numbers")
    if type(length) is not int or length < 0 or not isinstance(numbers, dict):
        raise DataError("this snapshot was not written by nextvec: it has no length or no numbers")
    count = len(leaves(session.state))
    parts: list[Any] = [tensors.get(f"state.{n}", numbers.get(str(n))) for n in range(count)]
    engine.forms.check(parts, length)
    prediction = _prediction(tensors, length, engine.dim)
    # Snapshots of earlier versions hold every row, not the first of each vector.
    seen = np.unique(engine.bank.distinct.classes[_seen(tensors, len(engine.bank))])
    return session.restored(like(session.state, parts), length, prediction, seen)


def _prediction(tensors: Mapping[str, Tensor], length: int, dim: int) -> np.ndarray | None:
    found = tensors.get("prediction")
    if found is None and not length:
        return None
    if found is None or found.dtype != torch.float32 or found.shape != (dim,) or not found.isfinite().all():
        raise DataError(f"this snapshot was not written by nextvec: its prediction is no finite float32 vector of width {dim}")
    return found.numpy()


def _seen(tensors: Mapping[str, Tensor], rows: int) -> np.ndarray:
    found = tensors.get("seen")
    if found is None or found.dtype != torch.int64 or found.ndim != 1 or ((found < 0) | (found >= rows)).any():
        raise DataError(f"this snapshot was not written by nextvec: the rows seen are not rows of a bank of {rows:,}")
    return found.numpy()


def _packed(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    content = save(tensors, {"session": json.dumps(facts)})
    return b"".join((MAGIC, hashlib.sha256(content).digest(), content))


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of bytes whose hash fits."""
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
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"this snapshot was not written by nextvec: {error}") from None
    if not isinstance(facts, dict):
        raise DataError("this snapshot was not written by nextvec: its facts are no JSON object")
    return facts, tensors
