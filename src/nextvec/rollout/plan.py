"""A rollout: from a draft to the new stable model, one step at a time, and back at the first proof of harm.

``step`` is the whole machine, pure: a state and what was observed in, the next state and the change to be written out.
:class:`Controller` runs it inside the ledger's transactions; :class:`Follower` keeps a router's snapshot of the outcome.

==============  ===================================================================================================
from            to
==============  ===================================================================================================
DRAFT           SHADOW (``start``), REJECTED (a check failed, ``abort``)
SHADOW          CANARY(0): mirrored pairs show no loss; REJECTED: something is worse
CANARY(i)       CANARY(i + 1): nothing worse, and enough seen that the declared harm would have been caught
CANARY(last)    FULL: *everything* is shown to be no worse; 2 % stay on stable, for at 100 % every test is blind
FULL            PROMOTED: held for so long, nothing worse
all above       PAUSED: by a person; or no traffic, no verdict, no ledger. The weight is held and watching goes on
PAUSED          where it came from, by a person
SHADOW … PAUSED ROLLING_BACK: anything worse, an alarm, a person; the same transaction sets the weight to 0
ROLLING_BACK    ROLLED_BACK: every router routes by the new epoch, or its lease has run out
==============  ===================================================================================================

Time is counted while a holder watches, on its own monotonic clock, and the sum is kept in the ledger: what nobody watched
proves nothing, and a clock that is set changes nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

from nextvec.errors import ServingError
from nextvec.rollout.judge import ASSIGN, CANARY, FAIL, MISS, OK, STABLE, Event, Evidence, Rung, Verdict, ladder
from nextvec.rollout.ledger import ConflictError, Entry, Ledger, LedgerError, Record, Row, Turn
from nextvec.routing import Lineup, Snapshot

CONTROLLER = "controller"
TAKEOVER = 0.5  # of a lease without a beat, and another may hold: before any router has given the canary up

Verb = Literal["start", "pause", "resume", "abort", "promote"]


class Phase(StrEnum):
    """Where a rollout can be."""

    DRAFT = "DRAFT"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    FULL = "FULL"
    PAUSED = "PAUSED"
    ROLLING_BACK = "ROLLING_BACK"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"


TERMINAL = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.REJECTED})
LIVE = frozenset({Phase.SHADOW, Phase.CANARY, Phase.FULL, Phase.PAUSED})


@dataclass(frozen=True)
class Plan:
    """How a rollout goes, fixed when it is drafted. Times are seconds under watch.

    Attributes:
        harm, base: the declared harm: so many times the stable arm's rate of failures, which is ``base``.
        rungs: of the canary, and last the one that keeps a hold-back; each long enough to catch that harm in 90 of 100.
        shadow: how long the shadow lasts, its units mirrored pairs.
        max_wait: in one state without going on, then PAUSED.
        silence: without a unit, then PAUSED.
        longest_pause: then ROLLING_BACK.
        lease: how long routers go on without hearing that somebody watches.
        gated: a person promotes at every increase; the rollout pauses there.
    """

    harm: float
    base: float
    rungs: tuple[Rung, ...]
    shadow: Rung = field(default_factory=lambda: Rung(0.0, 900.0, 1_000))
    max_wait: float = 86_400.0
    silence: float = 600.0
    longest_pause: float = 86_400.0
    lease: float = 30.0
    gated: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ServingError: weights that do not rise, or leave nothing to compare with; a time that is none.
        """
        weights = [0.0, *(rung.weight for rung in self.rungs), 100.0]
        if len(self.rungs) < 2 or any(low >= high for low, high in pairwise(weights)):
            raise ServingError(f"weights {weights[1:-1]}: give at least two, rising, above 0 and below 100 percent")
        if self.shadow.weight:
            raise ServingError(f"a shadow of weight {self.shadow.weight:g}; it answers nobody, give 0")
        if min(self.max_wait, self.silence, self.longest_pause, self.lease) <= 0:
            raise ServingError("max_wait, silence, longest_pause and lease are seconds above 0")

    @staticmethod
    def catching(harm: float, base: float, dwell: float = 900.0) -> "Plan":
        """A plan whose rungs would catch ``harm`` times a failure rate of ``base`` in 90 of 100 rollouts, each.

        Raises:
            ServingError: the harm is within what is tolerated, or the rate is none.
        """
        return Plan(harm, base, ladder(harm, base, dwell))

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Plan":
        """Read back what was written with the first row."""
        known = dict(values)
        rungs, shadow = (Rung(**rung) for rung in known.pop("rungs")), Rung(**known.pop("shadow"))
        return Plan(rungs=tuple(rungs), shadow=shadow, **known)


