"""A command and a webhook hear how a rollout ended, whatever else they do."""

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx

from nextvec.rollout.opening import open_ledger
from nextvec.serving.notices import Notices
from tests.serving.server import serving
from tests.serving.test_canary import QUICK, draft, until
from tests.waiting import PATIENCE

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"


@contextmanager
def hook(fails: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """A web server on loopback that refuses the first ``fails`` posts and keeps the others."""
    received: list[Any] = []
    refused = iter(range(fails))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            refuse = next(refused, None) is not None
            if not refuse:
                received.append(json.loads(body))
            self.send_response(500 if refuse else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_end_of_a_rollout_is_told(folder: Path) -> None:
    ledger = open_ledger(folder / "rollouts.db")
    draft(ledger, folder)
    file = folder / "notice.json"
    command = shlex.join([sys.executable, "-c", WRITES, str(file)])
    with hook() as (url, received):
        more = ("--ledger", str(folder / "rollouts.db"), "--on-end", command, "--webhook", url, "--node", "one")
        with serving(folder / "run0", folder / "sessions", *QUICK, *more) as server:
            until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])
            httpx.post(f"{server.url}/v1/rollouts/r/abort", json={"reason": "lunch"}).raise_for_status()
            until(lambda: len(received) == 1)
    wanted = {
        "rollout": "r",
        "state": "ROLLED_BACK",
        "cause": "abort: lunch",
        "stable": "run0",
        "canary": "run1",
        "node": "one",
    }
    assert received[0].items() >= wanted.items()
    assert json.loads(file.read_text()) == received[0]
    ledger.close()


def test_what_fails_is_tried_again_and_logged_and_holds_up_nothing() -> None:
    said: list[dict[str, Any]] = []
    tell = lambda _, **fields: said.append(fields)  # noqa: E731
    with hook(fails=2) as (url, received):
        notices = Notices([sys.executable, "-c", "raise SystemExit(3)"], url, tell, timeout=PATIENCE, tries=3, pause=0.01)
        notices.send({"rollout": "r"})
        until(lambda: len(received) == 1)
        until(lambda: any(line.get("sent") for line in said))
        notices.close()
    assert [(line["to"], line.get("attempt"), line.get("sent")) for line in said] == [
        *(("command", n, None) for n in (1, 2, 3)),
        *(("webhook", n, None) for n in (1, 2)),
        ("webhook", None, True),
    ]


def test_a_command_that_hangs_is_ended_and_what_does_not_fit_the_queue_is_logged() -> None:
    said: list[dict[str, Any]] = []
    tell = lambda _, **fields: said.append(fields)  # noqa: E731
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    notices = Notices(hangs, None, tell, timeout=1.0, tries=1)
    for n in range(1_000):
        notices.send({"n": n})
    assert sum("dropped" in line for line in said) > 800  # one is under way, 100 wait, and few more hang meanwhile
    until(lambda: any("TimeoutExpired" in line.get("failed", "") for line in said))
