"""Spaces, scores and ranks by definition, in float64 NumPy, for tests that compare the package with them."""

# Axes: R scored rows, N rows of the bank, D width, Q queries.

from collections.abc import Iterator

import numpy as np

from nextvec.evaluation import Exam

Array = np.ndarray


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def space(fitted_on: Array, power: float) -> tuple[Array, Array]:
    """Mean [D] and matrix [D, D] of a space, from the singular values of the centred rows and not from their covariance."""
    rows = fitted_on.astype(np.float64)
    mean = rows.mean(0)
    _, singular, directions = np.linalg.svd((rows - mean) / len(rows) ** 0.5, full_matrices=True)
    values = np.zeros(rows.shape[1])
    values[: len(singular)] = singular**2
    shrinkage = max(0.0, 1 - len(rows) / (2 * rows.shape[1]))
    values = values + shrinkage * (values.mean() - values)
    scales = (values + 1e-4 * values.max()) ** (-power / 2)
    return mean, (directions.T * scales) @ directions


def in_space(rows: Array, fitted_on: Array, power: float) -> Array:
    mean, matrix = space(fitted_on, power)
    return unit((rows.astype(np.float64) - mean) @ matrix)


def contexts(exam: Exam, length: int) -> Iterator[tuple[int, int]]:
    """First row read, and the row that is predicted."""
    for row, document in zip(exam.rows.tolist(), exam.clusters.tolist(), strict=True):
        yield max(int(exam.bank.offsets[document]), row - length), row


def exponential_mean(read: Array, decay: float) -> Array:
    """Of rows [T, D], newest last; the factor that all scores share is left out."""
    return (decay ** np.arange(len(read))[::-1]) @ read


def pooled(read: Array, candidates: Array, decay: float, lags: int, sharpness: float) -> Array:
    """[N] scores: the logarithm of a weighted mean of exponentials, one for each of the last rows."""
    last = read[::-1][:lags]
    weights = decay ** np.arange(len(last))
    density = (weights / weights.sum()) @ np.exp(sharpness * last @ candidates.T)
    return np.log(density) / sharpness


def above(exam: Exam, r: int, scores: Array) -> int:
    """How many candidates of scored row ``r`` have a higher score than its truth; each found vector by vector."""
    bank, row = exam.bank, int(exam.rows[r])
    first = int(bank.offsets[exam.clusters[r]])
    held = {bank.rows[n].tobytes() for n in range(first, row + 1)}
    allowed = [c for c in exam.order.tolist() if bank.rows[c].tobytes() not in held]
    chosen = allowed if exam.pool is None else allowed[: exam.pool - 1]
    return int((scores[chosen] > scores[row]).sum())
