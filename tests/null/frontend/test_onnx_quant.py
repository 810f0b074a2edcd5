"""Quantized operators of the standard against ONNX Runtime, and against the standard's own evaluator where ONNX Runtime
does not take a form."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_one_node import compare, model_of

import effc.onnx_backend

RNG = np.random.default_rng(5)
F32 = np.float32


def ints(dtype: Any, *shape: int, low: int | None = None, high: int | None = None) -> Any:
    info = np.iinfo(dtype)
    return RNG.integers(info.min if low is None else low, (info.max if high is None else high) + 1, shape).astype(dtype)


def floats(*shape: int, scale: float = 20) -> Any:
    return (RNG.standard_normal(shape) * scale).astype(F32)


def scales(*shape: int) -> Any:
    return RNG.uniform(0.01, 0.3, shape).astype(F32)


def evaluate(op: str, *sets: Any, opset: int = 25, **kw: Any) -> None:
    """As ``compare``, with the standard's evaluator; exact."""
    for inputs in sets:
        model = model_of(op, inputs, opset=opset, **kw)
        names = [f"x{k}" for k, x in enumerate(inputs) if x is not None]
        expected = ReferenceEvaluator(model).run(None, dict(zip(names, [x for x in inputs if x is not None])))
        out = effc.onnx_backend.EffcRep(model, "reference").run([x for x in inputs if x is not None])
        for a, b in zip(out, expected):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.astype(F32), np.asarray(b).astype(F32))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("opset", [13, 21])
def test_quantize_and_back(dtype: Any, opset: int) -> None:
    domain = {"domain": "com.microsoft"} if opset == 13 and dtype in (np.int16, np.uint16) else {}
    zero = ints(dtype, 5)
    x = [floats(n, 5, 3, scale=600) for n in (2, 7)]
    compare("QuantizeLinear", *([v, scales(5), zero] for v in x), opset=opset, axis=-2, **domain)
    compare("QuantizeLinear", *([v, scales(), zero[0]] for v in x), opset=opset, axis=1, **domain)
    q = [ints(dtype, n, 5, 3) for n in (1, 4)]
    compare("DequantizeLinear", *([v, scales(5), zero] for v in q), opset=opset, axis=1, rtol=0, atol=0, **domain)
    compare("DequantizeLinear", *([v, scales(), None] for v in q), opset=opset, rtol=0, atol=0, **domain)


def test_oldest_form() -> None:
    compare("QuantizeLinear", *([floats(n, 4), scales(), np.uint8(7)] for n in (3, 0)), opset=10)
    compare("DequantizeLinear", *([ints(np.int8, n, 4), scales(), np.int8(-3)] for n in (3, 0)), opset=10)
    compare("DequantizeLinear", *([ints(np.int32, n, 4), scales(), None] for n in (3, 2)), opset=10)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("n", "block"), [(12, 4), (13, 4), (3, 8)])
