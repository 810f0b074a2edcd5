"""What ``effc.compile(..., target="onnx")`` returns: an ONNX model that can be saved, looked at, and run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...ir.dtypes import DType
from ...ir.graph import Graph
from ...ir.interp import bind_symbols, holds
from ...runtime import tree
from ...runtime.artifact import write_file_atomically
from ...runtime.errors import EffcError
from ..reference import from_numpy, to_numpy
from .build import INLINE_LIMIT, Built, tensor
from .context import ONNX_TYPE

Array = np.ndarray[Any, Any]
ALIGN = 4096  # of each tensor in a file of external data, so that it can be mapped
KEEP_INLINE = 1024  # smaller tensors stay in the .onnx file


class OnnxModel:
    """An ONNX model made from one entry point.

    ``model`` is the ``onnx.ModelProto``; ``report`` says what was decided. Calling it runs it in onnxruntime, if that
    is installed, with the calling convention of every compiled model. A model with state has, for each buffer ``b``,
    an input ``state.b`` and, where the model writes it, an output ``state.b.next``; for an input ``x`` that the model
    writes, there is an output ``x.next``. ``session()`` holds such buffers between calls.
    """

    def __init__(
        self, built: Built, graph: Graph, signature: Any, report: Mapping[str, Any], num_threads: int | None = None
    ) -> None:
        self.built, self.graph, self._signature = built, graph, signature
        self.report: dict[str, Any] = dict(report)
        self._threads = num_threads
        self._engine: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._default = OnnxSession(self)

    @property
    def model(self) -> onnx.ModelProto:
        """The whole model, weights included; EffcError beyond the 2 GiB that a protobuf message can hold."""
        if self.built.nbytes > INLINE_LIMIT:
            raise EffcError(
                f"the weights are {self.built.nbytes:,} bytes, a ModelProto holds 2 GiB",
                hint="save() puts them into a file of their own beside the .onnx file",
            )
        return self.built.model()

    @property
    def input_names(self) -> list[str]:
        return list(self.built.inputs)

    @property
    def output_names(self) -> list[str]:
        return list(self.built.outputs)

    def save(self, path: str | os.PathLike[str], external_data: bool | None = None) -> None:
        """Writes the model to ``path``; its weights, if they are more than 1.9 GB or ``external_data`` is set, to
        ``path`` + ".data" beside it. Each file is written as a whole or not at all."""
        target = Path(path)
        if external_data is None:
            external_data = self.built.nbytes > INLINE_LIMIT
        if not external_data:
            data = self.model.SerializeToString()
            write_file_atomically(target, lambda f: f.write(data))
            return
        tensors, big, offset = [], [], 0
        for n, a in self.built.initializers.items():
            t = tensor(n, a, self.built.dtypes[n], raw=a.nbytes <= KEEP_INLINE)
            if a.nbytes > KEEP_INLINE:
                offset = -(-offset // ALIGN) * ALIGN
                t.data_location = TensorProto.EXTERNAL
                for key, value in (("location", f"{target.name}.data"), ("offset", offset), ("length", a.nbytes)):
                    t.external_data.add(key=key, value=str(value))
                big.append((offset, a))
                offset += a.nbytes
            tensors.append(t)

        def write(f: Any) -> None:
            for at, a in big:
                f.seek(at)
                f.write(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)

        write_file_atomically(target.with_name(target.name + ".data"), write)
        head = self.built.model(tensors).SerializeToString()
        write_file_atomically(target, lambda f: f.write(head))

    def engine(self) -> Any:
        """The onnxruntime session; made on first use."""
        if self._engine is None:
            try:
                import onnxruntime
            except ImportError as e:
                raise EffcError(
                    "running an ONNX model needs onnxruntime, which is not installed",
                    hint="pip install onnxruntime, or save() the model and run it elsewhere",
                ) from e
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            if self._threads:
                options.intra_op_num_threads = self._threads
            source: Any
            if self.built.nbytes > INLINE_LIMIT:
                self._folder = tempfile.TemporaryDirectory(prefix="effc-")
                source = str(Path(self._folder.name) / "model.onnx")
                self.save(source)
            else:
                source = self.built.model().SerializeToString()
            try:
                self._engine = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except Exception as e:
                raise EffcError(f"onnxruntime does not take the model: {e}") from e
        return self._engine

    def session(self) -> OnnxSession:
        """Buffers of its own for a model with state."""
        return OnnxSession(self)

    def entry(self, name: str = "main") -> OnnxSession:
        if name != self.built.graph.name:
            raise EffcError(f"there is no entry point {name!r}", hint=f"entry points: {self.built.graph.name}")
        return self._default

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        return self._default(*args, **kwargs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name from inputs by name, as numpy arrays (complex ones as complex)."""
        return self._default.run(feeds)


