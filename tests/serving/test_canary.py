"""A rollout on a real server: who answers, what stops it, and what is there after a kill."""

import itertools
import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextvec.client import Client
from nextvec.inference import Engine
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, fold, intervene
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.simulation.harms import EQUAL
from nextvec.rollout.simulation.table import simulate
from nextvec.rollout.simulation.traffic import recorded
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from tests.serving.server import Running, rows_of, serving
from tests.waiting import PATIENCE, until

STEPS = (CanaryStep(5.0, 0.0, 10**6), CanaryStep(50.0, 0.0, 10**6), CanaryStep(98.0, 0.0, 10**6))
QUICK = ("--turn", "0.05")
PERSON = "tester"


def draft(ledger: Ledger, folder: Path, **plan: Any) -> str:
    stable, canary = (identity(name, Engine.open(folder / name).digest) for name in ("run0", "run1"))
    terms = Plan(**({"harm": 3.0, "base": 0.01, "steps": STEPS, "lease": 2.0} | plan))
    create(ledger, "r", "default", terms, stable=stable, canary=canary, actor=PERSON, evidence=Evidence(bands()))
    intervene(ledger, "r", Command("start", PERSON))
    return "r"


def served(folder: Path) -> Any:
    return serving(folder / "run0", folder / "sessions", "--ledger", str(folder / "rollouts.db"), *QUICK)


def state(ledger: Ledger) -> str:
    return ledger.record("r").state


def talk(client: Client, name: str, count: int = 3) -> list[Any]:
    session = client.session(name)
    return [session.append(rows_of(1, session.seq or 0), k=3) for _ in range(count)]


def person(server: Running, verb: str) -> str:
    return httpx.post(f"{server.url}/v1/rollouts/r/{verb}", json={"reason": "test"}).raise_for_status().json()["state"]


def test_a_person_carries_a_canary_up_and_it_stays_up(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    with served(folder) as server, Client(server.url) as client:
        before = talk(client, "s")
        assert {a.model for a in before} == {"run0"}
        assert person(server, "promote") == "CANARY(0)"
        assert person(server, "promote") == "CANARY(1)"
        assert person(server, "promote") == "FULL"

        def arms() -> set[str]:
            return {a.arm for n in range(30) for a in talk(client, f"s{n}", 1)}

        until(lambda: "canary" in arms())
        assert person(server, "promote") == "PROMOTED"
        until(lambda: {a.model for a in talk(client, "t")} == {"run1"})
        told = httpx.get(f"{server.url}/v1/rollouts").json()
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["current"] is None)
        assert told["trouble"] is None
    again = serving([folder / "run0", folder / "run1"], folder / "sessions", "--ledger", str(folder / "rollouts.db"))
    with again as server, Client(server.url) as client:
        want = Engine.open(folder / "run1").session()
        session = client.session("s")
        want.push_many(np.concatenate([rows_of(1, n) for n in range(session.seq or 0)]))
        answer = session.predict(3)
        assert answer.model == "run1"
        assert [e.row for e in answer.expected] == [e.row for e in want.predict(3)]


@pytest.mark.integration
def test_a_canary_of_other_weights_than_were_checked_never_answers(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    spoil(folder / "run1", 1.5)
    with served(folder):
        until(lambda: state(ledger) == "REJECTED")
    assert "other weights" in ledger.rows("r")[-1].cause


@pytest.mark.integration
@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"weights": [1.0]}), (2**63 - 1).to_bytes(8, "little") + b"{}", b"", b"\x08" + bytes(7) + b"not json"],
    ids=["a pickle", "a header of 2^63 bytes", "nothing", "no JSON"],
)
def test_what_only_calls_itself_safetensors_is_never_opened(ledger: Ledger, folder: Path, content: bytes) -> None:
    draft(ledger, folder)
    (folder / "run1" / "best.safetensors").write_bytes(content)
    with served(folder) as server, Client(server.url) as client:
        until(lambda: state(ledger) == "REJECTED")
        assert {a.model for a in talk(client, "s")} == {"run0"}
    cause = ledger.rows("r")[-1].cause
    assert "cannot be served" in cause
    assert "/" not in cause


@pytest.mark.integration
def test_a_name_that_leads_elsewhere_opens_nothing(ledger: Ledger, folder: Path, made: Path) -> None:
    shutil.rmtree(folder / "run1")
    (folder / "run1").symlink_to(made / "run1")
    stable, canary = (identity(name, Engine.open(made / name).digest) for name in ("run0", "run1"))
    terms = Plan(3.0, 0.01, STEPS)
    create(ledger, "r", "default", terms, stable=stable, canary=canary, actor=PERSON, evidence=Evidence(bands()))
    intervene(ledger, "r", Command("start", PERSON))
    with served(folder):
        until(lambda: state(ledger) == "REJECTED")


