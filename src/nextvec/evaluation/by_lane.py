"""Figures by lane, and the experts that were active in the predictions."""

# Axes: R scored rows, E experts, L lanes, B passages, T positions, D width, W = 2 E.

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.evaluation.predictions import at_rows
from nextvec.lanes import Lanes
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks, paired_lift

Json = dict[str, Any]
UNSURE = "unsure"
SURE = 0.5  # share of a document's confidence that lies in its lane


def places_by_lane(lanes: Lanes, bank: Bank, rows: Int64[np.ndarray, " R"]) -> dict[str, Int64[np.ndarray, " kept"]]:
    """The places of the scored rows of each lane; every row is in one lane, and lanes without rows are left out.

    A row has the lane of its document, or ``unsure`` where less than half of the
    document's confidence lies in that lane. The lane of a single chunk is too
    uncertain (`docs/lanes.md`), and intervals resample documents.
    """
    lane, share = lanes.of_documents(bank)
    owner = bank.document_of(rows)
    of_row = np.where(share[owner] >= SURE, lane[owner].astype(np.int64), len(lanes.names))
    found = {name: np.flatnonzero(of_row == number) for number, name in enumerate((*lanes.names, UNSURE))}
    return {name: places for name, places in found.items() if len(places)}


def lane_figures(places: Mapping[str, Int64[np.ndarray, " kept"]], ranks: Ranks, other: Ranks, hits: tuple[int, ...]) -> Json:
    """By lane: rows, documents, Hit@K with intervals, and the paired lift over ``other``.

    The intervals of a lane of one document resample its rows, which are not
    independent, so they are too narrow.
    """
    found: Json = {}
    for name, rows in places.items():
        own, theirs = ranks.only(rows), other.only(rows)
        found[name] = {
            "rows": len(rows),
            "documents": len(np.unique(own.clusters)),
            **{f"hit@{k}": own.hit(k).to_json() for k in hits},
            "lift": {f"hit@{k}": paired_lift(own, theirs, k).to_json() for k in hits},
        }
    return found


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """The experts that were active in the predictions of the scored rows.

    Attributes:
        weights: [R, E] of each expert; 0 where it was not active.
        entropy: [R] of the gate's probabilities, bits.
    """

    weights: Float64[np.ndarray, "R E"]
    entropy: Float64[np.ndarray, " R"]

    def to_json(self, places: Mapping[str, Int64[np.ndarray, " kept"]] | None = None) -> Json:
        """The share of rows where each expert was active, the share without one, and the gate's mean entropy; also by lane."""
        active = self.weights > 0
        experts = self.weights.shape[1]
        return {
            "experts": experts,
            "use": active.mean(0).tolist(),
            "weight": self.weights.mean(0).tolist(),
            "nobody": float((~active.any(1)).mean()),
            "used": int((active.mean(0) >= 0.01).sum()),
            "entropy_bits": float(self.entropy.mean()),
            "entropy_share": float(self.entropy.mean() / log2(experts)) if experts > 1 else 0.0,
            "by_lane": {name: active[rows].mean(0).tolist() for name, rows in (places or {}).items()},
        }


def expert_use(
    model: Recurrent[Any], bank: Bank, rows: Int64[np.ndarray, " R"], context: int | None, progress: Progress = silent
) -> ExpertUse:
    """The weights and the entropy of the gate in every prediction."""

    def every(x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        return torch.cat(model.routing(x_BTD), dim=-1)

    def last(x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B W"]:
        return every(x_BTD)[:, -1]

    width = 2 * model.num_experts
    routed = at_rows(model, every, last, width, bank, rows, context, progress).double().numpy()
    probabilities, weights = np.split(routed, 2, axis=1)
    logs = np.log2(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    return ExpertUse(weights, np.maximum(0.0, -(probabilities * logs).sum(1)))
