"""Linear algebra: one kernel call a node, batch dims broadcast by zero strides."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import dims
from ....ir.dims import Dim
from ....ir.graph import Node, Value
from . import Buf, Lowering, lowers


def with_batch(cx: Lowering, v: Value | None, batch: Sequence[Dim], inner: int = 2) -> Buf | None:
    """The operand with its leading dims broadcast to ``batch``; the last ``inner`` dims are its own."""
    if v is None:
        return None
    buf = cx.strided(v)
    own = buf.rank - inner
    lead = len(batch) - own
    strides: list[Dim] = [0] * lead
    for d in range(own):
        strides.append(0 if buf.shape[d] == 1 and batch[lead + d] != 1 else buf.strides[d])
    return cx.view(buf, [*batch, *buf.shape[own:]], [*strides, *buf.strides[own:]])


def squares(*sizes: Dim) -> Dim:
    """Scratch bytes of column-major complex doubles of these element counts."""
    total: Dim = 512
    for s in sizes:
        total = total + s * 16 + 64
    return total


@lowers("linalg_lu_factor")
def lower_lu_factor(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    m, n = a.shape[-2:]
    outs = [cx.out(node, i) for i in range(3)]
    attrs = [node.attrs["pivot"], node.attrs["check"]]
    cx.call("effc_lu_factor", [a], outs, attrs, thread_scratch=squares(m * n, dims.minimum(m, n)))


@lowers("linalg_lu_solve")
def lower_lu_solve(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    batch = out.shape[:-2]
    lu, pivots, *b = node.inputs
    ins = [with_batch(cx, lu, batch), with_batch(cx, pivots, batch, 1)]
    ins += [with_batch(cx, v, batch) for v in b if v is not None]
    n = lu.type.shape[-1] if lu is not None else 0
    attrs = [node.attrs["left"], node.attrs["adjoint"]]
    scratch = squares(n * n, out.shape[-1] * out.shape[-2])
    cx.call("effc_lu_solve", ins, [out], attrs, thread_scratch=scratch)


@lowers("linalg_lu_det")
def lower_lu_det(cx: Lowering, node: Node) -> None:
    ins = [cx.strided(v) for v in node.operands]
    cx.call("effc_lu_det", ins, [cx.out(node, i) for i in range(3)])


@lowers("linalg_lu_unpack")
def lower_lu_unpack(cx: Lowering, node: Node) -> None:
    ins = [cx.strided(v) for v in node.operands]
    outs = [cx.out(node, i) for i in range(3)]
    cx.call("effc_lu_unpack", ins, outs, thread_scratch=squares(ins[0].shape[-2]))


@lowers("linalg_solve_triangular")
def lower_solve_triangular(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    ins = [with_batch(cx, v, out.shape[:-2]) for v in node.operands]
    at = node.attrs
    attrs = [at["left"], at["upper"], at["unit"], "NTH".index(at["transpose"])]
    n = node.operands[0].shape[-1]
    scratch = squares(n * n, out.shape[-1] * out.shape[-2])
    cx.call("effc_solve_triangular", ins, [out], attrs, thread_scratch=scratch)


@lowers("linalg_cholesky")
def lower_cholesky(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    outs = [cx.out(node, 0), cx.out(node, 1)]
    attrs = [node.attrs["upper"], node.attrs["check"]]
    cx.call("effc_cholesky", [a], outs, attrs, thread_scratch=squares(a.shape[-1] * a.shape[-1]))


@lowers("linalg_cholesky_solve")
def lower_cholesky_solve(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    ins = [with_batch(cx, v, out.shape[:-2]) for v in node.inputs if v is not None]
    n = node.operands[0].shape[-1]
    scratch = squares(n * n, n * n, out.shape[-1] * out.shape[-2])
    cx.call("effc_cholesky_solve", ins, [out], [node.attrs["upper"]], thread_scratch=scratch)
