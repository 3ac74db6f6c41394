"""Checks of a request's head beyond the parser's: heads that two programs could read differently are refused.

llhttp itself refuses a repeated or malformed Content-Length, Content-Length beside Transfer-Encoding, folded lines, bare CR
or LF, NUL, and a space before the colon. The other known forms of request smuggling are refused here.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

# The server reads one value of each of these headers. With two values, a proxy may have checked the other one.
SINGLE = frozenset(
    {
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"authorization",
        b"origin",
        b"x-request-id",
        b"x-deadline-ms",
        b"x-lane",
        b"access-control-request-method",
    }
)


def fault(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], upgrade: bool) -> tuple[int, str] | None:
    """Why a head is refused, as a status and one line; None if it is accepted.

    Args:
        version: of HTTP, ``1.1``.
        target: as in the request line.
        headers: names in lower case.
        upgrade: the parser reads the following bytes as another protocol.
    """
    if version not in ("1.0", "1.1"):
        return 505, "this server speaks HTTP/1.1 and HTTP/1.0"
    given = dict(headers)
    if len(given) != len(headers):
        names = [name for name, _ in headers]
        twice = sorted(name for name in SINGLE if names.count(name) > 1)
        if twice:
            return 400, f"header {twice[0].decode()} is given more than once; send it once"
    if version == "1.1" and b"host" not in given:
        return 400, "header host is absent; HTTP/1.1 requires it"
    coding = given.get(b"transfer-encoding")
    if coding is not None and version == "1.0":
        return 400, "HTTP/1.0 has no transfer-encoding; send a content-length"
    if coding is not None and coding.strip().lower() != b"chunked":
        return 501, "the only transfer-encoding is chunked"
    # After an upgrade the parser reads no body and would take it for the next request.
    if upgrade and (coding is not None or given.get(b"content-length", b"0").strip() != b"0"):
        return 400, "a request that asks for another protocol cannot have a body; leave out upgrade"
    if not target.startswith(b"/") and not _is_own(target, given.get(b"host", b"")):
        return 400, "the request target must be a path, such as /healthz, or a URL whose host is that of the host header"
    return None


def _is_own(target: bytes, host: bytes) -> bool:
    """Whether a target in absolute form names the host that the header names; RFC 9112 (3.2.2) wants that form accepted."""
    try:
        parts = urlsplit(target.decode("ascii"))
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.decode("latin-1").strip().lower() != ""
