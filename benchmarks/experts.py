"""What sixteen experts cost a step: only those that are heard.

    python benchmarks/experts.py

The same memory GRU with one feed-forward block and no gate, and with 16 such
blocks of which each vector hears one or two, each a few steps in turn in one
run, large and small. Every step hears an expert (the lanes' scores are far
apart), and not always the same. "dense" computes all sixteen and weighs
fifteen by zero, as a graph that cannot branch must. Parameters are what the
whole model holds, active what one step reads. One thread.
"""

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.kernels.library import level
from nextvec.kernels.weights import WeightFormat
from nextvec.models import MemoryGRU, Recurrent
from nextvec.models.layers import feed_forward
from nextvec.models.memory_gru import MemoryGRUState
from nextvec.models.packed import pack
from nextvec.reproduction.expert_gru import ExpertGRU, Experts
from nextvec.reproduction.lane_scores import LaneScores
from step import Stepping, in_turn
from table import show

DIM, EXPERTS = 384, 16
SIZES = {"large": (512, 2048), "small": (64, 128)}  # widths of the GRU and of a block's inner layer
FORMATS: tuple[WeightFormat, ...] = ("float32", "int8")


class OneBlock(Recurrent[MemoryGRUState]):
    """What one expert is without lanes, gate and choice."""

    def __init__(self, shared: MemoryGRU, inner: int) -> None:
        super().__init__()
        self.dim, self.shared = shared.dim, shared
        self.block = feed_forward(shared.cell.hidden_size, inner, 0.0)

    def start(self, batch: int) -> MemoryGRUState:
        return self.shared.start(batch)

    def run(self, state: MemoryGRUState, x_BTD: Tensor) -> tuple[MemoryGRUState, Tensor]:
        read, h_BTH = self.shared.read(state, x_BTD)
        return self.shared.answer(read, h_BTH + self.block(h_BTH))


class DenseExperts(Experts):
    """All are computed."""

    def forward(self, h_BTH: Tensor, weights_BTE: Tensor) -> Tensor:
        answers = [block(h_BTH) * weights_BTE[..., e, None] for e, block in enumerate(self.blocks)]
        return torch.stack(answers).sum(0)


def model(hidden: int, inner: int, top: int, dense: bool = False) -> ExpertGRU:
    """With lanes that lie where chance put them, so that a random row changes its lane at almost every step."""
    lanes = LaneScores(DIM, EXPERTS, "position")
    lanes.anchors.copy_(normalize(torch.randn(EXPERTS, DIM), dim=-1))
    made = ExpertGRU(memory(hidden), lanes, inner, top=top, temperature=1e-3)
    if dense:
        made.experts.__class__ = DenseExperts
    return made


def memory(hidden: int) -> MemoryGRU:
    return MemoryGRU(torch.zeros(DIM), 0.5, hidden)


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kinds(hidden: int, inner: int) -> dict[str, tuple[Recurrent[Any], int]]:
    """The models, and how many experts a step of each computes."""
    return {
        "one block, no gate": (OneBlock(memory(hidden), inner), 1),
        f"{EXPERTS} experts, top-1": (model(hidden, inner, 1), 1),
        f"{EXPERTS} experts, top-2": (model(hidden, inner, 2), 2),
        f"{EXPERTS} experts, top-1, dense": (model(hidden, inner, 1, dense=True), EXPERTS),
    }


def rows_of(size: str, form: str) -> list[list[str]]:
    torch.manual_seed(0)
    made = kinds(*SIZES[size])
    for each, _ in made.values():
        each.eval().requires_grad_(False)
    steppers = {kind: Stepping(pack(each, form) if form in FORMATS else each) for kind, (each, _) in made.items()}
    times = in_turn({kind: stepper.__call__ for kind, stepper in steppers.items()})
    alone = times["one block, no gate"]
    rows: list[list[str]] = []
    for kind, (each, computed) in made.items():
        whole = active = numbers(each)
        if isinstance(each, ExpertGRU):
            active -= (EXPERTS - computed) * numbers(each.experts.blocks[0])
        middle, ratio = statistics.median(times[kind]), statistics.median(times[kind] / alone)
        rows.append([kind, size, form, f"{whole:,}", f"{active:,}", f"{middle:.3f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for size in SIZES for form in ("plain", *FORMATS) for row in rows_of(size, form)]
    columns = ("model", "size", "weights", "parameters", "active", "step, ms", "of one block's")
    show(f"Step of {EXPERTS} experts, kernels {level()}, one thread", columns, rows, "")


if __name__ == "__main__":
    main()
