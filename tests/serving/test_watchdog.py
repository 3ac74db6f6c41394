"""The watchdog ends a process whose event loop is stuck, and no other."""

import json
import signal
import subprocess
import sys
import time

import pytest

from nextvec.serving.watchdog import STUCK
from tests.waiting import PATIENCE

PROGRAM = """
import asyncio, sys
from nextvec.serving.watchdog import Watchdog

def spins_for_ever():
    while True:
        pass

async def main(seconds, stuck):
    Watchdog(asyncio.get_running_loop(), seconds)
    print("ready", flush=True)
    if stuck:
        spins_for_ever()
    print(await asyncio.to_thread(sys.stdin.readline), flush=True)

asyncio.run(main(float(sys.argv[1]), sys.argv[2] == "stuck"))
"""


def begun(seconds: float, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(seconds), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_stuck_loop_ends_the_process_and_the_log_says_where() -> None:
    process = begun(0.3, "stuck")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == STUCK
    said, *stacks = errors.splitlines()
    assert json.loads(said)["event"] == "stuck"
    assert any("spins_for_ever" in line for line in stacks)


@pytest.mark.integration
def test_a_process_that_was_stopped_and_goes_on_is_not_stuck() -> None:
    process = begun(1.0, "sound")
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate("hello\n", timeout=PATIENCE)
    assert (process.returncode, said.strip(), errors) == (0, "hello", "")
