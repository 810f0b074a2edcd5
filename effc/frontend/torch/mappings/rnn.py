"""Recurrent networks: stacks of layers, one direction at a time. Sequences are time first inside."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten
from .random import keep_mask


def _stack(
    cx: Context,
    x: Value,
    states: list[Value],
    params: list[Value],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    kind: str,
    **attrs: Any,
) -> tuple[Value, list[Value]]:
    """(output, last states stacked over layers and directions)."""
    flat = x.rank == 2  # no batch
    y = cx.unsqueeze(x, 1) if flat else cx.transpose(x, 0, 1) if batch_first else x
    starts = [cx.unsqueeze(s, 1) if flat else s for s in states]
    ways = 2 if bidirectional else 1
    projected = kind == "lstm_layer" and starts[0].shape[-1] != starts[1].shape[-1]
    each = 2 + (2 if has_biases else 0) + (1 if projected else 0)
    if len(params) != each * layers * ways:
        raise Unsupported(f"{len(params)} weights for {layers} layers")
    last: list[list[Value]] = [[] for _ in starts]
    for layer in range(layers):
        outs = []
        for way in range(ways):
            k = layer * ways + way
            w = params[k * each : (k + 1) * each]
            biases = w[2:4] if has_biases else [None, None]
            h = [cx.select(s, 0, k) for s in starts]
            extra = [w[-1]] if projected else []
            result = cx.b.op(kind, y, *h, w[0], w[1], *biases, *extra, reverse=way == 1, **attrs)
            outs.append(result[0])
            for place, v in zip(last, result[1:], strict=True):
                place.append(cx.unsqueeze(v, 0))
        y = cx.concat(outs, 2)
        if train and dropout > 0 and layer < layers - 1:
            mask = keep_mask(cx, y, dropout)
            y = cx.where(mask, cx.mul(y, 1 / (1 - dropout)), cx.const(0, y.dtype))
    ends = [cx.concat(p, 0) for p in last]
    if flat:
        return cx.squeeze(y, 1), [cx.squeeze(e, 1) for e in ends]
    return (cx.transpose(y, 0, 1) if batch_first else y), ends


@aten("lstm.input", "effc::lstm")
def _lstm(
    cx: Context,
    x: Value,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    y, (h, c) = _stack(
        cx, x, list(hx), list(params), has_biases, num_layers, dropout, train, bidirectional, batch_first, "lstm_layer"
    )
    return y, h, c


def _simple(kind: str, **attrs: Any) -> Any:
    def f(
        cx: Context,
        x: Value,
        hx: Value,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        y, (h,) = _stack(
            cx, x, [hx], list(params), has_biases, num_layers, dropout, train, bidirectional, batch_first, kind, **attrs
        )
        return y, h

    return f


aten("gru.input", "effc::gru")(_simple("gru_layer"))
aten("rnn_tanh.input", "effc::rnn_tanh")(_simple("rnn_layer", activation="tanh"))
aten("rnn_relu.input", "effc::rnn_relu")(_simple("rnn_layer", activation="relu"))
