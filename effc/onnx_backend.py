"""effc as an ONNX backend: the interface of ``onnx.backend.base``.

    import onnx, effc.onnx_backend as backend
    rep = backend.prepare(onnx.load("model.onnx"), device="CPU")
    outputs = rep.run([x, y])

Devices: ``CPU`` (target ``cpu``) or any effc target, ``reference`` for example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from .compiler import compile as _compile
from .compiler import targets
from .runtime.errors import EffcError


class EffcRep(BackendRep):  # type: ignore[misc]
    """A prepared model. What can be compiled without seeing an input is compiled at once; a model whose types depend on
    what its inputs hold is compiled for the first run, and again where such an input holds something else.
    """

    def __init__(self, model: onnx.ModelProto, target: str, **options: Any) -> None:
        self._model, self._target, self._options = model, target, options
        initial = {t.name for t in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in initial]
        self._later = ""  # why compiling waits for a run
        self._compiled: Any = None
        try:
            self._compiled = _compile(model, target=target, **options)
        except EffcError as e:
            if not _needs_example(e):
                raise
            self._later = e.message

    @property
    def compiled(self) -> Any:
        """The compiled model; None as long as there is none."""
        return self._compiled

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """Outputs in the model's order, by name too. ``inputs``: arrays in the order of the inputs, or by name."""
        if isinstance(inputs, Mapping):
            inputs = [inputs.get(n) for n in self.inputs]
        elif not isinstance(inputs, Sequence):
            inputs = [inputs]
        inputs = [_contiguous(x) for x in inputs]
        if self._later:
            self._compiled = _compile(self._model, tuple(inputs), target=self._target, **self._options)
        out = [_array(x) for x in self._compiled(*inputs)]
        names = [o.name for o in self._model.graph.output]
        return namedtupledict("Outputs", names)(*out)


def _needs_example(e: EffcError) -> bool:
    text = f"{e.message} {e.hint or ''}"
    return "computed while running" in text or "an example of it" in text


def _array(x: Any) -> Any:
    """A result as a numpy array: without inputs nothing tells a compiled model which kind its caller wants."""
    if isinstance(x, (list, tuple)):
        return [_array(v) for v in x]
    if not hasattr(x, "detach"):
        return x
    if str(x.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _contiguous(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_contiguous(v) for v in x]
    return None if x is None else np.ascontiguousarray(x).reshape(np.shape(x))


class EffcBackend(Backend):  # type: ignore[misc]
    """Runs ONNX models compiled by effc."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator of the model is supported."""
        try:
            cls.prepare(model, device, **kwargs)
        except EffcError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> EffcRep:
        """Compiles a model. ``kwargs`` are options of :func:`effc.compile`. EffcError names what is not supported."""
        super().prepare(model, device, **kwargs)
        return EffcRep(model, _target(device), **kwargs)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> Any:
        """The outputs of a model for these inputs."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> Any:
        """The outputs of one node; its operator set is the newest unless ``opset_version`` is given."""
        version = int(kwargs.pop("opset_version", onnx.defs.onnx_opset_version()))
        arrays = [np.asarray(x) for x in inputs]
        names = [n for n in dict.fromkeys(node.input) if n]
        infos = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, arrays, strict=True)
        ]
        outs = [onnx.helper.make_empty_tensor_value_info(o) for o in node.output if o]
        graph = onnx.helper.make_graph([node], "node", infos, outs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, version)])
        return EffcRep(model, _target(device), **kwargs).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """CPU, or a target that this machine can run."""
        name = _target(device)
        return name == "cpu" or any(t["name"] == name and t["runs_here"] for t in targets())


def _target(device: str) -> str:
    kind = device.partition(":")[0]
    return "cpu" if kind == "CPU" else device


is_compatible = EffcBackend.is_compatible
prepare = EffcBackend.prepare
run = EffcBackend.run_model
run_model = EffcBackend.run_model
run_node = EffcBackend.run_node
supports_device = EffcBackend.supports_device

__all__ = ["EffcBackend", "EffcRep", "is_compatible", "prepare", "run", "run_model", "run_node", "supports_device"]
