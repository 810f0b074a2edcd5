"""The kernel library: which unit (a .cpp file in kernels/) defines which kernel.

A unit's kernels are found by reading its text: any definition ``name(const effc_call* ...)`` whose name starts with
``effc_``. Kernels that a macro defines are listed here with :func:`unit`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from ...runtime.errors import EffcError

KERNELS = Path(__file__).parent / "kernels"
INCLUDE = Path(__file__).parents[2] / "runtime" / "include"
_DECLARED: dict[str, str] = {}  # kernel -> unit
# Units that move data and compute nothing: the compiler's last optimisation level doubles the time to compile them and
# makes no loop of theirs faster.
MOVEMENT = frozenset({"copy.cpp", "index.cpp"})
# Units that round each product and sum as written, never fused: an inverse transform of a short length with factors 2,
# 3, 5 is then numpy's in every bit, which ONNX's suite expects; no slower was seen, at lengths from 15 to 8192.
ROUNDED = frozenset({"fft.cpp"})


def unit(source: str, kernels: tuple[str, ...] = ()) -> None:
    """Declares kernels of a unit that its text does not show by name."""
    for k in kernels:
        _DECLARED[k] = source


@lru_cache(maxsize=1)
def _found() -> dict[str, str]:
    table: dict[str, str] = {}
    for path in sorted(KERNELS.glob("*.cpp")):
        for name in re.findall(
            r"\b(effc_\w+)\s*\(\s*const\s+(?:struct\s+)?effc_call\s*\*", path.read_text(encoding="utf-8")
        ):
            table.setdefault(name, path.name)
    return {**table, **_DECLARED}


def unit_of(kernel: str) -> str:
    """The unit that defines a kernel; EffcError for a kernel that no unit has."""
    table = _found()
    if kernel not in table:
        raise EffcError(
            f"no unit of the kernel library defines {kernel}", hint="add it to a file in effc/backends/cpu/kernels"
        )
    return table[kernel]


# Kernels defined by macros (one line a unit) --------------------------------------------------------------------------
