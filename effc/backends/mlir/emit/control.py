"""Control flow and checks: torch.prim.If and torch.prim.Loop, whose regions see what is around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch_mlir import ir

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.graph import Graph, Node
from ....ir.types import TensorType
from ..context import Cx, Ref
from . import emits


def inline(cx: Cx, graph: Graph, operands: Sequence[Ref]) -> list[Ref]:
    """A subgraph's outputs in the scope's block."""
    for n, x in zip(graph.inputs, operands, strict=True):
        cx.values[n[0]] = x
    cx.walk(graph.nodes)
    return [cx.values[v] for v in graph.outputs]


def cast(cx: Cx, x: Ref, t: TensorType) -> Ref:
    """x under a type that says less, or more, of its sizes."""
    if cx.tensor(x.type) == cx.tensor(t):
        return Ref(x.value, t)
    return Ref(cx.op("tensor_static_info_cast", [x.value], [cx.tensor(t)]).results[0], t)


def truth(cx: Cx, x: Ref) -> Any:
    """A bool tensor of one element as ``!torch.bool``."""
    return cx.op("aten.Bool.Tensor", [x.value], [cx.kind("bool")]).results[0]


@emits("if")
def if_(cx: Cx, node: Node, cond: Ref, *xs: Ref) -> Any:
    kinds = [cx.tensor(t) for t in node.types]
    made = ir.Operation.create(
        "torch.prim.If", results=kinds, operands=[truth(cx, cond)], regions=2, loc=cx.loc
    )  # fmt: skip
    for region, graph in zip(made.regions, (node.attrs["then"], node.attrs["orelse"]), strict=True):
        block = region.blocks.append()
        inner = cx.sub()
        with ir.InsertionPoint(block):
            outs = [cast(inner, x, t) for x, t in zip(inline(inner, graph, xs), node.types, strict=True)]
            inner.op("prim.If.yield", [x.value for x in outs], [])
    return tuple(Ref(v, t) for v, t in zip(made.results, node.types, strict=True))


Step = Callable[[Cx, Any, list[Ref]], tuple[Any, list[Ref]]]  # scope, i, carries -> whether to go on, next carries


def loop(cx: Cx, trips: Any, go: Any, carries: Sequence[Ref], types: Sequence[TensorType], step: Step) -> list[Ref]:
    """A loop; its carries have ``types``, of which sizes may change from one step to the next."""
    carries = [cast(cx, x, t) for x, t in zip(carries, types, strict=True)]
    kinds = [cx.tensor(t) for t in types]
    made = ir.Operation.create(
        "torch.prim.Loop", results=kinds, operands=[trips, go, *(x.value for x in carries)], regions=1, loc=cx.loc
    )
    block = made.regions[0].blocks.append(cx.kind("int"), *kinds, arg_locs=[cx.loc] * (1 + len(kinds)))
    inner = cx.sub()
    with ir.InsertionPoint(block):
        i, *args = block.arguments
        again, new = step(inner, i, [Ref(v, t) for v, t in zip(args, types, strict=True)])
        outs = [cast(inner, x, t) for x, t in zip(new, types, strict=True)]
        inner.op("prim.Loop.condition", [again, *(x.value for x in outs)], [])
    return [Ref(v, t) for v, t in zip(made.results, types, strict=True)]


def carried(node: Node, count: int, body: Graph) -> list[TensorType]:
    """The carries' types: a size that the body changes is open."""
    out = []
    for x, y, t in zip(node.operands[:count], body.outputs[:count], node.types[:count], strict=True):
        shape: list[Dim] = [
            b if a == b == c else D.symbol("open") for a, b, c in zip(x.shape, y.shape, t.shape, strict=True)
        ]
        out.append(t.with_shape(tuple(shape)))
    return out


@emits("while")
def while_(cx: Cx, node: Node, *xs: Ref) -> Any:
    k, cond, body = node.attrs["carries"], node.attrs["cond"], node.attrs["body"]
    rest = list(xs[k:])
    first = truth(cx, inline(cx.sub(), cond, xs)[0])
    forever = cx.number((1 << 63) - 1)

    def step(inner: Cx, i: Any, carries: list[Ref]) -> tuple[Any, list[Ref]]:
        new = inline(inner, body, [*carries, *rest])
        return truth(inner, inline(inner.sub(), cond, [*new, *rest])[0]), new

    made = loop(cx, forever, first, xs[:k], carried(node, k, body), step)
    return tuple(Ref(x.value, x.type) for x in (cast(cx, x, t) for x, t in zip(made, node.types, strict=True)))


@emits("scan")
def scan(cx: Cx, node: Node, *xs: Ref) -> Any:
    """The stacked results are carries too, written row by row."""
    a = node.attrs
    k, m, body, n = a["carries"], a["scanned"], a["body"], a["length"]
    types = [*carried(node, k, body), *node.types[k:]]
    stacks = [cx.full(0, t) for t in node.types[k:]]
    last = cx.size(n - 1) if a["reverse"] else None

    def step(inner: Cx, i: Any, carries: list[Ref]) -> tuple[Any, list[Ref]]:
        at = i if last is None else inner.int_op("aten.sub.int", last, i)
        rows = [inner.aten("select.int", x, 0, at, out=x.type.with_shape(x.shape[1:])) for x in xs[k : k + m]]
        outs = inline(inner, body, [*carries[:k], *rows, *xs[k + m :]])
        new = [
            inner.aten(
                "select_scatter", into, cast(inner, y, into.type.with_shape(into.shape[1:])), 0, at, out=into.type
            )
            for into, y in zip(carries[k:], outs[k:], strict=True)
        ]
        return inner.number(True), [*outs[:k], *new]

    made = loop(cx, cx.size(n), cx.number(True), [*xs[:k], *stacks], types, step)
    return tuple(cast(cx, x, t) for x, t in zip(made, node.types, strict=True))


@emits("assert")
def assert_(cx: Cx, node: Node, condition: Ref) -> Any:
    every = cx.aten("all", condition, out=condition.type.with_shape(())) if condition.rank else condition
    message = ir.StringAttr.get(node.attrs["message"])
    cx.op("runtime.assert", [truth(cx, every)], [], message=message)
    return tuple(cx.values[v] for v in node.operands[: len(node.types)])
