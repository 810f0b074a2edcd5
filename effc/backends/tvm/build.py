"""A graph as a Relax module."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from ...ir import dims as D
from ...ir.dims import Dim
from ...ir.graph import Graph, Node, Value
from ...runtime.errors import EffcError
from .context import TVM_TYPE, Cx, Refuse
from .emit import load, why_not


@dataclass
class Built:
    """A Relax module with one function ``main``: the graph's inputs, then its buffers (in ``graph.states`` order),
    give a tuple of its outputs, then what its commits write."""

    graph: Graph
    module: Any
    report: dict[str, Any]
    nonzero: tuple[Dim, ...] = ()  # sizes that a reduction runs over: none may turn out to be 0


def build(graph: Graph) -> Built:
    """Writes ``graph``, which has been through the passes of this target. EffcError lists every node that has no form
    in TVM, and names a symbol that no input's shape gives alone."""
    cx = Cx()
    _declare_symbols(cx, graph)
    _refuse([(n, r) for n in graph.nodes if (r := _reason(cx, n)) is not None], graph)
    params = [_variable(cx, f"x{i}_{n.name}", n.types[0]) for i, n in enumerate(graph.inputs)]
    values: dict[Value, Any] = {n[0]: p for n, p in zip(graph.inputs, params, strict=True)}
    states = {s: _variable(cx, f"state_{s}", st.type) for s, st in graph.states.items()}
    params += states.values()
    bb = relax.BlockBuilder()
    with bb.function("main", params):
        with bb.dataflow():
            for n in graph.nodes:
                if n.op == "input":
                    continue
                if n.op == "constant":
                    values[n[0]] = _constant(n.attrs["data"], n)
                elif n.op == "state":
                    values[n[0]] = states[n.attrs["name"]]
                elif 0 in n.types[0].shape:
                    values[n[0]] = _constant(np.zeros(n.types[0].shape, n.types[0].dtype.np), n)
                else:
                    values[n[0]] = _emit(bb, cx, n, [values[v] for v in n.operands])
            results = [*graph.outputs, *(c.value for c in graph.commits)]
            out = bb.emit_output(relax.Tuple([values[v] for v in results]))
        bb.emit_func_output(out)
    counts = Counter(n.op for n in graph.nodes if n.op not in ("input", "constant", "state"))
    return Built(graph, bb.finalize(), {"ops": dict(sorted(counts.items()))}, _reduced_over(graph))


def _reduced_over(graph: Graph) -> tuple[Dim, ...]:
    """Sizes that are not constant of which TVM's loops would leave the result unset if they were 0."""
    found: dict[Dim, None] = {}
    for n in graph.nodes:
        if n.op == "reduce":
            sizes = [n.operands[0].shape[d] for d in n.attrs["dims"]]
        else:
            sizes = [n.operands[0].shape[{"matmul": -1}.get(n.op, 1)]] if n.op in ("matmul", "conv") else []
        found.update(dict.fromkeys(d for d in sizes if not isinstance(d, int)))
    return tuple(found)


def _emit(bb: Any, cx: Cx, n: Node, operands: list[Any]) -> Any:
    """The call of one primitive function. It is handed every symbol, since Relax passes on those of the result's shape
    alone."""
    run, names = load()[n.op].run, sorted(cx.symbols)

    def function(*xs: Any) -> Any:
        inner = Cx()
        inner.symbols = dict(zip(names, xs[len(operands) :], strict=True))
        return run(inner, n, *xs[: len(operands)])

    return bb.emit_te(function, *operands, *(cx.symbols[s] for s in names), primfunc_name_hint=n.op)


def _constant(data: Any, n: Node) -> Any:
    dense = np.ascontiguousarray(data).reshape(data.shape)
    return relax.const(tvm.runtime.tensor(dense), TVM_TYPE[n.types[0].dtype])


def _variable(cx: Cx, name: str, t: Any) -> Any:
    return relax.Var(re.sub(r"\W", "_", name), relax.TensorType(cx.dims(t.shape), TVM_TYPE[t.dtype]))


def _declare_symbols(cx: Cx, graph: Graph) -> None:
    """A variable for each symbol that is some input's size; Relax reads them from the shapes when it is called."""
    wanted: dict[str, str] = {}
    for n in graph.inputs:
        for d in n.types[0].shape:
            if isinstance(d, int):
                continue
            if str(d).isidentifier():
                cx.symbols[str(d)] = tirx.Var(str(d), "int64")
            wanted.update(dict.fromkeys(D.symbols(d), f"{n.name}: {n.types[0]}"))
    missing = sorted(set(wanted) - cx.symbols.keys())
    if missing:
        raise EffcError(
            f"the size {missing[0]} stands in no shape alone ({wanted[missing[0]]}): TVM cannot solve for it",
            hint="make the size itself dynamic, or compile for sizes that are constant",
        )
    for n in graph.inputs:
        if n.types[0].dtype not in TVM_TYPE:
            raise EffcError(f"input {n.name} of type {n.types[0]} has no form in TVM")
    for s, state in graph.states.items():
        if state.type.dtype not in TVM_TYPE:
            raise EffcError(f"buffer {s} of type {state.type} has no form in TVM")


def _reason(cx: Cx, n: Node) -> str | None:
    if n.op == "input":
        return None
    reason = why_not(n)
    if reason is None:
        try:
            for t in n.types:
                cx.dims(t.shape)
        except Refuse as e:
            return str(e)
    return reason


def _refuse(refused: list[tuple[Node, str]], graph: Graph) -> None:
    if not refused:
        return
    rows: dict[tuple[str, str], list[Node]] = {}
    for n, reason in refused:
        rows.setdefault((n.op, reason), []).append(n)
    lines = [
        f"{op} ({reason}), {len(ns)}x, first at {ns[0].loc or 'an unknown line'}: "
        + ", ".join(str(v.type) for v in ns[0].operands)
        for (op, reason), ns in rows.items()
    ]
    first = refused[0][0]
    raise EffcError(
        f"{len(refused)} of {len(graph.nodes)} operations cannot be written for TVM:\n    " + "\n    ".join(lines),
        op=first.op, loc=first.loc, shapes=[str(v.type) for v in first.operands],
        hint="replace the operation in the model, or compile with target='cpu'",
    )  # fmt: skip


__all__ = ["Built", "build", "why_not"]
