"""Linear algebra: factorisations, solvers, determinants. Conventions are LAPACK's, as in ATen."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ....ir.op import broadcast_shapes
from ..context import Context
from ..registry import Unsupported, aten
from .contraction import matmul


def _info(cx: Context, index: int, v: Value | None = None) -> Value:
    t = cx.expected[index]
    assert t is not None
    return cx.full(0, t.shape, t.dtype) if v is None else cx.reshape(cx.convert(v, t.dtype), t.shape)


# LU ------------------------------------------------------------------------------------------------------------------


@aten("linalg_lu_factor_ex")
def _lu_factor_ex(cx: Context, a: Value, *, pivot: bool = True, check_errors: bool = False) -> Any:
    return cx.op("linalg_lu_factor", a, pivot=pivot, check=check_errors)


@aten("linalg_lu_factor")
def _lu_factor(cx: Context, a: Value, *, pivot: bool = True) -> Any:
    return cx.op("linalg_lu_factor", a, pivot=pivot, check=True)[:2]


@aten("_lu_with_info")
def _lu_with_info(cx: Context, a: Value, pivot: bool = True, check_errors: bool = True) -> Any:
    return cx.op("linalg_lu_factor", a, pivot=pivot, check=check_errors)


def _pivots(cx: Context, p: Value) -> Value:
    return cx.convert(p, DType.i32)


@aten("linalg_lu")
def _lu(cx: Context, a: Value, *, pivot: bool = True) -> Any:
    lu, pivots, _ = cx.op("linalg_lu_factor", a, pivot=pivot)
    p, low, up = cx.op("linalg_lu_unpack", lu, pivots)
    t = cx.expected[0]
    assert t is not None
    return (p if pivot else cx.full(0.0, t.shape, t.dtype)), low, up


@aten("lu_unpack")
def _lu_unpack(cx: Context, lu: Value, pivots: Value, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:
    p, low, up = cx.op("linalg_lu_unpack", lu, _pivots(cx, pivots))
    out = []
    for k, (v, wanted) in enumerate(((p, unpack_pivots), (low, unpack_data), (up, unpack_data))):
        t = cx.expected[k]
        assert t is not None
        out.append(v if wanted else cx.full(0.0, t.shape, t.dtype))
    return tuple(out)


def _as_matrix(cx: Context, a: Value, b: Value) -> tuple[Value, bool]:
    """torch.linalg.solve's rule: b is a vector, or a batch of vectors when its shape is a's without the last dim."""
    vector = b.rank == 1 or (b.rank == a.rank - 1 and b.shape == a.shape[:-1])
    return (cx.unsqueeze(b, -1) if vector else b), vector


@aten("linalg_lu_solve")
def _lu_solve(cx: Context, lu: Value, pivots: Value, b: Value, *, left: bool = True, adjoint: bool = False) -> Value:
    return cx.op("linalg_lu_solve", lu, _pivots(cx, pivots), b, left=left, adjoint=adjoint)


@aten("lu_solve")
def _old_lu_solve(cx: Context, b: Value, lu: Value, pivots: Value) -> Value:
    return cx.op("linalg_lu_solve", lu, _pivots(cx, pivots), b)


@aten("_linalg_solve_ex")
def _solve_ex(cx: Context, a: Value, b: Value, *, left: bool = True, check_errors: bool = False) -> Any:
    """(result, LU, pivots, info)."""
    lu, pivots, info = cx.op("linalg_lu_factor", a, check=check_errors)
    rhs, vector = _as_matrix(cx, a, b)
    if vector and not left:
        raise Unsupported("a vector on the right hand side with left=False")
    x = cx.op("linalg_lu_solve", lu, pivots, rhs, left=left)
    t = cx.expected[0]
    assert t is not None
    return cx.reshape(x, t.shape), lu, pivots, info


@aten("linalg_solve", "linalg_solve_ex")
def _solve(cx: Context, a: Value, b: Value, *, left: bool = True, check_errors: bool = True) -> Any:
    lu, pivots, info = cx.op("linalg_lu_factor", a, check=check_errors)
    rhs, _ = _as_matrix(cx, a, b)
    x = cx.reshape(cx.op("linalg_lu_solve", lu, pivots, rhs, left=left), cx.out.shape)
    return x if len(cx.expected) == 1 else (x, info)


@aten("linalg_inv_ex")
def _inv_ex(cx: Context, a: Value, *, check_errors: bool = False) -> Any:
    lu, pivots, info = cx.op("linalg_lu_factor", a, check=check_errors)
    return cx.op("linalg_lu_solve", lu, pivots, None), info


@aten("linalg_inv", "inverse")
def _inv(cx: Context, a: Value) -> Value:
    lu, pivots, _ = cx.op("linalg_lu_factor", a, check=True)
    return cx.op("linalg_lu_solve", lu, pivots, None)


@aten("_linalg_det")
def _det(cx: Context, a: Value) -> Any:
    """(det, LU, pivots)."""
    lu, pivots, _ = cx.op("linalg_lu_factor", a)
    return cx.op("linalg_lu_det", lu, pivots)[0], lu, pivots


@aten("linalg_det", "det")
def _plain_det(cx: Context, a: Value) -> Value:
    return _det(cx, a)[0]  # type: ignore[no-any-return]


@aten("_linalg_slogdet")
def _slogdet(cx: Context, a: Value) -> Any:
    """(sign, log|det|, LU, pivots)."""
    lu, pivots, _ = cx.op("linalg_lu_factor", a)
    _, sign, log = cx.op("linalg_lu_det", lu, pivots)
    return sign, log, lu, pivots


@aten("linalg_slogdet", "slogdet")
def _plain_slogdet(cx: Context, a: Value) -> Any:
    return _slogdet(cx, a)[:2]


# Triangular and positive definite systems ----------------------------------------------------------------------------


@aten("linalg_solve_triangular")
def _solve_triangular(
    cx: Context, a: Value, b: Value, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Value:
    return cx.op("linalg_solve_triangular", a, b, left=left, upper=upper, unit=unitriangular)


@aten("triangular_solve")
def _triangular_solve(
    cx: Context, b: Value, a: Value, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    x = cx.op("linalg_solve_triangular", a, b, upper=upper, unit=unitriangular, transpose="T" if transpose else "N")
    t = cx.expected[1]
    assert t is not None
    return x, cx.broadcast(a, t.shape)


@aten("linalg_cholesky_ex")
def _cholesky_ex(cx: Context, a: Value, *, upper: bool = False, check_errors: bool = False) -> Any:
    return cx.op("linalg_cholesky", a, upper=upper, check=check_errors)


@aten("linalg_cholesky", "cholesky")
def _cholesky(cx: Context, a: Value, upper: bool = False) -> Value:
    return cx.op("linalg_cholesky", a, upper=upper, check=True)[0]  # type: ignore[no-any-return]


@aten("cholesky_solve")
def _cholesky_solve(cx: Context, b: Value, factor: Value, upper: bool = False) -> Value:
    return cx.op("linalg_cholesky_solve", factor, b, upper=upper)


@aten("cholesky_inverse")
def _cholesky_inverse(cx: Context, factor: Value, upper: bool = False) -> Value:
    return cx.op("linalg_cholesky_solve", factor, None, upper=upper)


@aten("linalg_matrix_power")
def _matrix_power(cx: Context, a: Value, n: int) -> Value:
    if n == 0:
        rows = a.shape[-1]
        i, j = cx.unsqueeze(cx.iota(rows), -1), cx.unsqueeze(cx.iota(rows), 0)
        return cx.broadcast(cx.convert(cx.op("eq", i, j), a.dtype), a.shape)
    base = _inv(cx, a) if n < 0 else a
    n = abs(n)
    out: Value | None = None
    while n:
        if n & 1:
            out = base if out is None else matmul(cx, out, base)
        n >>= 1
        if n:
            base = matmul(cx, base, base)
    assert out is not None
    return out


@aten("linalg_cross")
def _cross(cx: Context, x: Value, y: Value, *, dim: int = -1) -> Value:
    shape = broadcast_shapes(x.shape, y.shape)
    a, b = (cx.broadcast(cx.convert(v, cx.out.dtype), shape) for v in (x, y))
    d = cx.axis(dim, len(shape))
    a1, a2, a0 = (cx.slice(a, d, k, k + 1) for k in (1, 2, 0))
    b1, b2, b0 = (cx.slice(b, d, k, k + 1) for k in (1, 2, 0))
    rows = [cx.sub(cx.mul(p, s), cx.mul(q, r)) for p, q, r, s in ((a1, a2, b1, b2), (a2, a0, b2, b0), (a0, a1, b0, b1))]
    return cx.concat(rows, d)


@aten("_linalg_check_errors")
def _check_errors(cx: Context, info: Value, api_name: str, *, is_matrix: bool) -> None:
    fine = cx.reduce("all", cx.op("eq", info, 0), tuple(range(info.rank)))
    cx.b.op(
        "assert", fine, message=f"{api_name}: the factorization failed, a matrix is singular or not positive definite"
    )
