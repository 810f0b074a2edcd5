"""Control flow and the session's buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ..context import Cx, Pair, Ref, Refuse
from . import emits


def names(values: Sequence[Ref]) -> list[str]:
    """The ONNX tensors behind values: two for a complex one."""
    out: list[str] = []
    for v in values:
        out += [v.re, v.im] if isinstance(v, Pair) else [v]
    return out


def packed(values: Sequence[Value], flat: Sequence[str]) -> list[Ref]:
    """The inverse of :func:`names` for values of known types."""
    it = iter(flat)
    return [Pair(next(it), next(it)) if v.dtype.is_complex else next(it) for v in values]


def inline(cx: Cx, graph: Graph, args: Sequence[Ref]) -> list[Ref]:
    """A body's results, written into the scope ``cx`` with its inputs bound to ``args``."""
    for n, a in zip(graph.inputs, args, strict=True):
        cx.values[n[0]] = a
    cx.walk(graph.nodes)
    return [cx.values[v] for v in graph.outputs]


def fresh(cx: Cx, inner: Cx, values: Sequence[Value]) -> list[Ref]:
    """New names for a body's inputs."""

    def one(dtype: DType) -> str:
        name = inner.name("arg")
        cx.shared.dtypes[name] = dtype
        return name

    return [Pair(one(v.dtype.real), one(v.dtype.real)) if v.dtype.is_complex else one(v.dtype) for v in values]


def _infos(cx: Cx, refs: Sequence[Ref]) -> list[tuple[str, DType, int | None]]:
    return [(n, cx.dtype(n), None) for n in names(refs)]


def _types(cx: Cx, node: Node) -> list[DType]:
    out: list[DType] = []
    for t in node.types:
        out += [t.dtype.real] * 2 if t.dtype.is_complex else [t.dtype]
    return out


@emits("if", complex=True)
def if_(cx: Cx, node: Node, cond: str, *xs: Ref) -> Any:
    branches = {}
    for key, attr in (("then_branch", "then"), ("else_branch", "orelse")):
        inner = cx.sub()
        branches[key] = cx.body(inner, (), names(inline(inner, node.attrs[attr], xs)), attr)
    return tuple(packed(node.values, cx.raw("If", [cond], _types(cx, node), pure=False, **branches)))


@emits("while", complex=True)
def while_(cx: Cx, node: Node, *xs: Ref) -> Any:
    k = node.attrs["carries"]
    rest = list(xs[k:])
    first = cx.sub()  # ONNX asks before the first round with a value, the IR with a graph
    go = str(inline(first, node.attrs["cond"], xs)[0])
    cx.nodes += first.nodes
    inner = cx.sub()
    i, alive = inner.name("i"), inner.name("go")
    cx.shared.dtypes[i], cx.shared.dtypes[alive] = DType.i64, DType.bool
    args = fresh(cx, inner, node.operands[:k])
    new = inline(inner, node.attrs["body"], [*args, *rest])
    again = inline(inner, node.attrs["cond"], [*new, *rest])
    ins = [(i, DType.i64, 0), (alive, DType.bool, 0), *_infos(cx, args)]
    body = cx.body(inner, ins, [str(again[0]), *names(new)], "body")
    outs = cx.raw("Loop", [None, go, *names(xs[:k])], _types(cx, node), pure=False, body=body)
    return tuple(packed(node.values, outs))


@emits("scan", complex=True)
def scan(cx: Cx, node: Node, *xs: Ref) -> Any:
    a = node.attrs
    k, m = a["carries"], a["scanned"]
    graph: Graph = a["body"]
    inner = cx.sub()
    i, alive = inner.name("i"), inner.name("go")
    cx.shared.dtypes[i], cx.shared.dtypes[alive] = DType.i64, DType.bool
    args = fresh(cx, inner, node.operands[:k])
    # A Loop that gathers its slices: onnxruntime's Scan wants at least one round and fixed shapes.
    at = i
    if a["reverse"]:
        at = inner.op("Sub", inner.op("Sub", cx.scalar(a["length"]), inner.const(np.asarray(1, np.int64))), i)
    slices: list[Ref] = []
    for x in xs[k : k + m]:
        got = [inner.op("Gather", n, at, axis=0) for n in names([x])]
        slices.append(Pair(*got) if isinstance(x, Pair) else got[0])
    outs = inline(inner, graph, [*args, *slices, *xs[k + m :]])
    ins = [(i, DType.i64, 0), (alive, DType.bool, 0), *_infos(cx, args)]
    body = cx.body(inner, ins, [alive, *names(outs)], "body")
    flat = cx.raw("Loop", [cx.scalar(a["length"]), None, *names(xs[:k])], _types(cx, node), pure=False, body=body)
    results = packed(node.values, flat)
    fixed: list[Ref] = list(results[:k])
    for v, r in zip(node.values[k:], results[k:], strict=True):
        if a["reverse"]:
            r = Pair(cx.reverse(r.re, 0), cx.reverse(r.im, 0)) if isinstance(r, Pair) else cx.reverse(r, 0)
        if cx.low(a["length"]) <= 0:  # no round, no shape
            r = (
                Pair(cx.reshape(r.re, None, v.shape), cx.reshape(r.im, None, v.shape))
                if isinstance(r, Pair)
                else cx.reshape(r, None, v.shape)
            )
        fixed.append(r)
    return tuple(fixed)


@emits("fused", complex=True)
def fused(cx: Cx, node: Node, *xs: Ref) -> Any:
    return tuple(inline(cx, node.attrs["body"], xs))


@emits("state", complex=True)
def state(cx: Cx, node: Node) -> Ref:
    name = node.attrs["name"]
    if name not in cx.shared.states:
        raise Refuse(f"the buffer {name} is not declared by the graph")
    return cx.shared.states[name]


@emits("assert")
def assert_(cx: Cx, node: Node, condition: str) -> tuple[()]:
    cx.shared.notes[f"assertion left out, ONNX has none: {node.attrs['message']}"] += 1
    return ()
