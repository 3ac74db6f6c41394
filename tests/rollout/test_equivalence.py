"""The simulation against the production objects: every outcome, verdict and step of a rollout is the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvec.rollout.evidence import Evidence
from nextvec.rollout.guardrails import FAIL, MISS
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.simulation.cohort import Cohort
from nextvec.rollout.simulation.driver import Rollouts
from nextvec.rollout.simulation.harms import Harm
from nextvec.rollout.simulation.traffic import synthetic
from nextvec.rollout.threshold import Threshold, learn
from nextvec.rollout.units import bands
from tests.conftest import examples
from tests.rollout.one_by_one import OneByOne

WEIGHTS = (5.0, 20.0, 50.0, 98.0)
TICK = 150

harms = st.builds(
    Harm,
    st.just("any"),
    errors=st.sampled_from([0.0, 0.02, 0.3]),
    slowness=st.sampled_from([1.0, 1.2, 2.0]),
    points=st.sampled_from([0.0, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    bias=st.sampled_from([1.0, 0.5]),
    discordance=st.sampled_from([0.0, 0.1]),
)


def plan(dwell: float, units: int) -> Plan:
    """Steps so short that a rollout climbs through them within its traffic."""
    return Plan(10.0, 0.01, tuple(CanaryStep(weight, dwell, units) for weight in WEIGHTS), CanaryStep(0.0, dwell, units))


def counts_of(simulated: Rollouts, number: int) -> Evidence:
    """The evidence of one rollout of a simulation."""
    units = {key: int(counts[number]) for key, counts in simulated.selection.units().items() if counts[number]}
    pairs = {key: int(counts[number]) for key, counts in sorted(simulated.selection.pairs.items()) if counts[number]}
    return Evidence(bands(), counts=units, pairs=pairs)


def compare(harm: Harm, shadow: bool, dwell: float, units: int, seed: int, settle: float) -> Rollouts:
    """Simulate two rollouts, and repeat each request by request with the production objects.

    Raises:
        AssertionError: a count, threshold, verdict or state differs after a tick.
    """
    rng = np.random.default_rng(seed)
    traffic = synthetic(rng, requests=3_000, session=6.0, failing=0.01)
    cohort = Cohort.draw(traffic, harm, 2, rng)
    terms = plan(dwell, units)
    simulated = Rollouts(cohort, terms, shadow, TICK, settle)
    singles = [OneByOne(cohort, number, terms, shadow, settle) for number in range(2)]
    for begin in range(0, len(traffic), TICK):
        end = min(begin + TICK, len(traffic))
        simulated.block(begin, end)
        for number, single in enumerate(singles):
            single.block(begin, end)
            found = counts_of(simulated, number)
            assert found.counts == single.evidence.counts
            assert found.pairs == single.evidence.pairs
            assert simulated.verdicts[number] == single.verdict
            assert simulated.states[number] == single.state
            for k, stratum in enumerate(bands()):
                threshold = single.units.thresholds.get(stratum, Threshold())  # equal to the last bit
                assert simulated.selection.log_percentile[number, k] == threshold.log_percentile
                assert simulated.selection.learned[number, k] == threshold.count
    return simulated


@settings(max_examples=examples(10))
@given(
    harm=harms,
    shadow=st.booleans(),
    dwell=st.sampled_from([0.0, 15.0]),
    units=st.sampled_from([1, 60]),
    seed=st.integers(0, 1_000),
    settle=st.sampled_from([60.0, 1e9]),
)
def test_a_simulated_rollout_equals_the_production_objects(
    harm: Harm, shadow: bool, dwell: float, units: int, seed: int, settle: float
) -> None:
    compare(harm, shadow, dwell, units, seed, settle)


def test_the_comparison_covers_every_way_of_a_rollout() -> None:
    """From the shadow through canary steps, a rejection in the shadow, and a rollback."""
    climbed = compare(Harm("none", discordance=0.0), True, 0.0, 1, 3, 60.0)
    assert {str(state) for state in climbed.states} == {"CANARY(2)"}  # the last step needs the verdict OK of every stream
    assert all(counts.any() for counts in climbed.selection.counts.values())
    assert {stream for stream, _ in climbed.selection.pairs} == {FAIL, MISS}
    rejected = compare(Harm("errors", errors=0.3), True, 0.0, 1, 4, 60.0)
    assert {str(state) for state in rejected.states} == {"REJECTED"}
    rolled_back = compare(Harm("errors", errors=0.3), False, 0.0, 60, 5, 60.0)
    assert {str(state) for state in rolled_back.states} == {"ROLLING_BACK"}
    assert (rolled_back.ends.requests > 0).all()


def test_another_learning_rate_in_the_simulation_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault planted in the simulation alone: a constant step."""

    def constant(log_percentile: np.ndarray, count: np.ndarray, log_value: float) -> np.ndarray:
        return np.where(count == 0, log_value, learn(log_percentile, np.maximum(count, 10**6), log_value))

    monkeypatch.setattr("nextvec.rollout.simulation.selection.learn", constant)
    with pytest.raises(AssertionError):
        compare(Harm("none"), False, 0.0, 60, 5, 60.0)


def test_another_selection_in_the_simulation_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault planted in the simulation alone: a pair counts with its fifteenth request."""
    monkeypatch.setattr("nextvec.rollout.simulation.selection.MOST_MIRRORED", 15)
    with pytest.raises(AssertionError):
        compare(Harm("none"), True, 0.0, 60, 5, 1e9)
