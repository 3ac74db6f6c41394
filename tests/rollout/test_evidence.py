"""The evidence against exact arithmetic, against what it claims to be immune to, and against faults planted in it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.rollout.bets import INVERSE, RATIOS, attribution, gains_at, pair_gains
from nextvec.rollout.evalues import live_gains, log_e_restarted, log_e_worse, log_mean
from nextvec.rollout.evidence import Evidence, UnitOutcome
from nextvec.rollout.guardrails import (
    ASSIGN,
    CANARY,
    FAIL,
    GUARDRAILS,
    MISS,
    NEITHER,
    OK,
    SLOW,
    STABLE,
    STREAMS,
    UNDECIDED,
    WORSE,
)

BETS = [Fraction(str(ratio)) for ratio in RATIOS]
WEIGHTS = [Fraction(w, 100) for w in (5, 10, 25, 50, 98)]


def theta(weight: Fraction, rho: Fraction) -> Fraction:
    """The probability that a bad event is the canary's."""
    return weight * rho / (weight * rho + 1 - weight)


def factor(weight: Fraction, rho: Fraction, ratio: Fraction, arm: str) -> Fraction:
    """What the definition says: the bet's probability of what happened over that of the edge of the hypothesis."""
    edge = theta(weight, rho)
    bet = edge * ratio / (edge * ratio + 1 - edge)
    return bet / edge if arm == CANARY else (1 - bet) / (1 - edge)


# One step


@given(
    st.sampled_from(WEIGHTS),
    st.fractions(0, 2, max_denominator=20),
    st.sampled_from(BETS),
    st.fractions(0, 1, max_denominator=50),
)
def test_no_bet_gains_on_average_while_the_canary_is_within_what_is_tolerated(
    weight: Fraction, tolerated: Fraction, ratio: Fraction, part: Fraction
) -> None:
    gains = np.exp(attribution(float(100 * weight), float(tolerated), (float(ratio),)))[:, 0]
    exact = [factor(weight, 1 + tolerated, ratio, arm) for arm in (STABLE, CANARY)]
    assert gains == pytest.approx([float(g) for g in exact], rel=1e-12)

    def mean(rho: Fraction) -> Fraction:
        return theta(weight, rho) * exact[1] + (1 - theta(weight, rho)) * exact[0]

    assert mean(1 + tolerated) == 1
    assert mean((1 + tolerated) * part) <= 1
    assert mean((1 + tolerated) * 2) > 1


@given(st.sampled_from(WEIGHTS), st.sampled_from(BETS), st.fractions(1, 5, max_denominator=50))
def test_no_bet_on_ok_gains_on_average_while_the_canary_is_beyond_its_margin(
    weight: Fraction, ratio: Fraction, times: Fraction
) -> None:
    margin = Fraction(1, 2)
    stable, canary = (factor(weight, 1 + margin, 1 / ratio, arm) for arm in (STABLE, CANARY))
    gains = np.exp(attribution(float(100 * weight), 0.5, (float(1 / ratio),)))[:, 0]
    assert gains == pytest.approx([float(stable), float(canary)], rel=1e-12)
    there = theta(weight, (1 + margin) * times)
    assert there * canary + (1 - there) * stable <= 1


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.0, 0.017]), st.sampled_from([1.0, -1.0]))
def test_no_bet_on_pairs_gains_on_average_however_often_the_models_differ(
    hurt: int, extra: int, points: float, sign: float
) -> None:
    """Any distribution on -1, 0, 1 whose mean is the edge: the canary loses ``hurt`` %, wins so much less."""
    lost = hurt / 100 + points
    won = lost - points
    by = np.exp(pair_gains(np.array([-1.0, 0.0, 1.0]), points, sign))
    chances = np.array([won, 1 - won - lost, lost]) if won + lost <= 1 else np.array([0.5, 0, 0.5])
    if won + lost <= 1:
        assert chances @ by == pytest.approx(np.ones(len(RATIOS)), abs=1e-12)
    better = np.array([won + extra / 100, 1 - won - lost - extra / 100, lost])
    if sign > 0 and better.min() >= 0:
        assert (better @ by <= 1 + 1e-12).all()


