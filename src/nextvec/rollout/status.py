"""The status of a rollout, for people and programs: its state, the reasons, what it waits for, and the detectable effects."""

import math
from itertools import pairwise
from typing import Any

from nextvec.rollout.evalues import count_units
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.guardrails import ASSIGN, CANARY, MISS, OK, STABLE, STREAMS
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import fold
from nextvec.rollout.plan import Plan
from nextvec.rollout.power import detectable
from nextvec.rollout.records import Record, Row
from nextvec.rollout.state import LIVE, Phase, State
from nextvec.rollout.transition import units_at

ALL = 100.0  # percent of the sessions that a promoted model answers


def status(ledger: Ledger, rollout: str) -> dict[str, Any]:
    """The status of a rollout, JSON-able: its terms, every step with its evidence, and the smallest detectable effects.

    ``detectable`` lists for every canary step and stream the smallest harm (a multiple of the stable arm's rate ``base``) that
    the units of that step detect with a probability of 90 %; a smaller harm may exist. None: they detect no harm. ``base`` is
    the plan's where no rate was ``measured``. ``next`` is :func:`next_step`. ``cause`` is the reason for the end.

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
        "steps": [_step(row) for row in rows],
        "evidence": evidence.to_json(),
        "detectable": _detectable(state.plan, evidence),
        "head": rows[-1].hash,
    }


def _step(row: Row) -> dict[str, Any]:
    evidence = {name: row.evidence.get(name) for name in ("verdict", "units", "watched", "override")}
    return {
        "seq": row.seq,
        "from": row.before,
        "to": row.after,
        "cause": row.cause,
        "actor": row.actor,
        "time": row.time,
        "weight": weights(row),
        **evidence,
    }


def _detectable(plan: Plan, evidence: Evidence) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for low, above in pairwise([*(step.weight for step in plan.steps), 100.0]):
        high = math.nextafter(above, 0.0)
        for stream in STREAMS:
            units, canary_units, bad = (
                int(count_units(evidence.counts, stream, arm, bad=is_bad, low=low, high=high))
                for arm, is_bad in ((STABLE, None), (CANARY, None), (STABLE, True))
            )
            both = units + canary_units
            if stream == ASSIGN or not both:
                continue
            guardrail, base = evidence.guardrails[stream], bad / units if bad else plan.base
            harm = detectable(
                both, low, base, guardrail.alpha, tolerated=guardrail.tolerated, strata=len(evidence.strata)
            )  # fmt: skip
            found.append({"weight": low, "stream": stream, "units": both, "base": base, "measured": bool(bad), "harm": harm})
    return found


def weights(row: Row) -> list[float] | None:
    """Percent of the sessions on the canary before and after a step; None for the draft."""
    stored: list[float] | None = row.evidence.get("weight")
    if stored and row.after == Phase.PROMOTED:  # the ledger stores the weight of a canary under comparison: 0
        return [stored[0], ALL]
    return stored


def ended_by(rows: list[Row]) -> str:
    """The cause of the step that decided how a rollout ended; the acknowledgement of a rollback is not a cause."""
    decided = next((row for row in reversed(rows) if row.before != Phase.ROLLING_BACK), rows[-1])
    return decided.cause


def caution(record: Record) -> str | None:
    """A warning if the last step is a promotion by a person without sufficient evidence; None otherwise."""
    evidence, row = record.row.evidence, record.row
    if row.cause.partition(":")[0] != "promote" or not evidence.get("override"):
        return None
    if not evidence["units"]:
        return f"promoted without traffic: no session was counted in {row.before}, so its effect there is unknown"
    return f"promoted before the evidence sufficed: {evidence['units']:,} sessions counted in {row.before}"


def next_step(state: State, record: Record, evidence: Evidence) -> dict[str, Any]:
    """What a rollout has and needs for its next step up, in counts and in words.

    Returns:
        ``kind`` of the units that count, ``pairs`` or ``sessions``; ``units`` and ``units_needed``; ``seconds`` and
        ``seconds_needed``; ``sessions`` by arm and mirrored ``pairs`` by stream since the rollout began; ``missing``: what the
        next step waits for, in words, empty if the step can be taken.
    """
    live = state.phase in LIVE
    return {
        "kind": "sessions" if state.weight else "pairs",
        "units": _units(state, evidence),
        "units_needed": state.requirements.units if live else 0,
        "seconds": round(record.watched, 1),
        "seconds_needed": state.requirements.dwell if live else 0.0,
        "sessions": {arm: evidence.count(ASSIGN, arm) for arm in (STABLE, CANARY)},
        "pairs": {name: sum(n for (of, _), n in evidence.pairs.items() if of == name) for name in STREAMS if name != ASSIGN},
        "missing": _missing(state, record, evidence) if live else [],
    }


def _units(state: State, evidence: Evidence) -> int:
    return int(units_at(state.weight, evidence.counts, evidence.pairs))


def _missing(state: State, record: Record, evidence: Evidence) -> list[str]:
    required, units, streams = state.requirements, _units(state, evidence), evidence.verdict().streams
    found: list[str] = []
    if units < required.units:
        kind = f"sessions at {state.weight:g} %" if state.weight else "mirrored sessions"
        found.append(f"{required.units - units:,} more {kind} ({units:,} of {required.units:,})")
    if record.watched < required.dwell:
        missing = required.dwell - record.watched
        found.append(f"{missing:.0f} more seconds under watch ({record.watched:.0f} of {required.dwell:.0f})")
    wanted = [MISS] if state.active_phase is Phase.SHADOW else list(STREAMS) if state.is_last_step else []
    undecided = [name for name in wanted if streams[name] != OK]
    if undecided:
        found.append(f"the verdict OK of {', '.join(undecided)}")
    if state.paused_from or state.plan.gated:
        found.append("a person (nextvec rollout resume)" if state.paused_from else "a person (nextvec rollout promote)")
    return found
