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
{compilations}
${{CXX:-g++}} @flags.txt -shared -o cpu.so *.o \\
    -Wl,--version-script=exports.map {link}
"""


def bundle(kernels: Iterable[str], generated: Mapping[str, str], target: CpuTarget) -> dict[str, str]:
    """Files by their path below ``sources/``: texts of generated code, units, headers, flags and exports."""
    names = sorted(set(kernels))
    units = sorted({unit_of(k) for k in names if k not in generated})
    loops = build.PREAMBLE + "\n".join(generated[k] for k in sorted(generated))
    needed = {KERNELS / u for u in units}.union(
        *(build.headers(KERNELS / u) for u in [*units, *build.GENERATED_HEADERS])
    )
    files = {"generated.cpp": loops, "exports.map": build.exports_map(names)}
    for path in sorted({*needed, *(KERNELS / h for h in build.GENERATED_HEADERS)}):
        folder = "include" if path.parent == INCLUDE else "kernels"
        files[f"{folder}/{path.name}"] = path.read_text(encoding="utf-8")
    files["flags.txt"] = "\n".join([*build.FLAGS, *target.flags, "-Ikernels", "-Iinclude"]) + "\n"
    levels: dict[tuple[str, ...], list[str]] = {build.GENERATED: ["generated.cpp"]}
    for u in units:
        levels.setdefault(build.level_of(u), []).append(f"kernels/{u}")
    files["build.sh"] = SCRIPT.format(
        target=target.name,
        compiler=build.compiler_version(),
        compilations="\n".join(f"${{CXX:-g++}} {' '.join(k)} @flags.txt -c {' '.join(v)}" for k, v in levels.items()),
        link=" ".join(build.LINK),
    )
    return files
