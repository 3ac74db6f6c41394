"""A thread that ends the process when its event loop is stuck, with the stacks of all threads in the log.

A stuck loop answers no request and no signal, and looks like a busy one from outside. When the process has ended, its
supervisor starts it again. The thread counts unanswered checks instead of reading a clock, so a process that was stopped
(SIGSTOP, a frozen container) and continues does not count as stuck. The thread needs the interpreter, so it cannot see a
compiled function that never releases it; ``--isolate`` keeps models out of this process.
"""

import asyncio
import faulthandler
import json
import os
import sys
import threading
import time

CHECKS = 20  # in a row that the loop must miss
STUCK = 70  # exit code; EX_SOFTWARE of sysexits.h
WRITE_SECONDS = 5.0  # for the stacks


class Watchdog:
    """Watches a running event loop until the process ends, its shutdown included.

    Args:
        loop: to watch.
        seconds: without a turn of the loop after which the process ends with exit code :data:`STUCK`; above 0.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        self._turned = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0
        self._ask()
        while not self._stop.wait(self._seconds / CHECKS):
            if self._turned.is_set():
                missed = 0
                self._turned.clear()
                self._ask()
                continue
            missed += 1
            if missed >= CHECKS:
                self._end()

    def _ask(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._turned.set)
        except RuntimeError:  # the loop is closed: the process has the same time to end
            return

    def _end(self) -> None:
        said = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "stuck",
            "seconds": self._seconds,
            "detail": f"the event loop did not turn; the stacks of all threads follow; the process ends with code {STUCK}",
        }
        # A log that no reader empties must not keep the process alive.
        late = threading.Timer(WRITE_SECONDS, os._exit, [STUCK])
        late.daemon = True
        late.start()
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        os.write(descriptor, json.dumps(said).encode() + b"\n")
        faulthandler.dump_traceback(file=descriptor, all_threads=True)
        os._exit(STUCK)
