"""A rollout's status as the dashboard draws it: its place on the ladder, and the evidence of each stream."""

import math
from collections.abc import Mapping
from typing import Any

from nextvec.rollout.evalues import ALPHA_OK
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.guardrails import CANARY, STABLE
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.state import Phase, State
from nextvec.rollout.transition import units_at
from nextvec.wire.overview import ArmCount, LadderStop, Likelihood, RolloutState, StreamState

_KEPT = ("rollout", "state", "ended", "stable", "canary", "parent", "steps", "detectable", "next", "cause", "weight")


def rollout_state(status: Mapping[str, Any]) -> RolloutState:
    """What the dashboard shows of a rollout.

    Args:
        status: as :func:`nextvec.rollout.status.status` returns it.
    """
    plan, evidence = Plan.from_json(status["plan"]), Evidence.from_json(status["evidence"])
    state = State(plan).named(status["state"], 1)
    return RolloutState(
        **{name: status[name] for name in _KEPT},
        harm=plan.harm,
        gated=plan.gated,
        paused=state.paused_from is not None,
        down=state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.REJECTED),
        ladder=_ladder(plan),
        at=_reached(plan, [step["to"] for step in status["steps"]]),
        seen=int(units_at(state.weight, evidence.counts, evidence.pairs)),
        streams=[_stream(evidence, stream, verdict) for stream, verdict in evidence.verdict().streams.items()],
    )


def _ladder(plan: Plan) -> list[LadderStop]:
    steps = [
        ("shadow", plan.shadow),
        *(("canary", step) for step in plan.steps[:-1]),
        ("hold-back", plan.steps[-1]),
        ("promoted", CanaryStep(100.0, 0.0, 0)),
    ]
    return [LadderStop(name, step.weight, step.units, step.dwell) for name, step in steps]


def _reached(plan: Plan, names: list[str]) -> int:
    """The last place on the ladder that a rollout has reached; -1 for a draft.

    Args:
        names: of its states, the oldest first.
    """
    for name in reversed(names):
        state = State(plan).named(name, 1)
        if state.phase is Phase.PROMOTED:
            return len(plan.steps) + 1
        if state.active_phase in (Phase.SHADOW, Phase.CANARY, Phase.FULL):
            return state.segment
    return -1


def _stream(evidence: Evidence, stream: str, verdict: str) -> StreamState:
    worse, ok = evidence.log_e(stream)
    return StreamState(
        stream=stream,
        verdict=verdict,
        worse=Likelihood(worse, -math.log(evidence.guardrails[stream].alpha)),
        ok=Likelihood(ok, -math.log(ALPHA_OK)),
        arms={arm: ArmCount(evidence.count(stream, arm), evidence.count(stream, arm, bad=True)) for arm in (STABLE, CANARY)},
        pairs=sum(count for (of, _), count in evidence.pairs.items() if of == stream),
    )
