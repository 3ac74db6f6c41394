"""Untrained baselines; every report shows them beside the model."""

# Axes: B passages, T positions, D width, N rows, Q queries, K decays, W width of an output, A and B widths of two outputs.

from math import ceil, log
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.models.means import ExponentialMeans
from nextvec.models.protocol import Recurrent
from nextvec.models.queries import ABSENT

NOTHING = torch.zeros(0)
LAGS_SHARE = 2.0  # weight of the pooled product beside the product with a mean; 1, 2 and 4 were tried, 2 was strongest
FORGOTTEN = 1e-9  # a weight that float32 cannot distinguish from 0


class CopyLast(Recurrent[Tensor]):
    """The next vector is the last one."""

    reach = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def start(self, batch: int) -> Tensor:
        return NOTHING

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        return state, normalize(x_BTD, dim=-1)


class ExponentialMean(Recurrent[Tensor]):
    """The exponential mean of the centred context, with one fixed decay; decay 0 is the centred last vector.

    With several decays the output holds the prediction of each, one after
    another, W = K * D: they share the passes over a bank.
    """

    def __init__(self, centre: Float[Tensor, " D"], *decays: float) -> None:
        super().__init__()
        self.dim = len(centre)
        self.centre: Tensor
        self.register_buffer("centre", centre.clone())
        self.means = ExponentialMeans(decays).requires_grad_(False)
        self.reach = 1 + ceil(log(FORGOTTEN) / log(max(*decays, 1e-4)))
        self.num_decays = len(decays)

    @property
    def output_width(self) -> int:
        return self.num_decays * self.dim

    def start(self, batch: int) -> Tensor:
        return self.centre.new_zeros(batch, self.num_decays, self.dim)

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T W"]]:
        after, means_BTKD = self.means(state, x_BTD - self.centre)
        return after, normalize(means_BTKD, dim=-1).flatten(2)


class Total(NamedTuple):
    total: Float[Tensor, "B D"]


class MeanOfAll(Recurrent[Total]):
    """The mean of the whole centred context."""

    def __init__(self, centre: Float[Tensor, " D"]) -> None:
        super().__init__()
        self.dim = len(centre)
        self.centre: Tensor
        self.register_buffer("centre", centre.clone())

    def start(self, batch: int) -> Total:
        return Total(self.centre.new_zeros(batch, self.dim))

    def run(self, state: Total, x_BTD: Float[Tensor, "B T D"]) -> tuple[Total, Float[Tensor, "B T D"]]:
        totals_BTD = state.total[:, None] + (x_BTD - self.centre).cumsum(1)
        return Total(totals_BTD[:, -1]), normalize(totals_BTD, dim=-1)


class Constant(Recurrent[Tensor]):
    """Always the same vector; the mean of the training rows shows the Hit@K of hubs alone."""

    reach = 1

    def __init__(self, vector: Float[Tensor, " D"]) -> None:
        super().__init__()
        self.dim = len(vector)
        self.vector: Tensor
        self.register_buffer("vector", normalize(vector, dim=-1))

    def start(self, batch: int) -> Tensor:
        return NOTHING

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        return state, self.vector.expand_as(x_BTD)


class Successor(Recurrent[Tensor]):
    """Look up the training row nearest to the last vector and predict the row after it."""

    reach = 1

    def __init__(self, rows: Float[Tensor, "N D"], successors: Float[Tensor, "N D"]) -> None:
        super().__init__()
        self.dim = rows.shape[1]
        self.rows: Tensor
        self.successors: Tensor
        self.register_buffer("rows", rows)
        self.register_buffer("successors", normalize(successors, dim=-1))

    def start(self, batch: int) -> Tensor:
        return NOTHING

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        return state, self.successors[(x_BTD @ self.rows.T).argmax(-1)]


