"""Where a server listens: a port in use, a socket in the file system, a path behind a proxy, pages of other origins."""

import http.client
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextvec.cli.main import main
from nextvec.errors import ServingError
from nextvec.serving.cors import as_origin
from nextvec.serving.guard import Access
from nextvec.serving.listening import ListenAddress, bound, listen
from tests.serving.server import DIM, Running, rows_of, serving
from tests.waiting import PATIENCE

CHROMIUM = Path("/usr/bin/chromium")
ORIGIN = "https://app.example"
CUT = threading.Event()  # while it is set, the proxy sends half of each overview


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    return made / "run0"


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Behind a proxy that shows it under /a/nv, for pages of one other origin."""
    with serving(run, tmp_path_factory.mktemp("s") / "s", "--root-path", "/a/nv", "--cors", ORIGIN) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: Running) -> Iterator[str]:
    """A proxy that strips /a/nv, as nginx does with ``location /a/nv/ { proxy_pass http://…/; }``, and knows nothing else."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            if self.path != "/a/nv" and not self.path.startswith("/a/nv/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with closing(http.client.HTTPConnection(*server.address, timeout=PATIENCE)) as behind:
                behind.request(self.command, self.path.removeprefix("/a/nv") or "/", body, dict(self.headers.items()))
                answer = behind.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if CUT.is_set() and self.path.endswith("/v1/overview"):
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = forward  # noqa: N815

        def log_message(self, *_: Any, **__: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as shown:
        thread = threading.Thread(target=shown.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{shown.server_port}"
        shown.shutdown()


def test_everything_is_found_under_the_path_of_a_proxy(proxy: str) -> None:
    with httpx.Client(timeout=PATIENCE) as client:
        page = client.get(f"{proxy}/a/nv")
        for file in ("dashboard.css", "dashboard.js"):
            assert f'"/a/nv/{file}"' in page.text
            assert client.get(f"{proxy}/a/nv/{file}").status_code == 200
        document = client.get(f"{proxy}/a/nv/openapi.json").json()
        (shown,) = document["servers"]
        assert client.get(f"{proxy}{shown['url']}/v1/models").json()["models"][0]["dim"] == DIM


@pytest.mark.integration
@pytest.mark.skipif(not CHROMIUM.exists() or find_spec("playwright") is None, reason=f"needs playwright and {CHROMIUM}")
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_dashboard_asks_under_the_path_of_a_proxy(proxy: str, slash: str) -> None:
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(1e3 * PATIENCE)
        answered: list[tuple[str, int]] = []
        page.on("response", lambda response: answered.append((response.url.removeprefix(proxy), response.status)))
        page.goto(f"{proxy}/a/nv{slash}")
        page.wait_for_selector("#state.good")
        assert ("/a/nv/v1/overview", 200) in answered
        assert {status for _, status in answered} == {200}


@pytest.mark.integration
@pytest.mark.skipif(not CHROMIUM.exists() or find_spec("playwright") is None, reason=f"needs playwright and {CHROMIUM}")
def test_the_dashboard_goes_on_after_an_answer_that_ended_early(proxy: str) -> None:
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(1e3 * PATIENCE)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{proxy}/a/nv")
        page.wait_for_selector("#state.good")
        CUT.set()
        try:
            page.wait_for_selector("#state.bad")
            assert page.text_content("#state") == "unreachable"
        finally:
            CUT.clear()
        page.wait_for_selector("#state.good")
        assert faults == []


@pytest.mark.parametrize("root", ["nv", "/nv/", "/", "/a b", '/"><script>', "//other.example"])
def test_a_root_path_is_a_path(root: str) -> None:
    with pytest.raises(ServingError, match="--root-path"):
        ListenAddress(root=root).check()


def test_a_page_of_a_listed_origin_may_ask_and_others_may_not(server: Running) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        allowed = client.options("/v1/predict", headers={"origin": ORIGIN, **asking})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "content-type" in allowed.headers["access-control-allow-headers"]
        answer = client.post("/v1/predict", json={"rows": [1]}, headers={"origin": ORIGIN})
        refused = client.post("/v1/predict", json={"rows": []}, headers={"origin": ORIGIN})
        assert (answer.status_code, refused.status_code) == (200, 400)
        for each in (allowed, answer, refused):
            assert each.headers["access-control-allow-origin"] == ORIGIN
            assert "origin" in each.headers["vary"]
            assert "access-control-allow-credentials" not in each.headers
        for other in (
            "https://app.example.evil",
            "http://app.example",
            "https://app.example:8443",
            "null",
            "https://APP.example",
        ):
            preflight = client.options("/v1/predict", headers={"origin": other, **asking})
            for got in (preflight, client.get("/v1/models", headers={"origin": other})):
                assert got.status_code == 403
                assert "access-control-allow-origin" not in got.headers
        assert "access-control-allow-origin" not in client.get("/v1/models").headers


@pytest.mark.parametrize(
    ("given", "want"),
    [("https://App.Example", "https://app.example"), ("http://localhost:80", "http://localhost"), ("https://a:444", "https://a:444"),
     ("http://[::1]:3000", "http://[::1]:3000")],
)  # fmt: skip
def test_an_origin_is_read_as_browsers_write_it(given: str, want: str) -> None:
    assert as_origin(given) == want


@pytest.mark.parametrize(
    "given", ["*", "null", "", "app.example", "https://a/path", "https://a/", "https://u@a", "ftp://a", "https://a:b"]
)
def test_no_wildcard_and_nothing_but_an_origin(given: str) -> None:
    with pytest.raises(ServingError, match="--cors"):
        as_origin(given)


def test_an_address_in_use_is_named(server: Running, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(server.address[1])
    assert main(["serve", str(run), "--sessions", str(tmp_path / "s"), "--port", port, "--watchdog", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--host 127.0.0.1 --port " + port in line
    assert "in use" in line


def test_an_address_taken_between_binding_and_listening_is_named() -> None:
    with bound(ListenAddress(port=0)) as first:
        port = first.getsockname()[1]
        with bound(ListenAddress(port=port)) as second:
            listen(first, ListenAddress(port=port))
            with pytest.raises(ServingError, match=f"--port {port}.*in use"):
                listen(second, ListenAddress(port=port))


@pytest.mark.integration
def test_a_socket_in_the_file_system(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "nv.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left by a server that was killed
    with serving(run, tmp_path / "s", "--unix", str(path), port=None) as running:
        assert running.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=PATIENCE
        ) as client:
            assert client.put("/v1/sessions/a").status_code == 201
            headers = {"content-type": "application/octet-stream"}
            assert client.post("/v1/sessions/a/append", content=rows_of(3).tobytes(), headers=headers).json()["length"] == 3
        with pytest.raises(ServingError, match="another server listens there"), bound(ListenAddress(unix=path)):
            pass
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == 0
    assert not path.exists()


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ServingError, match="is no socket"), bound(ListenAddress(unix=path)):
        pass
    assert path.read_text() == "mine"
    for wrong in (tmp_path / "absent" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(ServingError, match="--unix"), bound(ListenAddress(unix=wrong)):
            pass


def test_a_socket_that_another_server_has_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with bound(ListenAddress(unix=path)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


def test_a_socket_needs_no_keys_and_takes_no_port(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ListenAddress(host="0.0.0.0", unix=tmp_path / "s", access=Access()).check()
    assert main(["serve", str(run), "--unix", str(tmp_path / "u"), "--port", "1"]) == 2
    assert "--unix" in capsys.readouterr().err
