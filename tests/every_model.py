"""Trains every model in every precision and packs it in every weight format: ``python -m tests.every_model FOLDER``.

A process of its own, because the environment chooses, before they are loaded, for which processor oneDNN, torch and the
kernels compute. Prints one JSON object: the level of the kernels; the last training loss of each model and precision; the
last prediction of each model and weight format, whose weights are random.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.kernels.library import level
from nextvec.kernels.weights import FORMATS, WeightFormat
from nextvec.models.packed import pack
from nextvec.runs import TrainSettings
from nextvec.runs.families import Basis, family_names
from nextvec.runs.loading import build
from nextvec.training import begin, train
from tests.settings import fitting

PRECISIONS = ("float32", "bfloat16")
SMALL: dict[str, Any] = {
    "context": 12, "batch": 4, "updates": 2, "evaluate_every": 2, "hidden": 64, "slots": 8, "working": 8, "pooled": 4,
    "window": 8, "chunk": 5, "experts": 2, "expert_width": 32, "pool": 20, "dropout": 0.0, "device": "cpu",
}  # fmt: skip
DIM = 64  # so that every layer is large enough to be packed


def loss(path: Path, settings: TrainSettings, bank: Bank) -> float:
    run = begin(path, "test", settings, bank)
    for _ in train(run, bank):
        pass
    return run.history()[-1]["loss"]


def prediction(settings: TrainSettings, weights: WeightFormat, x: torch.Tensor) -> list[float]:
    model = build(settings, Basis(torch.zeros(DIM), 0.5))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    packed = pack(model, weights)
    state = packed.start(1)
    for x_D in x:
        state, y = packed.step(state, x_D[None])
    return y[0].tolist()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).standard_normal((240, DIM)).astype(np.float32)
    bank = Bank.from_numpy(rows, [20] * 12)
    losses: dict[str, float] = {}
    predictions: dict[str, list[float]] = {}
    for model in family_names():
        settings = fitting(model, **SMALL)
        for precision in PRECISIONS:
            name = f"{model} {precision}"
            losses[name] = loss(Path(folder) / name, settings.replaced(precision=precision), bank)
        for weights in FORMATS:
            predictions[f"{model} {weights}"] = prediction(settings, weights, torch.from_numpy(bank.document(0)).float())
    print(json.dumps({"kernels": level(), "losses": losses, "predictions": predictions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
