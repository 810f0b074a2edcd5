"""The ``reference`` backend: the numpy interpreter behind the same calling convention as a compiled model.

It runs every graph op by op through the ops' numpy references: slow, exact in its types and shapes, and independent of
every kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Graph
from ...ir.interp import Interpreter
from ...runtime import dtypes as table
from ...runtime import tree
from ...runtime.errors import EffcError

Array = np.ndarray[Any, Any]


# torch's types that numpy lacks
_LACKING = {t.torch: t.name for t in table.TABLE if t.ml and t.torch not in ("uint8", "uint16")}


def _bits(dtype: DType) -> np.dtype[Any] | None:
    """The integer type that stands for the bits of a type that numpy lacks, as in a compiled model."""
    t = table.BY_NAME[dtype.value]
    return np.dtype(t.numpy) if t.ml else None


def to_numpy(x: Any, dtype: DType) -> Array:
    """A torch tensor, numpy array or Python scalar as a numpy array of exactly ``dtype``; EffcError for another
    dtype."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().resolve_conj().resolve_neg().cpu()
        name = _LACKING.get(str(x.dtype).removeprefix("torch."))
        if name is not None:
            a = x.contiguous().view(getattr(torch, f"int{8 * x.itemsize}")).numpy().view(DType(name).np)
        else:
            a = x.numpy()
    elif isinstance(x, (bool, int, float, complex)):
        a = np.asarray(x, dtype.np)
    else:
        a = np.asarray(x)
    if _bits(dtype) == a.dtype:
        a = np.ascontiguousarray(a).reshape(a.shape).view(dtype.np)
    if a.dtype != dtype.np:
        raise EffcError(
            f"an argument has dtype {a.dtype}, the model was compiled for {dtype}", hint="convert the argument first"
        )
    return a


def from_numpy(a: Array, as_torch: bool) -> Any:
    """The array itself, or a torch tensor with its content."""
    if not as_torch:
        return a
    import torch

    dtype = DType.from_np(a.dtype)
    if _bits(dtype) is not None:
        raw = torch.from_numpy(np.array(a).view(f"i{a.itemsize}"))
        return raw.view(getattr(torch, table.BY_NAME[dtype.value].torch))
    return torch.from_numpy(np.array(a))


class ReferenceEntry:
    """One entry point bound to a session's buffers."""

    def __init__(self, imported: Any, states: dict[str, Array]) -> None:
        self._imported, self._states = imported, states

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        im = self._imported
        return tree.unflatten(im.out_tree, self._results(tree.bind_arguments(im.in_tree, args, kwargs)))

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Results by name from arrays by name. EffcError for a name that is missing or unknown."""
        im = self._imported
        for what, names in (
            ("misses", set(im.input_names) - set(inputs)),
            ("has no", set(inputs) - set(im.input_names)),
        ):
            if names:
                raise EffcError(
                    f"the call {what} input {', '.join(sorted(names))}", hint="inputs: " + ", ".join(im.input_names)
                )
        return dict(zip(im.output_names, self._results([inputs[n] for n in im.input_names]), strict=True))

    def _results(self, leaves: list[Any]) -> list[Any]:
        graph: Graph = self._imported.graph
        torch = sys.modules.get("torch")
        as_torch = torch is not None and (
            any(isinstance(x, torch.Tensor) for x in leaves) or not any(isinstance(x, np.ndarray) for x in leaves)
        )
        arrays = [to_numpy(x, n.types[0].dtype) for x, n in zip(leaves, graph.inputs, strict=True)]
        run_on = [np.array(a) if any(c.input == i for c in graph.commits) else a for i, a in enumerate(arrays)]
        outs = Interpreter(self._states).run(graph, run_on)
        for c in graph.commits:
            if c.input is not None:
                if torch is not None and isinstance(leaves[c.input], torch.Tensor):
                    with torch.no_grad():
                        leaves[c.input].copy_(from_numpy(run_on[c.input], True))
                else:
                    leaves[c.input][...] = run_on[c.input]
        return [from_numpy(a, as_torch) for a in outs]


class ReferenceSession:
    """Buffers of their own for every entry point."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries, self._states = entries, dict[str, Array]()

    def entry(self, name: str) -> ReferenceEntry:
        if name not in self._entries:
            raise EffcError(f"there is no entry point {name!r}", hint="entry points: " + ", ".join(self._entries))
        return ReferenceEntry(self._entries[name], self._states)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.entry(next(iter(self._entries)))(*args, **kwargs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Results by name of the first entry point."""
        return self.entry(next(iter(self._entries))).run(inputs)


class ReferenceModel:
    """A model run by the numpy interpreter; called like a compiled one. It cannot be saved."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = dict(entries)
        self._default = self.session()
        self.report: dict[str, Any] = {
            "target": "reference",
            "entries": {n: {"nodes": len(e.graph.nodes)} for n, e in entries.items()},
        }

    def session(self) -> ReferenceSession:
        return ReferenceSession(self._entries)

    def entry(self, name: str) -> ReferenceEntry:
        return self._default.entry(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._default(*args, **kwargs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Results by name of the first entry point."""
        return self._default.run(inputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        raise EffcError(
            "target reference runs in this process only", hint="compile with target='cpu' to save an artifact"
        )
