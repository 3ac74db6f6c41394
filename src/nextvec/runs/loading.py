"""The model of a run: built from its settings, or loaded with its trained weights."""

# Axes: D width.

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.lanes import Anchors
from nextvec.models import Recurrent
from nextvec.runs.families import Basis, family
from nextvec.runs.run import BEST, Run
from nextvec.runs.settings import TrainSettings


def build(settings: TrainSettings, centre: Float[Tensor, " D"], decay: float, anchors: Anchors | None = None) -> Recurrent[Any]:
    """The untrained model of some settings; its weights are a function of ``settings.seed``.

    Args:
        anchors: of the lanes that the model routes by; without them the lanes are undefined until weights are loaded.
    """
    torch.manual_seed(settings.seed)
    return family(settings.model).build(settings.options, Basis(centre, decay, anchors))


def load_model(run: Run, name: str = BEST) -> tuple[Recurrent[Any], Float[Tensor, " D"]]:
    """The trained model of a run, in evaluation mode on the processor, and the mean of its training rows.

    Raises:
        RunError: the run was never trained, or its weights do not fit its settings.
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
