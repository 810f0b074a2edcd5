"""Convolutions. Unbatched input gets a batch of one."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten


def _tuple(x: Any, n: int) -> tuple[Any, ...]:
    x = tuple(x) if isinstance(x, (list, tuple)) else (x,)
    return x * n if len(x) == 1 else x


def _with_bias(cx: Context, y: Value, bias: Value | None, rank: int) -> Value:
    if bias is None:
        return y
    return cx.add(y, cx.reshape(bias, (bias.shape[0], *(1 for _ in range(rank)))))


@aten("convolution", "_convolution")
def _convolution(
    cx: Context,
    x: Value,
    w: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Value:
    n = w.rank - 2
    stride, dilation, output_padding = _tuple(stride, n), _tuple(dilation, n), _tuple(output_padding, n)
    pads = tuple((p, p) for p in _tuple(padding, n))
    batched = x.rank == w.rank
    v = x if batched else cx.unsqueeze(x, 0)
    out = cx.out.shape if batched else (1, *cx.out.shape)
    if (0 in out and not transposed) or 0 in v.shape:
        y = cx.full(0, out, x.dtype)
    elif transposed:
        y = cx.op(
            "conv_transpose",
            v,
            w,
            stride=stride,
            padding=pads,
            dilation=dilation,
            groups=groups,
            output_padding=output_padding,
        )
    else:
        y = cx.op("conv", v, w, stride=stride, padding=pads, dilation=dilation, groups=groups)
    y = _with_bias(cx, y, bias, n)
    return y if batched else cx.reshape(y, cx.out.shape)


def _padded(n: int) -> Any:
    def f(
        cx: Context,
        x: Value,
        w: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: str = "valid",
        dilation: Any = 1,
        groups: int = 1,
    ) -> Value:
        dil = _tuple(dilation, n)
        if padding == "valid":
            pads = ((0, 0),) * n
        else:
            totals = [d * (k - 1) for d, k in zip(dil, w.shape[2:], strict=True)]
            if not all(isinstance(t, int) for t in totals):
                raise Unsupported("a dynamic window with padding='same'")
            pads = tuple((t // 2, t - t // 2) for t in totals)
        batched = x.rank == w.rank
        v = x if batched else cx.unsqueeze(x, 0)
        y = cx.op("conv", v, w, stride=_tuple(stride, n), padding=pads, dilation=dil, groups=groups)
        y = _with_bias(cx, y, bias, n)
        return y if batched else cx.reshape(y, cx.out.shape)

    return f


for _n in (1, 2, 3):
    aten(f"conv{_n}d.padding")(_padded(_n))
