"""Compiles the CPU kernels while Lathe is installed. Without a compiler Lathe is installed all the same."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """The library is made in the source tree. A wheel takes it along, and names the platform that it is for.

    With LATHE_KERNELS=required in the environment the library is made anew, and a failure ends the build: so
    are wheels built that are to be published."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = load_build(Path(self.root))
        required = os.environ.get("LATHE_KERNELS") == "required"
        try:
            library = build.build(force=required).path
        except build.BuildFailed as error:
            if required:
                raise
            self.app.display_warning(
                "WARNING: Lathe is installed without its compiled CPU kernels and will be slow on a CPU: "
                f"{error}. Install a C++ compiler and run `lathe kernels build`."
            )
            return
        if version != "editable":
            build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def load_build(root: Path) -> Any:
    """lathe/kernels/cpu/build.py by its path: importing `lathe` would need what is being installed."""
    path = root / "lathe/kernels/cpu/build.py"
    spec = importlib.util.spec_from_file_location("lathe_kernels_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    """As linux_x86_64 or macosx_11_0_arm64. The library needs no particular Python."""
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if tag.endswith("_universal2"):  # such a Python runs on both, but the compiler made code for this one
        return f"macosx_11_0_{os.uname().machine}"
    return tag
