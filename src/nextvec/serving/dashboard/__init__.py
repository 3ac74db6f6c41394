"""The page for people: three files, served as they lie here. They hold no data; the page asks for it with the reader's key."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

# Nothing from elsewhere, nothing inline, nothing made of text; the one image is the icon inside the page.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
FILES = {
    "/": ("dashboard.html", "text/html"),
    "/dashboard.css": ("dashboard.css", "text/css"),
    "/dashboard.js": ("dashboard.js", "text/javascript"),
}


def page(path: str, root: str = "") -> Callable[[Request], Awaitable[Response]]:
    """The handler of one file of :data:`FILES`; read once, so that one server's files are of one kind.

    Args:
        root: path under which a proxy shows the server. The page names its files by it, and its script asks where the
            script came from; without a root both are relative to the page.
    """
    name, kind = FILES[path]
    content = (files("nextvec.serving.dashboard") / name).read_bytes()
    if root:
        for file in ("dashboard.css", "dashboard.js"):
            content = content.replace(f'"{file}"'.encode(), f'"{root}/{file}"'.encode())
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def dashboard(request: Request) -> Response:
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return dashboard
