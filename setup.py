"""Builds the runtime library next to the Python files; everything else is in pyproject.toml.

``libeffc_rt.so`` is loaded with ctypes and knows nothing of Python, so a wheel fits every Python 3 of its platform.
"""

import importlib
import sys
import types
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def build_runtime(out_dir: Path) -> None:
    """Runs effc.runtime.build_rt without importing effc itself: the build environment has no numpy."""
    for name in ("effc", "effc.runtime"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package
    try:
        importlib.import_module("effc.runtime.build_rt").build(out_dir)
    finally:
        for name in [n for n in sys.modules if n == "effc" or n.startswith("effc.")]:
            del sys.modules[name]


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            build_runtime(Path(self.build_lib) / "effc" / "runtime" / "lib")
            return
        # A checkout whose sources change later, or that has no compiler now, compiles it on demand, into the cache.
        try:
            build_runtime(ROOT / "effc" / "runtime" / "lib")
        except Exception as e:
            print(f"effc_rt is not compiled yet: {e}", file=sys.stderr)


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel}, distclass=BinaryDistribution)
