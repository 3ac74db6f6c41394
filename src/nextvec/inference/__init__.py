"""Inference with a run, or with the weights of the package: sessions, predictions for files, latency, the export as ONNX."""

from nextvec.inference.engine import Engine, PredictionRequest
from nextvec.inference.expected import Expected
from nextvec.inference.session import Session

__all__ = ["Engine", "Expected", "PredictionRequest", "Session"]
