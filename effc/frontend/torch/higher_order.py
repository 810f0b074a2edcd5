"""Higher-order operators: cond, while_loop, scan, associative_scan, map, and the wrappers that only carry context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

from ...ir import dims as D
from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Value
from ...ir.types import TensorType
from ...runtime.errors import EffcError
from .registry import Unsupported

if TYPE_CHECKING:
    from .convert import GraphImporter


def import_hop(imp: GraphImporter, n: fx.Node) -> Any:
    """The values of a higher-order operator's node."""
    target: Any = n.target
    name = target.name()
    rule = _RULES.get(name)
    if rule is None:
        raise Unsupported("no mapping for this higher-order operator")
    return rule(imp, n)


def _flatten(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple)):
        return [y for item in x for y in _flatten(item)]
    return [x]


def subgraph(
    imp: GraphImporter,
    gm: torch.fx.GraphModule,
    args: Sequence[Any],
    kinds: Sequence[TensorType | None] | None = None,
    name: str = "body",
) -> tuple[Graph, list[Value]]:
    """A graph of an FX submodule and the values to pass for its tensor inputs.

    Placeholders that stand for numbers get the outer number. A submodule sees nothing else, so every Value among
    ``args`` becomes an input; ``kinds`` overrides their types.
    """
    from .convert import GraphImporter

    b = Builder(imp.b.symbols)
    inner = GraphImporter(gm, b, imp.problems)
    inner.inputs_known = set()
    inner.known.update(imp.known)
    passed: list[Value] = []
    places = [p for p in gm.graph.nodes if p.op == "placeholder"]
    if len(places) != len(args):
        raise Unsupported(f"a subgraph with {len(places)} inputs for {len(args)} operands")
    numbers: dict[str, Value] = {}
    for k, (p, a) in enumerate(zip(places, args, strict=True)):
        if isinstance(a, Value):
            t = kinds[k] if kinds is not None and kinds[k] is not None else a.type
            assert t is not None
            inner.env[p] = b.input(p.name, t)
            passed.append(a)
        else:
            inner.env[p] = _number(imp, inner, p, a)
    for s, v in imp.cx.numbers.items():  # float numbers computed outside come in as extra inputs
        numbers[s] = b.input(f"number_{s}", v.type)
        passed.append(v)
    inner.cx.numbers.update(numbers)
    out = _flatten(inner.run(gm.graph))
    results = [_result(inner, v) for v in out if v is not None]
    for s, limits in b.symbols.items():
        imp.b.symbols.setdefault(s, limits)
    return b.graph(results, name=name), passed


def _number(imp: GraphImporter, inner: GraphImporter, p: fx.Node, a: Any) -> Any:
    """A number operand. The submodule may know it under a symbol of its own."""
    fake = p.meta.get("val")
    if isinstance(fake, torch.SymInt):
        e = fake.node.expr
        if e.is_Symbol:
            inner.known[str(e)] = imp.cx.dim(a)
    return a


def _result(inner: GraphImporter, v: Any) -> Value:
    if isinstance(v, Value):
        return v
    kind = getattr(v, "kind", type(v))
    dtype = {float: DType.f64, bool: DType.bool}.get(kind, DType.i64)
    return inner.cx.scalar(v, dtype)


def _module(imp: GraphImporter, a: Any) -> torch.fx.GraphModule:
    m = imp.env[a] if isinstance(a, fx.Node) else a
    if not isinstance(m, torch.fx.GraphModule):
        raise Unsupported("a body that is not a graph")
    return m


def _expand(imp: GraphImporter, n: fx.Node, values: Sequence[Value]) -> tuple[Any, ...]:
    """Results as torch gives them: numbers among them become numbers again."""
    fake = n.meta.get("val")
    fakes = list(fake) if isinstance(fake, (list, tuple)) else [fake]
    out: list[Any] = []
    it = iter(values)
    for f in fakes:
        if f is None:
            out.append(None)
            continue
        v = next(it)
        if isinstance(f, torch.SymInt) and f.node.expr.is_Symbol and str(f.node.expr) not in imp.b.symbols:
            s = str(f.node.expr)
            imp.b.symbols[s] = (-(1 << 62), None)
            imp.b.op("item", imp.cx.convert(v, DType.i64), value=D.symbol(s))
            out.append(imp.number(f))
        elif isinstance(f, torch.Tensor):
            out.append(v)
        else:
            out.append(imp.number(f) if not isinstance(f, int) else f)
    return tuple(out)


