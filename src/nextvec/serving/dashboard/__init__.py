"""The dashboard: three static files without data. The page requests its data with the key of the user."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

# No other origins, no inline code, no markup made from text. The only image is the icon, which is a data URL.
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
    """The handler of one file of :data:`FILES`. The file is read once, so that all files of a server are of one version.

    Args:
        root: path under which a proxy shows the server; the page loads its files from there. Empty: paths relative to the
            page.
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
