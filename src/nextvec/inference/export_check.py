"""The check of an export: its graphs run in ONNX Runtime, and outputs and scores are compared with the model's."""

# Axes: B passages, T positions, N outputs, Q queries, C candidates, D width, W width of an output, E width of a candidate.

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.inference.export_graphs import BLOCK, Graphs, StateTensor, library
from nextvec.models import Recurrent
from nextvec.vectors import unit_rows

TOLERANCE = 1e-4  # largest difference between the graphs and the model, of entries of outputs and of scores
SCORED = 256  # candidates of a checked passage at most: rows of the passage itself
LONGEST = 2048  # vectors of a checked passage at most


def check_passages(model: Recurrent[Any], bank: Bank | None) -> list[Float32[np.ndarray, "B T D"]]:
    """The passages that the graphs are checked on: batches of one and three, of random unit vectors and of the bank's rows.

    The lengths are 1, 7, and one block more than the window of the model, at most 2048.
    """
    longest = min(LONGEST, BLOCK + model.window_length)
    rng = np.random.default_rng(0)
    passages = [
        unit_rows(rng.standard_normal((b * t, model.dim)).astype(np.float32)).reshape(b, t, -1)
        for b in (1, 3)
        for t in (1, 7, longest)
    ]
    if bank is not None:
        rows_ND = bank.rows[: 3 * longest].astype(np.float32)
        passages.append(rows_ND[None, :longest])
        passages.append(rows_ND[: len(rows_ND) // 3 * 3].reshape(3, -1, bank.dim)[:, :7])
    return passages


@torch.inference_mode()
def differences(model: Recurrent[Any], graphs: Graphs, passages: Sequence[Float32[np.ndarray, "_ _ D"]]) -> dict[str, float]:
    """The largest difference from the model: of the outputs of each graph in ONNX Runtime, and of the scores.

    The scores are computed from the outputs of the graphs with numpy alone, as the manifest says.

    Raises:
        RunError: a difference is above ``TOLERANCE``.
    """
    stepping, reading = _session(graphs.step), _session(graphs.passage)
    mapping = None if graphs.candidates is None else _session(graphs.candidates)
    largest: dict[str, float] = {}
    for x_BTD in passages:
        outputs_BTW = model(torch.from_numpy(x_BTD))
        rows_CD = x_BTD.reshape(-1, model.dim)[:SCORED]
        mapped_CE = model.candidates(torch.from_numpy(rows_CD))
        wanted_NC = model.scores(outputs_BTW.flatten(0, 1), mapped_CE).numpy()
        own_CE = rows_CD if mapping is None else mapping.run(None, {"rows": rows_CD})[0]
        passage_BTW = reading.run(None, {"x": x_BTD})[0]
        answers = {
            "step": (np.stack(list(_stepped(stepping, graphs.places, x_BTD)), 1), outputs_BTW.numpy()),
            "passage": (passage_BTW, outputs_BTW.numpy()),
            "scores": (scores(model, passage_BTW.reshape(-1, model.output_width), own_CE), wanted_NC),
        }
        if mapping is not None:
            answers["candidates"] = (own_CE, mapped_CE.numpy())
        for name, (found, wanted) in answers.items():
            difference = float(np.abs(found - wanted).max())
            if not difference <= TOLERANCE:  # also true of NaN
                read = " x ".join(map(str, x_BTD.shape[:2]))
                differ = "scores differ" if name == "scores" else f"{name} differs"
                raise RunError(
                    f"the exported {differ} from the model by {difference:.1e} on {read} vectors; "
                    f"at most {TOLERANCE:.0e} is allowed, so nothing was written"
                )
            largest[name] = max(largest.get(name, 0.0), difference)
    return largest


def scores(
    model: Recurrent[Any], y_NW: Float32[np.ndarray, "N W"], mapped_CE: Float32[np.ndarray, "C E"]
) -> Float32[np.ndarray, "N C"]:
    """The scores of candidates, as the manifest describes them to a program without PyTorch."""
    count, width, sharpness = model.num_queries, model.width, np.float32(model.sharpness)
    products_NQC = y_NW[:, : count * width].reshape(-1, count, width) @ mapped_CE.T
    if count == 1:
        return products_NQC[:, 0]
    return np.logaddexp.reduce(sharpness * products_NQC + y_NW[:, count * width :, None], axis=1) / sharpness


def _stepped(
    session: Any, places: Sequence[StateTensor], x_BTD: Float32[np.ndarray, "B T D"]
) -> Iterator[Float32[np.ndarray, "B W"]]:
    state = {place.name: place.zeros(len(x_BTD)).numpy() for place in places}
    for t in range(x_BTD.shape[1]):
        y_BW, *after = session.run(None, {"x": x_BTD[:, t], **state})
        state = dict(zip(state, after, strict=True))
        yield y_BW


def _session(graph: bytes) -> Any:
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
