"""One ONNX node through effc and through a peer, at several sizes of its dynamic dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import effc.onnx_backend

Array = np.ndarray[Any, Any]


def model_of(
    op: str, inputs: Sequence[Array | None], shapes: Sequence[Any], outputs: int = 1, opset: int = 21, domain: str = "",
    constants: Sequence[int] = (), **attrs: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node. ``shapes``: each input's dims, names are dynamic; ``constants``: which are initialisers."""
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(inputs)]
    infos, initial = [], []
    for k, (n, x) in enumerate(zip(names, inputs)):
        if x is None:
            continue
        if k in constants:
            initial.append(onnx.numpy_helper.from_array(x, n))
        else:
            infos.append(helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), shapes[k]))
    outs = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, outs, domain=domain, **attrs)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(o) for o in outs], initial)
    imports = [helper.make_opsetid("", opset if not domain else 21)]
    if domain:
        imports.append(helper.make_opsetid(domain, opset))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def ort(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """ONNX Runtime's results. It wants to know what kind of value an output is; inference of shapes tells."""
    import onnxruntime

    known = onnx.shape_inference.infer_shapes(model)
    for k, o in enumerate(known.graph.output):
        if not o.type.tensor_type.elem_type:
            o.type.tensor_type.elem_type = TensorProto.INT64 if k == 0 and len(known.graph.output) > 1 else 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(known.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs)}))


def evaluator(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """The standard's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(None, {i.name: x for i, x in zip(model.graph.input, inputs)}))


def check(
    model: onnx.ModelProto, sets: Sequence[Sequence[Array]], peer: Any = ort, target: str = "reference",
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    """Compiles once and compares every set of inputs with the peer's results."""
    compiled = effc.onnx_backend.EffcRep(model, target)
    for inputs in sets:
        want, got = peer(model, inputs), list(compiled.run(list(inputs)))
        assert len(want) == len(got)
        for w, g in zip(want, got):
            w = np.asarray(w)
            assert g.shape == w.shape and g.dtype == w.dtype, (g.shape, g.dtype, w.shape, w.dtype)
            if w.dtype.kind in "iub":
                np.testing.assert_array_equal(g, w)
            else:
                a, b = g.astype(np.float64), w.astype(np.float64)
                np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
                finite = np.isfinite(b)
                np.testing.assert_array_equal(a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)])
                top = np.abs(b[finite]).max(initial=0)
                assert np.abs(a - b)[finite].max(initial=0) <= tolerance * max(top, 1e-6), np.abs(a - b)[finite].max()
