"""Compiles the kernels into the wheel; a machine without a compiler gets a wheel of Python alone."""

import runpy
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        kernels = runpy.run_path(str(Path(self.root) / "src" / "nextvec" / "kernels" / "build.py"))
        try:
            made = kernels["build"]()
        except subprocess.CalledProcessError as error:
            self.app.display_warning(f"the kernels were not compiled, torch will compute in their place: {error}")
            return
        if made and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["artifacts"] += [f"src/nextvec/kernels/{path.name}" for path in made]
