"""The rollouts in which a server takes part: it finds them in the ledger, reports outcomes, and routes by their snapshots.

A thread ticks at an interval: it reports outcomes to the ledger, ticks the controller unless another process holds the
rollout, and hands the routing snapshot to the event loop. Answers never wait for this thread: without it they use the last
snapshot until its lease expires, and then stable.

State has one owner. The thread owns the controller. The loop owns the service, its models and the
:class:`~nextvec.serving.participation.Participation`, which it replaces as a whole. Calls of the thread reach the loop in
order.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextvec.errors import NextvecError, ServingError
from nextvec.rollout.controller import Controller
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.follower import Follower
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import fold
from nextvec.rollout.promotions import named, past
from nextvec.rollout.records import LedgerError, Record
from nextvec.rollout.state import Phase
from nextvec.rollout.status import ended_by, status
from nextvec.rollout.units import bands
from nextvec.routing import ArmModels, RoutedModel, Snapshot
from nextvec.serving.notices import Notices
from nextvec.serving.observations import SessionEvent
from nextvec.serving.participation import Participation
from nextvec.serving.service import Service


@dataclass(frozen=True)
class Terms:
    """How a server takes part in rollouts.

    Attributes:
        route: its rollouts are followed; at most one is active.
        node: name of this process, for people.
        interval: seconds between two ticks.
        settle: seconds after its first observation at which a session counts although it has not ended.
        mirror: percent of the sessions whose requests are mirrored to the canary in the shadow.
    """

    route: str = "default"
    node: str = "server"
    interval: float = 1.0
    settle: float = 300.0
    mirror: float = 100.0


@dataclass(frozen=True)
class _Arms:
    """The models of both arms, or in ``fault`` the reason why this server cannot take part."""

    stable: ArmModels
    canary: ArmModels
    threshold: int | None
    fault: str | None


@dataclass
class _Watched:
    """The thread's state of one rollout; ``before`` are the models that answered before it."""

    rollout: str
    stable: str
    canary: str
    servable: bool
    before: ArmModels
    follower: Follower
    controller: Controller


