"""GELU in generated loops: which products are taken for one, and the function against scipy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_math import VARIANTS, build, call

from effc.backends.cpu.codegen import Generated, map_kernel
from effc.backends.cpu.gelu import gelus
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.types import TensorType

sc = pytest.importorskip("scipy.special")
ROOT = 0.5**0.5
SOURCE = """#include "math.hpp"
extern "C" __attribute__((visibility("default"))) void gelu(float* __restrict y, const float* __restrict a, long n) {
  using namespace effc;
  const op::Gelu f = {op::opaque(op::Gelu::kLimit)};
  for (long i = 0; i < n; i++) y[i] = f(a[i]);
}
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_errors_are_those_of_erf_at_most(variant: str, tmp_path: Any) -> None:
    """With erf: 1.2e-7 |x|, and 1.66 units in the last place for x > 0 (all floats from 1e-5 to 9)."""
    fn = build(SOURCE, variant, tmp_path).gelu
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.uniform(0, 6, 1_000_000), np.exp(rng.uniform(-80, 4, 1_000_000))]).astype(np.float32)
    for sign in (1, -1):
        a = np.float32(sign) * x
        got = call(fn, np.empty_like(a), a).astype(np.float64)
        want = 0.5 * a * sc.erfc(-a.astype(np.float64) * ROOT)
        tiny = float(np.finfo(np.float32).tiny)
        assert (np.abs(got - want) <= 1.2e-7 * np.abs(a) + 1e-45).all()
        if sign > 0:
            assert (np.abs(got - want) <= 1.66 * np.spacing(np.maximum(want, tiny).astype(np.float32))).all()
        assert (np.signbit(got) == np.signbit(a)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_special_values_and_saturation(variant: str, tmp_path: Any) -> None:
    fn = build(SOURCE, variant, tmp_path).gelu
    inf, nan = np.inf, np.nan
    a = np.array([0.0, -0.0, inf, -inf, nan, 1e-45, -1e-45, 3e38, -3e38, 100, -100], np.float32)
    want = np.array([0.0, -0.0, inf, nan, nan, 0.0, -0.0, 3e38, -0.0, 100, -0.0], np.float32)
    got = call(fn, np.empty_like(a), a)
    np.testing.assert_array_equal(got, want)
    keep = ~np.isnan(want)
    assert (np.signbit(got) == np.signbit(want))[keep].all()
    a = np.linspace(5.53125, 1000, 100_003).astype(np.float32)
    assert (call(fn, np.empty_like(a), a) == a).all() and (call(fn, np.empty_like(a), -a) == 0).all()


def body(kind: str, root: float = ROOT, half: float = 0.5, one: float = 1.0, dtype: DType = DType.f32) -> Graph:
    b = Builder()
    x = b.input("x", TensorType(dtype, (8,)))

    def const(v: float) -> Any:
        return b.constant(np.asarray(v, dtype.np))

    t = b.op("div", x, const(1 / root)) if "divided" in kind else b.op("mul", const(root), x)
    e = b.op("add", b.op("erf", t), const(one))
    if "first" in kind:
        y = b.op("mul", b.op("mul", x, const(half)), e)
    elif "last" in kind:
        y = b.op("mul", b.op("mul", x, e), const(half))
    else:
        y = b.op("mul", x, b.op("mul", const(half), e))
    return b.graph([y])


@pytest.mark.parametrize("kind", ["first", "last", "middle", "divided first", "divided last"])
def test_any_order_is_one_function(kind: str) -> None:
    graph = body(kind)
    assert list(gelus(graph).values()) == [graph.inputs[0][0]]
    generated = Generated()
    symbol, _ = map_kernel(generated, graph, [1, 1])
    text = generated.kernels[symbol]
    assert "gelu(x0)" in text and "op::erf" not in text and "op::mul" not in text


@pytest.mark.parametrize(
    "other", [{"root": 0.7}, {"half": 1.0}, {"one": 2.0}, {"dtype": DType.f64}, {"dtype": DType.f16}]
)
def test_other_numbers_and_types_stay(other: dict[str, Any]) -> None:
    for kind in ("first", "last", "middle", "divided last"):
        assert not gelus(body(kind, **other))


def test_another_argument_stays() -> None:
    b = Builder()
    x, z = (b.input(k, TensorType(DType.f32, (8,))) for k in "xz")
    half, one, root = (b.constant(np.float32(v)) for v in (0.5, 1, ROOT))
    e = b.op("add", b.op("erf", b.op("mul", x, root)), one)
    assert not gelus(b.graph([b.op("mul", b.op("mul", z, half), e)]))
    assert not gelus(b.graph([b.op("mul", e, e)]))