def test_blocks(target: str, n: int, block: int) -> None:
    """A dim that blocks divide, one that they do not, one shorter than a block."""
    count = -(-n // block)
    sets = [[floats(b, n, 3), scales(b, count, 3), ints(np.uint8, b, count, 3)] for b in (1, 3)]
    compare("QuantizeLinear", *sets, axis=1, block_size=block, target=target)
    sets = [[ints(np.int8, b, n, 3), scales(b, count, 3), ints(np.int8, b, count, 3)] for b in (1, 3)]
    compare("DequantizeLinear", *sets, axis=-2, block_size=block, rtol=0, atol=0, target=target)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_short_integers(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    low, high = (int(ml_dtypes.iinfo(dtype).min), int(ml_dtypes.iinfo(dtype).max))
    zero = RNG.integers(low, high + 1, 5).astype(np.int8).astype(dtype)
    evaluate("QuantizeLinear", *([floats(n, 5, scale=1), scales(5), zero] for n in (1, 6)), axis=1)
    q = [RNG.integers(low, high + 1, (n, 5)).astype(np.int8).astype(dtype) for n in (1, 6)]
    evaluate("DequantizeLinear", *([v, scales(5), zero] for v in q), axis=1)


@pytest.mark.parametrize("code", [TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.FLOAT4E2M1])
@pytest.mark.parametrize("saturate", [0, 1])
def test_short_floats(code: int, saturate: int) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    x = np.concatenate([floats(20, scale=100), np.array([np.inf, -np.inf, 1e5, -1e5, 0], F32)])
    evaluate("QuantizeLinear", [x, F32(0.5), np.zeros((), dtype)], saturate=saturate)
    evaluate("DequantizeLinear", [RNG.integers(0, 100, 30).astype(np.uint8).view(np.uint8).astype(dtype), F32(0.5)])


def test_output_dtype_and_precision() -> None:
    x = floats(4, 6)
    evaluate("QuantizeLinear", [x, scales()], output_dtype=TensorProto.INT16)
    evaluate("QuantizeLinear", [x.astype(np.float16), np.float16(0.1)], output_dtype=TensorProto.INT8)
    evaluate("QuantizeLinear", [x, np.float16(0.1)], output_dtype=TensorProto.INT8, precision=TensorProto.FLOAT)
    evaluate("DequantizeLinear", [ints(np.int8, 4, 6), scales()], output_dtype=TensorProto.FLOAT16)
    evaluate("DequantizeLinear", [ints(np.uint16, 4, 6), np.float16(0.01), np.uint16(30000)])


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_dynamic_quantize(target: str) -> None:
    compare("DynamicQuantizeLinear", *([floats(n, 5)] for n in (1, 9)), opset=11, outputs=3, target=target)
    compare(
        "DynamicQuantizeLinear", [np.zeros((2, 3), F32)], [np.abs(floats(3, 3))], opset=11, outputs=3, target=target
    )


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("a", "b"), [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
def test_matmul_integer(a: Any, b: Any, target: str) -> None:
    """Weights of 7 bits: ONNX Runtime saturates sums of two products at 16 bits on some processors."""
    w = ints(b, 70, 5, low=-64 if b is np.int8 else 0, high=63)
    x = [ints(a, n, 3, 70) for n in (1, 2)]
    compare("MatMulInteger", *([v, w, a(2), b(9)] for v in x), opset=10, target=target)
    compare("MatMulInteger", *([v, w, a(2), ints(b, 5, low=0, high=60)] for v in x), opset=10, target=target)
    compare("MatMulInteger", *([v, w] for v in x), opset=10, target=target)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_large_sums(target: str) -> None:
    """Sums beyond 2^24, which f32 does not hold."""
    x, w = ints(np.uint8, 3, 700, low=250), ints(np.uint8, 700, 5, low=250)
    model = model_of("MatMulInteger", [x, w], opset=10)
    (y,) = effc.onnx_backend.EffcRep(model, target).run([x, w])
    expected = x.astype(np.int32) @ w.astype(np.int32)
    assert expected.min() > 1 << 24
    np.testing.assert_array_equal(y, expected)
    model = model_of("ConvInteger", [x[:1].reshape(1, 700, 1), w.T[:, :, None].copy()], opset=10)
    (y,) = effc.onnx_backend.EffcRep(model, target).run([x[:1].reshape(1, 700, 1), w.T[:, :, None].copy()])
    np.testing.assert_array_equal(y.reshape(1, 5), expected[:1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_matmul(dtype: Any) -> None:
    w, k = ints(dtype, 40, 7, low=0 if dtype is np.uint8 else -64, high=63), 40
    zero = dtype(4)
    for columns in (False, True):
        w_scale, w_zero = (scales(7), np.full(7, zero)) if columns else (scales(), zero)
        sets = [[ints(dtype, n, 3, k), scales() / 9, zero, w, w_scale, w_zero, F32(0.7), zero] for n in (2, 5)]
        sets[1][1] = sets[0][1]
        compare("QLinearMatMul", *sets, constant=(1, 2, 3, 4, 5, 6, 7), steps=0.01, opset=10)


# ONNX Runtime takes no dilations with auto_pad
CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((4, 9, 8), (6, 4, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ((4, 9, 8), (6, 2, 3, 2), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [1, 2]}),
    ((6, 7, 8), (6, 1, 3, 3), {"group": 6, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((3, 11), (5, 3, 4), {"pads": [2, 1], "dilations": [2]}),
]


@pytest.mark.parametrize(("shape", "weights", "attrs"), CONVS)
def test_conv_integer(shape: Any, weights: Any, attrs: Any) -> None:
    w = ints(np.uint8, *weights)
    sets = [[ints(np.uint8, n, *shape), w, np.uint8(7), np.uint8(100)] for n in (1, 3)]
    compare("ConvInteger", *sets, opset=10, **attrs)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("shape", "weights", "attrs"), CONVS)
def test_qlinear_conv(shape: Any, weights: Any, attrs: Any, target: str) -> None:
    n = weights[0]
    w, bias = ints(np.int8, *weights, low=-64, high=63), ints(np.int32, n, low=-3000, high=3000)
    fixed = [F32(0.05), np.uint8(90), w, scales(n), np.zeros(n, np.int8), F32(1.3), np.uint8(130), bias]
    sets = [[ints(np.uint8, b, *shape), *fixed] for b in (1, 2)]
    compare("QLinearConv", *sets, opset=10, steps=0.02, target=target, constant=range(1, 9), **attrs)


def test_mod_of_floats() -> None:
    """As Python's %, with the divisor's sign on zeros."""
    x = np.array([-4, -0.0, 0.0, 5.5, -5.5, 3, -3, np.inf, 2, np.nan], F32)
    y = np.array([2, 3, -3, -2, 2, np.inf, np.inf, 2, 0, 1], F32)
    (out,) = effc.onnx_backend.EffcRep(model_of("Mod", [x, y], opset=13), "cpu").run([x, y])
    with np.errstate(invalid="ignore"):
        expected = np.mod(x, y)
    np.testing.assert_array_equal(out, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(out[zero]), np.signbit(y[zero]))


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_reductions_of_nothing(target: str) -> None:
    """A dim that turns out to be empty."""
    for op in ("ReduceMax", "ReduceMin", "ReduceLogSumExp"):
        sets = [[RNG.standard_normal((2, n, 3)).astype(F32), np.array([1], np.int64)] for n in (4, 0)]
        model = model_of(op, sets[0], opset=18, constant=(1,), dynamic={0: {1: "n"}})
        mine = effc.onnx_backend.EffcRep(model, target)
        for x, _ in sets:
            with np.errstate(divide="ignore"):
                expected = {
                    "ReduceMax": lambda v: v.max(1, keepdims=True, initial=-np.inf),
                    "ReduceMin": lambda v: v.min(1, keepdims=True, initial=np.inf),
                    "ReduceLogSumExp": lambda v: np.log(np.exp(v).sum(1, keepdims=True)),
                }[op](x)
            np.testing.assert_allclose(mine.run([x])[0], expected, 1e-6)
