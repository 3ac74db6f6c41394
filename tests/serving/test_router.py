"""Routing: the same everywhere, in the promised shares, one way only, and always an answer."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from math import comb, exp, lgamma, log, log1p

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.routing import PIN_HEADER, ArmModels, Expert, RoutedModel, Snapshot, bucket, route

OLD = ArmModels(RoutedModel("old-short", 250), RoutedModel("old-long"), (Expert("law", RoutedModel("old-law", 100)),))
NEW = ArmModels(RoutedModel("new-short", 300), RoutedModel("new-long"), (Expert("law", RoutedModel("new-law"), healthy=False),))
TRIAL = Snapshot(7, OLD, NEW, weight=5.0, rollout="r-1", deadline=100.0, threshold=250)
PIN = {PIN_HEADER: "canary"}

texts = st.text(st.characters(codec=None), max_size=20)  # lone surrogates too
lineups = st.sampled_from([OLD, NEW])
snapshots = st.builds(
    Snapshot,
    epoch=st.integers(0, 99),
    stable=lineups,
    canary=st.none() | lineups,
    weight=st.floats(0, 100),
    rollout=st.text("abc", min_size=1, max_size=64),
    deadline=st.floats(0, 200),
    threshold=st.none() | st.integers(0, 250),
)


def share_of(n: int, found: int, share: float) -> float:
    """Twice the smaller exact binomial tail: how likely is a share as far off as that?"""

    def chance(k: int) -> float:
        return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(share) + (n - k) * log1p(-share))

    low = sum(chance(k) for k in range(found + 1))
    return 2 * min(low, 1 - low + chance(found))


def arms(snapshot: Snapshot, keys: range) -> list[str]:
    return [route(f"session-{key}", 10, None, {}, snapshot, now=0.0).arm for key in keys]


def test_the_measure_of_shares_is_the_binomial() -> None:
    assert share_of(4, 1, 0.5) == pytest.approx(2 * (comb(4, 0) + comb(4, 1)) / 16)


@pytest.mark.parametrize("weight", [5.0, 10.0, 25.0, 50.0, 98.0])
@pytest.mark.parametrize("rollout", ["r-1", "r-2", "another"])
def test_shares_are_binomial(weight: float, rollout: str) -> None:
    found = arms(replace(TRIAL, weight=weight, rollout=rollout), range(20_000)).count("canary")
    assert share_of(20_000, found, weight / 100) > 1e-4


def test_a_weight_is_so_many_buckets_and_not_one_more() -> None:
    edge = {bucket(f"k{n}", "r-1"): f"k{n}" for n in range(200_000)}
    assert [route(edge[n], 1, None, {}, TRIAL, now=0.0).arm for n in (0, 499, 500, 9_999)] == ["canary"] * 2 + ["stable"] * 2


def test_the_shares_of_scores_times_weights_would_not_pass() -> None:
    """Choosing the larger of ``w U`` gives 2.6 % instead of 5 %, a known fault of weighted assignment."""
    assert share_of(20_000, round(20_000 * 0.026), 0.05) < 1e-12


def test_two_rollouts_deal_keys_independently() -> None:
    half = replace(TRIAL, weight=50.0)
    pairs = list(zip(arms(half, range(20_000)), arms(replace(half, rollout="r-2"), range(20_000)), strict=True))
    assert share_of(20_000, pairs.count(("canary", "canary")), 0.25) > 1e-4


def test_another_process_routes_the_same() -> None:
    code = (
        "import json, sys; from nextvec.routing import bucket;"
        "print(json.dumps([bucket(key, 'r-1') for key in json.load(sys.stdin)]))"
    )
    keys = [f"session-{n}" for n in range(500)] + ["", "ü", "\x00", "\ud800"]
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        asked = json.dumps(keys)
        done = subprocess.run(
            [sys.executable, "-c", code], input=asked, env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == [bucket(key, "r-1") for key in keys]


def test_buckets_are_what_they_were() -> None:
    """Another hash would move the sessions of every rollout under way."""
    assert [bucket(key, "r-1") for key in ("a", "b", "session-1")] == [4014, 878, 1614]


@given(key=texts.filter(bool), low=st.floats(0, 100), high=st.floats(0, 100))
def test_a_growing_weight_moves_keys_one_way(key: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    before, after = (route(key, 1, None, {}, replace(TRIAL, weight=weight), now=0.0).arm for weight in (low, high))
    assert (before, after) != ("canary", "stable")


@given(key=texts, snapshot=snapshots, n_vectors=st.integers(1, 2_000), epoch=st.integers(0, 99))
def test_what_does_not_concern_the_coin_does_not_flip_it(key: str, snapshot: Snapshot, n_vectors: int, epoch: int) -> None:
    def coin(asked: Snapshot, n: int = 1, lane: str | None = None) -> str | None:
        found = route(key, n, lane, {"x-other": "1"}, asked, now=0.0)
        return found.arm if found.counted else None

    sick = replace(OLD, experts=tuple(replace(expert, healthy=False) for expert in OLD.experts))
    changed = replace(snapshot, epoch=epoch, deadline=snapshot.deadline + 1, threshold=None)
    seen = {coin(snapshot), coin(snapshot, n_vectors), coin(changed), coin(replace(changed, stable=sick), 1, "law")}
    assert len(seen - {None}) <= 1


@given(
    key=texts,
    n_vectors=st.integers(-1, 10**9),
    lane=st.none() | texts | st.just("law"),
    headers=st.dictionaries(texts | st.just(PIN_HEADER), texts | st.sampled_from(["canary", "stable"])),
    snapshot=snapshots,
    now=st.floats(0, 200),
    scopes=st.frozensets(st.sampled_from(["pin", "predict"])),
)
def test_every_input_has_an_answer(
    key: str,
    n_vectors: int,
    lane: str | None,
    headers: dict[str, str],
    snapshot: Snapshot,
    now: float,
    scopes: frozenset[str],
) -> None:
    found = route(key, n_vectors, lane, headers, snapshot, now=now, scopes=scopes)
    assert found == route(key, n_vectors, lane, headers, snapshot, now=now, scopes=scopes)
    lineup = snapshot.stable if found.arm == "stable" else snapshot.canary
    assert lineup is not None
    assert found.model in (lineup.short, lineup.long, *(expert.model for expert in lineup.experts if expert.healthy))
    if found.arm == "canary":
        assert now < snapshot.deadline
        assert snapshot.weight > 0 or "pin" in scopes
    if found.counted:
        assert now < snapshot.deadline
        assert snapshot.weight > 0
        assert snapshot.stable != snapshot.canary


def test_a_pin_needs_the_scope_and_is_no_evidence() -> None:
    idle = replace(TRIAL, weight=0.0)
    pinned = route("a", 1, None, PIN, idle, now=0.0, scopes={"pin"})
    assert (pinned.arm, pinned.counted, pinned.reason) == ("canary", False, "pin, short")
    refused = route("a", 1, None, PIN, idle, now=0.0, scopes={"predict", "admin"})
    assert (refused.arm, refused.arm_reason) == ("stable", "no canary")
    away = route("a", 1, None, {PIN_HEADER: "stable"}, replace(TRIAL, weight=100.0), now=0.0, scopes={"pin"})
    assert (away.arm, away.counted) == ("stable", False)


@pytest.mark.parametrize("headers", [{}, PIN])
def test_an_expired_lease_ends_the_canary(headers: dict[str, str]) -> None:
    everything = replace(TRIAL, weight=100.0)
    assert route("a", 1, None, headers, everything, now=99.9, scopes={"pin"}).arm == "canary"
    late = route("a", 1, None, headers, everything, now=100.0, scopes={"pin"})
    assert (late.arm, late.arm_reason, late.counted) == ("stable", "lease expired", False)


def test_no_key_is_no_unit() -> None:
    found = route("", 1, None, {}, replace(TRIAL, weight=100.0), now=0.0)
    assert (found.arm, found.reason, found.counted) == ("stable", "no key, short", False)


def test_a_request_that_both_arms_answer_alike_is_no_evidence() -> None:
    trial = replace(TRIAL, canary=replace(OLD, long=RoutedModel("new-long")), weight=100.0)
    assert route("a", 250, None, {}, trial, now=0.0).reason == "same model, short"
    assert route("a", 251, None, {}, trial, now=0.0).reason == "bucket, long"


@pytest.mark.parametrize(
    ("n_vectors", "lane", "model", "reason"),
    [
        (250, None, "old-short", "short"),
        (251, None, "old-long", "long"),
        (100, "law", "old-law", "expert"),
        (101, "law", "old-short", "expert too short"),
        (300, "law", "old-long", "expert too short"),
        (100, "art", "old-short", "no expert"),
    ],
)
def test_length_and_lane_choose_the_model(n_vectors: int, lane: str | None, model: str, reason: str) -> None:
    found = route("a", n_vectors, lane, {}, replace(TRIAL, canary=None), now=0.0)
    assert (found.model.name, found.model_reason) == (model, reason)


def test_an_expert_that_is_down_is_stood_in_for() -> None:
    found = route("a", 9, "law", {}, replace(TRIAL, weight=100.0), now=0.0)
    assert (found.arm, found.model.name, found.model_reason) == ("canary", "new-short", "expert down")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 251}, "old-short reads 250 vectors, but the threshold is 251"),
        ({"threshold": -1}, "threshold -1 is negative"),
        ({"stable": replace(OLD, long=RoutedModel("b", 250))}, "b reads 250 vectors, but must answer above 250"),
        ({"weight": 101.0}, "weight 101 is not a percentage"),
        ({"weight": float("nan")}, "weight nan is not a percentage"),
        ({"rollout": ""}, "must have 1 to 64 bytes"),
        ({"rollout": "ü" * 33}, "must have 1 to 64 bytes"),
    ],
)
def test_a_snapshot_that_cannot_be_routed_by_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        replace(TRIAL, **change)  # type: ignore[arg-type]


def test_a_lane_has_one_expert() -> None:
    with pytest.raises(ServingError, match="lane 'law' has two experts"):
        replace(OLD, experts=OLD.experts * 2)
