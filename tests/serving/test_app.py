"""The real server, over real sockets: what was acknowledged stays, what is wrong is refused, and a stop drops nothing."""

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import get_type_hints

import httpx
import jsonschema
import numpy as np
import pytest

from nextvec.client import Client, SeqConflictError
from nextvec.inference import Engine
from nextvec.serving import openapi, routes
from nextvec.serving.control import Control
from nextvec.serving.handlers import Handlers
from nextvec.serving.state_cache import OVERHEAD
from nextvec.wire.limits import most_body, most_rows
from nextvec.wire.media import F16, F32
from tests.serving.server import DIM, Running, request, rows_of, serving
from tests.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    return made / "run0"


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(run, tmp_path_factory.mktemp("server") / "sessions") as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def check(answer: httpx.Response, schema: str) -> dict[str, object]:
    """An answer is what the document says of it."""
    whole = {"$ref": f"#/components/schemas/{schema}", **openapi.document(DIM)}
    jsonschema.Draft202012Validator(whole).validate(answer.json())
    return answer.json()


def test_an_answer_is_the_engines(http: httpx.Client, run: Path) -> None:
    engine, rows = Engine.open(run), rows_of(30, 1)
    session = engine.session()
    http.put("/v1/sessions/equal")
    for n, row in enumerate(rows):
        session.push(row)
        kind, payload = (F16, row.astype("<f2")) if n == 99 else (F32, row)
        answer = http.post(
            f"/v1/sessions/equal/append?seq={n + 1}&k=7", content=payload.tobytes(), headers={"content-type": kind}
        )
        found = check(answer, "PredictionAnswer")
        want = session.predict(7)
        assert [e["row"] for e in found["expected"]] == [e.row for e in want]  # type: ignore[attr-defined, index]
        np.testing.assert_allclose([e["score"] for e in found["expected"]], [e.score for e in want], atol=1e-5)  # type: ignore[attr-defined, index]
        assert (found["seq"], found["length"], found["digest"]) == (n + 1, n + 1, engine.digest)
    once = http.post("/v1/predict?k=7", content=rows.tobytes(), headers={"content-type": F32})
    assert [e["row"] for e in once.json()["expected"]] == [e.row for e in session.predict(7)]
    batch = http.post("/v1/predict/batch?k=3&lengths=10,20", content=rows.tobytes(), headers={"content-type": F32})
    assert [a["length"] for a in check(batch, "BatchAnswer")["answers"]] == [10, 20]  # type: ignore[attr-defined, index]
    saved = http.get("/v1/sessions/equal/snapshot")
    assert [e.row for e in engine.restore(saved.content).predict(7)] == [e.row for e in session.predict(7)]


def test_the_three_ways_to_name_vectors(http: httpx.Client, run: Path) -> None:
    bank = Engine.open(run).bank
    http.put("/v1/sessions/ways")
    rows = np.asarray(bank.rows[3:5], np.float32)
    answers = [
        http.post("/v1/predict?text=1", json={"rows": [3, 4]}),
        http.post("/v1/predict?text=1", json={"vectors": rows.tolist()}),
        http.post("/v1/predict?text=1", content=rows.tobytes(), headers={"content-type": F32}),
    ]
    found = [check(answer, "PredictionAnswer")["expected"] for answer in answers]
    assert found[0] == found[1] == found[2]
    assert found[0][0]["text"] is None  # type: ignore[index]
    assert http.post("/v1/predict", json={"text": "once upon a time"}).status_code == 422  # a bank of vectors only


def test_a_retry_is_answered_and_not_applied(http: httpx.Client) -> None:
    http.put("/v1/sessions/retry")
    row = rows_of(1, 2).tobytes()
    headers = {"content-type": F32}
    first, again = (http.post("/v1/sessions/retry/append?seq=1&k=4", content=row, headers=headers).json() for _ in range(2))
    assert first["expected"] == again["expected"]
    assert again["length"] == 1
    for seq, content in ((1, rows_of(1, 3).tobytes()), (3, row)):
        refused = http.post(f"/v1/sessions/retry/append?seq={seq}", content=content, headers=headers)
        problem = check(refused, "Problem")
        assert (refused.status_code, problem["seq"], problem["length"]) == (409, 1, 1)
        assert refused.headers["content-type"] == "application/problem+json"


