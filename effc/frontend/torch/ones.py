"""Conditions that torch's tracing puts on a dynamic size only to keep it from being 1, and whether they mean
anything.

Tracing asks many questions of the kind "is this size 1?": some are branches of the model, most come from torch's own
bookkeeping of strides and broadcasting. The exported program cannot tell which, and answers them all by refusing size
1. Here the model is traced once more with that size fixed at 1. If the graph is the one that the symbolic graph
becomes at that size, the question did not matter and the condition is dropped; if it is another graph, or cannot be
had, the condition stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from ...ir import dims as D
from ...ir.dims import SymExpr
from ...ir.graph import Builder, Check, Graph, Value
from ...ir.types import TensorType
from ...runtime.errors import EffcError

Trace = Callable[[Any, Any], Graph]  # args, kwargs -> the static graph


def only_excludes_one(check: Check, symbols: Mapping[str, Any]) -> str | None:
    """The symbol that a check keeps from being 1 (or 0) and does nothing else to; None for any other check."""
    from ...ir.interp import holds

    found = D.symbols(check.lhs) | D.symbols(check.rhs)
    if len(found) != 1:
        return None
    name = next(iter(found))
    lo, hi = symbols.get(name, (0, None))
    if lo > 1:
        return None
    top = min(hi if hi is not None else 1 << 40, 1 << 40)
    probes = {2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 64, 127, 1000, 4097, top - 1, top}
    try:
        at_one = holds(check.lhs, check.op, check.rhs, {name: 1})
        others = [holds(check.lhs, check.op, check.rhs, {name: n}) for n in probes if 2 <= n <= top]
    except (ArithmeticError, EffcError):
        return None
    return name if not at_one and others and all(others) else None


def relax(graph: Graph, args: Any, kwargs: Any, trace: Trace) -> Graph:
    """``graph`` without the checks that a trace at size 1 shows to be needless."""
    narrow = {c: s for c in graph.checks if (s := only_excludes_one(c, graph.symbols)) is not None}
    names = sorted(set(narrow.values()))
    if not names or len(names) > 3:
        return graph
    flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
    tensors = [x for x in flat if isinstance(x, (torch.Tensor, np.ndarray))]
    if len(tensors) != len(graph.inputs):
        return graph
    fine = {n for n in names if _same_at(graph, flat, spec, {n}, trace)}
    if len(fine) > 1 and not _same_at(graph, flat, spec, fine, trace):
        fine = set()
    kept = tuple(c for c in graph.checks if narrow.get(c) not in fine)
    return replace(graph, checks=kept)


def _same_at(graph: Graph, flat: list[Any], spec: Any, ones: set[str], trace: Trace) -> bool:
    """Whether tracing with these symbols at 1 gives the graph that substitution gives."""
    env: dict[str, int] = {}
    cut: list[Any] = []
    inputs = iter(graph.inputs)
    for x in flat:
        if not isinstance(x, (torch.Tensor, np.ndarray)):
            cut.append(x)
            continue
        for i, d in enumerate(next(inputs).types[0].shape):
            if isinstance(d, int):
                continue
            name = str(d)
            if not name.isidentifier():
                if D.symbols(d) & ones:
                    return False
                continue
            size = 1 if name in ones else int(x.shape[i])
            if env.setdefault(name, size) != size:
                return False
            if name in ones:
                x = x[(slice(None),) * i + (slice(0, 1),)]
        cut.append(x)
    if not ones <= env.keys():
        return False
    small_args, small_kwargs = pytree.tree_unflatten(cut, spec)
    try:
        fixed = specialise(graph, env)
        traced = trace(small_args, small_kwargs)
    except EffcError:
        return False
    return _form(fixed) == _form(traced)


def specialise(graph: Graph, env: Mapping[str, int]) -> Graph:
    """The graph with symbols replaced by sizes, all types inferred again."""
    b = Builder({k: v for k, v in graph.symbols.items() if k not in env})
    values: dict[Value, Value] = {}
    for n in graph.inputs:
        values[n[0]] = b.input(n.name, _attr(n.types[0], env))
    for n in graph.nodes:
        ins = tuple(None if v is None else values[v] for v in n.inputs)
        made = b.node(n.op, ins, {k: _attr(v, env) for k, v in n.attrs.items()}, n.loc, n.name)
        values.update(zip(n.values, made.values, strict=True))
    return replace(
        graph,
        inputs=tuple(b.inputs),
        nodes=tuple(b.nodes),
        symbols=dict(b.symbols),
        outputs=tuple(values[v] for v in graph.outputs),
        commits=tuple(replace(c, value=values[c.value]) for c in graph.commits),
        checks=(),
    )


def _attr(v: Any, env: Mapping[str, int]) -> Any:
    if isinstance(v, SymExpr):
        return D.substitute(v, env)
    if isinstance(v, tuple):
        return tuple(_attr(x, env) for x in v)
    if isinstance(v, TensorType):
        return TensorType(v.dtype, tuple(D.substitute(d, env) for d in v.shape), v.encoding)
    if isinstance(v, Graph):
        return specialise(v, env)
    return v


def _form(graph: Graph) -> list[Any]:
    """What graphs that mean the same have in common once cleaned: ops, operands by position, attributes, constants."""
    from ...passes.canonical import Canonicalise
    from ...passes.cleanup import Cse, Dce, Fold

    graph = replace(graph, checks=())
    for p in (Canonicalise(), Fold(1 << 16), Canonicalise(), Cse(), Dce()):
        graph = p.run(graph)
    number: dict[Value, int] = {}
    out: list[Any] = []
    for n in (*graph.inputs, *graph.nodes):
        for v in n.values:
            number[v] = len(number)
        out.append(
            (n.op, [None if v is None else number[v] for v in n.inputs], _plain(n.attrs), [str(t) for t in n.types])
        )
    out.append(([number[v] for v in graph.outputs], [(c.state, c.input, number[c.value]) for c in graph.commits]))
    return out


def _plain(attrs: Mapping[str, Any]) -> list[Any]:
    out: list[Any] = []
    for k, v in sorted(attrs.items()):
        if isinstance(v, Graph):
            out.append((k, _form(v)))
        elif isinstance(v, np.ndarray):
            # Both traces are of one module: a weight is the same if a sample of it is.
            some = v if v.nbytes <= 1 << 16 else v.reshape(-1)[:: max(1, v.size // 4096)]
            out.append((k, str(v.dtype), v.shape, some.tobytes()))
        else:
            out.append((k, str(v)))
    return out


__all__ = ["only_excludes_one", "relax", "specialise"]
