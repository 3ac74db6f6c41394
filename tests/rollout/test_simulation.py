"""Simulated rollouts end as they should, and customary rules as they do."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from nextvec.errors import ServingError
from nextvec.rollout.bets import RATIOS, pair_gains
from nextvec.rollout.guardrails import (
    ASSIGN,
    FAIL,
    GUARDRAILS,
    MISS,
)
from nextvec.rollout.simulation.cohort import Cohort
from nextvec.rollout.simulation.fixed_horizon import p95
from nextvec.rollout.simulation.harms import EQUAL, HARMS, Harm
from nextvec.rollout.simulation.table import simulate, stated
from nextvec.rollout.simulation.traffic import COLUMNS, Traffic, recorded, synthetic
from nextvec.rollout.threshold import TOLERATED


def small(rng: np.random.Generator) -> Traffic:
    return synthetic(rng, requests=60_000)


def test_rollouts_of_a_small_simulation_end_as_they_should() -> None:
    harms = [EQUAL, HARMS[0], HARMS[5], HARMS[9], HARMS[11]]
    rows = simulate(small, harms, rollouts=60, tick=500)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    ours = {row["harm"]: row for row in rows if row["rule"] == "sequential test"}
    assert ours[EQUAL.name]["rolled_back"] <= 0.05
    assert ours[HARMS[11].name]["rolled_back"] <= 0.05, "both arms fail alike"
    assert ours[HARMS[0].name]["rolled_back"] == 1
    assert ours[HARMS[0].name]["by"] == {FAIL: 1.0}
    assert ours[HARMS[5].name]["rolled_back"] == 1
    assert ours[HARMS[9].name]["by"] == {ASSIGN: 1.0}
    customary = {row["rule"]: row for row in rows if row["harm"] == EQUAL.name}
    assert customary["P95 per minute, 0 tolerated"]["rolled_back"] > 0.9, "the rule this replaces, on identical arms"


def test_the_same_seed_gives_the_same_table() -> None:
    assert simulate(small, [HARMS[0]], 20, seed=3, rules=False) == simulate(small, [HARMS[0]], 20, seed=3, rules=False)


def test_the_customary_rule_tolerates_a_fifth() -> None:
    traffic = small(np.random.default_rng(12))
    even = replace(traffic, latency=np.ones(len(traffic)))
    rows = simulate(even, [Harm("10 % slower", slowness=1.1), Harm("30 % slower", slowness=1.3)], 10)
    found = {row["harm"]: row["rolled_back"] for row in rows if row["rule"] == "P95 per minute, 0 tolerated"}
    assert found == {"10 % slower": 0.0, "30 % slower": 1.0}


def test_p95_of_the_chosen_is_that_of_sorting_them() -> None:
    rng = np.random.default_rng(9)
    latency, chosen = rng.random(57), rng.random((20, 57)) < 0.3
    chosen[0] = False
    found = p95(latency, chosen)
    assert math.isnan(found[0])
    for row, value in zip(chosen[1:], found[1:], strict=True):
        values = np.sort(latency[row])
        assert value == values[math.ceil(0.95 * len(values)) - 1]


def test_recorded_traffic_is_read_from_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [
        {"time": 2.0, "session": "b", "n_vectors": 40, "latency_ms": 3.5, "failed": True, "hit": None},
        {"time": 1.0, "session": "a", "n_vectors": 4, "latency_ms": 1.5, "failed": False, "hit": 1},
        {"time": 3.0, "session": "b", "n_vectors": 41, "latency_ms": 2.5, "failed": False, "hit": 0},
    ]
    lines = tmp_path / "traffic.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "traffic.parquet")
    for file in (lines, tmp_path / "traffic.parquet"):
        traffic = recorded(file)
        assert traffic.session.tolist() == [0, 1, 1]
        assert traffic.latency.tolist() == [1.5, 3.5, 2.5]
        assert traffic.failed.tolist() == [False, True, False]
        assert traffic.hit.tolist() == [1, -1, 0]
    rows[0]["latency_ms"] = -1.0
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ServingError, match="not a positive number"):
        recorded(lines)
    lines.write_text('{"time": 1.0}\n', encoding="utf-8")
    with pytest.raises(ServingError, match="no column 'session'"):
        recorded(lines)
    for damage in ("{", ""):
        lines.write_text(damage, encoding="utf-8")
        with pytest.raises(ServingError, match="cannot be read as traffic"):
            recorded(lines)
    with pytest.raises(ServingError, match="cannot be read as traffic"):
        recorded(tmp_path / "nothing.parquet")


def test_recorded_traffic_is_simulated_as_it_was(tmp_path: Path) -> None:
    traffic = synthetic(np.random.default_rng(10), requests=20_000)
    table = dict(
        zip(
            COLUMNS,
            (getattr(traffic, name) for name in ("time", "session", "vectors", "latency", "failed")),
            strict=False,
        )
    )
    table["hit"] = pa.array([None if hit < 0 else int(hit) for hit in traffic.hit])
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    (row,) = simulate(recorded(tmp_path / "t.parquet"), [HARMS[0]], 20, rules=False)
    assert row["rolled_back"] > 0.9


@pytest.mark.slow
def test_of_two_thousand_equal_canaries_no_more_are_rolled_back_than_promised() -> None:
    (row,) = simulate(synthetic, [EQUAL], 2_000, shadow=True, rules=False)
    alpha = sum(guard.alpha for guard in GUARDRAILS.values())
    assert row["rolled_back"] <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 2_000)
    assert row["promoted"] > 0.9


def suffices(alpha: float, parts: float, growth: float) -> float:
    """Units in which a log capital that grows by ``growth`` a unit, with twice that variance as likelihood ratios have, is past
    the bound in 90 of 100: the tenth percentile of a Gaussian walk."""
    bound = math.log(parts / alpha)
    return ((1.28 * math.sqrt(2) + math.sqrt(2 * 1.28**2 + 4 * bound)) / 2) ** 2 / growth


def pairs_suffice(harm: Harm) -> float:
    cohort = Cohort.draw(synthetic(np.random.default_rng(0)), harm, 1, np.random.default_rng(1))
    both = (cohort.stable.hit >= 0) & (cohort.canary.hit >= 0)
    net = np.bincount(cohort.stable.session, (cohort.stable.hit - cohort.canary.hit) * both)
    labels = np.bincount(cohort.stable.session, both)
    growth = pair_gains(net[labels > 0] / labels[labels > 0], 0.0, 1.0).mean(0).max()
    return suffices(GUARDRAILS[MISS].alpha, 4 * len(RATIOS), float(growth))


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS[:-2], ids=lambda harm: harm.name)
def test_every_harm_is_caught_within_twice_what_was_stated(harm: Harm) -> None:
    """Stated for the first weight, at which the ladder does not stay; what is tolerated is not caught at all."""
    (row,) = simulate(synthetic, [harm], 100, shadow=harm.points > 0, rules=False, tick=500)
    if harm.slowness == TOLERATED:
        assert row["rolled_back"] <= 0.05
        return
    stream = ASSIGN if harm.bias < 1 else MISS if harm.points else stated(synthetic(np.random.default_rng(0)), harm)["stream"]
    if stream == ASSIGN:
        growth = 0.026 * math.log(0.026 / 0.05) + 0.974 * math.log(0.974 / 0.95)
        units = suffices(GUARDRAILS[ASSIGN].alpha, 2 * 2 * len(RATIOS), growth)
    else:
        units = pairs_suffice(harm) if harm.points else stated(synthetic(np.random.default_rng(0)), harm)["units"]
    a_session, requests_of_its_life = 8, 8 * 20 * 20  # eight requests, 20 s apart, 20 of all sessions' a second
    assert row["rolled_back"] > 0.9
    assert row["requests"]["p90"] <= 2 * units * a_session + requests_of_its_life
    assert max(row["by"], key=row["by"].get) == stream
