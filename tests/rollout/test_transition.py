"""The step rule and the stopping rule: which state follows, and on which evidence."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.rollout.evidence import Verdict
from nextvec.rollout.guardrails import OK, STREAMS, UNDECIDED, WORSE
from nextvec.rollout.lifecycle import fold
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.records import ConflictError
from nextvec.rollout.state import TERMINAL
from nextvec.rollout.transition import Command, Readings, is_ready, transition
from tests.conftest import examples
from tests.rollout.rollouts import ALL_OK, ALLOWED, ENOUGH, NAMES, PAUSES, PLAN, UP, drafted, said, state


@pytest.mark.parametrize("name", [*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"])
def test_a_state_is_its_name(name: str) -> None:
    assert str(state(name)) == name
    assert (state(name).weight > 0) == any(live in name for live in ("CANARY", "FULL"))
    assert state(name).ended == (name in ("PROMOTED", "ROLLED_BACK", "REJECTED"))


@pytest.mark.parametrize(
    "name", ["", "CANARY", "CANARY(4)", "CANARY(-1)", "SHADOW(0)", "PAUSED", "PAUSED(DRAFT)", "PAUSED(PAUSED)", "FULL)"]
)
def test_no_other_name_is_a_state(name: str) -> None:
    with pytest.raises(ServingError, match="is not a state of"):
        state(name)


@pytest.mark.parametrize(("name", "after"), list(pairwise(UP)))
def test_evidence_carries_up_one_step(name: str, after: str) -> None:
    found, entry = transition(state(name), ENOUGH)
    assert (str(found), found.epoch) == (after, 4)
    assert entry is not None
    assert (entry.before, entry.after, entry.actor, entry.ends) == (name, after, "controller", after == "PROMOTED")
    assert entry.evidence["verdict"] == dict.fromkeys(STREAMS, OK)
    assert entry.evidence["override"] is None


@pytest.mark.parametrize("name", UP[:-1])
@pytest.mark.parametrize(
    "seen", [replace(ENOUGH, watched=9.0), replace(ENOUGH, units=999), replace(ENOUGH, units=0, watched=499.0, silent=59.0)]
)
def test_too_short_or_too_few_is_no_step(name: str, seen: Readings) -> None:
    assert transition(state(name), seen) == (state(name), None)


@pytest.mark.parametrize(
    ("name", "verdict", "is_enough"),
    [
        ("SHADOW", said(), False),
        ("SHADOW", said(miss=OK), True),
        ("SHADOW", said(fail=OK, slow=OK), False),
        ("CANARY(0)", said(), True),
        ("CANARY(3)", said(), False),
        ("CANARY(3)", Verdict({**ALL_OK.streams, "assign": UNDECIDED}), False),
        ("CANARY(3)", ALL_OK, True),
        ("FULL", said(), True),
        ("DRAFT", ALL_OK, False),
        ("ROLLING_BACK", ALL_OK, False),
    ],
)
def test_what_each_step_asks_of_the_judge(name: str, verdict: Verdict, is_enough: bool) -> None:
    assert is_ready(state(name), replace(ENOUGH, verdict=verdict)) is is_enough


@pytest.mark.parametrize("name", [*UP[:-1], *PAUSES])
@pytest.mark.parametrize("stream", STREAMS)
def test_anything_worse_ends_it_at_once(name: str, stream: str) -> None:
    for command in (None, Command("promote", "ann"), Command("resume", "ann")):
        bad = replace(ENOUGH, verdict=Verdict({**ALL_OK.streams, stream: WORSE}), command=command)
        found, entry = transition(state(name), bad)
        assert str(found) == ("REJECTED" if name == "SHADOW" else "ROLLING_BACK")
        assert found.weight == 0
        assert entry is not None
        assert entry.cause == f"worse: {stream}"


@pytest.mark.parametrize("name", [*UP[:-1], *PAUSES])
def test_an_alarm_and_a_person_end_it_too(name: str) -> None:
    found, entry = transition(state(name), replace(ENOUGH, alarm="NaN from the canary"))
    assert found.weight == 0
    assert entry is not None
    assert entry.cause == "alarm: NaN from the canary"
    found, entry = transition(state(name), Readings(said(), 0, command=Command("abort", "ann", "no")))
    assert str(found) == "ROLLING_BACK"
    assert entry is not None
    assert (entry.cause, entry.actor) == ("abort: no", "ann")


@pytest.mark.parametrize("name", UP[:-1])
@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (replace(ENOUGH, silent=60.0), "no evidence: no unit for 60 s"),
        (replace(ENOUGH, units=999, watched=500.0), "no verdict in 500 s"),
        (replace(ENOUGH, ledger_error="no tick for 40 s: disk full"), "ledger: no tick for 40 s: disk full"),
    ],
)
def test_what_teaches_nothing_pauses_with_the_weight_held(name: str, seen: Readings, cause: str) -> None:
    found, entry = transition(state(name), seen)
    assert str(found) == f"PAUSED({name})"
    assert found.weight == state(name).weight
    assert entry is not None
    assert entry.cause == cause
    assert transition(found, replace(seen, watched=199.0)) == (found, None)
    assert str(transition(found, replace(seen, watched=200.0))[0]) == "ROLLING_BACK"


@pytest.mark.parametrize("name", UP[:-1])
def test_a_gate_waits_for_a_person(name: str) -> None:
    gated = replace(PLAN, gated=True)
    found, entry = transition(state(name, gated), ENOUGH)
    assert str(found) == f"PAUSED({name})"
    assert entry is not None
    assert entry.evidence["verdict"] == dict.fromkeys(STREAMS, OK)
    for units, override in ((5_000, None), (999, "ann")):  # a person who approves overrides nothing
        after, entry = transition(found, replace(ENOUGH, units=units, command=Command("promote", "ann")))
        assert str(after) == UP[UP.index(name) + 1]
        assert entry is not None
        assert (entry.actor, entry.evidence["override"]) == ("ann", override)


def test_rolling_back_ends_when_routers_know_or_their_leases_have_run_out() -> None:
    back = state("ROLLING_BACK")
    assert transition(back, Readings(said(), 0, watched=29.0)) == (back, None)
    for seen in (Readings(said(), 0, acknowledged=True), Readings(said(), 0, watched=30.0)):
        assert str(transition(back, seen)[0]) == "ROLLED_BACK"


@pytest.mark.parametrize("verb", ALLOWED)
@pytest.mark.parametrize("name", [*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"])
def test_what_a_person_may_do(verb: Any, name: str) -> None:
    seen = Readings(said(), 0, command=Command(verb, "ann"))
    if name in ALLOWED[verb]:
        found, entry = transition(state(name), seen)
        assert str(found) in state(name).successors()
        assert entry is not None
        assert entry.actor == "ann"
    else:
        with pytest.raises(ConflictError, match=f"cannot {verb}; nothing was changed"):
            transition(state(name), seen)


def test_checks_that_fail_reject_the_draft() -> None:
    failed = Command("start", "ann", failures=("digest differs", "dim 384, want 768"))
    found, entry = transition(state("DRAFT"), Readings(said(), 0, command=failed))
    assert str(found) == "REJECTED"
    assert entry is not None
    assert entry.cause == "start: digest differs; dim 384, want 768"


def test_a_command_has_a_name_on_it() -> None:
    for nobody in ("", "controller"):
        with pytest.raises(ServingError, match="a person must be named"):
            Command("abort", nobody)


verdicts = st.fixed_dictionaries({stream: st.sampled_from([WORSE, OK, UNDECIDED]) for stream in STREAMS}).map(Verdict)
observations = st.builds(
    Readings,
    verdict=verdicts,
    units=st.integers(0, 3_000),
    watched=st.sampled_from([0.0, 5.0, 10.0, 30.0, 200.0, 500.0]),
    silent=st.sampled_from([0.0, 5.0, 60.0]),
    alarm=st.none() | st.just("NaN"),
    ledger_error=st.none() | st.just("disk full"),
    acknowledged=st.booleans(),
)


@settings(max_examples=examples(400))
@given(name=st.sampled_from([*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"]), seen=observations)
def test_every_step_is_an_edge_and_rises_on_evidence_only(name: str, seen: Readings) -> None:
    before = state(name)
    after, entry = transition(before, seen)
    assert (entry is None) == (after == before)
    if entry is None:
        return
    assert entry.after in before.successors()
    assert before.phase not in TERMINAL
    assert after.weight <= before.weight or (is_ready(before, seen) and not seen.verdict.worse)
    assert not seen.verdict.worse or after.weight == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((5.0,), "at least two"),
        ((5.0, 5.0), "rising"),
        ((50.0, 25.0), "rising"),
        ((5.0, 100.0), "below 100"),
        ((0.0, 5.0), "above 0"),
    ],
)
def test_a_plan_rises_and_leaves_something_to_compare_with(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        replace(PLAN, steps=tuple(CanaryStep(weight, 0.0, 1) for weight in weights))


def test_a_plan_is_read_back_from_its_first_row(tmp_path: Path) -> None:
    plan = Plan.detecting(50.0, 0.001)
    ledger = drafted(tmp_path / "l.db", plan, start=False)
    assert fold(ledger.rows("r")).plan == plan
    assert [step.weight for step in plan.steps] == [5.0, 10.0, 25.0, 50.0, 98.0]
    ledger.close()


def test_rows_that_no_rollout_writes_are_refused(tmp_path: Path) -> None:
    ledger = drafted(tmp_path / "l.db")
    rows = ledger.rows("r")
    with pytest.raises(ServingError, match="row 2 leads from DRAFT to FULL; a rollout in DRAFT cannot do that"):
        fold([rows[0], replace(rows[1], after="FULL")])
    with pytest.raises(ServingError, match="must be its draft"):
        fold(rows[1:])
    ledger.close()
