"""The predictions of a model for scored rows, equal to those that it makes one by one."""

# Axes: R scored rows, B passages, T positions, D width, W width of the output.

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.batches import passages
from nextvec.models import Recurrent
from nextvec.models.queries import device_of
from nextvec.progress import Progress, silent
from nextvec.windows import Windows, scoring_windows

POSITIONS = 8192  # per batch, of outputs as wide as the rows: large enough for the processor, small enough for the memory


def predict_rows(
    model: Recurrent[Any],
    bank: Bank,
    rows: Int64[np.ndarray, " R"],
    context: int | None,
    progress: Progress = silent,
) -> Float[Tensor, "R W"]:
    """The output for each row (ascending) from the ``context`` rows before it; None reads all its document has."""
    return at_rows(model, model, model.last, model.output_width, bank, rows, context, progress)


@torch.inference_mode()
def at_rows(
    model: Recurrent[Any],
    every: Callable[[Tensor], Tensor],
    last: Callable[[Tensor], Tensor],
    width: int,
    bank: Bank,
    rows: Int64[np.ndarray, " R"],
    context: int | None,
    progress: Progress = silent,
) -> Float[Tensor, "R W"]:
    """An output of a model, in evaluation mode, after it has read the rows before each row (ascending).

    Rows whose windows start at the same place share one passage. This is exact:
    the output of a causal model at a position does not depend on later rows.

    Args:
        every: the output at every position, [B, T, D] to [B, T, W].
        last: the output at the last position alone, [B, T, D] to [B, W].
        width: W.
    """
    starts, stops, members = _cheapest(bank, rows, context or int(bank.lengths.max()), model.reach)
    order = np.argsort(stops - starts, kind="stable")
    out = torch.empty(len(rows), width)
    training = model.training
    model.eval()
    device = device_of(model)
    done = 0
    while done < len(order):
        size = _batch_size(stops[order[done:]] - starts[order[done:]], POSITIONS * bank.dim // max(width, bank.dim))
        batch = order[done : done + size]
        merged = Windows(starts[batch], starts[batch] + 1, stops[batch])
        x_BTD = passages(bank, merged, np.arange(len(batch))).x.to(device)
        if all(len(members[passage]) == 1 for passage in batch) and len(np.unique(stops[batch] - starts[batch])) == 1:
            out[torch.from_numpy(np.concatenate([members[passage] for passage in batch]))] = last(x_BTD).float().cpu()
        else:
            y_BTW = every(x_BTD).float().cpu()
            for b, passage in enumerate(batch):
                places = members[passage]
                out[torch.from_numpy(places)] = y_BTW[b, rows[places] - starts[passage] - 1]
        done += len(batch)
        progress("evaluating", done, len(order))
    model.train(training)
    return out


def _batch_size(ascending_lengths: Int64[np.ndarray, " W"], most: int) -> int:
    """How many of the shortest passages fit into a batch of ``most`` positions when all are padded to the longest of them."""
    positions = ascending_lengths * np.arange(1, len(ascending_lengths) + 1)
    return max(1, int((positions <= most).sum()))


def _cheapest(
    bank: Bank, rows: Int64[np.ndarray, " R"], context: int, reach: int | None
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Passages that give each row its context; rows beyond the model's reach are left out where that saves computation."""
    whole = _shared(scoring_windows(bank, rows, context))
    if reach is None or reach >= context:
        return whole
    short = _shared(scoring_windows(bank, rows, reach))
    return min(whole, short, key=lambda passages: int((passages[1] - passages[0]).sum()))


def _shared(windows: Windows) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Distinct starts, the last stop of each, and the windows that share it."""
    edges = [*np.flatnonzero(np.diff(windows.starts, prepend=-1)).tolist(), len(windows)]
    groups = [np.arange(first, last) for first, last in pairwise(edges)]
    starts = np.array([windows.starts[group[0]] for group in groups])
    stops = np.array([windows.stops[group].max() for group in groups])
    return starts, stops, groups
