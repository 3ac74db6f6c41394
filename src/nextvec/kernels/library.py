"""The compiled library: which one is loaded, and at which level of the processor.

Every product has a compiled form and a torch form. They agree within a
tolerance that the tests state. The environment variable ``NEXTVEC_KERNELS``
selects a lower level than the best of the processor: ``avx2``, ``any`` (neither
AVX-512 nor AVX2) or ``torch``.
"""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

from nextvec.errors import SettingsError
from nextvec.kernels import build

VARIABLE = "NEXTVEC_KERNELS"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels for this processor; None if none were compiled, or if the environment selects torch.

    Raises:
        SettingsError: the environment selects a level that does not exist or that this processor cannot run.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "torch", *build.levels()):
        raise SettingsError(f"{VARIABLE}={chosen}: no such level; choose one of {', '.join([*build.levels(), 'torch'])}")
    if chosen == "torch" or not build.library("any").exists():
        return None
    best = _text(ctypes.CDLL(str(build.library("any"))), "nextvec_level")
    order = list(build.levels())
    if chosen and order.index(chosen) > order.index(best):
        raise SettingsError(f"{VARIABLE}={chosen}: this processor cannot run it; its highest level is {best}")
    loaded = ctypes.CDLL(str(build.library(chosen or best)))
    if _text(loaded, "nextvec_sources") != build.sources_digest():
        warnings.warn(
            "the compiled kernels of nextvec were built from other sources and are not used; install the package again",
            stacklevel=2,
        )
        return None
    return loaded


@cache
def level() -> str:
    """The level in use: ``avx512``, ``avx2``, ``any`` (compiled without either) or ``torch``."""
    loaded = library()
    if loaded is None:
        return "torch"
    return next(each for each in build.levels() if Path(loaded._name) == build.library(each))


def _text(loaded: ctypes.CDLL, function: str) -> str:
    call = getattr(loaded, function)
    call.restype = ctypes.c_char_p
    return call().decode()
