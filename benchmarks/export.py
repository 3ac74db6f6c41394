"""What an exported model costs in ONNX Runtime, beside PyTorch: one step after a full window, and a passage.

    python benchmarks/export.py

One thread for both, one passage, the same vectors and weights, in turn.
"""

from typing import Any

import onnxruntime
import torch

from nextvec.inference.export_graphs import StateTensor, graphs
from nextvec.runs import TrainSettings
from nextvec.runs.families import Basis, family_names
from nextvec.runs.loading import build
from nextvec.runs.settings import reads
from table import interleaved, show

DIM, HIDDEN, LENGTH = 384, 256, 300
STEPS, ROUNDS = 100, 5


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name in family_names():
        torch.manual_seed(0)
        settings = TrainSettings.of(name, **({"hidden": HIDDEN} if reads(name, "hidden") else {}))
        model: Any = build(settings, Basis(0.05 * torch.randn(DIM), 0.5)).eval()
        step, passage, _, places = graphs(model)
        rows.append([name, *measured(model, session(step), session(passage), places)])
    columns = ["model", "step µs torch", "ONNX", "times", "passage ms torch", "ONNX", "times"]
    note = f"{DIM}-wide, hidden {HIDDEN}, one layer, windows of 256; medians of {STEPS} steps x {ROUNDS}; passages of {LENGTH}"
    show("An exported model, onnxruntime " + onnxruntime.__version__, columns, rows, note)


@torch.inference_mode()
def measured(model: Any, step: Any, passage: Any, places: list[StateTensor]) -> list[str]:
    x = torch.nn.functional.normalize(torch.randn(1, LENGTH, DIM), dim=-1)
    read, _ = model.run(model.start(1), x)
    filled = {place.name: place.zeros(1).numpy() for place in places}
    for t in range(LENGTH):
        _, *after = step.run(None, {"x": x[:, t].numpy(), **filled})
        filled = dict(zip(filled, after, strict=True))
    newest = x[:, -1]
    given = {"x": newest.numpy(), **filled}
    times = interleaved(
        {
            "torch step": lambda: [model.step(read, newest) for _ in range(STEPS)],
            "onnx step": lambda: [step.run(None, given) for _ in range(STEPS)],
            "torch passage": lambda: model(x),
            "onnx passage": lambda: passage.run(None, {"x": x.numpy()}),
        },
        ROUNDS,
    )
    cells: list[str] = []
    for what, scale in (("step", 1e6 / STEPS), ("passage", 1e3)):
        torch_time, onnx_time = (scale * times[f"{engine} {what}"].median for engine in ("torch", "onnx"))
        cells += [f"{torch_time:,.0f}", f"{onnx_time:,.0f}", f"{torch_time / onnx_time:.1f}"]
    return cells


def session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
