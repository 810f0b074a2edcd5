"""A fingerprint of an ONNX model and its example inputs, for the cache of compiled models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..imported import Unhashable
from .load import read


def digest(model: Any, args: Any, kwargs: Any, dynamic_shapes: Any) -> str:
    """SHA-256 over the model, the external files it names, and whatever the examples hold."""
    h = hashlib.sha256()
    proto, folder = read(model)
    if isinstance(model, (str, os.PathLike)):
        h.update(Path(model).read_bytes())
    else:
        h.update(proto.SerializeToString(deterministic=True))
    if folder is not None:
        for name in sorted(set(_external(proto))):
            h.update(name.encode())
            path = folder / name
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                with open(path, "rb") as f:
                    while block := f.read(1 << 22):
                        h.update(block)
    for x in (args, kwargs, dynamic_shapes):
        _feed(h, x)
    return h.hexdigest()


def _feed(h: Any, x: Any) -> None:
    if isinstance(x, dict):
        h.update(b"dict%d" % len(x))
        for k, v in x.items():
            _feed(h, k)
            _feed(h, v)
    elif isinstance(x, (list, tuple)):
        h.update(b"list%d" % len(x))
        for v in x:
            _feed(h, v)
    elif isinstance(x, (str, int, float, bool, type(None))):
        h.update(repr(x).encode())
    elif hasattr(x, "min") and hasattr(x, "max") and not hasattr(x, "shape"):  # a torch.export.Dim
        h.update(f"{x.min}..{x.max}".encode())
    else:
        a = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        if a.dtype.hasobject:
            raise Unhashable("an array of objects")
        h.update(f"{a.dtype.str}{a.dtype.name}{a.shape}".encode())
        h.update(np.ascontiguousarray(a).tobytes())


def _external(model: onnx.ModelProto) -> Iterator[str]:
    def of(graph: onnx.GraphProto, depth: int) -> Iterator[str]:
        for t in graph.initializer:
            if t.data_location == onnx.TensorProto.EXTERNAL:
                yield from (e.value for e in t.external_data if e.key == "location")
        for n in graph.node if depth < 64 else ():
            for a in n.attribute:
                if a.t.data_location == onnx.TensorProto.EXTERNAL:
                    yield from (e.value for e in a.t.external_data if e.key == "location")
                for g in [a.g] if a.HasField("g") else a.graphs:
                    yield from of(g, depth + 1)

    return of(model.graph, 0)
