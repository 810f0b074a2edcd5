"""Orthogonal and spectral factorisations, functions of matrices, distances. Conventions as in linalg.py.

Vectors of an eigenvalue or singular value are determined up to a factor of modulus 1. The CPU kernels take PyTorch's
choice; references take that of SciPy's LAPACK, so samples ask for values only, and tests/null/test_kernel_linalg.py
checks vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array
from .linalg import (
    Array,
    batch_of,
    check_matrix,
    check_same,
    cubic,
    empty,
    lapack,
    over_batches,
    per_dtype,
    smaller,
    typed,
    well_conditioned,
)

SHAPES = [(5, 5), (2, 3, 7, 4), (3, 6), (1, 1), (4, 1), (0, 4, 4), (2, 0, 3), (2, 3, 0), (19, 19)]
SQUARES = [(5, 5), (2, 3, 4, 4), (1, 1), (0, 4, 4), (2, 0, 0), (19, 19)]


def complex_of(dtype: DType) -> DType:
    return {DType.f32: DType.c64, DType.f64: DType.c128}.get(dtype, dtype)


def _plain(shapes: list[tuple[int, ...]], **attrs: Any) -> Any:
    def f(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
        for s in shapes:
            yield Sample((random_array(rng, s, dt),), attrs)

    return per_dtype(f)


# QR -----------------------------------------------------------------------------------------------------------------


def _geqrf_infer(a: TensorType) -> tuple[TensorType, ...]:
    check_matrix(a)
    *batch, m, n = a.shape
    return a, typed(a, *batch, smaller(m, n))


def _geqrf(a: Array) -> Any:
    m, n = a.shape[-2:]
    k = min(m, n)

    def one(x: Array) -> Any:
        return (x, np.zeros(0, x.dtype)) if empty(m, n) else lapack("geqrf", x)(x)[:2]

    return over_batches(one, [a], [2], [((m, n), a.dtype), ((k,), a.dtype)])


op(
    "linalg_geqrf",
    "a",
    infer=_geqrf_infer,
    numpy=_geqrf,
    category="linalg",
    cost=cubic(2),
    samples=_plain(SHAPES),
    doc="QR packed: R in the upper triangle, Householder vectors below, their factors tau.",
)


def _reflectors(a: Array, tau: Array, m: int) -> Array:
    """H_0 ... H_{k-1}, m by m."""
    q = np.eye(m, dtype=a.dtype)
    for j in range(len(tau)):
        v = np.zeros(m, a.dtype)
        v[j] = 1
        v[j + 1 :] = a[j + 1 :, j]
        q = q - tau[j] * np.outer(q @ v, v.conj())
    return q


def _householder_infer(v: TensorType, tau: TensorType) -> TensorType:
    check_matrix(v, what="V")
    check_same(v, tau)
    return v


def _householder(v: Array, tau: Array) -> Any:
    m, n = v.shape[-2:]
    return over_batches(lambda x, t: _reflectors(x, t, m)[:, :n], [v, tau], [2, 1], [((m, n), v.dtype)])


def _householder_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for shape, k in [
        ((5, 5), 5),
        ((2, 7, 4), 4),
        ((2, 7, 4), 2),
        ((1, 1), 1),
        ((0, 4, 3), 3),
        ((4, 0), 0),
        ((3, 2), 0),
    ]:
        a, tau = _geqrf(random_array(rng, shape, dt))
        yield Sample((a, np.ascontiguousarray(tau[..., :k])))


op(
    "linalg_householder_product",
    "v tau",
    infer=_householder_infer,
    numpy=_householder,
    category="linalg",
    cost=cubic(2),
    samples=per_dtype(_householder_samples),
    doc="The first n columns of the product of the reflectors stored in V below the diagonal.",
)


def _ormqr_infer(v: TensorType, tau: TensorType, c: TensorType, *, left: bool, adjoint: bool) -> TensorType:
    check_matrix(v, what="V")
    check_matrix(c, what="C")
    check_same(v, tau, c)
    order, have = v.shape[-2], c.shape[-2 if left else -1]
    require(same_dim(order, have), f"C has {have} {'rows' if left else 'columns'}, the reflectors {order}")
    return typed(c, *batch_of((v, 2), (tau, 1), (c, 2)), *c.shape[-2:])


def _ormqr(v: Array, tau: Array, c: Array, *, left: bool, adjoint: bool) -> Any:
    def one(x: Array, t: Array, y: Array) -> Any:
        q = _reflectors(x, t, x.shape[0])
        q = q.conj().T if adjoint else q
        return q @ y if left else y @ q

    return over_batches(one, [v, tau, c], [2, 1, 2], [(c.shape[-2:], c.dtype)])


def _ormqr_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for shape, cols in [((5, 3), 4), ((2, 6, 6), 1), ((0, 3, 2), 2), ((4, 1), 0), ((1, 1), 2)]:
        for left in (True, False):
            for adjoint in (True, False):
                a, tau = _geqrf(random_array(rng, shape, dt))
                *batch, m, _ = shape
                c = random_array(rng, (*batch, m, cols) if left else (*batch, cols, m), dt)
                yield Sample((a, tau, c), {"left": left, "adjoint": adjoint})


op(
    "linalg_ormqr",
    "v tau c",
    {"left": (bool, True), "adjoint": (bool, False)},
    infer=_ormqr_infer,
    numpy=_ormqr,
    category="linalg",
    cost=cubic(4),
    samples=per_dtype(_ormqr_samples),
    doc="op(Q) C or C op(Q), Q the product of the reflectors in V; op: conjugate transpose if adjoint.",
)


def _qr_infer(a: TensorType, *, mode: str) -> TensorType | tuple[TensorType, ...]:
    check_matrix(a)
    require(mode in ("reduced", "complete", "r"), f"mode is reduced, complete or r, not {mode!r}")
    *batch, m, n = a.shape
    q = m if mode == "complete" else smaller(m, n)
    r = typed(a, *batch, q, n)
    return r if mode == "r" else (typed(a, *batch, m, q), r)


def _qr(a: Array, *, mode: str) -> Any:
    m, n = a.shape[-2:]
    k = m if mode == "complete" else min(m, n)

    def one(x: Array) -> Any:
        packed, tau = _geqrf(x)
        return _reflectors(packed, tau, m)[:, :k], np.triu(packed)[:k]

    def pad(x: Array) -> Any:
        q, r = one(x)
        return q, np.vstack([r, np.zeros((k - r.shape[0], n), r.dtype)])

    q, r = over_batches(pad, [a], [2], [((m, k), a.dtype), ((k, n), a.dtype)])
    return r if mode == "r" else (q, r)


op(
    "linalg_qr",
    "a",
    {"mode": (str, "reduced")},
    infer=_qr_infer,
    numpy=_qr,
    category="linalg",
    cost=cubic(4),
    samples=lambda rng: [s for mode in ("reduced", "complete", "r") for s in _plain(SHAPES, mode=mode)(rng)],
    doc="A = Q R with LAPACK's signs; mode reduced: min(m, n) columns of Q; complete: m; r: R alone.",
)


# Eigenvalues and singular values ------------------------------------------------------------------------------------


def _eigh_infer(a: TensorType, *, lower: bool, vectors: bool) -> TensorType | tuple[TensorType, ...]:
    check_matrix(a, square=True)
    w = typed(a, *a.shape[:-1], dtype=a.dtype.real)
    return (w, a) if vectors else w


def _eigh(a: Array, *, lower: bool, vectors: bool) -> Any:
    if a.size == 0:
        w = np.zeros(a.shape[:-1], a.real.dtype)
        return (w, a.copy()) if vectors else w
    w, v = np.linalg.eigh(a, "L" if lower else "U")
    return (w, v) if vectors else w


op(
    "linalg_eigh",
    "a",
    {"lower": (bool, True), "vectors": (bool, True)},
    infer=_eigh_infer,
    numpy=_eigh,
    category="linalg",
    cost=cubic(9),
    samples=lambda rng: [s for low in (True, False) for s in _plain(SQUARES, lower=low, vectors=False)(rng)],
    doc="Eigenvalues, ascending, and vectors of the symmetric or Hermitian matrix given by one triangle.",
)


def _svd_infer(a: TensorType, *, full_matrices: bool, vectors: bool) -> TensorType | tuple[TensorType, ...]:
    check_matrix(a)
    *batch, m, n = a.shape
    k = smaller(m, n)
    s = typed(a, *batch, k, dtype=a.dtype.real)
    if not vectors:
        return s
    return typed(a, *batch, m, m if full_matrices else k), s, typed(a, *batch, n if full_matrices else k, n)


def _svd(a: Array, *, full_matrices: bool, vectors: bool) -> Any:
    svd: Any = np.linalg.svd  # its overloads want literal flags
    return svd(a, full_matrices, vectors)


op(
    "linalg_svd",
    "a",
    {"full_matrices": (bool, True), "vectors": (bool, True)},
    infer=_svd_infer,
    numpy=_svd,
    category="linalg",
    cost=cubic(12),
    samples=_plain(SHAPES, vectors=False),
    doc="U, S, V^H with A = U diag(S) V^H, S descending; without vectors S alone.",
)


def _eig_infer(a: TensorType, *, vectors: bool) -> TensorType | tuple[TensorType, ...]:
    check_matrix(a, square=True)
    c = complex_of(a.dtype)
    w = typed(a, *a.shape[:-1], dtype=c)
    return (w, typed(a, *a.shape, dtype=c)) if vectors else w


def _eig(a: Array, *, vectors: bool) -> Any:
    ctype = np.complex64 if a.dtype in (np.float32, np.complex64) else np.complex128
    if a.size == 0:
        w = np.zeros(a.shape[:-1], ctype)
        return (w, a.astype(ctype)) if vectors else w
    w, v = np.linalg.eig(a)
    return (w.astype(ctype), v.astype(ctype)) if vectors else w.astype(ctype)


op(
    "linalg_eig",
    "a",
    {"vectors": (bool, True)},
    infer=_eig_infer,
    numpy=_eig,
    category="linalg",
    cost=cubic(25),
    samples=_plain(SQUARES[:-1], vectors=False),
    doc="Eigenvalues, in LAPACK's order, and right eigenvectors of norm 1 of a general matrix; complex.",
)


# Symmetric indefinite systems ---------------------------------------------------------------------------------------


def _ldl_infer(a: TensorType, *, hermitian: bool, check: bool) -> tuple[TensorType, ...]:
    check_matrix(a, square=True)
    return a, typed(a, *a.shape[:-1], dtype=DType.i32), typed(a, *a.shape[:-2], dtype=DType.i32)


def _ldl(a: Array, *, hermitian: bool, check: bool) -> Any:
    n = a.shape[-1]
    name = "hetrf" if hermitian and a.dtype.kind == "c" else "sytrf"

    def one(x: Array) -> Any:
        if n == 0:
            return x, np.zeros(0, np.int32), 0
        ld, piv, info = lapack(name, x)(x, lower=1)
        return np.tril(ld), piv, info

    return over_batches(one, [a], [2], [((n, n), a.dtype), ((n,), np.int32), ((), np.int32)])


def _ldl_inputs(rng: np.random.Generator, dt: Any, hermitian: bool) -> Iterator[Array]:
    for shape in SQUARES:
        a = random_array(rng, shape, dt)
        b = a.swapaxes(-1, -2)
        yield np.asarray(a + (b.conj() if hermitian else b))


def _ldl_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for hermitian in (False, True):
        for a in _ldl_inputs(rng, dt, hermitian):
            yield Sample((a,), {"hermitian": hermitian})


op(
    "linalg_ldl_factor",
    "a",
    {"hermitian": (bool, False), "check": (bool, False)},
    infer=_ldl_infer,
    numpy=_ldl,
    category="linalg",
    cost=cubic(0.33),
    samples=per_dtype(_ldl_samples),
    doc="Bunch and Kaufman's A = L D L^T (hermitian: L^H) from the lower triangle, packed; pivots as LAPACK's sytrf.",
)


def _ldl_solve_infer(ld: TensorType, pivots: TensorType, b: TensorType, *, hermitian: bool) -> TensorType:
    check_matrix(ld, square=True, what="LD")
    check_matrix(b, what="B")
    check_same(ld, b)
    require(same_dim(ld.shape[-1], b.shape[-2]), f"B has {b.shape[-2]} rows, the system {ld.shape[-1]}")
    return typed(b, *batch_of((ld, 2), (pivots, 1), (b, 2)), *b.shape[-2:])


def _ldl_solve(ld: Array, pivots: Array, b: Array, *, hermitian: bool) -> Any:
    def turn(z: Any) -> Any:
        return np.conj(z) if hermitian else z

    def one(f: Array, p: Array, rhs: Array) -> Any:
        """Rebuilds A = (P_1 L_1 P_2 L_2 ...) D (...)^T and solves with it."""
        n = len(p)
        left, d, k = np.eye(n, dtype=f.dtype), np.zeros((n, n), f.dtype), 0
        while k < n:
            w = 1 if p[k] > 0 else 2
            swap = np.eye(n, dtype=f.dtype)
            i, j = k + w - 1, abs(int(p[k])) - 1
            swap[[i, j]] = swap[[j, i]]
            low = np.eye(n, dtype=f.dtype)
            low[k + w :, k : k + w] = f[k + w :, k : k + w]
            left = left @ swap @ low
            d[k, k] = f[k, k]
            if w == 2:
                d[k + 1, k], d[k, k + 1], d[k + 1, k + 1] = f[k + 1, k], turn(f[k + 1, k]), f[k + 1, k + 1]
            k += w
        return np.linalg.solve(left @ d @ turn(left).T, rhs)

    return over_batches(one, [ld, pivots, b], [2, 1, 2], [(b.shape[-2:], b.dtype)])


def _ldl_solve_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for hermitian in (False, True):
        for n in (1, 2, 3, 5, 6):
            a = well_conditioned(rng, (3, n, n), dt)
            a[1] *= 1 - np.eye(n)
            a[1] += 2 * np.eye(n)[::-1]
            a = a + (a.conj() if hermitian else a).swapaxes(-1, -2)
            ld, piv, _ = _ldl(a, hermitian=hermitian, check=False)
            yield Sample((ld, piv, random_array(rng, (2, 1, n, 2), dt)), {"hermitian": hermitian})
        ld, piv, _ = _ldl(np.zeros((0, 2, 2), dt), hermitian=hermitian, check=False)
        yield Sample((ld, piv, np.zeros((0, 2, 3), dt)), {"hermitian": hermitian})


op(
    "linalg_ldl_solve",
    "ld pivots b",
    {"hermitian": (bool, False)},
    infer=_ldl_solve_infer,
    numpy=_ldl_solve,
    category="linalg",
    cost=cubic(2),
    samples=per_dtype(_ldl_solve_samples),
    doc="A X = B from the packed L D L^T factorisation.",
)


# Functions of matrices, distances -----------------------------------------------------------------------------------


def _matrix_exp_infer(a: TensorType) -> TensorType:
    check_matrix(a, square=True)
    return a


def _matrix_exp(a: Array) -> Any:
    from scipy.linalg import expm

    if a.size == 0:
        return a.copy()
    return expm(a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)).astype(a.dtype)


op(
    "linalg_matrix_exp",
    "a",
    infer=_matrix_exp_infer,
    numpy=_matrix_exp,
    category="linalg",
    cost=cubic(20),
    samples=_plain(SQUARES[:-1]),
    doc="The exponential of square matrices.",
)


def _check_points(x: TensorType, what: str) -> None:
    require(x.dtype in (DType.f32, DType.f64), f"needs f32 or f64, got {x.dtype}")
    require(x.rank >= 2, f"{what} must have at least 2 dims")


def _norm(d: Array, p: float) -> Any:
    if p == 0:
        return (d != 0).sum(-1).astype(np.float64)
    if d.shape[-1] == 0:
        return np.zeros(d.shape[:-1])
    if math.isinf(p):
        return np.abs(d).max(-1)
    with np.errstate(all="ignore"):
        return np.sum(np.abs(d) ** p, -1) ** (1 / p)


def _cdist_infer(x: TensorType, y: TensorType, *, p: float) -> TensorType:
    _check_points(x, "X")
    _check_points(y, "Y")
    check_same(x, y)
    require(same_dim(x.shape[-1], y.shape[-1]), f"points of {x.shape[-1]} and {y.shape[-1]} coordinates")
    require(p >= 0, f"p must not be negative, got {p}")
    return typed(x, *batch_of((x, 2), (y, 2)), x.shape[-2], y.shape[-2])


def _cdist(x: Array, y: Array, *, p: float) -> Any:
    d = x.astype(np.float64)[..., :, None, :] - y.astype(np.float64)[..., None, :, :]
    return _norm(d, p).astype(x.dtype)


def _cdist_cost(ins: Any, outs: Any, attrs: Any) -> Cost:
    n: Dim = ins[0].shape[-1]
    return Cost(outs[0].numel * n * 3, ins[0].nbytes + ins[1].nbytes + outs[0].nbytes)


op(
    "cdist",
    "x y",
    {"p": (float, 2.0)},
    infer=_cdist_infer,
    numpy=_cdist,
    category="linalg",
    cost=_cdist_cost,
    samples=lambda rng: [
        Sample((random_array(rng, a, dt), random_array(rng, b, dt)), {"p": p})
        for dt in (np.float32, np.float64)
        for p in (0.0, 0.7, 1.0, 2.0, 3.0, math.inf)
        for a, b in [((5, 3), (4, 3)), ((2, 1, 7, 5), (3, 6, 5)), ((0, 3), (4, 3)), ((3, 0), (2, 0)), ((1, 1), (1, 1))]
    ],
    doc="Distances in the p-norm between the rows of X and the rows of Y; p = 0 counts the coordinates that differ.",
)


def _pdist_infer(x: TensorType, *, p: float) -> TensorType:
    _check_points(x, "X")
    require(x.rank == 2, f"X must be a matrix, got rank {x.rank}")
    require(p >= 0, f"p must not be negative, got {p}")
    n = x.shape[0]
    return typed(x, n * (n - 1) // 2)


def _pdist(x: Array, *, p: float) -> Any:
    i, j = np.triu_indices(x.shape[0], 1)
    v = x.astype(np.float64)
    return _norm(v[i] - v[j], p).astype(x.dtype)


op(
    "pdist",
    "x",
    {"p": (float, 2.0)},
    infer=_pdist_infer,
    numpy=_pdist,
    category="linalg",
    samples=lambda rng: [
        Sample((random_array(rng, s, dt),), {"p": p})
        for dt in (np.float32, np.float64)
        for p in (0.0, 0.7, 1.0, 2.0, 3.0, math.inf)
        for s in [(5, 3), (1, 4), (0, 4), (9, 1), (3, 0)]
    ],
    doc="Distances in the p-norm between all pairs i < j of rows, row by row.",
)
