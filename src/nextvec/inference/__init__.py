"""Inference with a run, or with the weights of the package: sessions, predictions for files, latency, the export as ONNX."""

from nextvec.inference.engine import Engine
from nextvec.inference.expected import Because, Expected, RowPart, joint_probability
from nextvec.inference.request import PredictionRequest
from nextvec.inference.session import Session

__all__ = ["Because", "Engine", "Expected", "PredictionRequest", "RowPart", "Session", "joint_probability"]
