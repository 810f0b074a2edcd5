"""Elementwise ops, reductions and fused regions: lowered to generated loops."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Builder, Graph, Node, Value
from ....ir.op import OPS, broadcast_shapes
from .. import codegen
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


def lower_map(cx: Lowering, node: Node, body: Graph, operands: Sequence[Value]) -> None:
    shape = broadcast_shapes(*(v.shape for v in body.outputs))
    raw = [cx.strided(v) for v in operands]
    ins = [broadcast(cx, b, shape) for b in raw]
    order = lead_order(raw, shape)
    outs = [cx.out(node, i, order=order) for i in range(len(node.types))]
    full = order or tuple(range(len(shape)))
    patterns = pattern_of([*ins, *outs], full, shape)
    kernel, dv = codegen.map_kernel(cx.generated, body, patterns)
    cx.call(
        kernel,
        ins,
        outs,
        dv,
        inplace=inplace_pairs(len(outs), ins, outs),
        name=node.name or codegen.describe(body).replace(" ", "_"),
        body=codegen.counts(body),
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
    shape, dims = red.operands[0].shape, tuple(red.attrs["dims"])
    raw = [cx.strided(v) for v in operands]
    ins = [broadcast(cx, b, shape) for b in raw]
    order = lead_order(raw, shape)
    full_order = order or tuple(range(len(shape)))
    outs: list[Buf] = []
    views: list[Buf] = []
    for i, v in enumerate(body.outputs):
        t = node.types[i]
        if tuple(v.shape) == tuple(shape) and t.rank == len(shape):
            buf = cx.out(node, i, order=order)
            views.append(buf)
        else:
            buf = cx.out(node, i)
            keep = [d for d in range(len(shape)) if d not in dims]
            if t.rank == len(shape):
                strides: list[Dim] = [0 if d in dims else buf.strides[d] for d in range(len(shape))]
            else:
                strides = [0] * len(shape)
                for d, s in zip(keep, buf.strides, strict=True):
                    strides[d] = s
            kept_shape = [1 if d in dims else shape[d] for d in range(len(shape))]
            views.append(cx.view(buf, kept_shape, strides))
        outs.append(buf)
    lead = max(range(len(ins)), key=lambda k: (tuple(raw[k].shape) == tuple(shape), _size_hint(raw[k].numel)))
    if tuple(raw[lead].shape) != tuple(shape) and any(tuple(v.shape) == tuple(shape) for v in body.outputs):
        lead = len(ins) + next(k for k, v in enumerate(body.outputs) if tuple(v.shape) == tuple(shape))
    operands_all = [*ins, *views]
    lead_strides = operands_all[lead].strides
    by_stride = sorted(
        (d for d in range(len(shape)) if shape[d] != 1), key=lambda d: _size_hint(lead_strides[d]) or 1 << 60
    )
    inner = by_stride[0] if by_stride else None
    columns = inner is not None and inner not in dims
    del full_order
    patterns = pattern_of(operands_all, (), shape, inner) if inner is not None else [1] * len(operands_all)
    kernel, dv, scratch = codegen.rows_kernel(cx.generated, body, dims, shape, patterns, columns)
    extent: Dim = 1
    for d in dims:
        extent = extent * shape[d]
    per_thread = extent * scratch.per_element * (64 if columns else 1)
    partial = scratch.state * codegen.SPLITS * codegen.SPLIT_UNITS
    mask = sum(1 << d for d in dims)
    pairs = [] if columns else [
        (o, i) for o, i in inplace_pairs(len(outs), ins, views)
        if _read_before_written(body, i) and tuple(body.outputs[o].shape) == tuple(shape)
    ]  # fmt: skip
    cx.call(
        kernel, ins, views, [len(shape), mask, columns, lead, *shape, *dv],
        scratch=partial, thread_scratch=per_thread, inplace=pairs,
        name=node.name or codegen.describe(body).replace(" ", "_"), body=codegen.counts(body),
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


def epilogue(
    cx: Lowering, body: Graph, acc: DType, extras: Sequence[Buf], outs: Sequence[Buf]
) -> tuple[str, list[Dim]]:
    """The symbol of a body as an epilogue over tiles of ``acc``; extras and outs are rank 4 (b0, b1, m, n) Bufs."""
    patterns = [1] + [b.strides[3] if b.strides[3] in (0, 1) else codegen.ANY for b in [*extras, *outs]]
    return codegen.map_kernel(cx.generated, body, patterns, acc, epilogue=True)  # type: ignore[arg-type]


lowers(*elementwise_ops())(lower_elementwise)
