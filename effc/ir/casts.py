"""Conversions that say how to saturate and round, made of ``convert`` and elementwise ops. They mean what ONNX's Cast
means by its attributes ``saturate`` and ``round_mode``; where its text leaves a case open, what its reference
implementation does.
"""

from __future__ import annotations

import math
from typing import Any

from .dtypes import DType
from .graph import Builder, Value

ROUND = ("up", "down", "nearest")
_LARGEST = {DType.f8e5m2: 57344.0, DType.f8e4m3fnuz: 240.0, DType.f8e5m2fnuz: 57344.0}


def cast(b: Builder, x: Value, dtype: DType, *, saturate: bool = True, round_mode: str = "up") -> Value:
    """``x``, of any real dtype, as ``dtype``; the shape stays.

    ``saturate`` decides what floats of 8 bits make of values too large for them, infinity included: the largest finite
    value, else NaN, or infinity in f8e5m2. ``round_mode``, one of ROUND, is for f8e8m0. Other dtypes take neither: the
    result is ``convert``'s. ValueError for an unknown ``round_mode``.
    """
    if round_mode not in ROUND:
        raise ValueError(f"round_mode is {round_mode!r}, not one of {', '.join(ROUND)}")
    if x.dtype is dtype:
        return x
    if dtype is DType.f8e8m0:
        return _power_of_two(b, x, saturate, round_mode)
    if dtype is DType.f8e4m3 and not saturate:  # 464 is half way between 448, the largest, and what would come next
        wide = _op(b, "convert", x, dtype=DType.f32)
        nan = _op(b, "copysign", b.constant(math.nan, DType.f32), wide)
        over = _op(b, "gt", _op(b, "abs", wide), b.constant(464.0, DType.f32))
        x = _op(b, "where", over, nan, wide)
    elif dtype in _LARGEST and saturate:
        top = _LARGEST[dtype]
        wide = _op(b, "convert", x, dtype=DType.f32)
        x = _op(b, "maximum", _op(b, "minimum", wide, b.constant(top, DType.f32)), b.constant(-top, DType.f32))
    return _op(b, "convert", x, dtype=dtype)


def _op(b: Builder, name: str, *operands: Value, **attrs: Any) -> Value:
    out: Value = b.op(name, *operands, **attrs)
    return out


def _power_of_two(b: Builder, x: Value, saturate: bool, mode: str) -> Value:
    """To f8e8m0, on the bits of f32, whose exponent is the result. The sign is ignored.

    Saturating, all but NaN ends in [2^-127, 2^127]; otherwise what rounds to more than that is NaN, and so is what is
    less before rounding, unless it is rounded up.
    """

    def number(v: int) -> Value:
        return b.constant(v, DType.i32)

    bits = _op(b, "bitcast", _op(b, "convert", x, dtype=DType.f32), dtype=DType.i32)
    bits = _op(b, "bitwise_and", bits, number(0x7FFFFFFF))
    # Carries beyond 255 come from NaN alone, whose bits are cut so that adding to them does not wrap.
    size = _op(b, "minimum", bits, number(0x7F800000))
    least = number(0x400000)  # 2^-127, a denormal of f32
    if mode == "up":
        size = _op(b, "add", size, number(0x7FFFFF))
    elif mode == "nearest":
        size = _op(b, "add", size, number(0x400000))
    exponent = _op(b, "shr", size, number(23))
    if mode != "down":
        exponent = _op(b, "where", _op(b, "le", bits, least), number(0), exponent)
    exponent = _op(b, "minimum", exponent, number(254 if saturate else 255))
    if not saturate and mode != "up":
        exponent = _op(b, "where", _op(b, "lt", bits, least), number(255), exponent)
    exponent = _op(b, "where", _op(b, "gt", bits, number(0x7F800000)), number(255), exponent)
    return _op(b, "bitcast", _op(b, "convert", exponent, dtype=DType.u8), dtype=DType.f8e8m0)
