"""Models that run over a whole passage or step one vector at a time, and the laws they obey."""

from nextvec.models.gru import GRU
from nextvec.models.memory_gru import MemoryGRU
from nextvec.models.protocol import Model, Recurrent
from nextvec.models.published import PublishedMemoryGRU

__all__ = ["GRU", "MemoryGRU", "Model", "PublishedMemoryGRU", "Recurrent"]
