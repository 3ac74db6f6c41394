"""A space fitted to a bank: a map of rows, applied to the context and to the candidates alike."""

# Axes: N rows, B passages, T positions, C candidates, D width, E width of the space.

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.models.attribution import Attribution
from nextvec.models.hooks import AuxiliaryLoss, LastTrained, Routing
from nextvec.models.protocol import Recurrent

POWERS = (0.0, 0.25, 0.5, 0.75)
FLOOR = 1e-4  # added to every eigenvalue, as a share of the largest


class Space(nn.Module):
    """x -> normalize((x - mean) C^(-power/2)), with mean and covariance C of the rows that it was fitted on.

    Power 1 would whiten the rows (Kessy, Lewin and Strimmer 2018, ZCA), power 0
    centres them only. Directions of small variance hold less of what consecutive
    rows share and more of what they do not, so a power near one half ranks best.
    """

    def __init__(self, mean: Float[Tensor, " D"], matrix: Float[Tensor, "D E"]) -> None:
        super().__init__()
        self.mean: Tensor
        self.matrix: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("matrix", matrix.clone())

    @staticmethod
    def fitted(mean: Float64[np.ndarray, " D"], covariance: Float64[np.ndarray, "D D"], power: float, rows: int) -> "Space":
        """The space of rows with this mean and covariance; the matrix is symmetric and computed in float64.

        A few rows have no variance in most directions, but other rows have, and
        :data:`FLOOR` would enlarge these directions most. So below 2 D rows the
        covariance is shrunk towards equal variance in all directions.

        Args:
            power: 0 for centring alone, 1 for whitening.
            rows: how many rows they are of. The shrinkage is 1 - rows / 2D, at least 0.
        """
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0.0)
        shrinkage = max(0.0, 1 - rows / (2 * len(mean)))
        values = (1 - shrinkage) * values + shrinkage * values.mean()
        largest = values.max() or 1.0  # rows that are all equal have no variance
        scales = (values + FLOOR * largest) ** (-power / 2)
        matrix = (vectors * scales) @ vectors.T
        return Space(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(matrix.astype(np.float32)))

    @staticmethod
    def blank(dim: int) -> "Space":
        """A space of this width whose numbers are loaded later."""
        return Space(torch.zeros(dim), torch.eye(dim))

    def forward(self, rows: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape E"]:
        return normalize((rows - self.mean) @ self.matrix, dim=-1)

    def inverse(self, mapped: Float[Tensor, "*shape E"]) -> Float[Tensor, "*shape D"]:
        """The vectors of unit length that the space maps to ``mapped``, computed in float64.

        Such a vector is mean + s v with s > 0, where v has the direction of mapped matrix^-1. The mean of unit rows lies in
        the unit ball, so exactly one such vector has unit length.
        """
        mean, matrix = self.mean.double(), self.matrix.double()
        v = normalize(torch.linalg.solve(matrix, mapped.double(), left=False), dim=-1)
        along = v @ mean
        s = (along.square() + (1 - mean @ mean).clamp(min=0)).sqrt() - along
        return normalize(mean + s[..., None] * v, dim=-1).to(mapped.dtype)


class InSpace(Recurrent[Any]):
    """A model that reads its context and ranks its candidates in a space.

    The wrapped model gets mapped rows only, so it needs no change.
    """

    maps_candidates = True

    def __init__(self, space: Space, model: Recurrent[Any]) -> None:
        super().__init__()
        self.space = space
        self.model = model
        self.dim = len(space.mean)
        self.reach = model.reach
        self.run_length = model.run_length
        self.num_queries = model.num_queries
        self.names_rows = model.names_rows
        self.has_auxiliary = model.has_auxiliary
        self.num_experts = model.num_experts
        self.vector_parameters = tuple(f"model.{prefix}" for prefix in model.vector_parameters)

    @property
    def width(self) -> int:
        return self.model.width

    @property
    def output_width(self) -> int:
        return self.model.output_width

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        return self.model.sharpness

    def candidates(self, rows_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C E"]:
        return self.model.candidates(self.space(rows_CD))

    def map_tensors(self) -> Mapping[str, Tensor]:
        own = {f"space.{name}": tensor for name, tensor in self.space.state_dict().items()}
        return {**own, **{f"model.{name}": tensor for name, tensor in self.model.map_tensors().items()}}

    def attribution(self, state: Any, mapped_CE: Float[Tensor, "C E"]) -> Attribution:
        return self.model.attribution(state, mapped_CE)

    def start(self, batch: int) -> Any:
        return self.model.start(batch)

    def run(self, state: Any, x_BTD: Float[Tensor, "B T D"]) -> tuple[Any, Float[Tensor, "B T W"]]:
        return self.model.run(state, self.space(x_BTD))

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        return self.model.forward(self.space(x_BTD))

    def last(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B W"]:
        return self.model.last(self.space(x_BTD))

    def step(self, state: Any, x_BD: Float[Tensor, "B D"]) -> tuple[Any, Float[Tensor, "B W"]]:
        return self.model.step(state, self.space(x_BD))

    def traceable(self) -> Recurrent[Any]:
        inner = self.model.traceable()
        return self if inner is self.model else InSpace(self.space, inner)

    def with_auxiliary(
        self, x_BTD: Float[Tensor, "B T D"], scored_BT: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T W"], AuxiliaryLoss]:
        return self.model.with_auxiliary(self.space(x_BTD), scored_BT)

    def last_trained(self) -> LastTrained:
        return self.model.last_trained()

    def after_update(self, x_BTD: Float[Tensor, "B T D"]) -> None:
        self.model.after_update(self.space(x_BTD))

    def routing(self, x_BTD: Float[Tensor, "B T D"]) -> Routing:
        return self.model.routing(self.space(x_BTD))

    def take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of a model in another space; this one keeps its own space."""
        self.model.take_over({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