@dataclass(frozen=True)
class State:
    """A rollout's state, which is what its rows add up to.

    Attributes:
        plan: how it goes.
        phase: where it is; rung: of the plan, where that matters; held: what was paused.
        epoch: number of the row that made it.
    """

    plan: Plan
    phase: Phase = Phase.DRAFT
    rung: int = 0
    held: Phase | None = None
    epoch: int = 1

    def __str__(self) -> str:
        live = f"{self.going}({self.rung})" if self.going is Phase.CANARY else str(self.going)
        return f"PAUSED({live})" if self.held else live

    @property
    def going(self) -> Phase:
        """The phase, or the one that was paused."""
        return self.held or self.phase

    @property
    def terms(self) -> Rung:
        """Weight, least time and least units of what is going."""
        if self.going is Phase.CANARY:
            return self.plan.rungs[self.rung]
        return self.plan.rungs[-1] if self.going is Phase.FULL else self.plan.shadow

    @property
    def weight(self) -> float:
        """Percent of the keys that go to the canary while it is on trial."""
        return self.terms.weight if self.going in (Phase.CANARY, Phase.FULL) else 0.0

    @property
    def segment(self) -> int:
        """Fresh starts so far, for the judge: one a rung."""
        return {Phase.CANARY: 1 + self.rung, Phase.FULL: len(self.plan.rungs)}.get(self.going, 0)

    @property
    def ended(self) -> bool:
        return self.phase in TERMINAL

    def at(self, name: str, epoch: int) -> "State":
        """The state of this name.

        Raises:
            ServingError: no state has it.
        """
        found = next((state for state in _states(self.plan) if str(state) == name), None)
        if found is None:
            raise ServingError(f"{name!r} is not a state of this rollout")
        return replace(found, epoch=epoch)


@dataclass(frozen=True)
class Command:
    """What a person wants.

    Attributes:
        actor: who, by the name of a key.
        reason: why, in words.
        failures: of the checks before ``start``: what is wrong with the canary, in words.
    """

    verb: Verb
    actor: str
    reason: str = ""
    failures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.actor or self.actor == CONTROLLER:
            raise ServingError(f"{self.verb} by {self.actor!r}; a person must be named")


@dataclass(frozen=True)
class Observation:
    """All that a decision rests on.

    Attributes:
        verdict: the judge's; evidence: all that it rests on, JSON-able.
        units: mirrored in the shadow, later sessions routed at this very weight: by them a rung is long enough.
        watched: seconds in this state; silent: seconds of them since the last unit.
        alarm: a tripwire that a router reports, in words.
        failures: why the canary failed most often, in words.
        trouble: why the ledger could not be written for longer than a lease.
        acked: every router routes by this epoch.
        command: of a person.
    """

    verdict: Verdict
    units: int
    evidence: Any = None
    watched: float = 0.0
    silent: float = 0.0
    alarm: str | None = None
    failures: str = ""
    trouble: str | None = None
    acked: bool = False
    command: Command | None = None


Move = tuple[State, str]  # and why


def step(state: State, seen: Observation) -> tuple[State, Entry | None]:
    """The next state and the change that leads there; the same state and None where there is nothing to do.

    Raises:
        ConflictError: a command that this state does not allow.
    """
    move = _fall(state, seen) or _obey(state, seen) or _quiet(state, seen) or _advance(state, seen) or _overdue(state, seen)
    if move is None:
        return state, None
    after, cause = move
    evidence = {
        "verdict": dict(seen.verdict.streams),
        "units": seen.units,
        "watched": round(seen.watched, 3),
        "weight": [state.weight, after.weight],
        "override": seen.command.actor if seen.command and not ready(state, seen) else None,
        "judge": seen.evidence,
    }
    actor = seen.command.actor if seen.command else CONTROLLER
    after = replace(after, epoch=state.epoch + 1)
    return after, Entry(str(state), str(after), cause, evidence, actor, after.ended)


