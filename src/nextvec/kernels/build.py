"""Compiles the C beside this file, once for each kind of processor; run by the wheel's build, or by hand after a change.

Plain C without Python's headers: one wheel a platform serves every Python. A
machine without a compiler gets none of it, and the same results from torch.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Sums may be taken in any order; nothing else is relaxed (-ffast-math would switch off denormals for the whole process).
SUMS = ["-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-ffp-contract=fast"]
SHARED = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", *SUMS]
# From the least to the most; the processor's best is chosen when the package is loaded.
X86 = {
    "any": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [*["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512"],
               *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "cd", "vnni"))],
}  # fmt: skip


def levels() -> dict[str, list[str]]:
    """The compiler's flags for each kind of processor that this machine's architecture has."""
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else {"any": []}


def sources_digest() -> str:
    """Of all C that is compiled: a library made of other sources is not used."""
    digest = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.c")), *sorted(HERE.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def library(level: str) -> Path:
    return HERE / f"_{level}.so"


def build() -> list[Path]:
    """Compile for every level; the libraries made, none where there is no compiler.

    Raises:
        subprocess.CalledProcessError: the compiler refused the sources.
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
