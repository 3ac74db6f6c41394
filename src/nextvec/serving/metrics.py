"""Prometheus metrics of a server. The judge of a rollout does not read them, so a scraper that stops cannot promote a model."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nextvec.serving.recent import Recent

# Seconds; dense around the default budget.
BUCKETS = tuple(ms / 1e3 for ms in (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20, 50, 100, 250, 1000))
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server. Each server has its own registry, so that two servers in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recent = Recent()
        new: dict[str, Any] = {"registry": self.registry, "namespace": "nextvec"}
        self._requests = Counter("requests", "Answers by route and status.", ["route", "status"], **new)
        self._seconds = Histogram("request_seconds", "From the last byte in to the answer.", ["route"], buckets=BUCKETS, **new)
        self._answers = Counter("answers", "Predictions by who answered and why.", ["arm", "model", "reason"], **new)
        self._engine = Histogram("engine_seconds", "One batched step and search.", ["model"], buckets=BUCKETS, **new)
        self._labels = Counter("labels", "Appends that labelled a prediction.", ["arm", "hit"], **new)
        ended = Counter("engine_ends", "Times that a model's own process has ended by itself.", ["model"], **new)
        self.batch = Histogram("batch_sessions", "Sessions answered at once.", buckets=SIZES, **new)
        self.shed = Counter("shed", "Requests refused because the queue was longer than the budget.", **new)
        self.rebuilt = Counter("rebuilt", "Model states rebuilt from their contexts.", **new)
        self.unlogged = Counter("unlogged_lines", "Log lines dropped because no reader kept up.", **new)
        self.queue = Gauge("queue", "Requests waiting for an engine.", **new)
        self.sessions = Gauge("sessions", "Contexts held.", **new)
        self.states = Gauge("state_bytes", "Memory of model states.", **new)
        self.log = Gauge("context_log_bytes", "Disk of contexts.", **new)
        lanes = Counter(
            "lane_answers", "Predictions by the lane of what was read, and why who answered.", ["lane", "reason"], **new
        )
        hits = Counter("lane_labels", "Appends that labelled a prediction in a lane.", ["lane", "hit"], **new)
        failures = Counter(
            "expert_failures", "Requests that a lane's expert could not answer; the shared model did.", ["lane"], **new
        )
        up = Gauge("expert_up", "Whether a lane's expert is asked.", ["lane"], **new)
        # A child of a label costs a lock and a lookup, so the few children are cached.
        self.requests = lru_cache(1024)(self._requests.labels)
        self.seconds = lru_cache(256)(self._seconds.labels)
        self.answers = lru_cache(1024)(self._answers.labels)
        self.engine = lru_cache(64)(self._engine.labels)
        self.ended = lru_cache(64)(ended.labels)
        self.labels = lru_cache(64)(self._labels.labels)
        self.lane_answers = lru_cache(4096)(lanes.labels)
        self.lane_labels = lru_cache(1024)(hits.labels)
        self.expert_failures, self.expert_up = lru_cache(512)(failures.labels), lru_cache(512)(up.labels)

    def refused(self) -> None:
        """Count a request that was refused before it was read."""
        self.shed.inc()
        self.recent.refuse()

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)


@lru_cache(1)
def _tracer() -> Any:
    if find_spec("opentelemetry") is None:
        return None
    return import_module("opentelemetry.trace").get_tracer("nextvec")


@contextmanager
def span(name: str, **attributes: str | int | float) -> Generator[None]:
    """An OpenTelemetry span, if the package is installed; the SDK decides whether and where it is exported."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(name, attributes=attributes):
        yield
