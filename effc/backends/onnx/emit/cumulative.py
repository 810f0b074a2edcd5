"""Running sums, products, extrema and linear recurrences.

CumSum and CumProd are ONNX's. The others combine each element with the one 1, 2, 4, ... places before it (Hillis and
Steele, 1986), which takes log2(n) elementwise steps instead of n rounds of a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Pair, Refuse
from . import emits
from .elementwise import cadd, cmul, log1p, where


def doubling(
    cx: Cx, values: Sequence[str], dim: int, n: Dim, combine: Callable[[Cx, list[str], list[str]], list[str]],
    neutral: Sequence[Any], reverse: bool = False,
) -> list[str]:  # fmt: skip
    """The running combination along dim: ``combine(earlier, later)`` is associative with ``neutral``."""
    if not isinstance(n, int):
        return _loop(cx, list(values), dim, n, combine, neutral, reverse)
    xs, step = list(values), 1
    while step < n:
        before = []
        for x, e in zip(xs, neutral, strict=True):
            kept = cx.slice(x, dim, step, n) if reverse else cx.slice(x, dim, 0, n - step)
            pads = cx.ints(0, step) if reverse else cx.ints(step, 0)
            before.append(cx.op("Pad", kept, pads, cx.like(e, x), cx.ints(dim)))
        xs = combine(cx, before, xs)
        step *= 2
    return xs


def _loop(
    cx: Cx, xs: list[str], dim: int, n: Dim, combine: Any, neutral: Sequence[Any], reverse: bool
) -> list[str]:  # fmt: skip
    """The same with as many doublings as a size known at run time needs. Shifted copies are gathered, since a Pad
    would need its amount in an attribute's place."""
    size = cx.scalar(n)
    place = cx.range(n)

    def step(inner: Cx, i: str, carry: list[str]) -> list[str]:
        shift, *now = carry
        source = inner.op("Add" if reverse else "Sub", place, shift)
        ok = inner.op("Less", source, size) if reverse else inner.op("GreaterOrEqual", source, inner.like(0, source))
        source = inner.op("Where", ok, source, inner.like(0, source))
        before = []
        for x, e, rank in zip(now, neutral, ranks, strict=True):
            got = inner.op("Gather", x, source, axis=dim)
            others = list(range(1, rank - dim))
            mask = inner.unsqueeze(ok, *others) if others else ok
            before.append(inner.op("Where", mask, got, inner.like(e, x)))
        return [inner.op("Mul", shift, inner.like(2, shift)), *combine(inner, before, now)]

    ranks = [cx.rank] * len(xs)
    log2 = cx.op("Ceil", cx.op("Div", cx.op("Log", cx.cast(cx.op("Max", size, cx.like(1, size)), DType.f64)),
                               cx.const(np.asarray(math.log(2)))))  # fmt: skip
    trips = cx.op("Add", cx.cast(log2, DType.i64), cx.like(1, size))  # one more does no harm
    return cx.loop(trips, [cx.const(np.asarray(1, np.int64)), *xs], step)[1:]


def running(cx: Cx, x: str, dim: int, n: Dim, op: str) -> str:
    """The running maximum or minimum of integers."""
    info = np.iinfo(cx.dtype(x).np)
    neutral = info.min if op == "Max" else info.max
    return doubling(cx, [x], dim, n, lambda c, a, b: [c.op(op, a[0], b[0])], [neutral])[0]


@emits("cumsum", complex=True)
def cumsum(cx: Cx, node: Node, x: Any) -> Any:
    def one(v: str) -> str:
        return _accumulated(cx, "CumSum", v, node.attrs["dim"])

    return Pair(one(x.re), one(x.im)) if isinstance(x, Pair) else one(x)


def _accumulated(cx: Cx, op: str, x: str, dim: int) -> str:
    dtype = cx.dtype(x)
    wide = DType.f64 if dtype is DType.f32 else dtype.compute
    return cx.cast(cx.op(op, cx.cast(x, wide), cx.const(np.asarray(dim, np.int64))), dtype)