class OnnxSession:
    """The buffers of one run after the other."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.states: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        m = self._model
        missing = [n for n in m.built.inputs if n not in feeds]
        if missing:
            raise EffcError(f"missing input(s) {', '.join(missing)}", hint="inputs: " + ", ".join(m.built.inputs))
        arrays = [to_numpy(feeds[n], g.types[0].dtype) for n, g in zip(m.built.inputs, m.graph.inputs, strict=True)]
        outs, _ = self._run(arrays)
        return dict(zip(m.built.outputs, outs, strict=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        m = self._model
        leaves = tree.bind_arguments(m._signature.in_tree, args, kwargs)
        torch = sys.modules.get("torch")
        as_torch = torch is not None and (
            any(isinstance(x, torch.Tensor) for x in leaves) or not any(isinstance(x, np.ndarray) for x in leaves)
        )
        arrays = [to_numpy(x, n.types[0].dtype) for x, n in zip(leaves, m.graph.inputs, strict=True)]
        outs, written = self._run(arrays)
        for i, a in written.items():
            if torch is not None and isinstance(leaves[i], torch.Tensor):
                with torch.no_grad():
                    leaves[i].copy_(from_numpy(a, True))
            else:
                leaves[i][...] = a
        return tree.unflatten(m._signature.out_tree, [from_numpy(a, as_torch) for a in outs])

    def _run(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[int, Array]]:
        m = self._model
        env = bind_symbols(m.graph, arrays)
        for c in m.graph.checks:
            with contextlib.suppress(KeyError):  # a size that the run itself finds out
                if not holds(c.lhs, c.op, c.rhs, env):
                    raise EffcError(c.message or f"{c.lhs} {c.op} {c.rhs} does not hold for {env}")
        for s, st in m.graph.states.items():
            if s not in self.states:
                shape = tuple(int(d) for d in st.type.shape)  # type: ignore[arg-type]
                self.states[s] = np.zeros(shape, st.type.dtype.np) if st.init is None else np.array(st.init)
        feeds = {n: (a, g.types[0].dtype) for n, a, g in zip(m.built.inputs, arrays, m.graph.inputs, strict=True)}
        feeds.update({m.built.states[s][0]: (a, m.graph.states[s].type.dtype) for s, a in self.states.items()})
        results = list(zip(m.built.outputs, (v.dtype for v in m.graph.outputs), strict=True))
        extra = [(out, m.graph.states[s].type.dtype) for s, (_, out) in m.built.states.items() if out is not None]
        changed = [(name, m.graph.inputs[i].types[0].dtype) for i, name in m.built.written.items()]
        got = run_engine(m.engine(), feeds, [*results, *extra, *changed])
        for s, (_, out) in m.built.states.items():
            if out is not None:
                self.states[s] = got[out]
        return [got[n] for n in m.built.outputs], {i: got[n] for i, n in m.built.written.items()}


def run_engine(
    engine: Any, feeds: Mapping[str, tuple[Array, DType]], wanted: Sequence[tuple[str, DType]]
) -> dict[str, Array]:
    """One run; types that numpy lacks go through their bits, complex ones as pairs."""
    import onnxruntime

    taken = {i.name for i in engine.get_inputs()}
    given = {}
    for name, (a, dtype) in feeds.items():
        if name not in taken:
            continue
        a = np.ascontiguousarray(a).reshape(a.shape)
        if dtype.is_complex:
            a = np.stack([a.real, a.imag], -1).astype(dtype.real.np)
        if a.dtype.kind == "V" or dtype.value.startswith(("bf", "f8")):
            bits = a.view(np.uint16 if a.dtype.itemsize == 2 else np.uint8)
            given[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_TYPE[dtype])
        else:
            given[name] = onnxruntime.OrtValue.ortvalue_from_numpy(a)
    names = list(dict.fromkeys(n for n, _ in wanted))
    values = dict(zip(names, engine.run_with_ort_values(names, given), strict=True))
    return {n: _array(values[n], t) for n, t in wanted}


def _array(value: Any, dtype: DType) -> Array:
    if dtype.value.startswith(("bf", "f8")):
        return bits_of(value).view(dtype.np)
    a: Array = value.numpy()
    if dtype.is_complex:
        out = np.empty(a.shape[:-1], dtype.np)
        out.real, out.imag = a[..., 0], a[..., 1]
        return out
    return a


def bits_of(value: Any) -> Array:
    """The content of an OrtValue whose type numpy lacks, as unsigned integers."""
    import ctypes

    shape = tuple(value.shape())
    size = 2 if "bfloat16" in value.data_type() else 1
    count = int(np.prod(shape)) if shape else 1
    if count == 0:
        return np.zeros(shape, f"u{size}")
    buffer = (ctypes.c_uint8 * (count * size)).from_address(value.data_ptr())
    return np.frombuffer(buffer, f"u{size}").reshape(shape).copy()
