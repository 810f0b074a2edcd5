"""What ``effc.compile(..., target="mlir")`` returns: a module of the torch dialect that can be saved and run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_mlir import ir

from ...runtime.artifact import write_file_atomically
from ..calling import BoundEntry, Session, Sessions
from ..reference import from_numpy, to_numpy
from .build import Built, new_context
from .eager import Function

Array = np.ndarray[Any, Any]


def without_symbols(text: str) -> Any:
    """The module of a text less ``torch.symbolic_int`` and ``torch.bind_symbolic_shape``."""
    found: dict[str, list[Any]] = {"torch.bind_symbolic_shape": [], "torch.symbolic_int": []}

    def visit(op: Any) -> None:
        for region in op.regions:
            for block in region.blocks:
                for o in block.operations:
                    if o.operation.name in found:
                        found[o.operation.name].append(o.operation)
                    visit(o.operation)

    with new_context():
        module = ir.Module.parse(text)
        visit(module.operation)
        for op in [o for ops in found.values() for o in ops]:
            op.erase()
    return module


class MlirModel:
    """A module of MLIR's torch dialect, one function an entry point.

    ``module`` is torch-mlir's ``ir.Module``, ``text`` the same as text; ``report`` says what was decided. A function
    takes the entry point's inputs, then its buffers, and gives its outputs, then the new contents of what it writes:
    ``report["functions"]`` has their names. Calling the model runs the module with PyTorch's operators, one by one:
    a way to see that it is right, not a fast one.
    """

    def __init__(self, built: Built, signatures: Mapping[str, Any] | None, report: Mapping[str, Any]) -> None:
        self.built, self.report = built, dict(report)
        self._functions: dict[str, Function] = {}
        self._sessions = Sessions(built.graphs, signatures, self._run)

    @property
    def module(self) -> Any:
        return self.built.module

    @property
    def text(self) -> str:
        """The module, weights included."""
        return str(self.built.module)

    def save(self, path: str | os.PathLike[str], symbols: bool = True) -> None:
        """Writes the module's text to ``path``; as MLIR's bytecode if it ends in ``.mlirbc``. ``symbols``: with the
        names and relations of dynamic sizes, which torch-mlir's own pipelines do not take."""
        target = Path(path)
        module = self.module if symbols else without_symbols(self.text)
        if target.suffix == ".mlirbc":
            write_file_atomically(target, module.operation.write_bytecode)
            return
        text = str(module).encode()
        write_file_atomically(target, lambda f: f.write(text))

    def session(self) -> Session:
        """Buffers of their own for every entry point."""
        return Session(self._sessions)

    def entry(self, name: str) -> BoundEntry:
        """An entry point; EffcError for a name that there is not."""
        return self._sessions.default.entry(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        return self._sessions.default(*args, **kwargs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name from inputs by name, as numpy arrays."""
        return self._sessions.default.run(feeds)

    def _run(self, name: str, arrays: Sequence[Array]) -> list[Array]:
        graph = self.built.graphs[name]
        if name not in self._functions:
            found = [o.operation for o in self.built.module.body.operations]
            (op,) = (o for o in found if o.attributes["sym_name"].value == name)
            self._functions[name] = Function(op, self._literal)
        types = [v.type for v in graph.outputs] + [c.value.type for c in graph.commits]
        made = self._functions[name]([from_numpy(np.array(a), True) for a in arrays])
        return [to_numpy(x, t.dtype) for x, t in zip(made, types, strict=True)]

    def _literal(self, op: Any) -> torch.Tensor:
        return from_numpy(self.built.data[str(op.attributes["value"])], True)