@emits("cumprod", complex=True)
def cumprod(cx: Cx, node: Node, x: Any) -> Any:
    dim, v = node.attrs["dim"], node.operands[0]
    if not isinstance(x, Pair):
        return _accumulated(cx, "CumProd", x, dim)
    if 0 in v.shape:
        return x
    cx.rank = v.rank
    wide = [cx.cast(p, DType.f64) for p in (x.re, x.im)]

    def combine(c: Cx, a: list[str], b: list[str]) -> list[str]:
        z = cmul(c, Pair(*a), Pair(*b))
        return [z.re, z.im]

    return Pair(*doubling(cx, wide, dim, v.shape[dim], combine, [1.0, 0.0]))


@emits("cummax", "cummin")
def extreme(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    """Values and places as running maxima of integers: NaN is above everything, for both."""
    from .sorting import keys

    v, dim = node.operands[0], node.attrs["dim"]
    if 0 in v.shape:
        return x, cx.fill(0, v.shape, DType.i64)
    cx.rank = v.rank
    k = cx.cast(keys(cx, x), DType.i64)
    if node.op == "cummin":
        k = cx.op("BitwiseNot", k)
        if cx.dtype(x).is_float:
            k = cx.op("Where", cx.op("IsNaN", x), cx.like(np.iinfo(np.int64).max, k), k)
    top = running(cx, k, dim, v.shape[dim], "Max")
    place = cx.range(v.shape[dim])
    others = list(range(1, v.rank - dim))
    place = cx.unsqueeze(place, *others) if others else place
    at = cx.op("Where", cx.op("Equal", k, top), place, cx.like(0, k))
    at = running(cx, at, dim, v.shape[dim], "Max")
    return cx.op("GatherElements", x, at, axis=dim), at


@emits("logcumsumexp", wide=True)
def logcumsumexp(cx: Cx, node: Node, x: str) -> str:
    v, dim = node.operands[0], node.attrs["dim"]
    if 0 in v.shape:
        return x
    cx.rank = v.rank

    def combine(c: Cx, a: list[str], b: list[str]) -> list[str]:
        big = c.op("Max", a[0], b[0])
        gap = c.op("Neg", c.op("Abs", c.op("Sub", a[0], b[0])))
        total = c.op("Add", big, log1p(c, c.op("Exp", gap)))
        return [where(c, c.op("Equal", a[0], b[0]), c.op("Add", big, c.like(math.log(2), big)), total)]

    return doubling(cx, [x], dim, v.shape[dim], combine, [-math.inf])[0]


@emits("linear_recurrence", complex=True)
def linear_recurrence(cx: Cx, node: Node, a: Any, x: Any, init: Any = None) -> Any:
    """(a, x) after (b, y) is (a b, a y + x)."""
    v, dim, reverse = node.operands[1], node.attrs["dim"], node.attrs["reverse"]
    if 0 in v.shape:
        return x
    cx.rank = v.rank
    n = v.shape[dim]
    if isinstance(x, Pair):

        def pairs(c: Cx, p: list[str], q: list[str]) -> list[str]:
            b, y, d, z = Pair(p[0], p[1]), Pair(p[2], p[3]), Pair(q[0], q[1]), Pair(q[2], q[3])
            decay, h = cmul(c, d, b), cadd(c, cmul(c, d, y), z)
            return [decay.re, decay.im, h.re, h.im]

        out = doubling(cx, [a.re, a.im, x.re, x.im], dim, n, pairs, [1.0, 0.0, 0.0, 0.0], reverse)
        h = Pair(out[2], out[3])
        if init is None:
            return h
        first = Pair(cx.unsqueeze(init.re, dim), cx.unsqueeze(init.im, dim))
        return cadd(cx, h, cmul(cx, Pair(out[0], out[1]), first))
    if cx.dtype(x).is_complex:
        raise Refuse("complex numbers")
    dtype = cx.dtype(x)
    a, x = cx.cast(a, dtype.compute), cx.cast(x, dtype.compute)

    def combine(c: Cx, p: list[str], q: list[str]) -> list[str]:
        return [c.op("Mul", q[0], p[0]), c.op("Add", c.op("Mul", q[0], p[1]), q[1])]

    decay, y = doubling(cx, [a, x], dim, n, combine, [1.0, 0.0], reverse)
    if init is not None:
        y = cx.op("Add", y, cx.op("Mul", decay, cx.unsqueeze(cx.cast(init, dtype.compute), dim)))
    return cx.cast(y, dtype)
