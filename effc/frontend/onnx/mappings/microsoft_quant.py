"""Quantized operators of the domain com.microsoft, as ONNX Runtime's documentation (ContribOperators.md) has them.

What is not a sum of products is dequantized, computed in f32 and quantized again.
"""

from __future__ import annotations

import math
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ...vocabulary import Vocabulary
from ..context import Context
from ..registry import Unsupported, onnx_op
from .quant import (
    centred,
    dequantize,
    dynamic_quantize,
    matmul_integer,
    product,
    qlinear_conv,
    quantize,
    requantized,
    rounded,
    scalar_or_axis,
    window_pads,
)  # fmt: skip
from .reduce import softmax_over
from .rnn import LSTM_ORDER, LSTM_USUAL, Layer, lstm_cells

MS = "com.microsoft"


@onnx_op("QuantizeLinear", domain=MS)
def _quantize(
    cx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, saturate: int = 1,
    block_size: int = 0, output_dtype: int = 0,
) -> Value:  # fmt: skip
    return quantize(cx, x, scale, zero, axis=axis, saturate=saturate, block_size=block_size, output_dtype=output_dtype)


@onnx_op("DequantizeLinear", domain=MS)
def _dequantize(
    cx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, block_size: int = 0
) -> Value:
    return dequantize(cx, x, scale, zero, axis=axis, block_size=block_size)


def _real(cx: Context, x: Value, scale: Value, zero: Value | None) -> Value:
    return dequantize(cx, x, cx.reshape(scale, ()), None if zero is None else cx.reshape(zero, ()))


def _back(cx: Context, y: Value, scale: Value, zero: Value | None, dtype: DType) -> Value:
    """Quantized to ``dtype``, that of the zero point where there is one."""
    q = cx.op("div", y, cx.reshape(cx.convert(scale, y.dtype), ()))
    return rounded(cx, q, None if zero is None else cx.reshape(zero, ()), dtype)


# Elementwise ----------------------------------------------------------------------------------------------------------


def _binary(ir: str) -> Any:
    def f(
        cx: Context, a: Value, a_scale: Value, a_zero: Value | None, b: Value, b_scale: Value, b_zero: Value | None,
        c_scale: Value, c_zero: Value | None = None,
    ) -> Value:  # fmt: skip
        y = cx.elementwise(ir, _real(cx, a, a_scale, a_zero), _real(cx, b, b_scale, b_zero))
        return _back(cx, y, c_scale, c_zero, a.dtype)

    return f


onnx_op("QLinearAdd", domain=MS)(_binary("add"))
onnx_op("QLinearMul", domain=MS)(_binary("mul"))


@onnx_op("QLinearSigmoid", domain=MS)
def _sigmoid(
    cx: Context, x: Value, x_scale: Value, x_zero: Value | None, y_scale: Value, y_zero: Value | None = None
) -> Value:
    return _back(cx, cx.op("sigmoid", _real(cx, x, x_scale, x_zero)), y_scale, y_zero, x.dtype)


@onnx_op("QLinearLeakyRelu", domain=MS)
def _leaky_relu(
    cx: Context, x: Value, x_scale: Value, x_zero: Value | None, y_scale: Value, y_zero: Value | None = None, *,
    alpha: float = 0.01,
) -> Value:  # fmt: skip
    v = _real(cx, x, x_scale, x_zero)
    return _back(cx, cx.where(cx.op("lt", v, 0), cx.mul(v, alpha), v), y_scale, y_zero, x.dtype)


@onnx_op("QLinearSoftmax", domain=MS)
def _softmax(
    cx: Context, x: Value, x_scale: Value, x_zero: Value | None, y_scale: Value, y_zero: Value, *, opset: int,
    axis: int = -1,
) -> Value:  # fmt: skip
    """``opset``: that of the Softmax which this was; before 13 it went over all dims from ``axis`` on."""
    d = cx.axis(axis, x.rank)
    dims = (d,) if opset >= 13 else tuple(range(d, x.rank))
    return _back(cx, softmax_over(cx, _real(cx, x, x_scale, x_zero), dims), y_scale, y_zero, x.dtype)


