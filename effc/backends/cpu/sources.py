"""What an artifact carries so that its code can be rebuilt from the artifact alone: ``cd sources && g++ @flags.txt``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import build
from .library import INCLUDE, KERNELS, unit_of
from .target import CpuTarget

README = """The C++ sources of this artifact's code/cpu.so. To rebuild it (g++, clang++ or zig c++, 64-bit Linux):

    unzip MODEL.effc 'sources/*' && cd sources && g++ @flags.txt

writes cpu.so here. generated.cpp holds the loops made for this model, kernels/ the units and headers of effc's kernel
library that it uses, include/ the interface between kernels and runtime, exports.map the names that the programs in
manifest.json call. flags.txt is what the compiler was given. The artifact's own code was compiled for {target} by

    {compiler}

The same sources under another compiler may round differently in the last bits.
"""


def bundle(kernels: Iterable[str], generated: Mapping[str, str], target: CpuTarget) -> dict[str, str]:
    """Files by their path below ``sources/``: texts of generated code, units, headers, flags and exports."""
    names = sorted(set(kernels))
    units = sorted({unit_of(k) for k in names if k not in generated})
    loops = build.PREAMBLE + "\n".join(generated[k] for k in sorted(generated))
    needed = {KERNELS / u for u in units}.union(*(build.headers(KERNELS / u) for u in [*units, "loop.hpp"]))
    files = {"generated.cpp": loops, "exports.map": build.exports_map(names)}
    for path in sorted({*needed, KERNELS / "loop.hpp"}):
        folder = "include" if path.parent == INCLUDE else "kernels"
        files[f"{folder}/{path.name}"] = path.read_text(encoding="utf-8")
    inputs = ["generated.cpp", *(f"kernels/{u}" for u in units)]
    flags = [*build.FLAGS, *target.flags, "-Ikernels", "-Iinclude", "-shared", "-o cpu.so", *inputs]
    files["flags.txt"] = "\n".join([*flags, "-Wl,--version-script=exports.map", *build.LINK]) + "\n"
    files["README.txt"] = README.format(target=target.name, compiler=build.compiler_version())
    return files
