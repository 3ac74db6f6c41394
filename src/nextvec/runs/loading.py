"""The model of a run: built from its settings, or loaded with its trained weights; and that of the package."""

import json
from dataclasses import dataclass
from typing import Any

import torch

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.errors import RunError, SettingsError
from nextvec.models import Recurrent
from nextvec.models.space import InSpace, Space
from nextvec.progress import Progress, silent
from nextvec.runs.families import Basis, family
from nextvec.runs.run import BEST, Run
from nextvec.runs.settings import TrainSettings
from nextvec.runs.shipped import POWER, SHIPPED, shipped_model, shipped_settings
from nextvec.runs.sources import Source, bank_of
from nextvec.runs.spaces import space_of


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model, and the bank whose rows it predicts.

    Attributes:
        name: of the run, or ``shipped`` for the weights of the package.
        model: in evaluation mode, on the processor.
        bank: the candidates.
        settings: that the weights were trained with.
    """

    name: str
    model: Recurrent[Any]
    bank: Bank
    settings: TrainSettings

    @property
    def facts(self) -> str:
        """What the weights do not say, as JSON: the settings of the training."""
        return json.dumps(frozen.to_json(self.settings), sort_keys=True)


def load(source: Source, bank: Bank | None = None, refit: bool = False, progress: Progress = silent) -> LoadedModel:
    """The model of a run, or for a bank the weights of the package in the space of its rows.

    Args:
        bank: the candidates of a run; the bank that it was trained on when None. A bank predicts its own rows.
        refit: whether the space of a run is fitted to all rows of ``bank``. Its weights and its power stay. The space of the
            weights of the package always is.

    Raises:
        RunError: an untrained or damaged run, one of another encoder than ``bank``, or one whose bank was removed or replaced.
        SettingsError: ``refit`` of a run that reads raw rows, or another bank for a bank.
    """
    if isinstance(source, Bank):
        if bank is not None and bank is not source:
            raise SettingsError("a bank predicts its own rows, so it is given alone; another bank goes with a run")
        return LoadedModel(SHIPPED, shipped_model(space_of(source, POWER, progress)), source, shipped_settings())
    power = source.origin.power
    if refit and power is None:
        raise SettingsError(f"{source.path} reads raw rows and has no space that could be fitted again; leave --refit out")
    held = bank_of(source) if bank is None else bank
    check_encoder(source, held)
    model = load_model(source)
    if refit and power is not None and isinstance(model, InSpace):
        model.space = space_of(held, power, progress)
    return LoadedModel(source.name, model, held, source.settings)


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
