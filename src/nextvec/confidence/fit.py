"""Fitting a calibration to predictions whose next vector is known."""

# Axes: N predictions.

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from nextvec.confidence.distribution import AnswerScores, Calibration, RankDistribution

KS = (1, 2, 5, 10)
USUAL = Calibration(level=1.87, growth=0.03)  # a mean over banks, as benchmarks/calibration.py prints it
SPREADS = np.array([0.5, 0.1])  # standard deviations of the normal prior around it
LEAST = 1e-12  # a probability in a logarithm
STEP, ENOUGH, LONGEST, TRIES = 1e-3, 1e-6, 0.5, 50


def fit(answers: AnswerScores, places: Int64[np.ndarray, " N"], documents: Int64[np.ndarray, " N"]) -> Calibration:
    """The calibration under which what followed is most probable.

    It minimises the logarithmic loss of "the next vector is among the first k",
    averaged over k of 1, 2, 5 and 10: a proper score (Gneiting and Raftery 2007).
    A normal prior around the usual calibration is added. It weighs as one
    observation for each document, because the rows of one document depend on each
    other.

    Args:
        places: of the next vector in each answer, from 0; ``FIRST`` or more where it is not among the first ten.
        documents: the document of each prediction.
    """
    count = len(np.unique(documents))
    prior = np.array([USUAL.level, USUAL.growth])

    def loss(at: Float64[np.ndarray, " two"]) -> float:
        cumulated = RankDistribution(answers, _at(at)).rows(max(KS)).cumsum(1)
        losses = [log_loss(cumulated[:, k - 1], places < k) for k in KS]
        return float(np.mean(losses)) + float((((at - prior) / SPREADS) ** 2).sum()) / (2 * count)

    return replace(_at(_minimum(loss, prior)), rows=len(places), documents=count)


def log_loss(probabilities: Float64[np.ndarray, " N"], came: Bool[np.ndarray, " N"]) -> float:
    """The mean of -ln of the probability of what came: the event or its contrary."""
    return float(-np.log(np.maximum(np.where(came, probabilities, 1 - probabilities), LEAST)).mean())


def _at(at: Float64[np.ndarray, " two"]) -> Calibration:
    return replace(USUAL, level=float(at[0]), growth=float(at[1]))


def _minimum(loss: Callable[[np.ndarray], float], start: Float64[np.ndarray, " two"]) -> Float64[np.ndarray, " two"]:
    """The minimum of a smooth function, by Newton's method with differences in place of derivatives."""
    at = start
    for _ in range(TRIES):
        gradient, curvature = _derivatives(loss, at)
        values, directions = np.linalg.eigh(curvature)
        # With positive curvatures the step goes downhill.
        step = -directions @ ((directions.T @ gradient) / np.maximum(np.abs(values), STEP))
        step *= min(1.0, LONGEST / np.abs(step).max())
        while loss(at + step) > loss(at) and np.abs(step).max() > ENOUGH:
            step = step / 2
        at = at + step
        if np.abs(step).max() <= ENOUGH:
            break
    return at


def _derivatives(loss: Callable[[np.ndarray], float], at: Float64[np.ndarray, " two"]) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and second derivatives by central differences."""
    a, b = STEP * np.eye(2)
    here = loss(at)
    ahead, behind = [loss(at + d) for d in (a, b)], [loss(at - d) for d in (a, b)]
    gradient = (np.array(ahead) - behind) / (2 * STEP)
    mixed = (loss(at + a + b) - loss(at + a - b) - loss(at - a + b) + loss(at - a - b)) / (4 * STEP**2)
    pure = (np.array(ahead) - 2 * here + behind) / STEP**2
    return gradient, np.array([[pure[0], mixed], [mixed, pure[1]]])