def test_a_retry_storm_applies_each_append_once(server: Running) -> None:
    with Client(server.url) as client:
        client.session("storm")
    rows = rows_of(40, 4)

    def writer(_: int) -> int:
        conflicts = 0
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            for n, row in enumerate(rows):
                for _ in range(2):
                    answer = http.post(
                        f"/v1/sessions/storm/append?seq={n + 1}&k=1", content=row.tobytes(), headers={"content-type": F32}
                    )
                    assert answer.status_code in (200, 409)
                    conflicts += answer.status_code == 409
        return conflicts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, range(4)))
    with Client(server.url) as client:
        session = client.session("storm")
        assert (session.seq, session.length) == (40, 40)
        assert [e.row for e in session.predict(5).expected] == [e.row for e in client.predict(rows, 5).expected]


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("POST", "/v1/sessions/none/append", rows_of(1).tobytes(), F32, 404),
        ("POST", "/v1/sessions/none/predict", b"", "", 404),
        ("GET", "/v1/sessions/none", b"", "", 404),
        ("DELETE", "/v1/sessions/none", b"", "", 404),
        ("PUT", "/v1/sessions/a.b", b"", "", 400),
        ("PUT", "/v1/sessions/" + "a" * 65, b"", "", 400),
        ("PUT", "/v1/sessions/a%00", b"", "", 400),
        ("PUT", "/v1/sessions/%2e%2e", b"", "", 400),
        ("PUT", "/v1/sessions/..%2f..%2fetc", b"", "", 404),
        ("GET", "/v1/sessions/../../../etc/passwd", b"", "", 404),
        ("POST", "/v1/models", b"", "", 405),
        ("POST", "/v1/models/other/reload", b"", "", 404),
        ("POST", "/v1/predict", b"", F32, 400),
        ("POST", "/v1/predict", rows_of(1).tobytes()[:-1], F32, 400),
        ("POST", "/v1/predict", np.full(DIM, np.nan, "<f4").tobytes(), F32, 400),
        ("POST", "/v1/predict", np.zeros(DIM, "<f4").tobytes(), F32, 400),
        ("POST", "/v1/predict", rows_of(1).tobytes(), "text/plain", 415),
        ("POST", "/v1/predict?k=0", rows_of(1).tobytes(), F32, 400),
        ("POST", "/v1/predict?k=1000000000", rows_of(1).tobytes(), F32, 400),
        ("POST", "/v1/predict", b"[" * 100_000, "application/json", 400),
        ("POST", "/v1/predict", b'{"rows":[0],"text":"x"}', "application/json", 400),
        ("POST", "/v1/predict", b'{"rows":[99999999]}', "application/json", 400),
        ("POST", "/v1/predict/batch?lengths=1,1", rows_of(1).tobytes(), F32, 400),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    http: httpx.Client, method: str, path: str, body: bytes, kind: str, status: int
) -> None:
    # Straight to the transport: httpx itself would tidy the path.
    url = httpx.URL(http.base_url).copy_with(raw_path=path.encode())
    answer = http.send(httpx.Request(method, url, content=body, headers={"content-type": kind} if kind else {}))
    assert answer.status_code == status
    problem = check(answer, "Problem")
    assert problem["request"] == answer.headers["x-request-id"]
    assert "\n" not in str(problem["detail"])
    assert "/" not in str(problem["detail"]).replace("application/", "").replace("/openapi.json", "")


def test_an_empty_session_expects_nothing(http: httpx.Client) -> None:
    assert http.put("/v1/sessions/empty").status_code == 201
    assert http.put("/v1/sessions/empty").status_code == 200
    assert check(http.post("/v1/sessions/empty/predict"), "Problem")["status"] == 409
    check(http.get("/v1/sessions/empty"), "SessionDescription")
    assert http.delete("/v1/sessions/empty").status_code == 204
    assert http.get("/v1/sessions/empty").status_code == 404


def test_bodies_have_a_size_and_a_time(server: Running) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"
    assert b" 413 " in server.talk(head + b"content-length: 10000000000\r\n\r\n")[:40]
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    assert b" 413 " in server.talk(head + b"transfer-encoding: chunked\r\n\r\n" + chunk * 8)[:40]
    assert b" 415 " in server.talk(head + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc")[:40]
    assert b" 400 " in server.talk(head + b"content-length: -5\r\n\r\n")[:40]
    assert b" 431 " in server.talk(head + b"x-long: " + b"a" * 100_000)[:40]
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(server.talk, head + b"content-length: 64\r\n\r\nabc")
        headless = pool.submit(server.talk, head)
        assert b" 408 " in slow.result()[:40]
        assert b" 408 " in headless.result()[:40]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/sessions/x", "DELETE, GET, HEAD, PUT"),
        ("/v1/sessions/x/append", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/", "GET, HEAD"),
    ],
)
def test_another_method_is_told_every_one_that_a_path_takes(http: httpx.Client, path: str, allowed: str) -> None:
    for method in ("PATCH", "OPTIONS", "TRACE"):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert allowed in str(check(answer, "Problem")["detail"])