@onnx_op("QLinearConcat", domain=MS)
def _concat(cx: Context, y_scale: Value, y_zero: Value, *parts: Value, axis: int) -> Value:
    """``parts``: tensor, scale and zero point in turn. One with the result's scale and zero point stays as it is."""
    out = []
    for x, scale, zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        same = _equal(cx, scale, y_scale) and _equal(cx, zero, y_zero)
        out.append(x if same else _back(cx, _real(cx, x, scale, zero), y_scale, y_zero, y_zero.dtype))
    return cx.concat(out, axis)


def _equal(cx: Context, a: Value, b: Value) -> bool:
    if a is b:
        return True
    x, y = cx.content(a), cx.content(b)
    return x is not None and y is not None and x.dtype == y.dtype != object and bool((x == y).all())


# Pools ----------------------------------------------------------------------------------------------------------------


def _channels(cx: Context, x: Value, first: bool) -> Value:
    """Channels moved from last to first, or back."""
    n = x.rank
    return cx.permute(x, (0, n - 1, *range(1, n - 1)) if first else (0, *range(2, n), 1))


@onnx_op("QLinearGlobalAveragePool", domain=MS)
def _global_average(
    cx: Context, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value, *, channels_last: int = 0
) -> Value:
    dims = tuple(range(1, x.rank - 1)) if channels_last else tuple(range(2, x.rank))
    total = cx.reduce("sum", centred(cx, x, cx.reshape(x_zero, ()), 0), dims, True)
    mean = cx.div(cx.convert(total, DType.f32), cx.count(x, dims))
    return _back(cx, cx.mul(mean, cx.reshape(x_scale, ())), y_scale, y_zero, x.dtype)


@onnx_op("QLinearAveragePool", domain=MS)
def _average(
    cx: Context, x: Value, x_scale: Value, x_zero: Value | None, y_scale: Value, y_zero: Value | None = None, *,
    kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, channels_last: int = 0,
    count_include_pad: int = 0, pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    v = _real(cx, x, x_scale, x_zero)
    v = _channels(cx, v, True) if channels_last else v
    n = x.rank - 2
    steps = tuple(strides or (1,) * n)
    padding = window_pads(cx, v.shape[2:], kernel_shape, auto_pad, pads, steps, (1,) * n)
    y = cx.b.op(
        "avg_pool", v, kernel=tuple(kernel_shape), stride=steps, padding=padding, ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad), divisor=0,
    )  # fmt: skip
    y = _channels(cx, y, False) if channels_last else y
    return _back(cx, y, y_scale, y_zero, x.dtype)


