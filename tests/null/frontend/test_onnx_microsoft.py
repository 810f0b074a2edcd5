"""Operators of com.microsoft against ONNX Runtime, whose they are."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from onnx_one_node import compare as _compare
from onnx_one_node import model_of

import effc.onnx_backend

RNG = np.random.default_rng(11)
F32 = np.float32
SIZES = (1, 3)


def compare(op: str, *sets: Any, **kw: Any) -> Any:
    return _compare(op, *sets, domain="com.microsoft", **kw)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """The numbers of a test depend on no other test."""
    global RNG
    RNG = np.random.default_rng(zlib.crc32(request.node.name.encode()))


def ints(dtype: Any, *shape: int, low: int | None = None, high: int | None = None) -> Any:
    info = np.iinfo(dtype)
    return RNG.integers(info.min if low is None else low, (info.max if high is None else high) + 1, shape).astype(dtype)


def floats(*shape: int, scale: float = 1) -> Any:
    return (RNG.standard_normal(shape) * scale).astype(F32)


# Weights of a few bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("k", "block", "bits"), [(64, 32, 4), (80, 32, 4), (48, 16, 8), (33, 16, 4), (70, 32, 8)])
@pytest.mark.parametrize("zeros", ["none", "packed"])
def test_matmul_nbits(k: int, block: int, bits: int, zeros: str, target: str) -> None:
    n, blocks = 5, -(-k // block)
    b = ints(np.uint8, n, blocks, block * bits // 8)
    scales = RNG.uniform(0.01, 0.1, (n, blocks)).astype(F32)
    zero = ints(np.uint8, n, -(-blocks * bits // 8)) if zeros == "packed" else None
    compare(
        "MatMulNBits", *([floats(m, 2, k), b, scales, zero] for m in SIZES), constant=(1, 2, 3), K=k, N=n, bits=bits,
        block_size=block, target=target,
    )  # fmt: skip


def test_matmul_nbits_with_bias_and_float_zeros() -> None:
    b, scales = ints(np.uint8, 6, 2, 16), RNG.uniform(0.01, 0.1, (6, 2)).astype(F32)
    zeros = floats(6, 2, scale=4)
    compare("MatMulNBits", *([floats(m, 64), b, scales, zeros, None, floats(6)] for m in SIZES), K=64, N=6, bits=4,
            block_size=32)  # fmt: skip


def test_matmul_nbits_with_an_order() -> None:
    """Without zero points as in ONNX Runtime, whose kernel takes them to be 8; with them by the operator's text."""
    b, scales = ints(np.uint8, 6, 3, 16), RNG.uniform(0.01, 0.1, (6, 3)).astype(F32)
    order = RNG.integers(0, 3, 80).astype(np.int32)
    assert (np.diff(order) < 0).any()
    attrs: dict[str, Any] = {"K": 80, "N": 6, "bits": 4, "block_size": 32}
    compare("MatMulNBits", *([floats(m, 80), b, scales, None, order] for m in SIZES), constant=(1, 2, 4), **attrs)
    packed, x = ints(np.uint8, 6, 2), floats(3, 80)
    model = model_of(
        "MatMulNBits", [x, b, scales, packed, order], constant=(1, 2, 3, 4), domain="com.microsoft", **attrs
    )
    (mine,) = effc.onnx_backend.EffcRep(model, "reference").run({"x0": x})
    w, zeros = (np.stack([v & 15, v >> 4], -1).reshape(6, -1).astype(F32) for v in (b, packed))
    np.testing.assert_allclose(mine, x @ ((w[:, :80] - zeros[:, order]) * scales[:, order]).T, 2e-5, 1e-5)


# Recurrent layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("ways", "columns", "attrs"),
    [(1, False, {}), (1, True, {"direction": "reverse"}), (2, False, {"direction": "bidirectional"}),
     (2, True, {"direction": "bidirectional"}), (1, False, {"clip": 0.5}), (1, True, {"input_forget": 1})],
)  # fmt: skip
def test_dynamic_quantize_lstm(ways: int, columns: bool, attrs: dict[str, Any], target: str) -> None:
    """Weights of u8: those of i8 overflow 16 bits in ONNX Runtime on machines without VNNI, so they stay small."""
    h, i = 6, 5
    for dtype, low, high, mid in ((np.uint8, 0, 255, 128), (np.int8, -63, 63, 0)):
        shape = (ways, 4 * h) if columns else (ways,)
        zero = np.full(shape, mid, dtype)
        if dtype is np.uint8 and not columns:
            zero += RNG.integers(-9, 9, shape).astype(dtype)
        scale = [RNG.uniform(0.002, 0.006, shape).astype(F32) for _ in range(2)]
        w, r = (ints(dtype, ways, n, 4 * h, low=low, high=high) for n in (i, h))
        fixed = [w, r, floats(ways, 8 * h, scale=0.2)]
        start = [[floats(ways, n, h) for _ in range(2)] for n in SIZES]
        holes = floats(ways, 3 * h, scale=0.2) if attrs.get("clip") else None
        quant = [scale[0], zero, scale[1], np.full(shape, mid, dtype)]
        x = [floats(7 + n, n, i) for n in SIZES]
        compare(
            "DynamicQuantizeLSTM", *([v, *fixed, None, *s, holes, *quant] for v, s in zip(x, start, strict=True)),
            constant=(1, 2, 3, 7, 8, 9, 10, 11), outputs=3, hidden_size=h, target=target, **attrs,
        )  # fmt: skip


