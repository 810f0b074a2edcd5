"""Operators of the domain com.microsoft that ONNX Runtime's optimizers and exporters write: fused products, activations
and norms. Their meaning is that of ONNX Runtime's documentation (ContribOperators.md).
"""

from __future__ import annotations

import math
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op
from . import elementwise as E
from .quant import product, window_pads

MS = "com.microsoft"


def activated(cx: Context, name: str, x: Value, *given: float | None) -> Value:
    """A fused activation by name; parameters that are None or missing have the operator's defaults."""
    found = [v for v in given if v is not None]

    def call(f: Any, *names: str) -> Value:
        return f(cx, x, **dict(zip(names, found)))  # type: ignore[no-any-return]

    plain = {"Relu": E.relu, "Softplus": E.softplus, "Softsign": E.softsign}
    if name in ("Tanh", "Sigmoid"):
        return cx.op(name.lower(), x)  # type: ignore[no-any-return]
    if name in plain:
        return call(plain[name])
    if name in ("LeakyRelu", "Elu", "ThresholdedRelu"):
        return call({"LeakyRelu": E.leaky_relu, "Elu": E.elu, "ThresholdedRelu": E.thresholded_relu}[name], "alpha")
    if name == "HardSigmoid":
        return call(E.hard_sigmoid, "alpha", "beta")
    if name == "Selu":
        return call(E.selu, "alpha", "gamma")
    if name == "Clip" and len(found) == 2:
        return cx.op("minimum", cx.op("maximum", x, found[0]), found[1])  # type: ignore[no-any-return]
    if name in ("", "Identity"):
        return x
    raise Unsupported(f"activation {name}")


# Products -------------------------------------------------------------------------------------------------------------


@onnx_op("FusedMatMul", domain=MS)
def _fused_matmul(
    cx: Context, a: Value, b: Value, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0,
    transBatchB: int = 0,
) -> Value:  # fmt: skip
    """A transposed batch has the rows (of A) or the inner dim (of B) before the batch dims."""

    def side(x: Value, batch: int, swap: int) -> Value:
        n = x.rank
        if batch and n > 2:
            x = cx.permute(x, (*range(1, n - 1), 0, n - 1))
        return cx.transpose(x) if swap and n > 1 else x

    return cx.scale(product(cx, side(a, transBatchA, transA), side(b, transBatchB, transB)), alpha)


@onnx_op("FusedGemm", domain=MS)
def _fused_gemm(
    cx: Context, a: Value, b: Value, c: Value | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0, activation: str = "", activation_alpha: float | None = None,
    activation_beta: float | None = None, activation_gamma: float | None = None,
) -> Value:  # fmt: skip
    y = product(cx, cx.transpose(a) if transA else a, cx.transpose(b) if transB else b)
    y = cx.scale(cx.opmath(y), alpha)
    if c is not None:
        y = cx.elementwise("add", y, cx.scale(cx.opmath(c), beta))
    if activation == "Selu":
        activation_beta = activation_gamma
    return cx.convert(activated(cx, activation, y, activation_alpha, activation_beta), a.dtype)


@onnx_op("FusedConv", domain=MS)
def _fused_conv(
    cx: Context, x: Value, w: Value, bias: Value | None = None, z: Value | None = None, *, auto_pad: str = "NOTSET",
    dilations: Any = None, group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
    activation: str = "", activation_params: Any = (),
) -> Value:  # fmt: skip
    n = x.rank - 2
    strides, dilations = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    kernel: Any = w.shape[2:]
    if kernel_shape is not None and tuple(kernel_shape) != tuple(kernel):
        raise Unsupported(f"kernel_shape {kernel_shape} for weights of shape {w.shape}")
    padding = window_pads(cx, x.shape[2:], kernel, auto_pad, pads, strides, dilations)
    y = cx.b.op("conv", x, w, stride=strides, padding=padding, dilation=dilations, groups=group)
    if bias is not None:
        y = cx.op("add", y, cx.reshape(bias, (bias.shape[0], *[1] * n)))
    if z is not None:
        y = cx.elementwise("add", y, z)
    return activated(cx, activation, y, *activation_params)


# Activations ----------------------------------------------------------------------------------------------------------


def _erf_gelu(cx: Context, v: Value) -> Value:
    return cx.mul(cx.mul(v, 0.5), cx.add(cx.op("erf", cx.mul(v, math.sqrt(0.5))), 1))


@onnx_op("Gelu", domain=MS)
def _gelu(cx: Context, x: Value) -> Value:
    return cx.convert(_erf_gelu(cx, cx.opmath(x)), x.dtype)


@onnx_op("BiasGelu", domain=MS)
def _bias_gelu(cx: Context, x: Value, bias: Value) -> Value:
    return cx.convert(_erf_gelu(cx, cx.elementwise("add", cx.opmath(x), cx.opmath(bias))), x.dtype)


@onnx_op("FastGelu", domain=MS)
def _fast_gelu(cx: Context, x: Value, bias: Value | None = None) -> Value:
    """By tanh, as "Gaussian Error Linear Units" (Hendrycks and Gimpel) approximates it."""
    v = cx.opmath(x)
    if bias is not None:
        v = cx.elementwise("add", v, cx.opmath(bias))
    cube = cx.mul(cx.mul(cx.mul(v, v), v), 0.044715)
    inner = cx.mul(cx.op("add", v, cube), math.sqrt(2 / math.pi))
    return cx.convert(cx.mul(cx.mul(v, 0.5), cx.add(cx.op("tanh", inner), 1)), x.dtype)