@onnx_op("NhwcMaxPool", domain=MS)
def _max_pool(
    cx: Context, x: Value, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None,
    pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    n = x.rank - 2
    steps, spread = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    v = _channels(cx, x, True)
    padding = window_pads(cx, v.shape[2:], kernel_shape, auto_pad, pads, steps, spread)
    y = cx.b.op(
        "max_pool", v, kernel=tuple(kernel_shape), stride=steps, padding=padding, dilation=spread,
        ceil_mode=bool(ceil_mode), indices=False,
    )  # fmt: skip
    return _channels(cx, y, False)


# Products -------------------------------------------------------------------------------------------------------------


@onnx_op("QLinearConv", domain=MS)
def _qlinear_conv(
    cx: Context, x: Value, x_scale: Value, x_zero: Value, w: Value, w_scale: Value, w_zero: Value, y_scale: Value,
    y_zero: Value, bias: Value | None = None, *, channels_last: int = 0, **attrs: Any,
) -> Value:  # fmt: skip
    """Also of images whose channels come last; the weights stay [out, in, *window]."""
    v = _channels(cx, x, True) if channels_last else x
    y = qlinear_conv(cx, v, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias, **attrs)
    return _channels(cx, y, False) if channels_last else y


@onnx_op("QGemm", domain=MS)
def _qgemm(
    cx: Context, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value,
    c: Value | None = None, y_scale: Value | None = None, y_zero: Value | None = None, *, alpha: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Value:  # fmt: skip
    """``c`` is i32 in units of alpha * a_scale * b_scale. Without ``y_scale`` the result is float."""
    x = centred(cx, cx.transpose(a) if transA else a, cx.reshape(a_zero, ()), 0)
    acc = product(cx, x, centred(cx, cx.transpose(b) if transB else b, b_zero, 1))
    if c is not None:
        acc = cx.elementwise("add", acc, c)
    factor = cx.scale(cx.op("mul", cx.reshape(a_scale, ()), scalar_or_axis(cx, b_scale, 2, 1)), alpha)
    if y_scale is None:
        return cx.op("mul", cx.convert(acc, DType.f32), factor)  # type: ignore[no-any-return]
    zero = None if y_zero is None else cx.reshape(y_zero, ())
    factor = cx.op("div", factor, cx.reshape(y_scale, ()))
    return requantized(cx, acc, factor, zero, a.dtype if y_zero is None else y_zero.dtype)


@onnx_op("MatMulIntegerToFloat", domain=MS)
def _integer_to_float(
    cx: Context, a: Value, b: Value, a_scale: Value, b_scale: Value, a_zero: Value | None = None,
    b_zero: Value | None = None, bias: Value | None = None,
) -> Value:  # fmt: skip
    acc = matmul_integer(cx, a, b, a_zero, b_zero)
    factor = cx.op("mul", cx.opmath(cx.reshape(a_scale, ())), _columns(cx, cx.opmath(b_scale), acc.rank))
    y = cx.elementwise("mul", cx.convert(acc, DType.f32), factor)
    if bias is not None:
        y = cx.elementwise("add", y, cx.opmath(bias))
    return cx.convert(y, a_scale.dtype)


def _columns(cx: Context, v: Value, rank: int) -> Value:
    return v if v.rank == rank and rank > 1 else scalar_or_axis(cx, v, rank, -1)


@onnx_op("DynamicQuantizeMatMul", domain=MS)
def _dynamic_matmul(
    cx: Context, a: Value, b: Value, b_scale: Value, b_zero: Value | None = None, bias: Value | None = None
) -> Value:
    """``a`` is quantized to u8 by its own range, as DynamicQuantizeLinear does."""
    q, scale, zero = dynamic_quantize(cx, a)
    return _integer_to_float(cx, q, b, scale, b_scale, zero, b_zero, bias)


@onnx_op("DynamicQuantizeLSTM", domain=MS)
def _dynamic_lstm(
    cx: Context, x: Value, w: Value, r: Value, b: Value | None, lengths: Value | None, initial_h: Value | None,
    initial_c: Value | None, p: Value | None, w_scale: Value, w_zero: Value, r_scale: Value, r_zero: Value, *,
    activation_alpha: Any = None, activation_beta: Any = None, activations: Any = None, clip: float | None = None,
    direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0,
) -> Any:  # fmt: skip
    """LSTM with weights of 8 bits, W [directions, I, 4H] and R [directions, H, 4H]; x is quantized to u8 by its range
    over the whole sequence and the state by its range at each step, both over the whole batch. Scales and zero points
    of W and R are one, or 4H, for each direction.
    """
    layout = 0  # read by Layer, among the attributes
    layer = Layer(cx, x, lengths, locals(), 4, LSTM_USUAL)
    units = r.shape[1]
    q, scale, zero = dynamic_quantize(cx, layer.x)
    ys, hs, cs = [], [], []
    for way in range(layer.ways):

        def gates(v: Value, v_scale: Value, v_zero: Value, way: int = way) -> list[Value]:
            """The weights less their zero point in i32, and their scale for each column, in the order i f c o."""
            out = [cx.select(t, 0, way) for t in (v, v_scale, v_zero)]
            if out[1].rank == 0 or out[2].rank == 0:
                out[1:] = [cx.broadcast(cx.reshape(t, (1,)), (4 * units,)) for t in out[1:]]
            whole = cx.op("sub", cx.convert(out[0], DType.i32), cx.convert(out[2], DType.i32))
            return [layer.reordered(t, LSTM_ORDER, units, axis=-1) for t in (whole, out[1])]

        wi, wi_scale = gates(w, w_scale, w_zero)
        xg = _scaled_product(cx, q, scale, zero, wi, wi_scale)
        both = layer.part(b, way)
        if both is not None:
            xg = cx.op("add", xg, layer.reordered(both, LSTM_ORDER, units))
            xg = cx.op("add", xg, layer.reordered(both, LSTM_ORDER, units, 4))
        h, c = layer.start(initial_h, way, units), layer.start(initial_c, way, units)
        y, h, c = lstm_cells(
            layer, way, xg, h, c, gates(r, r_scale, r_zero),
            lambda f, v, weights: _scaled_product(f, *dynamic_quantize(f, v), *weights), layer.part(p, way),
            input_forget,
        )  # fmt: skip
        ys.append(y)
        hs.append(h)
        cs.append(c)
    return layer.results(ys, hs, cs)


def _scaled_product(cx: Vocabulary, q: Value, scale: Value, zero: Value, w: Value, w_scale: Value) -> Value:
    """(q - zero) @ w of i32, times both scales."""
    acc = cx.op("matmul", cx.op("sub", cx.convert(q, DType.i32), cx.convert(zero, DType.i32)), w)
    return cx.op("mul", cx.convert(acc, DType.f32), cx.op("mul", scale, w_scale))  # type: ignore[no-any-return]


# Weights of a few bits ------------------------------------------------------------------------------------------------


def unpacked(cx: Context, packed: Value, bits: int) -> Value:
    """The last dim's bytes taken apart, the lowest bits first."""
    if bits == 8:
        return packed
    each = 8 // bits
    shifts = cx.b.op("iota", shape=(each,), dim=0, step=bits, dtype=DType.u8)
    parts = cx.op("bitwise_and", cx.op("shr", cx.unsqueeze(packed, packed.rank), shifts), (1 << bits) - 1)
    return cx.reshape(parts, (*packed.shape[:-1], packed.shape[-1] * each))


@onnx_op("MatMulNBits", domain=MS)
def _matmul_nbits(
    cx: Context, a: Value, b: Value, scales: Value, zeros: Value | None = None, order: Value | None = None,
    bias: Value | None = None, *, K: int, N: int, block_size: int, bits: int = 4, accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Value:  # fmt: skip
    """a @ ((b - zeros) * scales)^T; ``b`` is u8[N, blocks, block_size * bits / 8]. ``order`` (g_idx) i32[K] names the
    block whose scale and zero point a column has. ``accuracy_level`` allows a runtime to quantize ``a``, which is not
    made use of.
    """
    if weight_prepacked:
        raise Unsupported("weights packed for one kind of processor")
    if bits not in (2, 4, 8):
        raise Unsupported(f"{bits} bits")
    if b.dtype is not DType.u8:
        raise Unsupported(f"weights of {b.dtype}")
    blocks = math.ceil(K / block_size)
    work = a.dtype.compute
    w = cx.convert(unpacked(cx, cx.reshape(b, (N, blocks, block_size * bits // 8)), bits), work)
    if order is not None:
        w = cx.slice(cx.reshape(w, (N, blocks * block_size)), 1, 0, K)

    def for_weights(v: Value) -> Value:
        """A number for each block [N, blocks], in a shape that broadcasts to ``w``."""
        v = cx.convert(cx.reshape(v, (N, blocks)), work)
        if order is None:
            return cx.unsqueeze(v, 2)
        return cx.op("take", v, cx.convert(cx.reshape(order, (K,)), DType.i64), dim=1)  # type: ignore[no-any-return]

    if zeros is None:
        w = cx.sub(w, float(1 << (bits - 1)))
    else:
        z = zeros
        if z.dtype is DType.u8:
            z = cx.slice(unpacked(cx, cx.reshape(z, (N, math.ceil(blocks * bits / 8))), bits), 1, 0, blocks)
        w = cx.op("sub", w, for_weights(z))
    w = cx.op("mul", w, for_weights(scales))
    if order is None:
        w = cx.slice(cx.reshape(w, (N, blocks * block_size)), 1, 0, K)
    y = product(cx, cx.convert(a, work), cx.transpose(w))
    if bias is not None:
        y = cx.elementwise("add", y, cx.convert(bias, work))
    return cx.convert(y, a.dtype)
