"""Elementwise ops, reductions and fused regions: lowered to generated loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ....ir import dims
from ....ir.dims import Dim, minimum
from ....ir.dtypes import DType
from ....ir.graph import Builder, Graph, Node, Value
from ....ir.op import OPS, broadcast_shapes
from .. import codegen, tables
from . import Buf, Lowering, _size_hint, lowers
from .views import broadcast


def elementwise_ops() -> tuple[str, ...]:
    import effc.ir.ops  # noqa: F401  (fills the table)

    return tuple(n for n, d in OPS.items() if d.category == "elementwise" and d.level == "core")


def single(node: Node) -> Graph:
    """The body that holds just this node."""
    b = Builder()
    seen: dict[Value, Value] = {}
    for v in node.operands:
        if v not in seen:
            seen[v] = b.input(f"x{len(seen)}", v.type)
    n = Node(node.op, tuple(seen[v] for v in node.operands), node.attrs, node.types, node.loc, node.name)
    b.nodes.append(n)
    return b.graph(n.values)


def lead_order(bufs: Sequence[Buf], shape: Sequence[Dim]) -> tuple[int, ...] | None:
    """The physical order a result should take: that of the largest full operand that is dense in some order."""
    best: tuple[int, tuple[int, ...]] | None = None
    for b in bufs:
        if tuple(b.shape) != tuple(shape):
            continue
        order = b.order
        dense = all(b.strides[i] != 0 or b.shape[i] == 1 for i in range(b.rank))
        if dense:
            size = _size_hint(b.numel) * b.dtype.itemsize
            if best is None or size > best[0]:
                best = (size, order)
    return None if best is None or best[1] == tuple(range(len(shape))) else best[1]


def pattern_of(bufs: Sequence[Buf], order: Sequence[int], shape: Sequence[Dim], inner: int | None = None) -> list[int]:
    """Strides expected along the innermost dim of more than one element: 0, 1, or ANY."""
    if inner is None:
        inner = next((i for i in reversed(order) if shape[i] != 1), None)
    if inner is None:
        return [1] * len(bufs)
    return [b.strides[inner] if b.strides[inner] in (0, 1) else codegen.ANY for b in bufs]  # type: ignore[misc]


def inplace_pairs(n_out: int, ins: Sequence[Buf], outs: Sequence[Buf]) -> list[tuple[int, int]]:
    """(result, operand) pairs of equal layout: an elementwise loop may write where it has just read."""
    pairs: list[tuple[int, int]] = []
    for o in range(n_out):
        for i, x in enumerate(ins):
            same = x.dtype is outs[o].dtype and x.shape == outs[o].shape and x.strides == outs[o].strides
            if same and all(i != j for _, j in pairs):
                pairs.append((o, i))
                break
    return pairs


@dataclass(frozen=True)
class Loop:
    """A fused body as a loop computes it: without its lookups, whose results are inputs of ``body`` after the others.
    ``plain``: the operands of the others; ``tables`` and ``indices``: those of the lookups, ``takes``."""

    body: Graph
    plain: list[Value]
    takes: list[Node]
    tables: list[Value]
    indices: list[Value]

    @staticmethod
    def of(body: Graph, operands: Sequence[Value]) -> Loop:
        outer = {n[0]: v for n, v in zip(body.inputs, operands, strict=True)}
        takes = [n for n in body.nodes if n.op == "take"]
        if not takes:
            return Loop(body, list(operands), [], [], [])
        looked = {v for n in takes for v in n.operands}
        read = {v for n in body.nodes if n.op != "take" for v in n.operands} | set(body.outputs)
        plain = [n for n in body.inputs if n[0] in read or n[0] not in looked]
        b = Builder()
        env = {n[0]: b.input(n.name or f"x{k}", n.types[0]) for k, n in enumerate(plain)}
        env.update({n[0]: b.input(f"t{k}", n.types[0]) for k, n in enumerate(takes)})
        for n in body.nodes:
            if n.op != "take":
                made = replace(n, inputs=tuple(None if v is None else env[v] for v in n.inputs))
                b.nodes.append(made)
                env.update(zip(n.values, made.values, strict=True))
        tables, indices = ([outer[n.operands[k]] for n in takes] for k in (0, 1))
        return Loop(b.graph([env[v] for v in body.outputs]), [outer[n[0]] for n in plain], takes, tables, indices)

    def lookups(self, cx: Lowering, outer: Mapping[Value, Value] | None = None) -> list[codegen.Lookup]:
        """``outer``: the values that the tables stand for, in a body."""
        out = []
        for k, (n, table, index) in enumerate(zip(self.takes, self.tables, self.indices, strict=True)):
            x, dim = cx.strided((outer or {}).get(table, table)), n.attrs["dim"]
            out.append(codegen.Lookup(len(self.plain) + k, index.dtype, dim, x.shape[dim], x.strides[dim]))
        return out

    def looked_up(self, cx: Lowering, shape: Sequence[Dim]) -> list[Buf]:
        """The tables, then the indices, each as a view of ``shape``: a table does not move along the index's dims, an
        index along no others."""
        tables, indices = [], []
        for n, table, index in zip(self.takes, self.tables, self.indices, strict=True):
            x, at, dim = cx.strided(table), cx.strided(index), n.attrs["dim"]
            after = x.rank - dim - 1
            rows = cx.view(x, n.types[0].shape, (*x.strides[:dim], *[0] * at.rank, *x.strides[dim + 1 :]))
            places = cx.view(at, n.types[0].shape, (*[0] * dim, *at.strides, *[0] * after))
            tables.append(broadcast(cx, rows, shape))
            indices.append(broadcast(cx, places, shape))
        return [*tables, *indices]

    def reads(self) -> dict[int, Dim]:
        """Elements that the tables, by their operands' numbers, are read for."""
        return {
            len(self.plain) + k: dims.minimum(n.types[0].numel, table.type.numel)
            for k, (n, table) in enumerate(zip(self.takes, self.tables, strict=True))
        }


