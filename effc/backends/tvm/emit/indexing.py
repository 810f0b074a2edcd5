"""Gathering and scattering; negative indices count from the end."""

from __future__ import annotations

from tvm import tirx, topi

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Expr, Tensor, at, cast
from . import emits


def wrapped(i: Expr, d: DType, size: Expr) -> Expr:
    """An index from the front, within the size whatever it is."""
    i = cast(i, d, DType.i64)
    zero = tirx.const(0, "int64")
    return tirx.max(tirx.min(tirx.Select(i < zero, i + size, i), size - 1), zero)


@emits("gather")
def gather(cx: Cx, node: Node, x: Tensor, index: Tensor) -> Tensor:
    dim, d = node.attrs["dim"], node.operands[1].dtype
    size = cx.dim(node.operands[0].shape[dim])
    return cx.compute(
        node.types[0].shape, lambda *i: x(*(wrapped(index(*i), d, size) if k == dim else v for k, v in enumerate(i)))
    )


@emits("take")
def take(cx: Cx, node: Node, x: Tensor, index: Tensor) -> Tensor:
    dim, d, rank = node.attrs["dim"], node.operands[1].dtype, node.operands[1].rank
    size = cx.dim(node.operands[0].shape[dim])
    return cx.compute(
        node.types[0].shape,
        lambda *i: x(*i[:dim], wrapped(index(*i[dim : dim + rank]), d, size), *i[dim + rank :]),
    )


@emits("index")
def index_(cx: Cx, node: Node, x: Tensor, *indices: Tensor) -> Tensor:
    dims, rank = node.attrs["dims"], node.operands[0].rank
    common = max(v.rank for v in node.operands[1:])
    first = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0

    def element(*i: Expr) -> Expr:
        of, rest = i[first : first + common], iter([*i[:first], *i[first + common :]])
        place = {
            k: wrapped(at(t, of), v.dtype, cx.dim(node.operands[0].shape[k]))
            for k, t, v in zip(dims, indices, node.operands[1:], strict=True)
        }
        return x(*(place[k] if k in place else next(rest) for k in range(rank)))

    return cx.compute(node.types[0].shape, element)


def _not_scattered(node: Node) -> str | None:
    d = node.types[0].dtype
    if node.attrs["reduce"] == "mean" or not node.attrs["include_self"]:
        return "means, or sums without what was there"
    if node.attrs["reduce"] != "none" and (d.is_bool or d.bits < 32):
        return f"a reduction of {d}"
    return None


@emits("scatter", unless=_not_scattered)
def scatter(cx: Cx, node: Node, x: Tensor, index: Tensor, src: Tensor) -> Tensor:
    a, shape, d = node.attrs, node.operands[1].shape, node.operands[1].dtype
    size = cx.dim(node.types[0].shape[a["dim"]])
    if 0 in shape:
        return cx.compute(node.types[0].shape, lambda *i: x(*i))
    places = cx.compute(shape, lambda *i: wrapped(index(*i), d, size))
    given = cx.compute(shape, lambda *i: src(*i))
    kind = {"none": "update", "sum": "add", "prod": "mul", "amax": "max", "amin": "min"}[a["reduce"]]
    return topi.scatter_elements(x, places, given, a["dim"], kind)