# Fused products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
def test_fused_matmul(a: int, b: int) -> None:
    x = [floats(n, 2, *((5, 4) if a else (4, 5))) for n in SIZES]
    w = floats(2, *((7, 5) if b else (5, 7)))
    compare("FusedMatMul", *([v, w] for v in x), transA=a, transB=b, alpha=0.25)
    x = [floats(*((5, n, 4) if a else (4, n, 5))) for n in SIZES]
    y = [floats(*((7, n, 5) if b else (5, n, 7))) for n in SIZES]
    compare("FusedMatMul", *([v, w] for v, w in zip(x, y)), transA=a, transB=b, transBatchA=1, transBatchB=1)


@pytest.mark.parametrize(
    "attrs",
    [
        {"activation": "Relu"},
        {"activation": "LeakyRelu", "activation_alpha": 0.2},
        {"activation": "Tanh", "alpha": 0.5, "beta": 2.0, "transB": 1},
        {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4},
        {"activation": "Elu", "activation_alpha": 0.7},
    ],
)
def test_fused_gemm(attrs: dict[str, Any]) -> None:
    w = floats(*((6, 5) if attrs.get("transB") else (5, 6)))
    compare("FusedGemm", *([floats(n, 5), w, floats(6)] for n in SIZES), **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"activation": "Relu", "pads": [1, 1, 1, 1]},
        {"activation": "Clip", "activation_params": [0.0, 0.7], "strides": [2, 1]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4], "auto_pad": "SAME_LOWER"},
        {"activation": "LeakyRelu", "activation_params": [0.1], "dilations": [1, 2]},
    ],
)
def test_fused_conv(attrs: dict[str, Any]) -> None:
    w, bias = floats(4, 3, 3, 2), floats(4)
    compare("FusedConv", *([floats(n, 3, 8, 7), w, bias] for n in SIZES), **attrs)
    if "pads" in attrs:
        compare("FusedConv", *([floats(n, 3, 8, 7), w, bias, floats(n, 4, 8, 8)] for n in SIZES), **attrs)


# Activations and norms ------------------------------------------------------------------------------------------------


def test_gelus() -> None:
    x, bias = [floats(n, 7, 9, scale=3) for n in SIZES], floats(9)
    compare("Gelu", *([v] for v in x))
    compare("BiasGelu", *([v, bias] for v in x))
    compare("FastGelu", *([v] for v in x))
    compare("FastGelu", *([v, bias] for v in x))
    compare("QuickGelu", *([v] for v in x))
    compare("QuickGelu", *([v] for v in x), alpha=0.8)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_skip_norms(target: str) -> None:
    gamma, beta, bias = floats(8), floats(8), floats(8)
    for skip in ("own", "shared"):
        x = [floats(n, 5, 8) for n in SIZES]
        y = [floats(*(v.shape if skip == "own" else (5, 8))) for v in x]
        kw: dict[str, Any] = {"outputs": 4, "only": (0, 3), "epsilon": 1e-5, "target": target}
        compare("SkipLayerNormalization", *([v, w, gamma, beta, bias] for v, w in zip(x, y)), **kw)
        compare("SkipLayerNormalization", *([v, w, gamma] for v, w in zip(x, y)), epsilon=1e-5, target=target)
        compare("SkipSimplifiedLayerNormalization", *([v, w, gamma, bias] for v, w in zip(x, y)), **kw)
    _compare("SimplifiedLayerNormalization", *([v, gamma] for v in x), outputs=2, epsilon=1e-5, target=target)
    _compare("SimplifiedLayerNormalization", *([v, floats(5, 8)] for v in x), axis=1, outputs=1)


def test_embed_layer_norm() -> None:
    words, places, kinds = floats(30, 8), floats(12, 8), floats(2, 8)
    gamma, beta = floats(8), floats(8)
    sets = []
    for n in SIZES:
        mask = (np.arange(6) < RNG.integers(1, 7, (n, 1))).astype(np.int32)
        sets.append([ints(np.int32, n, 6, low=0, high=29), ints(np.int32, n, 6, low=0, high=1), words, places, kinds,
                     gamma, beta, mask])  # fmt: skip
    compare("EmbedLayerNormalization", *sets, outputs=3, epsilon=1e-6)
    plain = [[s[0], None, words, places, None, gamma, beta, None, ints(np.int32, *s[0].shape, low=0, high=11)]
             for s in sets]  # fmt: skip
    compare("EmbedLayerNormalization", *plain, outputs=2, epsilon=1e-6)


