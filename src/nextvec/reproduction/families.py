"""The families of the predecessor's model and of the memory GRU with experts, with the options that each of them reads."""

# Axes: M documents.

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import SettingsError
from nextvec.lanes import Anchors, Lanes, cluster_anchors, description_anchors
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.lane_scores import BITS, LaneScores, RandomLanes
from nextvec.reproduction.published import PublishedMemoryGRU
from nextvec.runs.core_models import LayerOptions, MemoryOptions, SlotOptions, memory_gru
from nextvec.runs.families import Basis, ModelFamily
from nextvec.runs.groups import ComputeSettings, OptimizerSettings
from nextvec.settings import bounded
from nextvec.windows import rows_of

RANDOM_LANES = 2**BITS
TEMPERATURE = 0.1  # of lane scores, until weights are loaded


@dataclass(frozen=True, kw_only=True)
class PublishedOptions(LayerOptions, SlotOptions):
    """The predecessor's model reads no option of its own."""


@dataclass(frozen=True, kw_only=True)
class ExpertsOptions(MemoryOptions):
    """The options of the memory GRU with experts.

    Attributes:
        experts: number of experts; 1 is a block that every position passes.
        expert_width: inner width of each expert.
        common_width: inner width of a block that every position passes in addition; 0 for none. Narrow experts beside such
            a block are adapters.
        lanes: the lanes that experts are chosen by: ``clusters`` or ``balanced`` (k-means of the training rows),
            ``descriptions``, ``random`` (the control), or a folder of ``nextvec lanes BANK --out FOLDER``.
        route_per: whether the lane is that of the ``position`` (the last few vectors) or of the ``document`` so far.
        gate_on: what the gate reads: the ``lane``, the ``state`` of the GRU, or ``both``.
        top: active experts at each position.
        constants: whether each expert also adds a learned vector to the prediction.
        balance: weight of the load-balancing loss.
        router_fraction: share of the updates, the last ones, that train the gate alone; the updates before leave the gate
            unchanged. 0 trains everything in every update.
    """

    experts: int = bounded(16, 1, 256)
    expert_width: int = bounded(128, 1, 65_536)
    common_width: int = bounded(0, 0, 65_536)
    lanes: str = "clusters"
    route_per: Literal["position", "document"] = "position"
    gate_on: Literal["lane", "state", "both"] = "lane"
    top: int = bounded(1, 1, 256)
    constants: bool = False
    balance: float = bounded(0.0, 0, 1_000)
    router_fraction: float = bounded(0.0, 0, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top > self.experts:
            raise SettingsError(f"top={self.top}: there are {self.experts} experts; the nearest right one is {self.experts}")
        if self.lanes == "random" and self.experts not in (1, RANDOM_LANES):
            raise SettingsError(f"experts={self.experts}: random lanes are {RANDOM_LANES}; the nearest right one is that")
        if self.router_fraction and self.gate_on == "lane":
            raise SettingsError(
                "router_fraction: a gate on the lane alone has one number to train; choose gate_on=both or state"
            )


def check_experts(o: ExpertsOptions, optimizer: OptimizerSettings, compute: ComputeSettings) -> None:
    """
    Raises:
        SettingsError: options that do not go together with the settings of all models.
    """
    if o.router_fraction and optimizer.seconds:
        raise SettingsError("router_fraction counts updates, and seconds may end them sooner; choose one")
    if o.balance and compute.segment:
        raise SettingsError("balance needs a whole passage, segment cuts it; choose one")


def find_anchors(o: ExpertsOptions, bank: Bank, documents: Int64[np.ndarray, " M"], seed: int) -> Anchors | None:
    """The anchors of the experts' lanes, found in the training documents; None if the lanes need none.

    Raises:
        SettingsError: the lanes are not as many as the experts.
        DataError: a folder that holds no lanes of this bank, or an encoder that is not installed.
    """
    if o.experts == 1 or o.lanes == "random":
        return None
    if o.lanes in ("clusters", "balanced"):
        return cluster_anchors(bank.rows[rows_of(bank, documents)], o.experts, seed, o.lanes == "balanced")
    anchors = description_anchors(bank) if o.lanes == "descriptions" else Lanes.open(o.lanes, bank).anchors
    if len(anchors.names) != o.experts:
        count = len(anchors.names)
        raise SettingsError(f"experts={o.experts}: lanes={o.lanes} are {count}; the nearest right one is {count}")
    return anchors


def _experts(o: ExpertsOptions, basis: Basis) -> ExpertGRU:
    shared = memory_gru(o, basis)
    return ExpertGRU(
        shared,
        _lane_scores(o, shared.dim, basis.anchors),
        o.expert_width,
        o.common_width,
        o.gate_on,
        o.top,
        basis.anchors.temperature if basis.anchors else TEMPERATURE,
        o.dropout,
        o.constants,
        o.balance,
        o.router_fraction,
    )


def _lane_scores(o: ExpertsOptions, dim: int, anchors: Anchors | None) -> LaneScores | RandomLanes:
    if o.lanes == "random" and o.experts > 1:
        return RandomLanes(dim, o.route_per)
    scores = LaneScores(dim, o.experts, o.route_per)
    if anchors:
        scores.anchors.copy_(torch.from_numpy(anchors.vectors))
        scores.prices.copy_(torch.from_numpy(anchors.prices))
    return scores


def _published(o: PublishedOptions, basis: Basis) -> PublishedMemoryGRU:
    return PublishedMemoryGRU(len(basis.centre), o.hidden, o.layers, o.slots or 1, o.dropout)


EXPERTS_FAMILY = ModelFamily("experts", ExpertsOptions, _experts, check_experts, find_anchors, raw_only=True)
PUBLISHED_FAMILY = ModelFamily("published", PublishedOptions, _published, predicts_difference=True, raw_only=True)
