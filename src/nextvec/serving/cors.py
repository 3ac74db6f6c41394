"""Cross-origin requests: pages of listed origins have access to this server (the Fetch standard, CORS protocol)."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from nextvec.errors import ServingError

Headers = list[tuple[bytes, bytes]]
DEFAULT = {"http": 80, "https": 443}
PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, PUT, POST, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, x-deadline-ms, x-lane, x-request-id"),
    (b"access-control-max-age", b"600"),
]
EXPOSED = b"x-request-id, retry-after"


def as_origin(text: str) -> str:
    """``text`` as a browser writes the origin: scheme and host in lower case, no default port.

    Raises:
        ServingError: it is not ``http(s)://HOST[:PORT]``. There is no wildcard.
    """
    wrong = f"--cors {text!r} must be one origin, http(s)://HOST[:PORT], without a path; there is no wildcard"
    if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", text):
        raise ServingError(wrong)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ServingError(wrong) from None
    if not parts.hostname:
        raise ServingError(wrong)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, DEFAULT[parts.scheme]) else f":{port}")


class Cors:
    """The origins that have access.

    Credentials of the browser (cookies) are never allowed: the page must send a key in ``authorization``.

    Attributes:
        origins: as :func:`as_origin` gives them.
    """

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self.origins = frozenset(origins)
        self._raw = frozenset(origin.encode() for origin in self.origins)

    def headers(self, request: dict[bytes, bytes]) -> Headers:
        """The headers of every answer to this request."""
        if not self._raw:
            return []
        vary = (b"vary", b"origin")
        origin = request.get(b"origin")
        if origin not in self._raw:
            return [vary]
        return [vary, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]

    def is_preflight(self, method: str, request: dict[bytes, bytes]) -> bool:
        """Whether this is a browser's preflight request, which carries no key, for a page of a listed origin."""
        return method == "OPTIONS" and b"access-control-request-method" in request and request.get(b"origin") in self._raw
