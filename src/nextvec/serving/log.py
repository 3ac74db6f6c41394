"""The log of the server on standard error: one JSON line per event."""

import os
import queue
import sys
import threading
import time
from typing import Any

import msgspec

from nextvec.serving.metrics import Metrics

LINES = 10_000  # that wait to be written, at most


class Log:
    """Writes lines in a thread, so that a slow reader of standard error delays no answer.

    Args:
        requests: whether every request has a line.
        descriptor: file descriptor to write to; None: standard error.
    """

    def __init__(self, metrics: Metrics, requests: bool = False, descriptor: int | None = None) -> None:
        self.requests = requests
        self._metrics = metrics
        self._descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def line(self, event: str, **fields: Any) -> None:
        """Queue a line with the time (UTC, for readers only), the event and its fields. A full queue counts it as lost."""
        stamped = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}
        try:
            self._lines.put_nowait(msgspec.json.encode(stamped, enc_hook=str) + b"\n")
        except queue.Full:
            self._metrics.unlogged.inc()

    def close(self) -> None:
        """Write the lines that wait, for a second at most."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                os.write(self._descriptor, line)
            except OSError:
                self._metrics.unlogged.inc()  # the reader has closed; the server continues
