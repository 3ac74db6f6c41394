"""Traffic for simulated rollouts: recorded by a server, or generated."""

# Axes: N requests.

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from jaxtyping import Bool, Float64, Int64

from nextvec.errors import ServingError

COLUMNS = ("time", "session", "n_vectors", "latency_ms", "failed", "hit")


@dataclass(frozen=True)
class Traffic:
    """Requests in order of time, with the outcomes of the stable arm.

    Attributes:
        time: seconds.
        session: numbered from 0.
        vectors: of the context.
        latency: milliseconds.
        failed: whether the answer was an error.
        hit: 1 or 0; -1 without a label.
    """

    time: Float64[np.ndarray, " N"]
    session: Int64[np.ndarray, " N"]
    vectors: Int64[np.ndarray, " N"]
    latency: Float64[np.ndarray, " N"]
    failed: Bool[np.ndarray, " N"]
    hit: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.time)


def recorded(path: Path) -> Traffic:
    """Traffic from a ``.jsonl`` or ``.parquet`` file with time, session, n_vectors, latency_ms, failed, hit (may be null).

    Raises:
        ServingError: the file is missing or empty, lacks a column, or holds a time or latency that is not a positive number.
    """
    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.json.read_json(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ServingError(f"{path} cannot be read as traffic: {str(error).splitlines()[0]}") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ServingError(f"{path} has no column {missing[0]!r}; traffic needs {', '.join(COLUMNS)}")
    if not len(table):
        raise ServingError(f"{path} has no request")
    columns = {name: table[name].to_numpy() for name in COLUMNS if name != "hit"}
    time, latency = (columns[name].astype(np.float64) for name in ("time", "latency_ms"))
    if not (np.isfinite(time).all() and (np.isfinite(latency) & (latency > 0)).all()):
        raise ServingError(f"{path} has a time or latency_ms that is not a positive number")
    hit = np.array([-1 if value is None else int(value) for value in table["hit"].to_pylist()], np.int64)
    order = np.argsort(time, kind="stable")
    _, session = np.unique(columns["session"].astype(str), return_inverse=True)
    vectors, failed = columns["n_vectors"].astype(np.int64), columns["failed"].astype(bool)
    return Traffic(*(column[order] for column in (time, session.astype(np.int64), vectors, latency, failed, hit)))


def synthetic(
    rng: np.random.Generator,
    requests: int = 600_000,
    rate: float = 20.0,
    session: float = 8.0,
    failing: float = 0.001,
    hit: float = 0.55,
) -> Traffic:
    """Difficult traffic: clustered failures, busy hours, incidents, and sessions that are slow as a whole.

    Args:
        rate: mean requests per second.
        session: mean requests per session (geometric).
        failing, hit: shares of requests.
    """
    sizes = rng.geometric(1 / session, max(1, round(requests / session)))
    total, span = int(sizes.sum()), requests / rate
    owner = np.repeat(np.arange(len(sizes)), sizes)
    gaps = rng.exponential(20.0, total)
    ends = np.cumsum(sizes)
    since = np.cumsum(gaps)
    since -= np.repeat(since[ends - sizes], sizes)
    time = np.repeat(rng.random(len(sizes)) * span, sizes) + since
    position = np.arange(total) - np.repeat(ends - sizes, sizes)
    vectors = np.repeat(np.exp(rng.normal(3.0, 1.5, len(sizes))).astype(np.int64) + 1, sizes) + position
    busy = 1 + 0.3 * np.sin(2 * np.pi * time / span)
    incident = np.isin(
        (time // 300).astype(np.int64), rng.choice(max(1, int(span // 300)), max(1, int(span // 9000)), replace=False)
    )
    speed = np.repeat(rng.normal(0, 0.2, len(sizes)), sizes) + rng.normal(0, 0.45, total)
    latency = 1.5 * busy * (1 + vectors / 500) * np.exp(speed) * np.where(incident, 2.0, 1.0)
    frailty = np.repeat(rng.gamma(0.2, 5.0, len(sizes)), sizes)
    failed = rng.random(total) < failing * frailty * np.where(incident, 20.0, 1.0)
    easy = np.repeat(rng.normal(0, 0.2, len(sizes)), sizes)
    hits = (rng.random(total) < np.clip(hit + easy, 0, 1)).astype(np.int64)
    hits[ends - 1] = -1  # the last request of a session has no label
    order = np.argsort(time, kind="stable")
    return Traffic(*(column[order] for column in (time, owner, vectors, latency, failed, hits)))
