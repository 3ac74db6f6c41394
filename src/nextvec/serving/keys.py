"""API keys: a name, rights and a rate. The server keeps the hash of a secret, never the secret."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.errors import ServingError
from nextvec.serving.rights import RIGHTS


@dataclass(frozen=True)
class Key:
    """A key without its secret.

    Attributes:
        sha256: of the secret, in hexadecimal.
        rights: among :data:`nextvec.serving.rights.RIGHTS`.
        rate: requests per second on average; a burst may have twice as many.
    """

    name: str
    sha256: str
    rights: frozenset[str]
    rate: float

    @staticmethod
    def new(name: str, rights: Iterable[str], rate: float = 1_000.0) -> tuple["Key", str]:
        """A new key and its secret. Show the secret once; it cannot be recovered."""
        secret = secrets.token_urlsafe(32)
        return Key(name, sha256(secret.encode()), frozenset(rights), rate), secret

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "rights": sorted(self.rights), "rate": self.rate}


def read_keys(path: Path) -> tuple[Key, ...]:
    """Keys of a file: a JSON list of name, sha256, rights and rate.

    Raises:
        ServingError: the file cannot be read, is malformed, or holds no key.
    """
    try:
        keys = [
            Key(str(k["name"]), str(k["sha256"]), frozenset(k["rights"]), float(k["rate"]))
            for k in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ServingError(f"{path} is not a file of keys: {error}") from None
    for key in keys:
        if not re.fullmatch("[0-9a-f]{64}", key.sha256) or not key.rights <= set(RIGHTS) or not key.rate > 0:
            raise ServingError(f"{path}: key {key.name!r} needs a sha256, rights among {', '.join(RIGHTS)}, and a rate above 0")
    if not keys:
        raise ServingError(f"{path} holds no key")
    return tuple(keys)


def sha256(secret: bytes) -> str:
    """The hash of a secret, in hexadecimal."""
    return hashlib.sha256(secret).hexdigest()
