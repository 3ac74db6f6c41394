"""Lanes while serving: the lane of a session, the expert that answers it, and a circuit breaker for each expert."""

# Axes: T vectors, L lanes, D width.

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64

from nextvec.evaluation.by_lane import SURE
from nextvec.lanes import Anchors
from nextvec.routing import UNSURE
from nextvec.serving.metrics import Metrics
from nextvec.vectors import unit_rows

MOST_SESSIONS = 100_000  # whose votes are remembered; the votes of others are counted again from their contexts
ENOUGH = 3  # failures in a row after which an expert is not asked
FIRST, MOST = 1.0, 60.0  # seconds until an expert is tried again, doubled each time
OTHER = "other"  # any unknown lane that a request names


def strata(anchors: Anchors) -> tuple[str, ...]:
    """The strata of a rollout that is judged lane by lane."""
    return (*anchors.names, UNSURE)


@dataclass
class Health:
    """Whether an expert is asked: a circuit breaker, half open from time to time (Nygard 2007, Release It!)."""

    clock: Callable[[], float] = time.monotonic
    row: int = 0
    pause: float = FIRST
    until: float = 0.0

    @property
    def up(self) -> bool:
        return self.row < ENOUGH

    def asked(self) -> bool:
        """Whether the next request may go to it; while it is down, one is let through after each pause."""
        if self.up:
            return True
        now = self.clock()
        if now < self.until:
            return False
        self.until = now + self.pause
        return True

    def well(self) -> None:
        """Note an answer."""
        self.row, self.pause = 0, FIRST

    def renewed(self) -> None:
        """Let the next request try the expert: its model was renewed."""
        self.pause, self.until = FIRST, 0.0

    def failed(self) -> None:
        """Note a failure."""
        self.row += 1
        if not self.up:
            self.until = self.clock() + self.pause
            self.pause = min(2 * self.pause, MOST)


@dataclass
class Tally:
    """Counts of one lane's requests since the server started; ``seconds`` of the latest 1,024 answers."""

    answers: int = 0
    failures: int = 0
    hits: int = 0
    labels: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1024))


class ServedLanes:
    """The lanes of one server.

    A session is in the lane with most of its vectors' confidence, as a document is
    (:meth:`nextvec.lanes.Lanes.of_documents`), and unsure if that is less than half. Votes are a cache of the context: after
    a restart they are counted again.

    Args:
        experts: the model that answers each lane, by name.
    """

    def __init__(self, anchors: Anchors, experts: Mapping[str, str], metrics: Metrics) -> None:
        self.anchors, self.experts, self.metrics = anchors, dict(experts), metrics
        self.health = {lane: Health() for lane in experts}
        self.tallies = {lane: Tally() for lane in (*anchors.names, UNSURE, OTHER)}
        self._votes: OrderedDict[str, tuple[int, Float64[np.ndarray, " L"]]] = OrderedDict()
        for lane in experts:
            metrics.expert_up(lane).set(1)

    @property
    def strata(self) -> tuple[str, ...]:
        return strata(self.anchors)

    def known(self, lane: str | None) -> str:
        """A name that may label a metric."""
        return lane if lane in self.tallies else OTHER

    # The lane of a session

    def length(self, session: str) -> int:
        """How many of a session's vectors have voted."""
        return self._votes[session][0] if session in self._votes else 0

    def earlier(self, session: str) -> Float64[np.ndarray, " L"]:
        """The votes of a session's vectors so far."""
        return self._votes[session][1] if session in self._votes else np.zeros(len(self.anchors.names))

    def keep(self, session: str, length: int, votes: Float64[np.ndarray, " L"]) -> str:
        """Remember the votes of a session's first ``length`` vectors, and return its lane."""
        self._votes.pop(session, None)
        self._votes[session] = length, votes
        if len(self._votes) > MOST_SESSIONS:
            self._votes.popitem(last=False)
        return self.lane(votes)

    def votes(self, rows: Float32[np.ndarray, "T D"]) -> Float64[np.ndarray, " L"]:
        """The summed confidence of vectors, of any norm, by the lane of each."""
        if not len(rows):
            return np.zeros(len(self.anchors.names))
        lane, confidence = self.anchors.assign(unit_rows(rows))
        return np.bincount(lane, confidence.astype(np.float64), len(self.anchors.names))

    def lane(self, votes: Float64[np.ndarray, " L"]) -> str:
        total = votes.sum()
        return self.anchors.names[int(votes.argmax())] if total and votes.max() >= SURE * total else UNSURE

    def forget(self, session: str) -> None:
        self._votes.pop(session, None)

    # Health of the experts

    def well(self, lane: str) -> None:
        self.health[lane].well()
        self.metrics.expert_up(lane).set(1)

    def failed(self, lane: str) -> None:
        self.health[lane].failed()
        self.tallies[lane].failures += 1
        self.metrics.expert_failures(lane).inc()
        self.metrics.expert_up(lane).set(int(self.health[lane].up))

    def model_renewed(self, model: str) -> None:
        """A model runs again or was reloaded: its lanes are tried at once, without the pause."""
        for lane, name in self.experts.items():
            if name == model:
                self.health[lane].renewed()

    # Counts

    def answered(self, lane: str | None, reason: str, seconds: float) -> None:
        name = self.known(lane)
        self.metrics.lane_answers(name, reason).inc()
        self.tallies[name].answers += 1
        self.tallies[name].seconds.append(seconds)

    def labelled(self, lane: str | None, hit: bool) -> None:
        name = self.known(lane)
        self.metrics.lane_labels(name, str(hit).lower()).inc()
        self.tallies[name].labels += 1
        self.tallies[name].hits += hit

    def status(self) -> list[dict[str, object]]:
        """Every lane that has an expert or got a request, with its counts, JSON-able."""
        found: list[dict[str, object]] = []
        for lane, tally in self.tallies.items():
            expert = self.experts.get(lane)
            if expert is None and not tally.answers:
                continue
            seconds = sorted(tally.seconds)
            found.append(
                {
                    "lane": lane,
                    "expert": expert,
                    "up": self.health[lane].up if expert else None,
                    "answers": tally.answers,
                    "failures": tally.failures,
                    "p95": seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
                    "labels": tally.labels,
                    "hits": tally.hits,
                }
            )
        return found
