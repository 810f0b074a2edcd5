"""Distances between points."""

from __future__ import annotations

import math

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Refuse
from . import emits
from .elementwise import nonzero


def _norm(cx: Cx, d: str, p: float) -> str:
    """The p-norm over the last dim."""
    last = cx.ints(-1)
    if p == 0:
        return cx.op("ReduceSum", cx.cast(nonzero(cx, d), cx.dtype(d)), last, keepdims=0)
    if p == 2:
        return cx.op("Sqrt", cx.op("ReduceSum", cx.op("Mul", d, d), last, keepdims=0))
    a = cx.op("Abs", d)
    if math.isinf(p):
        return cx.op("ReduceMax", a, last, keepdims=0)
    if p == 1:
        return cx.op("ReduceSum", a, last, keepdims=0)
    total = cx.op("ReduceSum", cx.op("Pow", a, cx.like(p, a)), last, keepdims=0)
    return cx.op("Pow", total, cx.like(1 / p, a))


@emits("cdist")
def cdist(cx: Cx, node: Node, x: str, y: str) -> str:
    v, w = node.operands
    if 0 in node.types[0].shape or v.shape[-1] == 0:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    # x as [.., P, 1, M], y as [.., 1, R, M]
    return _norm(cx, cx.op("Sub", cx.unsqueeze(x, v.rank - 1), cx.unsqueeze(y, w.rank - 2)), node.attrs["p"])


@emits("pdist")
def pdist(cx: Cx, node: Node, x: str) -> str:
    v = node.operands[0]
    n = v.shape[0]
    if not isinstance(n, int):
        raise Refuse("all pairs of an unknown number of points")
    if n < 2 or v.shape[1] == 0:
        return cx.fill(0, (n * (n - 1) // 2,), cx.dtype(x))
    i, j = (cx.const(k.astype(np.int64), DType.i64) for k in np.triu_indices(n, 1))
    return _norm(cx, cx.op("Sub", cx.op("Gather", x, i, axis=0), cx.op("Gather", x, j, axis=0)), node.attrs["p"])
