"""A snapshot: a session as bytes, which only an engine with the same model, weight format and bank restores.

Layout: magic bytes, the sha256 of the rest, then a safetensors file whose
metadata is one JSON object. The hash is checked before anything else is read.
The hash is not a signature: anyone can compute it for other content. Therefore
the shapes, types and bounds of all values that the compiled kernels or the bank
use as sizes or row numbers are checked too. The other values of a state are not
checked: they change the predictions of this one session only.

A snapshot may also hold the context, that is the vectors that the session has
read. A server needs them, because its state is only a cache of the context.
"""

# Axes: T vectors, D width, W width of an output.

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nextvec.bank import Bank
from nextvec.errors import DataError
from nextvec.inference.forms import Forms
from nextvec.inference.states import State, leaves

MAGIC = b"nextvec session 1\n"
LARGEST = 2**30  # bytes
HASH = 32
DIGEST = re.compile("[0-9a-f]{32}")
WIDTHS = (torch.float16, torch.float32)  # of the rows of a context


@dataclass(frozen=True)
class Context:
    """The vectors that a session has read.

    Attributes:
        rows: as they were appended, of any length; float16 or float32.
        seq: number of appends.
        digest: 16 bytes that identify the payload of the last append, so that a repeated append is recognised.
        encoder: fingerprint of the encoder that made the vectors.
    """

    rows: Float[np.ndarray, "T D"]
    seq: int
    digest: bytes
    encoder: str


@dataclass(frozen=True)
class SavedState:
    """A session without its engine: the state, the number of vectors read, the prediction, the rows seen."""

    state: State
    length: int
    prediction: Float32[np.ndarray, " W"] | None
    seen: Int64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Saved:
    """The model and bank of a snapshot, and its context.

    Attributes:
        model: digest of the engine whose state it holds.
        bank: fingerprint of the bank.
        context: None if the snapshot holds a state only.
    """

    model: str
    bank: str
    context: Context | None


def dump(saved: SavedState, model: str, bank: str) -> bytes:
    """The snapshot of a session.

    Args:
        model: digest of the engine.
        bank: fingerprint of the bank.
    """
    parts = leaves(saved.state)
    tensors = {f"state.{n}": leaf.contiguous() for n, leaf in enumerate(parts) if isinstance(leaf, Tensor)}
    if saved.prediction is not None:
        tensors["prediction"] = torch.from_numpy(saved.prediction)
    tensors["seen"] = torch.from_numpy(saved.seen)
    facts = {
        "model": model,
        "bank": bank,
        "length": saved.length,
        "numbers": {str(n): leaf for n, leaf in enumerate(parts) if isinstance(leaf, int)},
    }
    return _packed({name: tensor.clone() for name, tensor in tensors.items()}, facts)


def with_context(data: bytes, context: Context) -> bytes:
    """The snapshot ``data`` with the context that its state has read; :func:`restore` ignores the context.

    Raises:
        DataError: not a snapshot, or damaged.
    """
    facts, tensors = _opened(data)
    facts["context"] = {"seq": context.seq, "digest": context.digest.hex(), "encoder": context.encoder}
    return _packed({**tensors, "context": torch.from_numpy(context.rows)}, facts)


def read(data: bytes) -> Saved:
    """The model and bank of a snapshot, and its context.

    Raises:
        DataError: not a snapshot, damaged, or with a context that contradicts itself.
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


def restore(data: bytes, model: str, bank: Bank, forms: Forms) -> SavedState:
    """The session that :func:`dump` wrote. The context of the snapshot is not read.

    Args:
        model: digest of the engine.
        forms: of the model.

    Raises:
        DataError: not a snapshot, damaged, larger than 1 GiB, of another model, weight format or bank, or with a state of
            another form than the model's.
    """
    facts, tensors = _opened(data)
    of_model, of_bank = str(facts.get("model")), str(facts.get("bank"))
    if of_model != model:
        raise DataError(f"this snapshot is of model {of_model[:12]}, not of {model[:12]}; read the context again")
    if of_bank != bank.fingerprint:
        raise DataError(f"this snapshot goes with bank {of_bank[:12]}, not with {bank.fingerprint[:12]}")
    length, numbers = facts.get("length"), facts.get("numbers")
    if type(length) is not int or length < 0 or not isinstance(numbers, dict):
        raise DataError("this snapshot was not written by nextvec: it has no length or no numbers")
    parts: list[Any] = [tensors.get(f"state.{n}", numbers.get(str(n))) for n in range(len(forms))]
    return SavedState(
        forms.state(parts, length), length, _prediction(tensors, length, forms.output_width), _seen(tensors, bank)
    )


def _prediction(tensors: Mapping[str, Tensor], length: int, width: int) -> np.ndarray | None:
    found = tensors.get("prediction")
    if found is None and not length:
        return None
    if found is None or found.dtype != torch.float32 or found.shape != (width,) or not found.isfinite().all():
        raise DataError(
            f"this snapshot was not written by nextvec: its prediction is no finite float32 vector of width {width}"
        )
    return found.numpy()


def _seen(tensors: Mapping[str, Tensor], bank: Bank) -> np.ndarray:
    found = tensors.get("seen")
    if found is None or found.dtype != torch.int64 or found.ndim != 1 or ((found < 0) | (found >= len(bank.table))).any():
        raise DataError(
            f"this snapshot was not written by nextvec: the rows seen are not rows of a bank of {len(bank.table):,}"
        )
    rows = found.numpy()
    if (np.diff(rows) <= 0).any() or (bank.distinct.classes[rows] != rows).any():
        raise DataError("this snapshot was not written by nextvec: the rows seen are not the first rows of vectors, ascending")
    return rows


def _packed(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    content = save(tensors, {"session": json.dumps(facts)})
    return b"".join((MAGIC, hashlib.sha256(content).digest(), content))


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of a snapshot whose hash is right."""
    if len(data) > LARGEST:
        raise DataError(f"a snapshot of {len(data):,} bytes; at most {LARGEST:,} are read")
    start = len(MAGIC) + HASH
    if not data.startswith(MAGIC) or len(data) < start:
        raise DataError("these bytes are not a session's snapshot of this version, or they are cut short")
    content = data[start:]
    if hashlib.sha256(content).digest() != data[len(MAGIC) : start]:
        raise DataError("this snapshot is damaged: its hash does not match; take a new one, or read the context again")
    try:
        (length,) = struct.unpack("<Q", content[:8])
        facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["session"])
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"this snapshot was not written by nextvec: {error}") from None
    if not isinstance(facts, dict):
        raise DataError("this snapshot was not written by nextvec: its facts are no JSON object")
    return facts, tensors
