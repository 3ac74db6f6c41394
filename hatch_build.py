"""Compiles the kernels into the wheel.

The environment variable ``NEXTVEC_BUILD`` selects the wheel: ``compiled`` fails
where the kernels cannot be compiled, ``pure`` compiles nothing. Without it, a
machine without a working compiler gets a pure wheel, in which torch computes
the same results.
"""

import os
import runpy
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "NEXTVEC_BUILD"


class Kernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get(VARIABLE, "")
        if wanted not in ("", "compiled", "pure"):
            raise ValueError(f"{VARIABLE}={wanted}: want compiled or pure")
        if wanted == "pure":
            return
        kernels = runpy.run_path(str(Path(self.root) / "src" / "nextvec" / "kernels" / "build.py"))
        try:
            made = kernels["build"]()
        except subprocess.CalledProcessError as error:
            if wanted == "compiled":
                raise
            self.app.display_warning(f"the kernels were not compiled, torch will compute in their place: {error}")
            return
        if wanted == "compiled" and not made:
            raise RuntimeError(f"{VARIABLE}=compiled, but there is no C compiler")
        if made and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["artifacts"] += [f"src/nextvec/kernels/{path.name}" for path in made]
