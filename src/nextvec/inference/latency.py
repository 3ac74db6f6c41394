"""The latency of an answer: a step after a context, the search, and both; with the limits of the machine from the same run."""

# Axes: T vectors of context, N candidates, D width.

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64

from nextvec.bank import Bank, VectorDocument
from nextvec.errors import RunError
from nextvec.inference.engine import Engine
from nextvec.inference.session import Session
from nextvec.kernels.library import level
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent
from nextvec.runs import bank_of, open_source
from nextvec.vectors import unit_rows

CONTEXTS = (10, 100, 1_000, 10_000)
BUDGET_MS = 5.0  # gate on P95, the predecessor's
RATIO = 1.2  # gate on P95 relative to another run's, the predecessor's
NEIGHBOURS = 10
ROUNDS, PER_ROUND, WARM_UP = 20, 10, 10
PATIENCE = 10.0  # seconds after which reading a whole window is not repeated
SIMILAR = 0.9  # cosine of a synthetic candidate with the row that it was made from


@dataclass(frozen=True)
class Milliseconds:
    """Percentiles of ``n`` measurements, each a measured value, not interpolated."""

    p50: float
    p95: float
    p99: float
    n: int

    @staticmethod
    def over(measured: Float64[np.ndarray, " n"]) -> "Milliseconds":
        p50, p95, p99 = np.percentile(measured, [50, 95, 99], method="inverted_cdf").tolist()
        return Milliseconds(p50, p95, p99, len(measured))

    def to_json(self) -> dict[str, float | int]:
        return {"p50_ms": self.p50, "p95_ms": self.p95, "p99_ms": self.p99, "n": self.n}


@dataclass(frozen=True)
class AnswerLatency:
    """The latency of an answer of one session, on one thread.

    Attributes:
        context: number of vectors read before.
        step: reading one vector, which predicts the next.
        search: finding the nearest candidates of the prediction.
        both: the step and the search together.
        reread: the plain model over the whole window, as without a state; None if not measured.
        state_bytes: size of the session's snapshot.
    """

    context: int
    step: Milliseconds
    search: Milliseconds
    both: Milliseconds
    reread: Milliseconds | None
    state_bytes: int

    def to_json(self) -> dict[str, Any]:
        timed = {"step": self.step, "search": self.search, "both": self.both, "reread": self.reread}
        measured = {name: value and value.to_json() for name, value in timed.items()}
        return {"context": self.context, **measured, "state_bytes": self.state_bytes}


@dataclass(frozen=True)
class MachineLimits:
    """Lower bounds of the machine, measured in the same run on one thread.

    Attributes:
        memory_gb_s: bandwidth of reading a buffer of 256 MB.
        weights_ms: time to read a buffer of the size of the weights that a step reads.
        index_ms: time to read a buffer of the size of the index that a search reads.
        call_ms: time of an empty call.
    """

    memory_gb_s: float
    weights_ms: float
    index_ms: float
    call_ms: float


@dataclass(frozen=True)
class LatencyGate:
    """A limit on a figure, in words, and whether the figure keeps it."""

    says: str
    passed: bool


