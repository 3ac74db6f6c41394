"""The list of sessions, how many there may be, and how old."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nextvec.client import Client
from nextvec.serving.routes import right
from tests.serving.server import Running, rows_of, serving
from tests.serving.test_canary import until


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    return made / "run0"


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(run, tmp_path_factory.mktemp("sessions") / "listed", "--max-sessions", "25") as running:
        yield running


def test_pages_list_every_session_once_by_name(server: Running) -> None:
    with Client(server.url) as client, httpx.Client(base_url=server.url) as web:
        for n in range(25):
            client.session(f"s{n * 7 % 25:02}").append(rows_of(2, n), k=0)
        found, after = list[str](), None
        for _ in range(3):
            page = web.get("/v1/sessions", params={"limit": 10, **({} if after is None else {"after": after})}).json()
            found += [one["session"] for one in page["sessions"]]
            assert page["count"] == 25
            assert {(one["seq"], one["length"]) for one in page["sessions"]} == {(1, 2)}
            assert all(one["idle"] >= 0 for one in page["sessions"])
            after = page["next"]
        assert after is None
        assert found == [f"s{n:02}" for n in range(25)]
        assert web.get("/v1/sessions", params={"limit": 25}).json()["next"] is None
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "a/b"}):
            assert web.get("/v1/sessions", params=wrong).status_code == 400
        full = web.put("/v1/sessions/one-more")
        assert (full.status_code, full.headers["content-type"]) == (507, "application/problem+json")
        assert "25 sessions" in full.json()["detail"]
        assert web.put("/v1/sessions/s03").status_code == 200  # of one that is there nothing more is taken
        assert web.delete("/v1/sessions/s03").status_code == 204
        assert web.put("/v1/sessions/one-more").status_code == 201


def test_the_list_is_for_operators_and_a_session_for_those_who_know_its_name() -> None:
    assert right("/v1/sessions") == "operate"
    assert right("/v1/sessions/a") == "session"


@pytest.mark.integration
def test_sessions_that_are_not_used_are_deleted_also_those_from_before_a_restart(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    with serving(run, folder) as server, Client(server.url) as client:
        for n in range(3):
            client.session(f"s{n}").append(rows_of(1, n), k=0)
        server.kill()
    with serving(run, folder, "--session-ttl", "0.2") as server:
        until(lambda: httpx.get(f"{server.url}/v1/sessions").json()["count"] == 0)
        assert httpx.get(f"{server.url}/v1/sessions/s0").status_code == 404