def _declare_fresh(imp: GraphImporter, n: fx.Node) -> None:
    for s in n.meta.get("unbacked_bindings") or {}:
        imp.b.symbols.setdefault(str(s), (0, None))


def _cond(imp: GraphImporter, n: fx.Node) -> Any:
    pred, true_node, false_node, operands = n.args[:4]
    p = imp.arg(pred)
    args = _flatten(imp.arg(operands))
    if isinstance(p, bool):
        return _inlined(imp, _module(imp, true_node if p else false_node), args)
    cond = imp.cx.reshape(imp.cx.scalar(p, DType.bool), ())
    then, passed = subgraph(imp, _module(imp, true_node), args, name="then")
    orelse, _ = subgraph(imp, _module(imp, false_node), args, name="orelse")
    then, orelse = _same_dims(then, orelse), orelse
    out = imp.b.node("if", (cond, *passed), {"then": then, "orelse": orelse})
    return _expand(imp, n, out.values)


def _same_dims(a: Graph, b: Graph) -> Graph:
    for x, y in zip(a.outputs, b.outputs, strict=True):
        if x.dtype is not y.dtype or x.rank != y.rank:
            raise Unsupported(f"branches give {x.type} and {y.type}")
        if any(isinstance(s, int) and isinstance(t, int) and s != t for s, t in zip(x.shape, y.shape, strict=True)):
            raise Unsupported(f"branches give different sizes, {x.type} and {y.type}")
    return a


def _while(imp: GraphImporter, n: fx.Node) -> Any:
    cond_node, body_node, carried, extra = (list(n.args) + [()])[:4]
    carries = _flatten(imp.arg(carried))
    rest = _flatten(imp.arg(extra))
    start = [imp.cx.scalar(c, DType.i64) if not isinstance(c, Value) else c for c in carries]
    for c in carries:
        if not isinstance(c, Value):
            raise Unsupported("a Python number among the carried values")
    cond, passed = subgraph(imp, _module(imp, cond_node), [*start, *rest], name="cond")
    body, _ = subgraph(imp, _module(imp, body_node), [*start, *rest], name="body")
    out = imp.b.node("while", passed, {"carries": len(start), "cond": cond, "body": body})
    return _expand(imp, n, out.values)


def _scan(imp: GraphImporter, n: fx.Node) -> Any:
    """torch's scan(combine_fn, init, xs, additional): slices along dim 0, stacked along dim 0."""
    body_node, init, xs, extra = (list(n.args) + [()])[:4]
    carries, scanned, rest = (_flatten(imp.arg(a)) for a in (init, xs, extra))
    if not all(isinstance(v, Value) for v in [*carries, *scanned]):
        raise Unsupported("a Python number among carried or scanned values")
    length: Dim = scanned[0].shape[0] if scanned else 0
    kinds: list[TensorType | None] = [v.type for v in carries]
    kinds += [v.type.with_shape(v.shape[1:]) for v in scanned]
    kinds += [v.type if isinstance(v, Value) else None for v in rest]
    body, passed = subgraph(imp, _module(imp, body_node), [*carries, *scanned, *rest], kinds)
    out = imp.b.node("scan", passed, {"carries": len(carries), "scanned": len(scanned), "length": length, "body": body})
    return _expand(imp, n, out.values)


def _map(imp: GraphImporter, n: fx.Node) -> Any:
    body_node, xs, extra = (list(n.args) + [()])[:3]
    scanned, rest = _flatten(imp.arg(xs)), _flatten(imp.arg(extra))
    kinds: list[TensorType | None] = [v.type.with_shape(v.shape[1:]) for v in scanned]
    kinds += [v.type if isinstance(v, Value) else None for v in rest]
    body, passed = subgraph(imp, _module(imp, body_node), [*scanned, *rest], kinds)
    attrs = {"carries": 0, "scanned": len(scanned), "length": scanned[0].shape[0], "body": body}
    return _expand(imp, n, imp.b.node("scan", passed, attrs).values)


