"""What every latent vector model promises.

The laws, checked for every model in this package:

- Step is forward: feeding a passage one vector at a time through ``step``,
  from ``start``, gives ``forward`` position by position.
- The future never reaches the past, and a passage never sees its batch
  neighbours.
- Nothing is written inside ``forward``: state goes in and comes out.
- The queries of an output (:meth:`Recurrent.queries`) are compared with mapped
  candidates (:meth:`Recurrent.candidates`). A model with one query answers with
  a vector of unit length.
"""

# Axes: B passages, T positions, D width, W width of an output, N outputs, Q queries, C candidates, E width of a candidate.

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from nextvec.models.attribution import Attribution
from nextvec.models.hooks import TrainingHooks
from nextvec.models.queries import Queries

S = TypeVar("S")


@runtime_checkable
class Model(Protocol[S]):
    """Predicts, at every position, the vector that follows."""

    dim: int

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        """The output after each position: the expected next vector, of unit length, or several queries."""
        ...

    def start(self, batch: int) -> S:
        """The state before anything was read."""
        ...

    def step(self, state: S, x_BD: Float[Tensor, "B D"]) -> tuple[S, Float[Tensor, "B W"]]:
        """Read one vector per passage; the new state and the outputs."""
        ...


@runtime_checkable
class Windowed(Protocol):
    """A module whose state holds the last vectors, ``size`` of them at most."""

    size: int


class Recurrent(TrainingHooks, ABC, Generic[S]):
    """A model written once, as :meth:`run`: a passage of any length, state in, state out.

    ``forward`` is one run over everything, ``step`` a run over one vector, so
    the law between them is a property of ``run``: splitting a passage changes
    nothing.

    ``reach`` is how many of the last vectors an output depends on, to float32
    precision; None where it may depend on all of them.

    ``run_length`` is the only passage length that ``run`` accepts; None where
    it accepts any.

    ``maps_candidates`` says whether :meth:`candidates` changes rows.

    ``names_rows`` says whether the model has :meth:`attribution`.

    ``steps_each`` says whether the model has :meth:`step_each`.
    """

    dim: int
    reach: int | None = None
    run_length: int | None = None
    num_queries: int = 1
    maps_candidates: bool = False
    names_rows: bool = False
    steps_each: bool = False

    @property
    def width(self) -> int:
        """E, the width of a mapped candidate."""
        return self.dim

    @property
    def output_width(self) -> int:
        """W, the width of an output: that of its one query, or of Q queries followed by their log weights."""
        return self.width if self.num_queries == 1 else self.num_queries * (self.width + 1)

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        """How sharply several queries are pooled (:class:`~nextvec.models.queries.Queries`)."""
        return torch.ones(())

    def candidates(self, rows_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C E"]:
        """The map of candidates: what the queries are multiplied with.

        The rows themselves, unless a model overrides it; such a model sets ``maps_candidates``.
        """
        return rows_CD

    def map_tensors(self) -> Mapping[str, Tensor]:
        """The tensors that :meth:`candidates` reads, by name: models that give equal tensors map rows alike.

        All tensors of a model that maps candidates, unless it overrides this.
        """
        return self.state_dict() if self.maps_candidates else {}

    def queries(self, y_NW: Float[Tensor, "N W"]) -> Queries:
        """Outputs as queries."""
        count, width = self.num_queries, self.width
        vectors_NQE = y_NW[:, : count * width].reshape(len(y_NW), count, width)
        weights_NQ = y_NW[:, count * width :] if count > 1 else y_NW.new_zeros(len(y_NW), 1)
        return Queries(vectors_NQE, weights_NQ, self.sharpness)

    def scores(self, predicted_NW: Float[Tensor, "N W"], mapped_CE: Float[Tensor, "C E"]) -> Float[Tensor, "N C"]:
        """The score of each mapped candidate for each output; the exam, the loss and every search rank by it."""
        return self.queries(predicted_NW).scores(mapped_CE)

    def attribution(self, state: S, mapped_CE: Float[Tensor, "C E"]) -> Attribution:
        """The parts of the scores of mapped candidates that come from single rows of the context.

        A model that has it sets ``names_rows``.

        Args:
            state: of one passage, after at least one vector.

        Raises:
            NotImplementedError: the model does not name rows.
        """
        raise NotImplementedError(f"{type(self).__name__} does not name rows")

    @property
    def window_length(self) -> int:
        """Number of vectors after which the state first drops a vector or starts a new chunk; 0 if it never does."""
        return max((part.size for part in self.modules() if isinstance(part, Windowed)), default=0)

    def traceable(self) -> "Recurrent[Any]":
        """A model with the same predictions whose operations do not depend on values, so that they can be traced as a graph."""
        return self

    @abstractmethod
    def start(self, batch: int) -> S:
        """The state before anything was read."""

    @abstractmethod
    def run(self, state: S, x_BTD: Float[Tensor, "B T D"]) -> tuple[S, Float[Tensor, "B T W"]]:
        """Read a passage that continues ``state``."""

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        return self.run(self.start(len(x_BTD)), x_BTD)[1]

    def last(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B W"]:
        """``forward`` at the last position; a model may have a cheaper way there."""
        return self.forward(x_BTD)[:, -1]

    def step(self, state: S, x_BD: Float[Tensor, "B D"]) -> tuple[S, Float[Tensor, "B W"]]:
        after, y_BTW = self.run(state, x_BD[:, None])
        return after, y_BTW[:, 0]

    def step_each(self, states: Sequence[S], x_BD: Float[Tensor, "B D"]) -> tuple[list[S], Float[Tensor, "B W"]]:
        """:meth:`step` of several passages that have a state each, which are not joined, because that would copy them.

        A model that has it sets ``steps_each``.

        Args:
            states: each of one passage; they may hold different numbers of vectors.

        Raises:
            NotImplementedError: the model steps joined states only.
        """
        raise NotImplementedError(f"{type(self).__name__} steps joined states only")

    def __call__(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        return super().__call__(x_BTD)
