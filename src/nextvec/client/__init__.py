"""A client of ``nextvec serve``::

    with Client("http://127.0.0.1:8080") as client:
        session = client.session("me")
        session.append(vectors)
        for expected in session.predict(k=5).expected:
            print(expected.probability, expected.document)

The client numbers appends, so it can repeat one after a lost connection and the server applies it once. After an error the
session asks the server for its state if it must: the same append again is a retry and applies once, another one continues from
there. :class:`AsyncClient` does the same with ``await``.

Answers are the structs of :mod:`nextvec.wire`. A field that the request did not ask for is ``msgspec.UNSET``, which is false.
"""

from nextvec.client.asynchronous import AsyncClient, AsyncSession
from nextvec.client.blocking import Client, Session
from nextvec.client.errors import (
    DeniedError,
    NotFoundError,
    OverloadedError,
    ReplacedError,
    SeqConflictError,
    ServerError,
    UnreachableError,
)

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Client",
    "DeniedError",
    "NotFoundError",
    "OverloadedError",
    "ReplacedError",
    "SeqConflictError",
    "ServerError",
    "Session",
    "UnreachableError",
]
