"""One ONNX node compiled once and run at several sizes, next to a peer that runs the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import effc.onnx_backend

Array = np.ndarray[Any, Any]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}


def node_model(
    op: str, sets: Sequence[Sequence[Array | None]], opset: int, constant: Sequence[int], results: Sequence[str],
    attrs: dict[str, Any],
) -> onnx.ModelProto:  # fmt: skip
    """A graph of one node. A size that is not the same in all sets of inputs is open, and equally named where it is
    equal in each of them.
    """
    first = sets[0]
    names = ["" if x is None else f"x{k}" for k, x in enumerate(first)]
    symbols: dict[tuple[int, ...], str] = {}
    infos, initial = [], []
    for k, x in enumerate(first):
        if x is None:
            continue
        if k in constant:
            initial.append(onnx.numpy_helper.from_array(x, names[k]))
            continue
        shape: list[Any] = []
        for axis in range(x.ndim):
            sizes = tuple(s[k].shape[axis] for s in sets)  # type: ignore[union-attr]
            shape.append(sizes[0] if len(set(sizes)) == 1 else symbols.setdefault(sizes, f"d{len(symbols)}"))
        infos.append(helper.make_tensor_value_info(names[k], helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    outs = [helper.make_empty_tensor_value_info(r) for r in results if r]
    graph = helper.make_graph([helper.make_node(op, names, list(results), **attrs)], "g", infos, outs, initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ort(model: onnx.ModelProto) -> Callable[[dict[str, Array]], list[Array]]:
    """ONNX Runtime, each operator by its own kernel."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)  # type: ignore[no-any-return]


def evaluator(model: onnx.ModelProto) -> Callable[[dict[str, Array]], list[Array]]:
    """The standard's own numpy functions."""
    run = ReferenceEvaluator(model)
    return lambda feeds: run.run(None, feeds)  # type: ignore[return-value]


def run_node(
    op: str, *sets: Sequence[Array | None], opset: int = 21, constant: Sequence[int] = (),
    results: Sequence[str] = ("y",), target: str = "reference", **attrs: Any,
) -> list[list[Array]]:  # fmt: skip
    """The results for each set of inputs, of one compilation."""
    model = node_model(op, sets, opset, constant, results, attrs)
    rep = effc.onnx_backend.EffcRep(model, target)
    return [list(rep.run(_feeds(s, constant))) for s in sets]


def _feeds(inputs: Sequence[Array | None], constant: Sequence[int]) -> dict[str, Array]:
    return {f"x{k}": np.asarray(x) for k, x in enumerate(inputs) if x is not None and k not in constant}


def close(mine: Array, theirs: Array, tolerance: float | None = None) -> None:
    """dtype and shape the same; integers equal; floats within a share of the largest magnitude."""
    theirs = np.asarray(theirs)
    assert mine.dtype == theirs.dtype, (mine.dtype, theirs.dtype)
    assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
    if mine.dtype.name not in TOLERANCE:
        np.testing.assert_array_equal(mine, theirs)
        return
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    if b.size:
        limit = (TOLERANCE[mine.dtype.name] if tolerance is None else tolerance) * max(
            float(np.nanmax(np.abs(b))), 1e-6
        )
        np.testing.assert_allclose(np.nan_to_num(a), np.nan_to_num(b), rtol=0, atol=limit)


def compare(
    op: str, *sets: Sequence[Array | None], opset: int = 21, constant: Sequence[int] = (),
    results: Sequence[str] = ("y",), target: str = "reference", peer: Any = ort, tolerance: float | None = None,
    **attrs: Any,
) -> list[list[Array]]:  # fmt: skip
    """Runs the node for each set of inputs, of one compilation, and compares all results with the peer's."""
    other = peer(node_model(op, sets, opset, constant, results, attrs))
    found = run_node(op, *sets, opset=opset, constant=constant, results=results, target=target, **attrs)
    for inputs, mine in zip(sets, found):
        theirs = other(_feeds(inputs, constant))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            close(a, b, tolerance)
    return found


def floats(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


BF16 = np.dtype(ml_dtypes.bfloat16)
