"""Orthogonal and spectral factorisations, pseudo-inverses, symmetric indefinite systems, the matrix exponential."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import aten
from .contraction import matmul


def _blank(cx: Context, index: int) -> Value:
    """The empty tensor that ATen returns in place of a result that was not asked for."""
    t = cx.expected[index]
    assert t is not None
    return cx.full(0.0, t.shape, t.dtype)


# QR -----------------------------------------------------------------------------------------------------------------


@aten("geqrf")
def _geqrf(cx: Context, a: Value) -> Any:
    return cx.op("linalg_geqrf", a)


@aten("linalg_qr")
def _qr(cx: Context, a: Value, mode: str = "reduced") -> Any:
    r = cx.op("linalg_qr", a, mode=mode)
    return (_blank(cx, 0), r) if mode == "r" else r


@aten("linalg_householder_product", "orgqr")
def _householder_product(cx: Context, v: Value, tau: Value) -> Value:
    return cx.op("linalg_householder_product", v, tau)


@aten("ormqr")
def _ormqr(cx: Context, v: Value, tau: Value, c: Value, left: bool = True, transpose: bool = False) -> Value:
    return cx.op("linalg_ormqr", v, tau, c, left=left, adjoint=transpose)


# Eigenvalues and singular values ------------------------------------------------------------------------------------


@aten("_linalg_eigh")
def _eigh(cx: Context, a: Value, UPLO: str = "L", compute_v: bool = True) -> Any:
    lower = UPLO.upper() == "L"
    if compute_v:
        return cx.op("linalg_eigh", a, lower=lower)
    return cx.op("linalg_eigh", a, lower=lower, vectors=False), _blank(cx, 1)


@aten("linalg_eigh")
def _plain_eigh(cx: Context, a: Value, UPLO: str = "L") -> Any:
    return _eigh(cx, a, UPLO)


@aten("linalg_eigvalsh")
def _eigvalsh(cx: Context, a: Value, UPLO: str = "L") -> Value:
    return cx.op("linalg_eigh", a, lower=UPLO.upper() == "L", vectors=False)


@aten("_linalg_svd")
def _svd(
    cx: Context, a: Value, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> Any:
    if compute_uv:
        return cx.op("linalg_svd", a, full_matrices=full_matrices)
    return _blank(cx, 0), cx.op("linalg_svd", a, vectors=False), _blank(cx, 2)


@aten("linalg_svd")
def _plain_svd(cx: Context, a: Value, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    return cx.op("linalg_svd", a, full_matrices=full_matrices)


@aten("linalg_svdvals")
def _svdvals(cx: Context, a: Value, *, driver: str | None = None) -> Value:
    return cx.op("linalg_svd", a, vectors=False)


@aten("linalg_eig")
def _eig(cx: Context, a: Value) -> Any:
    return cx.op("linalg_eig", a)


@aten("linalg_eigvals", "_linalg_eigvals")
def _eigvals(cx: Context, a: Value) -> Value:
    return cx.op("linalg_eig", a, vectors=False)


# Pseudo-inverse -----------------------------------------------------------------------------------------------------

EPS = {DType.f32: 2.0**-23, DType.f64: 2.0**-52}


def pinv(cx: Context, a: Value, atol: Any, rtol: Any, hermitian: bool) -> Value:
    """V diag(1/s where s > max(atol, rtol s_max)) U^H; rtol: eps max(m, n) unless given, 0 where only atol > 0 is."""
    m, n = a.shape[-2:]
    if 0 in (m, n) or 0 in a.shape:
        return cx.full(0.0, cx.out.shape, a.dtype)
    real = a.dtype.real
    if hermitian:
        s, u = cx.op("linalg_eigh", a)
        size, right = cx.op("abs", s), u
    else:
        u, s, vh = cx.op("linalg_svd", a, full_matrices=False)
        size, right = s, _adjoint(cx, vh)
    largest = cx.reduce("max", size, (size.rank - 1,), True)

    def level(t: Any) -> Value:
        if not isinstance(t, Value):
            return cx.scalar(t, real)
        t = cx.convert(t, real)
        return cx.unsqueeze(t, -1) if t.rank else t

    default = cx.mul(cx.scalar(D.maximum(m, n), real), EPS[real])
    if rtol is not None:
        relative = level(rtol)
    elif atol is not None:
        given = level(atol)
        zero = cx.const(0.0, real)
        relative = cx.where(cx.op("gt", given, 0.0), zero, default)
    else:
        relative = default
    limit = cx.mul(largest, relative)
    if atol is not None:
        limit = cx.op("maximum", limit, level(atol))
    keep = cx.op("gt", size, limit)
    inverse = cx.where(keep, cx.div(1.0, cx.where(keep, s, 1.0)), 0.0)
    scaled = cx.mul(right, cx.convert(cx.unsqueeze(inverse, -2), a.dtype))
    return matmul(cx, scaled, _adjoint(cx, u))


def _adjoint(cx: Context, x: Value) -> Value:
    y = cx.transpose(x)
    return cx.op("conj", y) if x.dtype.is_complex else y


@aten("linalg_pinv.atol_rtol_tensor", "linalg_pinv.atol_rtol_float")
def _pinv(cx: Context, a: Value, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Value:
    return pinv(cx, a, atol, rtol, hermitian)


@aten("linalg_pinv")
def _pinv_rcond(cx: Context, a: Value, rcond: Any = 1e-15, hermitian: bool = False) -> Value:
    return pinv(cx, a, 0.0, rcond, hermitian)


# Symmetric indefinite systems, exponential --------------------------------------------------------------------------


@aten("linalg_ldl_factor_ex")
def _ldl_factor_ex(cx: Context, a: Value, *, hermitian: bool = False, check_errors: bool = False) -> Any:
    return cx.op("linalg_ldl_factor", a, hermitian=hermitian, check=check_errors)


@aten("linalg_ldl_factor")
def _ldl_factor(cx: Context, a: Value, *, hermitian: bool = False) -> Any:
    return cx.op("linalg_ldl_factor", a, hermitian=hermitian, check=True)[:2]


@aten("linalg_ldl_solve")
def _ldl_solve(cx: Context, ld: Value, pivots: Value, b: Value, *, hermitian: bool = False) -> Value:
    return cx.op("linalg_ldl_solve", ld, cx.convert(pivots, DType.i32), b, hermitian=hermitian)


@aten("linalg_matrix_exp", "matrix_exp")
def _matrix_exp(cx: Context, a: Value) -> Value:
    return cx.op("linalg_matrix_exp", a)
