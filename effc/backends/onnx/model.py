"""What ``effc.compile(..., target="onnx")`` returns: an ONNX model that can be saved, looked at, and run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...ir.dtypes import DType
from ...ir.graph import Graph
from ...runtime.artifact import write_file_atomically
from ...runtime.errors import EffcError
from ..calling import BoundEntry, Session, Sessions
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
        name = built.graph.name
        names = {name: (list(built.inputs), list(built.outputs))}
        self._sessions = Sessions({name: graph}, None if signature is None else {name: signature}, self._run, names)

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

    def session(self) -> Session:
        """Buffers of its own for a model with state."""
        return Session(self._sessions)

    def entry(self, name: str = "main") -> BoundEntry:
        """The entry point; EffcError for a name that it does not have."""
        return self._sessions.default.entry(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        return self._sessions.default(*args, **kwargs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name from inputs by name, as numpy arrays (complex ones as complex)."""
        return self._sessions.default.run(feeds)

    def _run(self, _: str, arrays: Sequence[Array]) -> list[Array]:
        g, built = self.graph, self.built
        given = [*built.inputs, *(built.states[s][0] for s in g.states)]
        dtypes = [*(n.types[0].dtype for n in g.inputs), *(st.type.dtype for st in g.states.values())]
        feeds = {n: (a, t) for n, a, t in zip(given, arrays, dtypes, strict=True)}
        wanted = list(zip(built.outputs, (v.dtype for v in g.outputs), strict=True))
        for c in g.commits:
            name = built.states[c.state][1] if c.state is not None else built.written[c.input or 0]
            assert name is not None
            wanted.append((name, c.value.dtype))
        got = run_engine(self.engine(), feeds, wanted)
        return [got[n] for n, _ in wanted]


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
