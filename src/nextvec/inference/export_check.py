"""The check of an export: both graphs run in ONNX Runtime and are compared with the model."""

# Axes: B passages, T positions, D width.

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from nextvec.bank import Bank
from nextvec.bank import layout as bank_layout
from nextvec.errors import RunError
from nextvec.inference.export_graphs import BLOCK, StateTensor, library
from nextvec.inference.run_bank import bank_of
from nextvec.models import Recurrent
from nextvec.runs import Run
from nextvec.runs.loading import check_encoder
from nextvec.vectors import unit_rows

TOLERANCE = 1e-4  # largest difference between the graphs and the model, of entries of unit vectors
LONGEST = 2048  # vectors of a checked passage at most


def check_passages(run: Run, bank: Bank | None, model: Recurrent[Any]) -> list[Float32[np.ndarray, "B T D"]]:
    """The passages that the graphs are checked on: batches of one and three, of random unit vectors and of the bank's rows.

    The lengths are 1, 7, and one block more than the window of the model, at most 2048.

    Raises:
        RunError: the run's bank was replaced by another.
        DataError: a bank of another encoder.
    """
    longest = min(LONGEST, BLOCK + model.window_length)
    rng = np.random.default_rng(0)
    passages = [
        unit_rows(rng.standard_normal((b * t, run.origin.dim)).astype(np.float32)).reshape(b, t, -1)
        for b in (1, 3)
        for t in (1, 7, longest)
    ]
    if bank is None and run.origin.bank_path and (Path(run.origin.bank_path) / bank_layout.MANIFEST).exists():
        bank = bank_of(run)
    if bank is not None:
        check_encoder(run, bank)
        rows_ND = bank.rows[: 3 * longest].astype(np.float32)
        passages.append(rows_ND[None, :longest])
        passages.append(rows_ND[: len(rows_ND) // 3 * 3].reshape(3, -1, bank.dim)[:, :7])
    return passages


@torch.inference_mode()
def differences(
    model: Recurrent[Any],
    step: bytes,
    passage: bytes,
    places: Sequence[StateTensor],
    passages: Sequence[Float32[np.ndarray, "_ _ D"]],
) -> dict[str, float]:
    """For each graph the largest difference between its predictions in ONNX Runtime and those of the model.

    Raises:
        RunError: a difference is above ``TOLERANCE``.
    """
    stepping, reading = _session(step), _session(passage)
    largest = {"step": 0.0, "passage": 0.0}
    for x_BTD in passages:
        wanted_BTD = model(torch.from_numpy(x_BTD)).numpy()
        answers = {"step": np.stack(list(_stepped(stepping, places, x_BTD)), 1), "passage": reading.run(None, {"x": x_BTD})[0]}
        for name, y_BTD in answers.items():
            difference = float(np.abs(y_BTD - wanted_BTD).max())
            if not difference <= TOLERANCE:  # also true of NaN
                read = " x ".join(map(str, x_BTD.shape[:2]))
                raise RunError(
                    f"the exported {name} differs from the model by {difference:.1e} on {read} vectors; "
                    f"at most {TOLERANCE:.0e} is allowed, so nothing was written"
                )
            largest[name] = max(largest[name], difference)
    return largest


def _stepped(
    session: Any, places: Sequence[StateTensor], x_BTD: Float32[np.ndarray, "B T D"]
) -> Iterator[Float32[np.ndarray, "B D"]]:
    state = {place.name: place.zeros(len(x_BTD)).numpy() for place in places}
    for t in range(x_BTD.shape[1]):
        y_BD, *after = session.run(None, {"x": x_BTD[:, t], **state})
        state = dict(zip(state, after, strict=True))
        yield y_BD


def _session(graph: bytes) -> Any:
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
