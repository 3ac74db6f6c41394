"""Models that run over a whole passage or step one vector at a time, and the laws they obey."""

from nextvec.models.gru import GRU
from nextvec.models.hierarchical import Hierarchical
from nextvec.models.linear import LinearRecurrence
from nextvec.models.lstm import LSTM
from nextvec.models.memory_gru import MemoryGRU
from nextvec.models.mixture import AttentionMixture
from nextvec.models.pooled import Pooled
from nextvec.models.protocol import Model, Recurrent
from nextvec.models.transformer import Transformer

__all__ = [
    "GRU",
    "LSTM",
    "AttentionMixture",
    "Hierarchical",
    "LinearRecurrence",
    "MemoryGRU",
    "Model",
    "Pooled",
    "Recurrent",
    "Transformer",
]
