"""Library units that were compiled when effc was built: a compilation links them instead of compiling them.

A wheel carries the objects of all units for the usual CPUs, an editable install those for the machine it is on, in
``lib/`` beside this file. An object's name holds a hash of the unit's text, its headers and the flags, so that one
which is older than the sources is never taken. It says nothing of the compiler: kernels are extern "C", without
exceptions and run-time types, and what one compiler made links with what another one makes. Who names a compiler by
``$CXX`` gets that one's code alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from . import build
from .library import KERNELS
from .target import CpuTarget, host, parse

FOLDER = Path(__file__).with_name("lib")
# What a wheel is for: levels, and the sets of extra features that there are CPUs with. A unit is compiled for those
# that make a difference to it.
SHIPPED = (
    "cpu:x86-64-v3",
    "cpu:x86-64-v3+avxvnni",
    "cpu:x86-64-v4",
    "cpu:x86-64-v4+avx512vnni",
    "cpu:x86-64-v4+avx512vnni+avx512bf16",
    "cpu:x86-64-v4+avx512vnni+avx512bf16+avxvnni",
    "cpu:x86-64-v4+avx512vnni+avx512bf16+avxvnni+amx",
)


def object_name(source: str, target: CpuTarget) -> str:
    """The file name of a unit's object; the target is what the unit needs of one (:func:`build.unit_target`)."""
    flags = (*build.level_of(source), *build.FLAGS, *target.flags)
    return f"{Path(source).stem}-{build.digest(build.source_key(KERNELS / source), *flags)}.o"


def find(source: str, target: CpuTarget) -> Path | None:
    """The object of a unit that effc came with, or None."""
    if os.environ.get("EFFC_SANITIZE") or os.environ.get("CXX"):
        return None
    path = FOLDER / object_name(source, target)
    return path if path.exists() else None


def targets() -> list[CpuTarget]:
    """What a build is for: ``$EFFC_PREBUILT``, names of targets with commas between them (``cpu``: this machine), or by
    default those of a wheel."""
    named = os.environ.get("EFFC_PREBUILT")
    if named is None:
        return [parse(t) for t in SHIPPED]
    return [host() if t == "cpu" else parse(t) for t in named.split(",") if t]


def make(folder: Path, wanted: Iterable[CpuTarget]) -> None:
    """Compiles all units for these targets into a folder; those that are there, or in a checkout's own, are kept or
    copied, others removed. EffcError for one that does not compile."""
    folder.mkdir(parents=True, exist_ok=True)
    units = [p.name for p in sorted(KERNELS.glob("*.cpp"))]
    needed = {
        object_name(u, t): (u, t) for target in wanted for u in units for t in (build.unit_target(u, target),)
    }  # the same for many targets
    for old in folder.glob("*.o"):
        if old.name not in needed:
            old.unlink()
    started = []
    for name, (unit, target) in needed.items():
        out = folder / name
        if out.exists():
            continue
        if (FOLDER / name).exists():
            shutil.copyfile(FOLDER / name, out)
        else:
            started.append(build.submit(unit, out, target))
    for f in started:
        f.result()
