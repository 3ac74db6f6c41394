"""Verification of a bank: its content is hashed once, and trusted while its files stay unchanged."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

from nextvec.bank import layout
from nextvec.bank.layout import Manifest
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

Verify = Literal["once", "always", "never"]
Files = dict[str, list[int]]
HASHED = ("encoder_fingerprint", "dtype", "dim")  # fields of the manifest
BLOCK = 1 << 22
SHOWN = 1 << 28  # bytes whose hash takes long enough, about half a second, to show progress
SETTLED_NS = 2_000_000_000  # a file changed twice within a tick of its clock has the same time

_verified: dict[Path, dict[str, Any]] = {}  # banks in folders that cannot be written are hashed once per process


def content_fingerprint(folder: Path, manifest: Manifest, progress: Progress = silent) -> str:
    """sha256 over the files :attr:`Manifest.content` in ``folder``, and the fields ``HASHED`` of the manifest."""
    digest = hashlib.sha256(" ".join(str(getattr(manifest, name)) for name in HASHED).encode())
    total, done = sum((folder / name).stat().st_size for name in manifest.content), 0
    for name in manifest.content:
        with open(folder / name, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                if total > SHOWN:
                    progress("verifying the bank", done, total)
    return digest.hexdigest()


def verify(folder: Path, manifest: Manifest, how: Verify = "once", progress: Progress = silent) -> None:
    """Compare the content of a bank with its fingerprint.

    ``once`` hashes the content and writes ``verified.json`` beside the rows: the
    size, inode and times of change of each file, and the fields of the manifest
    that are hashed. While these stay the same, the content is not hashed again. A
    folder that cannot be written is hashed once per process. ``always`` hashes the
    content in every call. Only ``always`` and ``nextvec audit`` detect content that
    changed while sizes, inodes and times stayed the same.

    Raises:
        DataError: the content is not what was written; names both fingerprints.
    """
    if how == "never":
        return
    files = _files(folder, manifest)
    facts = _facts(manifest, files)
    if how == "once" and _is_remembered(folder, facts):
        return
    began = time.time_ns()
    found = content_fingerprint(folder, manifest, progress)
    if found != manifest.fingerprint:
        raise DataError(
            f"{folder} was changed after it was written: its content has fingerprint {found[:12]}, "
            f"{layout.MANIFEST} says {manifest.fingerprint[:12]}; restore the bank, or ingest the source again"
        )
    if files == _files(folder, manifest) and all(began - max(changed) > SETTLED_NS for _, _, *changed in files.values()):
        _verified[folder.resolve()] = facts
        layout.keep(folder / layout.VERIFIED, json.dumps(facts) + "\n")


def _is_remembered(folder: Path, facts: dict[str, Any]) -> bool:
    if _verified.get(folder.resolve()) == facts:
        return True
    kept = folder / layout.VERIFIED
    try:
        return json.loads(kept.read_text(encoding="utf-8")) == facts
    except (OSError, ValueError, RecursionError):
        return False  # nothing kept, or damaged: the content is hashed


def _facts(manifest: Manifest, files: Files) -> dict[str, Any]:
    """What decides :func:`content_fingerprint`, as JSON: the fields of the manifest, the result, and the files."""
    hashed = {name: getattr(manifest, name) for name in ("fingerprint", *HASHED)}
    return {**hashed, "files": files}


def _files(folder: Path, manifest: Manifest) -> Files:
    """Size, inode, time of the last change of content and of anything, in nanoseconds, of each file."""
    found = {name: (folder / name).stat() for name in manifest.content}
    return {name: [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in found.items()}
