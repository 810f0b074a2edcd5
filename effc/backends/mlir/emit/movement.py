"""Views and movement."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.types import TensorType
from ..context import Cx, Ref
from . import emits


@emits("constant")
def constant(cx: Cx, node: Node) -> Any:
    return cx.literal(node.attrs["data"], node.types[0].dtype)


@emits("state")
def state(cx: Cx, node: Node) -> Any:
    return cx.states[node.attrs["name"]]


@emits("dim_value")
def dim_value(cx: Cx, node: Node) -> Any:
    return cx.full(node.attrs["value"], node.types[0])


@emits("copy")
def copy(cx: Cx, node: Node, x: Ref) -> Any:
    return x  # values do not change


@emits("reshape")
def reshape(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("reshape", x, list(node.types[0].shape), out=node.types[0])


@emits("permute")
def permute(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.permute(x, node.attrs["dims"])


@emits("broadcast_to")
def broadcast_to(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.broadcast(x, node.types[0].shape)


@emits("slice")
def slice_(cx: Cx, node: Node, x: Ref) -> Any:
    a, out = node.attrs, node.types[0]
    for d, (start, stop, step) in enumerate(zip(a["starts"], a["stops"], a["steps"], strict=True)):
        if (start, stop, step) != (0, x.shape[d], 1):
            shape = (*x.shape[:d], out.shape[d], *x.shape[d + 1 :])
            x = cx.aten("slice.Tensor", x, d, start, stop, step, out=x.type.with_shape(shape))
    return x


@emits("flip")
def flip(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.flip(x, node.attrs["dims"])


def row_major(cx: Cx, x: Ref) -> Ref:
    """x in storage of its own: where ATen counts elements of the storage."""
    return cx.aten("clone", x, memory_format=0, out=x.type)


@emits("as_strided")
def as_strided(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("as_strided", row_major(cx, x), list(a["shape"]), list(a["strides"]), a["offset"], out=node.types[0])


@emits("as_strided_scatter")
def as_strided_scatter(cx: Cx, node: Node, x: Ref, src: Ref) -> Any:
    a = node.attrs
    shape, strides = list(a["shape"]), list(a["strides"])
    return cx.aten("as_strided_scatter", row_major(cx, x), src, shape, strides, a["offset"], out=node.types[0])


@emits("diagonal")
def diagonal(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("diagonal", x, a["offset"], a["dim1"], a["dim2"], out=node.types[0])


@emits("diagonal_scatter")
def diagonal_scatter(cx: Cx, node: Node, x: Ref, src: Ref) -> Any:
    a = node.attrs
    return cx.aten("diagonal_scatter", x, src, a["offset"], a["dim1"], a["dim2"], out=node.types[0])


@emits("unfold")
def unfold(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("unfold", x, a["dim"], a["size"], a["step"], out=node.types[0])


@emits("real", "imag", "view_as_real", "view_as_complex")
def component(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten(node.op, x, out=node.types[0])


@emits("concat")
def concat(cx: Cx, node: Node, *xs: Ref) -> Any:
    return cx.aten("cat", list(xs), node.attrs["dim"], out=node.types[0])


@emits("full")
def full(cx: Cx, node: Node, *fill: Ref) -> Any:
    if fill and fill[0] is not None:
        return cx.broadcast(fill[0], node.types[0].shape)
    return cx.full(node.attrs["value"], node.types[0])


@emits("iota")
def iota(cx: Cx, node: Node) -> Any:
    a, out = node.attrs, node.types[0]
    x = cx.arange(out.shape[a["dim"]])
    if any(isinstance(a[k], float) for k in ("start", "step")):  # rounded once
        x = cx.convert(x, DType.f64)
    for name, key, nothing in (("mul.Tensor", "step", 1), ("add.Tensor", "start", 0)):
        if a[key] != nothing:
            by = cx.full(a[key], TensorType(x.dtype, ()))
            x = cx.aten(name, x, by, out=x.type)
    x = cx.convert(x, out.dtype)
    line = cx.reshape(x, [n if d == a["dim"] else 1 for d, n in enumerate(out.shape)])
    return cx.broadcast(line, out.shape)


@emits("tril", "triu")
def triangle(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten(node.op, x, node.attrs["diagonal"], out=node.types[0])


@emits("slice_scatter")
def slice_scatter(cx: Cx, node: Node, x: Ref, src: Ref) -> Any:
    a = node.attrs
    cuts = [
        (d, start, stop, step)
        for d, (start, stop, step) in enumerate(zip(a["starts"], a["stops"], a["steps"], strict=True))
        if (start, stop, step) != (0, x.shape[d], 1)
    ]
    if not cuts:
        return src

    def put(into: Ref, rest: list[Any]) -> Ref:
        """src within what is left to cut."""
        d, start, stop, step = rest[0]
        part = src
        if len(rest) > 1:
            shape = (*into.shape[:d], src.shape[d], *into.shape[d + 1 :])
            part = put(cx.aten("slice.Tensor", into, d, start, stop, step, out=into.type.with_shape(shape)), rest[1:])
        return cx.aten("slice_scatter", into, part, d, start, stop, step, out=into.type)

    return put(x, cuts)


@emits("select_scatter")
def select_scatter(cx: Cx, node: Node, x: Ref, src: Ref) -> Any:
    return cx.aten("select_scatter", x, src, node.attrs["dim"], node.attrs["index"], out=node.types[0])


@emits("pad")
def pad(cx: Cx, node: Node, x: Ref) -> Any:
    a, out = node.attrs, node.types[0]
    if a["mode"] == "constant":
        pairs = [p for pair in reversed(a["padding"]) for p in pair]
        if not x.dtype.is_complex:
            return cx.aten("constant_pad_nd", x, pairs, a["value"], out=out)
        value = complex(a["value"])
        parts = [
            cx.aten("constant_pad_nd", cx.unary(n, x, x.dtype.real), pairs, v, out=out.with_dtype(x.dtype.real))
            for n, v in (("real", value.real), ("imag", value.imag))
        ]
        return cx.aten("complex", *parts, out=out)
    for d, (low, high) in enumerate(a["padding"]):
        if (low, high) == (0, 0):
            continue
        n = x.shape[d]
        place = cx.arange(n + low + high)
        place = cx.aten("sub.Tensor", place, cx.full(low, TensorType(DType.i64, ())), out=place.type)
        last = cx.full(n - 1, TensorType(DType.i64, ()))
        if a["mode"] == "circular":
            place = cx.aten("remainder.Tensor", place, cx.full(n, TensorType(DType.i64, ())), out=place.type)
        elif a["mode"] == "reflect":
            back = cx.aten("sub.Tensor", last, cx.unary("abs", place), out=place.type)
            place = cx.aten("sub.Tensor", last, cx.unary("abs", back), out=place.type)
        else:
            place = cx.binary("minimum", cx.binary("maximum", place, 0), last)
        shape = (*x.shape[:d], out.shape[d], *x.shape[d + 1 :])
        x = cx.aten("index_select", x, d, place, out=x.type.with_shape(shape))
    return x


@emits("col2im")
def col2im(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    low = [p if isinstance(p, int) else p[0] for p in a["padding"]]
    lists = [list(a["kernel"]), list(a["dilation"]), low, list(a["stride"])]
    return cx.aten("col2im", x, list(a["size"]), *lists, out=node.types[0])