def test_a_head_is_a_get_without_its_body(http: httpx.Client) -> None:
    for path in ("/healthz", "/v1/models", "/openapi.json", "/"):
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    ("method", "path", "body", "detail"),
    [
        ("PUT", "/v1/sessions/unread", b"{}", "reads no body"),
        ("GET", "/v1/sessions/unread", b"{}", "reads no body"),
        ("DELETE", "/v1/sessions/unread", b"x", "reads no body"),
        ("POST", "/v1/sessions/unread/predict", b"{}", "reads no body"),
        ("GET", "/healthz", b"x", "reads no body"),
        ("PUT", "/v1/sessions/unread?k=1", b"", "'k'"),
        ("POST", "/v1/predict?K=3", rows_of(1).tobytes(), "'K'"),
        ("POST", "/v1/predict?k=3&seq=1", rows_of(1).tobytes(), "'seq'"),
        ("POST", "/v1/predict?k=3&k=4", rows_of(1).tobytes(), "more than once"),
        ("GET", "/v1/overview?document=1", b"", "known: documents"),
    ],
)
def test_what_an_operation_does_not_read_is_refused_by_name(
    http: httpx.Client, method: str, path: str, body: bytes, detail: str
) -> None:
    answer = http.request(method, path, content=body, headers={"content-type": F32})
    assert answer.status_code == 400
    assert detail in str(check(answer, "Problem")["detail"])
    assert http.get("/v1/sessions/unread").status_code == 404  # and nothing was done


def test_a_request_that_cannot_be_read_is_a_line_in_the_log_and_a_count(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path / "s", log=tmp_path / "log") as server:
        got = server.talk(b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n")
        problem = json.loads(got.partition(b"\r\n\r\n")[2])
        assert 'nextvec_requests_total{route="other",status="400"} 1.0' in httpx.get(f"{server.url}/metrics").text
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
    (line,) = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (line["event"], line["status"], line["request"]) == ("refused", 400, problem["request"])
    assert line["detail"] == problem["detail"]
    assert "host" in line["detail"]


def test_as_many_rows_as_the_document_says_fit_into_a_body(http: httpx.Client) -> None:
    most, dim = most_rows(DIM), DIM
    content = http.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    said = content["application/octet-stream"]["schema"]
    assert f"at most {most} rows" in said["description"]
    assert said["format"] == "binary"
    assert most == 10_000
    headers = {"content-type": "application/octet-stream", "x-deadline-ms": "60000"}
    assert http.put("/v1/sessions/many").status_code == 201
    whole = http.post("/v1/sessions/many/append?k=0", content=rows_of(most).tobytes(), headers=headers)
    assert (whole.status_code, whole.json()["length"]) == (200, most)
    assert http.post("/v1/predict", content=bytes(most_body(dim) + 1), headers=headers).status_code == 413


def test_a_foreign_name_or_origin_is_refused(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"origin": "http://localhost:8080"}).status_code == 200


def test_the_probes_models_metrics_and_document(http: httpx.Client, run: Path) -> None:
    check(http.get("/healthz"), "ServerStatus")
    check(http.get("/readyz"), "ServerStatus")
    check(http.get("/v1/models"), "ModelList")
    check(http.get("/v1/overview?documents=1"), "Overview")
    check(http.get("/v1/rollouts"), "RolloutList")
    assert check(http.post(f"/v1/models/{run.name}/reload"), "ModelDescription")["digest"] == Engine.open(run).digest
    assert http.get("/openapi.json").json() == openapi.document(DIM)
    http.post("/v1/predict", json={"rows": [1]})
    text = http.get("/metrics").text
    assert 'nextvec_answers_total{arm="stable"' in text
    assert 'le="0.005"' in text


