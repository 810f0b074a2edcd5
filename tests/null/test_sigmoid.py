"""Sigmoid in generated loops: which quotients are taken for one, and the function against double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_math import VARIANTS, build, call

from effc.backends.cpu.codegen import Generated, map_kernel
from effc.backends.cpu.sigmoid import sigmoids
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.types import TensorType

SOURCE = """#include "math.hpp"
using namespace effc;
extern "C" __attribute__((visibility("default"))) void known(float* __restrict y, const float* __restrict a, long n) {
  for (long i = 0; i < n; i++) y[i] = op::sigmoid(a[i]);
}
extern "C" __attribute__((visibility("default"))) void given(float* __restrict y, const float* __restrict a, long n) {
  const op::Sigmoid f = {op::opaque(op::Sigmoid::kLow), op::opaque(op::Sigmoid::kHigh)};
  for (long i = 0; i < n; i++) y[i] = f(a[i]);
}
"""


def exact(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sigmoid in double precision without the overflow of e^-x, and without what 1 + e^-x loses."""
    e = np.exp(-np.abs(x.astype(np.float64)))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


@pytest.mark.parametrize("variant", VARIANTS)
def test_errors(variant: str, tmp_path: Any) -> None:
    """At most 1.50 units in the last place for x > 0 and 2.46 for x < 0 (floats from 1e-4 to 110), denormals too."""
    lib = build(SOURCE, variant, tmp_path)
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.uniform(0, 110, 1_000_000), np.exp(rng.uniform(-80, 4, 1_000_000))]).astype(np.float32)
    for sign, bound in ((1, 1.5), (-1, 2.46)):
        a = np.float32(sign) * x
        got, want = call(lib.given, np.empty_like(a), a), exact(a)
        unit = np.spacing(np.maximum(want, np.finfo(np.float32).tiny).astype(np.float32))
        assert (np.abs(got - want) <= bound * unit).all()
        assert ((got >= 0) & (got <= 1)).all()
        assert (call(lib.known, np.empty_like(a), a) == got).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_special_values_and_saturation(variant: str, tmp_path: Any) -> None:
    lib = build(SOURCE, variant, tmp_path)
    inf, nan = np.inf, np.nan
    a = np.array([0.0, -0.0, inf, -inf, nan, -nan, 1e-45, -1e-45, 3e38, -3e38, 30, 31, -110, -111, -104], np.float32)
    want = np.array([0.5, 0.5, 1, 0, nan, nan, 0.5, 0.5, 1, 0, 1, 1, 0, 0, 0], np.float32)
    for fn in (lib.known, lib.given):
        got = call(fn, np.empty_like(a), a)
        np.testing.assert_array_equal(got, want)
        assert not np.signbit(got[~np.isnan(got)]).any()
        nans = np.arange(0x7F800001, 0x80000000, 4099, dtype=np.uint32).view(np.float32)
        assert np.isnan(call(fn, np.empty_like(nans), nans)).all()
        far = np.linspace(17.5, 1000, 100_003).astype(np.float32)
        assert (call(fn, np.empty_like(far), far) == 1).all()


def body(kind: str, one: float = 1.0, minus: float = -1.0, dtype: DType = DType.f32) -> Graph:
    b = Builder()
    x, z = (b.input(k, TensorType(dtype, (8,))) for k in "xz")

    def const(v: float) -> Value:
        return b.constant(np.asarray(v, dtype.np))

    if kind == "op":
        return b.graph([b.op("mul", b.op("sigmoid", x), z)])
    negated = b.op("mul", const(minus), x) if "product" in kind or minus != -1 else b.op("neg", x)
    divisor = b.op("add", const(one), b.op("exp", negated))
    if "reciprocal" in kind:
        return b.graph([b.op("reciprocal", divisor)])
    return b.graph([b.op("div", {"one": const(1), "x": x, "z": z}[kind.split()[0]], divisor)])


@pytest.mark.parametrize("kind", ["op", "one", "x", "z", "x product", "reciprocal", "reciprocal product"])
def test_any_spelling_is_one_function(kind: str) -> None:
    graph = body(kind)
    x, z = (n[0] for n in graph.inputs)
    factor = {"x": x, "z": z}.get(kind.split()[0])
    assert list(sigmoids(graph).values()) == [(factor, x)]
    generated = Generated()
    symbol, _ = map_kernel(generated, graph, [1, 1, 1])
    text = generated.kernels[symbol]
    assert "sigmoid(x0)" in text and not any(f"op::{k}" in text for k in ("sigmoid", "exp", "div", "reciprocal", "neg"))
    assert text.count("op::mul") == (factor is not None or kind == "op")


@pytest.mark.parametrize("other", [{"one": 2.0}, {"minus": -2.0}, {"dtype": DType.f64}, {"dtype": DType.f16}])
def test_other_numbers_and_types_stay(other: dict[str, Any]) -> None:
    for kind in ("one", "x", "z product", "reciprocal"):
        assert not sigmoids(body(kind, **other))


def test_op_of_other_types() -> None:
    for dtype, found in ((DType.f16, 1), (DType.bf16, 1), (DType.f64, 0), (DType.c64, 0)):
        assert len(sigmoids(body("op", dtype=dtype))) == found