def test_fractional_shifts_of_long_sessions_are_bet_on_fairly_too() -> None:
    rng = np.random.default_rng(0)
    shift = rng.beta(0.3, 0.4, 200) * 2 - 1
    by = np.exp(pair_gains(shift - shift.mean() + 0.01, 0.01, -1.0))
    assert (by > 0).all()
    assert by.mean(0) == pytest.approx(np.ones(len(RATIOS)), abs=1e-12)


# Many steps


def every_course(
    steps: int, rho: float, weight_after: Callable[[Sequence[str]], float], tolerated: float | None = None
) -> float:
    """The exact mean of E over all courses of attribution, at weights that may depend on what came before."""
    guards = dict(GUARDRAILS) if tolerated is None else {**GUARDRAILS, FAIL: replace(GUARDRAILS[FAIL], tolerated=tolerated)}
    total = 0.0
    for course in product((STABLE, CANARY), repeat=steps):
        chance, evidence = 1.0, Evidence(("short", "long"), guards)
        for n, arm in enumerate(course):
            weight = weight_after(course[:n])
            canary = weight * rho / (weight * rho + 100 - weight)
            chance *= canary if arm == CANARY else 1 - canary
            evidence = evidence.after(UnitOutcome(FAIL, arm, weight, stratum="long" if n % 3 else "short", segment=n // 3))
        total += chance * math.exp(evidence.log_e(FAIL)[0])
    return total


def climbing(before: Sequence[str]) -> float:
    """A schedule that reacts to what it saw, as a rollout does."""
    return 5.0 if len(before) < 2 else 50.0 if before.count(CANARY) < 2 else 10.0


def test_the_whole_of_e_has_mean_one_at_the_edge_over_all_courses_and_less_inside() -> None:
    assert every_course(7, 1.1, climbing) == pytest.approx(1, abs=1e-12)
    assert every_course(7, 1.0, climbing) < 1
    assert every_course(7, 0.2, climbing) < 1
    assert every_course(7, 1.5, climbing) > 1


def test_dropping_the_tolerance_would_be_caught() -> None:
    assert every_course(7, 1.1, climbing, tolerated=0.0) > 1.001


def test_peeking_at_the_arm_before_choosing_the_weight_would_be_caught() -> None:
    """Weights must be chosen before the event: one that knows the arm makes money from nothing."""
    total = 0.0
    for arm, chance in ((STABLE, 0.5), (CANARY, 0.5)):
        told = 10.0 if arm == CANARY else 50.0  # a canary's event booked at a smaller weight than it was routed at
        total += chance * math.exp(Evidence().after(UnitOutcome(SLOW, arm, told)).log_e(SLOW)[0])
    assert total > 1.1


events = st.builds(
    UnitOutcome,
    st.just(SLOW),
    st.sampled_from([STABLE, CANARY]),
    st.sampled_from([5.0, 25.0, 50.0]),
    st.booleans(),
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 3),
    count=st.integers(1, 4),
)
pairs = st.builds(
    lambda shift, count: UnitOutcome(SLOW, NEITHER, None, True, "a", shift=shift, count=count),
    st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]),
    st.integers(1, 4),
)


def exact_worse(seen: Sequence[UnitOutcome]) -> Fraction:
    """The e-value as the module's text defines it, in fractions, event by event."""
    segments = 1 + max([event.segment for event in seen if event.weight is not None], default=0)

    def capital(of: Sequence[UnitOutcome]) -> Fraction:
        total = Fraction(0)
        for ratio in BETS:
            stake = Fraction(1)
            for event in of:
                stake *= factor(Fraction(str(event.weight)) / 100, Fraction(1), ratio, event.arm) ** event.count
            total += stake
        return total / len(BETS)

    def restarted(of: Sequence[UnitOutcome]) -> Fraction:
        entered = [Fraction(1, (j + 1) * (j + 2)) * capital([e for e in of if e.segment >= j]) for j in range(segments)]
        return sum(entered, Fraction(1, segments + 1))

    live = [event for event in seen if event.weight is not None and event.bad]
    strata = sum((restarted([event for event in live if event.stratum == name]) for name in ("a", "b", "c")), Fraction(0)) / 3
    mirrored = Fraction(0)
    for ratio in BETS:
        stake, bet = Fraction(1), (ratio - 1) / (ratio + 1)
        for event in seen:
            if event.weight is None:
                stake *= (1 + bet * Fraction(str(event.shift))) ** event.count
        mirrored += stake
    return Fraction(3, 4) * (restarted(live) + strata) / 2 + Fraction(1, 4) * mirrored / len(BETS)


