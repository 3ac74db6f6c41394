"""Engines in processes of their own: what they say is what an engine says, and what becomes of them is their own affair."""

import asyncio
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextvec.client import Client
from nextvec.errors import DataError, RunError, ServingError
from nextvec.inference import Engine, PredictionRequest
from nextvec.inference.place import ComputePlace
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.serving import engine_process, isolated_engine
from nextvec.serving.answering import Answering, EndedError
from nextvec.serving.isolated_engine import IsolatedEngine
from nextvec.serving.limits import Limits
from nextvec.serving.payload import from_rows
from nextvec.serving.service import Service
from tests.serving.server import Running, asking, rows_of, serving
from tests.waiting import PATIENCE, until

STEPS = (CanaryStep(50.0, 0.0, 10**6), CanaryStep(98.0, 0.0, 10**6))
ISOLATED = ("--isolate", "--turn", "0.05")


@pytest.fixture
def engine(made: Path) -> Iterator[IsolatedEngine]:
    opened = IsolatedEngine(made / "run0", Engine.open)
    yield opened
    opened.close()


def told(answers: list[Any]) -> list[list[tuple[int, float, str, str | None]]]:
    return [[(e.row, e.score, e.document, e.text) for e in answer] for answer in answers]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# One engine


def test_it_says_what_the_engine_says(made: Path, engine: IsolatedEngine) -> None:
    here = Engine.open(made / "run0")
    assert (engine.digest, engine.dim, engine.encoder_fingerprint, engine.context, engine.weights) == (
        here.digest,
        here.dim,
        here.encoder_fingerprint,
        here.context,
        here.weights,
    )
    near, far = [here.session() for _ in range(4)], [engine.session() for _ in range(4)]
    for turn, counts in enumerate([(1, 1, 1, 1), (3, 1, 1, 2), (1, 1, 0, 5)]):
        rows = [rows_of(count, 10 * turn + n) for n, count in enumerate(counts)]
        want = here.answers([PredictionRequest(s, r, 3) for s, r in zip(near, rows, strict=True)])
        asked = [PredictionRequest(s, r, 3) for s, r in zip(far, rows, strict=True)]
        assert told(engine.answers(asked)) == told(want)
        assert [len(request.rows) for request in asked] == [0, 0, 0, 0]
        assert [s.length for s in far] == [s.length for s in near]
        assert [s.num_bytes for s in far] == [s.num_bytes for s in near]
    near[0].catch_up(rows_of(50, 99))
    far[0].catch_up(rows_of(50, 99))
    assert (far[0].length, far[0].num_bytes) == (near[0].length, near[0].num_bytes)
    assert far[0].snapshot() == near[0].snapshot()
    moved = engine.restore(near[0].snapshot())
    assert (moved.length, moved.num_bytes) == (near[0].length, here.restore(near[0].snapshot()).num_bytes)
    assert told(engine.answers([PredictionRequest(moved, rows_of(1, 98), 3)])) == told(
        here.answers([PredictionRequest(near[0], rows_of(1, 98), 3)])
    )
    with pytest.raises(DataError, match="damaged"):
        engine.restore(near[0].snapshot()[:-1])
    assert engine.nearest(rows_of(4, 7)).tolist() == here.nearest(rows_of(4, 7)).tolist()
    assert engine.nearest(np.asarray(here.bank.rows[5:7])).tolist() == [5, 6]


def test_an_engine_says_where_it_computes(made: Path, engine: IsolatedEngine) -> None:
    here: Answering = Engine.open(made / "run0")
    assert here.place == ComputePlace(isolated=False, pid=os.getpid())
    assert engine.place.isolated
    assert engine.place.pid is not None
    assert is_alive(engine.place.pid)
    assert engine.place.pid != os.getpid()
    states = [each.session() for each in (here, engine)]
    assert [state.lost for state in states] == [False, False]
    for each in (here, engine):
        each.retire()
    assert [state.lost for state in states] == [False, True]


