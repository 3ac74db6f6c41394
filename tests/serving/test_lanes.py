"""Lanes while serving: whose session it is, who answers it, and what a sick expert does to nobody."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.client import Client
from nextvec.errors import DataError, ServingError
from nextvec.evaluation.by_lane import SURE
from nextvec.evaluation.by_lane import UNSURE as UNSURE_FIGURES
from nextvec.inference import Engine
from nextvec.lanes import Anchors, Lanes, by_clusters
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.guardrails import CANARY, FAIL, STABLE
from nextvec.rollout.opening import open_ledger
from nextvec.routing import UNSURE, ArmModels, RoutedModel, Snapshot
from nextvec.serving.lanes import ENOUGH, FIRST, MOST, Health, ServedLanes, strata
from nextvec.serving.limits import Limits
from nextvec.serving.metrics import Metrics
from nextvec.serving.observations import Observation, SessionEvent
from nextvec.serving.payload import from_rows
from nextvec.serving.service import Service
from nextvec.serving.state_rebuild import INLINE
from tests.command import nextvec
from tests.serving.faults import FAULTS
from tests.serving.server import DIM, asking, rows_of, serving
from tests.waiting import PATIENCE, until

LANES = 3


@pytest.fixture(scope="module")
def made(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one bank, and its lanes by k-means."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("laned") / "runs")
    by_clusters(Bank.open(folder / "bank"), LANES).save(folder / "lanes")
    return folder


@pytest.fixture
def anchors(made: Path) -> Anchors:
    return Anchors.open(made / "lanes", "t", DIM)


def served(made: Path, folder: Path, talk: Callable[[Service, ServedLanes], Awaitable[Any]], lane: int = 1) -> Any:
    """A service whose lane ``lane`` has an expert, run1; run0 is shared."""

    async def conversation() -> Any:
        runs = {"shared": made / "run0", "expert": made / "run1"}
        service = Service(runs, lambda run: Engine.open(run), folder / "s", Limits(budget=PATIENCE, deadline=PATIENCE))
        found = Anchors.open(made / "lanes", service.encoder, service.dim)
        lanes = ServedLanes(found, {found.names[lane]: "expert"}, service.metrics)
        service.routing.specialise(lanes)
        try:
            return await talk(service, lanes)
        finally:
            await service.close()

    return asyncio.run(conversation())


async def say(service: Service, session: str, rows: np.ndarray, lane: str | None = None) -> Any:
    until = asyncio.get_running_loop().time() + PATIENCE
    return await service.sessions.append(session, from_rows(rows, None), None, 5, asking(session, lane), until)


def in_lane(anchors: Anchors, lane: int, count: int = 3, seed: int = 0) -> np.ndarray:
    """Rows that lie near a lane's anchor."""
    return (anchors.vectors[lane] + 0.05 * rows_of(count, seed)).astype(np.float32)


def answered(engine: Engine, rows: np.ndarray) -> list[int]:
    session = engine.session()
    session.push_many(rows)
    return [e.row for e in session.predict(5)]


# Which lane


def test_a_sessions_lane_is_what_a_document_of_its_rows_has(made: Path) -> None:
    """However it is appended, and beside the lanes of the bank's own documents."""
    bank = Bank.open(made / "bank")
    lanes = Lanes.open(made / "lanes", bank)
    of_documents, share = lanes.of_documents(bank)
    serving_lanes = ServedLanes(lanes.anchors, {}, Metrics())
    for m in range(bank.num_documents):
        rows = bank.document(m).astype(np.float32)
        for part in np.array_split(rows, 4):
            name = f"d{m}"
            length, votes = serving_lanes.length(name) + len(part), serving_lanes.earlier(name) + serving_lanes.votes(part)
            found = serving_lanes.keep(name, length, votes)
        expected = lanes.names[of_documents[m]] if share[m] >= SURE else UNSURE
        assert found == expected
        assert serving_lanes.lane(serving_lanes.votes(rows)) == expected
    assert UNSURE == UNSURE_FIGURES