@given(st.lists(st.one_of(events, pairs), max_size=6))
def test_e_is_the_betting_martingale_of_its_definition(seen: list[UnitOutcome]) -> None:
    evidence = Evidence(("a", "b", "c")).after(seen)
    assert math.exp(evidence.log_e(SLOW)[0]) == pytest.approx(float(exact_worse(seen)), rel=1e-10)


@given(st.lists(st.lists(st.one_of(events, pairs), max_size=5), max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_batches_makes_no_difference_to_the_bit(batches: list[list[UnitOutcome]], random: object) -> None:
    one_by_one, in_batches = Evidence(("a", "b", "c")), Evidence(("a", "b", "c"))
    for batch in batches:
        in_batches = in_batches.after(batch)
    shuffled = [event for batch in batches for event in batch]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for event in shuffled:
        one_by_one = one_by_one.after(event)
    assert one_by_one == in_batches
    assert json.dumps(one_by_one.to_json()) == json.dumps(in_batches.to_json())


@given(st.lists(st.one_of(events, pairs), max_size=8))
def test_evidence_survives_json_to_the_bit(seen: list[UnitOutcome]) -> None:
    evidence = Evidence(("a", "b", "c")).after(seen)
    text = json.dumps(evidence.to_json(), allow_nan=False)
    again = Evidence.from_json(json.loads(text))
    assert again == evidence
    assert json.dumps(again.to_json()) == text


def crossed(log_e: np.ndarray, alpha: float) -> float:
    return float((log_e.max(0) >= -math.log(alpha)).mean())


def courses(rho: float, weights: np.ndarray, runs: int, seed: int) -> np.ndarray:
    """[events, runs, 1, segments, bets]: running gains of attributions at the canary's ratio ``rho``, weights in percent."""
    rng = np.random.default_rng(seed)
    canary = weights * rho / (weights * rho + 100 - weights)
    arms = (rng.random((len(weights), runs)) < canary[:, None]).astype(int)
    steps = np.stack([attribution(float(w), 0.0, RATIOS) for w in weights])
    levels = np.unique(weights, return_inverse=True)[1]
    gains = np.zeros((len(weights), runs, 1, levels.max() + 1, len(RATIOS)))
    gains[np.arange(len(weights))[:, None], np.arange(runs), 0, levels[:, None]] = steps[np.arange(len(weights))[:, None], arms]
    return gains.cumsum(0)


def test_the_bound_is_ever_reached_no_more_often_than_alpha_though_looked_at_after_every_event() -> None:
    weights = np.repeat([5.0, 10.0, 25.0, 50.0], 75)
    log_e = log_e_worse(courses(1.0, weights, 1_000, 1))
    for alpha in (0.2, 0.05):
        assert crossed(log_e, alpha) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 1_000)
    assert crossed(log_e_worse(courses(2.0, weights, 200, 2)), 0.05) > 0.9


# What it is immune to


def test_an_incident_that_hits_both_arms_is_no_evidence_and_hides_none() -> None:
    """The number of bad events plays no part: only whose they are does."""
    calm = Evidence().after([UnitOutcome(FAIL, CANARY, 50.0, count=40), UnitOutcome(FAIL, STABLE, 50.0, count=4)])
    assert calm.verdict().streams[FAIL] == WORSE
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        hit = int(rng.binomial(2_000, 0.05))
        both = Evidence().after([UnitOutcome(FAIL, CANARY, 5.0, count=hit), UnitOutcome(FAIL, STABLE, 5.0, count=2_000 - hit)])
        alarms += both.verdict().streams[FAIL] == WORSE
    assert alarms <= 2


def test_a_harm_that_begins_late_is_not_paid_for_by_a_good_history() -> None:
    good = [UnitOutcome(SLOW, CANARY, 50.0, segment=4, count=2_000), UnitOutcome(SLOW, STABLE, 50.0, segment=4, count=2_000)]
    leak = [UnitOutcome(SLOW, CANARY, 50.0, segment=5, count=120), UnitOutcome(SLOW, STABLE, 50.0, segment=5, count=40)]
    assert Evidence().after([*good, *leak]).verdict().streams[SLOW] == WORSE
    in_one_piece = [replace(event, segment=0) for event in (*good, *leak)]
    assert Evidence().after(in_one_piece).verdict().streams[SLOW] != WORSE


def test_a_harm_in_one_stratum_is_seen_behind_a_healthy_majority() -> None:
    well = [UnitOutcome(SLOW, arm, 50.0, stratum="short", count=1_000) for arm in (STABLE, CANARY)]
    burns = [
        UnitOutcome(SLOW, CANARY, 50.0, stratum="long", count=40),
        UnitOutcome(SLOW, STABLE, 50.0, stratum="long", count=5),
    ]
    evidence = Evidence(("short", "long")).after([*well, *burns])
    assert evidence.verdict().streams[SLOW] == WORSE
    live = live_gains(evidence.counts, evidence.strata, 0.0, RATIOS)
    product_of_all = live.sum((0, 1))
    assert log_mean(product_of_all) < 0, "a product over strata is what the healthy ones leave of it"
    assert log_mean(log_e_restarted(live)) > 0


def test_dependent_strata_may_be_averaged_but_not_multiplied() -> None:
    """Were one session counted in two strata, the product of its fair bets would be no fair bet."""
    bet = attribution(50.0, 0.0, (3.0,))[:, 0]
    assert np.exp(bet).mean() == pytest.approx(1)
    assert np.exp(2 * bet).mean() > 1.2


# Verdicts


def test_no_data_is_undecided_and_never_ok() -> None:
    verdict = Evidence().verdict()
    assert set(verdict.streams.values()) == {UNDECIDED}
    assert (verdict.overall, verdict.worse) == (UNDECIDED, ())
    fine = [UnitOutcome(s, arm, 50.0, count=100_000) for s in STREAMS for arm in (STABLE, CANARY)]
    assert Evidence().after(fine).verdict().overall == OK
    for silent in STREAMS:
        verdict = Evidence().after([event for event in fine if event.stream != silent]).verdict()
        assert verdict.streams[silent] == UNDECIDED
        assert verdict.overall == UNDECIDED


def test_worse_goes_before_ok_and_one_worse_stream_is_enough() -> None:
    """1.3 times is worse than is tolerated and better than the margin: both tests are right, and WORSE is said."""
    slow = [UnitOutcome(SLOW, CANARY, 50.0, count=13_000), UnitOutcome(SLOW, STABLE, 50.0, count=10_000)]
    evidence = Evidence().after(slow)
    assert min(evidence.log_e(SLOW)) > -math.log(0.0025)
    assert evidence.verdict().streams[SLOW] == WORSE
    assert evidence.verdict().overall == WORSE
    assert evidence.verdict().worse == (SLOW,)


def test_a_canary_beyond_its_margin_is_promoted_no_more_often_than_promised() -> None:
    """Ever, at exactly 1.5 times: the margin of ``slow``."""
    rng = np.random.default_rng(4)
    arms = (rng.random((600, 1_000)) < 1.5 / 2.5).astype(int)
    log_e = log_mean(attribution(50.0, GUARDRAILS[SLOW].margin, INVERSE)[arms].cumsum(0))
    assert crossed(log_e, 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_000)


def test_two_arms_that_never_fail_can_be_ok_and_one_that_fails_too_often_cannot() -> None:
    good = [UnitOutcome(FAIL, arm, 50.0, bad=False, count=4_000) for arm in (STABLE, CANARY)]
    assert Evidence().after(good).verdict().streams[FAIL] == OK
    level = np.exp(gains_at(0.002, INVERSE))
    assert 0.998 * level[0] + 0.002 * level[1] == pytest.approx(np.ones(len(INVERSE)), rel=1e-12)
    failing = [UnitOutcome(FAIL, CANARY, 50.0, count=20), UnitOutcome(FAIL, STABLE, 50.0, count=20)]
    assert Evidence().after([*good, *failing]).verdict().streams[FAIL] == UNDECIDED


def test_a_biased_router_is_worse_in_either_direction_and_a_fair_one_is_ok() -> None:
    for share, said in ((0.026, WORSE), (0.05, OK), (0.1, WORSE)):
        canary = round(20_000 * share)
        units = [UnitOutcome(ASSIGN, CANARY, 5.0, count=canary), UnitOutcome(ASSIGN, STABLE, 5.0, count=20_000 - canary)]
        assert Evidence().after(units).verdict().streams[ASSIGN] == said


def test_a_share_that_is_not_too_great_may_still_be_too_small_to_be_ok() -> None:
    units = [
        UnitOutcome(ASSIGN, CANARY, 5.0, count=52),
        UnitOutcome(ASSIGN, STABLE, 5.0, count=1_448),
    ]  # two thirds of what it should be
    assert Evidence().after(units).verdict().streams[ASSIGN] == UNDECIDED


def test_no_margin_is_so_wide_that_one_pair_could_cost_more_than_the_stake() -> None:
    for points in (0.0, 0.1, 0.9):
        assert np.isfinite(pair_gains(np.array([-1.0, 1.0]), points, -1.0)).all()


def test_pairs_decide_a_loss_of_three_points_and_prove_the_lack_of_one() -> None:
    def mirrored(lost: int, won: int, same: int) -> str:
        events = [(1.0, lost), (-1.0, won), (0.0, same)]
        pairs = [UnitOutcome(MISS, NEITHER, None, shift=shift, count=count) for shift, count in events]
        return Evidence().after(pairs).verdict().streams[MISS]

    assert mirrored(260, 140, 3_600) == WORSE  # 3 points of 4,000
    assert mirrored(200, 200, 3_600) == OK
    assert mirrored(234, 166, 3_600) == UNDECIDED  # 1.7 points, the margin
    assert mirrored(1_034, 966, 2_000) == UNDECIDED, "a small share of discordant pairs may be many points"


def test_units_are_sessions_routed_and_sessions_mirrored() -> None:
    evidence = Evidence().after(
        [UnitOutcome(ASSIGN, STABLE, 5.0, count=7), UnitOutcome(MISS, NEITHER, None, shift=0.5, count=3)]
    )
    assert evidence.num_units == 10
    assert evidence.count(ASSIGN, STABLE) == 7
    assert evidence.count(ASSIGN, CANARY) == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("fial", STABLE, 5.0), "stream 'fial'; known: fail"),
        ((FAIL, "blue", 5.0), "arm 'blue'; known: stable, canary"),
        ((FAIL, NEITHER, 5.0), "arm 'neither'"),
        ((FAIL, CANARY, None), "arm 'canary'; known: neither"),
        ((ASSIGN, NEITHER, None), "mirrored pair of 'assign'"),
        ((FAIL, STABLE, math.nan), "at weight nan; give percent"),
        ((FAIL, STABLE, 101.0), "at weight 101.0"),
        ((FAIL, CANARY, 0.0), "canary at weight 0.0, which sends it nothing"),
        ((FAIL, STABLE, 100.0), "stable at weight 100.0, which sends it nothing"),
        ((FAIL, NEITHER, None, True, "all", 0, math.nan), "shifted by nan"),
        ((FAIL, NEITHER, None, True, "all", 0, 1.5), "shifted by 1.5"),
        ((FAIL, STABLE, 5.0, True, "all", 0, 0.5), "only pairs have a shift"),
        ((FAIL, STABLE, 5.0, True, "all", -1), "segment -1"),
        ((FAIL, STABLE, 5.0, True, "all", 0, 0.0, 0), "count 0"),
    ],
)
def test_an_event_that_cannot_be_is_refused(values: tuple[object, ...], says: str) -> None:
    with pytest.raises(ServingError, match=says):
        UnitOutcome(*values)  # type: ignore[arg-type]


def test_evidence_refuses_what_was_not_declared() -> None:
    with pytest.raises(ServingError, match="stratum 'lane 3'; declared: all"):
        Evidence().after(UnitOutcome(FAIL, STABLE, 5.0, stratum="lane 3"))
    with pytest.raises(ServingError, match="each once"):
        Evidence(("a", "a"))
    with pytest.raises(ServingError, match="every stream needs one"):
        Evidence(guardrails={FAIL: GUARDRAILS[FAIL]})


def test_evidence_that_was_altered_or_is_none_is_refused() -> None:
    written = Evidence().after(UnitOutcome(FAIL, CANARY, 5.0, count=5)).to_json()
    more = json.loads(json.dumps(written))
    more["counts"][0][-1] = 6
    with pytest.raises(ServingError, match="evidence of 'fail' was altered"):
        Evidence.from_json(more)
    for damage in (
        {},
        {**written, "counts": [[1]]},
        {**written, "log_e": {}},
        {**written, "guardrails": {"fail": {"alpha": 1, "x": 2}}},
    ):
        with pytest.raises(ServingError):
            Evidence.from_json(damage)
