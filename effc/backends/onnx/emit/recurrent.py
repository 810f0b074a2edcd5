"""LSTM, GRU and plain recurrent layers, which ONNX has; its gates come in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node, Value
from ....ir.interp import decomposed
from ..context import Cx, Ref
from . import emits

GATES = {"lstm_layer": (0, 3, 1, 2), "gru_layer": (1, 0, 2), "rnn_layer": (0,)}  # i f g o -> i o f c; r z n -> z r h


def written_out(cx: Cx, node: Node, ins: Sequence[Ref | None]) -> tuple[Ref, ...]:
    """The node's decomposition in place."""
    graph = decomposed(node)
    given = [x for x in ins if x is not None]
    for n, x in zip(graph.inputs, given, strict=True):
        cx.values[n[0]] = x
    cx.walk(graph.nodes)
    out = []
    for v in graph.outputs:
        x = cx.find(v)
        assert x is not None
        out.append(x)
    return tuple(out)


@emits("lstm_layer")
def lstm(cx: Cx, node: Node, x: str, h0: str, c0: str, *rest: str | None) -> tuple[Ref, ...]:
    weights = [*rest, None, None, None][:5]
    if weights[4] is not None:  # a projected state
        return written_out(cx, node, [x, h0, c0, *rest])
    if cx.dtype(x) is DType.f64:  # onnxruntime registers f64 kernels, which then refuse to run
        return written_out(cx, node, [x, h0, c0, *rest])
    return _layer(cx, node, "LSTM", x, [h0, c0], weights[:4])


@emits("gru_layer")
def gru(cx: Cx, node: Node, x: str, h0: str, *rest: str | None) -> tuple[Ref, ...]:
    if cx.dtype(x) is DType.f64:
        return written_out(cx, node, [x, h0, *rest])
    return _layer(cx, node, "GRU", x, [h0], [*rest, None, None][:4], linear_before_reset=1)


@emits("rnn_layer")
def rnn(cx: Cx, node: Node, x: str, h0: str, *rest: str | None) -> tuple[Ref, ...]:
    if cx.dtype(x) is DType.f64:
        return written_out(cx, node, [x, h0, *rest])
    kind = {"tanh": "Tanh", "relu": "Relu"}[node.attrs["activation"]]
    return _layer(cx, node, "RNN", x, [h0], [*rest, None, None][:4], activations=[kind])


def all_zero(v: Value) -> bool:
    """Whether v is zeros, moved about."""
    while v.node.op in ("slice", "reshape", "broadcast_to", "permute"):
        v = v.node.operands[0]
    if v.node.op == "full":
        return bool(v.node.attrs["value"] == 0)
    return v.node.op == "constant" and v.dtype.is_float and not np.any(v.node.attrs["data"])


def _layer(
    cx: Cx, node: Node, op: str, x: str, states: Sequence[str], weights: Sequence[str | None], **attrs: object
) -> tuple[Ref, ...]:  # fmt: skip
    if 0 in node.types[0].shape:
        return (cx.fill(0, node.types[0].shape, cx.dtype(x)), *states)
    gates = GATES[node.op]
    units = node.operands[1].shape[1]
    if not isinstance(units, int):
        return written_out(cx, node, [x, *states, *weights])
    dtype = cx.dtype(x)
    wide = dtype.compute
    rows = np.concatenate([np.arange(g * units, (g + 1) * units) for g in gates]).astype(np.int64)

    def sorted_rows(w: str) -> str:
        w = cx.cast(w, wide)
        return w if len(gates) == 1 else cx.op("Gather", w, cx.const(rows), axis=0)

    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    bias: str | None = None
    if b_ih is not None or b_hh is not None:
        none = cx.const(np.zeros(len(rows)), wide)
        parts = [none if b is None else sorted_rows(b) for b in (b_ih, b_hh)]
        bias = cx.unsqueeze(cx.op("Concat", *parts, axis=0), 0)
    zero = all(all_zero(v) for v in node.operands[1 : 1 + len(states)])  # which is what no state means
    ins = [
        cx.cast(x, wide), cx.unsqueeze(sorted_rows(w_ih), 0), cx.unsqueeze(sorted_rows(w_hh), 0), bias, None,
        *(None if zero else cx.unsqueeze(cx.cast(s, wide), 0) for s in states),
    ]  # fmt: skip
    direction = "reverse" if node.attrs["reverse"] else "forward"
    outs = cx.raw(op, ins, [wide] * (1 + len(states)), hidden_size=units, direction=direction, **attrs)
    return tuple(cx.cast(o, dtype) for o in (cx.squeeze(outs[0], 1), *(cx.squeeze(o, 0) for o in outs[1:])))
