"""Work of a canary or an expert that no client waits for: rebuilding its state, and answering mirrored requests."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nextvec.errors import NotFiniteError
from nextvec.routing import BUCKETS, LONGEST_SALT, Snapshot, bucket
from nextvec.serving.answers import RoutingRequest
from nextvec.serving.causes import cause
from nextvec.serving.context_view import View
from nextvec.serving.listeners import Listeners
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.observations import Pair
from nextvec.serving.outcomes import Outcomes, PendingPrediction
from nextvec.serving.served_models import ServedModel
from nextvec.serving.session_inference import SessionInference
from nextvec.serving.worker_thread import background_context

BACKGROUND_SECONDS = 30.0  # for one rebuild or one mirrored request


@dataclass(frozen=True)
class Mirrored:
    """A request that stable has answered and that the canary is to answer, too."""

    session: str
    view: View
    k: int
    asking: RoutingRequest
    prediction: PendingPrediction


class Background:
    """Background work, at most one task for each state.

    Attributes:
        mirror: percent of the sessions whose requests the canary answers, too, while a rollout has one.
        tasks: that run, by session and digest of the model.
    """

    def __init__(self, inference: SessionInference, routing: ModelRouting, outcomes: Outcomes, listeners: Listeners) -> None:
        self.mirror = 0.0
        self.tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._inference, self._routing, self._outcomes, self._listeners = inference, routing, outcomes, listeners

    def run(self, model: ServedModel, session: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work``, unless another task works on the same state."""
        name = (session, model.engine.digest)
        if name not in self.tasks:
            task = self.tasks[name] = asyncio.get_running_loop().create_task(work(), context=background_context())
            task.add_done_callback(lambda _: self.tasks.pop(name))

    def warm(self, model: ServedModel, session: str, view: View, prediction: PendingPrediction, lane: str | None) -> None:
        """Bring a state up to date.

        Args:
            lane: of the expert whose state it is; None for a canary's.
        """

        async def warm() -> None:
            try:
                async with asyncio.timeout(BACKGROUND_SECONDS):
                    await self._inference.warm(model, session, view)
            except Exception as error:  # the failure concerns this model alone
                if lane is None:
                    fault = "late" if isinstance(error, TimeoutError) else type(error).__name__
                    prediction.cause = cause(f"canary {fault}", model.engine, BACKGROUND_SECONDS)
                    if self._outcomes.is_observed(session):
                        self._outcomes.report("fail", prediction, session, 1.0)
                elif self._routing.lanes is not None:
                    self._routing.lanes.failed(lane)

        self.run(model, session, warm)

    def is_mirrored(self, session: str, snapshot: Snapshot) -> bool:
        """Whether a session is among the mirrored percent."""
        return bucket(session, f"mirror {snapshot.rollout}"[:LONGEST_SALT]) < self.mirror * BUCKETS / 100

    def ask_canary(self, snapshot: Snapshot, mirrored: Mirrored) -> None:
        """Have the canary answer a mirrored request, unless the same model has answered it in both arms."""
        assert snapshot.canary is not None
        length, lane = mirrored.view.head.length, mirrored.asking.lane
        served, _ = snapshot.canary.choose(length, lane, snapshot.threshold)
        if served == self._routing.snapshot.stable.choose(length, lane, snapshot.threshold)[0]:
            return  # an expert answers its lane in both arms
        model = self._routing.models.get(served.name)
        if model is not None:  # else the rollout has ended in the meantime
            self.run(model, mirrored.session, lambda: self._mirror(model, mirrored))

    async def _mirror(self, model: ServedModel, mirrored: Mirrored) -> None:
        until = asyncio.get_running_loop().time() + BACKGROUND_SECONDS
        fault: str | None = None
        try:
            async with asyncio.timeout(BACKGROUND_SECONDS):
                found = await self._inference.ask(model, mirrored.session, mirrored.view, None, mirrored.k, until)
            mirrored.prediction.mirrored = frozenset(e.row for e in found)
        except NotFiniteError:
            self._listeners.alarm(f"{model.name} answered with a score that is not finite")
            fault = "not finite"
        except TimeoutError:
            fault = "late"
        except Exception as error:  # every failure of a canary counts against the canary alone
            fault = type(error).__name__
        self._compare(model, mirrored, fault)

    def _compare(self, model: ServedModel, mirrored: Mirrored, fault: str | None) -> None:
        same_rollout = mirrored.prediction.rollout == self._routing.snapshot.rollout
        if same_rollout and self._outcomes.is_observed(mirrored.session):
            why = "" if fault is None else cause(f"canary {fault}", model.engine, BACKGROUND_SECONDS)
            length, lane = mirrored.view.head.length, mirrored.asking.lane
            self._listeners.observe(Pair("fail", mirrored.session, False, fault is not None, length, lane, why))
