"""Confidence: the probability that the next vector is among the first of an answer, how it is fitted, and how it is judged."""

from nextvec.confidence.distribution import FIRST, AnswerScores, Calibration, RankDistribution
from nextvec.confidence.fit import USUAL, fit
from nextvec.confidence.reliability import Reliability

__all__ = ["FIRST", "USUAL", "AnswerScores", "Calibration", "RankDistribution", "Reliability", "fit"]
