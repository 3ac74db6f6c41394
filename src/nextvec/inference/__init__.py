"""A trained run opened for answering: sessions that step, candidates in words, whole files of contexts, ONNX."""

from nextvec.inference.engine import Engine, bank_of
from nextvec.inference.expected import Expected
from nextvec.inference.session import Session

__all__ = ["Engine", "Expected", "Session", "bank_of"]