@torch.inference_mode()
def answers(
    engine: Engine,
    contexts: Sequence[int],
    vectors: Float[np.ndarray, "rows D"],
    plain: Recurrent[Any] | None = None,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> list[AnswerLatency]:
    """Measure the same answers after every context, in turns, on one thread; warm-up is not counted.

    Args:
        vectors: read by the sessions; repeated from the start where a context is longer.
        plain: the model that reads whole windows; None to leave that out.
    """
    with _one_thread():
        coming = cycle(np.asarray(vectors, dtype=np.float32))
        sessions = [session_after(engine, vectors, context - 1) for context in contexts]
        taken: list[list[tuple[float, float]]] = [[] for _ in contexts]
        for n in range(-1, rounds):
            for session, times in zip(sessions, taken, strict=True):
                measured = [answer_ms(session, next(coming), next(coming)) for _ in range(PER_ROUND if n >= 0 else WARM_UP)]
                times += measured if n >= 0 else []
            progress("answers", n + 1, rounds)
        return [
            AnswerLatency(
                context,
                *(Milliseconds.over(column) for column in (t[:, 0], t[:, 1], t.sum(1))),
                reread=_reread(plain, vectors, context) if plain is not None else None,
                state_bytes=len(session.snapshot()),
            )
            for context, session, t in zip(contexts, sessions, map(np.array, taken), strict=True)
        ]


def session_after(engine: Engine, vectors: Float[np.ndarray, "rows D"], context: int) -> Session:
    """A session that has read ``context`` vectors, repeated from the start where there are fewer."""
    session = engine.session()
    if context:
        session.catch_up(_window(vectors, context))
    return session


def answer_ms(session: Session, last: Float32[np.ndarray, " D"], vector: Float32[np.ndarray, " D"]) -> tuple[float, float]:
    """Milliseconds in which a session reads a vector, and those of the search that follows. The session does not change.

    Args:
        last: the vector that it reads before, which is not timed. So the timed step finds the state and the processor's caches
            as an answer leaves them.
    """
    session = session.copy()
    session.push(last)
    session.predict(NEIGHBOURS)
    began = time.perf_counter_ns()
    session.push(vector)
    stepped = time.perf_counter_ns()
    session.predict(NEIGHBOURS)
    return (stepped - began) / 1e6, (time.perf_counter_ns() - stepped) / 1e6


def limits(weight_bytes: int, index_bytes: int) -> MachineLimits:
    """Measure the limits of the machine, on one thread."""
    with _one_thread():
        whole = 256_000_000
        return MachineLimits(
            memory_gb_s=whole / read_seconds(whole) / 1e9,
            weights_ms=1e3 * read_seconds(weight_bytes),
            index_ms=1e3 * read_seconds(index_bytes),
            call_ms=float(np.median([_timed(lambda: None) for _ in range(1_000)])),
        )


def read_seconds(size: int, rounds: int = 20) -> float:
    """The median time in which one thread reads ``size`` bytes that it has read before.

    A buffer that fits a cache is read from the cache, as weights of that size are.
    """
    buffer = torch.ones(max(1, size // 4))
    buffer.sum()
    return float(np.median([_timed(lambda: buffer.sum()) for _ in range(rounds)])) / 1e3


def candidates_of(bank: Bank, count: int | None) -> Bank:
    """A bank of ``count`` distinct vectors: the bank's own, then synthetic ones, each at cosine 0.9 to one of the bank's."""
    if count is None or count == len(bank.distinct):
        return bank
    rows = bank.table.vectors[bank.distinct.firsts[:count]].astype(np.float32)
    rng = np.random.default_rng(0)
    parts = [rows]
    while (missing := count - sum(map(len, parts))) > 0:
        noise = rng.standard_normal((min(missing, len(rows)), bank.dim), dtype=np.float32)
        parts.append(SIMILAR * rows[: len(noise)] + (1 - SIMILAR**2) ** 0.5 * unit_rows(noise))
    document = VectorDocument("candidates", "candidates", np.concatenate(parts))
    held = Bank.from_documents([document], bank.manifest.encoder, bank.manifest.dtype)
    return replace(held, manifest=replace(held.manifest, encoder_fingerprint=bank.manifest.encoder_fingerprint))


def cold_start(run: Path, bank: Path, weights: str) -> dict[str, float]:
    """The seconds and the peak memory of a new process from its start to its first answer.

    Raises:
        RunError: the process failed.
    """
    code = "import sys; from nextvec.inference.latency import first_answer; first_answer(*sys.argv[1:])"
    began = time.perf_counter()
    command = [sys.executable, "-c", code, str(run), str(bank), weights, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RunError(
            f"a fresh process could not answer for {run}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return {"seconds": time.perf_counter() - began, **json.loads(done.stdout)}


def first_answer(run: str, bank: str, weights: str, began: str) -> None:
    """The process of :func:`cold_start`; writes one JSON object to standard output."""
    imported, peak = time.time(), _peak_bytes()
    source = open_source(run)
    engine = Engine.open(source, bank_of(source, Path(bank)), weights=weights)  # type: ignore[arg-type]
    opened = time.time()
    session = engine.session()
    session.push(engine.bank.rows[0])
    session.predict(NEIGHBOURS)
    found = {
        "import_seconds": imported - float(began),
        "open_seconds": opened - imported,
        "answer_seconds": time.time() - opened,
        "import_bytes": peak,
        "peak_bytes": _peak_bytes(),
    }
    sys.stdout.write(json.dumps(found))


def gates(
    found: Sequence[AnswerLatency],
    budget_ms: float | None,
    against: Sequence[AnswerLatency] | None = None,
    ratio: float = RATIO,
) -> list[LatencyGate]:
    """For every context: P95 of an answer within a budget, and within a ratio of another run's P95."""
    judged: list[LatencyGate] = []
    for answer in found:
        p95 = answer.both.p95
        if budget_ms is not None:
            says = f"context {answer.context:,}: P95 {p95:.2f} ms, at most {budget_ms:g} ms"
            judged.append(LatencyGate(says, p95 <= budget_ms))
    for answer, other in zip(found, against or (), strict=bool(against)):
        most = ratio * other.both.p95
        limit = f"{ratio:g} x {other.both.p95:.2f} ms of the other run"
        says = f"context {answer.context:,}: P95 {answer.both.p95:.2f} ms, at most {limit}"
        judged.append(LatencyGate(says, answer.both.p95 <= most))
    return judged


def to_json(found: Sequence[AnswerLatency], limit: MachineLimits, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One object for ``--json`` and the page."""
    return {**facts, "kernels": level(), "contexts": [a.to_json() for a in found], "limits": asdict(limit)}


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reread(plain: Recurrent[Any], vectors: Float[np.ndarray, "rows D"], context: int) -> Milliseconds:
    x_BTD = torch.from_numpy(_window(vectors, context))[None]
    times = [_timed(lambda: plain.last(x_BTD))]
    while sum(times) < 1e3 * PATIENCE and len(times) < 5:
        times.append(_timed(lambda: plain.last(x_BTD)))
    return Milliseconds.over(np.array(times))


def _window(vectors: Float[np.ndarray, "rows D"], context: int) -> Float32[np.ndarray, "T D"]:
    return vectors[np.arange(context) % len(vectors)].astype(np.float32)


def _timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def _peak_bytes() -> int:
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
