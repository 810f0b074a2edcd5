"""Builds the runtime library, the memory planner and the kernels beside the Python files; the rest is pyproject.toml.

``libeffc_rt.so`` is loaded with ctypes and knows nothing of Python, so a wheel fits every Python 3 of its platform.
"""

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


@contextlib.contextmanager
def modules_alone() -> Iterator[None]:
    """Modules of effc can be imported without their packages: the build environment has no numpy."""
    for name in ("effc", "effc.runtime", "effc.passes", "effc.passes.memory", "effc.backends", "effc.backends.cpu"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n == "effc" or n.startswith("effc.")]:
            del sys.modules[name]


def build_code(package: Path) -> None:
    """Compiles the runtime library, the memory planner's searches, and the kernel library for the usual CPUs, into a
    package's folders."""
    with modules_alone():
        importlib.import_module("effc.runtime.build_rt").build(package / "runtime" / "lib")
        importlib.import_module("effc.passes.memory.library").build(package / "passes" / "memory" / "lib")
        prebuilt = importlib.import_module("effc.backends.cpu.prebuilt")
        prebuilt.make(package / "backends" / "cpu" / "lib", prebuilt.targets())


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            build_code(Path(self.build_lib) / "effc")
            return
        # A checkout whose sources change later, or that has no compiler now, compiles them on demand, into the cache.
        os.environ.setdefault("EFFC_PREBUILT", "cpu")
        try:
            build_code(ROOT / "effc")
        except Exception as e:
            print(f"not compiled yet: {e}", file=sys.stderr)


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel}, distclass=BinaryDistribution)
