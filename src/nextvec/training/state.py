"""Everything that updates change, as tensors in a checkpoint and back."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nextvec.models import Recurrent
from nextvec.negatives import Mined, Queue
from nextvec.ranks import Ranks
from nextvec.training.optimizer import AdamW, parameters_of

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainerState:
    """The state of a training between two updates.

    Attributes:
        averaged: moving averages of the model's parameters, in their order; empty without ``ema``.
        norms: of the last gradients.
        reference: ranks of the last validation that was an improvement; None before the first.
    """

    model: Recurrent[Any]
    log_temperature: nn.Parameter
    optimizer: AdamW
    scaler: torch.amp.GradScaler
    averaged: list[Tensor]
    queue: Queue
    mined: Mined
    norms: list[float] = field(default_factory=list)
    reference: Ranks | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs; only after a validation."""
        assert self.reference is not None
        held: dict[str, Tensor] = {**self.model.state_dict(), "log_temperature": self.log_temperature}
        held["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        held |= {"queue": torch.from_numpy(self.queue.rows)}
        held |= {f"mined.{name}": torch.from_numpy(getattr(self.mined, name)) for name in ("targets", "negatives")}
        kept = ("above", "tied", "candidates")
        held |= {f"reference.{name}": torch.from_numpy(getattr(self.reference, name)) for name in kept}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            held |= {"scaler.scale": torch.tensor(scaler["scale"]), "scaler.growth": torch.tensor(scaler["_growth_tracker"])}
        held |= {f"ema.{n}": average for n, average in enumerate(self.averaged)}
        for n, parameter in enumerate(parameters_of(self.optimizer)):
            held |= {f"adam.{n}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return held

    def restore(self, tensors: dict[str, Tensor], clusters: Int64[np.ndarray, " R"]) -> None:
        """Take the state from the tensors of a checkpoint, which are consumed.

        Args:
            clusters: the document of each row of the valid exam.
        """
        device = self.log_temperature.device
        self.log_temperature.data = tensors.pop("log_temperature").to(device)
        self.norms = tensors.pop("norms").tolist()
        self.queue = Queue(tensors.pop("queue").numpy(), self.queue.size)
        self.mined = Mined(tensors.pop("mined.targets").numpy(), tensors.pop("mined.negatives").numpy())
        above, tied, candidates = (tensors.pop(f"reference.{name}").numpy() for name in ("above", "tied", "candidates"))
        self.reference = Ranks(above, tied, candidates, clusters)
        if "scaler.scale" in tensors:
            scale, growth = float(tensors.pop("scaler.scale")), int(tensors.pop("scaler.growth"))
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": growth})
        for n, average in enumerate(self.averaged):
            average.copy_(tensors.pop(f"ema.{n}"))
        moments = {key: tensors.pop(key) for key in list(tensors) if key.startswith("adam.")}
        self.model.load_state_dict(tensors)
        for n, parameter in enumerate(parameters_of(self.optimizer)):
            if f"adam.{n}.step" in moments:
                found = {key: moments[f"adam.{n}.{key}"] for key in MOMENTS}
                self.optimizer.state[parameter] = {k: v if k == "step" else v.to(device) for k, v in found.items()}

    def weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated and kept: the averages where there are any, else the model's."""
        if not self.averaged:
            return self.model.state_dict()
        names = [name for name, _ in self.model.named_parameters()]
        return {**self.model.state_dict(), **dict(zip(names, self.averaged, strict=True))}

    def average(self, decay: float) -> None:
        """Move the averages towards the present weights."""
        for average, parameter in zip(self.averaged, self.model.parameters(), strict=bool(self.averaged)):
            average.lerp_(parameter.detach(), 1 - decay)
