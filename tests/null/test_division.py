"""Division by a constant as two products: every significand, and which divisors are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_math import VARIANTS, build, call

from effc.backends.cpu.codegen import Generated, map_kernel
from effc.backends.cpu.division import ODD, quotients, reciprocal
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.types import TensorType

SOURCE = """#include "math.hpp"
extern "C" __attribute__((visibility("default")))
void quotient(float* __restrict y, const float* __restrict a, const float* __restrict c, long n) {
  using namespace effc;
  const op::Quotient f = {c[0], c[1]};
  for (long i = 0; i < n; i++) y[i] = f(a[i]);
}
"""
DIVISORS = (6.0, -3.0, 49.0, 120.0, 6625.0, 0.75, 1.5 * 2.0**50, -5 * 2.0**-50, float(ODD - 1), float(ODD - 3))


def run(fn: Any, a: np.ndarray[Any, Any], c: float) -> np.ndarray[Any, Any]:
    factors = reciprocal(c)
    assert factors is not None
    return call(fn, np.empty_like(a), a, np.array(factors, np.float32))


def same(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> bool:
    """Bit for bit, but that one NaN is as good as another."""
    nan = np.isnan(want)
    return bool((np.isnan(got) == nan).all() and (got.view(np.int32) == want.view(np.int32))[~nan].all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_division(variant: str, tmp_path: Any) -> None:
    """All significands for 6, a random eighth of them for the others, at exponents from the least result that is
    promised to those that overflow; zeros, infinities and NaN."""
    fn = build(SOURCE, variant, tmp_path).quotient
    rng = np.random.default_rng(7)
    everything = (np.arange(1 << 23, dtype=np.int32) | 0x3F800000).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for c in DIVISORS:
            some = everything if c == 6 else rng.choice(everything, 1 << 18)
            scale = np.exp2(rng.integers(-40, 60, some.size).astype(np.float64)) * rng.choice([-1, 1], some.size)
            for a in (some, (some * scale).astype(np.float32), special):
                assert same(run(fn, a, c), a / np.float32(c)), c
            edge = np.exp2(rng.integers(-100, -90, some.size).astype(np.float64)) * np.abs(c) * some
            ends = [edge.astype(np.float32), (edge * 2.0**220).astype(np.float32)]
            for a in ends:
                want = a / np.float32(c)
                keep = np.abs(want) >= 2.0**-100
                assert same(run(fn, a, c)[keep], want[keep]), c


def test_small_quotients_are_off_by_their_last_bit_at_most(tmp_path: Any) -> None:
    fn = build(SOURCE, "v3", tmp_path).quotient
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 0x0D800000, 1 << 20).astype(np.int32)  # up to 2^-100, the subnormal ones too
    a = bits.view(np.float32)
    got, want = run(fn, a, 6.0), a / np.float32(6)
    assert np.abs(got.view(np.int32) - want.view(np.int32)).max() <= 1


@pytest.mark.parametrize("c", [1.0, -0.25, 0.1, float(np.float32(2**0.5)), float(ODD + 1), 0.0, 3 * 2.0**60, 3e-20])
def test_divisors_that_stay(c: float) -> None:
    """Powers of two are products already; for odd parts that are large nothing is proven, and l could lose bits."""
    assert reciprocal(c) is None


def test_the_factors_add_up() -> None:
    for c in np.float32([3, 6, -6, 7, 0.75, 960, 1e5, ODD - 1]).astype(float):
        h, rest = reciprocal(c) or (0, 0)
        assert abs(h) < abs(1 / c) and np.sign(rest) == np.sign(c) and abs((float(h) + float(rest)) * c - 1) < 2.0**-46


def body(dtype: DType = DType.f32, divisor: float = 6.0, constant: bool = True) -> Graph:
    b = Builder()
    x, y = (b.input(k, TensorType(dtype, (8,))) for k in "xy")
    return b.graph([b.op("div", x, b.constant(np.asarray(divisor, dtype.np)) if constant else y)])


def test_a_loop_has_no_division() -> None:
    gen = Generated()
    name, values = map_kernel(gen, body(), (1, 1, 1))
    assert "op::Quotient" in gen.kernels[name] and "op::div(" not in gen.kernels[name] and len(values) == 2
    again, _ = map_kernel(gen, body(divisor=-49.0), (1, 1, 1))
    assert again == name  # the factors are attributes


@pytest.mark.parametrize("graph", [body(DType.f64), body(constant=False), body(divisor=2.0**0.5), body(divisor=np.inf)])
def test_what_else_is_divided(graph: Graph) -> None:
    assert not quotients(graph)
    gen = Generated()
    name, _ = map_kernel(gen, graph, (1, 1, 1))
    assert "op::div(" in gen.kernels[name] and "Quotient" not in gen.kernels[name]
