"""Answers requests for predictions, of sessions and of whole contexts: route, ask, and account for the result."""

# Axes: T vectors, D width.

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from nextvec.inference import Expected
from nextvec.routing import Arm, Route, Snapshot
from nextvec.serving.answers import RoutingRequest, ServedAnswer
from nextvec.serving.background import Background, Mirrored
from nextvec.serving.causes import cause
from nextvec.serving.context_view import View
from nextvec.serving.fallback import TICK, Attempt, Fallback, Query
from nextvec.serving.listeners import Listeners
from nextvec.serving.metrics import Metrics
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.outcomes import Outcomes, PendingPrediction
from nextvec.serving.refusal import RefusedError
from nextvec.serving.served_models import ServedModel
from nextvec.serving.session_inference import SessionInference
from nextvec.serving.state_rebuild import INLINE
from nextvec.serving.worker_thread import WorkerThread, one_request

UNTRIED = ("canary warming", "canary not tried")  # reasons that are no evidence about a canary


class Predictions:
    """Answers by whichever model the routing chooses; a failing canary or expert is replaced by the stable model."""

    def __init__(
        self,
        routing: ModelRouting,
        inference: SessionInference,
        fallback: Fallback,
        outcomes: Outcomes,
        background: Background,
        metrics: Metrics,
        listeners: Listeners,
        worker: WorkerThread,
    ) -> None:
        self._routing, self._inference, self._fallback = routing, inference, fallback
        self._outcomes, self._background = outcomes, background
        self._metrics, self._listeners, self._worker = metrics, listeners, worker

    async def answer(
        self,
        session: str,
        view: View,
        new: Float32[np.ndarray, "T D"] | None,
        k: int,
        asking: RoutingRequest,
        deadline: float,
        because: int = 0,
    ) -> ServedAnswer:
        """The answer to one request of a session.

        Args:
            view: of the session's whole context.
            new: its last vectors, if the caller has them.
            deadline: on the loop's clock.
            because: rows of the context to name for each candidate, where the model that answers names rows.

        Raises:
            RefusedError: 409 the session is empty; 504 no engine was free in time.
            EndedError: the stable model's process did not run again in time.
        """
        began = time.perf_counter()
        if not view.head.length:
            raise RefusedError(409, "this session is empty; append a vector first", seq=view.head.seq, length=0)
        asking = replace(asking, lane=await self._lane(session, view, new, asking))
        snapshot = self._routing.now(asking.lane)
        chosen = self._routing.route(asking, view.head.length, snapshot)
        patience = self._patience(chosen, snapshot, view, deadline)
        # Of either arm: a request without time for the canary is no evidence.
        counted = chosen.counted and patience > 0
        prediction = PendingPrediction(
            chosen.arm, frozenset(), view.head.length, snapshot.weight, counted, lane=asking.lane, rollout=snapshot.rollout
        )
        query = self._query(chosen, prediction, session, view, new, k, deadline, because)
        try:
            expected, model = await self._fallback.answer(self._first(chosen, patience), query)
        except BaseException as error:
            # A client that disconnects before its deadline is no evidence about a model; a deadline that passes is.
            over = asyncio.get_running_loop().time() > deadline - TICK
            if query.reason not in UNTRIED and (over or not isinstance(error, asyncio.CancelledError)):
                prediction.cause = self._cause(query.reason, chosen, patience)
                self._outcomes.report_request(prediction, session, time.perf_counter() - began, failed=True)
            raise
        prediction.reason, taken = query.reason, time.perf_counter() - began
        prediction.rows = frozenset(e.row for e in expected)
        self._account(prediction, session, snapshot, chosen, taken, patience)
        if self._is_mirrored(prediction, session, snapshot):
            self._background.ask_canary(snapshot, Mirrored(session, view, k, asking, prediction))
        arm: Arm = "canary" if chosen.arm == "canary" and model.name == chosen.model.name else "stable"
        self._count(arm, model, query, began)
        place = (view.head.seq, view.head.length, asking.lane)
        return ServedAnswer(expected, arm, model.name, query.reason, model.engine.digest, *place)

    async def once(
        self,
        contexts: Sequence[Float32[np.ndarray, "T D"]],
        k: int,
        asking: RoutingRequest,
        deadline: float,
        because: int = 0,
    ) -> list[ServedAnswer]:
        """Answers for whole contexts, each given at once. Without a session they are no evidence for a rollout.

        Args:
            because: as of :meth:`answer`.

        Raises:
            RefusedError: 503, 504 no time.
        """
        with one_request():
            try:
                async with asyncio.timeout_at(deadline):
                    asked = (self._once(rows, k, asking, deadline, because) for rows in contexts)
                    return list(await asyncio.gather(*asked))
            except TimeoutError:
                raise RefusedError(504, "the deadline has passed") from None

    async def _once(
        self, rows: Float32[np.ndarray, "T D"], k: int, asking: RoutingRequest, deadline: float, because: int
    ) -> ServedAnswer:
        began, lane, lanes = time.perf_counter(), asking.lane, self._routing.lanes
        if lanes is not None and lane is None:
            long = len(rows) > INLINE
            lane = lanes.lane(await self._worker.run(lambda: lanes.votes(rows)) if long else lanes.votes(rows))
        served, why = self._routing.now(lane).stable.choose(len(rows), lane, self._routing.snapshot.threshold)

        def ask(model: ServedModel) -> Awaitable[list[Expected]]:
            return self._inference.ask_whole(model, rows, k, deadline, because)

        query = Query(len(rows), lane, deadline, str(why), ask)
        if why == "expert":
            first = Attempt("expert", self._routing.models[served.name], self._fallback.patience(len(rows), deadline))
        else:
            first = Attempt("stable", self._routing.models[served.name])
        found, model = await self._fallback.answer(first, query)
        self._count("stable", model, query, began)
        return ServedAnswer(found, "stable", model.name, query.reason, model.engine.digest, None, len(rows), lane)

    def _query(
        self,
        chosen: Route,
        prediction: PendingPrediction,
        session: str,
        view: View,
        new: Float32[np.ndarray, "T D"] | None,
        k: int,
        deadline: float,
        because: int,
    ) -> Query:
        def ask(model: ServedModel) -> Awaitable[list[Expected]]:
            return self._inference.ask(model, session, view, new, k, deadline, because)

        def is_ready(model: ServedModel) -> bool:
            # The first request after a switch would wait for a rebuild, which says nothing about the model: stable answers.
            if self._inference.is_warm(model, session, view):
                return True
            self._outcomes.observed.touch(session, time.monotonic())
            lane = None if chosen.arm == "canary" else prediction.lane
            self._background.warm(model, session, view, replace(prediction, reason=chosen.reason), lane)
            return False

        return Query(view.head.length, prediction.lane, deadline, chosen.reason, ask, is_ready)

    def _account(
        self,
        prediction: PendingPrediction,
        session: str,
        snapshot: Snapshot,
        chosen: Route,
        taken: float,
        patience: float,
    ) -> None:
        """Report an answered request, and keep it until its label comes, if a rollout, a recording or lanes need that."""
        needed = snapshot.canary is not None or self._listeners.record is not None or self._routing.lanes is not None
        if not needed or prediction.reason in UNTRIED:
            return
        prediction.time, prediction.seconds = time.time() - taken, taken
        prediction.failed = prediction.reason.startswith("canary ")
        self._outcomes.keep(session, prediction)
        # Both arms fail by one rule, so that a slow server is no evidence against a canary.
        failed = prediction.failed or taken > patience
        prediction.cause = self._cause(prediction.reason, chosen, patience) if failed else ""
        self._outcomes.report_request(prediction, session, taken, failed)

    def _is_mirrored(self, prediction: PendingPrediction, session: str, snapshot: Snapshot) -> bool:
        compared = snapshot.canary is not None and prediction.arm == "stable" and prediction.reason not in UNTRIED
        return compared and self._background.is_mirrored(session, snapshot)

    def _patience(self, chosen: Route, snapshot: Snapshot, view: View, deadline: float) -> float:
        if snapshot.canary is None and chosen.model_reason != "expert":
            return math.inf
        return self._fallback.patience(view.head.length, deadline)

    def _cause(self, reason: str, chosen: Route, patience: float) -> str:
        """What stopped the chosen model from answering in time."""
        model = self._routing.models.get(chosen.model.name)
        fault = reason if reason.startswith("canary ") else "canary late"
        return cause(fault, None if model is None else model.engine, patience)

    async def _lane(
        self, session: str, view: View, new: Float32[np.ndarray, "T D"] | None, asking: RoutingRequest
    ) -> str | None:
        """The lane that the request names, else the lane of the context; None if no lanes are served."""
        lanes = self._routing.lanes
        if asking.lane is not None or lanes is None:
            return asking.lane
        voted = lanes.length(session)
        behind = view.head.length - voted
        if behind < 0:  # of a deleted session with the same name
            lanes.forget(session)
            voted, behind = 0, view.head.length
        earlier = lanes.earlier(session)  # the votes may be evicted while the thread reads
        if behind > INLINE:
            votes = earlier + await self._worker.run(lambda: lanes.votes(view.read(voted)))
        else:
            votes = earlier + lanes.votes(new if new is not None and len(new) == behind else view.read(voted))
        return lanes.keep(session, view.head.length, votes)

    def _count(self, arm: Arm, model: ServedModel, query: Query, began: float) -> None:
        self._metrics.answers(arm, model.name, query.reason).inc()
        if self._routing.lanes is not None:
            self._routing.lanes.answered(query.lane, query.reason, time.perf_counter() - began)

    def _first(self, chosen: Route, patience: float) -> Attempt:
        model = self._routing.models[chosen.model.name]
        if chosen.arm == "canary":
            return Attempt("canary", model, patience)
        return Attempt("expert", model, patience) if chosen.model_reason == "expert" else Attempt("stable", model)
