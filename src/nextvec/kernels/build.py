"""Compiles the C files of this folder once for each level of processor.

The build of the wheel runs it; run ``python -m nextvec.kernels.build`` after a
change of the C files. The code is plain C without Python's headers, so one wheel
per platform serves every Python version. Without a compiler nothing is built,
and torch computes the same results.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Sums may be reordered; nothing else is relaxed (-ffast-math would switch off subnormals for the whole process).
SUMS = ["-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-ffp-contract=fast"]
SHARED = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", *SUMS]
# In ascending order; the best level of the processor is chosen when the library is loaded.
X86 = {
    "any": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [*["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512"],
               *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "cd", "vnni"))],
}  # fmt: skip


def levels() -> dict[str, list[str]]:
    """The compiler flags of every level of this machine's architecture."""
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else {"any": []}


def sources_digest() -> str:
    """A digest of all C sources; a library with another digest is not used."""
    digest = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.c")), *sorted(HERE.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def library(level: str) -> Path:
    """The path of a compiled library."""
    return HERE / f"_{level}.so"


def build() -> list[Path]:
    """Compile every level; returns the paths of the libraries, none without a compiler.

    Raises:
        subprocess.CalledProcessError: the compiler failed.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform not in ("linux", "darwin"):
        return []
    made: list[Path] = []
    for level, flags in levels().items():
        out = library(level)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        names = [str(path) for path in sorted(HERE.glob("*.c"))]
        source = f'-DSOURCES="{sources_digest()}"'
        subprocess.run([compiler, *SHARED, *flags, source, *names, "-lm", "-o", str(temporary)], check=True)  # noqa: S603
        os.replace(temporary, out)
        made.append(out)
    return made


if __name__ == "__main__":
    for path in build():
        print(path)  # noqa: T201
