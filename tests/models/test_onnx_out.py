"""Files that torch.onnx exports from the zoo, compiled to ONNX again: valid, right at two sizes, no more nodes than
onnxslim leaves. bench/onnx_out.py has the times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import effc

from . import zoo

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Nodes of what onnxslim 0.1.98 makes of the exported file (torch 2.13, dynamic sizes), local functions inlined.
ONNXSLIM = {
    "mtcnn_pnet": 10, "mtcnn_rnet": 15, "mtcnn_onet": 19, "crepe": 29, "resemblyzer": 28, "mobilenet_v2": 99,
    "efficientnet_lite0": 94, "minilm": 293,
}  # fmt: skip
QUICK = ("mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet", "resemblyzer")


# Nets whose nodes are all the exporter's own: onnxruntime makes one and the same graph of the input and of effc's file,
# so their times are equal, whatever a benchmark on a noisy machine says.
SAME_IN_ONNXRUNTIME = ("mobilenet_v2", "efficientnet_lite0", "mtcnn_pnet")


def optimised(path: Path) -> list[tuple[Any, ...]]:
    """The nodes that onnxruntime runs, in its order: operator, attributes, what it reads, and the bytes of its weights
    (integers are axes and shapes, which are spelled in several ways)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    g = onnx.load(options.optimized_model_filepath).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in g.initializer}
    constants = {k: a.tobytes() if a.dtype.kind == "f" else a.shape for k, a in arrays.items()}
    made: dict[str, Any] = {x.name: k for k, x in enumerate(g.input)}
    nodes = []
    for n in g.node:
        attrs = {a.name: str(onnx.helper.get_attribute_value(a)) for a in n.attribute}
        if n.op_type == "Reshape":
            attrs.pop("allowzero", None)  # no size is 0 or copied here
        ins = [constants[x] if x in constants else made[x] for x in n.input]
        nodes.append((n.op_type, n.domain, sorted(attrs.items()), ins))
        made |= {x: (len(nodes), k) for k, x in enumerate(n.output)}
    return nodes


def tensors(x: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ONNXSLIM])
@pytest.mark.filterwarnings("ignore")
def test_exported_models(name: str, tmp_path: Path) -> None:
    loaded = zoo.load(name)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        loaded.module, loaded.args, path, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=loaded.dynamic_shapes,
    )  # fmt: skip
    for domain in ("standard", "ort"):
        m = effc.compile(path, target="onnx", onnx_domain=domain)
        onnx.checker.check_model(m.model, full_check=True)
        if domain == "standard":
            assert m.report["nodes"] <= ONNXSLIM[name], m.report["ops"]
            assert {o.domain for o in m.model.opset_import} == {""}
            if name in SAME_IN_ONNXRUNTIME:
                m.save(tmp_path / "effc.onnx")
                assert optimised(path) == optimised(tmp_path / "effc.onnx")
        for args in loaded.sizes[:2]:
            with torch.no_grad():
                want = tensors(loaded.module(*args))
            got = m(*(t.numpy() for t in args if isinstance(t, torch.Tensor)))
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                b = b.numpy()
                assert a.shape == b.shape and a.dtype == b.dtype
                assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), (domain, args[0].shape)
