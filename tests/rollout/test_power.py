"""How many units a harm needs, and which harm a number of units detects."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.rollout.bets import RATIOS, attribution
from nextvec.rollout.evalues import log_e_worse
from nextvec.rollout.guardrails import (
    FAIL,
    GUARDRAILS,
)
from nextvec.rollout.plan import canary_steps
from nextvec.rollout.power import detectable, needed
from tests.conftest import examples


def until_caught(harm: float, weight: float, base: float, runs: int, seed: int) -> np.ndarray:
    """Units until the bound, simulated event by event: whose each is, and how many units lie between two."""
    rng = np.random.default_rng(seed)
    rate = base * (1 - weight / 100) + base * harm * weight / 100
    most = int(2.5 * needed(harm, weight, base, 0.0025)[1] * rate) + 20
    arms = (rng.random((most, runs)) < base * harm * weight / 100 / rate).astype(int)
    gains = attribution(weight, 0.0, RATIOS)[arms].cumsum(0)[:, :, None, None]
    log_e = log_e_worse(gains, np.zeros((runs, len(RATIOS))))
    first = (log_e >= -math.log(0.0025)).argmax(0)
    assert (log_e.max(0) >= -math.log(0.0025)).mean() > 0.97
    return rng.exponential(1 / rate, (most, runs)).cumsum(0)[first, np.arange(runs)]


@pytest.mark.parametrize(
    ("harm", "weight", "base"), [(50.0, 5.0, 0.001), (10.0, 50.0, 0.001), (2.0, 50.0, 0.05), (5.0, 5.0, 0.05)]
)
def test_needed_is_what_a_simulation_needs_or_a_little_more(harm: float, weight: float, base: float) -> None:
    found = np.percentile(until_caught(harm, weight, base, 600, 5), [50, 90])
    for claimed, measured in zip(needed(harm, weight, base, 0.0025), found, strict=True):
        assert 0.95 * measured <= claimed <= 1.45 * measured


@settings(max_examples=examples(8))
@given(st.sampled_from([5.0, 25.0, 50.0]), st.floats(1.5, 40), st.sampled_from([0.001, 0.02]))
def test_detectable_and_needed_are_one_statement_read_in_two_directions(weight: float, harm: float, base: float) -> None:
    units = needed(harm, weight, base, 0.0025)[1]
    found = detectable(units, weight, base, 0.0025)
    assert found is not None
    assert found == pytest.approx(harm, rel=0.03)


def test_more_units_show_smaller_harms_and_too_few_show_none() -> None:
    found = [detectable(units, 5.0, 0.001, 0.0025) for units in (0, 20, 10_000, 100_000, 1_000_000)]
    assert found[:2] == [None, None]
    assert found[2] is not None and found[3] is not None and found[4] is not None
    assert found[2] > found[3] > found[4] > 1


def test_a_ladder_stays_at_each_weight_for_what_it_takes() -> None:
    steps = canary_steps(10.0, 0.001, dwell=60.0)
    assert [step.weight for step in steps] == [5.0, 10.0, 25.0, 50.0, 98.0]
    for step in steps:
        found = detectable(step.units, step.weight, 0.001, 0.0025, tolerated=GUARDRAILS[FAIL].tolerated)
        assert found == pytest.approx(10.0, rel=0.03)


def test_what_cannot_be_answered_is_refused() -> None:
    for harm, weight, base, says in (
        (1.0, 5.0, 0.1, "cannot be detected"),
        (1.001, 5.0, 0.1, "cannot be detected"),
        (2.0, 0.0, 0.1, "weight of 0 percent leaves one arm"),
        (2.0, 5.0, 0.0, "base rate of 0"),
        (2.0, 5.0, math.nan, "base rate of nan"),
    ):
        with pytest.raises(ServingError, match=says):
            needed(harm, weight, base, 0.0025)
    with pytest.raises(ServingError, match="-1 units"):
        detectable(-1, 5.0, 0.1, 0.0025)
