"""After all passes, compiled for the CPU, a random graph gives what the interpreter gives for the graph as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from effc.conformance.compare import difference
from effc.conformance.ops import Runner
from effc.ir import DType
from effc.ir.interp import Interpreter
from effc.ir.text import parse, to_text

from .random_graphs import Plan, inputs, plans

COMMON = {"deadline": None, "database": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}
# Sums of hundreds of terms in another order: the bound is for a whole graph, not for one op.
TOLERANCE = {DType.f64: 1e-10, DType.f32: 1e-4}


def run(plan: Plan, dtype: DType, backend: str = "cpu") -> None:
    runner = Runner(plan.graph, backend, passes=True)
    for k, env in enumerate(plan.sizes):
        arrays = inputs(plan.graph, env, k)
        want = Interpreter().run(plan.graph, arrays)
        got = runner.run([a.copy() for a in arrays])
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            problem = difference(a, b, TOLERANCE[dtype] if b.dtype == dtype.np else None)
            # A result that is all rounding error has no scale of its own: it is held against the graph's values,
            # which are about 1.
            if (
                problem
                and b.dtype == dtype.np
                and b.size
                and np.isfinite(b).all()
                and np.isfinite(a).all()
                and a.shape == b.shape
            ):
                if float(np.abs(a - b).max()) <= TOLERANCE[dtype] * 1e-2:
                    problem = ""
            assert not problem, f"output {i} at {env}: {problem}"


@settings(max_examples=25, derandomize=True, **COMMON)
@given(plans(DType.f64))
def test_f64(plan: Plan) -> None:
    run(plan, DType.f64)


@settings(max_examples=15, derandomize=True, **COMMON)
@given(plans(DType.f32, symbolic=True))
def test_f32_dynamic(plan: Plan) -> None:
    run(plan, DType.f32)


@settings(max_examples=40, derandomize=True, **COMMON)
@given(plans(DType.f64))
def test_onnx(plan: Plan) -> None:
    pytest.importorskip("onnxruntime")
    run(plan, DType.f64, "onnx")


@settings(max_examples=40, derandomize=True, **COMMON)
@given(plans(DType.f32, symbolic=True))
def test_onnx_dynamic(plan: Plan) -> None:
    pytest.importorskip("onnxruntime")
    run(plan, DType.f32, "onnx")


@pytest.mark.slow
@settings(max_examples=300, **COMMON)
@given(plans(DType.f64, steps=30))
def test_many(plan: Plan) -> None:
    run(plan, DType.f64)


@settings(max_examples=60, derandomize=True, **COMMON)
@given(plans(DType.f64))
def test_passes_keep_meaning(plan: Plan) -> None:
    """The same, without a compiler: the interpreter before and after the passes."""
    after = Runner(plan.graph, "reference", passes=True)
    for k, env in enumerate(plan.sizes):
        arrays = inputs(plan.graph, env, k)
        for a, b in zip(after.run(arrays), Interpreter().run(plan.graph, arrays), strict=True):
            assert not difference(a, b, 1e-9 if b.dtype.kind == "f" else None) or np.abs(a - b).max() < 1e-12


@settings(max_examples=60, derandomize=True, **COMMON)
@given(plans())
def test_text_round_trips(plan: Plan) -> None:
    arrays: dict[str, np.ndarray] = {}
    text = to_text(plan.graph, arrays)
    again: dict[str, np.ndarray] = {}
    assert to_text(parse(text, arrays), again) == text and again.keys() == arrays.keys()
