"""The model of a run: built from its settings, or loaded with its trained weights."""

from typing import Any

import torch

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.models import Recurrent
from nextvec.models.space import InSpace, Space
from nextvec.runs.families import Basis, family
from nextvec.runs.run import BEST, Run
from nextvec.runs.settings import TrainSettings


def build(settings: TrainSettings, basis: Basis) -> Recurrent[Any]:
    """The untrained model of some settings; its weights are a function of ``settings.seed``."""
    torch.manual_seed(settings.seed)
    model = family(settings.model).build(settings.options, basis)
    return model if basis.space is None else InSpace(basis.space, model)


def load_model(run: Run, name: str = BEST) -> Recurrent[Any]:
    """The trained model of a run, in evaluation mode on the processor.

    Raises:
        RunError: the run was never trained, or its weights do not fit its settings.
    """
    tensors, _ = run.load(name)
    tensors.pop("log_temperature", None)
    origin = run.origin
    # The centre, the lanes and the space lie among the loaded tensors.
    blank = None if origin.power is None else Space.blank(origin.dim)
    model = build(run.settings, Basis(torch.zeros(origin.dim), origin.decay, space=blank))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{run.path / name} does not fit the run's settings: {str(error).splitlines()[0]}") from None
    return model.eval()


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
