"""The calling convention of a compiled model, for backends that hand a graph to another engine: arguments by the
signature, buffers of a session, inputs that are written back.

A backend gives ``run(entry, arrays) -> arrays``: from the graph's inputs and its buffers (in ``graph.states`` order) to
its outputs and what its commits write.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.interp import bind_symbols, holds
from ..runtime import tree
from ..runtime.errors import EffcError
from .reference import from_numpy, to_numpy

Array = np.ndarray[Any, Any]
Run = Callable[[str, Sequence[Array]], Sequence[Array]]


class Sessions:
    """Entry points: their graphs, their signatures (trees and names; None where there are none), and ``names``, of an
    entry point's inputs and outputs, where those are not the graph's and the signature's."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        signatures: Mapping[str, Any] | None,
        run: Run,
        names: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    ) -> None:
        self.graphs, self.signatures, self.engine = dict(graphs), signatures, run
        self.default = Session(self)
        self._names = dict(names or {})

    def names(self, entry: str) -> tuple[Sequence[str], Sequence[str]]:
        """What an entry point calls its inputs and outputs; outputs without names are ``y0``, ``y1`` ..."""
        if entry in self._names:
            return self._names[entry]
        graph = self.graphs[entry]
        outputs = self.signatures[entry].output_names if self.signatures else None
        return [n.name for n in graph.inputs], outputs or [f"y{i}" for i in range(len(graph.outputs))]


class Session:
    """The buffers of one run after the other, shared by the entry points."""

    def __init__(self, of: Sessions) -> None:
        self.of, self.states = of, dict[str, Array]()

    def entry(self, name: str) -> BoundEntry:
        """One entry point on these buffers; EffcError for a name that there is not."""
        if name not in self.of.graphs:
            raise EffcError(f"there is no entry point {name!r}", hint="entry points: " + ", ".join(self.of.graphs))
        return BoundEntry(self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.entry(next(iter(self.of.graphs)))(*args, **kwargs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs of the first entry point by name, from inputs by name."""
        name, graph = next(iter(self.of.graphs.items()))
        inputs, outputs = self.of.names(name)
        missing = [n for n in inputs if n not in feeds]
        if missing:
            raise EffcError(f"missing input(s) {', '.join(missing)}", hint="inputs: " + ", ".join(inputs))
        given = [to_numpy(feeds[n], v.types[0].dtype) for n, v in zip(inputs, graph.inputs, strict=True)]
        outs, _ = self.entry(name).run(given)
        return dict(zip(outputs, outs, strict=True))


class BoundEntry:
    """One entry point bound to a session's buffers."""

    def __init__(self, session: Session, name: str) -> None:
        self._session, self._name = session, name
        self._graph = session.of.graphs[name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        assert self._session.of.signatures is not None
        im = self._session.of.signatures[self._name]
        leaves = tree.bind_arguments(im.in_tree, args, kwargs)
        torch = sys.modules.get("torch")
        as_torch = torch is not None and (
            any(isinstance(x, torch.Tensor) for x in leaves) or not any(isinstance(x, np.ndarray) for x in leaves)
        )
        outs, written = self.run(
            [to_numpy(x, n.types[0].dtype) for x, n in zip(leaves, self._graph.inputs, strict=True)]
        )
        for i, a in written.items():
            if torch is not None and isinstance(leaves[i], torch.Tensor):
                with torch.no_grad():
                    leaves[i].copy_(from_numpy(a, True))
            else:
                leaves[i][...] = a
        return tree.unflatten(im.out_tree, [from_numpy(a, as_torch) for a in outs])

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[int, Array]]:
        """Outputs, and the inputs that the model writes by their index; buffers are updated. EffcError for sizes that
        the model does not take."""
        g, states = self._graph, self._session.states
        env = bind_symbols(g, arrays)
        for c in g.checks:
            with contextlib.suppress(KeyError):  # a size that the run itself finds out
                if not holds(c.lhs, c.op, c.rhs, env):
                    raise EffcError(c.message or f"{c.lhs} {c.op} {c.rhs} does not hold for {env}")
        for s, st in g.states.items():
            if s not in states:
                shape = tuple(int(d) for d in st.type.shape)  # type: ignore[arg-type]
                states[s] = np.zeros(shape, st.type.dtype.np) if st.init is None else np.array(st.init)
        got = list(self._session.of.engine(self._name, [*arrays, *(states[s] for s in g.states)]))
        written: dict[int, Array] = {}
        for c, a in zip(g.commits, got[len(g.outputs) :], strict=True):
            if c.state is not None:
                states[c.state] = a
            elif c.input is not None:
                written[c.input] = a
        return got[: len(g.outputs)], written


__all__ = ["BoundEntry", "Session", "Sessions"]
