"""Constants, states, control flow and fused regions: the ops that carry data or subgraphs.

Subgraph conventions (a subgraph sees nothing but its inputs, and the outer symbols):

- ``if(cond, *xs)``: ``then`` and ``orelse`` take xs; cond is a bool scalar.
- ``while(*xs)``: the first ``carries`` operands are the carry, the rest constants. ``cond`` and ``body`` take both;
cond gives one
  bool scalar, body the next carry.
- ``scan(*xs)``: ``carries`` carries, then ``xs`` sliced along dim 0 (``scanned`` of them), then constants. ``body``
takes them in this
  order (slices without dim 0) and gives the next carries, then the slices of the stacked results.
- ``fused(*xs)``: a region of elementwise ops and reductions to be run as one kernel; ``body`` takes xs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..graph import Graph
from ..op import DimAttr, op, require
from ..types import TensorType


def _constant_infer(*, data: np.ndarray[Any, Any], dtype: DType) -> TensorType:
    require(data.dtype == dtype.np, f"data of {data.dtype} declared as {dtype}")
    return TensorType(dtype, tuple(data.shape))


op(
    "constant",
    "",
    {"data": object, "dtype": DType},
    infer=_constant_infer,
    numpy=lambda *, data, dtype: data,
    category="constant",
)
op(
    "state",
    "",
    {"name": str, "type": TensorType},
    infer=lambda *, name, type: type,
    category="state",
    effects="state",
    doc="The content, at the start of the call, of the session's buffer of this name. Graph.commits writes it.",
)
op(
    "dim_value",
    "",
    {"value": DimAttr, "dtype": (DType, DType.i64)},
    category="constant",
    infer=lambda *, value, dtype: TensorType(dtype, ()),
    numpy=lambda *, value, dtype: np.asarray(value, dtype.np),
    doc="A symbolic dim as a 0-d tensor.",
)


def _outs(g: Graph) -> tuple[TensorType, ...]:
    return tuple(v.type for v in g.outputs)


def _same_kind(a: TensorType, b: TensorType) -> bool:
    return a.dtype is b.dtype and a.rank == b.rank


def _if_infer(cond: TensorType, *xs: TensorType, then: Graph, orelse: Graph) -> tuple[TensorType, ...]:
    require(cond.dtype.is_bool and cond.rank == 0, f"the condition must be a bool scalar, not {cond}")
    a, b = _outs(then), _outs(orelse)
    require(len(a) == len(b) and all(map(_same_kind, a, b)), f"branches give different results: {a} and {b}")
    return a


op("if", "cond xs*", {"then": Graph, "orelse": Graph}, infer=_if_infer, category="control")


def _while_infer(*xs: TensorType, carries: int, cond: Graph, body: Graph) -> tuple[TensorType, ...]:
    outs = _outs(body)
    require(len(outs) == carries, f"the body gives {len(outs)} values for {carries} carries")
    require(all(map(_same_kind, xs, outs)), f"carry types change: {xs[:carries]} to {outs}")
    return outs


op("while", "xs*", {"carries": int, "cond": Graph, "body": Graph}, infer=_while_infer, category="control")


def _scan_infer(
    *xs: TensorType, carries: int, scanned: int, length: Dim, reverse: bool, body: Graph
) -> tuple[TensorType, ...]:
    outs = _outs(body)
    require(all(map(_same_kind, xs[:carries], outs)), "carry types change")
    return outs[:carries] + tuple(t.with_shape((length, *t.shape)) for t in outs[carries:])


op(
    "scan",
    "xs*",
    {"carries": int, "scanned": int, "length": DimAttr, "reverse": (bool, False), "body": Graph},
    infer=_scan_infer,
    category="control",
)


def _inline(b: Any, *xs: Any, body: Graph) -> Any:
    return body.inline(b, xs)


op(
    "fused",
    "xs*",
    {"body": Graph},
    infer=lambda *xs, body: _outs(body),
    category="fused",
    level="macro",
    decompose=_inline,
    doc="Elementwise ops and reductions run as one generated loop nest.",
)