@onnx_op("QuickGelu", domain=MS)
def _quick_gelu(cx: Context, x: Value, *, alpha: float = 1.702) -> Value:
    v = cx.opmath(x)
    return cx.convert(cx.mul(v, cx.op("sigmoid", cx.scale(v, alpha))), x.dtype)


# Norms ----------------------------------------------------------------------------------------------------------------


def _normalized(
    cx: Context, v: Value, dims: tuple[int, ...], gamma: Value, beta: Value | None, epsilon: float, centre: bool
) -> tuple[Value, Value, Value]:
    """(result, mean, reciprocal deviation) of ``v``, a float at least of 32 bits."""
    mean = cx.mean(v, dims, True)
    if centre:
        v = cx.op("sub", v, mean)
    inverse = cx.op("rsqrt", cx.add(cx.mean(cx.mul(v, v), dims, True), epsilon))
    y = cx.elementwise("mul", cx.mul(v, inverse), cx.convert(gamma, v.dtype))
    if beta is not None:
        y = cx.elementwise("add", y, cx.convert(beta, v.dtype))
    return y, mean, inverse


@onnx_op("SimplifiedLayerNormalization")
@onnx_op("SimplifiedLayerNormalization", domain=MS)
def _simplified(
    cx: Context, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Value, Value]:
    """Root mean square norm over the dims from ``axis`` on."""
    v = cx.opmath(x)
    y, _, inverse = _normalized(cx, v, tuple(range(cx.axis(axis, x.rank), x.rank)), scale, None, epsilon, False)
    return cx.convert(y, scale.dtype), inverse


def _skip(centre: bool) -> Any:
    def f(
        cx: Context, x: Value, skip: Value, gamma: Value, beta: Value | None, bias: Value | None, epsilon: float
    ) -> tuple[Value, Value, Value, Value]:
        total = cx.elementwise("add", cx.opmath(x), cx.opmath(skip))
        if bias is not None:
            total = cx.elementwise("add", total, cx.opmath(bias))
        y, mean, inverse = _normalized(cx, total, (x.rank - 1,), gamma, beta, epsilon, centre)
        return cx.convert(y, x.dtype), mean, inverse, cx.convert(total, x.dtype)

    return f


@onnx_op("SkipLayerNormalization", domain=MS)
def _skip_layer_norm(
    cx: Context, x: Value, skip: Value, gamma: Value, beta: Value | None = None, bias: Value | None = None, *,
    epsilon: float = 1e-12,
) -> Any:  # fmt: skip
    return _skip(True)(cx, x, skip, gamma, beta, bias, epsilon)


@onnx_op("SkipSimplifiedLayerNormalization", domain=MS)
def _skip_simplified(
    cx: Context, x: Value, skip: Value, gamma: Value, bias: Value | None = None, *, epsilon: float = 1e-12
) -> Any:
    return _skip(False)(cx, x, skip, gamma, None, bias, epsilon)


@onnx_op("EmbedLayerNormalization", domain=MS)
def _embed(
    cx: Context, ids: Value, segments: Value | None, words: Value, positions: Value, kinds: Value | None, gamma: Value,
    beta: Value, mask: Value | None = None, at: Value | None = None, *, epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """(norm of the embeddings' sum, number of ones in each row of the mask, the sum)."""
    total = cx.opmath(cx.b.op("take", words, cx.index(ids), dim=0))
    if at is None:
        place = cx.slice(positions, 0, 0, ids.shape[1])
    else:
        place = cx.b.op("take", positions, cx.index(at), dim=0)
    total = cx.elementwise("add", total, cx.opmath(place))
    if kinds is not None and segments is not None:
        total = cx.op("add", total, cx.opmath(cx.b.op("take", kinds, cx.index(segments), dim=0)))
    y, _, _ = _normalized(cx, total, (2,), gamma, beta, epsilon, True)
    if mask is None:
        count = cx.full(0, (ids.shape[0],), DType.i32)
    else:
        count = cx.reduce("sum", cx.convert(cx.op("eq", mask, 1), DType.i32), (1,))
    return cx.convert(y, words.dtype), count, cx.convert(total, words.dtype)


# Others ---------------------------------------------------------------------------------------------------------------


@onnx_op("Inverse", domain=MS)
def _inverse(cx: Context, x: Value) -> Value:
    lu, pivots, _ = cx.b.op("linalg_lu_factor", cx.opmath(x), check=False)
    return cx.convert(cx.b.op("linalg_lu_solve", lu, pivots, None), x.dtype)


@onnx_op("Trilu", domain=MS)
def _trilu(cx: Context, x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    return cx.call("Trilu", x, k, upper=upper)  # type: ignore[no-any-return]


@onnx_op("GatherND", domain=MS)
def _gather_nd(cx: Context, x: Value, index: Value) -> Value:
    return cx.call("GatherND", x, index, batch_dims=0)  # type: ignore[no-any-return]