def ready(state: State, seen: Observation) -> bool:
    """Whether the evidence alone would carry the rollout one step up."""
    said, terms = seen.verdict.streams, state.terms
    if seen.verdict.worse or seen.watched < terms.dwell or seen.units < terms.units:
        return False
    if state.going is Phase.SHADOW:
        return said[MISS] == OK
    if state.going is Phase.CANARY and state.rung == len(state.plan.rungs) - 2:
        return seen.verdict.overall == OK
    return state.going in (Phase.CANARY, Phase.FULL)


def edges(state: State) -> frozenset[str]:
    """Names of the states that one change can lead to."""
    if state.phase is Phase.DRAFT:
        return frozenset({str(Phase.SHADOW), str(Phase.REJECTED)})
    if state.phase is Phase.ROLLING_BACK:
        return frozenset({str(Phase.ROLLED_BACK)})
    if state.phase not in LIVE:
        return frozenset()
    aside = replace(state, phase=state.held, held=None) if state.held else _paused(state)
    down = {str(Phase.ROLLING_BACK), *([str(Phase.REJECTED)] if state.phase is Phase.SHADOW else [])}
    return frozenset({str(_up(state)), str(aside), *down})


def fold(rows: Sequence[Row]) -> State:
    """The state that a rollout's rows add up to.

    Raises:
        ServingError: rows that no rollout can have written.
    """
    if not rows or rows[0].after != str(Phase.DRAFT):
        raise ServingError("a rollout begins as a draft")
    state = State(Plan.from_json(rows[0].evidence["plan"]), epoch=rows[0].epoch)
    for row in rows[1:]:
        if row.before != str(state) or row.epoch != state.epoch + 1 or row.after not in edges(state):
            raise ServingError(f"row {row.seq} leads from {row.before} to {row.after}; no rollout goes there from {state}")
        state = state.at(row.after, row.epoch)
    return state


def create(
    ledger: Ledger,
    rollout: str,
    route: str,
    plan: Plan,
    *,
    stable: str,
    canary: str,
    actor: str,
    evidence: Evidence | None = None,
    parent: str | None = None,
) -> Record:
    """Draft a rollout of ``canary`` beside ``stable`` on a route.

    Args:
        stable, canary: digests of what is compared.
        evidence: empty, with its strata and guards declared; the judge's defaults if None.
        parent: the rollout that this one tries again.

    Raises:
        ConflictError: the id is taken, or the route has a rollout under way.
        ServingError: nobody is named, or the two are the same.
    """
    if not actor or stable == canary:
        raise ServingError(f"rollout {rollout!r}: name who drafts it, and a canary that is not the stable model")
    terms = {"plan": asdict(plan), "stable": stable, "canary": canary, "parent": parent}
    judge = (evidence or Evidence()).to_json()
    entry = Entry("", str(Phase.DRAFT), "drafted", {**terms, "judge": judge}, actor)
    return ledger.create(rollout, route, entry, judge)


def intervene(ledger: Ledger, rollout: str, command: Command, epoch: int | None = None) -> Record:
    """Let a person start, pause, resume, abort or promote; it needs no controller.

    ``promote`` goes one step up whatever the evidence, unless something is worse; the row names the person.

    Raises:
        ConflictError: the state does not allow it, or is not in the ``epoch`` that the person saw.
    """
    plan = _plan(ledger, rollout)

    def decide(record: Record) -> Entry | None:
        evidence = Evidence.from_json(record.evidence)
        state = _state(plan, record)
        return step(state, _observation(state, record, evidence, command=command))[1]

    return ledger.intervene(rollout, decide, epoch)


