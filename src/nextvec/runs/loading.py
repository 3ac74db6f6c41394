"""The model of a run: built from its settings, or loaded with its trained weights."""

# Axes: D width.

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.lanes import Anchors
from nextvec.models import (
    GRU,
    LSTM,
    AttentionMixture,
    ExpertGRU,
    Hierarchical,
    LinearRecurrence,
    MemoryGRU,
    PublishedMemoryGRU,
    Recurrent,
    Transformer,
)
from nextvec.models.experts import LaneScores, RandomLanes
from nextvec.runs.run import BEST, Run
from nextvec.runs.settings import TrainSettings


def build(settings: TrainSettings, centre: Float[Tensor, " D"], decay: float, anchors: Anchors | None = None) -> Recurrent[Any]:
    """The untrained model of some settings; its weights are decided by ``settings.seed``.

    Without ``anchors`` the lanes of experts lie nowhere until weights are loaded.
    """
    torch.manual_seed(settings.seed)
    s = settings
    match s.model:
        case "memory_gru":
            return MemoryGRU(centre, decay, s.hidden, s.slots, s.working, s.dropout)
        case "gru":
            return GRU(centre, decay, s.hidden, s.layers, s.dropout)
        case "lstm":
            return LSTM(centre, decay, s.hidden, s.layers, s.dropout)
        case "transformer":
            return Transformer(centre, decay, hidden=s.hidden, layers=s.layers, dropout=s.dropout, window=s.window)
        case "mixture":
            return AttentionMixture(centre, decay, hidden=s.hidden, layers=s.layers, dropout=s.dropout, window=s.window)
        case "hierarchical":
            return Hierarchical(centre, decay, hidden=s.hidden, layers=s.layers, dropout=s.dropout, chunk=s.chunk)
        case "linear":
            return LinearRecurrence(centre, decay, hidden=s.hidden, layers=s.layers, dropout=s.dropout)
        case "experts":
            shared = MemoryGRU(centre, decay, s.hidden, s.slots, s.working, s.dropout)
            lanes = _lane_scores(s, len(centre), anchors)
            temperature = anchors.temperature if anchors else 0.1
            return ExpertGRU(
                shared, lanes, s.expert_width, s.common_width, s.gate_on, s.top, temperature, s.dropout, s.constants
            )
        case "published":
            return PublishedMemoryGRU(len(centre), s.hidden, s.layers, s.slots or 1, s.dropout)


def _lane_scores(settings: TrainSettings, dim: int, anchors: Anchors | None) -> LaneScores | RandomLanes:
    s = settings
    if s.lanes == "random" and s.experts > 1:
        return RandomLanes(dim, s.route_per)
    scores = LaneScores(dim, s.experts, s.route_per)
    if anchors:
        scores.anchors.copy_(torch.from_numpy(anchors.vectors))
        scores.prices.copy_(torch.from_numpy(anchors.prices))
    return scores


def load_model(run: Run, name: str = BEST) -> tuple[Recurrent[Any], Float[Tensor, " D"]]:
    """The trained model of a run, in evaluation mode on the processor, and the mean of its training rows.

    Raises:
        RunError: it was never trained, or its weights do not fit its settings.
    """
    tensors, _ = run.load(name)
    centre = tensors.pop("centre")
    tensors.pop("log_temperature", None)
    model = build(run.settings, centre, run.origin.decay)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{run.path / name} does not fit the run's settings: {str(error).splitlines()[0]}") from None
    return model.eval(), centre


def check_encoder(run: Run, bank: Bank) -> None:
    """
    Raises:
        RunError: the bank's vectors come from another encoder than the run's.
    """
    if bank.manifest.encoder_fingerprint != run.origin.encoder or bank.dim != run.origin.dim:
        raise RunError(
            f"the bank's vectors come from {bank.manifest.encoder_fingerprint} ({bank.dim} wide), "
            f"the run was trained on {run.origin.encoder} ({run.origin.dim} wide); they cannot be compared"
        )
