"""The micro-kernels of products, as data: what lowering and packing read, and what tests run through.

A kernel of the library (``kernels/gemm.hpp``, ``gemm_i8.hpp``) is one driver for many micro-kernels; the target's flags
choose among those of an element type when a unit is compiled. This table says the same thing to Python, best first for
each element type: the first whose features a target has is the one compiled for it. ``tests/null/test_microkernels.py``
holds both to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from .target import CpuTarget

Array = np.ndarray[Any, Any]

BYTES = (DType.u8, DType.i8)
INTS = (DType.i8, DType.u8, DType.i16, DType.u16, DType.i32, DType.u32, DType.i64, DType.u64)


@dataclass(frozen=True)
class MicroKernel:
    """c[mr][nr] += a[mr][k] b[k][nr].

    ``product``: the op whose kernels it serves, ``matmul`` or ``qmatmul``. ``operands``: element types of A and B.
    ``needs``: features beyond x86-64-v3. ``vlen``: the least width of vectors, in bytes, that it is compiled for.
    ``mr``: most rows of a tile. ``panel``: columns of a packed panel, or where it is 0, four vectors of accumulators
    where vectors have 64 bytes, else two. ``kr``: steps of the reduction side by side in a packed panel.
    ``step``: elements of the reduction that the driver counts as one. ``layout``: the module of ``packing`` that
    packs for it. ``unit``: the source that holds it. ``instruction``: a pattern for the line of its disassembly.
    ``prologue``: what happens to operands on their way. ``saturates``: its instruction adds pairs of products in 16
    bits, so that weights are packed for that. Epilogues are generated loops on the accumulators, for all.
    """

    name: str
    product: str
    operands: tuple[DType, ...]
    needs: tuple[str, ...] = ()
    vlen: int = 32
    mr: int = 6
    panel: int = 0
    kr: int = 1
    step: int = 1
    layout: str = "gemm"
    unit: str = ""
    instruction: str = ""
    prologue: str = ""
    saturates: bool = False

    def accumulator(self, dtype: DType) -> DType:
        """The dtype of the sums of products of this one."""
        if self.product == "qmatmul":
            return DType.i32
        if dtype.is_int:
            return DType.i64 if dtype.itemsize == 8 else DType.i32
        return dtype.real.compute

    def nr(self, dtype: DType, vlen: int) -> int:
        """Columns of a packed panel for vectors of ``vlen`` bytes."""
        return self.panel or vlen // self.accumulator(dtype).itemsize * (4 if vlen >= 64 else 2)

    def why_not(self, target: CpuTarget) -> str | None:
        """What the target lacks, or None."""
        lacks = [f for f in self.needs if f not in target.isa]
        if target.vlen < self.vlen:
            lacks.append(f"vectors of {self.vlen} bytes")
        return ", ".join(lacks) or None


def _floats(name: str, dtype: DType, unit: str, instruction: str, **more: Any) -> MicroKernel:
    return MicroKernel(name, "matmul", (dtype,), unit=unit, instruction=instruction, **more)


def _bytes(name: str, instruction: str, **more: Any) -> MicroKernel:
    sizes = {"layout": "int8", "panel": 16, "kr": 4, "unit": "gemm_i8.cpp", "prologue": "A as unsigned bytes", **more}
    return MicroKernel(name, "qmatmul", BYTES, instruction=instruction, **sizes)


_WIDE = {"prologue": "widened to f32"}
_PAIRS = {"vlen": 64, "kr": 2, "step": 2}
TABLE: tuple[MicroKernel, ...] = (
    _floats("fma", DType.f32, "gemm_f32.cpp", "vfmadd231ps"),
    _floats("fma", DType.f64, "gemm_f64.cpp", "vfmadd231pd"),
    _floats("amx-bf16", DType.bf16, "gemm_half.cpp", "tdpbf16ps", needs=("amx_tile", "amx_bf16"), mr=16, **_PAIRS),
    _floats("avx512-bf16", DType.bf16, "gemm_half.cpp", "vdpbf16ps.*zmm", needs=("avx512bf16",), **_PAIRS),
    _floats("fma", DType.bf16, "gemm_half.cpp", "vfmadd231ps", kr=2, **_WIDE),
    _floats("fma", DType.f16, "gemm_half.cpp", "vcvtph2ps", **_WIDE),
    MicroKernel("vector", "matmul", INTS, unit="gemm_int.cpp", instruction="vpmulld", prologue="widened"),
    MicroKernel(
        "fma", "matmul", (DType.c64, DType.c128), unit="gemm_complex.cpp", instruction="vfmadd231p[sd]",
        prologue="real and imaginary parts as rows",
    ),
    _bytes("amx-int8", "tdpbusd", needs=("amx_tile", "amx_int8"), mr=32),
    _bytes("avx512-vnni", "vpdpbusd.*zmm", needs=("avx512vnni",), vlen=64, mr=12),
    _bytes("avx-vnni", r"\{vex\} vpdpbusd", needs=("avxvnni",)),
    _bytes("avx2", "vpmaddubsw", mr=4, saturates=True),
)  # fmt: skip


def candidates(product: str, dtype: DType) -> Iterator[MicroKernel]:
    """The micro-kernels for operands of this dtype (of A, for bytes), best first."""
    return (m for m in TABLE if m.product == product and dtype in m.operands)


def choose(target: CpuTarget, product: str, dtype: DType) -> MicroKernel:
    """The one that is compiled for a target; KeyError if there is none for the dtype."""
    for m in candidates(product, dtype):
        if m.why_not(target) is None:
            return m
    raise KeyError((product, dtype))


def ranked(target: CpuTarget, have: frozenset[str] | set[str]) -> list[str]:
    """Lines for a reader: for each element type its micro-kernels, best first, which of them the target takes, what it
    lacks for the others, and what of that a machine with the features ``have`` could run."""
    lines = []
    for product, dtype in dict.fromkeys((m.product, d) for m in TABLE for d in m.operands):
        if product == "matmul" and dtype.is_int and dtype is not DType.i32:
            continue  # as i32
        taken = choose(target, product, dtype)
        for m in candidates(product, dtype):
            lacks = m.why_not(target)
            runs = set(m.needs) <= have and (m.vlen < 64 or "avx512bw" in have)
            sizes = f"{m.mr} x {m.nr(dtype, max(m.vlen, target.vlen))}, kr {m.kr}"
            state = "taken" if m is taken else f"target lacks {lacks}" if lacks else "slower"
            here = "" if m is taken or lacks is None or not runs else "; this machine has it"
            what = f"{product} {dtype}"
            lines.append(f"{what:14} {m.name:12} {sizes:16} {state}{here}")
    return lines


def reference(a: Array, b: Array) -> Array:
    """What every micro-kernel must give: products and sums of integers in 64 bits, of floats in f64 or c128."""
    wide = np.int64 if a.dtype.kind in "iu" else np.complex128 if a.dtype.kind == "c" else np.float64
    return np.asarray(np.matmul(a.astype(wide), b.astype(wide)))
