"""Compiled Relax modules behind the calling convention of a compiled model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ...ir import dims
from ...ir.interp import bind_symbols
from ...runtime.errors import EffcError
from ..calling import BoundEntry, Session, Sessions
from .build import Built

Array = np.ndarray[Any, Any]


def parse(target: str) -> str:
    """TVM's name of a target ``tvm`` or ``tvm:NAME``; EffcError for one that is not covered."""
    name = target.partition(":")[2] or "llvm"
    if name != "llvm":
        raise EffcError(f"target {target!r} is not available in this version", hint="tvm or tvm:llvm")
    return name


class TvmModel:
    """Entry points run by Relax's virtual machine; called like a compiled model. It cannot be saved."""

    def __init__(self, built: Mapping[str, Built], imported: Any, report: Mapping[str, Any], target: str) -> None:
        self.built, self.report = dict(built), dict(report)
        self._target = parse(target)
        self._machines: dict[str, Any] = {}
        for name in self.built:  # compiled here, so that what TVM refuses is an error of compiling
            self.machine(name)
        self._sessions = Sessions({n: b.graph for n, b in self.built.items()}, imported, self._run)

    def machine(self, name: str) -> Any:
        """The function of an entry point."""
        if name not in self._machines:
            try:
                with tvm.transform.PassContext(opt_level=3):
                    code = relax.build(self.built[name].module, target=self._target)
            except Exception as e:
                raise EffcError(f"TVM does not take the module: {str(e)[:2000]}") from e
            self._machines[name] = relax.VirtualMachine(code, tvm.cpu())["main"]
        return self._machines[name]

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
        """Outputs (``y0``, ``y1`` ... without names of their own) from inputs by name."""
        return self._sessions.default.run(feeds)

    def _run(self, name: str, arrays: Sequence[Array]) -> list[Array]:
        built = self.built[name]
        env = bind_symbols(built.graph, arrays[: len(built.graph.inputs)])
        for d in built.nonzero:
            if dims.evaluate(d, env) == 0:
                raise EffcError(f"the size {d} is 0 in this call, and TVM cannot reduce over nothing")
        handed = [tvm.runtime.tensor(np.ascontiguousarray(a).reshape(a.shape)) for a in arrays]
        return [np.asarray(t.numpy()) for t in self.machine(name)(*handed)]

    def save(self, path: str | os.PathLike[str]) -> None:
        raise EffcError("target tvm runs in this process only", hint="compile with target='cpu' to save an artifact")
