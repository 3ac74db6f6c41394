"""The rollout that a server takes part in: found in the ledger, watched, fed with what happened, and routed by.

One thread turns once in a while: it tells the ledger what was observed, takes its turn as controller where nobody else holds
the rollout, and hands the snapshot to the loop that answers. Answers never wait for it: without it they go on from the
last snapshot until its lease runs out, and then from stable.
"""

import asyncio
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.errors import NextvecError, ServingError
from nextvec.serving.judge import CANARY, FAIL, Event, Evidence
from nextvec.serving.ledger import Ledger, LedgerError, Record
from nextvec.serving.rollout import Controller, Follower, Phase, fold, report
from nextvec.serving.router import UNSURE, Lineup, Served, Snapshot
from nextvec.serving.service import Closed, Pair, Seen, Service
from nextvec.serving.service import Event as Happened
from nextvec.serving.units import Units, band, bands

LATEST, FEWEST, MOST_FAILED = 60.0, 20, 0.5  # seconds; requests of the canary in them; share of them that stable answered
MOST_SESSIONS = 100_000  # open ones that are remembered
PAST = 20  # rollouts that are told of


@dataclass(frozen=True)
class Terms:
    """How a server takes part.

    Attributes:
        route: whose rollouts it follows; one is under way at a time.
        node: name of this process, for people.
        interval: seconds between two turns.
        idle: seconds after which a session without a request counts as ended.
        mirror: percent of the sessions whose questions a canary is asked, too, while it is in the shadow.
    """

    route: str = "default"
    node: str = "server"
    interval: float = 1.0
    idle: float = 600.0
    mirror: float = 100.0


def identity(name: str, digest: str) -> str:
    """A model in the ledger: the name it is served by, and what its weights are."""
    return f"{name}@{digest}"


def named(model: str) -> tuple[str, str]:
    """Name and digest of :func:`identity`.

    Raises:
        ServingError: it is none.
    """
    name, at, digest = model.rpartition("@")
    if not at or not name:
        raise ServingError(f"{model!r} is not NAME@DIGEST of a model")
    return name, digest


def promoted(ledger: Ledger, route: str) -> str | None:
    """The model that the route's last promotion made the stable one; None before the first."""
    for row in reversed(ledger.rows()):
        if row.after == Phase.PROMOTED and ledger.record(row.rollout).route == route:
            return str(ledger.rows(row.rollout)[0].evidence["canary"])
    return None


def past(ledger: Ledger, route: str) -> list[dict[str, Any]]:
    """How the route's last rollouts ended, the latest first."""
    last = {row.rollout: row for row in ledger.rows()}
    ended = [row for row in reversed(last.values()) if ledger.record(row.rollout).route == route]
    told = [row for row in ended if not ledger.record(row.rollout).active][:PAST]
    return [{"rollout": row.rollout, "state": row.after, "time": row.time, "cause": row.cause} for row in told]


