"""Compiled Relax modules behind the calling convention of a compiled model."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ...ir import dims
from ...ir.interp import bind_symbols, holds
from ...runtime import tree
from ...runtime.errors import EffcError
from ..reference import from_numpy, to_numpy
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
        self.built, self._imported, self.report = dict(built), imported, dict(report)
        self._target = parse(target)
        self._machines: dict[str, Any] = {}
        for name in self.built:  # compiled here, so that what TVM refuses is an error of compiling
            self.machine(name)
        self._default = self.session()

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

    def session(self) -> TvmSession:
        """Buffers of their own for every entry point."""
        return TvmSession(self)

    def entry(self, name: str) -> TvmEntry:
        return self._default.entry(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        return self._default(*args, **kwargs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs (``y0``, ``y1`` ... without names of their own) from inputs by name."""
        name = next(iter(self.built))
        graph = self.built[name].graph
        arrays = [to_numpy(feeds[n.name], n.types[0].dtype) for n in graph.inputs]
        outs, _ = self._default.entry(name)._run(arrays)
        names = getattr(self._imported[name], "output_names", None) if self._imported else None
        return dict(zip(names or [f"y{i}" for i in range(len(outs))], outs, strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        raise EffcError("target tvm runs in this process only", hint="compile with target='cpu' to save an artifact")


class TvmSession:
    """The buffers of one run after the other."""

    def __init__(self, model: TvmModel) -> None:
        self.model, self.states = model, dict[str, Array]()

    def entry(self, name: str) -> TvmEntry:
        if name not in self.model.built:
            raise EffcError(f"there is no entry point {name!r}", hint="entry points: " + ", ".join(self.model.built))
        return TvmEntry(self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.entry(next(iter(self.model.built)))(*args, **kwargs)


class TvmEntry:
    """One entry point bound to a session's buffers."""

    def __init__(self, session: TvmSession, name: str) -> None:
        self._session, self._name = session, name
        self._graph = session.model.built[name].graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        im = self._session.model._imported[self._name]
        leaves = tree.bind_arguments(im.in_tree, args, kwargs)
        torch = sys.modules.get("torch")
        as_torch = torch is not None and (
            any(isinstance(x, torch.Tensor) for x in leaves) or not any(isinstance(x, np.ndarray) for x in leaves)
        )
        arrays = [to_numpy(x, n.types[0].dtype) for x, n in zip(leaves, self._graph.inputs, strict=True)]
        outs, written = self._run(arrays)
        for i, a in written.items():
            if torch is not None and isinstance(leaves[i], torch.Tensor):
                with torch.no_grad():
                    leaves[i].copy_(from_numpy(a, True))
            else:
                leaves[i][...] = a
        return tree.unflatten(im.out_tree, [from_numpy(a, as_torch) for a in outs])

    def _run(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[int, Array]]:
        """Outputs, and the inputs that the model writes by their index; buffers are updated."""
        g, states = self._graph, self._session.states
        env = bind_symbols(g, arrays)
        for check in g.checks:
            if not holds(check.lhs, check.op, check.rhs, env):
                raise EffcError(check.message or f"{check.lhs} {check.op} {check.rhs} does not hold for {env}")
        for d in self._session.model.built[self._name].nonzero:
            if dims.evaluate(d, env) == 0:
                raise EffcError(f"the size {d} is 0 in this call, and TVM cannot reduce over nothing")
        for s, st in g.states.items():
            if s not in states:
                shape = tuple(int(d) for d in st.type.shape)
                states[s] = np.zeros(shape, st.type.dtype.np) if st.init is None else np.array(st.init)
        given = [*arrays, *(states[s] for s in g.states)]
        handed = [tvm.runtime.tensor(np.ascontiguousarray(a).reshape(a.shape)) for a in given]
        got = [np.asarray(t.numpy()) for t in self._session.model.machine(self._name)(*handed)]
        written: dict[int, Array] = {}
        for c, a in zip(g.commits, got[len(g.outputs) :], strict=True):
            if c.state is not None:
                states[c.state] = a
            elif c.input is not None:
                written[c.input] = a
        return got[: len(g.outputs)], written