def _associative_scan(imp: GraphImporter, n: fx.Node) -> Any:
    """A scan whose carry is the running combination: the first slice starts it."""
    body_node, xs, extra = (list(n.args) + [()])[:3]
    scanned, rest = _flatten(imp.arg(xs)), _flatten(imp.arg(extra))
    cx = imp.cx
    length = scanned[0].shape[0]
    first = [cx.select(x, 0, 0) for x in scanned]
    tail = [cx.slice(x, 0, 1, length) for x in scanned]
    k = len(scanned)
    kinds: list[TensorType | None] = [v.type for v in first] * 2
    kinds += [v.type if isinstance(v, Value) else None for v in rest]
    combine, passed = subgraph(imp, _module(imp, body_node), [*first, *first, *rest], kinds)
    b = Builder(imp.b.symbols)
    ins = [b.input(f"x{i}", v.type) for i, v in enumerate(combine.inputs and [p[0] for p in combine.inputs])]
    both = combine.inline(b, ins)
    body = b.graph([*both, *both])
    attrs = {"carries": k, "scanned": k, "length": length - 1, "body": body}
    out = imp.b.node("scan", [*first, *tail, *passed[2 * k :]], attrs)
    rows = [cx.concat([cx.unsqueeze(f, 0), s], 0) for f, s in zip(first, out.values[k:], strict=True)]
    return _expand(imp, n, rows)


def _inlined(imp: GraphImporter, gm: torch.fx.GraphModule, args: Sequence[Any]) -> Any:
    """Imports a submodule's nodes in place."""
    from .convert import GraphImporter

    inner = GraphImporter(gm, imp.b, imp.problems, imp.cx.numbers)
    inner.known, inner.inputs_known = imp.known, imp.inputs_known
    inner.cx.known, inner.checks = imp.known, imp.checks
    inner.cx.constants = imp.cx.constants
    places = [p for p in gm.graph.nodes if p.op == "placeholder"]
    inner.env.update(zip(places, args, strict=True))
    return inner.run(gm.graph)


def _wrapper(first: int) -> Any:
    """Operators whose body is argument ``first`` and whose operands follow it."""

    def rule(imp: GraphImporter, n: fx.Node) -> Any:
        args = [imp.arg(a) for a in n.args[first + 1 :]]
        return _inlined(imp, _module(imp, n.args[first]), args)

    return rule


def _invoke_subgraph(imp: GraphImporter, n: fx.Node) -> Any:
    return _inlined(imp, _module(imp, n.args[0]), [imp.arg(a) for a in n.args[2:]])


def _with_effects(imp: GraphImporter, n: fx.Node) -> Any:
    """An operator with a side effect behind a token: (token, *results)."""
    from . import registry

    target: Any = n.args[1]
    f = registry.lookup(target)
    if f is None:
        raise Unsupported(f"effect of {target}")
    fakes = n.meta.get("val") or (None,)
    imp.cx.expected = [imp.type_of(x) for x in fakes[1:]]
    imp.cx.fx = n
    out = f(imp.cx, *imp.arg(n.args[2:]), **imp.arg(n.kwargs))
    return (None, *(out if isinstance(out, tuple) else (out,)))


_RULES = {
    "with_effects": _with_effects,
    "cond": _cond,
    "while_loop": _while,
    "scan": _scan,
    "map_impl": _map,
    "associative_scan": _associative_scan,
    "wrap_with_set_grad_enabled": _wrapper(1),
    "wrap_with_autocast": _wrapper(4),
    "wrap": _wrapper(0),
    "tag_activation_checkpoint": _wrapper(0),
    "wrap_activation_checkpoint": _wrapper(0),
    "invoke_subgraph": _invoke_subgraph,
    "strict_mode": _wrapper(0),
}

__all__ = ["EffcError", "import_hop", "subgraph"]
