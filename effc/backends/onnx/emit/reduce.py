"""Reductions."""

from __future__ import annotations

import math
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Pair, Refuse
from . import emits

OPS = {"sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin", "any": "ReduceMax",
       "all": "ReduceMin"}  # fmt: skip


@emits("reduce", wide=True, complex=True)
def reduce(cx: Cx, node: Node, x: Any) -> Any:
    kind, dims, keep = (node.attrs[k] for k in ("kind", "dims", "keepdims"))
    if isinstance(x, Pair):
        if kind == "sum":
            return Pair(*(_plain(cx, kind, v, dims, keep) for v in (x.re, x.im)))
        if kind == "prod":
            return _complex_product(cx, node, x)
        raise Refuse(f"{kind} of complex numbers")
    if kind in ("argmax", "argmin"):
        return _place(cx, kind, x, dims[0], keep)
    full = all(isinstance(n := node.operands[0].shape[d], int) and n > 0 for d in dims)
    y = _plain(cx, kind, x, dims, keep, not full)
    if kind in ("max", "min") and cx.dtype(x).is_float and dims and cx.shared.strict_nan:  # onnxruntime overlooks NaN
        y = cx.op("Where", _plain(cx, "any", cx.op("IsNaN", x), dims, keep), cx.like(math.nan, y), y)
    return y


def _plain(cx: Cx, kind: str, x: str, dims: tuple[int, ...], keep: bool, empty: bool = False) -> str:
    if empty and kind in ("any", "all") and dims:  # of no bools onnxruntime knows no maximum, of no integers it does
        return cx.cast(_plain(cx, kind, cx.cast(x, DType.u8), dims, keep), DType.bool)
    return x if not dims else cx.op(OPS[kind], x, cx.ints(*dims), keepdims=int(keep))


def _place(cx: Cx, kind: str, x: str, dim: int, keep: bool) -> str:
    at = cx.op("ArgMax" if kind == "argmax" else "ArgMin", x, axis=dim, keepdims=int(keep))
    if not cx.dtype(x).is_float:
        return at
    nan = cx.op("IsNaN", x)
    first = cx.op("ArgMax", cx.cast(nan, DType.u8), axis=dim, keepdims=int(keep))
    return cx.op("Where", _plain(cx, "any", nan, (dim,), keep), first, at)


def _complex_product(cx: Cx, node: Node, x: Pair) -> Pair:
    """Multiplies slice by slice."""
    from .elementwise import cmul

    shape, dims = node.operands[0].shape, node.attrs["dims"]
    for d in sorted(dims, reverse=True):
        n = shape[d]
        if not isinstance(n, int) or n > 512:
            raise Refuse(f"a product of complex numbers over a dim of size {n}")
        if n == 0:
            raise Refuse("a product of no complex numbers")
        parts = [Pair(cx.slice(x.re, d, i, i + 1), cx.slice(x.im, d, i, i + 1)) for i in range(n)]
        while len(parts) > 1:
            pairs = [cmul(cx, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[len(pairs) * 2 :]
        x = parts[0]
        if not node.attrs["keepdims"]:
            x = Pair(cx.squeeze(x.re, d), cx.squeeze(x.im, d))
    return x
