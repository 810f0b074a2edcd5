"""Models of one node, run by effc and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import effc.onnx_backend

Array = np.ndarray[Any, Any]


def model_of(
    op: str, inputs: Sequence[Array | None], *, domain: str = "", opset: int = 21, constant: Sequence[int] = (),
    dynamic: dict[int, dict[int, str]] | None = None, outputs: int = 1,
    attributes: dict[str, Any] | None = None, **attrs: Any,
) -> onnx.ModelProto:  # fmt: skip
    """One node. Inputs numbered in ``constant`` are initializers; ``dynamic`` names dims of the others. ``attributes``
    are those whose names this function has itself.
    """
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(inputs)]
    infos, initial = [], []
    for k, x in enumerate(inputs):
        if x is None:
            continue
        if k in constant:
            initial.append(onnx.numpy_helper.from_array(x, names[k]))
            continue
        shape: list[Any] = list(x.shape)
        for axis, text in (dynamic or {}).get(k, {}).items():
            shape[axis] = text
        infos.append(helper.make_tensor_value_info(names[k], helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    results = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attrs, **(attributes or {}))
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(r) for r in results], initial)
    versions = [helper.make_opsetid("", opset)]
    if domain:
        versions.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def peer(model: onnx.ModelProto) -> Any:
    """ONNX Runtime without its rewrites."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def compare(
    op: str, *sets: Sequence[Array | None], constant: Sequence[int] = (), target: str = "reference", steps: float = 0,
    rtol: float = 2e-5, atol: float = 1e-5, only: Sequence[int] | None = None, **kw: Any,
) -> list[Array]:  # fmt: skip
    """Compiles the node once, with the dims that differ between ``sets`` of inputs open, and compares the results.

    ``steps``: the share of a quantized result's elements that may be off by one, where the peer's order of roundings is
    another. ``only``: the results to compare.
    """
    dynamic: dict[int, dict[int, str]] = {}
    names: dict[tuple[int, ...], str] = {}
    for k, x in enumerate(sets[0]):
        for axis in range(x.ndim if x is not None and k not in constant else 0):
            sizes = tuple(s[k].shape[axis] for s in sets)  # type: ignore[union-attr]
            if len(set(sizes)) > 1:
                dynamic.setdefault(k, {})[axis] = names.setdefault(sizes, f"n{len(names)}")
    model = model_of(op, sets[0], constant=constant, dynamic=dynamic, **kw)
    session = peer(model)
    mine = effc.onnx_backend.EffcRep(model, target)
    out: list[Array] = []
    for inputs in sets:
        feeds = {f"x{k}": np.asarray(x) for k, x in enumerate(inputs) if x is not None and k not in constant}
        expected = session.run(None, feeds)
        out = list(mine.run(feeds))
        assert len(out) == len(expected)
        for i, (a, b) in enumerate(zip(out, expected)):
            if only is not None and i not in only:
                continue
            assert a.dtype == b.dtype and a.shape == b.shape, (i, a.dtype, b.dtype, a.shape, b.shape)
            if a.dtype.kind in "iu" and a.size:
                off = np.abs(a.astype(np.int64) - b.astype(np.int64))
                assert off.max() <= (1 if steps else 0), (i, off.max(), a, b)
                assert (off > 0).mean() <= steps, (i, (off > 0).mean())
            else:
                f = a.dtype if a.dtype == np.float64 else np.float32
                np.testing.assert_allclose(a.astype(f), b.astype(f), rtol, atol, err_msg=f"result {i}")
    return out
