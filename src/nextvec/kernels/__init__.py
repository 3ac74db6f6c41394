"""Products as fast as memory can be read: compiled C where the package was built with a compiler, torch elsewhere.

Every product has both forms; they agree within a tolerance that the tests
state. ``NEXTVEC_KERNELS`` in the environment asks for a lesser level than the
processor's best: ``avx2``, ``any`` (neither AVX-512 nor AVX2) or ``torch``.
"""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

from nextvec.errors import SettingsError
from nextvec.kernels import build

ASKED = "NEXTVEC_KERNELS"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels for this processor; None where there are none, or where the environment asks for torch.

    Raises:
        SettingsError: the environment asks for a level that does not exist or that this processor cannot run.
    """
    asked = os.environ.get(ASKED, "")
    if asked not in ("", "torch", *build.levels()):
        raise SettingsError(f"{ASKED}={asked}: no such level; choose one of {', '.join([*build.levels(), 'torch'])}")
    if asked == "torch" or not build.library("any").exists():
        return None
    best = _text(ctypes.CDLL(str(build.library("any"))), "nextvec_level")
    order = list(build.levels())
    if asked and order.index(asked) > order.index(best):
        raise SettingsError(f"{ASKED}={asked}: this processor cannot run it; the highest level that it runs is {best}")
    loaded = ctypes.CDLL(str(build.library(asked or best)))
    if _text(loaded, "nextvec_sources") != build.sources_digest():
        warnings.warn(
            "nextvec's compiled kernels were made of other sources and are not used; install the package again", stacklevel=2
        )
        return None
    return loaded


@cache
def name() -> str:
    """What computes the products: ``avx512``, ``avx2``, ``any`` (compiled without either) or ``torch``."""
    loaded = library()
    if loaded is None:
        return "torch"
    return next(level for level in build.levels() if Path(loaded._name) == build.library(level))


def _text(loaded: ctypes.CDLL, function: str) -> str:
    call = getattr(loaded, function)
    call.restype = ctypes.c_char_p
    return call().decode()
