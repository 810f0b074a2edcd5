"""CPU targets: names, instruction sets, compiler flags, and what this machine can run."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...runtime._rt import cpu_features
from ...runtime.errors import EffcError

V3 = (
    "sse3",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "popcnt",
    "cx16",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "bmi1",
    "bmi2",
    "lzcnt",
    "movbe",
)
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
LEVELS = {"x86-64-v3": V3, "x86-64-v4": V4}
EXTRA = {  # feature -> compiler flag
    "avx512vnni": "-mavx512vnni",
    "avx512bf16": "-mavx512bf16",
    "avxvnni": "-mavxvnni",
    "amx_tile": "-mamx-tile",
    "amx_int8": "-mamx-int8",
    "amx_bf16": "-mamx-bf16",
}
GROUPS = {"amx": ("amx_tile", "amx_int8", "amx_bf16")}
CPUINFO = Path("/proc/cpuinfo")
_CPUINFO = {
    "abm": "lzcnt",
    "pni": "sse3",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx_vnni": "avxvnni",
}


def macro(feature: str) -> str:
    """The macro that a compiler defines where it may use a feature of ``EXTRA``."""
    return "__" + EXTRA[feature].removeprefix("-m").replace("-", "_").upper() + "__"


@dataclass(frozen=True)
class CpuTarget:
    """A level plus extra features; ``isa`` is what a CPU must have to run its code."""

    level: str
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "cpu:" + "+".join((self.level, *self.extra))

    @property
    def isa(self) -> tuple[str, ...]:
        return (*LEVELS[self.level], *self.extra)

    @property
    def vlen(self) -> int:
        """Vector width in bytes."""
        return 64 if self.level == "x86-64-v4" else 32

    @property
    def flags(self) -> tuple[str, ...]:
        width = ("-mprefer-vector-width=512",) if self.vlen == 64 else ()
        return (f"-march={self.level}", *width, *(EXTRA[f] for f in self.extra), f"-DEFFC_VLEN={self.vlen}")


@lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """Features of this machine that the OS enables: those of /proc/cpuinfo, and of ``EXTRA`` only what the
    runtime, which will load the code, finds too: it asks for AMX's tiles, which Linux gives a process on request."""
    try:
        text = CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    flags = re.search(r"^flags\s*:\s*(.*)$", text, re.M)
    found = frozenset(_CPUINFO.get(f, f) for f in (flags.group(1).split() if flags else ()))
    extra = found & set(EXTRA)
    return found - extra | (extra & cpu_features() if extra else extra)


def host() -> CpuTarget:
    """The best level this machine runs, with all its features that kernels use; EffcError below x86-64-v3."""
    have = host_features()
    for level in ("x86-64-v4", "x86-64-v3"):
        if set(LEVELS[level]) <= have:
            return CpuTarget(level, tuple(f for f in EXTRA if f in have))
    missing = sorted(set(V3) - have)
    raise EffcError(
        f"this machine ({platform.machine()}) lacks {', '.join(missing)}, which target cpu needs",
        hint='name a target for another machine, such as target="cpu:x86-64-v3", or use target="reference"',
    )


def parse(text: str) -> CpuTarget:
    """``cpu``, ``cpu:x86-64-v3``, ``cpu:x86-64-v4+avx512vnni+amx``; EffcError for an unknown level or feature."""
    if text == "cpu":
        return host()
    level, *names = text.removeprefix("cpu:").split("+")
    if level == "host":
        level = host().level
    features: list[str] = []
    for n in names:
        features += GROUPS.get(n, (n,))
    bad = [f for f in features if f not in EXTRA]
    if level not in LEVELS or bad:
        what = f"feature {bad[0]!r}" if bad else f"level {level!r}"
        raise EffcError(
            f"unknown CPU {what} in target {text!r}",
            hint=f"levels: {', '.join(LEVELS)}; features: {', '.join([*EXTRA, *GROUPS])}",
        )
    return CpuTarget(level, tuple(dict.fromkeys(features)))