def test_one_session_fails_alone(engine: IsolatedEngine) -> None:
    requests = [PredictionRequest(engine.session(), rows_of(1, n), 2) for n in range(3)]
    requests[1].rows = np.full((1, engine.dim), np.nan, np.float32)
    first, second, third = engine.answers(requests)
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert isinstance(second, ServingError)
    assert "not a finite" in str(second)
    with pytest.raises(ServingError, match="zero"):
        engine.nearest(np.zeros((1, engine.dim), np.float32))
    with pytest.raises(ServingError, match="vectors only"):
        engine.cut("a text")


@pytest.mark.integration
def test_states_that_nobody_holds_are_forgotten(engine: IsolatedEngine) -> None:
    for n in range(50):
        engine.answers([PredictionRequest(engine.session(), rows_of(1, n), 1)])
    kept = engine.session()
    gc.collect()
    engine.answers([PredictionRequest(kept, rows_of(1), 1)])
    assert engine.held == 1


def test_who_is_killed_is_there_again_without_its_states(made: Path) -> None:
    said: list[str] = []
    engine = IsolatedEngine(made / "run0", Engine.open, lambda _, detail: said.append(detail))
    try:
        old, pid = engine.session(), engine.place.pid
        (want,) = engine.answers([PredictionRequest(old, rows_of(1), 3)])
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: bool(said))
        assert engine.place.pid is None
        (answer,) = engine.answers([PredictionRequest(engine.session(), rows_of(1), 3)])
        assert isinstance(answer, EndedError)
        until(lambda: len(said) == 2)
        assert engine.place.pid not in (None, pid)
        assert "SIGKILL" in said[0]
        assert "runs again" in said[1]
        lost, again = engine.answers(
            [PredictionRequest(old, rows_of(1), 3), PredictionRequest(engine.session(), rows_of(1), 3)]
        )
        assert isinstance(lost, EndedError)
        assert told([again]) == told([want])
        with pytest.raises(EndedError):
            old.snapshot()
    finally:
        engine.close()


