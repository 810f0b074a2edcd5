"""What an artifact carries so that its code can be rebuilt from the artifact alone: ``sh sources/build.sh``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import build
from .library import INCLUDE, KERNELS, unit_of
from .target import CpuTarget

SCRIPT = """#!/bin/sh
# Rebuilds this artifact's code/cpu.so from its C++ sources, on 64-bit Linux:
#
#     unzip MODEL.effc 'sources/*' && sh sources/build.sh
#
# generated.cpp holds the loops made for this model, kernels/ the units and headers of effc's kernel library that it
# uses, include/ the interface between kernels and runtime, exports.map the names that the programs in manifest.json
# call. Target {target}; compiled by {compiler}.
# $CXX names another compiler, clang++ for one; its results may differ in the last bits.
set -eu
cd "$(dirname "$0")"
${{CXX:-g++}} {generated} @flags.txt -c generated.cpp -o generated.o
${{CXX:-g++}} {library} @flags.txt -shared -o cpu.so generated.o {units} \\
    -Wl,--version-script=exports.map {link}
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
    files["flags.txt"] = "\n".join([*build.FLAGS, *target.flags, "-Ikernels", "-Iinclude"]) + "\n"
    files["build.sh"] = SCRIPT.format(
        target=target.name,
        compiler=build.compiler_version(),
        generated=" ".join(build.GENERATED),
        library=" ".join(build.LIBRARY),
        units=" ".join(f"kernels/{u}" for u in units),
        link=" ".join(build.LINK),
    )
    return files