class Canary:
    """A server's part in the rollouts of one route. Made and closed in the loop that answers; turns in a thread of its own.

    Args:
        ledger: verified; closed with this.
        path_of: where the run of a model lies that is not served yet.
        tell: a line for the log.

    Raises:
        ServingError: the model that the ledger says was promoted is not served.
    """

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        path_of: Callable[[str], Path],
        tell: Callable[..., None],
        terms: Terms,
    ) -> None:
        self.terms = terms
        self.trouble: str | None = None
        self._service, self._path_of, self._tell = service, path_of, tell
        self.ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._router = f"{terms.node} {uuid.uuid4().hex[:8]}"  # another one after a restart
        self._rollout: str | None = None
        self._on_trial = ""
        self._follower: Follower | None = None
        self._controller: Controller | None = None
        self._servable = False
        self._strata = frozenset(bands())
        self._units: Units | None = None
        self._open: OrderedDict[str, float] = OrderedDict()
        self._tried: deque[tuple[float, bool]] = deque()
        self._stop = threading.Event()
        self._begin_with_the_promoted()
        service.observe = self._observe
        service.alarm = self._alarm
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop watching; another node takes over at once, and nobody waits for this one."""
        self._stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 10.0)

    def told(self) -> dict[str, Any]:
        """What a dashboard shows: the rollout under way in full, how others ended, and what is wrong with the ledger.

        Raises:
            LedgerError: it cannot be read.
        """
        active = self.ledger.active(self.terms.route)
        return {
            "current": None if active is None else report(self.ledger, active.row.rollout),
            "past": past(self.ledger, self.terms.route),
            "trouble": self.trouble,
            "watching": self._controller is not None and self._controller.token is not None,
        }

    # In the loop that answers.

    def _observe(self, happened: Happened) -> None:
        units, follower = self._units, self._follower
        if units is None or follower is None:
            return
        if isinstance(happened, Closed):
            self._open.pop(happened.session, None)
            for event in units.closed(happened.session):
                follower.observe(event)
            return
        self._open[happened.session] = time.monotonic()
        self._open.move_to_end(happened.session)
        if isinstance(happened, Pair):
            bad = (happened.stable_bad, happened.canary_bad)
            units.compared(happened.stream, happened.session, *bad, self._stratum(happened))
            return
        event = self._unit(units, happened)
        if event is not None:
            follower.observe(event)
        if happened.stream == FAIL and happened.arm == CANARY:
            self._trip(happened.value != 0)
        if len(self._open) > MOST_SESSIONS:
            self._service.lapse(next(iter(self._open)))

    def _unit(self, units: Units, seen: Seen) -> Event | None:
        return units.saw(seen.stream, seen.arm, seen.session, seen.weight, seen.value, self._stratum(seen))

    def _stratum(self, happened: Seen | Pair) -> str:
        """By length of the context, or by lane where the rollout is judged by lanes."""
        if self._strata.issuperset(bands()):
            return band(happened.vectors)
        return happened.lane if happened.lane in self._strata else UNSURE

    def _trip(self, failed: bool) -> None:
        """More than half of the canary's latest requests answered by stable: no statistics are needed."""
        now = time.monotonic()
        self._tried.append((now, failed))
        while self._tried[0][0] < now - LATEST:
            self._tried.popleft()
        count, bad = len(self._tried), sum(failed for _, failed in self._tried)
        if count >= FEWEST and bad > MOST_FAILED * count:
            self._alarm(f"stable had to answer {bad} of the canary's last {count} requests")

    def _alarm(self, what: str) -> None:
        if self._follower is not None:
            self._follower.alarm(what)

    def _adopt(self, snapshot: Snapshot, mirror: float) -> None:
        try:
            self._service.adopt(snapshot)
        except ServingError as error:  # the model was there when it was opened
            self._alarm(f"{self.terms.node}: {error}")
        else:
            self._service.mirror = mirror

    def _lapse(self) -> None:
        oldest = time.monotonic() - self.terms.idle
        while self._open and next(iter(self._open.values())) < oldest:
            self._service.lapse(next(iter(self._open)))

    # In the thread.

    def _run(self) -> None:
        while not self._stop.wait(self.terms.interval):
            try:
                self._turn()
            except LedgerError as error:
                self._troubled(str(error))
            except Exception as error:  # answers go on, the lease runs out, and the log says why
                self._troubled(f"{type(error).__name__}: {error}")
            else:
                self.trouble = None
        try:
            self._let_go()
        except LedgerError as error:
            self._troubled(str(error))
        self.ledger.close()

    def _troubled(self, what: str) -> None:
        if what != self.trouble:
            self._tell("rollout", trouble=what)
        self.trouble = what

    def _turn(self) -> None:
        if self._follower is None:
            active = self.ledger.active(self.terms.route)
            if active is None:
                return
            self._follow(active)
        assert self._follower is not None and self._controller is not None
        snapshot = self._follower.poll()
        state = self._controller.tick()
        self._in_loop(self._lapse)
        if not self._servable and snapshot.canary is not None:
            snapshot = Snapshot(snapshot.epoch, snapshot.stable, None, 0.0, snapshot.rollout)
        self._in_loop(self._adopt, snapshot, self.terms.mirror if state.going is Phase.SHADOW else 0.0)
        assert self._rollout is not None
        if self.ledger.record(self._rollout).active:
            return
        ended = fold(self.ledger.rows(self._rollout))
        self._tell("rollout", rollout=self._rollout, ended=str(ended))
        if ended.phase is Phase.PROMOTED:
            self._in_loop(self._promote, self._on_trial)
        self._let_go()

    def _follow(self, record: Record) -> None:
        rollout = record.row.rollout
        terms = self.ledger.rows(rollout)[0].evidence
        (stable, stable_digest), (canary, canary_digest) = (named(terms[arm]) for arm in ("stable", "canary"))
        faults = [self._serve(stable, stable_digest), self._serve(canary, canary_digest)]
        self._strata = frozenset(Evidence.from_json(terms["judge"]).strata)
        fault = next((fault for fault in faults if fault), None) or self._strata_fault()
        now = self._service.snapshot.stable
        if fault is None and stable not in (now.short.name, now.long.name):
            fault = f"{stable} is not what this server answers with; that is {now.short.name}"
        there = Served(canary, self._service.reads(canary) if fault is None else None)
        short, long = (there if served.name == stable else served for served in (now.short, now.long))
        threshold = self._service.snapshot.threshold
        self._rollout, self._on_trial, self._servable = rollout, canary, fault is None
        self._controller = Controller(self.ledger, rollout, self._router)
        self._follower = Follower(self.ledger, rollout, self._router, now, Lineup(short, long, now.experts), threshold)
        self._units = Units(rollout)
        self._tell("rollout", rollout=rollout, follows=record.state, fault=fault)
        if fault is not None:
            self._follower.alarm(f"{self.terms.node}: {fault}")

    def _strata_fault(self) -> str | None:
        """What keeps this server from judging by the rollout's strata, if anything does."""
        lanes = self._service.lanes
        if self._strata.issuperset(bands()) or (lanes is not None and self._strata.issuperset(lanes.strata)):
            return None
        return "the rollout is judged by other lanes than this server's; start it with --lanes and the same folder"

    def _serve(self, name: str, digest: str) -> str | None:
        """Have a model of these weights open under this name; else what is in the way."""
        if name not in self._service.models:
            try:
                opening = self._service.open_model(name, self._path_of(name))
                asyncio.run_coroutine_threadsafe(opening, self._loop).result()
            except NextvecError as error:
                self._tell("rollout", model=name, refused=str(error))
                return f"{name} cannot be served; that server's log says why"  # a path is nobody else's business
        found, stable = self._service.models[name].engine, self._service.models[self._service.stable].engine
        if found.bank.fingerprint != stable.bank.fingerprint:
            return f"{name} looks predictions up in another bank than {self._service.stable}"
        return (
            None if found.digest == digest else f"{name} is served with other weights, {found.digest[:12]}, than {digest[:12]}"
        )

    def _begin_with_the_promoted(self) -> None:
        model = promoted(self.ledger, self.terms.route)
        if model is None:
            return
        name, digest = named(model)
        if name not in self._service.models or self._service.models[name].engine.digest != digest:
            raise ServingError(
                f"{self.ledger.where} says that {name} ({digest[:12]}) was promoted on {self.terms.route!r}; "
                "serve that run first, or start another --route"
            )
        self._promote(name)

    def _promote(self, name: str) -> None:
        self._service.promote(name)
        self._tell("rollout", stable=name)

    def _let_go(self) -> None:
        follower, controller = self._follower, self._controller
        self._follower = self._controller = self._units = self._rollout = None
        self._in_loop(self._open.clear)
        self._tried.clear()
        if controller is not None:
            controller.release()
        if follower is not None:
            follower.leave()

    def _in_loop(self, call: Callable[..., object], *given: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *given)