def test_the_document_has_every_path_that_the_server_dispatches_and_no_other(http: httpx.Client) -> None:
    """A documented path names its documented methods to any other method."""
    documented = {
        path: {method.upper() for method in item if method != "parameters"}
        for path, item in openapi.document(DIM)["paths"].items()
    }
    assert set(documented) == {path.template for path in routes.PATHS}
    for template, methods in documented.items():
        answer = http.request("PATCH", re.sub(r"\{\w+\}", "none", template))
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == methods | ({"HEAD"} if "GET" in methods else set())


def test_every_operation_has_one_handler_that_takes_the_query_of_its_documentation() -> None:
    handlers = object.__new__(Handlers)
    handlers.control = Control(None)
    found = handlers.by_operation()
    operations = {operation.name: operation for path in routes.PATHS for operation in path.operations}
    assert set(found) == set(operations)
    for name, operation in operations.items():
        assert get_type_hints(found[name]).get("query") is operation.query


def test_a_killed_server_loses_nothing_that_it_acknowledged(run: Path, tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    rows = rows_of(500, 5)
    for _ in range(2):
        before = dict(acknowledged)
        with serving(run, tmp_path / "s") as server:

            def write(name: str, url: str = server.url) -> None:
                with Client(url) as client:
                    session = client.session(name)
                    assert session.seq >= acknowledged.get(name, 0)
                    for n in range(session.seq, len(rows)):
                        acknowledged[name] = session.append(rows[n], k=1).seq or 0

            threads = [threading.Thread(target=_quietly, args=(write, f"k{n}")) for n in range(4)]
            for thread in threads:
                thread.start()
            until(lambda then=before: len(acknowledged) == 4 and all(s != then.get(n) for n, s in acknowledged.items()))
            server.kill()
            for thread in threads:
                thread.join()
    assert len(acknowledged) == 4
    with serving(run, tmp_path / "s") as server, Client(server.url) as client:
        for name, seq in acknowledged.items():
            session = client.session(name)
            assert seq <= session.seq <= seq + 1
            want = client.predict(rows[: session.seq], 5)
            assert [e.row for e in session.predict(5).expected] == [e.row for e in want.expected]


def _quietly(write: object, name: str) -> None:
    from nextvec.client import ServerError

    try:
        write(name)  # type: ignore[operator]
    except ServerError:
        return  # the server was killed, as it should be


@pytest.mark.integration
def test_more_sessions_than_memory_are_answered_alike(run: Path, tmp_path: Path) -> None:
    engine = Engine.open(run)
    one = engine.session()
    one.push_many(rows_of(30))
    budget = 0.25  # MiB
    count = 2 * int(budget * 2**20) // (one.num_bytes + OVERHEAD)
    with serving(run, tmp_path / "s", "--state-mib", str(budget)) as server, Client(server.url) as client:
        sessions = [client.session(f"s{n}") for n in range(count)]
        for n, session in enumerate(sessions):
            session.append(rows_of(30, n))
            session.predict(1)
        assert _gauge(server, "nextvec_state_bytes") <= 1.1 * budget * 2**20
        before = _gauge(server, "nextvec_rebuilt_total")
        for n in (0, 1, count - 1):
            want = client.predict(rows_of(30, n), 5)
            assert [e.row for e in sessions[n].predict(5).expected] == [e.row for e in want.expected]
        assert _gauge(server, "nextvec_rebuilt_total") == before + 2


@pytest.mark.integration
def test_memory_stays_within_the_budget_of_states(run: Path, tmp_path: Path) -> None:
    """What the process holds, and not only what it counts: hundreds of sessions more than the budget has room for."""

    def resident(server: Running) -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    budget = 8 << 20
    with serving(run, tmp_path / "s", "--state-mib", "8") as server, Client(server.url) as client:
        sessions = [client.session(f"s{n}") for n in range(2_000)]
        for n, session in enumerate(sessions):
            session.append(rows_of(30, n % 50))
        sessions[0].predict(1)
        before = resident(server)
        for session in sessions[1:]:
            session.predict(1)
        assert _gauge(server, "nextvec_state_bytes") > 0.9 * budget
        other = 4 << 20  # what two thousand requests of any kind leave behind in the allocator
        grown = resident(server) - before
        assert grown <= 1.1 * budget + other


def _gauge(server: Running, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.integration
def test_a_stop_under_load_drops_no_request(run: Path, tmp_path: Path) -> None:
    """Clients ask until an answer says that the connection closes; no request of theirs goes without one."""
    with serving(run, tmp_path / "s") as server:
        statuses: list[int] = []

        def ask(n: int) -> None:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
                closing = False
                while not closing:
                    answer = http.post("/v1/predict?k=2", content=rows_of(12, n).tobytes(), headers={"content-type": F32})
                    statuses.append(answer.status_code)
                    closing = answer.headers.get("connection") == "close"

        def connect(_: int) -> None:
            """A connection for each request, until there is no server to connect to; once connected, no failure is accepted."""
            while True:
                with closing(HTTPConnection(*server.address, timeout=PATIENCE)) as connection:
                    try:
                        connection.connect()
                    except ConnectionRefusedError:
                        return
                    except ConnectionResetError:  # the server stopped listening while the connection was made
                        continue
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().status == 200

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, n) for n in range(6)] + [pool.submit(connect, n) for n in range(2)]
            until(lambda: len(statuses) > 20)
            server.process.send_signal(signal.SIGTERM)
            for one in asked:
                one.result(PATIENCE)
        assert server.process.wait(PATIENCE) == 0
        assert set(statuses) == {200}


