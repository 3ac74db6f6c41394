"""A rollout's report as the dashboard draws it: its place on the ladder, and the evidence of each stream."""

import math
from collections.abc import Mapping
from typing import Any

from nextvec.rollout.judge import ALPHA_OK, CANARY, STABLE, Evidence, Rung
from nextvec.rollout.plan import Phase, Plan, State, units_at
from nextvec.wire.overview import ArmCount, LadderStop, Likelihood, RolloutState, StreamState

_KEPT = ("rollout", "state", "ended", "stable", "canary", "parent", "steps", "unseen", "next", "cause", "weight")


def rollout_state(report: Mapping[str, Any]) -> RolloutState:
    """What the dashboard shows of a rollout.

    Args:
        report: as :func:`nextvec.rollout.report.report` makes it.
    """
    plan, evidence = Plan.from_json(report["plan"]), Evidence.from_json(report["evidence"])
    state = State(plan).at(report["state"], 1)
    return RolloutState(
        **{name: report[name] for name in _KEPT},
        harm=plan.harm,
        gated=plan.gated,
        paused=state.held is not None,
        down=state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.REJECTED),
        ladder=_ladder(plan),
        at=_reached(plan, [step["to"] for step in report["steps"]]),
        seen=units_at(state, evidence),
        streams=[_stream(evidence, stream, verdict) for stream, verdict in evidence.verdict().streams.items()],
    )


def _ladder(plan: Plan) -> list[LadderStop]:
    rungs = [
        ("shadow", plan.shadow),
        *(("canary", rung) for rung in plan.rungs[:-1]),
        ("hold-back", plan.rungs[-1]),
        ("promoted", Rung(100.0, 0.0, 0)),
    ]
    return [LadderStop(name, rung.weight, rung.units, rung.dwell) for name, rung in rungs]


def _reached(plan: Plan, names: list[str]) -> int:
    """The last place on the ladder that a rollout has reached; -1 for a draft.

    Args:
        names: of its states, the oldest first.
    """
    for name in reversed(names):
        state = State(plan).at(name, 1)
        if state.phase is Phase.PROMOTED:
            return len(plan.rungs) + 1
        if state.going in (Phase.SHADOW, Phase.CANARY, Phase.FULL):
            return state.segment
    return -1


def _stream(evidence: Evidence, stream: str, verdict: str) -> StreamState:
    worse, ok = evidence.log_e(stream)
    return StreamState(
        stream=stream,
        verdict=verdict,
        worse=Likelihood(worse, -math.log(evidence.guards[stream].alpha)),
        ok=Likelihood(ok, -math.log(ALPHA_OK)),
        arms={arm: ArmCount(evidence.seen(stream, arm), evidence.seen(stream, arm, bad=True)) for arm in (STABLE, CANARY)},
        pairs=sum(count for (of, _), count in evidence.pairs.items() if of == stream),
    )
