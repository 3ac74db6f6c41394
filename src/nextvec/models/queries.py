"""A prediction as queries: one vector or several, and the score that they give to a candidate."""

# Axes: N predictions, Q queries, C candidates, E width of mapped candidates.

from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

ABSENT = -1e4  # log weight of a query that does not exist: finite, and exp of it is 0


class Queries(NamedTuple):
    """The queries of predictions.

    Attributes:
        vectors: [N, Q, E].
        log_weights: [N, Q]; the weights of a prediction sum to one.
        sharpness: 1 over all queries gives the mean of their products, a large value their maximum.
    """

    vectors: Float[Tensor, "N Q E"]
    log_weights: Float[Tensor, "N Q"]
    sharpness: Float[Tensor, ""]

    def scores(self, mapped_CE: Float[Tensor, "C E"]) -> Float[Tensor, "N C"]:
        """log sum_q exp(sharpness query_q . candidate + log_weight_q) / sharpness; of one query its product alone."""
        if self.vectors.shape[1] == 1:
            return self.vectors[:, 0] @ mapped_CE.T
        count, queries, width = self.vectors.shape
        products_NQC = (self.vectors.reshape(-1, width) @ mapped_CE.T).view(count, queries, -1)
        return torch.logsumexp(self.sharpness * products_NQC + self.log_weights[..., None], dim=1) / self.sharpness

    def mean(self) -> Float[Tensor, "N E"]:
        """The weighted mean of the queries, of unit length: the direction that a small sharpness looks in."""
        return normalize((self.log_weights.exp()[..., None] * self.vectors).sum(1), dim=-1)


@runtime_checkable
class Scorer(Protocol):
    """Gives scores to candidates; every model does."""

    def candidates(self, rows_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C E"]:
        """The rows as the scores compare them."""
        ...

    def scores(self, predicted_NW: Float[Tensor, "N W"], mapped_CE: Float[Tensor, "C E"]) -> Float[Tensor, "N C"]:
        """The score of each candidate for each prediction."""
        ...


class Products:
    """Scores of a model with one query and unmapped candidates: the products themselves."""

    def candidates(self, rows_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
        return rows_CD

    def scores(self, predicted_NW: Float[Tensor, "N D"], mapped_CE: Float[Tensor, "C D"]) -> Float[Tensor, "N C"]:
        return predicted_NW @ mapped_CE.T


def device_of(scorer: object) -> torch.device:
    """Where a model has its parameters and buffers; the processor for a scorer without any."""
    held = chain(scorer.parameters(), scorer.buffers()) if isinstance(scorer, nn.Module) else ()
    return next((tensor.device for tensor in held), torch.device("cpu"))
