"""The stopping rule and the step rule: from a state and its readings to the next state. Pure functions.

The order of the rules is the order of priority: harm, a command of a person, missing data, enough evidence, too long a wait.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from nextvec.errors import ServingError
from nextvec.rollout.evalues import Count, Pairs, Units, count_pairs, count_units
from nextvec.rollout.evidence import Verdict
from nextvec.rollout.guardrails import ASSIGN, FAIL, MISS, OK
from nextvec.rollout.records import ConflictError, Entry
from nextvec.rollout.state import LIVE, Phase, State

CONTROLLER = "controller"

Verb = Literal["start", "pause", "resume", "abort", "promote"]


@dataclass(frozen=True)
class Command:
    """A command of a person.

    Attributes:
        actor: the person, by the name of a key or of a user.
        reason: in words.
        failures: of the checks before ``start``: what is wrong with the canary, in words.

    Raises:
        ServingError: no person is named.
    """

    verb: Verb
    actor: str
    reason: str = ""
    failures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.actor or self.actor == CONTROLLER:
            raise ServingError(f"{self.verb} by {self.actor!r}; a person must be named")


@dataclass(frozen=True)
class Readings:
    """Everything on which a decision depends.

    Attributes:
        verdict: on every stream.
        units: mirrored pairs in the shadow, later sessions that were assigned at the present weight.
        evidence: JSON-able; stored with the decision.
        watched: seconds in this state; silent: seconds of them since the last unit.
        alarm: the reason why a router asks for a rollback, in words.
        failures: the most frequent causes of failures of the canary, in words.
        ledger_error: why the ledger could not be written for longer than a lease.
        acknowledged: every router uses this epoch.
        command: of a person.
    """

    verdict: Verdict
    units: int
    evidence: Any = None
    watched: float = 0.0
    silent: float = 0.0
    alarm: str | None = None
    failures: str = ""
    ledger_error: str | None = None
    acknowledged: bool = False
    command: Command | None = None


Change = tuple[State, str]  # the next state and the cause


def transition(state: State, readings: Readings) -> tuple[State, Entry | None]:
    """The next state and the ledger entry of the change; the same state and None if nothing changes.

    Raises:
        ConflictError: the state does not allow the command.
    """
    change = (
        _harm(state, readings)
        or _command(state, readings)
        or _no_data(state, readings)
        or _enough(state, readings)
        or _overdue(state, readings)
    )
    if change is None:
        return state, None
    after, cause = change
    command = readings.command
    evidence = {
        "verdict": dict(readings.verdict.streams),
        "units": readings.units,
        "watched": round(readings.watched, 3),
        "weight": [state.weight, after.weight],
        "override": command.actor if command and not is_ready(state, readings) else None,
        "evidence": readings.evidence,
    }
    after = replace(after, epoch=state.epoch + 1)
    return after, Entry(str(state), str(after), cause, evidence, command.actor if command else CONTROLLER, after.ended)


def is_ready(state: State, readings: Readings) -> bool:
    """Whether the evidence alone suffices for one step up."""
    required = state.requirements
    if readings.verdict.worse or readings.watched < required.dwell or readings.units < required.units:
        return False
    if state.active_phase is Phase.SHADOW:
        return readings.verdict.streams[MISS] == OK
    if state.is_last_step:
        return readings.verdict.overall == OK
    return state.active_phase in (Phase.CANARY, Phase.FULL)


def units_at(weight: float, units: Units, pairs: Pairs) -> Count:
    """Units that count towards the next step: mirrored pairs at weight 0, otherwise sessions assigned at this weight."""
    return count_units(units, ASSIGN, low=weight, high=weight) if weight else count_pairs(pairs)


def _harm(state: State, readings: Readings) -> Change | None:
    """Roll back at the first proof of harm."""
    reason = None
    if readings.verdict.worse:
        reason = f"worse: {', '.join(readings.verdict.worse)}"
        if FAIL in readings.verdict.worse and readings.failures:
            reason += f" ({readings.failures})"
    elif readings.alarm:
        reason = f"alarm: {readings.alarm}"
    elif state.phase is Phase.PAUSED and readings.watched >= state.plan.longest_pause:
        reason = f"paused for {readings.watched:.0f} s"
    if reason is None or state.phase not in LIVE:
        return None
    return state.to(Phase.REJECTED if state.phase is Phase.SHADOW else Phase.ROLLING_BACK), reason


def _command(state: State, readings: Readings) -> Change | None:
    """Obey a person."""
    command = readings.command
    if command is None:
        return None
    after = _after_command(state, command)
    if after is None:
        raise ConflictError(f"a rollout that is {state} cannot {command.verb}; nothing was changed")
    return after, ": ".join(filter(None, [command.verb, command.reason, "; ".join(command.failures)]))


def _after_command(state: State, command: Command) -> State | None:
    live, verb = state.phase in LIVE, command.verb
    if verb == "start" and state.phase is Phase.DRAFT:
        return state.to(Phase.REJECTED if command.failures else Phase.SHADOW)
    if verb == "abort" and (live or state.phase is Phase.DRAFT):
        return state.to(Phase.ROLLING_BACK if live else Phase.REJECTED)
    if verb == "pause" and live and state.paused_from is None:
        return state.paused()
    if verb == "resume" and state.paused_from is not None:
        return state.resumed()
    return state.next_up() if verb == "promote" and live else None


def _no_data(state: State, readings: Readings) -> Change | None:
    """Pause while no evidence arrives."""
    if state.phase not in LIVE or state.paused_from:
        return None
    if readings.ledger_error:
        return state.paused(), f"ledger: {readings.ledger_error}"
    if readings.silent >= state.plan.silence:
        return state.paused(), f"no evidence: no unit for {readings.silent:.0f} s"
    return None


def _enough(state: State, readings: Readings) -> Change | None:
    """Go one step up on sufficient evidence; finish a rollback."""
    if state.phase is Phase.ROLLING_BACK and (readings.acknowledged or readings.watched >= state.plan.lease):
        cause = "every router has acknowledged" if readings.acknowledged else "every lease has expired"
        return state.to(Phase.ROLLED_BACK), cause
    if state.paused_from or not is_ready(state, readings):
        return None
    if state.plan.gated:
        return state.paused(), "gate: the evidence suffices; a person must promote"
    return state.next_up(), f"nothing worse in {readings.units} units and {readings.watched:.0f} s"


def _overdue(state: State, readings: Readings) -> Change | None:
    """Pause after too long a wait for a verdict."""
    if state.phase not in LIVE or state.paused_from or readings.watched < state.plan.max_wait:
        return None
    return state.paused(), f"no verdict in {readings.watched:.0f} s"