@pytest.mark.integration
@pytest.mark.parametrize("way", ["answers", "reading"])
def test_who_hangs_is_ended(made: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(isolated_engine, "ANSWER_SECONDS", 1.0 if way == "answers" else 1e9)
    monkeypatch.setattr(isolated_engine, "READ_SECONDS", 1.0 if way == "reading" else 1e9)
    said: list[str] = []
    engine = IsolatedEngine(made / "run0", Engine.open, lambda _, detail: said.append(detail))
    try:
        assert engine.place.pid is not None
        os.kill(engine.place.pid, signal.SIGSTOP)
        rows = rows_of(100_000)  # more than a socket holds: it is the sending that waits
        if way == "answers":
            (answer,) = engine.answers([PredictionRequest(engine.session(), rows, 3)])
            assert isinstance(answer, EndedError)
        else:
            with pytest.raises(EndedError):
                engine.session().catch_up(rows)
        for name in ("ANSWER_SECONDS", "READ_SECONDS"):  # a sound process may take its time
            monkeypatch.setattr(isolated_engine, name, 1e9)
        until(lambda: engine.fault is None and bool(said))
        assert re.search(r"the process did not answer for [\d.]+ s", said[0])
        assert isinstance(engine.answers([PredictionRequest(engine.session(), rows_of(1), 3)])[0], list)
    finally:
        engine.close()


@pytest.mark.integration
def test_answers_do_not_wait_behind_who_reads(engine: IsolatedEngine) -> None:
    reading = threading.Thread(target=lambda: engine.session().catch_up(rows_of(60_000)))
    reading.start()
    answered = 0
    while reading.is_alive():
        assert isinstance(engine.answers([PredictionRequest(engine.session(), rows_of(1), 1)])[0], list)
        answered += 1
    reading.join()
    assert answered > 2


@pytest.mark.integration
def test_labels_and_answers_do_not_wait_behind_a_text_or_a_long_context(made: Path, tmp_path: Path) -> None:
    """Of a process whose encoder waits for a file to appear, and whose reading does, too."""
    engine = IsolatedEngine(made / "run0", partial(_waiting_for, tmp_path / "go"))
    try:
        texts: list[np.ndarray] = []
        encoding = threading.Thread(target=lambda: texts.append(engine.encode_chunks(engine.cut("a text"))))
        session = engine.session()
        reading = threading.Thread(target=lambda: session.catch_up(rows_of(50)))
        for thread in (encoding, reading):
            thread.start()
        until((tmp_path / "go.encode").exists)
        until((tmp_path / "go.read").exists)
        assert engine.nearest(np.asarray(engine.bank.rows[5:6])).tolist() == [5]
        assert isinstance(engine.answers([PredictionRequest(engine.session(), rows_of(1), 1)])[0], list)
        assert not texts
        assert session.length == 0
        (tmp_path / "go").touch()
        for thread in (encoding, reading):
            thread.join()
        assert texts[0].shape == (1, engine.dim)
        assert session.length == 50
    finally:
        engine.close()


def _waiting_for(file: Path, run: Path) -> Engine:
    engine: Any = Engine.open(run)
    read = engine.read

    def wait(what: str) -> None:
        file.with_suffix(f".{what}").touch()
        until(file.exists)

    def encode_chunks(chunks: Sequence[str]) -> np.ndarray:
        wait("encode")
        return np.ones((len(chunks), engine.dim), np.float32)

    def slowly(session: Any, vectors: np.ndarray) -> np.ndarray:
        wait("read")
        return read(session, vectors)

    engine.cut, engine.encode_chunks, engine.read = lambda text: [text], encode_chunks, slowly
    return engine


@pytest.mark.integration
def test_a_run_that_cannot_be_opened_is_refused_with_its_reason(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no run"):
        IsolatedEngine(tmp_path / "none", Engine.open)
    with pytest.raises(RunError, match=r"exit code 3"):
        IsolatedEngine(made / "run0", _ends)


def _ends(_: Path) -> Engine:
    os._exit(3)


def hangs(run: Path) -> Engine:
    threading.Event().wait()
    return Engine.open(run)


@pytest.mark.integration
def test_a_run_that_never_opens_is_given_up(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "OPEN_SECONDS", 0.5)
    with pytest.raises(RunError, match=r"ended while it opened the run \(it took more than 0.5 s\)"):
        IsolatedEngine(made / "run0", hangs)


@pytest.mark.integration
def test_another_model_in_its_place_is_not_served_by_accident(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run0", tmp_path / "run")
    said: list[str] = []
    engine = IsolatedEngine(tmp_path / "run", Engine.open, lambda _, detail: said.append(detail))
    try:
        shutil.copyfile(made / "run1" / "best.safetensors", tmp_path / "run" / "best.safetensors")
        assert engine.place.pid is not None
        os.kill(engine.place.pid, signal.SIGKILL)
        until(lambda: any("another model" in line for line in said))
        assert "reload" in str(engine.fault)
    finally:
        engine.close()


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux alone says whom it ends first")
def test_it_is_ended_before_the_server_where_memory_runs_out(engine: IsolatedEngine) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{engine.place.pid}/oom_score_adj").read_text()) > own


# A server


def start(ledger: Ledger, folder: Path) -> None:
    """A rollout that gives half of the sessions to the canary."""
    stable, canary = (identity(name, Engine.open(folder / name).digest) for name in ("run0", "run1"))
    terms = Plan(harm=3.0, base=0.01, steps=STEPS, lease=2.0)
    create(ledger, "r", "default", terms, stable=stable, canary=canary, actor="tester", evidence=Evidence(bands()))
    for verb in ("start", "promote"):
        intervene(ledger, "r", Command(verb, "tester"))


def served(folder: Path, *options: str) -> Any:
    runs = [folder / "run0", folder / "run1"]
    return serving(runs, folder / "sessions", *ISOLATED, *options)


def processes(server: Running) -> dict[str, int | None]:
    return {model["name"]: model["process"] for model in httpx.get(f"{server.url}/v1/models").json()["models"]}


def warm(client: Client, names: list[str], arm: str | None = None) -> None:
    """Every session has been answered, and some by this arm."""
    seen = {client.session(name).append(rows_of(1, n), k=3).arm for n, name in enumerate(names)}
    assert arm is None or arm in seen


@pytest.mark.integration
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_canary_whose_process_is_ended_or_hangs_is_answered_for_and_rolled_back(
    ledger: Ledger, folder: Path, harm: signal.Signals
) -> None:
    start(ledger, folder)
    names = [f"s{n}" for n in range(16)]
    # A process that is stopped is late whatever the budget is; one that has ended says so itself.
    late = ("--budget-ms", "500") if harm is signal.SIGSTOP else ()
    with served(folder, "--ledger", str(folder / "rollouts.db"), *late) as server, Client(server.url) as client:
        until(lambda: bool(httpx.get(f"{server.url}/v1/rollouts").json()["watching"]))
        until(lambda: "canary" in {client.session(name).append(rows_of(1), k=3).arm for name in names})
        own = processes(server)
        assert server.process.pid not in own.values()
        reasons: set[str] = set()
        end = time.monotonic() + PATIENCE
        while ledger.record("r").state not in ("ROLLING_BACK", "ROLLED_BACK"):
            assert time.monotonic() < end, (ledger.record("r").state, reasons)
            pid = processes(server)["run1"]
            with suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, harm)
            for n, name in enumerate(names):
                answer = client.session(name).append(rows_of(1, n), k=3)  # raises where a status is not 200
                assert len(answer.expected) == 3
                reasons.add(answer.reason)
        assert reasons & ({"canary EndedError"} if harm is signal.SIGKILL else {"canary late"}), reasons
        until(lambda: ledger.record("r").state == "ROLLED_BACK")
        after = [client.session(name).append(rows_of(1, n), k=3) for n, name in enumerate(names)]
        assert {answer.model for answer in after} == {"run0"}
        assert processes(server)["run0"] == own["run0"]
        assert "stable had to answer" in ledger.rows("r")[-1].cause or "stable had to answer" in ledger.rows("r")[-2].cause


def test_when_the_stable_process_is_killed_nothing_is_lost_and_requests_wait_for_it(folder: Path) -> None:
    with served(folder) as server, Client(server.url) as client:
        names = [f"s{n}" for n in range(8)]
        warm(client, names)
        pid = processes(server)["run0"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        with ThreadPoolExecutor(len(names)) as many:
            answers = list(many.map(lambda name: client.session(name).append(rows_of(1, 77), k=3), names))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert processes(server)["run0"] not in (None, pid)
        here = Engine.open(folder / "run0")
        for n, answer in enumerate(answers):
            want = here.session()
            want.push(rows_of(1, n)[0])
            want.push(rows_of(1, 77)[0])
            assert answer.length == 2
            assert [e.row for e in answer.expected] == [e.row for e in want.predict(3)]
        assert 'nextvec_engine_ends_total{model="run0"} 1.0' in httpx.get(f"{server.url}/metrics").text
    assert "SIGKILL" in (folder / "sessions.log").read_text()


@pytest.mark.integration
def test_a_deadline_before_the_process_is_there_again_is_a_503(folder: Path) -> None:
    with served(folder) as server, Client(server.url) as client:
        warm(client, ["s"])
        pid = processes(server)["run0"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        said = httpx.post(f"{server.url}/v1/sessions/s/predict", headers={"x-deadline-ms": "300"})
        assert said.status_code == 503
        assert said.headers["retry-after"] == "1"
        assert said.json()["detail"] == "the model's process has ended and is being started again"
        assert (said.json()["seq"], said.json()["length"]) == (1, 1)


@pytest.mark.integration
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_server(folder: Path, end: signal.Signals) -> None:
    with served(folder) as server:
        own = [pid for pid in processes(server).values() if pid is not None]
        assert len(own) == 2
        if end is signal.SIGINT:  # a terminal tells all of them
            for pid in own:
                os.kill(pid, end)
            assert all(map(is_alive, own))
        server.process.send_signal(end)
        assert server.process.wait(PATIENCE) == (-9 if end is signal.SIGKILL else 0)
        until(lambda: not any(map(is_alive, own)))


@pytest.mark.integration
def test_a_start_that_is_refused_ends(folder: Path) -> None:
    (folder / "run1" / "best.safetensors").write_bytes(b"")
    command = ["nextvec.cli.main", "serve", str(folder / "run0"), str(folder / "run1"), "--isolate", "--port", "0"]
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 2
    assert "best.safetensors" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.integration
def test_a_reload_ends_the_old_process_and_mixes_up_no_sessions(folder: Path) -> None:
    here = Engine.open(folder / "run0")
    with served(folder) as server, Client(server.url) as client:
        names = [f"s{n}" for n in range(6)]
        warm(client, names)
        before = processes(server)
        assert httpx.post(f"{server.url}/v1/models/run0/reload", timeout=PATIENCE).status_code == 200
        after = processes(server)
        assert after["run0"] not in (None, before["run0"])
        assert after["run1"] == before["run1"]
        assert not is_alive(int(before["run0"] or 0))
        for n, name in reversed(list(enumerate(names))):  # in the new process their states get other numbers
            want = here.session()
            want.push_many(np.concatenate([rows_of(1, n), rows_of(1, 50 + n)]))
            answer = client.session(name).append(rows_of(1, 50 + n), k=3)
            expected = want.predict(3)
            assert [e.row for e in answer.expected] == [e.row for e in expected]
            assert [e.score for e in answer.expected] == pytest.approx([e.score for e in expected])


def children_of(server: Running) -> set[str]:
    """Process ids of the server's living child processes."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {pid for pid in pids if is_alive(int(pid))}


@pytest.mark.integration
def test_states_of_a_replaced_process_go_when_the_new_one_answers(made: Path, tmp_path: Path) -> None:
    """While the old process still gives its last answers, the new one makes its own states: it gets none of the old."""

    async def main() -> None:
        service = Service({"m": made / "run0"}, lambda run: IsolatedEngine(run, Engine.open), tmp_path / "s", Limits())
        until, old = asyncio.get_running_loop().time() + PATIENCE, service.models["m"]
        try:
            for name in ("a", "b"):
                service.contexts.open(name)
                await service.sessions.append(name, from_rows(rows_of(3, 1)), None, 3, asking(name), until)
            digest = old.engine.digest
            with old.queue.used():
                state = service.states.take("b", digest)
                assert state is not None
                reloading = asyncio.create_task(service.models.reload("m"))
                while service.models["m"] is old:
                    await asyncio.sleep(0.005)
                assert service.states.length("a", digest) == 0
                service.rebuilds.put(old.queue, "b", service.contexts.view("b"), state)  # in use meanwhile
                assert service.states.length("b", digest) == 0
            await reloading
        finally:
            await service.close()

    asyncio.run(main())


@pytest.mark.integration
def test_a_reload_that_is_refused_leaves_no_process(folder: Path) -> None:
    with served(folder) as server:
        before, children = processes(server), children_of(server)
        weights = folder / "run0" / "best.safetensors"
        with safe_open(weights, "np") as file:
            notes = file.metadata()
        save_file({name: np.full_like(x, np.nan) for name, x in load_file(weights).items()}, weights, notes)
        assert httpx.post(f"{server.url}/v1/models/run0/reload", timeout=PATIENCE).status_code == 409
        assert processes(server) == before
        until(lambda: children_of(server) == children)


@pytest.mark.integration
def test_a_session_is_refused_as_by_an_engine(engine: IsolatedEngine) -> None:
    with pytest.raises((DataError, ServingError), match="zero"):
        engine.session().catch_up(np.zeros((3, engine.dim), np.float32))
