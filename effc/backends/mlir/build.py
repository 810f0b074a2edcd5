"""Graphs as a module of the torch dialect."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import func
from torch_mlir.dialects import torch as torch_dialect

from ...ir import dims as D
from ...ir.dims import SymExpr
from ...ir.graph import Graph, Node
from ...ir.interp import solve_linear
from ...ir.torch_types import ELEMENT_NAME
from ...ir.types import TensorType
from ...runtime.errors import EffcError
from .context import Cx, Ref, Refuse, Shared
from .emit import emit

RELATIONS = {"==": "eq", "!=": "ne", "<=": "le", ">=": "ge", "<": "lt", ">": "gt"}


@dataclass
class Built:
    """A module with one function for each entry point: the graph's inputs, then its buffers (in ``graph.states``
    order), give its outputs, then what its commits write."""

    module: Any  # ir.Module
    graphs: dict[str, Graph]
    report: dict[str, Any]
    data: dict[str, Any]  # the text of a literal's attribute -> its content


def new_context() -> Any:
    """An MLIR context that knows the torch dialect."""
    context = ir.Context()
    torch_dialect.register_dialect(context)
    return context


def build(graphs: Mapping[str, Graph]) -> Built:
    """Writes graphs, which have been through the passes of this target. EffcError lists every node that has no form in
    the torch dialect."""
    shared = Shared()
    with new_context() as context, ir.Location.unknown(context):
        module = ir.Module.create()
        for name, graph in graphs.items():
            with ir.InsertionPoint(module.body):
                _function(shared, name, graph)
        total = sum(len(list(g.walk())) for g in graphs.values())
        _refuse(shared, total)
        try:
            module.operation.verify()
        except Exception as e:
            raise EffcError(f"internal: torch-mlir does not verify the module: {str(e)[:2000]}") from e
        counts: Counter[str] = Counter()
        _count(module.operation, counts)
    report = {
        "ops": dict(sorted(counts.items())),
        "opaque": dict(sorted(shared.opaque.items())),
        "notes": list(dict.fromkeys(shared.notes)),
        "bytes": sum(data.nbytes for data, _ in shared.literals.values()),
        "functions": {n: _signature(g) for n, g in graphs.items()},
    }
    return Built(module, dict(graphs), report, shared.data)


def _signature(g: Graph) -> dict[str, list[str]]:
    given = [n.name for n in g.inputs] + [f"state.{s}" for s in g.states]
    made = [f"y{i}" for i in range(len(g.outputs))]
    made += [
        f"state.{c.state}.next" if c.state is not None else f"{g.inputs[c.input or 0].name}.next" for c in g.commits
    ]
    return {"arguments": given, "results": made}


def _count(op: Any, counts: Counter[str]) -> None:
    for region in op.regions:
        for block in region.blocks:
            for o in block.operations:
                name = o.operation.name
                if name == "torch.operator":
                    name = str(o.operation.attributes["name"]).strip('"')
                if not name.startswith(("torch.constant.", "torch.prim.ListConstruct", "func.")):
                    counts[name.removeprefix("torch.")] += 1
                _count(o.operation, counts)


def _function(shared: Shared, name: str, graph: Graph) -> None:
    cx = Cx(shared)
    given = [n.types[0] for n in graph.inputs] + [s.type for s in graph.states.values()]
    labels = [f"input {n.name}" for n in graph.inputs] + [f"buffer {s}" for s in graph.states]
    wanted = [v.type for v in graph.outputs] + [c.value.type for c in graph.commits]
    for label, t in zip([*labels, *("a result" for _ in wanted)], [*given, *wanted], strict=True):
        if t.dtype not in ELEMENT_NAME:
            raise EffcError(f"{label} of type {t} has no form in the torch dialect")
    f = func.FuncOp(name, ir.FunctionType.get([cx.tensor(t) for t in given], [cx.tensor(t) for t in wanted]))
    block = f.add_entry_block()
    with ir.InsertionPoint(block):
        refs = [Ref(v, t) for v, t in zip(block.arguments, given, strict=True)]
        cx.values.update((n[0], r) for n, r in zip(graph.inputs, refs, strict=False))
        cx.states = dict(zip(graph.states, refs[len(graph.inputs) :], strict=True))
        cx.symbolic = _declare(cx, graph)
        for r in refs[: len(graph.inputs)]:
            if not cx.name_sizes(r):
                cx.shared.notes.append(f"the module does not say how the sizes of {r.type} hang together")
        _bind_symbols(cx, graph, refs)
        _checks(cx, graph)
        cx.walk(graph.nodes)
        cx.loc = ir.Location.unknown()
        results = [cx.values[v] for v in graph.outputs] + [cx.values[c.value] for c in graph.commits]
        outs = [_fit(cx, r, t) for r, t in zip(results, wanted, strict=True)]
        func.ReturnOp([r.value for r in outs])


def _fit(cx: Cx, r: Ref, t: TensorType) -> Ref:
    from .emit.control import cast

    return cast(cx, r, t)


def _declare(cx: Cx, graph: Graph) -> dict[str, Any]:
    """``torch.symbolic_int`` for each symbol of the inputs' shapes, with its bounds."""
    found: dict[str, None] = {}
    for n in graph.inputs:
        for d in n.types[0].shape:
            found.update(dict.fromkeys(sorted(D.symbols(d))))
    out = {}
    i64 = ir.IntegerType.get_signless(64)
    for s in found:
        lo, hi = graph.symbols.get(s, (0, None))
        bounds = {
            "min_val": ir.IntegerAttr.get(i64, lo),
            "max_val": ir.IntegerAttr.get(i64, (1 << 63) - 1 if hi is None else hi),
        }
        out[s] = cx.op("symbolic_int", [], [cx.kind("int")], symbol_name=ir.StringAttr.get(s), **bounds).results[0]
    return out


