"""The part that our models share: a learned mixture of exponential means that starts as the strongest baseline."""

# Axes: B passages, T positions, K means, D width, F features, H rows.

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat
from nextvec.models.means import ExponentialMeans

DECAYS = (0.0, 0.5, 0.8, 0.95)


class Linear(NamedTuple):
    """The prediction is ``scale`` times the weighted means and all else that is mixed, plus ``constant``.

    The lengths of vectors that scale it are held fixed.
    """

    scale: Float[Tensor, " D"]
    constant: Float[Tensor, " D"]


class Trunk(nn.Module):
    """Centre the context, take its exponential means, mix them by learned weights per dimension.

    At the start all weight lies on the mean with decay ``decay``: the output is the centred exponential mean, the
    strongest untrained predictor for these vectors.
    """

    def __init__(self, centre: Float[Tensor, " D"], decay: float, others: Sequence[float] = DECAYS) -> None:
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", centre.clone())
        self.means = ExponentialMeans((decay, *others))
        self.num_means = 1 + len(others)
        weights_KD = torch.zeros(self.num_means, len(centre))
        weights_KD[0] = 1.0
        self.weights = nn.Parameter(weights_KD)
        self.bias = nn.Parameter(torch.zeros(len(centre)))
        self.scale = nn.Parameter(torch.ones(len(centre)))

    @property
    def num_features(self) -> int:
        return 3 * self.num_means - 1

    def start(self, batch: int) -> Float[Tensor, "B K D"]:
        return self.centre.new_zeros(batch, self.num_means, len(self.centre))

    def read(
        self, state: Float[Tensor, "B K D"], x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B T D"], Float[Tensor, "B T K D"]]:
        """The state after the passage, the centred passage, its means."""
        centred_BTD = x_BTD - self.centre
        after, means_BTKD = self.means(state, centred_BTD)
        return after, centred_BTD, means_BTKD

    def features(self, centred_BTD: Float[Tensor, "B T D"], means_BTKD: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T F"]:
        """Cosines of the newest vector to each mean, cosines between neighbouring means, and norms of the means.

        They do not depend on the content, so what is learned from them generalises to unseen texts.
        """
        unit_BTD, units_BTKD = normalize(centred_BTD, dim=-1), normalize(means_BTKD, dim=-1)
        to_means = (units_BTKD * unit_BTD[:, :, None]).sum(-1)
        between = (units_BTKD[:, :, 1:] * units_BTKD[:, :, :-1]).sum(-1)
        return torch.cat([to_means, between, means_BTKD.norm(dim=-1)], dim=-1)

    def mix(
        self, means_BTKD: Float[Tensor, "B T K D"], gates_BTK: Float[Tensor, "B T K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Weighted means, each also by its gate, plus a constant; not yet of unit length."""
        weighted = means_BTKD * self.weights
        return (weighted if gates_BTK is None else weighted * gates_BTK[..., None]).sum(2) + self.bias

    def finish(self, mixed_BTD: Float[Tensor, "B T D"], residual_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The unit prediction: direction of the mixture plus the residual."""
        return normalize((normalize(mixed_BTD, dim=-1) + residual_BTD) * self.scale, dim=-1)

    def lengths(self, units_HD: Float[Tensor, "H D"]) -> Float[Tensor, " H"]:
        """The lengths of centred rows whose directions are given, where the rows themselves have unit length.

        They are the positive roots n of |n u + centre| = 1.
        """
        along_H = units_HD @ self.centre
        return (along_H.square() + 1 - self.centre.square().sum()).clamp(min=0).sqrt() - along_H

    def linear(self, mixed_D: Float[Tensor, " D"], residual_D: Float[Tensor, " D"]) -> Linear:
        """:meth:`finish` at one position, as a linear function of the mixture without its constant."""
        scale_D = self.scale / ((normalize(mixed_D, dim=-1) + residual_D) * self.scale).norm()
        per_length_D = scale_D / mixed_D.norm()
        return Linear(per_length_D, per_length_D * self.bias + scale_D * residual_D)

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedTrunk(self) if steps.compiled() else self


class PackedTrunk(Trunk):
    """A trunk that runs as four compiled calls."""

    def __init__(self, source: Trunk) -> None:
        super().__init__(source.centre, 0.5, [0.0] * (source.num_means - 1))
        self.load_state_dict(source.state_dict())
        self.decays = self.means.decays.detach()

    def read(
        self, state: Float[Tensor, "B K D"], x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B T D"], Float[Tensor, "B T K D"]]:
        centred_BTD, means_BTKD = steps.means(x_BTD, self.centre, self.decays, state)
        return means_BTKD[:, -1], centred_BTD, means_BTKD

    def features(self, centred_BTD: Float[Tensor, "B T D"], means_BTKD: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T F"]:
        return steps.features(centred_BTD, means_BTKD)

    def mix(
        self, means_BTKD: Float[Tensor, "B T K D"], gates_BTK: Float[Tensor, "B T K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        return steps.mix(means_BTKD, self.weights, gates_BTK, self.bias)

    def finish(self, mixed_BTD: Float[Tensor, "B T D"], residual_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return steps.finish(mixed_BTD, residual_BTD, self.scale)