def test_the_lane_survives_what_is_forgotten(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    """Votes are a cache: without them the context is read again, in a thread where it is long."""

    async def talk(service: Service, lanes: ServedLanes) -> None:
        for session, count in (("short", 3), ("long", 5 * INLINE)):
            service.contexts.open(session)
            first = await say(service, session, in_lane(anchors, 2, count))
            lanes.forget(session)
            second = await say(service, session, in_lane(anchors, 2, 1, seed=1))
            assert first.lane == second.lane == anchors.names[2]
            assert lanes.length(session) == count + 1

    served(made, tmp_path, talk)


def test_a_deleted_sessions_lane_is_not_its_successors(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        for lane in (0, 2):
            service.contexts.open("s")
            assert (await say(service, "s", in_lane(anchors, lane, 6))).lane == anchors.names[lane]
            await service.sessions.delete("s")
            assert lanes.length("s") == 0

    served(made, tmp_path, talk)


def test_a_long_context_votes_in_a_thread(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        votes, threads = lanes.votes, list[threading.Thread]()

        def watched(rows: np.ndarray) -> np.ndarray:
            threads.append(threading.current_thread())
            return votes(rows)

        lanes.votes = watched  # type: ignore[method-assign]
        service.contexts.open("s")
        assert (await say(service, "s", in_lane(anchors, 2, INLINE + 1))).lane == anchors.names[2]
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()
        assert lanes.length("s") == INLINE + 1

    served(made, tmp_path, talk)


# Who answers


def test_a_session_is_answered_by_its_lanes_expert_as_by_that_run_alone(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        for lane, model, reason in ((1, "expert", "no canary, expert"), (2, "shared", "no canary, no expert")):
            name = f"s{lane}"
            service.contexts.open(name)
            rows = in_lane(anchors, lane)
            answers = [await say(service, name, rows[n : n + 1]) for n in range(3)]
            assert {(a.model, a.reason, a.lane) for a in answers} == {(model, reason, anchors.names[lane])}
            assert [e.row for e in answers[-1].expected] == answered(service.models[model].engine, rows)

    served(made, tmp_path, talk)


def test_who_is_unsure_is_answered_by_the_shared_model(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        service.contexts.open("s")
        answer = await say(service, "s", np.concatenate([in_lane(anchors, lane, 4) for lane in range(LANES)]))
        assert (answer.lane, answer.model, answer.reason) == (UNSURE, "shared", "no canary, unsure lane")

    served(made, tmp_path, talk)


def test_a_request_may_name_its_lane(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        service.contexts.open("s")
        rows = in_lane(anchors, 2)
        assert (await say(service, "s", rows, anchors.names[1])).model == "expert"
        unknown = await say(service, "s", rows, "nonsense")
        assert (unknown.model, unknown.reason) == ("shared", "no canary, no expert")
        assert "nonsense" not in service.metrics.text().decode()

    served(made, tmp_path, talk)


def test_whole_contexts_are_routed_each_by_its_own_lane(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        contexts = [in_lane(anchors, lane, count) for lane, count in ((1, 3), (2, 3), (1, 3 * INLINE))]
        until = asyncio.get_running_loop().time() + PATIENCE
        found = await service.predictions.once(contexts, 5, asking(""), until)
        assert [a.model for a in found] == ["expert", "shared", "expert"]
        for answer, rows in zip(found, contexts, strict=True):
            assert [e.row for e in answer.expected] == answered(service.models[answer.model].engine, rows)
        service.models["expert"].engine.predict = FAULTS["raises"]  # type: ignore[method-assign]
        sick = (await service.predictions.once(contexts[:1], 5, asking(""), until))[0]
        assert (sick.model, sick.reason) == ("shared", "expert RuntimeError")
        assert [e.row for e in sick.expected] == answered(service.models["shared"].engine, contexts[0])

    served(made, tmp_path, talk)


def test_a_long_session_is_answered_by_the_shared_model_until_the_expert_has_read_it(
    made: Path, anchors: Anchors, tmp_path: Path
) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        service.contexts.open("s")
        rows = in_lane(anchors, 1, 4 * INLINE)
        warming = await say(service, "s", rows)
        assert (warming.model, warming.reason) == ("shared", "expert warming")
        await asyncio.gather(*service.background.tasks.values())
        after = await say(service, "s", rows[:1])
        assert (after.model, after.reason) == ("expert", "no canary, expert")
        assert [e.row for e in after.expected] == answered(service.models["expert"].engine, np.concatenate([rows, rows[:1]]))

    served(made, tmp_path, talk)


# Who is well


@pytest.mark.parametrize("name", ["raises", "hangs", "says_nan"])
def test_what_an_expert_fails_at_is_answered_by_the_shared_model(
    made: Path, anchors: Anchors, tmp_path: Path, name: str, released: threading.Event
) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        now = [0.0]
        lanes.health[anchors.names[1]].clock = lambda: now[0]
        service.fallback.limits = Limits(budget=0.1, deadline=PATIENCE)
        expert = service.models["expert"].engine
        well, expert.predict = expert.predict, FAULTS[name]  # type: ignore[method-assign]
        service.contexts.open("s")
        rows, lane = in_lane(anchors, 1, 6), anchors.names[1]
        answers = [await say(service, "s", rows[n : n + 1]) for n in range(ENOUGH + 2)]
        assert {a.model for a in answers} == {"shared"}
        assert [e.row for e in answers[-1].expected] == answered(service.models["shared"].engine, rows[: ENOUGH + 2])
        assert all(a.reason.startswith("expert ") for a in answers[:ENOUGH])
        assert [a.reason for a in answers[ENOUGH:]] == ["no canary, expert down"] * 2
        metrics = service.metrics.text().decode()
        assert f'nextvec_expert_up{{lane="{lane}"}} 0.0' in metrics
        assert f'nextvec_expert_failures_total{{lane="{lane}"}} {ENOUGH}.0' in metrics
        expert.predict = well  # type: ignore[method-assign]
        released.set()
        now[0] += MOST
        service.fallback.limits = Limits(budget=PATIENCE, deadline=PATIENCE)
        end = time.monotonic() + PATIENCE
        while (answer := await say(service, "s", rows[:1])).model != "expert":
            assert time.monotonic() < end, answer.reason
            now[0] += MOST
            await asyncio.sleep(0.1)
        assert f'nextvec_expert_up{{lane="{lane}"}} 1.0' in service.metrics.text().decode()

    served(made, tmp_path, talk)


def test_a_circuit_opens_is_tried_now_and_then_and_closes() -> None:
    now = [0.0]
    health = Health(lambda: now[0])
    for _ in range(ENOUGH - 1):
        health.failed()
    assert health.asked()
    health.failed()
    pauses: list[float] = []
    for _ in range(10):
        assert not health.asked()
        began = now[0]
        while not health.asked():
            now[0] += 0.25
        assert not health.asked(), "one request at a time may try"
        pauses.append(now[0] - began)
        health.failed()
    assert pauses == [min(FIRST * 2**n, MOST) for n in range(10)]
    health.renewed()
    assert health.asked(), "whoever was loaded again is tried at once"
    assert not health.asked()
    health.well()
    assert all(health.asked() for _ in range(5))


@pytest.mark.integration
def test_a_sick_expert_under_load_is_met_by_nobody(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    """A real server and eight clients; the expert's weights rot, it is loaded again, and later healed."""
    for name in ("run0", "run1"):
        shutil.copytree(made / name, tmp_path / name)
    lane, stop = anchors.names[1], threading.Event()
    answers: list[tuple[float, str, str]] = []
    errors: list[BaseException] = []

    def work(url: str, number: int) -> None:
        try:
            with Client(url) as client:
                turn = 0
                while not stop.is_set():
                    session = client.session(f"s{number}-{turn // 10}")
                    answer = session.append(in_lane(anchors, 1, 1, seed=turn), k=3)
                    assert len(answer.expected) == 3
                    assert answer.lane == lane
                    answers.append((time.monotonic(), answer.model, answer.reason))
                    turn += 1
        except BaseException as error:
            errors.append(error)

    def reload(server: Any) -> None:
        httpx.post(f"{server.url}/v1/models/run1/reload", timeout=PATIENCE).raise_for_status()

    def seen(model: str, reason: str, since: float) -> bool:
        return any(t > since and m == model and reason in r for t, m, r in list(answers))

    def until(what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end and not errors, (errors, answers[-3:])
            time.sleep(0.02)

    options = ("--lanes", str(made / "lanes"), "--expert", f"{lane}=run1")
    with serving([tmp_path / "run0", tmp_path / "run1"], tmp_path / "s", *options) as server:
        clients = [threading.Thread(target=work, args=(server.url, n)) for n in range(8)]
        for client in clients:
            client.start()
        try:
            until(lambda: seen("run1", "expert", 0.0))
            row = np.asarray(Bank.open(made / "bank").rows[0], np.float32)
            whole = spoil(tmp_path / "run1", row, anchors.vectors[1])
            reload(server)
            sick = time.monotonic()
            until(lambda: seen("run0", "expert not finite", sick) and seen("run0", "expert down", sick))
            metrics = httpx.get(f"{server.url}/metrics").text
            assert f'nextvec_expert_up{{lane="{lane}"}} 0.0' in metrics
            assert f'lane="{lane}",reason="expert not finite"' in metrics
            told = {row["lane"]: row for row in httpx.get(f"{server.url}/v1/overview").json()["lanes"]}
            assert (told[lane]["expert"], told[lane]["up"]) == ("run1", False)
            assert told[lane]["failures"] >= ENOUGH
            (tmp_path / "run1" / "best.safetensors").write_bytes(whole)
            reload(server)
            healed = time.monotonic()
            until(lambda: seen("run1", "expert", healed))
        finally:
            stop.set()
            for client in clients:
                client.join(PATIENCE)
    assert not errors
    assert len(answers) > 24


def spoil(run: Path, well: np.ndarray, sick: np.ndarray) -> bytes:
    """Finite weights that pass the first look, at the row ``well``, and overflow at ``sick``; what they were before."""
    path = run / "best.safetensors"
    before = path.read_bytes()
    with safe_open(path, "numpy") as file:
        notes = file.metadata()
    weights = load_file(path)
    centred = [row / np.linalg.norm(row) - weights["trunk.centre"] for row in (well, sick)]
    dimension = int(np.argmax(np.where(centred[0] < 0, centred[1], -1)))
    assert centred[1][dimension] > 0.05
    weights["trunk.weights"], weights["trunk.bias"] = (np.zeros_like(weights[f"trunk.{n}"]) for n in ("weights", "bias"))
    weights["trunk.weights"][0, dimension], weights["trunk.bias"][dimension] = 3e38, 3.4e38
    save_file(weights, path, notes)
    return before


# In a rollout


def test_a_rollout_of_the_shared_model_leaves_experts_their_lanes(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    """In both arms, so that such sessions are no evidence; the others carry their lane to the judge."""

    async def talk(service: Service, lanes: ServedLanes) -> None:
        events: list[SessionEvent] = []
        service.listeners.observe = events.append
        experts = service.routing.snapshot.stable.experts
        await service.models.open("new", made / "run1")
        new = ArmModels(RoutedModel("new"), RoutedModel("new"), experts)
        service.routing.adopt(Snapshot(1, service.routing.snapshot.stable, new, 100.0, "r", time.monotonic() + 3600))
        service.contexts.open("mine")
        assert (await say(service, "mine", in_lane(anchors, 1))).model == "expert"
        assert events == []
        service.contexts.open("other")
        assert (await say(service, "other", in_lane(anchors, 2))).model == "new"
        assert {e.lane for e in events if isinstance(e, Observation)} == {anchors.names[2]}

    served(made, tmp_path, talk)


def test_harm_in_one_lane_alone_is_found_and_named(anchors: Anchors) -> None:
    """Failures of one lane's sessions, none elsewhere: the judge says worse, and the evidence where."""
    from nextvec.rollout.evidence import UnitOutcome as Judged

    evidence = Evidence(strata(anchors))
    for lane in strata(anchors):
        rates = {STABLE: 0.01, CANARY: 0.2 if lane == anchors.names[2] else 0.01}
        for arm, rate in rates.items():
            bad = round(1000 * rate)
            evidence = evidence.after(
                [Judged(FAIL, arm, 50.0, was, lane, count=n) for was, n in ((True, bad), (False, 1000 - bad))]
            )
    assert evidence.verdict().streams[FAIL] == "WORSE"
    counted = {
        stratum: count
        for (stream, stratum, _, _, arm, bad), count in evidence.counts.items()
        if (stream, arm, bad) == (FAIL, CANARY, True)
    }
    assert max(counted, key=lambda lane: counted[lane]) == anchors.names[2]


@pytest.mark.integration
def test_a_rollout_is_judged_by_lanes_where_it_was_drafted_so(
    made: Path, anchors: Anchors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run0", "run1"):
        shutil.copytree(made / name, tmp_path / name)
    start = ["rollout", "start", str(tmp_path / "run1"), "--over", str(tmp_path / "run0"), "--id", "r", "--dwell", "1"]
    ledger = ["--ledger", str(tmp_path / "r.db")]
    assert main([*start, *ledger, "--lanes", str(made / "lanes"), "--budget", "1000000", "--json"]) == 0
    capsys.readouterr()
    held = open_ledger(tmp_path / "r.db")
    quick = ("--turn", "0.05", *ledger)
    lanes = ("--lanes", str(made / "lanes"))
    with serving(tmp_path / "run0", tmp_path / "s", *quick, *lanes) as server, Client(server.url) as client:
        end = time.monotonic() + PATIENCE
        while not any(pair for pair in Evidence.from_json(held.record("r").evidence).pairs):
            for n in range(4):
                session = client.session(f"s{time.monotonic_ns()}")
                session.append(in_lane(anchors, n % LANES, 2), k=3)
                session.delete()
            assert time.monotonic() < end, held.rows("r")[-1].cause
            assert held.record("r").active, held.rows("r")[-1].cause
    held.close()
    assert Evidence.from_json(open_ledger(tmp_path / "r.db").record("r").evidence).strata == (*anchors.names, UNSURE)


@pytest.mark.integration
def test_a_server_without_the_rollouts_lanes_does_not_take_part(made: Path, tmp_path: Path) -> None:
    for name in ("run0", "run1"):
        shutil.copytree(made / name, tmp_path / name)
    start = ["rollout", "start", str(tmp_path / "run1"), "--over", str(tmp_path / "run0"), "--id", "r"]
    assert main([*start, "--ledger", str(tmp_path / "r.db"), "--lanes", str(made / "lanes"), "--budget", "1000000"]) == 0
    held = open_ledger(tmp_path / "r.db")
    with serving(tmp_path / "run0", tmp_path / "s", "--ledger", str(tmp_path / "r.db"), "--turn", "0.05"):
        until(lambda: not held.record("r").active)
    assert "compared by other lanes" in held.rows("r")[-1].cause
    held.close()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expert", "cluster 1=run1"], "--expert needs --lanes FOLDER"),
        (["--lanes", "LANES", "--expert", "cluster 1"], "want LANE=NAME"),
        (["--lanes", "LANES", "--expert", "cluster 1=run7"], "'run7' is not served; name one of run0, run1"),
        (["--lanes", "LANES", "--expert", "law=run1"], "there is no lane 'law'; the lanes are cluster 0, cluster 1, cluster 2"),
        (["--lanes", "LANES", "--expert", "cluster 1=run1", "--expert", "cluster 1=run0"], "each lane once"),
        (["--lanes", "NOWHERE"], "holds no lanes"),
    ],
)
def test_lanes_that_cannot_be_served_are_named(made: Path, tmp_path: Path, options: list[str], message: str) -> None:
    named = [o.replace("LANES", str(made / "lanes")).replace("NOWHERE", str(tmp_path)) for o in options]
    runs = [str(made / "run0"), str(made / "run1")]
    done = nextvec("serve", *runs, "--port", "0", "--sessions", str(tmp_path / "s"), *named)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_anchors_of_another_encoder_or_damaged_are_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lanes", tmp_path / "lanes")
    with pytest.raises(DataError, match="not of other, 16 wide"):
        Anchors.open(tmp_path / "lanes", "other", DIM)
    with pytest.raises(DataError, match="not of t, 8 wide"):
        Anchors.open(tmp_path / "lanes", "t", 8)
    content = bytearray((tmp_path / "lanes" / "anchors.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "lanes" / "anchors.safetensors").write_bytes(bytes(content))
    with pytest.raises(DataError, match="not what was written"):
        Anchors.open(tmp_path / "lanes", "t", DIM)


def test_an_expert_of_another_bank_is_refused(made: Path, tmp_path: Path) -> None:
    async def talk(service: Service, lanes: ServedLanes) -> None:
        foreign = replace(service.models["expert"], engine=_of_another_bank(service.models["expert"].engine))
        service.models._models = {**service.models, "expert": foreign}
        with pytest.raises(ServingError, match="looks predictions up in another bank"):
            service.routing.specialise(lanes)

    served(made, tmp_path, talk)


def _of_another_bank(engine: Engine) -> Engine:
    return Engine(engine.model, Bank.from_numpy(rows_of(40), [20, 20]))


def test_answers_say_their_lane_as_json(made: Path, anchors: Anchors, tmp_path: Path) -> None:
    options = ("--lanes", str(made / "lanes"))
    with serving(made / "run0", tmp_path / "s", *options) as server:
        body = json.dumps({"vectors": in_lane(anchors, 2).tolist()})
        found = httpx.post(f"{server.url}/v1/predict", content=body, headers={"content-type": "application/json"}).json()
    assert (found["answers"][0] if "answers" in found else found)["lane"] == anchors.names[2]
