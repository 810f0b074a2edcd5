"""Linear algebra. torch-mlir has few of these operators: they are opaque to it."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Node
from ....ir.types import TensorType
from ..context import Cx, Ref
from . import emits


def transposed(cx: Cx, x: Ref) -> Ref:
    dims = list(range(x.rank))
    dims[-1], dims[-2] = dims[-2], dims[-1]
    return cx.permute(x, dims)


def identity(cx: Cx, like: TensorType) -> Ref:
    """Unit matrices of a type."""
    rows = cx.arange(like.shape[-2])
    row = cx.reshape(rows, (like.shape[-2], 1))
    one = cx.convert(cx.binary("eq.Tensor", row, cx.arange(like.shape[-1])), like.dtype)
    return cx.broadcast(one, like.shape)


@emits("linalg_lu_factor")
def lu_factor(cx: Cx, node: Node, a: Ref) -> Any:
    return cx.aten(
        "linalg_lu_factor_ex", a, pivot=node.attrs["pivot"], check_errors=node.attrs["check"], out=node.types
    )


@emits("linalg_lu_solve")
def lu_solve(cx: Cx, node: Node, lu: Ref, pivots: Ref, b: Ref | None = None) -> Any:
    at = node.attrs
    b = identity(cx, node.types[0]) if b is None else b
    return cx.aten("linalg_lu_solve", lu, pivots, b, left=at["left"], adjoint=at["adjoint"], out=node.types[0])


@emits("linalg_lu_unpack")
def lu_unpack(cx: Cx, node: Node, lu: Ref, pivots: Ref) -> Any:
    return cx.aten("lu_unpack", lu, pivots, True, True, out=node.types)


@emits("linalg_solve_triangular")
def solve_triangular(cx: Cx, node: Node, a: Ref, b: Ref) -> Any:
    at = node.attrs
    upper = at["upper"]
    if at["transpose"] != "N":
        a, upper = transposed(cx, a), not upper
        if at["transpose"] == "H" and a.dtype.is_complex:
            a = cx.conjugate(a)
    out = node.types[0]
    return cx.aten("linalg_solve_triangular", a, b, upper=upper, left=at["left"], unitriangular=at["unit"], out=out)


@emits("linalg_cholesky")
def cholesky(cx: Cx, node: Node, a: Ref) -> Any:
    at = node.attrs
    return cx.aten("linalg_cholesky_ex", a, upper=at["upper"], check_errors=at["check"], out=node.types)


@emits("linalg_cholesky_solve")
def cholesky_solve(cx: Cx, node: Node, factor: Ref, b: Ref | None = None) -> Any:
    b = identity(cx, node.types[0]) if b is None else b
    return cx.aten("cholesky_solve", b, factor, node.attrs["upper"], out=node.types[0])


@emits("linalg_geqrf")
def geqrf(cx: Cx, node: Node, a: Ref) -> Any:
    return cx.aten("geqrf", a, out=node.types)


@emits("linalg_householder_product")
def householder_product(cx: Cx, node: Node, v: Ref, tau: Ref) -> Any:
    return cx.aten("linalg_householder_product", v, tau, out=node.types[0])


@emits("linalg_ormqr")
def ormqr(cx: Cx, node: Node, v: Ref, tau: Ref, c: Ref) -> Any:
    return cx.aten("ormqr", v, tau, c, node.attrs["left"], node.attrs["adjoint"], out=node.types[0])


@emits("linalg_qr")
def qr(cx: Cx, node: Node, a: Ref) -> Any:
    if node.attrs["mode"] == "r":
        return cx.aten("linalg_qr", a, "r", out=[a.type.with_shape((0,)), node.types[0]])[1]
    return cx.aten("linalg_qr", a, node.attrs["mode"], out=node.types)


@emits("linalg_eigh")
def eigh(cx: Cx, node: Node, a: Ref) -> Any:
    side = "L" if node.attrs["lower"] else "U"
    if node.attrs["vectors"]:
        return cx.aten("_linalg_eigh", a, side, True, out=node.types)
    return cx.aten("linalg_eigvalsh", a, side, out=node.types[0])


@emits("linalg_svd")
def svd(cx: Cx, node: Node, a: Ref) -> Any:
    if node.attrs["vectors"]:
        return cx.aten("_linalg_svd", a, node.attrs["full_matrices"], True, out=node.types)
    return cx.aten("linalg_svdvals", a, out=node.types[0])


@emits("linalg_eig")
def eig(cx: Cx, node: Node, a: Ref) -> Any:
    if node.attrs["vectors"]:
        return cx.aten("linalg_eig", a, out=node.types)
    return cx.aten("linalg_eigvals", a, out=node.types[0])


@emits("linalg_ldl_factor")
def ldl_factor(cx: Cx, node: Node, a: Ref) -> Any:
    at = node.attrs
    return cx.aten("linalg_ldl_factor_ex", a, hermitian=at["hermitian"], check_errors=at["check"], out=node.types)


@emits("linalg_ldl_solve")
def ldl_solve(cx: Cx, node: Node, ld: Ref, pivots: Ref, b: Ref) -> Any:
    out = node.types[0]
    batch = out.shape[:-2]  # PyTorch crashes on batches that broadcast
    ld, b = (cx.broadcast(v, (*batch, *v.shape[-2:])) for v in (ld, b))
    pivots = cx.broadcast(pivots, (*batch, pivots.shape[-1]))
    return cx.aten("linalg_ldl_solve", ld, pivots, b, hermitian=node.attrs["hermitian"], out=out)


@emits("linalg_matrix_exp")
def matrix_exp(cx: Cx, node: Node, a: Ref) -> Any:
    return cx.aten("linalg_matrix_exp", a, out=node.types[0])


@emits("cdist")
def cdist(cx: Cx, node: Node, x: Ref, y: Ref) -> Any:
    return cx.aten("_cdist_forward", x, y, node.attrs["p"], 2, out=node.types[0])  # 2: by differences, exactly


@emits("pdist")
def pdist(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("_pdist_forward", x, node.attrs["p"], out=node.types[0])