class Canary:
    """A server's part in the rollouts of one route. Made and closed on the event loop; ticks in a thread of its own.

    Args:
        ledger: verified; closed with this object.
        path_of: gives the folder of a run that is not served yet.
        tell: writes a line to the log.
        promoted: digests of the served models that were promoted according to the ledger, by name.
        notices: sent at the end of every rollout that this server drives; closed with this object.

    Raises:
        ServingError: a promoted model is served with other weights than the ledger states.
    """

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        path_of: Callable[[str], Path],
        tell: Callable[..., None],
        terms: Terms,
        promoted: Mapping[str, str] | None = None,
        notices: Notices | None = None,
    ) -> None:
        self.terms = terms
        self.trouble: str | None = None
        self.watching = False  # whether this server drives the rollout
        self._service, self._path_of, self._tell, self._notices = service, path_of, tell, notices
        self.ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._router = f"{terms.node} {uuid.uuid4().hex[:8]}"  # another one after a restart
        self._check_promoted(promoted or {})
        self._part: Participation | None = None  # the loop's
        self._opened: set[str] = set()  # the loop's: models that are served because of a rollout alone
        self._retiring: dict[str, asyncio.Task[None]] = {}  # the loop's: by model
        self._watched: _Watched | None = None  # the thread's
        service.listeners.observe, service.listeners.alarm = self._observe, self._alarm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop, and release the rollout so that another server takes over without a wait."""
        self._stop.set()
        await self._loop.run_in_executor(None, self._thread.join, 10.0)
        if self._notices is not None:
            await self._loop.run_in_executor(None, self._notices.close)
        retiring = tuple(self._retiring.values())
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """The status of the active rollout, how the last ones ended, and what is wrong with the ledger.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        active = self.ledger.active(self.terms.route)
        return {
            "current": None if active is None else status(self.ledger, active.row.rollout),
            "past": past(self.ledger, self.terms.route),
            "trouble": self.trouble,
            "watching": self.watching,
        }

    # On the event loop.

    def _observe(self, event: SessionEvent) -> None:
        if self._part is not None:
            self._part.observe(event)

    def _alarm(self, reason: str) -> None:
        if self._part is not None:
            self._part.alarm(reason)

    def _begin(self, part: Participation) -> None:
        self._part = part

    def _adopt(self, snapshot: Snapshot, mirror: float) -> None:
        try:
            self._service.routing.adopt(snapshot)
        except ServingError as error:  # the model was there when it was opened
            self._alarm(f"{self.terms.node}: {error}")
        else:
            self._service.background.mirror = mirror
        if self._part is not None:
            self._part.settle(self.terms.settle)

    def _promote(self, name: str, over: str) -> None:
        try:
            self._service.routing.promote(name, over)
        except ServingError as error:
            self._tell("rollout", model=name, kept=over, refused=str(error))
            return
        self._tell("rollout", stable=name)
        self._opened.discard(name)
        self._opened.add(over)

    def _finish(self) -> None:
        """The rollout has ended, or this server stops: unload the models that were served only because of the rollout."""
        self._part = None
        service, snapshot = self._service, self._service.routing.snapshot
        if self._stop.is_set():
            return
        # A rollout may end between the poll and the tick: the snapshot of that poll still has the canary.
        service.routing.adopt(Snapshot(snapshot.epoch, snapshot.stable, threshold=snapshot.threshold))
        service.background.mirror, service.routing.held = 0.0, frozenset()
        for name in sorted(self._opened - service.routing.needed - set(self._retiring)):
            self._retiring[name] = self._loop.create_task(self._retire(name), name=f"unload {name}")
        self._opened.clear()

    async def _retire(self, name: str) -> None:
        try:
            await self._service.routing.unload(name)
        except ServingError as error:
            self._tell("rollout", model=name, kept=str(error))
        else:
            self._tell("rollout", model=name, unloaded=True)
        finally:
            del self._retiring[name]

    async def _arms(self, stable: str, canary: str, strata: frozenset[str]) -> _Arms:
        """Open both models of a rollout; each is NAME@DIGEST."""
        (old, old_digest), (new, new_digest) = named(stable), named(canary)
        self._service.routing.held = frozenset((old, new))
        faults = [await self._serve(old, old_digest), await self._serve(new, new_digest), self._strata_fault(strata)]
        now, threshold = self._service.routing.snapshot.stable, self._service.routing.snapshot.threshold
        fault = next((fault for fault in faults if fault), None)
        if fault is None and old not in (now.short.name, now.long.name):
            fault = f"{old} is not what this server answers with; that is {now.short.name}"
        there = RoutedModel(new, self._service.routing.reads(new) if fault is None else None)
        short, long = (there if served.name == old else served for served in (now.short, now.long))
        return _Arms(now, ArmModels(short, long, now.experts), threshold, fault)

    def _strata_fault(self, strata: frozenset[str]) -> str | None:
        """Why this server cannot count by the rollout's strata; None if it can."""
        lanes = self._service.routing.lanes
        if strata.issuperset(bands()) or (lanes is not None and strata.issuperset(lanes.strata)):
            return None
        return "the rollout is compared by other lanes than this server's; start it with --lanes and the same folder"

    async def _serve(self, name: str, digest: str) -> str | None:
        """Open a model with these weights under this name; the reason if that is impossible."""
        if name not in self._service.models:
            try:
                await self._service.models.open(name, self._path_of(name))
            except Exception as error:  # of any kind: the rollout ends, because another attempt would fail too
                refused = str(error) if isinstance(error, NextvecError) else f"{type(error).__name__}: {error}"
                self._tell("rollout", model=name, refused=refused)
                return f"{name} cannot be served; that server's log says why"  # paths appear only in this server's log
            self._opened.add(name)
        elif name in self._retiring:  # since the last rollout; it stays open because it is held, until this one ends
            self._opened.add(name)
        found, stable = self._service.models[name].engine, self._service.routing.stable_model.engine
        if found.bank.fingerprint != stable.bank.fingerprint:
            return f"{name} looks predictions up in another bank than {self._service.routing.stable}"
        return (
            None if found.digest == digest else f"{name} is served with other weights, {found.digest[:12]}, than {digest[:12]}"
        )

    def _check_promoted(self, promoted: Mapping[str, str]) -> None:
        for name, digest in promoted.items():
            found = self._service.models[name].engine.digest
            if found != digest:
                raise ServingError(
                    f"{self.ledger.where} says that {name} was promoted on {self.terms.route!r} with the weights "
                    f"{digest[:12]}, but that run holds {found[:12]}; restore it, serve it with the same --weights, or give "
                    "another --route"
                )

    # In the thread.

    def _run(self) -> None:
        while not self._stop.wait(self.terms.interval):
            try:
                self._tick()
            except LedgerError as error:
                self._report_trouble(str(error))
            except Exception as error:  # answers continue, the lease expires, and the log states the reason
                self._report_trouble(f"{type(error).__name__}: {error}")
            else:
                self.trouble = None
        try:
            self._release()
        except LedgerError as error:
            self._report_trouble(str(error))
        self.ledger.close()

    def _report_trouble(self, what: str) -> None:
        if what != self.trouble:
            self._tell("rollout", trouble=what)
        self.trouble = what

    def _tick(self) -> None:
        if self._watched is None:
            active = self.ledger.active(self.terms.route)
            if active is None:
                return
            self._watched = self._follow(active)
        watched = self._watched
        snapshot = watched.follower.poll()
        state = watched.controller.tick()
        self.watching = watched.controller.token is not None
        if not watched.servable:  # also if another server promoted the canary and it is the snapshot's stable model
            snapshot = replace(snapshot, stable=watched.before, canary=None, weight=0.0)
        self._in_loop(self._adopt, snapshot, self.terms.mirror if state.active_phase is Phase.SHADOW else 0.0)
        if self.ledger.record(watched.rollout).active:
            return
        ended = fold(self.ledger.rows(watched.rollout))
        cause = ended_by(self.ledger.rows(watched.rollout))
        self._tell("rollout", rollout=watched.rollout, ended=str(ended), cause=cause)
        if self._notices is not None and watched.controller.token is not None:
            models = {"stable": watched.stable, "canary": watched.canary}
            said = {"event": "rollout ended", "rollout": watched.rollout, "route": self.terms.route, "state": str(ended)}
            self._notices.send({**said, "cause": cause, **models, "node": self.terms.node})
        if ended.phase is Phase.PROMOTED and watched.servable:
            self._in_loop(self._promote, watched.canary, watched.stable)
        elif ended.phase is Phase.PROMOTED:
            refused = "promoted, but this server could not take part; repair what the log names and start the server again"
            self._tell("rollout", model=watched.canary, kept=watched.before.short.name, refused=refused)
        self._release()

    def _follow(self, record: Record) -> _Watched:
        rollout = record.row.rollout
        terms = self.ledger.rows(rollout)[0].evidence
        strata = frozenset(Evidence.from_json(terms["evidence"]).strata)
        asked = asyncio.run_coroutine_threadsafe(self._arms(terms["stable"], terms["canary"], strata), self._loop)
        arms = asked.result()
        controller = Controller(self.ledger, rollout, self._router)
        follower = Follower(self.ledger, rollout, self._router, arms.stable, arms.canary, arms.threshold)
        self._in_loop(self._begin, Participation(rollout, follower, strata))
        self._tell("rollout", rollout=rollout, follows=record.state, fault=arms.fault)
        if arms.fault is not None:
            follower.alarm(f"{self.terms.node}: {arms.fault}")
        stable, canary = (named(terms[arm])[0] for arm in ("stable", "canary"))
        return _Watched(rollout, stable, canary, arms.fault is None, arms.stable, follower, controller)

    def _release(self) -> None:
        watched, self._watched, self.watching = self._watched, None, False
        self._in_loop(self._finish)
        if watched is not None:
            watched.controller.release()
            watched.follower.leave()

    def _in_loop(self, call: Callable[..., object], *given: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *given)
