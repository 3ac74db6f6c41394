"""How often a client sends a call, and how long it waits in between."""

from typing import Any

import httpx

from nextvec.client.errors import UnreachableError, problem_of

TRIES, FIRST_WAIT = 4, 0.1  # seconds; doubled each time
TIMEOUT = 30.0  # seconds of one try


def waits() -> list[float | None]:
    """Seconds after each try; None after the last."""
    return [*(FIRST_WAIT * 2**n for n in range(TRIES - 1)), None]


def is_final(response: httpx.Response, wait: float | None) -> bool:
    """Whether a call is over: any answer but 503, or the last try."""
    return response.status_code != 503 or wait is None


def raise_if_last(wait: float | None, error: httpx.TransportError) -> None:
    """
    Raises:
        UnreachableError: the last try has failed.
    """
    if wait is None:
        raise UnreachableError(0, problem_of(0, f"no answer from the server after {TRIES} tries: {error}")) from None


def connection(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of an httpx client."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return {"base_url": url, "headers": headers, "timeout": timeout}
