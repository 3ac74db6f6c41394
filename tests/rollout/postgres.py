"""A PostgreSQL server of the tests' own: temporary folder, Unix socket, unprivileged user."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return places[-1] if places else None


@contextmanager
def server() -> Generator[str]:
    """The folder of its socket; skips where PostgreSQL or psycopg is not installed."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install psycopg")
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short, for a socket's path has at most 107 bytes
    who: dict[str, int] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    data = folder / "data"
    command = [initdb, "-D", data, "-U", "tests", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, extra_groups=[] if who else None, **who)  # type: ignore[call-overload]
    start = [postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "max_connections=30"]
    log = open(folder / "log", "w")
    running = subprocess.Popen(start, stderr=log, cwd=folder, extra_groups=[] if who else None, **who)  # type: ignore[call-overload]
    try:
        _wait(folder, running)
        yield str(folder)
    finally:
        running.send_signal(signal.SIGINT)  # do not wait for clients
        running.wait()
        log.close()
        shutil.rmtree(folder)


def database(socket: str) -> str:
    """The address of a new, empty database."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"postgresql://tests@/postgres?host={socket}", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://tests@/{name}?host={socket}"


def _wait(socket: Path, running: "subprocess.Popen[bytes]") -> None:
    import time

    import psycopg

    while running.poll() is None:
        try:
            psycopg.connect(f"postgresql://tests@/postgres?host={socket}").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise RuntimeError((socket / "log").read_text())
