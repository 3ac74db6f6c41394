"""Products as fast as memory can be read: compiled C where the package was built with a compiler, torch elsewhere.

Every product has both forms; they agree within a tolerance that the tests
state. ``NEXTVEC_KERNELS=torch`` in the environment asks for torch's.
"""

import ctypes
import os
import warnings
from functools import cache

from nextvec.kernels import build


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels for this processor; None where there are none, or where the environment asks for torch."""
    if os.environ.get("NEXTVEC_KERNELS") == "torch" or not build.library("any").exists():
        return None
    level = _text(ctypes.CDLL(str(build.library("any"))), "nextvec_level")
    loaded = ctypes.CDLL(str(build.library(level)))
    if _text(loaded, "nextvec_sources") != build.sources_digest():
        warnings.warn(
            "nextvec's compiled kernels were made of other sources and are not used; install the package again", stacklevel=2
        )
        return None
    return loaded


def name() -> str:
    """What computes the products: ``avx512``, ``avx2``, ``any`` (compiled without either) or ``torch``."""
    loaded = library()
    return "torch" if loaded is None else _text(loaded, "nextvec_level")


def _text(loaded: ctypes.CDLL, function: str) -> str:
    call = getattr(loaded, function)
    call.restype = ctypes.c_char_p
    return call().decode()
