"""Sends notices of ended rollouts to a command and to a URL, in a thread of its own, so that no answer waits for them."""

import json
import queue
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WAITING = 100  # notices at most; later ones are dropped, and the log says so


class Notices:
    """Sends JSON objects, each with up to ``tries`` attempts; the log reports what was not delivered.

    Args:
        command: started without a shell, the notice on its standard input; any exit code but 0 is a failure.
        webhook: http or https, gets the notice by POST; any status but 2xx is a failure.
        tell: a line for the log.
        timeout: seconds of one attempt, after which it is ended.
        pause: seconds before the second attempt, doubled each time.
    """

    def __init__(
        self,
        command: Sequence[str],
        webhook: str | None,
        tell: Callable[..., None],
        timeout: float = 10.0,
        tries: int = 3,
        pause: float = 1.0,
    ) -> None:
        self._command, self._webhook, self._tell = list(command), webhook, tell
        self._timeout, self._tries, self._pause = timeout, tries, pause
        self._notices: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
        self._thread.start()

    def send(self, notice: Mapping[str, Any]) -> None:
        """Queue a JSON-able notice; returns at once."""
        try:
            self._notices.put_nowait(json.dumps(notice).encode())
        except queue.Full:
            self._tell("notice", dropped=dict(notice), detail=f"{WAITING} notices wait already")

    def close(self) -> None:
        """Try every queued notice once more, each for at most ``timeout`` seconds, and stop."""
        self._closing.set()
        try:
            self._notices.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(2 * self._timeout)

    def _run(self) -> None:
        while (notice := self._notices.get()) is not None:
            if self._command:
                self._try("command", lambda given: self._start(given), notice)
            if self._webhook is not None:
                self._try("webhook", lambda given: self._post(given), notice)

    def _try(self, where: str, send: Callable[[bytes], None], notice: bytes) -> None:
        for n in range(self._tries):
            try:
                send(notice)
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                self._tell("notice", to=where, failed=f"{type(error).__name__}: {error}", attempt=n + 1, of=self._tries)
            else:
                self._tell("notice", to=where, sent=True)
                return
            if n + 1 < self._tries:
                self._closing.wait(self._pause * 2**n)

    def _start(self, notice: bytes) -> None:
        subprocess.run(  # noqa: S603  the operator's own command line
            self._command,
            input=notice,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=self._timeout,
            check=True,
        )

    def _post(self, notice: bytes) -> None:
        assert self._webhook is not None
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(self._webhook, notice, kind, method="POST")  # noqa: S310  checked on the command line
        with urllib.request.urlopen(request, timeout=self._timeout):  # noqa: S310  raises for any status but 2xx
            return
