"""A rollout in the ledger: draft it, change it by hand, and read its state from its rows."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.plan import Plan
from nextvec.rollout.records import Entry, Record, Row
from nextvec.rollout.state import Phase, State
from nextvec.rollout.transition import Command, Readings, transition, units_at


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
    """Draft a rollout of ``canary`` against ``stable`` on a route.

    Args:
        stable, canary: the two models, see :func:`~nextvec.rollout.promotions.identity`.
        evidence: without counts, with strata and guardrails; the defaults if None.
        parent: the rollout that this one repeats.

    Raises:
        ConflictError: the id is taken, or the route has an active rollout.
        ServingError: no person is named, or both models are the same.
    """
    if not actor or stable == canary:
        raise ServingError(f"rollout {rollout!r}: name the person who drafts it, and a canary that is not the stable model")
    terms = {"plan": asdict(plan), "stable": stable, "canary": canary, "parent": parent}
    empty = (evidence or Evidence()).to_json()
    entry = Entry("", str(Phase.DRAFT), "drafted", {**terms, "evidence": empty}, actor)
    return ledger.create(rollout, route, entry, empty)


def intervene(ledger: Ledger, rollout: str, command: Command, epoch: int | None = None) -> Record:
    """Execute a person's command: start, pause, resume, abort or promote. No controller is needed.

    ``promote`` goes one step up whatever the evidence, unless a stream is WORSE; the row names the person.

    Raises:
        ConflictError: the state does not allow the command, or the rollout has left the ``epoch`` that the person saw.
    """
    plan = plan_of(ledger, rollout)

    def decide(record: Record) -> Entry | None:
        evidence = Evidence.from_json(record.evidence)
        state = state_of(plan, record)
        return transition(state, readings_of(state, record, evidence, command=command))[1]

    return ledger.intervene(rollout, decide, epoch)


def fold(rows: Sequence[Row]) -> State:
    """The state that follows from a rollout's rows.

    Raises:
        ServingError: no rollout can have written these rows.
    """
    if not rows or rows[0].after != str(Phase.DRAFT):
        raise ServingError("the first row of a rollout must be its draft")
    state = State(Plan.from_json(rows[0].evidence["plan"]), epoch=rows[0].epoch)
    for row in rows[1:]:
        if row.before != str(state) or row.epoch != state.epoch + 1 or row.after not in state.successors():
            raise ServingError(f"row {row.seq} leads from {row.before} to {row.after}; a rollout in {state} cannot do that")
        state = state.named(row.after, row.epoch)
    return state


def plan_of(ledger: Ledger, rollout: str) -> Plan:
    """
    Raises:
        ServingError: there is no such rollout.
    """
    rows = ledger.rows(rollout)
    if not rows:
        raise ServingError(f"{ledger.where} has no rollout {rollout!r}")
    return Plan.from_json(rows[0].evidence["plan"])


def state_of(plan: Plan, record: Record) -> State:
    return State(plan).named(record.state, record.epoch)


def readings_of(state: State, record: Record, evidence: Evidence, **more: Any) -> Readings:
    """The readings of a record; ``more`` are other fields of :class:`Readings`."""
    units = int(units_at(state.weight, evidence.counts, evidence.pairs))
    acknowledged = record.slowest is None or record.slowest >= record.epoch
    silent = record.watched - record.last_unit
    return Readings(
        evidence.verdict(), units, evidence.to_json(), record.watched, silent, acknowledged=acknowledged, **more
    )  # fmt: skip
