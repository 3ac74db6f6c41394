"""From observations to unit outcomes: one unit per session, whatever happened to it."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from nextvec.errors import ServingError
from nextvec.rollout.evidence import Evidence, UnitOutcome
from nextvec.rollout.guardrails import (
    ASSIGN,
    CANARY,
    FAIL,
    MISS,
    NEITHER,
    SLOW,
    STABLE,
    STREAMS,
    UNLABELLED,
    WORSE,
)
from nextvec.rollout.threshold import Threshold
from nextvec.rollout.units import Units, band, bands, selected, unmoved_weight


def test_half_of_the_sessions_count_with_their_first_request_and_a_kth_of_them_later() -> None:
    draws = np.array([selected("r1", f"s{n}") for n in range(20_000)])
    for k in (1, 2, 3, 9, 99):
        share = 1 / (k + 1)
        assert (draws >= k).mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))
    assert selected("r1", "s1") == selected("r1", "s1")
    assert any(selected("r1", f"s{n}") != selected("r2", f"s{n}") for n in range(20))


def test_a_session_counts_once_in_each_stream() -> None:
    units, seen = Units("r"), []
    for n in range(200):
        for stream, value in ((ASSIGN, 1.0), (FAIL, 1.0), (SLOW, 0.1 + n), (MISS, 1.0), (UNLABELLED, 0.0)):
            seen.append(units.observe(stream, CANARY, "s", 5.0, value))
    counted = [event for event in seen if event is not None]
    assert sorted(event.stream for event in counted) == sorted(STREAMS)
    assert units.close("s") == []
    assert len(units) == 0
    assert units.close("s") == []


def test_a_session_that_never_failed_is_a_good_unit_when_it_closes() -> None:
    units = Units("r")
    assert units.observe(FAIL, STABLE, "s", 5.0, 0.0) is None
    assert units.close("s") == [UnitOutcome(FAIL, STABLE, 5.0, bad=False)]
    assert units.observe(FAIL, STABLE, "t", 5.0, math.nan) == UnitOutcome(FAIL, STABLE, 5.0), "what is no number is no success"


def test_mirrored_answers_become_one_shift_a_session() -> None:
    units = Units("r")
    for stable_bad, canary_bad in ((False, True), (False, True), (True, False), (True, True)):
        units.observe_pair(MISS, "s", stable_bad, canary_bad)
    assert units.close("s") == [UnitOutcome(MISS, NEITHER, None, shift=0.25)]
    with pytest.raises(ServingError, match="only fail, slow, miss have pairs"):
        units.observe_pair(UNLABELLED, "s", True, False)


def test_slow_is_measured_against_what_stable_was_before() -> None:
    sessions = [f"s{n}" for n in range(4_000) if selected("r", f"s{n}") == 0]
    units = Units("r", {"all": Threshold(math.log(100.0), 1_000_000)})
    for arm, value, bad in ((STABLE, 101.0, True), (CANARY, 101.0, False), (CANARY, 125.0, True), (CANARY, math.nan, True)):
        event = units.observe(SLOW, arm, sessions.pop(), 5.0, value)
        assert event is not None
        assert (event.arm, event.bad) == (arm, bad)
    learned = units.thresholds["all"]
    assert learned.count == 1_000_001, "only stable teaches, and it is asked before it learns"


def test_a_session_that_changes_arms_gives_no_more_slow_units() -> None:
    session = next(f"s{n}" for n in range(4_000) if selected("r", f"s{n}") == 1)
    moved, stayed = Units("r"), Units("r")
    assert moved.observe(SLOW, STABLE, session, 5.0, 1.0) is None
    assert moved.observe(SLOW, CANARY, session, 10.0, 9.0) is None
    assert stayed.observe(SLOW, STABLE, session, 5.0, 1.0) is None
    event = stayed.observe(SLOW, STABLE, session, 10.0, 9.0)
    assert event is not None
    assert event.weight == unmoved_weight(5.0, 10.0)


def test_rebuilding_after_a_switch_is_not_held_against_the_canary() -> None:
    """Equal models; a session that is moved to the canary pays for its new state once, and stable ones never do."""
    rng = np.random.default_rng(11)
    units, counted, naive = Units("r", {"all": Threshold(math.log(2.3), 10_000)}), [], []
    for n in range(2_500):
        bucket, was = rng.random() * 100, STABLE
        for request, weight in enumerate((5.0, 10.0, 25.0, 50.0)):
            arm = CANARY if bucket < weight else STABLE
            value = float(np.exp(rng.normal(0, 0.5))) * (10 if arm != was and request else 1)
            was = arm
            slow = value > 2.3 * (1.2 if arm == CANARY else 1)
            naive += [UnitOutcome(SLOW, arm, weight, slow)]
            counted.append(units.observe(SLOW, arm, f"s{n}", weight, value))
    assert Evidence().after(naive).verdict().streams[SLOW] == WORSE
    evidence = Evidence().after([event for event in counted if event is not None])
    assert evidence.count(SLOW, CANARY) > 80
    assert evidence.log_e(SLOW)[0] < math.log(20)


def test_the_canarys_share_of_those_that_never_moved_is_known_exactly() -> None:
    buckets = range(100)
    for low, high in ((5.0, 10.0), (10.0, 50.0), (5.0, 98.0), (25.0, 25.0)):
        canary = sum(bucket < low for bucket in buckets)
        stable = sum(bucket >= high for bucket in buckets)
        assert unmoved_weight(low, high) == pytest.approx(100 * canary / (canary + stable))


def test_first_failures_of_a_better_canary_never_look_worse_while_failures_are_rarer_than_not() -> None:
    rho = np.linspace(0, 1, 101)[1:]
    ratio = rho * np.exp((1 - rho) * np.linspace(0, 1, 50)[:, None])
    assert ratio.max() <= 1 + 1e-12
    assert (rho * np.exp((1 - rho) * 2)).max() > 1


def test_requests_of_clustered_sessions_alarm_and_their_units_do_not() -> None:
    """Identical arms; a few sessions fail again and again."""
    rng = np.random.default_rng(6)
    by_request, by_unit = 0, 0
    for _ in range(200):
        canary = rng.random(200) < 0.05
        sizes = rng.geometric(0.05, 200)
        requests = [
            UnitOutcome(FAIL, arm, 5.0, count=int(sizes[took].sum()))
            for arm, took in ((CANARY, canary), (STABLE, ~canary))
            if took.any()
        ]
        firsts = [
            UnitOutcome(FAIL, arm, 5.0, count=int(took.sum()))
            for arm, took in ((CANARY, canary), (STABLE, ~canary))
            if took.any()
        ]
        by_request += Evidence().after(requests).verdict().streams[FAIL] == WORSE
        by_unit += Evidence().after(firsts).verdict().streams[FAIL] == WORSE
    assert by_request > 20
    assert by_unit <= 3


def test_the_threshold_keeps_one_in_twenty_above_it_through_drift_and_any_shape() -> None:
    rng = np.random.default_rng(7)
    for values in (
        np.exp(rng.normal(0, 0.5, 20_000) + np.sin(np.arange(20_000) / 2_000)),
        np.where(rng.random(20_000) < 0.3, 50.0, 1.0) * np.exp(rng.normal(0, 0.1, 20_000)),
    ):
        threshold, above = Threshold(), 0
        for value in values:
            above += threshold.is_slow(float(value), STABLE)
            threshold = threshold.after(float(value))
        assert above / len(values) == pytest.approx(0.05, abs=0.006)
        assert Threshold(**json.loads(json.dumps(asdict(threshold)))) == threshold


def test_before_anything_is_known_nothing_is_slow_and_nonsense_teaches_nothing() -> None:
    assert not Threshold().is_slow(1e9, CANARY)
    for nonsense in (math.nan, math.inf, 0.0, -1.0):
        assert Threshold().after(nonsense) == Threshold()


def test_contexts_fall_into_bands() -> None:
    assert bands() == ("0-32", "33-256", "257-")
    assert [band(n) for n in (0, 32, 33, 256, 257, 10**6)] == ["0-32", "0-32", "33-256", "33-256", "257-", "257-"]
