"""Reductions and running sums."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx, topi

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import TVM_TYPE, Cx, Expr, Tensor, cast, const
from . import emits
from .elementwise import isnan, maximum, minimum

WIDE = {DType.f16: DType.f32, DType.bf16: DType.f32, DType.f32: DType.f64}  # what sums of a type accumulate in


def least(d: DType) -> Any:
    import numpy as np

    return False if d.is_bool else -math.inf if d.is_float else int(np.iinfo(d.np).min)


def greatest(d: DType) -> Any:
    import numpy as np

    return True if d.is_bool else math.inf if d.is_float else int(np.iinfo(d.np).max)


def reducer(kind: str, d: DType) -> Any:
    """The reducer over elements of ``d``; max and min propagate NaN."""
    f, start = {
        "sum": (lambda x, y: x + y, 0),
        "prod": (lambda x, y: x * y, 1),
        "max": (lambda x, y: maximum(d, x, y), least(d)),
        "min": (lambda x, y: minimum(d, x, y), greatest(d)),
        "any": (lambda x, y: tirx.Or(x, y), False),
        "all": (lambda x, y: tirx.And(x, y), True),
    }[kind]
    return te.comm_reducer(f, lambda _: const(start, d), name=kind)


def _reduced(cx: Cx, node: Node, kind: str, element: Any, work: DType) -> Tensor:
    """``element(*index of the operand)`` of type ``work`` reduced over the node's dims."""
    dims, keep, shape = node.attrs["dims"], node.attrs["keepdims"], node.operands[0].shape
    axes = cx.axes(*(shape[d] for d in dims))

    def run(*i: Expr) -> Expr:
        kept = iter(k for d, k in enumerate(i) if not keep or d not in dims)
        place = [axes[dims.index(d)].var if d in dims else next(kept) for d in range(len(shape))]
        return reducer(kind, work)(element(*place), axis=axes)

    return cx.compute(node.types[0].shape, run)


@emits("reduce")
def reduce(cx: Cx, node: Node, x: Tensor) -> Tensor:
    kind, dims, src, dst = node.attrs["kind"], node.attrs["dims"], node.operands[0].dtype, node.types[0].dtype
    shape = node.types[0].shape
    if kind in ("argmax", "argmin"):
        return _place(cx, node, x)
    if not dims:
        return cx.compute(shape, lambda *i: x(*i))
    if any(node.operands[0].shape[d] == 0 for d in dims):
        start = {"sum": 0, "prod": 1, "any": False, "all": True}.get(kind)
        return cx.compute(shape, lambda *i: const(start, dst))
    work = WIDE.get(src, src) if kind in ("sum", "prod") else src.compute
    y = _reduced(cx, node, kind, lambda *i: cast(x(*i), src, work), work)
    return y if work is dst else cx.compute(shape, lambda *i: cast(y(*i), work, dst))


def _place(cx: Cx, node: Node, x: Tensor) -> Tensor:
    """The first index of the extreme value, the first NaN's if there is one."""
    (dim,), d, keep = node.attrs["dims"], node.operands[0].dtype, node.attrs["keepdims"]
    wide = d.compute
    best = _reduced(cx, node, node.attrs["kind"][3:], lambda *i: cast(x(*i), d, wide), wide)

    def hit(*i: Expr) -> Expr:
        at = [tirx.const(0, "int64") if k == dim else v for k, v in enumerate(i)]
        b = best(*(at if keep else [v for k, v in enumerate(i) if k != dim]))
        v = cast(x(*i), d, wide)
        found = v == b
        if d.is_float:
            found = tirx.Or(found, tirx.And(isnan(wide, v), isnan(wide, b)))
        return tirx.Select(found, i[dim], tirx.const((1 << 63) - 1, "int64"))

    return _reduced(cx, node, "min", hit, DType.i64)


def _running(cx: Cx, node: Node, x: Tensor, f: Any) -> Tensor:
    d = node.types[0].dtype
    work = WIDE.get(d, d)
    if not node.types[0].rank:
        return cx.compute((), lambda *i: x())
    y = f(x, axis=node.attrs["dim"], dtype=TVM_TYPE[work], exclusive=False)
    return y if work is d else cx.compute(node.types[0].shape, lambda *i: cast(y(*i), work, d))


@emits("cumsum")
def cumsum(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return _running(cx, node, x, topi.cumsum)


@emits("cumprod")
def cumprod(cx: Cx, node: Node, x: Tensor) -> Tensor:
    return _running(cx, node, x, topi.cumprod)
