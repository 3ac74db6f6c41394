"""Inference with a trained run: sessions, predictions for whole files, latency, and the export as ONNX."""

from nextvec.inference.engine import Engine, PredictionRequest
from nextvec.inference.expected import Expected, joint_probability
from nextvec.inference.run_bank import bank_of
from nextvec.inference.session import Session

__all__ = ["Engine", "Expected", "PredictionRequest", "Session", "bank_of", "joint_probability"]
