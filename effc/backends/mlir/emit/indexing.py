"""Gathering, scattering, searching, and results whose sizes the data decide."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.types import TensorType
from ..context import Cx, Ref, Refuse
from . import emits


def counted(cx: Cx, index: Ref) -> Ref:
    """An index as i64, the type that ATen takes."""
    return cx.convert(index, DType.i64)


def wrapped(cx: Cx, index: Ref, x: Ref, dim: int) -> Ref:
    """An index from the front, for operators that do not count from the end."""
    index = counted(cx, index)
    size = cx.full(x.shape[dim], TensorType(DType.i64, ()))
    behind = cx.aten("add.Tensor", index, size, out=index.type)
    return cx.where(cx.binary("lt.Tensor", index, 0), behind, index)


@emits("gather")
def gather(cx: Cx, node: Node, x: Ref, index: Ref) -> Any:
    dim = node.attrs["dim"]
    return cx.aten("gather", x, dim, wrapped(cx, index, x, dim), out=node.types[0])


@emits("take")
def take(cx: Cx, node: Node, x: Ref, index: Ref) -> Any:
    return cx.aten("index.Tensor", x, [None] * node.attrs["dim"] + [counted(cx, index)], out=node.types[0])


def _places(cx: Cx, node: Node, indices: tuple[Ref, ...]) -> list[Ref | None]:
    dims = node.attrs["dims"]
    places: list[Ref | None] = [None] * (max(dims) + 1)
    for d, i in zip(dims, indices, strict=True):
        places[d] = counted(cx, i)
    return places


@emits("index")
def index_(cx: Cx, node: Node, x: Ref, *indices: Ref) -> Any:
    return cx.aten("index.Tensor", x, _places(cx, node, indices), out=node.types[0])


@emits("index_put")
def index_put(cx: Cx, node: Node, x: Ref, values: Ref, *indices: Ref) -> Any:
    return cx.aten("index_put", x, _places(cx, node, indices), values, node.attrs["accumulate"], out=node.types[0])


@emits("scatter")
def scatter(cx: Cx, node: Node, x: Ref, index: Ref, src: Ref) -> Any:
    a = node.attrs
    index = wrapped(cx, index, x, a["dim"])
    if a["reduce"] == "none":
        return cx.aten("scatter.src", x, a["dim"], index, src, out=node.types[0])
    if a["reduce"] == "sum" and a["include_self"]:
        return cx.aten("scatter_add", x, a["dim"], index, src, out=node.types[0])
    if x.dtype.is_complex:
        if a["reduce"] != "sum":
            raise Refuse(f"a {a['reduce']} of {x.dtype}")
        x = cx.aten("scatter.src", x, a["dim"], index, cx.full(0, src.type), out=x.type)
        return cx.aten("scatter_add", x, a["dim"], index, src, out=x.type)
    if x.dtype.is_bool:  # ATen reduces no bools
        x, src = cx.convert(x, DType.u8), cx.convert(src, DType.u8)
    y = cx.aten("scatter_reduce.two", x, a["dim"], index, src, a["reduce"], include_self=a["include_self"], out=x.type)
    return cx.convert(y, node.types[0].dtype)


@emits("masked_scatter")
def masked_scatter(cx: Cx, node: Node, x: Ref, mask: Ref, source: Ref) -> Any:
    return cx.aten("masked_scatter", x, mask, source, out=node.types[0])


@emits("masked_select")
def masked_select(cx: Cx, node: Node, x: Ref, mask: Ref) -> Any:
    return cx.aten("masked_select", x, mask, out=node.types[0])


@emits("nonzero")
def nonzero(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("nonzero", x, out=node.types[0])


@emits("item")
def item(cx: Cx, node: Node, x: Ref) -> Any:
    y = cx.convert(cx.reshape(x, ()), DType.i64)
    d = node.attrs["value"]
    if not isinstance(d, int):
        cx.bind(d, cx.int_op("aten.Int.Tensor", y.value))
    return y


@emits("repeat_interleave")
def repeat_interleave(cx: Cx, node: Node, repeats: Ref) -> Any:
    return cx.aten("repeat_interleave.Tensor", counted(cx, repeats), out=node.types[0])


@emits("bincount")
def bincount(cx: Cx, node: Node, x: Ref, weights: Ref | None = None) -> Any:
    counts = cx.aten("bincount", x, None, node.attrs["minlength"], out=node.types[0].with_dtype(DType.i64))
    if weights is None:
        return counts
    # ATen's weighted count of nothing is of integers.
    size = node.types[0].shape[0]
    if not isinstance(size, int):
        cx.bind(size, cx.size_of(counts, 0))
    sums = cx.full(0, node.types[0])
    return cx.aten("scatter_add", sums, 0, counted(cx, x), weights, out=node.types[0])


@emits("searchsorted")
def searchsorted(cx: Cx, node: Node, line: Ref, values: Ref, sorter: Ref | None = None) -> Any:
    a = node.attrs
    return cx.aten(
        "searchsorted.Tensor", line, values, out_int32=a["dtype"] is DType.i32, right=a["right"], sorter=sorter,
        out=node.types[0],
    )  # fmt: skip


@emits("unique")
def unique(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("_unique2", x, True, True, True, out=node.types)


@emits("unique_consecutive")
def unique_consecutive(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("unique_consecutive", x, True, True, out=node.types)


@emits("unique_dim")
def unique_dim(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    if a["consecutive"]:
        return cx.aten("unique_dim_consecutive", x, a["dim"], True, True, out=node.types)
    return cx.aten("unique_dim", x, a["dim"], True, True, True, out=node.types)


@emits("histc")
def histc(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("histc", x, a["bins"], a["lo"], a["hi"], out=node.types[0])


@emits("embedding_bag")
def embedding_bag(cx: Cx, node: Node, weight: Ref, indices: Ref, offsets: Ref, scales: Ref | None = None) -> Any:
    a = node.attrs
    mode = ("sum", "mean", "max").index(a["mode"])
    indices, offsets = wrapped(cx, indices, weight, 0), counted(cx, offsets)
    bags = node.types[0].shape[0]
    line = TensorType(DType.i64, (bags,))
    # The other results are for gradients; their sizes are not defined.
    rest = [TensorType(DType.i64, (cx.unknown(),)), line, TensorType(DType.i64, (cx.unknown(),) * (1 + (mode == 2)))]
    args = (weight, indices, offsets, False, mode, False, scales, a["include_last_offset"], a["padding_idx"])
    return cx.aten("_embedding_bag", *args, out=[node.types[0], *rest])[0]
