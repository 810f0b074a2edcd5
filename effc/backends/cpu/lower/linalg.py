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


def _results(cx: Lowering, node: Node) -> list[Buf]:
    return [cx.out(node, i) for i in range(len(node.types))]


@lowers("linalg_geqrf", "linalg_qr")
def lower_qr(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    m, n = a.shape[-2:]
    kernel = "effc_geqrf" if node.op == "linalg_geqrf" else "effc_qr"
    cx.call(kernel, [a], _results(cx, node), thread_scratch=squares(m * n, m, m * dims.maximum(m, n)))


@lowers("linalg_householder_product")
def lower_householder_product(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    m, n = out.shape[-2:]
    v, tau = node.operands
    ins = [with_batch(cx, v, out.shape[:-2]), with_batch(cx, tau, out.shape[:-2], 1)]
    cx.call("effc_householder_product", ins, [out], thread_scratch=squares(m * n, m * n, n))


@lowers("linalg_ormqr")
def lower_ormqr(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    batch = out.shape[:-2]
    v, tau, c = node.operands
    ins = [with_batch(cx, v, batch), with_batch(cx, tau, batch, 1), with_batch(cx, c, batch)]
    scratch = squares(v.shape[-1] * v.shape[-2], out.shape[-1] * out.shape[-2], v.shape[-1])
    cx.call("effc_ormqr", ins, [out], [node.attrs["left"], node.attrs["adjoint"]], thread_scratch=scratch)


@lowers("linalg_eigh")
def lower_eigh(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    n = a.shape[-1]
    scratch = squares(n * n, n * n, *[n] * 6)
    cx.call("effc_eigh", [a], _results(cx, node), [node.attrs["lower"]], thread_scratch=scratch)


@lowers("linalg_svd")
def lower_svd(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    m, n = a.shape[-2:]
    k, longer = dims.minimum(m, n), dims.maximum(m, n)
    small = [k * k] * 5
    scratch = squares(m * n, m * n, longer * longer, m * m, n * n, *small, k * 12, longer)
    cx.call("effc_svd", [a], _results(cx, node), thread_scratch=scratch + 1024)


@lowers("linalg_eig")
def lower_eig(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    n = a.shape[-1]
    cx.call("effc_eig", [a], _results(cx, node), thread_scratch=squares(n * n, n * n, n * n, *[n] * 6))


@lowers("linalg_ldl_factor")
def lower_ldl_factor(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    n = a.shape[-1]
    attrs = [node.attrs["hermitian"], node.attrs["check"]]
    cx.call("effc_ldl_factor", [a], _results(cx, node), attrs, thread_scratch=squares(n * n, n))


@lowers("linalg_ldl_solve")
def lower_ldl_solve(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    batch = out.shape[:-2]
    ld, pivots, b = node.operands
    ins = [with_batch(cx, ld, batch), with_batch(cx, pivots, batch, 1), with_batch(cx, b, batch)]
    n = ld.shape[-1]
    scratch = squares(n * n, out.shape[-1] * out.shape[-2])
    cx.call("effc_ldl_solve", ins, [out], [node.attrs["hermitian"]], thread_scratch=scratch)


@lowers("linalg_matrix_exp")
def lower_matrix_exp(cx: Lowering, node: Node) -> None:
    a = cx.strided(node.operands[0])
    n = a.shape[-1]
    cx.call("effc_matrix_exp", [a], [cx.out(node)], thread_scratch=squares(*[n * n] * 7, n) + 1024)


@lowers("cdist")
def lower_cdist(cx: Lowering, node: Node) -> None:
    out = cx.out(node)
    ins = [with_batch(cx, v, out.shape[:-2]) for v in node.operands]
    cx.call("effc_cdist", ins, [out], fattrs=[node.attrs["p"]])


@lowers("pdist")
def lower_pdist(cx: Lowering, node: Node) -> None:
    cx.call("effc_pdist", [cx.strided(node.operands[0])], [cx.out(node)], fattrs=[node.attrs["p"]])