class PooledLags(Recurrent[Tensor]):
    """The last vectors, each a query of its own, with weights that decay with the lag.

    A candidate is near the prediction if it is near one of the last vectors: a
    kernel density of the context, not its mean. With several decays the queries
    are followed by the log weights of each decay, W = Q * D + K * Q.
    """

    LAGS, SHARPNESS = 16, 8.0

    def __init__(self, dim: int, *decays: float) -> None:
        super().__init__()
        self.dim = dim
        self.num_queries = self.reach = self.LAGS
        self.log_decays = [log(decay) for decay in decays]

    @property
    def output_width(self) -> int:
        return self.LAGS * (self.dim + len(self.log_decays))

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        return torch.tensor(self.SHARPNESS)

    def start(self, batch: int) -> Tensor:
        """The last vectors, oldest first; zero before the first was read."""
        return torch.zeros(batch, self.LAGS - 1, self.dim)

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T W"]]:
        rows = torch.cat([state, normalize(x_BTD, dim=-1)], dim=1)
        queries_BTQD = rows.unfold(1, self.LAGS, 1).flip(-1).transpose(2, 3)
        absent_BTQ = ~queries_BTQD.any(-1)
        lags_Q = torch.arange(self.LAGS)
        log_weights = [
            (lags_Q * log_decay).expand(absent_BTQ.shape).masked_fill(absent_BTQ, ABSENT).log_softmax(-1).clamp(min=ABSENT)
            for log_decay in self.log_decays
        ]
        return rows[:, 1 - self.LAGS :], torch.cat([queries_BTQD.flatten(2), *log_weights], dim=-1)


class Beside(Recurrent[tuple[Any, Any]]):
    """The outputs of two models, one after the other: they share the passes over a bank."""

    def __init__(self, first: Recurrent[Any], second: Recurrent[Any]) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.dim = first.dim
        self.reach = max(first.reach, second.reach) if first.reach and second.reach else None

    @property
    def output_width(self) -> int:
        return self.first.output_width + self.second.output_width

    def start(self, batch: int) -> tuple[Any, Any]:
        return self.first.start(batch), self.second.start(batch)

    def run(self, state: tuple[Any, Any], x_BTD: Float[Tensor, "B T D"]) -> tuple[tuple[Any, Any], Float[Tensor, "B T W"]]:
        (first, y_BTA), (second, y_BTB) = self.first.run(state[0], x_BTD), self.second.run(state[1], x_BTD)
        return (first, second), torch.cat([y_BTA, y_BTB], dim=-1)


class MeanAndLags(Beside):
    """The product with an exponential mean plus twice the pooled product with the last vectors.

    It finds what is near the topic of the context and near one of its last
    vectors. Query l is the mean plus twice the vector of lag l; half the
    sharpness of the lags alone then gives this sum.

    Args:
        dim: D; the rows are centred already, as in a fitted space.
        mean_decay: of the exponential mean.
        lag_decay: of the weights of the lags.
    """

    def __init__(self, dim: int, mean_decay: float, lag_decay: float) -> None:
        lags = PooledLags(dim, lag_decay)
        super().__init__(ExponentialMean(torch.zeros(dim), mean_decay), lags)
        self.num_queries = lags.num_queries

    @property
    def output_width(self) -> int:
        return self.second.output_width

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        return self.second.sharpness / LAGS_SHARE

    def run(self, state: tuple[Any, Any], x_BTD: Float[Tensor, "B T D"]) -> tuple[tuple[Any, Any], Float[Tensor, "B T W"]]:
        after, y_BTW = super().run(state, x_BTD)
        mean_BTD, lags_BTQD, log_weights_BTQ = y_BTW.split([self.dim, self.num_queries * self.dim, self.num_queries], dim=-1)
        queries_BTQD = mean_BTD[:, :, None] + LAGS_SHARE * lags_BTQD.unflatten(-1, (self.num_queries, self.dim))
        return after, torch.cat([queries_BTQD.flatten(2), log_weights_BTQ], dim=-1)
