"""Asks the chosen model, and decides which model is asked next when one fails or is late: the one path of all fallbacks.

A prediction changes nothing, so any request can be asked again of another model.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from nextvec.errors import NotFiniteError
from nextvec.inference import Expected
from nextvec.serving.answering import EndedError
from nextvec.serving.limits import Limits
from nextvec.serving.listeners import Listeners
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.refusal import RefusedError
from nextvec.serving.served_models import ServedModel

Role = Literal["canary", "expert", "stable"]
TICK = 0.01  # seconds that a timer may be early
RESTART_POLL = 0.02  # seconds between two looks at a process that is being started again
LATE = 2.0  # budgets that a canary or an expert may take; then stable is asked
# What a fallback leaves stable of a request's time: twice its recent 95th percentile, at least this or half of what is left.
RESERVE, LEAST_RESERVE = 2.0, 0.05


class _NotAskedError(Exception):
    """A model was passed over; the message says why."""


@dataclass(frozen=True)
class Attempt:
    """One model to ask.

    Attributes:
        seconds: that the model has, if it is a canary or an expert; 0 or less: it is not asked.
        restarted: the model is asked again, after its process ended.
    """

    role: Role
    model: ServedModel
    seconds: float = math.inf
    restarted: bool = False


@dataclass
class Query:
    """One request, as all attempts at it share it.

    Attributes:
        length: vectors of the context.
        lane: of the context; None if no lanes are served.
        deadline: on the loop's clock.
        reason: why the model that answers does; a fallback replaces it before it asks the next model.
        ask: asks a model.
        is_ready: whether a canary or an expert can be asked now; if not, its state is rebuilt in the background.
    """

    length: int
    lane: str | None
    deadline: float
    reason: str
    ask: Callable[[ServedModel], Awaitable[list[Expected]]]
    is_ready: Callable[[ServedModel], bool] = lambda _: True


class Fallback:
    """Answers queries by a chain of attempts."""

    def __init__(self, routing: ModelRouting, limits: Limits, listeners: Listeners) -> None:
        self.limits, self._routing, self._listeners = limits, routing, listeners

    def patience(self, length: int, deadline: float) -> float:
        """Seconds after which stable is asked instead, so that it answers before the deadline; 0 or less: at once."""
        left = deadline - asyncio.get_running_loop().time()
        stable = self._routing.models[self._routing.shared(length)]
        reserve = max(RESERVE * stable.queue.wait_p95, min(LEAST_RESERVE, left / 2))
        return min(LATE * self.limits.budget, left - reserve)

    async def answer(self, first: Attempt, query: Query) -> tuple[list[Expected], ServedModel]:
        """The first answer of the chain, and the model that gave it.

        Raises:
            EndedError: the stable model's process did not run again before the deadline.
            RefusedError: the stable model's refusal, 504 where its queue was too long.
        """
        attempt = first
        while True:
            try:
                return await self._ask(attempt, query)
            except Exception as error:
                following = await self._next(attempt, error, query)
                if following is None:
                    raise
                attempt = following

    async def _ask(self, attempt: Attempt, query: Query) -> tuple[list[Expected], ServedModel]:
        model = attempt.model
        if attempt.role == "stable":
            return await query.ask(model), model
        if not query.is_ready(model):
            raise _NotAskedError("warming")
        if attempt.seconds <= 0:
            raise _NotAskedError("not tried")
        async with asyncio.timeout(attempt.seconds):
            found = await query.ask(model)
        if attempt.role == "expert" and self._routing.lanes is not None and query.lane is not None:
            self._routing.lanes.well(query.lane)
        return found, model

    async def _next(self, attempt: Attempt, error: Exception, query: Query) -> Attempt | None:
        """The model to ask after a failed attempt; None: no other model can answer, and the error is the request's.

        After a canary or an expert, whatever stopped it, the shared stable model is asked. The stable model is asked once
        more if its process ended, as soon as that runs again.
        """
        if attempt.role != "stable":
            query.reason = f"{attempt.role} {_fault(error)}"
            self._count_failure(attempt, error, query.lane)
            return Attempt("stable", self._routing.models[self._routing.shared(query.length)])
        if not isinstance(error, EndedError) or attempt.restarted:
            return None
        # A reload may have replaced the model, or a rollout unloaded it.
        model = self._routing.models.get(attempt.model.name) or self._routing.stable_model
        await _restarted(model, error, query.deadline)
        return Attempt("stable", model, restarted=True)

    def _count_failure(self, attempt: Attempt, error: Exception, lane: str | None) -> None:
        if attempt.role == "canary" and isinstance(error, NotFiniteError):
            self._listeners.alarm(f"{attempt.model.name} answered with a score that is not finite")
        # A refusal is for want of time, so it does not count against an expert.
        failed = not isinstance(error, (_NotAskedError, RefusedError))
        if attempt.role == "expert" and failed and self._routing.lanes is not None and lane is not None:
            self._routing.lanes.failed(lane)


def _fault(error: Exception) -> str:
    """What stopped a model, in the words of :func:`nextvec.serving.causes.cause`."""
    if isinstance(error, _NotAskedError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "late"
    return "not finite" if isinstance(error, NotFiniteError) else type(error).__name__


async def _restarted(model: ServedModel, ended: EndedError, deadline: float) -> None:
    """Wait until a model can be asked again.

    Raises:
        EndedError: ``ended``, if the deadline passes first.
    """
    while model.engine.fault is not None:
        try:
            await asyncio.sleep(RESTART_POLL)
        except asyncio.CancelledError:
            if asyncio.get_running_loop().time() > deadline - TICK:
                raise ended from None  # it says more than that the deadline has passed
            raise