@pytest.mark.integration
def test_a_canary_that_knows_nothing_is_rejected_in_the_shadow_and_nobody_saw_it(ledger: Ledger, folder: Path) -> None:
    spoil(folder / "run1", 3e38, "trunk.weights")  # whatever it reads, it expects nothing in particular
    draft(ledger, folder)
    held = Engine.open(folder / "run0").bank
    models: set[str] = set()
    with served(folder) as server, Client(server.url) as client:
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])
        end = time.monotonic() + PATIENCE
        for n in itertools.count():
            if state(ledger) == "REJECTED":
                break
            assert time.monotonic() < end, ledger.record("r").evidence["log_e"]
            session, first = client.session(f"p{n}"), int(held.offsets[n % held.num_documents])
            for row in range(first, first + 12):
                models.add(session.append_rows([row], k=3).model)
                # The mirrored answer is to be there before the next append labels it: more time, the longer it takes.
                time.sleep(0.005 * (1 + n // 20))
            session.delete()
    assert models == {"run0"}
    assert "worse: miss" in ledger.rows("r")[-1].cause
    counted = ledger.record("r").evidence["pairs"]
    assert {stream for stream, *_ in counted} == {"fail", "miss"}


def test_a_killed_server_goes_on_with_the_rollout_where_it_was(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    with served(folder) as server:
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])
        person(server, "promote")
        server.kill()
    assert state(ledger) == str(fold(ledger.rows("r"))) == "CANARY(0)"
    with served(folder) as server:
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])  # half a lease later
        assert person(server, "abort") == "ROLLING_BACK"
        until(lambda: state(ledger) == "ROLLED_BACK")
    assert ledger.verify() == len(ledger.rows())


@pytest.mark.integration
def test_recorded_traffic_can_be_rolled_out_dry(folder: Path) -> None:
    path = folder / "traffic.jsonl"
    with serving(folder / "run0", folder / "sessions", "--record", str(path)) as server, Client(server.url) as client:
        for n in range(3):
            session = client.session(f"t{n}")
            for row in range(4):
                session.append_rows([row], k=3)
            session.delete()
        until(lambda: len(path.read_text().splitlines()) == 12)
    traffic = recorded(path)
    assert sorted(traffic.hit.tolist())[:3] == [-1] * 3  # what nothing followed
    assert (traffic.hit >= 0).sum() == 9
    assert traffic.vectors.tolist() == [1, 2, 3, 4] * 3
    (row,) = simulate(traffic, [EQUAL], 10, rules=False)
    assert row["rolled_back"] == 0


@pytest.mark.integration
def test_no_traffic_pauses(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder, silence=0.5)
    with served(folder):
        until(lambda: state(ledger) == "PAUSED(SHADOW)")
    assert "no evidence" in ledger.rows("r")[-1].cause


@pytest.mark.integration
def test_a_ledger_that_rots_stops_the_canary_and_no_answer(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    for _ in range(3):
        intervene(ledger, "r", Command("promote", PERSON))
    assert state(ledger) == "FULL"
    with served(folder) as server, Client(server.url) as client:
        until(lambda: any(a.arm == "canary" for n in range(10) for a in talk(client, f"s{n}", 1)))

        def rot() -> None:  # again and again: a transaction that is under way may write good pages over bad ones
            for path in folder.glob("rollouts.db*"):
                with path.open("r+b") as file:
                    file.write(b"\xff" * path.stat().st_size)

        def arms() -> set[str]:
            rot()
            return {a.arm for n in range(10) for a in talk(client, f"s{n}", 1)}

        until(lambda: arms() == {"stable"})
        answer = httpx.get(f"{server.url}/v1/rollouts")
        assert answer.status_code == 503
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    log = (folder / "sessions.log").read_text().splitlines()
    assert any("trouble" in json.loads(line) for line in log)


@pytest.mark.integration
def test_what_people_may_not_do_is_refused(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    with served(folder) as server:
        ask = lambda path, **more: httpx.post(f"{server.url}/v1/rollouts/{path}", **more)  # noqa: E731
        assert ask("r/resume").status_code == 409
        assert ask("unknown/abort").status_code == 404
        assert ask("r/explode").status_code == 404
        assert ask("r/abort", json={"reason": "x" * 501}).status_code == 400
        assert ask("r/abort", json={"because": "x"}).status_code == 400
        assert state(ledger) == "SHADOW"
    with serving(folder / "run0", folder / "alone") as server:
        assert httpx.get(f"{server.url}/v1/rollouts").json() == {
            "current": None, "past": [], "trouble": None, "watching": False,
        }  # fmt: skip
        assert httpx.post(f"{server.url}/v1/rollouts/r/abort").status_code == 404


def spoil(run: Path, times: float, part: str = "") -> None:
    """The same run with weights ``times`` as large where their names begin so."""
    path = run / "best.safetensors"
    with safe_open(path, "numpy") as file:
        notes = file.metadata()
    weights = load_file(path)
    weights = {name: np.asarray(w * w.dtype.type(times if name.startswith(part) else 1)) for name, w in weights.items()}
    save_file(weights, path, notes)
