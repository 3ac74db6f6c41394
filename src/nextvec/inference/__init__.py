"""Inference with a trained run: sessions, predictions for whole files, latency, and the export as ONNX."""

from nextvec.inference.engine import Engine
from nextvec.inference.expected import Because, Expected, RowPart
from nextvec.inference.request import PredictionRequest
from nextvec.inference.run_bank import bank_of
from nextvec.inference.session import Session

__all__ = ["Because", "Engine", "Expected", "PredictionRequest", "RowPart", "Session", "bank_of"]
