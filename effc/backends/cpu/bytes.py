"""Rounding to bytes in generated loops: convert(clip(round(x / scale) + zero)), as QuantizeLinear writes it, and the
floats that DequantizeLinear makes of such bytes, (byte - zero), in fewer instructions and with the same results.

x is clipped first, to the numbers that give the lowest and the highest byte: division and rounding are monotonic, so
nothing changes, and all that follows is small. x / scale is the sum of two products, with the scale's reciprocal and
with what rounding left of it. That is not division bit for bit, but only the nearest whole number is wanted, and it can
only differ around the 255 borders between neighbours: :func:`reciprocal` compares the two there, float by float, and a
scale for which one differs keeps its division. The sum with 1.5 * 2^23 is rounded to a whole number as `round` rounds,
ties to even, and holds it in its low bits (kernels/math.hpp, ``steps``). NaN gives byte 0, as the conversion does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value

NEAR = 4  # floats on each side of a border that are compared; products and quotients differ by less than two
BYTES = (DType.u8, DType.i8)


@dataclass(frozen=True)
class Rounding:
    """``x``, clipped to ``low`` and ``high``, in steps of a scale with this reciprocal; byte = steps + zero. Where x is
    NaN, it is ``nan``, or ``low`` if that gives byte 0 anyway."""

    x: Value
    low: np.float32
    high: np.float32
    scale: np.float32
    rest: np.float32
    zero: int
    nan: np.float32 | None

    def floats(self) -> tuple[np.float32, ...]:
        return (self.low, self.high, self.scale, self.rest, *(() if self.nan is None else (self.nan,)))


@lru_cache(4096)
def reciprocal(scale: float, low: int, high: int) -> tuple[np.float32, np.float32] | None:
    """(r, rest) for which fma(x, r, x * rest) has the nearest whole number that x / scale has, for all floats x that
    give low .. high; None if there is none."""
    s = np.float32(scale)
    if not 2.0**-60 < scale < 2.0**60 or high <= low:
        return None
    r = np.float32(1 / np.float64(s))
    rest = np.float32(1 / np.float64(s) - np.float64(r))
    borders = np.concatenate([np.arange(low, high) + 0.5, [low, high]])
    around = (borders * np.float64(s)).astype(np.float32)[borders != 0].view(np.int32)
    x = (around[:, None] + np.arange(-NEAR, NEAR + 1, dtype=np.int32)).view(np.float32)
    sums = x.astype(np.float64) * np.float64(r) + (x * rest).astype(np.float64)
    # A sum that rounding to 53 bits puts half way between two floats is one of which this does not tell.
    if ((sums.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)).any():
        return None
    return (r, rest) if (np.rint(sums.astype(np.float32)) == np.rint(x / s)).all() else None


def number(v: Value) -> Any:
    """The value of a constant of one element, or None."""
    return v.node.attrs["data"].reshape(-1)[0] if v.node.op == "constant" and v.node.attrs["data"].size == 1 else None


def with_constant(v: Value, op: str) -> tuple[Value, float] | None:
    """``v`` as (other operand, constant) of a commutative op of f32."""
    if v.node.op != op or v.dtype is not DType.f32:
        return None
    for x, c in (v.node.operands, v.node.operands[::-1]):
        found = number(c)
        if found is not None and np.isfinite(found):
            return x, float(found)
    return None


def _quotient(v: Value) -> tuple[Value, float] | None:
    """``v`` as x / scale; canonical graphs multiply where the scale is a power of two."""
    if v.node.op == "div":
        scale = number(v.node.operands[1])
        return None if scale is None else (v.node.operands[0], float(scale))
    found = with_constant(v, "mul")
    if found is None or found[1] <= 0 or np.frexp(found[1])[0] != 0.5:
        return None
    return found[0], 1 / found[1]


def rounding(n: Node) -> Rounding | None:
    """What ``n`` does if it is such a conversion to bytes."""
    if n.op != "convert" or n.types[0].dtype not in BYTES or n.operands[0].dtype is not DType.f32:
        return None
    upper = with_constant(n.operands[0], "minimum")
    lower = with_constant(upper[0], "maximum") if upper else None
    if upper is None or lower is None:
        return None
    whole, zero = with_constant(lower[0], "add") or (lower[0], 0.0)
    found = _quotient(whole.node.operands[0]) if whole.node.op == "round" else None
    if found is None:
        return None
    (x, scale), info = found, np.iinfo(n.types[0].dtype.np)
    low, high = lower[1], upper[1]
    if x.dtype is not DType.f32 or zero != int(zero) or low != int(low) or high != int(high):
        return None
    if not info.min <= low < high <= info.max or not -256 <= zero <= 256:
        return None
    lo, hi, z, s = int(low), int(high), int(zero), np.float32(scale)
    factors = reciprocal(float(s), lo - z, hi - z)
    if factors is None:
        return None
    ends = [np.float32(k) * s for k in (lo - z, hi - z, -z)]
    return Rounding(x, ends[0], ends[1], *factors, z, None if lo == 0 else ends[2])


def _steps_of(n: Node) -> Node | None:
    """The conversion to bytes of which ``n`` is byte - zero in f32."""
    if n.op != "convert" or n.types[0].dtype is not DType.f32:
        return None
    inner, zero = n.operands[0], 0
    if inner.node.op == "sub" and inner.dtype is DType.i32:
        known = number(inner.node.operands[1])
        if known is None or inner.node.operands[0].node.op != "convert":
            return None
        inner, zero = inner.node.operands[0].node.operands[0], int(known)
    found = rounding(inner.node)
    return inner.node if found is not None and found.zero == zero else None


def roundings(body: Graph) -> dict[Node, tuple[Rounding, bool]]:
    """Nodes that are conversions to bytes, and (True) those that are the floats of one, with what they do."""
    out: dict[Node, tuple[Rounding, bool]] = {}
    for n in body.nodes:
        found = rounding(n)
        if found is not None:
            out[n] = (found, False)
            continue
        source = _steps_of(n)
        if source is not None and source in out:
            out[n] = (out[source][0], True)
    return out
