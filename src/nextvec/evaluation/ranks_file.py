"""The one file format for ranks: named sets of ranks in a safetensors file, written whole or not at all."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from nextvec.bank.layout import write_atomically
from nextvec.errors import RunError
from nextvec.ranks import Ranks

FIELDS = ("above", "tied", "candidates", "clusters")


def write_ranks(file: Path, ranks: Mapping[str, Ranks]) -> None:
    """Write ranks by name, one array ``name/field`` for each field; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}/{field}": getattr(each, field) for name, each in ranks.items() for field in FIELDS}
    write_atomically(file, save(arrays))


def read_ranks(file: Path) -> dict[str, Ranks]:
    """The ranks that :func:`write_ranks` wrote, in the order of their names.

    Raises:
        RunError: the file is damaged.
    """
    try:
        arrays = load(file.read_bytes())
        names = sorted({key.rpartition("/")[0] for key in arrays})
        return {name: Ranks(*(arrays[f"{name}/{field}"] for field in FIELDS)) for name in names}
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{file} is damaged: {error}; delete it, and it is made anew") from None


def kept_ranks(file: Path, compute: Callable[[], Mapping[str, Ranks]]) -> dict[str, Ranks]:
    """The ranks in ``file``; computed and written first where it does not exist.

    Raises:
        RunError: the file is damaged.
    """
    if not file.exists():
        write_ranks(file, compute())
    return read_ranks(file)


def digest(*parts: str | bytes | None) -> str:
    """16 hexadecimal digits for a file's name: a hash of everything that its content depends on."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else str(part).encode())
        hashed.update(b"\0")
    return hashed.hexdigest()[:16]
