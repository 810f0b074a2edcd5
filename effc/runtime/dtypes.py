"""The element types: one table for the IR, the loader and the tools. Needs numpy alone.

The table's order is the numbering of ``effc_dtype`` in effc_kernel.h and part of the artifact format: append only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ElementType:
    """One element type. ``name`` is its text name; ``size`` its bytes in memory, also for types of less than a byte;
    ``bits`` the bits that carry its value.

    ``numpy``: the numpy type where numpy has one, else the unsigned integer that views its bits. ``ml``: its name in
    ml_dtypes, for those that numpy lacks. ``torch``: its name in torch, else the torch type that views its bits.
    """

    name: str
    size: int
    bits: int
    numpy: str
    torch: str
    ml: str = ""
    plain: bool = True  # numpy has the type


def _numpy(name: str, numpy: str, torch: str) -> ElementType:
    size = np.dtype(numpy).itemsize
    return ElementType(name, size, 1 if name == "bool" else 8 * size, numpy, torch)


def _bits(name: str, bits: int, torch: str, ml: str = "") -> ElementType:
    size = (bits + 7) // 8
    return ElementType(name, size, bits, f"u{size}", torch, ml, plain=False)


TABLE = (
    _numpy("bool", "?", "bool"),
    _numpy("u8", "u1", "uint8"),
    _numpy("i8", "i1", "int8"),
    _numpy("u16", "u2", "uint16"),
    _numpy("i16", "i2", "int16"),
    _numpy("u32", "u4", "uint32"),
    _numpy("i32", "i4", "int32"),
    _numpy("u64", "u8", "uint64"),
    _numpy("i64", "i8", "int64"),
    _numpy("f16", "f2", "float16"),
    _bits("bf16", 16, "bfloat16", "bfloat16"),
    _numpy("f32", "f4", "float32"),
    _numpy("f64", "f8", "float64"),
    _bits("f8e4m3", 8, "float8_e4m3fn", "float8_e4m3fn"),
    _bits("f8e5m2", 8, "float8_e5m2", "float8_e5m2"),
    _numpy("c64", "c8", "complex64"),
    _numpy("c128", "c16", "complex128"),
    _bits("c32", 32, "complex32"),
    _bits("i4", 4, "uint8", "int4"),
    _bits("u4", 4, "uint8", "uint4"),
    _bits("i2", 2, "uint8", "int2"),
    _bits("u2", 2, "uint8", "uint2"),
    _bits("f4e2m1", 4, "uint8", "float4_e2m1fn"),
    _bits("f8e4m3fnuz", 8, "float8_e4m3fnuz", "float8_e4m3fnuz"),
    _bits("f8e5m2fnuz", 8, "float8_e5m2fnuz", "float8_e5m2fnuz"),
    _bits("f8e8m0", 8, "float8_e8m0fnu", "float8_e8m0fnu"),
)
NAMES = [t.name for t in TABLE]
BY_NAME = {t.name: t for t in TABLE}
CODE = {name: code for code, name in enumerate(NAMES)}
INTS = frozenset(n for n in NAMES if n == "bool" or n[0] in "iu")


def ml_dtype(name: str) -> np.dtype[Any] | None:
    """ml_dtypes' type for an element type that numpy lacks; None without ml_dtypes, or for c32, which has none."""
    if not BY_NAME[name].ml:
        return None
    try:
        import ml_dtypes
    except ImportError:
        return None
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, BY_NAME[name].ml))
    return found