def _bind_symbols(cx: Cx, graph: Graph, refs: Sequence[Ref]) -> None:
    """Symbols from the inputs' shapes: those that stand alone first, then those inside linear expressions."""
    later = []
    for r in refs[: len(graph.inputs)]:
        for i, d in enumerate(r.shape):
            if isinstance(d, SymExpr):
                if str(d).isidentifier():
                    if d not in cx.sizes:
                        cx.bind(d, cx.size_of(r, i))
                else:
                    later.append((r, i, d))
    for r, i, d in later:
        free = [s for s in sorted(D.symbols(d)) if D.symbol(s) not in cx.sizes]
        if len(free) != 1:
            continue
        s = free[0]
        env = dict.fromkeys(D.symbols(d), 0)
        probe = dict(env)
        solve_linear(d, s, D.evaluate(d, {**env, s: 1}), probe)
        slope = D.evaluate(d, {**env, s: 1}) - D.evaluate(d, env)
        rest = D.substitute(d, {s: 0})
        if slope == 0 or rest + slope * D.symbol(s) != d:
            continue
        moved = cx.int_op("aten.sub.int", cx.size_of(r, i), cx.size(rest))
        cx.bind(D.symbol(s), moved if slope == 1 else cx.int_op("aten.floordiv.int", moved, cx.number(slope)))


def _checks(cx: Cx, graph: Graph) -> None:
    """Relations that a call's sizes must fulfil, as ``torch.runtime.assert``."""
    for c in graph.checks:
        known = {s for d in cx.sizes for s in D.symbols(d)}
        if not (D.symbols(c.lhs) | D.symbols(c.rhs)) <= known:  # about a size that the run itself finds out
            cx.shared.notes.append(f"the module does not check {c.lhs} {c.op} {c.rhs}")
            continue
        holds = cx.int_op(f"aten.{RELATIONS[c.op]}.int", cx.size(c.lhs), cx.size(c.rhs), kind="bool")
        message = c.message or f"{c.lhs} {c.op} {c.rhs} does not hold"
        cx.op("runtime.assert", [holds], [], message=ir.StringAttr.get(message))


@functools.cache
def _asking() -> Any:
    """A context for modules that are thrown away; making one takes longer than asking."""
    return new_context()


def why_not(node: Node) -> str | None:
    """Why the torch dialect cannot say what the node computes, or None if it can. Asked of the emitter itself, in a
    module that is thrown away: sizes are taken as known."""
    if node.op == "input":
        return None
    shared = Shared()
    with _asking() as context, ir.Location.unknown(context):
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            cx = Cx(shared)
            try:
                for s in _symbols(node):
                    d = D.symbol(s)
                    cx.bind(d, cx.op("operator", [], [cx.kind("int")], name=ir.StringAttr.get("none")).results[0])
                refs = [None if v is None else cx.stand_in(v.type) for v in node.inputs]
                if node.op == "state":
                    cx.states[node.attrs["name"]] = cx.stand_in(node.types[0])
                emit(cx, node, refs)
            except Refuse as e:
                return str(e)
    return f"{shared.refused[0][0].op}: {shared.refused[0][1]}" if shared.refused else None


def _symbols(node: Node) -> set[str]:
    """Every symbol in the types and attributes of a node and its bodies."""
    found: set[str] = set()

    def look(x: Any) -> None:
        if isinstance(x, SymExpr):
            found.update(D.symbols(x))
        elif isinstance(x, (tuple, list)):
            for y in x:
                look(y)
        elif isinstance(x, Graph):
            for n in x.nodes:
                visit(n)

    def visit(n: Node) -> None:
        look([t.shape for t in n.types])
        look([v.shape for v in n.operands])
        look(list(n.attrs.values()))

    visit(node)
    return found


def _refuse(shared: Shared, total: int) -> None:
    if not shared.refused:
        return
    rows: dict[tuple[str, str], list[Node]] = {}
    for n, reason in shared.refused:
        rows.setdefault((n.op, reason), []).append(n)
    lines = [
        f"{op} ({reason}), {len(ns)}x, first at {ns[0].loc or 'an unknown line'}: "
        + ", ".join(str(v.type) for v in ns[0].operands)
        for (op, reason), ns in rows.items()
    ]
    first = shared.refused[0][0]
    raise EffcError(
        f"{len(shared.refused)} of {total} operations cannot be written in the torch dialect:\n    "
        + "\n    ".join(lines),
        op=first.op, loc=first.loc, shapes=[str(v.type) for v in first.operands],
        hint="replace the operation in the model, or compile with target='cpu'",
    )  # fmt: skip


__all__ = ["Built", "build", "new_context", "why_not"]
