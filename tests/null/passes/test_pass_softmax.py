"""A softmax in halves is computed in f32: fewer roundings, the same type, and never further from the real numbers."""

from __future__ import annotations

import numpy as np
import pytest

from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.interp import run
from effc.ir.types import TensorType
from effc.passes.manager import Pipeline
from effc.passes.pipeline import Options, default
from effc.passes.softmax import RaiseSoftmax


def _graph(dtype: DType, axis: int, *, centred: bool = True, keep: bool = True, other: bool = False) -> Graph:
    b = Builder()
    x = b.input("x", TensorType(dtype, (3, 37, 5)))
    kept = tuple(1 if i == axis else d for i, d in enumerate(x.shape))

    def over(kind: str, v: Value) -> Value:
        r: Value = b.op("reduce", v, kind=kind, dims=(axis,), keepdims=keep)
        return r if keep else b.op("reshape", r, shape=kept)

    e = b.op("exp", b.op("sub", x, over("max", x)) if centred else x)
    return b.graph([b.op("div", e, over("sum", b.op("neg", e) if other else e))])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16])
def test_halves_are_rounded_once(dtype: DType, axis: int, keep: bool, centred: bool) -> None:
    g = _graph(dtype, axis, centred=centred, keep=keep)
    p = Pipeline((RaiseSoftmax(),), verify=True)
    after = p.run(g)
    assert [n.types[0].dtype for n in after.nodes if n.op in ("exp", "div", "sub")] == [DType.f32] * (2 + centred)
    assert after.outputs[0].type == g.outputs[0].type

    x = (2 * np.random.default_rng(7).standard_normal((3, 37, 5))).astype(dtype.np)
    v = x.astype(np.float64)
    e = np.exp(v - v.max(axis, keepdims=True))
    real = e / e.sum(axis, keepdims=True)
    once, stepwise = (run(h, [x])[0] for h in (after, g))
    # f32 on the way to one rounding: at most the neighbour where the real value is next to halfway
    bits = 10 if dtype is DType.f16 else 7
    ulp = np.maximum(np.exp2(np.floor(np.log2(real)) - bits), 2.0**-24 if dtype is DType.f16 else 0)
    assert np.all(np.abs(once.astype(np.float64) - real) <= 0.51 * ulp)
    assert np.abs(once.astype(np.float64) - real).sum() <= np.abs(stepwise.astype(np.float64) - real).sum()


@pytest.mark.parametrize(("dtype", "other"), [(DType.f32, False), (DType.f64, False), (DType.f16, True)])
def test_what_is_no_softmax_of_halves_stays(dtype: DType, other: bool) -> None:
    g = _graph(dtype, 1, other=other)
    assert [n.op for n in Pipeline((RaiseSoftmax(),)).run(g).nodes] == [n.op for n in g.nodes]


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16])
def test_attention_in_halves_is_formed(dtype: DType) -> None:
    b = Builder()
    q, k, v = (b.input(n, TensorType(dtype, (2, 3, size, 8))) for n, size in (("q", 4), ("k", 6), ("v", 6)))
    scores = b.op("mul", b.op("matmul", q, b.op("permute", k, dims=(0, 1, 3, 2))), b.constant(0.25, dtype))
    e = b.op("exp", b.op("sub", scores, b.op("reduce", scores, kind="max", dims=(3,), keepdims=True)))
    p = b.op("div", e, b.op("reduce", e, kind="sum", dims=(3,), keepdims=True))
    after = Pipeline(default(Options(native=lambda op: True)), verify=True).run(b.graph([b.op("matmul", p, v)]))
    assert [n.op for n in after.nodes if n.op in ("attention", "matmul")] == ["attention"]
