"""What became of each prediction: time, failure, and its label, which is the session's next append.

Hit@K is exact and prequential (Dawid 1984): a prediction is judged by the vector that was appended after it.
"""

import asyncio
import time
from dataclasses import dataclass

from nextvec.routing import Arm
from nextvec.serving.answering import EndedError
from nextvec.serving.last_use import LastUse
from nextvec.serving.listeners import Listeners
from nextvec.serving.metrics import Metrics
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.observations import Closed, LabelledPrediction, Observation, Pair, Stream
from nextvec.serving.payload import Vectors
from nextvec.serving.worker_thread import WorkerThread


@dataclass
class PendingPrediction:
    """The last prediction of a session; the next append is its label.

    Attributes:
        rows: of the bank, as predicted.
        vectors: of the context.
        weight: percent of the sessions that went to the canary.
        counted: whether the request is evidence.
        mirrored: the rows that the canary predicted in the background; None while it has not.
        time: seconds since 1970 at which it was asked for.
        seconds: that it took.
        failed: the chosen model could not answer.
        reason: why the model that answered did.
        rollout: during which it was asked for.
        cause: of the failure, in words.
    """

    arm: Arm
    rows: frozenset[int]
    vectors: int
    weight: float
    counted: bool
    mirrored: frozenset[int] | None = None
    time: float = 0.0
    seconds: float = 0.0
    failed: bool = False
    lane: str | None = None
    reason: str = ""
    rollout: str = ""
    cause: str = ""


class Outcomes:
    """Labels predictions and passes what happened to the listeners.

    Attributes:
        pending: predictions that wait for their label, by session.
        observed: sessions whose end has to be reported to a rollout or a recording.
        labelling: searches for labels that run.
    """

    def __init__(self, routing: ModelRouting, listeners: Listeners, metrics: Metrics, worker: WorkerThread) -> None:
        self.pending: dict[str, PendingPrediction] = {}
        self.observed = LastUse()
        self.labelling: set[asyncio.Task[None]] = set()
        self._routing, self._listeners, self._metrics, self._worker = routing, listeners, metrics, worker

    def keep(self, session: str, prediction: PendingPrediction) -> None:
        """Wait for the label of a session's newest prediction; an older one stays without."""
        self._record(session, self.pending.get(session), None)
        self.pending[session] = prediction

    def report_request(self, prediction: PendingPrediction, session: str, seconds: float, failed: bool) -> None:
        """Report an answered or failed request. Time spent on a fallback counts for the canary, because its user waited."""
        self.observed.touch(session, time.monotonic())
        self.report("assign", prediction, session, 0.0)
        self.report("fail", prediction, session, float(failed))
        self.report("slow", prediction, session, seconds)

    def report(self, stream: Stream, prediction: PendingPrediction, session: str, value: float) -> None:
        """Report one observation, if the prediction is evidence for the present rollout."""
        if prediction.counted and prediction.rollout == self._routing.snapshot.rollout:
            cause = prediction.cause if stream == "fail" and value else ""
            lane, length = prediction.lane, prediction.vectors
            self._listeners.observe(Observation(stream, prediction.arm, session, prediction.weight, value, length, lane, cause))

    def is_observed(self, session: str) -> bool:
        """Whether the session's end is still to be reported; a later observation would count the session twice."""
        return self.observed.time(session) is not None

    def label(self, session: str, vectors: Vectors) -> asyncio.Task[None]:
        """Label the pending prediction with an append.

        The search goes on when its request has ended: cancelled searches would hide the slow requests from the judge.
        """
        task = asyncio.get_running_loop().create_task(self._label(session, vectors))
        self.labelling.add(task)
        task.add_done_callback(self.labelling.discard)
        return task

    def lapse(self, session: str) -> None:
        """Count a session as ended for rollouts and recordings; its context stays, and it may go on."""
        self.observed.forget(session)
        prediction = self.pending.pop(session, None)
        if prediction is not None:
            self.report("unlabelled", prediction, session, 1.0)
            self._record(session, prediction, None)
        self._listeners.observe(Closed(session))

    async def _label(self, session: str, vectors: Vectors) -> None:
        prediction = self.pending.pop(session, None)
        if prediction is None:
            return
        try:
            truth = await self.appended_row(vectors)
        except EndedError:  # the append stays written, but the prediction has no label
            if self.is_observed(session):
                self.report("unlabelled", prediction, session, 1.0)
            self._record(session, prediction, None)
            return
        hit = truth in prediction.rows
        self._metrics.labels(prediction.arm, str(hit).lower()).inc()
        if self._routing.lanes is not None:
            self._routing.lanes.labelled(prediction.lane, hit)
        self._record(session, prediction, hit)
        if not self.is_observed(session):
            return
        self.report("miss", prediction, session, float(not hit))
        self.report("unlabelled", prediction, session, 0.0)
        if prediction.mirrored is not None and prediction.rollout == self._routing.snapshot.rollout:
            canary_miss = truth not in prediction.mirrored
            self._listeners.observe(Pair("miss", session, not hit, canary_miss, prediction.vectors, prediction.lane))

    async def appended_row(self, vectors: Vectors) -> int:
        """The first row of the bank that holds the first appended vector, or else the nearest row."""
        model = self._routing.stable_model
        if vectors.ids:
            return int(model.engine.bank.distinct.classes[vectors.ids[0]])
        with model.queue.used():
            return int((await self._worker.run(lambda: model.engine.nearest(vectors.rows[:1])))[0])

    def _record(self, session: str, prediction: PendingPrediction | None, hit: bool | None) -> None:
        if prediction is not None and self._listeners.record is not None:
            taken = (prediction.time, prediction.vectors, prediction.seconds, prediction.failed)
            self._listeners.record(LabelledPrediction(session, *taken, hit))
