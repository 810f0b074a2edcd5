"""Constants, states and control flow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim
from ....ir.graph import Node
from . import Buf, Lowering, lowers


@lowers("constant")
def lower_constant(cx: Lowering, node: Node) -> None:
    """Nothing: ``cx.strided`` places a constant when a kernel reads it."""


@lowers("state")
def lower_state(cx: Lowering, node: Node) -> None:
    name = node.attrs["name"]
    for i, v in enumerate(cx.values):
        if v["k"] == "state" and v["name"] == name:
            t = node.types[0]
            from . import row_major

            cx.bind(node, Buf(i, i, t.dtype, t.shape, row_major(t.shape)))
            return
    cx.bind(node, cx.storage(node.types[0].dtype, node.types[0].shape, "state", name=name))


def _emit(cx: Lowering, node: Node, **fields: Any) -> None:
    late = node.attrs["then"].bound() if node.op == "if" else set()  # sizes that only the branches know
    dyn = [any(dims.symbols(d) & late for d in t.shape) for t in node.types]
    outs = [cx.out(node, i, dyn=dyn[i]).id for i in range(len(node.types))]
    cx.code.append(
        {"out": outs, "name": node.name or node.op, "loc": str(node.loc or ""), "flops": 0, "bytes": 0, **fields}
    )


@lowers("if")
def lower_if(cx: Lowering, node: Node) -> None:
    ins = [cx.dense(v).id for v in node.operands]
    _emit(
        cx,
        node,
        **{
            "op": "if",
            "cond": ins[0],
            "in": ins[1:],
            "then": cx.subprogram(node.attrs["then"]),
            "else": cx.subprogram(node.attrs["orelse"]),
        },
    )


@lowers("while")
def lower_while(cx: Lowering, node: Node) -> None:
    ins = [cx.dense(v).id for v in node.operands]
    k = node.attrs["carries"]
    _emit(
        cx,
        node,
        **{
            "op": "while",
            "in": ins[:k],
            "consts": ins[k:],
            "cond": cx.subprogram(node.attrs["cond"]),
            "body": cx.subprogram(node.attrs["body"]),
        },
    )


@lowers("scan")
def lower_scan(cx: Lowering, node: Node) -> None:
    ins = [cx.dense(v).id for v in node.operands]
    k, m = node.attrs["carries"], node.attrs["scanned"]
    length: Dim = node.attrs["length"]
    _emit(
        cx,
        node,
        op="scan",
        length=length,
        reverse=node.attrs["reverse"],
        carry=ins[:k],
        xs=ins[k : k + m],
        consts=ins[k + m :],
        body=cx.subprogram(node.attrs["body"]),
    )


def scalar(cx: Lowering, value: Any, dtype: Any) -> Buf:
    """A constant 0-d Buf."""
    return cx.const(np.asarray(value, dtype.np), dtype)
