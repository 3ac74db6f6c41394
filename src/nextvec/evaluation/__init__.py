"""Exams, baselines and reports: numbers that carry their terms."""

from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import Report, examine

__all__ = ["Exam", "Report", "examine", "predict_rows"]
