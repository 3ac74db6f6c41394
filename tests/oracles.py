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
    scales = (values + 1e-4 * (values.max() or 1.0)) ** (-power / 2)
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


Weights = dict[str, Array]


def shipped_scores(read: Array, candidates: Array, w: Weights) -> Array:
    """[N] scores of the model ``pooled`` after rows [T, D], for candidates [N, D]; both in its space, T at least 1.

    Args:
        w: the weights of the package without their prefix, in float64.
    """
    newest = read[-1]
    decays = 1 / (1 + np.exp(-w["means.logits"]))
    means = [(1 - decay) * exponential_mean(read, decay) for decay in decays]
    recalled = [_recalled(read, w, head) for head in range(2)]
    mixed = np.stack([_scaled(vector) for vector in (*means, read.sum(0), *recalled)])
    last = read[::-1][: len(w["pooling.lag_logits"])]
    absent = len(w["pooling.lag_logits"]) - len(last)
    lags = np.concatenate([last @ newest, np.zeros(absent)])
    features = [[np.log(len(read)) / 2 - 1], 2 * np.linalg.norm(means, axis=1) - 1, 3 * (mixed @ newest) - 1, 3 * lags - 1]
    hidden = np.tanh(w["gates.0.weight"] @ np.concatenate(features) + w["gates.0.bias"])
    gates = w["gates.2.weight"] @ hidden + w["gates.2.bias"]
    mixture = (w["weights"] + gates[: len(mixed)]) @ mixed
    logits = (w["pooling.lag_logits"] + gates[len(mixed) : -1])[: len(last)]
    log_weights = logits - np.logaddexp.reduce(logits)
    queries = mixture + (w["pooling.amplitude"] + gates[-1]) * last
    sharpness = np.exp(w["pooling.log_sharpness"])
    return np.logaddexp.reduce(sharpness * queries @ candidates.T + log_weights[:, None], axis=0) / sharpness


def _recalled(read: Array, w: Weights, head: int, size: int = 256) -> Array:
    """What followed the rows like the newest one (head 0), or these rows themselves (head 1): attention with a sink."""
    places = np.arange(len(read))
    lag = len(read) - 1 - places
    key = np.roll(places, 1) if head == 0 else places
    allowed = (places >= 1) & (lag < size) if head == 0 else (lag >= 1) & (lag <= size)
    logits = np.exp(w["working.log_sharpness"][head]) * (read[key] @ read[-1]) - np.exp(w["working.log_fading"][head]) * lag
    weights = np.exp(logits[allowed])
    return weights @ read[allowed] / (weights.sum() + np.exp(w["working.sink"][head]))


def _scaled(vector: Array) -> Array:
    return vector / max(np.linalg.norm(vector), 1e-6)
