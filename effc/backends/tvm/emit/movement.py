"""Views and movement: each result element is one operand element, at a computed index."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ....ir.graph import Node
from ..context import Cx, Expr, Index, Tensor, at, cast, const, every, flat, unflat
from . import emits


@emits("copy")
def copy(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return cx.compute(node.types[0].shape, lambda *i: x(*i))


@emits("dim_value")
def dim_value(cx: Cx, node: Node) -> Tensor:
    from ....ir.dtypes import DType

    return cx.compute((), lambda *i: cast(cx.dim(node.attrs["value"]), DType.i64, node.types[0].dtype))


@emits("reshape")
def reshape(cx: Cx, node: Node, x: Tensor) -> Tensor:
    old, new = cx.dims(node.operands[0].shape), cx.dims(node.types[0].shape)
    return cx.compute(node.types[0].shape, lambda *i: x(*unflat(flat(i, new), old)))


@emits("permute")
def permute(cx: Cx, node: Node, x: Tensor) -> Tensor:
    dims = node.attrs["dims"]
    return cx.compute(node.types[0].shape, lambda *i: x(*(i[dims.index(d)] for d in range(len(dims)))))


@emits("broadcast_to")
def broadcast_to(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return cx.compute(node.types[0].shape, lambda *i: at(x, i))


@emits("slice")
def slice_(cx: Cx, node: Node, x: Tensor) -> Tensor:
    starts, steps = cx.dims(node.attrs["starts"]), node.attrs["steps"]
    return cx.compute(node.types[0].shape, lambda *i: x(*(s + k * t for k, s, t in zip(i, starts, steps, strict=True))))


@emits("flip")
def flip(cx: Cx, node: Node, x: Tensor) -> Tensor:
    dims, sizes = node.attrs["dims"], cx.dims(node.types[0].shape)
    return cx.compute(
        node.types[0].shape, lambda *i: x(*(sizes[d] - 1 - k if d in dims else k for d, k in enumerate(i)))
    )


@emits("as_strided")
def as_strided(cx: Cx, node: Node, x: Tensor) -> Tensor:
    old, strides, offset = cx.dims(node.operands[0].shape), cx.dims(node.attrs["strides"]), cx.dim(node.attrs["offset"])

    def element(*i: Expr) -> Expr:
        place = offset
        for k, s in zip(i, strides, strict=True):
            place = place + k * s
        return x(*unflat(place, old))

    return cx.compute(node.types[0].shape, element)


@emits("diagonal")
def diagonal(cx: Cx, node: Node, x: Tensor) -> Tensor:
    offset, rank = node.attrs["offset"], node.operands[0].rank
    a, b = node.attrs["dim1"] % rank, node.attrs["dim2"] % rank

    def element(*i: Expr) -> Expr:
        rest, k = iter(i[:-1]), i[-1]
        place = {a: k + max(-offset, 0), b: k + max(offset, 0)}
        return x(*(place[d] if d in place else next(rest) for d in range(rank)))

    return cx.compute(node.types[0].shape, element)


@emits("unfold")
def unfold(cx: Cx, node: Node, x: Tensor) -> Tensor:
    dim, step = node.attrs["dim"], node.attrs["step"]
    return cx.compute(
        node.types[0].shape, lambda *i: x(*(k * step + i[-1] if d == dim else k for d, k in enumerate(i[:-1])))
    )


@emits("concat")
def concat(cx: Cx, node: Node, *xs: Tensor) -> Tensor:
    dim = node.attrs["dim"]
    sizes = [cx.dim(v.shape[dim]) for v in node.operands]

    def element(*i: Expr) -> Expr:
        ends = [sizes[0]]
        for n in sizes[1:]:
            ends.append(ends[-1] + n)

        def piece(k: int) -> Expr:
            start = ends[k - 1] if k else tirx.const(0, "int64")
            return xs[k](*(v - start if d == dim else v for d, v in enumerate(i)))

        out = piece(len(xs) - 1)
        for k in reversed(range(len(xs) - 1)):
            out = tirx.if_then_else(i[dim] < ends[k], piece(k), out)
        return out

    return cx.compute(node.types[0].shape, element)


@emits("iota")
def iota(cx: Cx, node: Node) -> Tensor:
    from ....ir.dims import SymExpr
    from ....ir.dtypes import DType

    a, dtype = node.attrs, node.types[0].dtype
    whole = not any(isinstance(a[k], float) for k in ("start", "step"))
    work = DType.i64 if whole else DType.f64

    def number(v: Any) -> Expr:
        return cast(cx.dim(v), DType.i64, work) if isinstance(v, SymExpr) else const(v, work)

    return cx.compute(
        node.types[0].shape,
        lambda *i: cast(number(a["start"]) + cast(i[a["dim"]], DType.i64, work) * number(a["step"]), work, dtype),
    )


@emits("full")
def full(cx: Cx, node: Node, *fill: Tensor) -> Tensor:
    from ....ir.dims import SymExpr
    from ....ir.dtypes import DType

    value, dtype = node.attrs["value"], node.types[0].dtype
    if fill:
        return cx.compute(node.types[0].shape, lambda *i: fill[0]())
    one = cast(cx.dim(value), DType.i64, dtype) if isinstance(value, SymExpr) else _exact(value, dtype)
    return cx.compute(node.types[0].shape, lambda *i: one)


def _exact(value: Any, dtype: Any) -> Expr:
    """A constant as the IR converts it: rounded, or wrapped."""
    import numpy as np

    with np.errstate(all="ignore"):
        return const(np.asarray(value).astype(dtype.np).item(), dtype)


def _triangle(cx: Cx, node: Node, x: Tensor, lower: bool) -> Tensor:
    k, zero = cx.dim(node.attrs["diagonal"]), const(0, node.types[0].dtype)

    def element(*i: Expr) -> Expr:
        d = i[-1] - i[-2]
        return tirx.Select(d <= k if lower else d >= k, x(*i), zero)

    return cx.compute(node.types[0].shape, element)


@emits("tril")
def tril(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return _triangle(cx, node, x, True)


@emits("triu")
def triu(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return _triangle(cx, node, x, False)


@emits("slice_scatter")
def slice_scatter(cx: Cx, node: Node, x: Tensor, src: Tensor) -> Tensor:
    starts, steps, sizes = cx.dims(node.attrs["starts"]), node.attrs["steps"], cx.dims(node.operands[1].shape)

    def element(*i: Expr) -> Expr:
        inside, place = [], []
        for k, s, t, n in zip(i, starts, steps, sizes, strict=True):
            q = k - s
            inside += [q >= 0, q < n * t, *([tirx.floormod(q, tirx.const(t, "int64")) == 0] if t != 1 else [])]
            place.append(tirx.floordiv(q, tirx.const(t, "int64")) if t != 1 else q)
        return tirx.if_then_else(every(inside), src(*place), x(*i)) if i else src()

    return cx.compute(node.types[0].shape, element)


@emits("select_scatter")
def select_scatter(cx: Cx, node: Node, x: Tensor, src: Tensor) -> Tensor:
    dim, index = node.attrs["dim"], cx.dim(node.attrs["index"])
    return cx.compute(
        node.types[0].shape,
        lambda *i: tirx.if_then_else(i[dim] == index, src(*(k for d, k in enumerate(i) if d != dim)), x(*i)),
    )


@emits("pad")
def pad(cx: Cx, node: Node, x: Tensor) -> Tensor:
    a = node.attrs
    lows, sizes = cx.dims([lo for lo, _ in a["padding"]]), cx.dims(node.operands[0].shape)
    if a["mode"] == "constant":
        fill = _exact(a["value"], node.types[0].dtype)

        def outside(*i: Expr) -> Expr:
            place = [k - lo for k, lo in zip(i, lows, strict=True)]
            inside = [c for p, n in zip(place, sizes, strict=True) for c in (p >= 0, p < n)]
            return tirx.if_then_else(every(inside), x(*place), fill)

        return cx.compute(node.types[0].shape, outside)

    def wrapped(p: Expr, n: Expr) -> Expr:
        if a["mode"] == "replicate":
            return tirx.max(tirx.min(p, n - 1), tirx.const(0, "int64"))
        if a["mode"] == "circular":
            return tirx.floormod(p, n)
        q = tirx.Select(p < 0, tirx.const(0, "int64") - p, p)
        return tirx.Select(q >= n, 2 * (n - 1) - q, q)

    def element(*i: Expr) -> Expr:
        place: Index = [
            k if p == (0, 0) else wrapped(k - lo, n) for k, lo, n, p in zip(i, lows, sizes, a["padding"], strict=True)
        ]
        return x(*place)

    return cx.compute(node.types[0].shape, element)
