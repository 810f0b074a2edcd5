"""Reading a model: the file, its external data, and what must hold before any operator is looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ...runtime.errors import EffcError
from . import dtypes
from .dtypes import Array

DEEP = 64  # functions within functions, graphs within graphs
OLDEST = 1  # operator set; before 7 only what has kept its meaning


def read(model: Any) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder that its external data may lie in; EffcError for a file that is no model."""
    if isinstance(model, onnx.ModelProto):
        return model, None
    path = Path(os.fspath(model))
    try:
        data = path.read_bytes()
    except OSError as e:
        raise EffcError(f"cannot read {path}: {e.strerror or e}") from e
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as e:
        raise EffcError(f"{path} is not an ONNX model: {e}", hint="the file may be truncated; export it again") from e
    if not proto.HasField("graph"):
        raise EffcError(f"{path} is not an ONNX model: it has no graph")
    _names(proto.graph, path, 0)
    for f in proto.functions:
        _text([f.name, f.domain, *f.input, *f.output, *f.attribute], path)
        _node_names(f.node, path, 0)
    return proto, path.parent


def _text(names: Iterable[Any], path: Path) -> None:
    """protobuf hands out bytes where a string is no UTF-8."""
    for n in names:
        if not isinstance(n, str):
            raise EffcError(f"{path} has a name that is no text: {n!r}", hint="the file may be damaged")


def _names(graph: onnx.GraphProto, path: Path, depth: int) -> None:
    _text((v.name for v in [*graph.input, *graph.output, *graph.initializer]), path)
    _text((d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim), path)
    _node_names(graph.node, path, depth)


def _node_names(nodes: Iterable[onnx.NodeProto], path: Path, depth: int) -> None:
    if depth > DEEP:
        raise EffcError(f"graphs of {path} are nested more than {DEEP} deep")
    for n in nodes:
        _text([n.op_type, n.domain, n.name, *n.input, *n.output], path)
        for a in n.attribute:
            _text([a.name, a.ref_attr_name], path)
            for g in [a.g] if a.HasField("g") else a.graphs:
                _names(g, path, depth + 1)


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """The version of each operator set that the model imports; EffcError for one outside what is known."""
    found = {_domain(o.domain): o.version for o in model.opset_import}
    for domain, v in found.items():
        if not 1 <= v < 1 << 31:
            raise EffcError(f"the model imports version {v} of operator set '{domain or 'ai.onnx'}', which cannot be")
    newest = onnx.defs.onnx_opset_version()
    version = found.setdefault("", newest if not found else found.get("", newest))
    if not OLDEST <= version <= newest:
        raise EffcError(
            f"the model is of operator set {version}; this version takes {OLDEST} to {newest}",
            hint="onnx.version_converter.convert_version(model, 17) makes another one of it",
        )
    return found


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


class Tensors:
    """The constants of a model as numpy arrays. External data is read from the model's own folder, and only there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def array(self, t: onnx.TensorProto) -> Array:
        """A tensor's content; EffcError for data that is not what the tensor's type and shape say."""
        where = f"tensor '{t.name}'"
        if any(d < 0 for d in t.dims):
            raise EffcError(f"{where} has a negative size in {tuple(t.dims)}")
        count = 1
        for d in t.dims:
            count *= d
        dtype = dtypes.dtype_of(t.data_type)
        if t.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(t, dtype, count, where)
        have = max(
            len(t.raw_data) * 8 // _bits(dtype), len(t.float_data), len(t.int32_data) * max(1, 8 // _bits(dtype)),
            len(t.int64_data), len(t.double_data), len(t.uint64_data),
        )  # fmt: skip
        if count > have * (2 if not t.raw_data else 1):
            raise EffcError(f"{where} of shape {tuple(t.dims)} holds {have} elements, not {count}")
        try:
            return dtypes.to_numpy(t)
        except (ValueError, TypeError, OverflowError) as e:
            raise EffcError(f"{where} of shape {tuple(t.dims)}: {e}") from e

    def _external(self, t: onnx.TensorProto, dtype: Any, count: int, where: str) -> Array:
        info = {e.key: e.value for e in t.external_data}
        location = info.get("location", "")
        if self.folder is None:
            raise EffcError(
                f"{where} lies in the file '{location}', and a model in memory has no folder",
                hint="compile the .onnx file, or load the model with its external data",
            )
        folder = self.folder.resolve()
        path = (folder / location).resolve()
        if not location or os.path.isabs(location) or not path.is_relative_to(folder) or path == folder:
            raise EffcError(
                f"{where} names the external file '{location}', which is not inside the model's folder",
                hint="external data must lie beside the model",
            )
        try:
            offset, length = int(info.get("offset", 0) or 0), info.get("length")
            size = int(length) if length else -1
        except ValueError:
            raise EffcError(f"{where} has external data with an offset or length that is no number") from None
        need = -(-count * _bits(dtype) // 8)
        if not path.is_file():
            raise EffcError(f"{where}: there is no file '{location}' beside the model")
        total = path.stat().st_size
        if offset < 0 or (size >= 0 and size != need) or offset + need > total:
            raise EffcError(f"{where} of {need} bytes does not fit '{location}' of {total} bytes at offset {offset}")
        if need == 0:
            return np.zeros(tuple(t.dims), dtype.np)
        raw = np.memmap(path, np.uint8, "r", offset, (need,))
        if _bits(dtype) < 8:
            copy = onnx.TensorProto()
            copy.data_type, copy.raw_data = t.data_type, raw.tobytes()
            copy.dims.extend(t.dims)
            return dtypes.to_numpy(copy)
        return np.asarray(raw).view(dtype.np).reshape(tuple(t.dims))


def _bits(dtype: Any) -> int:
    return {"u4": 4, "i4": 4, "f4e2m1": 4, "u2": 2, "i2": 2}.get(dtype.value) or int(dtype.np.itemsize) * 8