def lower_map(cx: Lowering, node: Node, body: Graph, operands: Sequence[Value]) -> None:
    shape = broadcast_shapes(*(v.shape for v in body.outputs))
    full = body
    body, left, table = tabled(cx, body, operands, shape)
    loop = Loop.of(body, [v for v in left if v is not None])
    raw = [cx.strided(v) for v in loop.plain]
    plain = [broadcast(cx, b, shape) for b in raw]
    ins = [*plain, *loop.looked_up(cx, shape), *([] if table is None else [table])]
    order = lead_order(raw, shape)
    outs = [cx.out(node, i, order=order) for i in range(len(node.types))]
    patterns = pattern_of([*ins, *outs], order or tuple(range(len(shape))), shape)
    kernel, dv = codegen.map_kernel(
        cx.generated, loop.body, patterns, lookups=loop.lookups(cx), table=table is not None
    )  # fmt: skip
    cx.call(
        kernel,
        ins,
        outs,
        dv,
        inplace=inplace_pairs(len(outs), plain, outs),
        name=node.name or codegen.describe(full).replace(" ", "_"),
        body=codegen.counts(loop.body),
        reads=loop.reads(),
    )


def lower_rows(
    cx: Lowering,
    node: Node,
    body: Graph,
    operands: Sequence[Value],
    results: Sequence[tuple[tuple[Dim, ...], bool]] | None = None,
) -> None:
    """A staged reduction. Results of reduced shape keep their ones; ``results`` overrides the shapes bound to the
    node."""
    red = next(n for n in body.nodes if n.op == "reduce")
    shape, over = red.operands[0].shape, tuple(red.attrs["dims"])
    loop = Loop.of(body, operands)
    raw = [cx.strided(v) for v in loop.plain]
    plain = [broadcast(cx, b, shape) for b in raw]
    ins = [*plain, *loop.looked_up(cx, shape)]
    order = lead_order(raw, shape)
    outs: list[Buf] = []
    views: list[Buf] = []
    for i, v in enumerate(body.outputs):
        t = node.types[i]
        if tuple(v.shape) == tuple(shape) and t.rank == len(shape):
            buf = cx.out(node, i, order=order)
            views.append(buf)
        else:
            buf = cx.out(node, i)
            keep = [d for d in range(len(shape)) if d not in over]
            if t.rank == len(shape):
                strides: list[Dim] = [0 if d in over else buf.strides[d] for d in range(len(shape))]
            else:
                strides = [0] * len(shape)
                for d, s in zip(keep, buf.strides, strict=True):
                    strides[d] = s
            kept_shape = [1 if d in over else shape[d] for d in range(len(shape))]
            views.append(cx.view(buf, kept_shape, strides))
        outs.append(buf)
    # Without operands but tables, the first of those leads: its rows lie along the last dim.
    sizes = [(tuple(b.shape) == tuple(shape), _size_hint(b.numel)) for b in raw] or [(False, 0)]
    lead = max(range(len(sizes)), key=sizes.__getitem__)
    if not sizes[lead][0] and any(tuple(v.shape) == tuple(shape) for v in body.outputs):
        lead = len(ins) + next(k for k, v in enumerate(body.outputs) if tuple(v.shape) == tuple(shape))
    elif not sizes[lead][0] and loop.takes:
        lead = len(plain)
    operands_all = [*ins, *views]
    lead_strides = operands_all[lead].strides
    by_stride = sorted(
        (d for d in range(len(shape)) if shape[d] != 1), key=lambda d: _size_hint(lead_strides[d]) or 1 << 60
    )
    inner = by_stride[0] if by_stride else None
    columns = inner is not None and inner not in over
    patterns = pattern_of(operands_all, (), shape, inner) if inner is not None else [1] * len(operands_all)
    kernel, dv, scratch = codegen.rows_kernel(cx.generated, loop.body, over, shape, patterns, columns, loop.lookups(cx))
    extent: Dim = 1
    for d in over:
        extent = extent * shape[d]
    lanes = 64 if columns else 1
    per_thread = extent * scratch.per_element * lanes
    is_cut = minimum(1, (extent * lanes + 1) // codegen.SPLIT_LEAST)  # 0 or 1: shorter reductions stay whole
    partial = is_cut * (scratch.state * codegen.SPLITS * codegen.SPLIT_UNITS)
    mask = sum(1 << d for d in over)
    pairs = [] if columns else [
        (o, i) for o, i in inplace_pairs(len(outs), plain, views)
        if _read_before_written(body, i) and tuple(body.outputs[o].shape) == tuple(shape)
    ]  # fmt: skip
    cx.call(
        kernel, ins, views, [len(shape), mask, columns, lead, *shape, *dv],
        scratch=partial, thread_scratch=per_thread, inplace=pairs,
        name=node.name or codegen.describe(body).replace(" ", "_"), body=codegen.counts(loop.body),
        reads=loop.reads(),
    )  # fmt: skip


def _read_before_written(body: Graph, i: int) -> bool:
    """Whether operand i may share storage with a full result: it must not be read by a stage after the one that writes.

    Results are written by the last stage in row order, each place read just before, so one full result is safe."""
    return sum(v.rank > 0 for v in body.outputs) == 1


@lowers("fused")
def lower_fused(cx: Lowering, node: Node) -> None:
    body: Graph = node.attrs["body"]
    if any(n.op == "reduce" for n in body.nodes):
        lower_rows(cx, node, body, node.operands)
    else:
        lower_map(cx, node, body, node.operands)


def lower_elementwise(cx: Lowering, node: Node) -> None:
    body = single(node)
    lower_map(cx, node, body, list(dict.fromkeys(node.operands)))


@lowers("reduce")
def lower_reduce(cx: Lowering, node: Node) -> None:
    kind, dims = node.attrs["kind"], tuple(node.attrs["dims"])
    x = node.operands[0]
    if kind in ("argmax", "argmin"):
        buf = cx.strided(x)
        cx.call("effc_arg_reduce", [buf], [cx.out(node)], [dims[0], int(kind == "argmin"), int(node.attrs["keepdims"])])
        return
    if not dims:
        out = cx.out(node)
        cx.call("effc_copy", [cx.strided(x)], [out], name="copy")
        return
    b = Builder()
    v = b.input("x", x.type)
    out = b.op("reduce", v, kind=kind, dims=dims, keepdims=True)
    body = b.graph([out])
    lower_rows(cx, node, body, [x])


@lowers("dim_value")
def lower_dim_value(cx: Lowering, node: Node) -> None:
    b = Builder()
    out: Any = Node("dim_value", (), MappingProxyType(dict(node.attrs)), node.types)
    b.nodes.append(out)
    lower_map(cx, node, b.graph([out[0]]), [])


def tabled(
    cx: Lowering, body: Graph, operands: Sequence[Value | None], shape: Sequence[Dim]
) -> tuple[Graph, list[Value | None], Buf | None]:
    """The body and its operands (None: not a value of the graph), or where its result is better looked up (tables.py),
    what is left of them and the table, seen as ``shape`` with strides 0."""
    found = tables.split(body, [None if v is None else cx.constant_of(v) for v in operands])
    if isinstance(found, str):
        assert cx.node is not None
        cx.note(cx.node, found)
    if not isinstance(found, tables.Tabled):
        return body, list(operands), None
    cx.decided("table", "256 bytes", f"{found.nodes} nodes between two roundings are a function of one byte")
    table = cx.view(cx.const(found.table), shape, [0] * len(shape))
    return found.body, [operands[k] for k in found.kept], table


def epilogue(
    cx: Lowering, body: Graph, acc: DType, extras: Sequence[Buf], outs: Sequence[Buf], table: bool = False
) -> tuple[str, list[Dim]]:
    """The symbol of a body as an epilogue over tiles of ``acc``; extras and outs are rank 4 (b0, b1, m, n) Bufs.
    ``table``: the last of the extras is one (:func:`tabled`)."""
    patterns = [1] + [b.strides[3] if b.strides[3] in (0, 1) else codegen.ANY for b in [*extras, *outs]]
    return codegen.map_kernel(cx.generated, body, patterns, acc, epilogue=True, table=table)  # type: ignore[arg-type]


lowers(*elementwise_ops())(lower_elementwise)
