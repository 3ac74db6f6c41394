"""A trained run opened for answering: sessions that step, candidates in words, whole files of contexts, ONNX."""

from nextvec.inference.engine import Engine, PredictionRequest, bank_of
from nextvec.inference.expected import Expected
from nextvec.inference.session import Session

__all__ = ["Engine", "Expected", "PredictionRequest", "Session", "bank_of"]