@pytest.mark.integration
def test_overload_is_refused_at_once_and_passes(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path / "s", "--budget-ms", "0.001") as server:

        def ask(n: int) -> list[int]:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
                body, headers = rows_of(16, n).tobytes(), {"content-type": F32}
                return [http.post("/v1/predict?k=2", content=body, headers=headers).status_code for _ in range(20)]

        with ThreadPoolExecutor(16) as pool:
            statuses = [status for found in pool.map(ask, range(16)) for status in found]
        assert set(statuses) == {200, 503}
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert _gauge(server, "nextvec_shed_total") == statuses.count(503)
        assert ask(0)[-1] == 200


@pytest.mark.integration
def test_a_full_disk_refuses_appends_and_answers_still(run: Path, tmp_path: Path) -> None:
    import resource

    with serving(run, tmp_path / "s") as server, Client(server.url) as client:
        session = client.session("full")
        session.append(rows_of(5))
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        with httpx.Client(base_url=server.url) as http:
            body, headers = rows_of(40).tobytes(), {"content-type": F32}
            refused = http.post("/v1/sessions/full/append?seq=2", content=body, headers=headers)
            assert refused.status_code == 507
            assert len(session.predict(3).expected) == 3
            unready = http.get("/readyz")
            assert (unready.status_code, "cannot be written" in unready.json()["detail"]) == (503, True)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert http.get("/readyz").status_code == 200  # before any append, which a balancer would not send
            assert http.post("/v1/sessions/full/append?seq=2", content=body, headers=headers).json()["length"] == 45


def test_half_a_request_and_a_client_that_leaves_harm_nobody(server: Running, http: httpx.Client) -> None:
    for _ in range(20):
        with socket.create_connection(server.address) as connection:
            connection.sendall(request("POST", "/v1/predict", rows_of(5).tobytes(), [("content-type", F32)])[:-7])
    assert b" 400 " in server.talk(b"\x16\x03\x01 nonsense\r\n\r\n")[:40]
    assert http.post("/v1/predict", content=rows_of(5).tobytes(), headers={"content-type": F32}).status_code == 200


@pytest.mark.integration
def test_two_servers_do_not_share_sessions(run: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    with serving(run, tmp_path / "s"):
        command = [
            sys.executable,
            "-m",
            "nextvec.cli.main",
            "serve",
            str(run),
            "--port",
            "0",
            "--sessions",
            str(tmp_path / "s"),
        ]
        second = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    assert second.returncode == 2
    assert "held by another server" in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_another_seq_of_another_client_is_a_typed_error(server: Running) -> None:
    with Client(server.url) as one, Client(server.url) as other:
        mine, theirs = one.session("shared"), other.session("shared")
        mine.append(rows_of(1))
        with pytest.raises(SeqConflictError) as conflict:
            theirs.append(rows_of(1, 9))
        assert conflict.value.problem.seq == 1


@pytest.mark.slow
def test_the_server_is_what_its_document_says(server: Running) -> None:
    """Schemathesis: made-up requests to every operation; no 5xx, no answer that the document does not know."""
    import subprocess
    import sys

    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", checks]
    patient = ["--header", "x-deadline-ms: 60000"]  # 504 is the right answer to a deadline of a millisecond
    ran = subprocess.run(
        [*command, *patient, "--max-examples", "30", "--seed", "1"], capture_output=True, text=True, check=False, timeout=1_800
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
