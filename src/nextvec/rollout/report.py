"""A rollout in full, for people and programs: where it stands, why, what it waits for, and what could not have been seen."""

import math
from itertools import pairwise
from typing import Any

from nextvec.rollout.judge import ASSIGN, CANARY, MISS, OK, STABLE, STREAMS, Evidence, detectable
from nextvec.rollout.ledger import Ledger, Record, Row
from nextvec.rollout.plan import LIVE, Phase, Plan, State, counted, fold, units_at

ALL = 100.0  # percent of the sessions that a promoted model answers


def report(ledger: Ledger, rollout: str) -> dict[str, Any]:
    """A rollout in full, JSON-able: its terms, every step with what it rested on, and what could not have been seen.

    ``unseen`` lists for every rung and stream the harm, as a multiple of the stable arm's rate (``base``; the plan's where none
    was ``measured``), from which on it would have been caught there with 90 %: whatever is smaller may be there. None: no harm
    would have been. ``next`` is :func:`next_step`; ``cause`` says why a rollout that has ended ended so.

    Raises:
        ServingError: there is no such rollout.
    """
    record, rows = ledger.record(rollout), ledger.rows(rollout)
    state, terms = fold(rows), dict(rows[0].evidence)
    evidence = Evidence.from_json(record.evidence)
    return {
        "rollout": rollout,
        "route": record.route,
        "state": str(state),
        "ended": state.ended,
        "weight": ALL if state.phase is Phase.PROMOTED else state.weight,
        "cause": ended_by(rows) if state.ended or state.phase is Phase.ROLLING_BACK else None,
        "next": next_step(state, record, evidence),
        **{name: terms[name] for name in ("stable", "canary", "parent", "plan")},
        "steps": [_said(row) for row in rows],
        "evidence": evidence.to_json(),
        "unseen": _unseen(state.plan, evidence),
        "head": rows[-1].hash,
    }


def _said(row: Row) -> dict[str, Any]:
    found = {name: row.evidence.get(name) for name in ("verdict", "units", "watched", "override")}
    return {
        "seq": row.seq,
        "from": row.before,
        "to": row.after,
        "cause": row.cause,
        "actor": row.actor,
        "time": row.time,
        "weight": weights(row),
        **found,
    }


def _unseen(plan: Plan, evidence: Evidence) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for low, above in pairwise([*(rung.weight for rung in plan.rungs), 100.0]):
        high = math.nextafter(above, 0.0)
        for stream in STREAMS:
            units, bad = counted(evidence, stream, low, high, STABLE)
            both = units + counted(evidence, stream, low, high, CANARY)[0]
            if stream == ASSIGN or not both:
                continue
            guard, base = evidence.guards[stream], bad / units if bad else plan.base
            harm = detectable(both, low, base, guard.alpha, tolerated=guard.tolerated, strata=len(evidence.strata))
            found.append({"weight": low, "stream": stream, "units": both, "base": base, "measured": bool(bad), "harm": harm})
    return found


def weights(row: Row) -> list[float] | None:
    """Percent of the sessions that went to the canary before and after a step; None for the draft."""
    said: list[float] | None = row.evidence.get("weight")
    if said and row.after == Phase.PROMOTED:  # the ledger counts canaries on trial: 0
        return [said[0], ALL]
    return said


def ended_by(rows: list[Row]) -> str:
    """The cause of the step that decided how a rollout ends; that every router has acknowledged it is no cause."""
    decided = next((row for row in reversed(rows) if row.before != Phase.ROLLING_BACK), rows[-1])
    return decided.cause


def caution(record: Record) -> str | None:
    """A warning where the last step is a promotion by a person that the evidence did not carry; None otherwise."""
    said, row = record.row.evidence, record.row
    if row.cause.partition(":")[0] != "promote" or not said.get("override"):
        return None
    if not said["units"]:
        return f"promoted without traffic: not one session was counted in {row.before}, so nothing is known of the canary there"
    return f"promoted before the evidence sufficed: {said['units']:,} sessions counted in {row.before}"


def next_step(state: State, record: Record, evidence: Evidence) -> dict[str, Any]:
    """What a rollout has and needs for its next step up, in counts and in words.

    Returns:
        ``kind`` of the units that count, ``pairs`` or ``sessions``; ``units`` and ``units_needed``; ``seconds`` under watch
        and ``seconds_needed``; ``sessions`` by arm and mirrored ``pairs`` by stream since the rollout began; ``missing``: what
        the next step waits for, in words, nothing where it can be taken.
    """
    live = state.phase in LIVE
    return {
        "kind": "sessions" if state.weight else "pairs",
        "units": units_at(state, evidence),
        "units_needed": state.terms.units if live else 0,
        "seconds": round(record.watched, 1),
        "seconds_needed": state.terms.dwell if live else 0.0,
        "sessions": {arm: evidence.seen(ASSIGN, arm) for arm in (STABLE, CANARY)},
        "pairs": {name: sum(n for (of, _), n in evidence.pairs.items() if of == name) for name in STREAMS if name != ASSIGN},
        "missing": _missing(state, record, evidence) if live else [],
    }


def _missing(state: State, record: Record, evidence: Evidence) -> list[str]:
    terms, units, said = state.terms, units_at(state, evidence), evidence.verdict().streams
    found: list[str] = []
    if units < terms.units:
        kind = f"sessions at {state.weight:g} %" if state.weight else "mirrored sessions"
        found.append(f"{terms.units - units:,} more {kind} ({units:,} of {terms.units:,})")
    if record.watched < terms.dwell:
        found.append(f"{terms.dwell - record.watched:.0f} more seconds under watch ({record.watched:.0f} of {terms.dwell:.0f})")
    wanted = [MISS] if state.going is Phase.SHADOW else []
    if state.going is Phase.CANARY and state.rung == len(state.plan.rungs) - 2:
        wanted = list(STREAMS)
    undecided = [name for name in wanted if said[name] != OK]
    if undecided:
        found.append(f"the verdict OK of {', '.join(undecided)}")
    if state.held or state.plan.gated:
        found.append("a person (nextvec rollout resume)" if state.held else "a person (nextvec rollout promote)")
    return found
