"""Disturbed contexts: predictions when other rows replace the far part of the context."""

# Axes: R scored rows, B passages, T positions, D width, F far vectors, M documents.

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.errors import ExamError
from nextvec.evaluation.predictions import POSITIONS
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent

Source = Callable[[int, int], Int64[np.ndarray, " F"]]
"""Called with a scored row and the number of its far vectors; returns the rows that replace them, in order."""


@torch.inference_mode()
def predict_disturbed(
    model: Recurrent[Any],
    bank: Bank,
    rows: Int64[np.ndarray, " R"],
    context: int,
    near: int,
    far: Source,
    progress: Progress = silent,
) -> Float[Tensor, "R W"]:
    """The prediction for each row when other rows replace all but the last ``near`` rows of its context."""
    first = np.maximum(bank.offsets[bank.document_of(rows)], rows - context)
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    out = torch.empty(len(rows), model.output_width)
    done = 0
    for batch in _batches(rows - first):
        lengths = (rows - first)[batch]
        x_BTD = np.zeros((len(batch), int(lengths.max()), bank.dim), dtype=bank.rows.dtype)
        for b, (row, start) in enumerate(zip(rows[batch].tolist(), first[batch].tolist(), strict=True)):
            edge = max(start, row - near)
            x_BTD[b, : edge - start] = bank.rows[far(row, edge - start)]
            x_BTD[b, edge - start : row - start] = bank.rows[edge:row]
        # Shorter passages end in zeros; a causal model predicts before it reads them.
        y_BTD = model(torch.from_numpy(x_BTD).float().to(device))
        out[torch.from_numpy(batch)] = y_BTD[torch.arange(len(batch)), torch.from_numpy(lengths - 1)].float().cpu()
        done += len(batch)
        progress("disturbing", done, len(rows))
    return out


def intact(near: int, row: int, count: int) -> Int64[np.ndarray, " F"]:
    """The far rows themselves."""
    return np.arange(row - near - count, row - near, dtype=np.int64)


def shuffled(near: int, row: int, count: int) -> Int64[np.ndarray, " F"]:
    """The same rows in another order, which depends only on the scored row."""
    return np.random.default_rng(row).permutation(intact(near, row, count))


def foreign(bank: Bank, documents: Int64[np.ndarray, " M"], row: int, count: int) -> Int64[np.ndarray, " F"]:
    """As many rows of another document: the next of ``documents`` that is long enough; else of several, longest first.

    Raises:
        ExamError: the other documents do not hold so many rows.
    """
    own = int(bank.document_of(np.array([row]))[0])
    after = int(np.searchsorted(documents, own, side="right"))
    others = [int(m) for m in np.roll(documents, -after) if m != own]
    others.sort(key=lambda m: 0 if bank.lengths[m] >= count else 1 / int(bank.lengths[m]))
    found = np.empty(0, dtype=np.int64)
    for m in others:
        if len(found) >= count:
            break
        found = np.concatenate([found, np.arange(bank.offsets[m], bank.offsets[m + 1], dtype=np.int64)])
    if len(found) < count:
        raise ExamError(f"the other documents hold {len(found):,} rows; row {row} needs {count:,} of them in place of its own")
    return found[:count]


def _batches(lengths: Int64[np.ndarray, " R"]) -> Iterator[Int64[np.ndarray, " B"]]:
    """Places in batches of bounded size, shortest passages first."""
    order = np.argsort(lengths, kind="stable")
    while len(order):
        positions = lengths[order] * np.arange(1, len(order) + 1)
        size = max(1, int((positions <= POSITIONS).sum()))
        yield order[:size]
        order = order[size:]