class Controller:
    """Drives one rollout for as long as it holds it; several may stand by, in any process.

    Attributes:
        state: as last read; PAUSED, in memory only, while the ledger cannot be written.
        trouble: why it cannot; None while it can.
        token: the fencing token; None while another controller holds the rollout.

    Args:
        holder: who this is, for people.
        clock: monotonic, seconds.

    Raises:
        ServingError: there is no such rollout.
    """

    def __init__(self, ledger: Ledger, rollout: str, holder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = _plan(ledger, rollout)
        self.state = _state(self.plan, ledger.record(rollout))
        self.trouble: str | None = None
        self.token: int | None = None
        self._ledger, self._rollout, self._holder, self._clock = ledger, rollout, holder, clock
        self._causes: Counter[str] = Counter()  # of the canary's failures, reported while this controller held
        self._seen: Record | None = None
        self._seen_at = self._turned_at = self._now = clock()

    def tick(self) -> State:
        """Take over if nobody holds the rollout; if this controller does: beat, fold the reports in, judge, and move."""
        try:
            if self.token is not None or self._take_over():
                assert self.token is not None
                self._now = self._clock()
                record = self._ledger.turn(self._rollout, self.token, self._decide)
                self._turned_at, self.trouble = self._now, None
                self.state = _state(self.plan, record)
        except ConflictError:  # another one was faster, or took over while this one was stopped
            self.token = None
        except LedgerError as error:
            self.trouble = str(error)
            if self.state.phase in (Phase.SHADOW, Phase.CANARY, Phase.FULL):
                self.state = _paused(self.state)
        return self.state

    def run(self, stop: threading.Event, interval: float = 1.0) -> State:
        """Tick every ``interval`` seconds until the rollout has ended or ``stop`` is set; then let go."""
        while not self.tick().ended and not stop.wait(interval):
            pass
        self.release()
        return self.state

    def release(self) -> None:
        """Let another one hold the rollout at once."""
        if self.token is not None:
            self._ledger.release(self._rollout, self.token)
            self.token = None

    def _take_over(self) -> bool:
        """Hold the rollout, if it is free or its holder has not beaten for half a lease of this process's time."""
        record, now = self._ledger.record(self._rollout), self._clock()
        self.state, self.trouble = _state(self.plan, record), None
        if self._seen is None or (record.token, record.beat) != (self._seen.token, self._seen.beat):
            self._seen, self._seen_at = record, now
        if record.holder and now - self._seen_at < TAKEOVER * self.plan.lease:
            return False
        self.token = self._ledger.acquire(record, self._holder)
        self._turned_at = now
        return True

    def _decide(self, record: Record, reports: list[Any]) -> Turn:
        state, before = _state(self.plan, record), Evidence.from_json(record.evidence)
        evidence = before.after(_event(event, state) for report in reports for event in report["events"])
        for report in reports:
            self._causes.update(report.get("causes", {}))
        away = self._now - self._turned_at
        watched = record.watched + min(away, self.plan.lease)
        seen = _observation(
            state,
            replace(record, watched=watched, heard=watched if evidence.units > before.units else record.heard),
            evidence,
            alarm=next((report["alarm"] for report in reports if report["alarm"]), None),
            failures=", ".join(f"{what} ({count} times)" for what, count in self._causes.most_common(3)),
            trouble=f"no turn for {away:.0f} s: {self.trouble}" if self.trouble and away > self.plan.lease else None,
        )
        return Turn(watched, watched - seen.silent, seen.evidence, step(state, seen)[1])


class Follower:
    """A router's copy of one rollout: polls the ledger, delivers what was observed, keeps the snapshot to route by.

    A snapshot holds for a lease from the last moment at which the controller is *known* to have been alive, which is the poll
    before the one that saw its beat change. So a fresh follower gives the canary nothing until it has seen a beat, and no
    router goes on for longer than a lease after the last one.

    Attributes:
        snapshot: to route by; replaced by :meth:`poll`.

    Args:
        router: who this is; another name in each process and after each restart.
        stable, canary: what the arms answer with; threshold: of both, see :class:`~nextvec.routing.Snapshot`.
        clock: that the snapshot's deadline is on; monotonic, seconds.

    Raises:
        ServingError: there is no such rollout, or a line-up does not fit the threshold.
    """

    def __init__(
        self,
        ledger: Ledger,
        rollout: str,
        router: str,
        stable: Lineup,
        canary: Lineup,
        threshold: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = _plan(ledger, rollout)
        self.snapshot = Snapshot(0, stable, None, 0.0, rollout, 0.0, threshold)
        self._ledger, self._rollout, self._router, self._clock = ledger, rollout, router, clock
        self._stable, self._canary = stable, canary
        self._beat: int | None = None
        self._asked_at = clock()
        self._deadline = 0.0
        self._guard = threading.Lock()
        self._waiting: Counter[Event] = Counter()
        self._alarm: str | None = None
        self._causes: Counter[str] = Counter()
        self._batch, self._report = 0, None

    def observe(self, event: Event) -> None:
        """Take an event to the controller with the next poll."""
        with self._guard:
            self._waiting[replace(event, count=1)] += event.count

    def alarm(self, what: str) -> None:
        """Ask for the rollout to be rolled back: something happened that needs no statistics, in words."""
        with self._guard:
            self._alarm = self._alarm or what

    def failed(self, cause: str) -> None:
        """Take the cause of a failure of the canary to the controller, in words; nothing is decided by it."""
        with self._guard:
            self._causes[cause] += 1

    def poll(self) -> Snapshot:
        """Tell the ledger what was observed and which epoch is routed by, and learn how things stand.

        What could not be delivered is delivered again, once.

        Raises:
            LedgerError: the ledger cannot be reached; the snapshot stays, until its deadline.
        """
        with self._guard:
            if self._report is None and (self._waiting or self._alarm):
                events = [asdict(replace(event, count=count)) for event, count in self._waiting.items()]
                self._report, self._batch = {"events": events, "alarm": self._alarm, "causes": self._causes}, self._batch + 1
                self._waiting, self._alarm, self._causes = Counter(), None, Counter()
        now = self._clock()
        record = self._ledger.exchange(self._rollout, self._router, self.snapshot.epoch, self._batch, self._report)
        self._report = None
        if self._beat is not None and record.beat != self._beat:
            self._deadline = self._asked_at + self._plan.lease
        self._beat, self._asked_at = record.beat, now
        self.snapshot = self._routed_by(_state(self._plan, record))
        return self.snapshot

    def leave(self) -> None:
        """Route no more; nobody waits for this router then."""
        self._ledger.leave(self._rollout, self._router)

    def _routed_by(self, state: State) -> Snapshot:
        threshold = self.snapshot.threshold
        if state.phase is Phase.PROMOTED:
            return Snapshot(state.epoch, self._canary, None, 0.0, self._rollout, 0.0, threshold)
        canary = self._canary if state.phase in LIVE else None
        return Snapshot(state.epoch, self._stable, canary, state.weight, self._rollout, self._deadline, threshold)


def counted(evidence: Evidence, stream: str, low: float, high: float, arm: str) -> tuple[int, int]:
    """An arm's live units of a stream at weights from ``low`` to ``high``, and the bad among them."""
    units = bad = 0
    for (of, _, _, weight, by, was_bad), count in evidence.counts.items():
        if (of, by) == (stream, arm) and low <= weight <= high:
            units, bad = units + count, bad + count * was_bad
    return units, bad


def units_at(state: State, evidence: Evidence) -> int:
    """Units that count towards the next step: mirrored pairs in the shadow, later sessions routed at this very weight."""
    if not state.weight:
        return evidence.units - evidence.seen(ASSIGN)
    return sum(counted(evidence, ASSIGN, state.weight, state.weight, arm)[0] for arm in (STABLE, CANARY))


def _fall(state: State, seen: Observation) -> Move | None:
    """Down, at the first proof of harm."""
    reason = None
    if seen.verdict.worse:
        reason = f"worse: {', '.join(seen.verdict.worse)}"
        if FAIL in seen.verdict.worse and seen.failures:
            reason += f" ({seen.failures})"
    elif seen.alarm:
        reason = f"alarm: {seen.alarm}"
    elif state.phase is Phase.PAUSED and seen.watched >= state.plan.longest_pause:
        reason = f"paused for {seen.watched:.0f} s"
    if reason is None or state.phase not in LIVE:
        return None
    return _to(state, Phase.REJECTED if state.phase is Phase.SHADOW else Phase.ROLLING_BACK), reason


def _obey(state: State, seen: Observation) -> Move | None:
    """Where a person wants to go."""
    command = seen.command
    if command is None:
        return None
    after = _wanted(state, command)
    if after is None:
        raise ConflictError(f"a rollout that is {state} cannot {command.verb}; nothing was changed")
    return after, ": ".join(filter(None, [command.verb, command.reason, "; ".join(command.failures)]))


def _wanted(state: State, command: Command) -> State | None:
    live, verb = state.phase in LIVE, command.verb
    if verb == "start" and state.phase is Phase.DRAFT:
        return _to(state, Phase.REJECTED if command.failures else Phase.SHADOW)
    if verb == "abort" and (live or state.phase is Phase.DRAFT):
        return _to(state, Phase.ROLLING_BACK if live else Phase.REJECTED)
    if verb == "pause" and live and state.held is None:
        return _paused(state)
    if verb == "resume" and state.held is not None:
        return replace(state, phase=state.held, held=None)
    return _up(state) if verb == "promote" and live else None


def _quiet(state: State, seen: Observation) -> Move | None:
    """Nothing is learned: hold."""
    if state.phase not in LIVE or state.held:
        return None
    if seen.trouble:
        return _paused(state), f"ledger: {seen.trouble}"
    if seen.silent >= state.plan.silence:
        return _paused(state), f"no evidence: not a unit for {seen.silent:.0f} s"
    return None


def _advance(state: State, seen: Observation) -> Move | None:
    """Up, on evidence; and the end of the way down."""
    if state.phase is Phase.ROLLING_BACK and (seen.acked or seen.watched >= state.plan.lease):
        return _to(state, Phase.ROLLED_BACK), "every router has acknowledged" if seen.acked else "every lease has run out"
    if state.held or not ready(state, seen):
        return None
    if state.plan.gated:
        return _paused(state), "gate: the evidence suffices, a person promotes"
    return _up(state), f"nothing worse in {seen.units} units and {seen.watched:.0f} s"


def _overdue(state: State, seen: Observation) -> Move | None:
    """No verdict for too long: hold."""
    if state.phase not in LIVE or state.held or seen.watched < state.plan.max_wait:
        return None
    return _paused(state), f"no verdict in {seen.watched:.0f} s"


def _states(plan: Plan) -> list[State]:
    """All that a rollout of this plan can be in."""
    going = [State(plan, Phase.SHADOW), *(State(plan, Phase.CANARY, rung) for rung in range(len(plan.rungs) - 1))]
    going.append(State(plan, Phase.FULL))
    others = [State(plan, phase) for phase in (Phase.DRAFT, Phase.ROLLING_BACK, *TERMINAL)]
    return [*going, *map(_paused, going), *others]


def _to(state: State, phase: Phase) -> State:
    return replace(state, phase=phase, rung=0, held=None)


def _paused(state: State) -> State:
    return replace(state, phase=Phase.PAUSED, held=state.phase)


def _up(state: State) -> State:
    """One step up from what is going."""
    if state.going is Phase.SHADOW:
        return _to(state, Phase.CANARY)
    if state.going is Phase.FULL:
        return _to(state, Phase.PROMOTED)
    if state.rung == len(state.plan.rungs) - 2:
        return _to(state, Phase.FULL)
    return replace(state, phase=Phase.CANARY, rung=state.rung + 1, held=None)


def _plan(ledger: Ledger, rollout: str) -> Plan:
    rows = ledger.rows(rollout)
    if not rows:
        raise ServingError(f"{ledger.where} has no rollout {rollout!r}")
    return Plan.from_json(rows[0].evidence["plan"])


def _state(plan: Plan, record: Record) -> State:
    return State(plan).at(record.state, record.epoch)


def _event(values: dict[str, Any], state: State) -> Event:
    return replace(Event(**values), segment=state.segment)


def _observation(state: State, record: Record, evidence: Evidence, **more: Any) -> Observation:
    units = units_at(state, evidence)
    acked = record.slowest is None or record.slowest >= record.epoch
    silent = record.watched - record.heard
    return Observation(evidence.verdict(), units, evidence.to_json(), record.watched, silent, acked=acked, **more)
