"""The families of the models in :mod:`nextvec.models`, with the options that each of them reads."""

from dataclasses import dataclass

from nextvec.errors import SettingsError
from nextvec.models import GRU, LSTM, AttentionMixture, Hierarchical, LinearRecurrence, MemoryGRU, Pooled, Transformer
from nextvec.runs.families import Basis, ModelFamily
from nextvec.runs.groups import Group
from nextvec.settings import bounded


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Group):
    """What every model here reads.

    Attributes:
        hidden: width of the hidden state.
        dropout: probability that training drops a hidden value.
    """

    hidden: int = bounded(64, 1, 65_536)
    dropout: float = bounded(0.2, 0, 0.95)


@dataclass(frozen=True, kw_only=True)
class LayerOptions(ModelOptions):
    """
    Attributes:
        layers: stacked layers.
    """

    layers: int = bounded(1, 1, 64)


@dataclass(frozen=True, kw_only=True)
class SlotOptions(ModelOptions):
    """
    Attributes:
        slots: learned vectors of the long-term memory; 0 for no such memory.
    """

    slots: int = bounded(2048, 0, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(SlotOptions):
    """
    Attributes:
        working: last vectors of the passage that the working memory holds; 0 for no working memory.
    """

    working: int = bounded(256, 0, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class PooledOptions(Group):
    """
    Attributes:
        pooled: last vectors that are queries of their own; 0 for one query. At most ``working``.
        working: last vectors of the passage that the working memory holds; 0 for no working memory.
        gates: whether a small network changes the weights at every position.
    """

    pooled: int = bounded(12, 0, 256)
    working: int = bounded(256, 0, 1_000_000)
    gates: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooled > self.working:
            raise SettingsError(f"pooled={self.pooled}: the working memory holds {self.working}; choose at most that")


@dataclass(frozen=True, kw_only=True)
class WindowOptions(LayerOptions):
    """
    Attributes:
        window: last positions that attention sees, the newest included.
    """

    window: int = bounded(256, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class ChunkOptions(LayerOptions):
    """
    Attributes:
        chunk: vectors in one chunk of the passage.
    """

    chunk: int = bounded(200, 1, 1_000_000)


def memory_gru(o: MemoryOptions, basis: Basis) -> MemoryGRU:
    """The memory GRU of some options; families that extend it build it here, too."""
    return MemoryGRU(basis.centre, basis.decay, o.hidden, o.slots, o.working, o.dropout)


def _pooled(o: PooledOptions, basis: Basis) -> Pooled:
    return Pooled(len(basis.centre), basis.decay, o.pooled, o.working, o.gates)


def _gru(o: LayerOptions, basis: Basis) -> GRU:
    return GRU(basis.centre, basis.decay, o.hidden, o.layers, o.dropout)


def _lstm(o: LayerOptions, basis: Basis) -> LSTM:
    return LSTM(basis.centre, basis.decay, o.hidden, o.layers, o.dropout)


def _linear(o: LayerOptions, basis: Basis) -> LinearRecurrence:
    return LinearRecurrence(basis.centre, basis.decay, hidden=o.hidden, layers=o.layers, dropout=o.dropout)


def _transformer(o: WindowOptions, basis: Basis) -> Transformer:
    return Transformer(basis.centre, basis.decay, hidden=o.hidden, layers=o.layers, dropout=o.dropout, window=o.window)


def _mixture(o: WindowOptions, basis: Basis) -> AttentionMixture:
    return AttentionMixture(basis.centre, basis.decay, hidden=o.hidden, layers=o.layers, dropout=o.dropout, window=o.window)


def _hierarchical(o: ChunkOptions, basis: Basis) -> Hierarchical:
    return Hierarchical(basis.centre, basis.decay, hidden=o.hidden, layers=o.layers, dropout=o.dropout, chunk=o.chunk)


MEMORY_GRU_FAMILY = ModelFamily("memory_gru", MemoryOptions, memory_gru)
POOLED_FAMILY = ModelFamily("pooled", PooledOptions, _pooled)
GRU_FAMILY = ModelFamily("gru", LayerOptions, _gru)
LSTM_FAMILY = ModelFamily("lstm", LayerOptions, _lstm)
LINEAR_FAMILY = ModelFamily("linear", LayerOptions, _linear)
TRANSFORMER_FAMILY = ModelFamily("transformer", WindowOptions, _transformer)
MIXTURE_FAMILY = ModelFamily("mixture", WindowOptions, _mixture)
HIERARCHICAL_FAMILY = ModelFamily("hierarchical", ChunkOptions, _hierarchical)
