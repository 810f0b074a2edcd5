"""Lowering of convolution, pooling, padding and resize: fused epilogues, layouts, dynamic sizes, constant and
run-time weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from program_runner import Compiled

from effc.backends.cpu.target import CpuTarget
from effc.ir import interp
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.types import TensorType

TARGET = CpuTarget("x86-64-v3")
TOLERANCE = {"float32": 1e-5, "float64": 1e-10, "float16": 4e-3, "bfloat16": 2e-2}


def check(graph: Graph, arrays: list[np.ndarray]) -> Compiled:
    compiled = Compiled(graph, TARGET)
    want = interp.run(graph, arrays)
    for threads, mode in ((1, "serial"), (3, "reverse")):
        for got, ref in zip(compiled.run(arrays, threads, mode), want, strict=True):
            assert got.shape == ref.shape and got.dtype == ref.dtype
            if ref.dtype.name in TOLERANCE:
                a, b = got.astype(np.float64), ref.astype(np.float64)
                assert np.abs(a - b).max(initial=0) <= TOLERANCE[ref.dtype.name] * np.abs(b).max(initial=0)
            else:
                assert np.array_equal(got, ref)
    return compiled


def calls(compiled: Compiled) -> list[str]:
    return [i["kernel"] for i in compiled.program["code"]]


def conv_attrs(nd: int, pad: int = 1, groups: int = 1, stride: int = 1) -> dict[str, Any]:
    return {"stride": (stride,) * nd, "padding": ((pad, pad),) * nd, "dilation": (1,) * nd, "groups": groups}


def body(acc: TensorType, extras: list[TensorType], f: Any) -> Graph:
    b = Builder()
    values = [b.input("acc", acc), *(b.input(f"x{i}", t) for i, t in enumerate(extras))]
    out = f(b, *values)
    return b.graph([out] if isinstance(out, Value) else out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 12])
@pytest.mark.parametrize("constant", [True, False])
def test_fused_bias_clamp_residual(dtype: Any, groups: int, constant: bool) -> None:
    rng = np.random.default_rng(0)
    dt = DType.from_np(dtype)
    b = Builder()
    x = b.input("x", TensorType(dt, (2, 12, 7, 9)))
    data = rng.standard_normal((24, 12 // groups, 3, 3)).astype(dtype)
    w = b.constant(data) if constant else b.input("w", TensorType(dt, data.shape))
    bias = b.constant(rng.standard_normal((24, 1, 1)).astype(dtype))
    residual = b.input("r", TensorType(dt, (2, 24, 7, 9)))
    scale = b.input("s", TensorType(dt, (2, 1, 7, 1)))

    def f(g: Builder, acc: Any, bias: Any, r: Any, s: Any) -> Any:
        y = g.op("add", acc, bias)
        y = g.op("minimum", g.op("maximum", y, g.constant(np.zeros((), dtype))), g.constant(np.full((), 6, dtype)))
        y = g.op("add", g.op("mul", y, s), r)
        return [y, g.op("gt", y, g.constant(np.ones((), dtype)))]

    acc = TensorType(dt, (2, 24, 7, 9))
    outs = b.op(
        "conv_fused",
        x,
        w,
        bias,
        residual,
        scale,
        **conv_attrs(2, groups=groups),
        body=body(acc, [bias.type, residual.type, scale.type], f),
    )
    graph = b.graph(outs[:1])  # the comparison may flip where rounding differs: only its presence is tested
    arrays = [rng.standard_normal(n.types[0].shape).astype(dtype) for n in graph.inputs]
    compiled = check(graph, arrays)
    assert sum(k.startswith("effc_conv") for k in calls(compiled)) == 1


def test_fused_transposed() -> None:
    rng = np.random.default_rng(1)
    b = Builder()
    x = b.input("x", TensorType(DType.f32, (2, 6, 5, 4)))
    w = b.constant(rng.standard_normal((6, 10, 3, 3)).astype(np.float32))
    bias = b.constant(rng.standard_normal((10, 1, 1)).astype(np.float32))
    acc = TensorType(DType.f32, (2, 10, 10, 8))
    y = b.op(
        "conv_fused",
        x,
        w,
        bias,
        **conv_attrs(2, stride=2),
        output_padding=(1, 1),
        body=body(
            acc, [bias.type], lambda g, a, c: g.op("maximum", g.op("add", a, c), g.constant(np.zeros((), np.float32)))
        ),
    )
    compiled = check(b.graph([y]), [rng.standard_normal((2, 6, 5, 4)).astype(np.float32)])
    assert calls(compiled).count("effc_conv_f32") == 1


def test_channels_stay_innermost_between_layers() -> None:
    """conv, pool, depthwise, pad, resize: one copy at the end (the caller's result is row-major), none between."""
    rng = np.random.default_rng(2)
    b = Builder()
    v = b.input("x", TensorType(DType.f32, (1, 3, 20, 22)))
    v = b.op("conv", v, b.constant(rng.standard_normal((16, 3, 3, 3)).astype(np.float32)), **conv_attrs(2, stride=2))
    v = b.op("max_pool", v, kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
    v = b.op("pad", v, padding=((0, 0), (0, 0), (1, 0), (0, 2)), mode="reflect")
    v = b.op("conv", v, b.constant(rng.standard_normal((16, 1, 3, 3)).astype(np.float32)), **conv_attrs(2, groups=16))
    v = b.op("resize", v, size=(17, 9))
    v = b.op("conv", v, b.constant(rng.standard_normal((8, 16, 1, 1)).astype(np.float32)), **conv_attrs(2, pad=0))
    v = b.op("adaptive_avg_pool", v, size=(1, 1))
    compiled = check(b.graph([v]), [rng.standard_normal((1, 3, 20, 22)).astype(np.float32)])
    assert "effc_copy" not in calls(compiled)[:-1]


def test_dynamic_batch_and_image() -> None:
    rng = np.random.default_rng(3)
    b = Builder()
    n, h, w = b.symbol("n", 0, 8), b.symbol("h", 1, 64), b.symbol("w", 1, 64)
    x = b.input("x", TensorType(DType.f32, (n, 3, h, w)))
    v = b.op("conv", x, b.constant(rng.standard_normal((20, 3, 3, 3)).astype(np.float32)), **conv_attrs(2, stride=2))
    bias = b.constant(rng.standard_normal((20, 1, 1)).astype(np.float32))
    weights = b.constant(rng.standard_normal((20, 20, 3, 3)).astype(np.float32))
    v = b.op(
        "conv_fused",
        v,
        weights,
        bias,
        v,
        **conv_attrs(2),
        body=body(v.type, [bias.type, v.type], lambda g, a, c, r: g.op("add", g.op("add", a, c), r)),
    )
    v = b.op("conv", v, b.constant(rng.standard_normal((20, 1, 3, 3)).astype(np.float32)), **conv_attrs(2, groups=20))
    v = b.op("pad", v, padding=((0, 0), (0, 0), (1, 2), (0, 1)), mode="replicate")
    v = b.op(
        "avg_pool", v, kernel=(2, 2), stride=(2, 2), padding=((1, 1), (0, 0)), ceil_mode=True, count_include_pad=False
    )
    v = b.op(
        "conv_transpose",
        v,
        b.constant(rng.standard_normal((20, 7, 2, 2)).astype(np.float32)),
        **conv_attrs(2, 0, 1, 2),
        output_padding=(0, 0),
    )
    v = b.op("resize", v, size=(h, w), mode="linear", antialias=True)
    v = b.op("adaptive_avg_pool", v, size=(2, 3))
    graph = b.graph([v])
    compiled = Compiled(graph, TARGET)
    for shape in ((1, 3, 17, 23), (2, 3, 32, 5), (0, 3, 4, 4), (3, 3, 1, 1), (1, 3, 64, 64)):
        a = rng.standard_normal(shape).astype(np.float32)
        want = interp.run(graph, [a])[0]
        got = compiled.run([a], 2, "threads")[0]
        assert got.shape == want.shape and np.abs(got - want).max(initial=0) <= 1e-5 * np.abs(want).max(initial=0), (
            shape
        )


def test_integer_fused_is_decomposed() -> None:
    rng = np.random.default_rng(4)
    b = Builder()
    x = b.input("x", TensorType(DType.i64, (1, 3, 6)))
    w = b.constant(rng.integers(-5, 5, (4, 3, 3)))
    bias = b.constant(rng.integers(-5, 5, (4, 1)))
    y = b.op(
        "conv_fused",
        x,
        w,
        bias,
        **conv_attrs(1),
        body=body(TensorType(DType.i64, (1, 4, 6)), [bias.type], lambda g, a, c: g.op("add", a, c)),
    )
    compiled = check(b.graph([y]), [rng.integers(-9, 9, (1, 3, 6))])
    assert "effc_conv_plain" in calls(compiled)


def step_graph(make: Any, depthwise: bool = False) -> tuple[Graph, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    b = Builder()
    x, r = b.input("x", TensorType(DType.f32, (2, 8, 6, 5))), b.input("r", TensorType(DType.f32, (2, 8, 6, 5)))
    w = b.constant(rng.standard_normal((8, 1 if depthwise else 8, 3, 3)).astype(np.float32))
    bias = b.constant(rng.standard_normal((8, 1, 1)).astype(np.float32))
    acc = TensorType(DType.f32, (2, 8, 6, 5))
    inner = body(acc, [bias.type, r.type], make)
    y = b.op("conv_fused", x, w, bias, r, **conv_attrs(2, groups=8 if depthwise else 1), body=inner)
    return b.graph([y]), [rng.standard_normal((2, 8, 6, 5)).astype(np.float32) for _ in range(2)]


def c(g: Builder, value: float) -> Any:
    return g.constant(np.float32(value))


def test_common_bodies_run_in_the_kernel() -> None:
    def relu_last(g: Builder, a: Any, bias: Any, r: Any) -> Any:
        return g.op("maximum", g.op("add", r, g.op("add", a, bias)), c(g, 0))

    def linear(g: Builder, a: Any, bias: Any, r: Any) -> Any:
        return g.op("add", g.op("add", bias, a), r)

    for make in (relu_last, linear):
        compiled = check(*step_graph(make))
        assert not any(i.get("epilogue") for i in compiled.program["code"])


def test_other_bodies_are_epilogues() -> None:
    def act_first(g: Builder, a: Any, bias: Any, r: Any) -> Any:  # the residual comes after the clamp
        return g.op("add", g.op("minimum", g.op("add", a, bias), c(g, 1)), r)

    def twice(g: Builder, a: Any, bias: Any, r: Any) -> Any:  # acc is used twice
        return g.op("add", g.op("mul", a, a), g.op("add", bias, r))

    def crossed(g: Builder, a: Any, bias: Any, r: Any) -> Any:  # limits that exclude each other
        y = g.op("add", g.op("add", a, bias), r)
        return g.op("minimum", g.op("maximum", y, c(g, 2)), c(g, 1))

    for make in (act_first, twice, crossed):
        compiled = check(*step_graph(make))
        assert any(i.get("epilogue") for i in compiled.program["code"])
    compiled = check(*step_graph(lambda g, a, bias, r: g.op("add", g.op("add", a, bias), r), depthwise=True))
    assert any(i.get("epilogue") for i in compiled.program["code"])


@pytest.mark.parametrize("channels", [37, 48, 96])
@pytest.mark.parametrize("depthwise", [False, True])
def test_epilogue_of_many_short_rows(depthwise: bool, channels: int) -> None:
    """A hard swish after a convolution, on blocks of channels of a wide image. What all elements have in common is
    defined once, outside of the loop over rows."""
    rng = np.random.default_rng(channels)
    b = Builder()
    shape = (1, channels, 19, 83)
    x = b.input("x", TensorType(DType.f32, shape))
    w = b.constant(rng.standard_normal((channels, 1 if depthwise else channels, 3, 3)).astype(np.float32))
    bias = b.constant(rng.standard_normal((channels, 1, 1)).astype(np.float32))

    def hard_swish(g: Builder, a: Any, extra: Any) -> Any:
        t, six = g.op("add", a, extra), c(g, 6)
        inside = g.op("minimum", g.op("maximum", g.op("add", t, c(g, 3)), c(g, 0)), six)
        return g.op("add", g.op("mul", g.op("div", g.op("mul", t, inside), six), c(g, 1.1)), c(g, 0.2))

    inner = body(TensorType(DType.f32, shape), [bias.type], hard_swish)
    y = b.op("conv_fused", x, w, bias, **conv_attrs(2, groups=channels if depthwise else 1), body=inner)
    arrays = [rng.standard_normal(shape).astype(np.float32)]
    compiled = check(b.graph([y]), arrays)
    assert [bool(i.get("epilogue")) for i in compiled.program["code"] if "conv" in i["kernel"]] == [True]
    (text,) = (t for name, t in compiled.generated.kernels.items() if name.startswith("epi_"))
    before, *loops = text.split("for (int64_t r = 0; r < m; ++r)")
    assert before.count("const float t") == 5 and "for (" not in before
    assert len(loops) == 2 and "n % PAIR == 0" in before  # rows of two vectors, and any others
    for loop in loops:
        assert loop.count("for (int64_t i") == 1 and "opaque" not in loop and "dv[" not in loop
    once = compiled.run(arrays, 1, "serial")[0]
    for threads in (2, 5):
        assert np.array_equal(once, compiled.run(arrays, threads, "threads")[0])
