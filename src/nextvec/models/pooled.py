"""A model without content: a mixture of what the context holds, with gates that read how its vectors relate to each other."""

# Axes: B passages, T positions, D width, K means, V vectors mixed, L lags, F features, W width of an output, C candidates,
# H rows held.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.kernels import steps
from nextvec.kernels.pooled import LoggedState, Parts, PooledWeights, step
from nextvec.kernels.weights import WeightFormat, pack_matrix
from nextvec.models.attribution import Attribution
from nextvec.models.layers import silent_linear
from nextvec.models.means import ExponentialMeans
from nextvec.models.pooling import LagPooling
from nextvec.models.protocol import Recurrent
from nextvec.models.queries import ABSENT
from nextvec.models.working_memory import Held, WorkingMemory

DECAYS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
GATE_WIDTH = 16
SPREAD = 3.0  # cosines are multiplied by it, so that the gates read numbers of about one
SHORTEST = 1e-6  # a shorter vector is not scaled to unit length


class PooledState(NamedTuple):
    """Means, the sum of all vectors, how many they are, and the last of them."""

    means: Float[Tensor, "B K D"]
    total: Float[Tensor, "B D"]
    read: Float[Tensor, " B"]
    held: Held


AnyState = PooledState | LoggedState


class Pooled(Recurrent[PooledState]):
    """Score of a candidate: its product with a mixture, plus the pooled product with the last vectors.

    The mixture has one weight for each exponential mean of the context, for the
    mean of everything read and for both heads of the working memory, all scaled
    to unit length. A small network changes the weights at every position. It
    reads cosines and lengths alone, never a direction, so that what it learns on
    one bank holds on another. Before training the model is the exponential mean
    whose decay is nearest to ``decay``.

    Args:
        dim: D.
        decay: of the exponential mean that it starts as.
        pooled: last vectors that are queries (:class:`~nextvec.models.pooling.LagPooling`); 0 for one query.
        working: last vectors that the working memory holds; 0 for no memory.
        gates: whether the network changes the weights.
    """

    vector_parameters = ("weights", "working.", "pooling.")

    def __init__(self, dim: int, decay: float, pooled: int = 12, working: int = 256, gates: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.means = ExponentialMeans(DECAYS).requires_grad_(False)
        self.working = WorkingMemory(working) if working else None
        mixed = len(DECAYS) + 1 + (WorkingMemory.HEADS if working else 0)
        self.weights = nn.Parameter(torch.zeros(mixed))
        with torch.no_grad():
            self.weights[min(range(len(DECAYS)), key=lambda k: abs(DECAYS[k] - decay))] = 1.0
        self.pooling = LagPooling(pooled) if pooled else None
        self.num_queries = max(1, pooled)
        self.names_rows = self.working is not None
        self.gates = None
        if gates:
            features = 1 + len(DECAYS) + mixed + pooled
            last = silent_linear(GATE_WIDTH, mixed + pooled + 1)
            self.gates = nn.Sequential(nn.Linear(features, GATE_WIDTH), nn.Tanh(), last)

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        return super().sharpness if self.pooling is None else self.pooling.sharpness

    def start(self, batch: int) -> PooledState:
        like = self.weights
        held = (self.working or WorkingMemory(0).to(like)).start(batch, self.dim)
        return PooledState(
            like.new_zeros(batch, len(DECAYS), self.dim), like.new_zeros(batch, self.dim), like.new_zeros(batch), held
        )

    def run(self, state: PooledState, x_BTD: Float[Tensor, "B T D"]) -> tuple[PooledState, Float[Tensor, "B T W"]]:
        unit_BTD = normalize(x_BTD, dim=-1)
        means, means_BTKD = self.means(state.means, unit_BTD)
        totals_BTD = state.total[:, None] + unit_BTD.cumsum(1)
        counts_BT = state.read[:, None] + torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)
        parts = [means_BTKD, totals_BTD[:, :, None]]
        held = state.held
        if self.working is not None:
            held, recalled_BTRD = self.working(held, unit_BTD, torch.zeros_like(unit_BTD[..., 0]))
            parts.append(recalled_BTRD)
        mixed_BTVD = normalize(torch.cat(parts, dim=2), dim=-1, eps=SHORTEST)
        lags = None if self.pooling is None else self.pooling.last(state.held.rows, state.held.filled, unit_BTD)
        weights_BTV, lag_gates_BTL, more_BT1 = self._gated(self._features(unit_BTD, counts_BT, means_BTKD, mixed_BTVD, lags))
        y_BTW = torch.einsum("btv,btvd->btd", weights_BTV, mixed_BTVD)
        after = PooledState(means, totals_BTD[:, -1], counts_BT[:, -1], held)
        if self.pooling is None or lags is None:
            return after, normalize(y_BTW, dim=-1)
        pooled_BTW = self.pooling(y_BTW, *lags, lag_gates_BTL, more_BT1)
        # One query has no weight, and unit length.
        return after, pooled_BTW if self.num_queries > 1 else normalize(pooled_BTW[..., : self.dim], dim=-1)

    def attribution(self, state: PooledState, mapped_CE: Float[Tensor, "C D"]) -> Attribution:
        """See :class:`~nextvec.models.attribution.Attribution`; no part is learned."""
        if self.working is None:
            return super().attribution(state, mapped_CE)
        held = state.held
        rows_HD, unit_BTD = held.rows[0], held.rows[:, -1:]
        recall_RH = self.working.row_weights(held)[0]
        vectors_VD = torch.cat([state.means[0], state.total, recall_RH @ rows_HD])
        lengths_V1 = vectors_VD.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
        mixed_VD = vectors_VD / lengths_V1
        lags = None if self.pooling is None else self.pooling.last(held.rows[:, :-1], held.filled[:, :-1], unit_BTD)
        gated = self._gated(self._features(unit_BTD, state.read[:, None], state.means[:, None], mixed_VD[None, None], lags))
        weights_V, lag_gates_L, more_1 = (part[0, 0] for part in gated)
        shares_VH = torch.cat([self.means.row_weights(len(rows_HD)), torch.ones_like(rows_HD.T[:1]), recall_RH])
        parts_CH = weights_V @ (shares_VH / lengths_V1) * (mapped_CE @ rows_HD.T)
        query_D = weights_V @ mixed_VD
        if self.pooling is not None and lags is not None:
            parts_CL = self.pooling.parts(mapped_CE @ lags[0][0, 0].T, lags[1][0, 0], lag_gates_L, more_1)
            own = min(self.pooling.lags, len(rows_HD))
            parts_CH[:, len(rows_HD) - own :] += parts_CL[:, :own].flip(-1)
            query_D = query_D + (self.pooling.amplitude + more_1) * rows_HD[-1]
        if self.num_queries == 1:  # it has unit length
            parts_CH = parts_CH / query_D.norm().clamp(min=SHORTEST)
        return Attribution(parts_CH, torch.zeros_like(parts_CH[:, 0]))

    def _features(
        self,
        unit_BTD: Float[Tensor, "B T D"],
        counts_BT: Float[Tensor, "B T"],
        means_BTKD: Float[Tensor, "B T K D"],
        mixed_BTVD: Float[Tensor, "B T V D"],
        last: tuple[Float[Tensor, "B T L D"], Bool[Tensor, "B T L"]] | None,
    ) -> Float[Tensor, "B T F"]:
        """What the gates read.

        Args:
            unit_BTD: the newest vectors.
            counts_BT: numbers of vectors read.
            mixed_BTVD: the vectors that are mixed, of unit length.
            last: the last vectors, and which of them exist; None without lags.
        """
        features = [torch.log(counts_BT)[..., None] / 2 - 1, means_BTKD.norm(dim=-1) * 2 - 1, _cosines(mixed_BTVD, unit_BTD)]
        if last is not None:
            features.append(_cosines(last[0], unit_BTD))
        return torch.cat(features, dim=-1)

    def _gated(
        self, features_BTF: Float[Tensor, "B T F"]
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T L"], Float[Tensor, "B T 1"]]:
        """The weights of the mixture, what is added to the log weights of the lags, and to the amplitude of the lags."""
        lags, mixed = (self.pooling.lags if self.pooling else 0), len(self.weights)
        if self.gates is None:
            shape, zeros = features_BTF.shape[:2], features_BTF.new_zeros
            return self.weights.expand(*shape, -1), zeros(*shape, lags), zeros(*shape, 1)
        gates_BTG = self.gates(features_BTF)
        return self.weights + gates_BTG[..., :mixed], gates_BTG[..., mixed : mixed + lags], gates_BTG[..., -1:]

    def packed(self, form: WeightFormat) -> nn.Module:
        if self.working is None or not steps.compiled():
            return self
        return PackedPooled(self, self.working)


class PackedPooled(Pooled):
    """The model with a working memory: a step of one passage is one compiled call. torch computes all else.

    A step gives a :class:`~nextvec.kernels.pooled.LoggedState`. All weight formats compute the same, because no matrix of the
    model is large enough to be rounded.
    """

    steps_each = True

    def __init__(self, source: Pooled, working: WorkingMemory) -> None:
        lags = 0 if source.pooling is None else source.pooling.lags
        super().__init__(source.dim, 0.5, lags, working.size, source.gates is not None)
        self.load_state_dict(source.state_dict())
        self.compiled = CompiledSteps(self._step_weights({name: t.clone() for name, t in self.state_dict().items()}))

    def run(self, state: AnyState, x_BTD: Float[Tensor, "B T D"]) -> tuple[Any, Float[Tensor, "B T W"]]:
        if x_BTD.shape[:2] != (1, 1):
            return super().run(_plain(state), x_BTD)
        after, y_BW = self.compiled([state], x_BTD[:, 0])
        return after[0], y_BW[:, None]

    def step(self, state: AnyState, x_BD: Float[Tensor, "B D"]) -> tuple[Any, Float[Tensor, "B W"]]:
        if x_BD.shape[0] != 1:
            return super().step(_plain(state), x_BD)
        after, y_BW = self.compiled([state], x_BD)
        return after[0], y_BW

    def step_each(self, states: Sequence[AnyState], x_BD: Float[Tensor, "B D"]) -> tuple[list[Any], Float[Tensor, "B W"]]:
        return self.compiled(states, x_BD)

    def steps_through(self, mean_D: Float[Tensor, " D"], matrix_DE: Float[Tensor, "D E"]) -> "CompiledSteps":
        return CompiledSteps(replace(self.compiled.weights, space=(mean_D.clone(), pack_matrix(matrix_DE.T, "float32"))))

    def attribution(self, state: AnyState, mapped_CE: Float[Tensor, "C D"]) -> Attribution:
        return super().attribution(_plain(state), mapped_CE)

    def _step_weights(self, own: Mapping[str, Tensor]) -> PooledWeights:
        assert self.working is not None, "packed() checks it"
        layers = ("0.weight", "0.bias", "2.weight", "2.bias")
        return PooledWeights(
            decays=self.means.decays.detach(),
            weights=own["weights"],
            lag_logits=own["pooling.lag_logits"] if self.pooling else torch.empty(0),
            heads=(own["working.log_sharpness"].exp(), own["working.log_fading"].exp(), own["working.sink"]),
            gates=tuple(own[f"gates.{layer}"] for layer in layers) if self.gates else (),
            dim=self.dim,
            size=self.working.size,
            amplitude=float(own["pooling.amplitude"]) if self.pooling else 0.0,
            spread=SPREAD,
            shortest=SHORTEST,
            absent=ABSENT,
        )


@dataclass(frozen=True)
class CompiledSteps:
    """Steps of several passages by one compiled call (:mod:`nextvec.kernels.pooled`)."""

    weights: PooledWeights

    def __call__(
        self, states: Sequence[AnyState], x_BD: Float[Tensor, "B D"]
    ) -> tuple[list[LoggedState], Float[Tensor, "B W"]]:
        return step(self.weights, [s if isinstance(s, LoggedState) else LoggedState.of(_parts(s)) for s in states], x_BD)


def _parts(state: PooledState) -> Parts:
    return Parts(*state[:3], *state.held)


def _plain(state: AnyState) -> PooledState:
    if isinstance(state, PooledState):
        return state
    parts = state.parts()
    return PooledState(*parts[:3], Held(*parts[3:]))


def _cosines(vectors_BTVD: Float[Tensor, "B T V D"], unit_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
    """Cosines of the newest vector to others, as the gates read them."""
    return torch.einsum("btvd,btd->btv", vectors_BTVD, unit_BTD) * SPREAD - 1