def test_others() -> None:
    x = [floats(n, 4, 4) + 4 * np.eye(4, dtype=F32) for n in SIZES]
    compare("Inverse", *([v] for v in x), rtol=1e-4, atol=1e-5)
    compare("Trilu", *([v, np.array(1, np.int64)] for v in x), upper=0)
    compare("GatherND", *([v, np.array([[0, 1], [0, 3]], np.int64)] for v in x))


# Quantized ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantized_elementwise(dtype: Any) -> None:
    a, b = [ints(dtype, n, 60) for n in SIZES], ints(dtype, 60)
    p, q, r = (F32(0.02), dtype(3)), (F32(0.05), dtype(100)), (F32(0.03), dtype(7))
    compare("QLinearAdd", *([v, *p, b, *q, *r] for v in a), steps=0.1)
    compare("QLinearMul", *([v, *p, b, *q, *r] for v in a), steps=0.1)
    compare("QLinearSigmoid", *([v, *p, F32(1 / 256), dtype(0)] for v in a), constant=(1, 2, 3, 4), steps=0.1)
    compare("QLinearLeakyRelu", *([v, *q, *r] for v in a), alpha=0.2, constant=(1, 2, 3, 4), steps=0.1)
    for opset in (11, 13):
        x, low = [ints(dtype, n, 4, 5) for n in SIZES], np.array(np.iinfo(dtype).min, dtype)
        compare("QLinearSoftmax", *([v, *q, F32(1 / 256), low] for v in x), attributes={"opset": opset}, axis=1,
                steps=0.1, constant=(1, 2, 3, 4))  # fmt: skip
    compare("QLinearConcat", *([*r, v, *p, ints(dtype, len(v), 2), *r] for v in a), axis=1, constant=(0, 1, 3, 4, 6, 7),
            steps=0.1)  # fmt: skip


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantized_pools(dtype: Any, last: int) -> None:
    x = [ints(dtype, n, *((7, 6, 3) if last else (3, 7, 6))) for n in SIZES]
    p, r = (F32(0.02), dtype(3)), (F32(0.015), dtype(7))
    kw: dict[str, Any] = {"channels_last": last, "steps": 0.15, "constant": (1, 2, 3, 4)}
    compare("QLinearGlobalAveragePool", *([v, *p, *r] for v in x), **kw)
    compare(
        "QLinearAveragePool", *([v, *p, *r] for v in x), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], **kw
    )
    compare("QLinearAveragePool", *([v, *p, *r] for v in x), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1],
            count_include_pad=1, **kw)  # fmt: skip
    if last:
        compare("NhwcMaxPool", *([v] for v in x), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])


def test_quantized_products() -> None:
    a = [ints(np.uint8, n, 20) for n in SIZES]
    b = ints(np.int8, 20, 6, low=-64, high=63)
    p, q, r = (F32(0.02), np.uint8(120)), (F32(0.05), np.int8(3)), (F32(0.5), np.uint8(7))
    columns = (RNG.uniform(0.01, 0.1, 6).astype(F32), np.zeros(6, np.int8))
    bias = ints(np.int32, 6, low=-4000, high=4000)
    fixed = range(1, 9)
    compare("QGemm", *([v, *p, b, *q, bias, *r] for v in a), steps=0.05, constant=fixed)
    compare("QGemm", *([v, *p, b.T.copy(), *columns, bias, *r] for v in a), transB=1, steps=0.05, constant=fixed)
    compare("QGemm", *([v, *p, b, *q, bias] for v in a), alpha=0.5, constant=fixed)
    for scale, zero in (q, columns):
        compare("MatMulIntegerToFloat", *([v, b, p[0], scale, p[1], zero, floats(6)] for v in a), rtol=1e-4, atol=1e-4)
        x = [floats(n, 3, 20) for n in SIZES]
        compare("DynamicQuantizeMatMul", *([v, b, scale, zero, floats(6)] for v in x), rtol=1e-4, atol=1e-4)
    w = ints(np.int8, 5, 4, 3, 3, low=-64, high=63)
    for last in (0, 1):
        x = [ints(np.uint8, n, *((7, 6, 4) if last else (4, 7, 6))) for n in SIZES]
        compare("QLinearConv", *([v, *p, w, *q, *r] for v in x), channels_last=last, pads=[1, 1, 1, 1], steps=0.05,
                constant=fixed)  # fmt: skip
