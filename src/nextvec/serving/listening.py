"""The socket that a server listens on: a port, or a path in the file system."""

import fcntl
import os
import re
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nextvec.errors import ServingError
from nextvec.serving.guard import Access, is_loopback

BACKLOG = 1024
ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True)
class ListenAddress:
    """Where a server listens, and who has access.

    Attributes:
        port: 0 takes a free one.
        unix: path of a socket, in place of host and port; only this user can open it.
        root: path under which a proxy shows the server; the proxy strips it.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    access: Access = field(default_factory=Access)
    unix: Path | None = None
    root: str = ""

    def check(self) -> None:
        """
        Raises:
            ServingError: a host that others can reach, without keys; a root that is not a path.
        """
        if self.unix is None:
            check_host(self.host, self.access)
        if not ROOT.fullmatch(self.root):
            raise ServingError(f"--root-path {self.root!r} must be a path such as /nextvec, without a slash at its end")

    def url(self, listener: socket.socket) -> str:
        """The address to announce."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{listener.getsockname()[1]}"

    def refusal(self, error: OSError) -> ServingError:
        """The error for a socket that cannot be opened."""
        if self.unix is not None:
            return ServingError(f"cannot listen on --unix {self.unix}: {error.strerror or error}")
        where = f"--host {self.host} --port {self.port}"
        return ServingError(f"cannot listen on {where}: {error.strerror or error}; choose another port, or 0 for a free one")


def check_host(host: str, access: Access) -> None:
    """
    Raises:
        ServingError: a host that others can reach, without keys.
    """
    if not access.keys and not is_loopback(host):
        raise ServingError(f"--host {host} can be reached by others; give --keys FILE, or stay on 127.0.0.1")


@contextmanager
def bound(place: ListenAddress) -> Generator[socket.socket]:
    """A bound socket; one in the file system listens already, and is removed at the end.

    Raises:
        ServingError: the address is in use or cannot be bound.
    """
    place.check()
    if place.unix is not None:
        with _bound_to_path(place, place.unix) as listener:
            yield listener
        return
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place.host, place.port))
        except OSError as error:
            raise place.refusal(error) from None
        yield listener


def listen(listener: socket.socket, place: ListenAddress) -> None:
    """Accept connections. Another server may have taken the address since the socket was bound.

    Raises:
        ServingError: the address is in use.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise place.refusal(error) from None
    listener.setblocking(False)


@contextmanager
def _bound_to_path(place: ListenAddress, path: Path) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with _locked(path.parent):
                _remove_stale(path)
                before = os.umask(0o177)  # the socket is never open to other users, even briefly
                try:
                    listener.bind(str(path))
                finally:
                    os.umask(before)
                # It listens at once: another server that starts would take a silent socket for a stale one.
                listener.listen(BACKLOG)
        except OSError as error:
            raise place.refusal(error) from None
        made = path.stat()
        try:
            yield listener
        finally:
            _remove(path, made)


def _remove_stale(path: Path) -> None:
    """
    Raises:
        ServingError: a server listens there, or the path is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ServingError(f"--unix {path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: a server listens
    raise ServingError(f"--unix {path}: another server listens there; stop it, or choose another path")


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket, unless it is another server's by now."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
        path.unlink()


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Let only one server at a time look for stale sockets and bind its own."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
