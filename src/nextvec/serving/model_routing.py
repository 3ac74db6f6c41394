"""Which of the served models answers: the stable one, a canary, a model for long contexts, or the expert of a lane."""

import time
from dataclasses import replace

from nextvec.errors import ServingError
from nextvec.routing import ArmModels, Expert, Route, RoutedModel, Snapshot, route
from nextvec.serving.answers import RoutingRequest
from nextvec.serving.lanes import ServedLanes
from nextvec.serving.served_models import ServedModel, ServedModels


class ModelRouting:
    """Routes requests by a snapshot, which every change replaces whole.

    Attributes:
        stable: name of the stable model; at first the first model, which answers everything.
        snapshot: what the router decides by.
        held: names of models that no snapshot holds yet but a rollout is about to use.
        lanes: of the server; None if it serves none.
    """

    def __init__(self, models: ServedModels) -> None:
        self.models = models
        self.stable = next(iter(models))
        self.snapshot = Snapshot(0, ArmModels(RoutedModel(self.stable), RoutedModel(self.stable)))
        self.held: frozenset[str] = frozenset()
        self.lanes: ServedLanes | None = None
        models.renewed = self._renewed

    @property
    def stable_model(self) -> ServedModel:
        """The stable model."""
        return self.models[self.stable]

    @property
    def needed(self) -> set[str]:
        """Names of the models that may be asked: of the present snapshot, of the experts, and the held ones."""
        snapshot, experts = self.snapshot, () if self.lanes is None else self.lanes.experts.values()
        lineups = [lineup for lineup in (snapshot.stable, snapshot.canary) if lineup is not None]
        return {self.stable, *self.held, *experts, *(served.name for lineup in lineups for served in _served(lineup))}

    async def unload(self, name: str) -> None:
        """Stop serving a model: its last answers are given, its process ends, and its states are dropped.

        Raises:
            ServingError: it is not served, or it is needed.
        """
        async with self.models.changing:
            if name not in self.models or name in self.needed:
                raise ServingError(f"model {name!r} is {'still needed' if name in self.models else 'not served'}")
            await self.models.remove(name)

    def reads(self, name: str) -> int | None:
        """The longest context that a model was trained on, in vectors; None if no threshold divides contexts."""
        return self.models[name].engine.context if self.snapshot.threshold is not None else None

    def shared(self, length: int) -> str:
        """Name of the stable model that every lane shares, for a context of ``length`` vectors."""
        return self.snapshot.stable.choose(length, None, self.snapshot.threshold)[0].name

    def now(self, lane: str | None) -> Snapshot:
        """The snapshot without the expert of ``lane`` while that expert is down."""
        snapshot, lanes = self.snapshot, self.lanes
        if lanes is None or lane not in lanes.experts or lanes.health[lane].asked():
            return snapshot

        def without(lineup: ArmModels) -> ArmModels:
            experts = tuple(replace(e, healthy=e.healthy and e.lane != lane) for e in lineup.experts)
            return replace(lineup, experts=experts)

        canary = None if snapshot.canary is None else without(snapshot.canary)
        return replace(snapshot, stable=without(snapshot.stable), canary=canary)

    def route(self, asking: RoutingRequest, length: int, snapshot: Snapshot) -> Route:
        """The model for a request of a session with ``length`` vectors, by one snapshot."""
        return route(asking.key, length, asking.lane, asking.headers, snapshot, now=time.monotonic(), scopes=asking.rights)

    def divide(self, threshold: int, long: str) -> None:
        """Let another model answer contexts of more than ``threshold`` vectors.

        Raises:
            ServingError: it is not served, or a model was not trained on contexts that it would have to read.
        """
        if long not in self.models:
            raise ServingError(f"model {long!r} is not served; name one of {', '.join(self.models)}")
        short, other = (RoutedModel(name, self.models[name].engine.context) for name in (self.stable, long))
        self.snapshot = Snapshot(self.snapshot.epoch, ArmModels(short, other), threshold=threshold)

    def specialise(self, lanes: ServedLanes) -> None:
        """Let served models answer as the experts of their lanes. Experts infer in worker threads.

        Raises:
            ServingError: an unknown lane, a model that is not served, or one with another bank than the stable model.
        """
        stable = self.stable_model.engine
        for lane, name in lanes.experts.items():
            if lane not in lanes.anchors.names:
                raise ServingError(f"there is no lane {lane!r}; the lanes are {', '.join(lanes.anchors.names)}")
            if name not in self.models:
                raise ServingError(f"the expert of {lane!r}, {name!r}, is not served; name one of {', '.join(self.models)}")
            if self.models[name].engine.bank.fingerprint != stable.bank.fingerprint:
                raise ServingError(
                    f"the expert of {lane!r}, {name!r}, looks predictions up in another bank than {self.stable!r}"
                )
        self.lanes, now = lanes, self.snapshot
        experts = tuple(Expert(lane, RoutedModel(name)) for lane, name in lanes.experts.items())
        self.adopt(replace(now, stable=replace(now.stable, experts=experts)))

    def promote(self, name: str, over: str) -> None:
        """Let ``name`` answer where ``over`` did: the stable model, or the one for long contexts. Sessions go on.

        Raises:
            ServingError: it is not served, or it cannot read up to the threshold; nothing has changed.
        """
        if name not in self.models:
            raise ServingError(f"model {name!r} is not served; open it first")
        before = self.snapshot.stable
        there = RoutedModel(name, self.reads(name))
        short, long = (there if served.name == over else served for served in (before.short, before.long))
        self.snapshot = Snapshot(self.snapshot.epoch, ArmModels(short, long, before.experts), threshold=self.snapshot.threshold)
        self.stable = name if self.stable == over else self.stable

    def adopt(self, snapshot: Snapshot) -> None:
        """Route by another snapshot from now on. While it has a canary, the models of both arms infer in worker threads.

        Raises:
            ServingError: it names a model that is not served.
        """
        named = {served.name for lineup in (snapshot.stable, snapshot.canary) if lineup for served in _served(lineup)}
        if missing := sorted(named - set(self.models)):
            raise ServingError(f"model {missing[0]!r} is not served; open it first")
        for name, model in self.models.items():
            compared = snapshot.canary is not None and name in named
            model.queue.in_thread = compared or self._is_expert(name) or model.engine.place.isolated
        self.snapshot = snapshot

    def _is_expert(self, name: str) -> bool:
        return self.lanes is not None and name in self.lanes.experts.values()

    def _renewed(self, name: str) -> None:
        if self.lanes is not None:
            self.lanes.model_renewed(name)


def _served(lineup: ArmModels) -> list[RoutedModel]:
    return [lineup.short, lineup.long, *(expert.model for expert in lineup.experts)]
