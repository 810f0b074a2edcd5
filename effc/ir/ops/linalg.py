"""Linear algebra over the last two dims, f32, f64, c64, c128; names and conventions are ATen's, so LAPACK's.

Leading dims are batches. ``check``: a failed factorisation is an error instead of a nonzero entry of ``info``.
References call LAPACK through SciPy, a matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..dims import Dim, product
from ..dtypes import DType
from ..op import Cost, Sample, broadcast_shapes, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]
FLOATS = (DType.f32, DType.f64, DType.c64, DType.c128)
ALL = (np.float32, np.float64, np.complex64, np.complex128)


# Type rules ---------------------------------------------------------------------------------------------------------


def smaller(m: Dim, n: Dim) -> Dim:
    from .. import dims

    return dims.minimum(m, n)


def check_matrix(a: TensorType, *, square: bool = False, what: str = "A") -> None:
    require(a.dtype in FLOATS, f"needs f32, f64, c64 or c128, got {a.dtype}")
    require(a.rank >= 2, f"{what} must have at least 2 dims, got {a.rank}")
    if square:
        require(same_dim(a.shape[-1], a.shape[-2]), f"{what} must be square, got {a.shape[-2]} by {a.shape[-1]}")


def check_same(*types: TensorType) -> None:
    require(
        len({t.dtype for t in types}) == 1, "operands have different dtypes: " + ", ".join(str(t.dtype) for t in types)
    )


def batch_of(*types_and_inner: tuple[TensorType, int]) -> tuple[Dim, ...]:
    return broadcast_shapes(*(t.shape[: t.rank - inner] for t, inner in types_and_inner))


def typed(a: TensorType, *shape: Dim, dtype: DType | None = None) -> TensorType:
    return TensorType(dtype or a.dtype, shape)


# References ---------------------------------------------------------------------------------------------------------


def lapack(name: str, *arrays: Array) -> Any:
    from scipy.linalg import get_lapack_funcs

    return get_lapack_funcs(name, arrays)


def over_batches(
    f: Callable[..., Any], arrays: Sequence[Array], inner: Sequence[int], outs: Sequence[tuple[Any, Any]]
) -> Any:
    """Applies f to every matrix (vector, ...) of the broadcast batches; outs: (trailing shape, dtype) of each."""
    batch = np.broadcast_shapes(*(a.shape[: a.ndim - k] for a, k in zip(arrays, inner, strict=True)))
    wide = [np.broadcast_to(a, batch + a.shape[a.ndim - k :]) for a, k in zip(arrays, inner, strict=True)]
    results = [np.zeros(batch + tuple(shape), dtype) for shape, dtype in outs]
    for i in np.ndindex(*batch):
        got = f(*(w[i] for w in wide))
        for r, g in zip(results, got if isinstance(got, tuple) else (got,), strict=True):
            r[i] = g
    return tuple(results) if len(results) > 1 else results[0]


def empty(*shape: int) -> bool:
    return 0 in shape


def cubic(factor: float) -> Callable[..., Cost]:
    def cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Any) -> Cost:
        a = ins[0]
        assert a is not None
        k = smaller(a.shape[-1], a.shape[-2])
        weight = 4 if a.dtype.is_complex else 1
        flops = product(a.shape) * k * max(1, round(factor * weight))
        return Cost(flops, sum((t.nbytes for t in [*ins, *outs] if t is not None), 0))

    return cost


def well_conditioned(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random matrices with a heavier diagonal."""
    a = random_array(rng, shape, dtype, -1, 1)
    k = min(shape[-2:])
    if a.size:
        a[..., range(k), range(k)] += np.where(rng.random(k) < 0.5, -3, 3)
    return a


def positive_definite(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    a = random_array(rng, shape, dtype, -1, 1)
    b = a @ a.conj().swapaxes(-1, -2) + np.eye(shape[-1])
    return np.asarray(b).astype(dtype)


def per_dtype(
    f: Callable[[np.random.Generator, Any], Iterator[Sample]],
) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for dt in ALL:
            yield from f(rng, dt)

    return samples


# LU -----------------------------------------------------------------------------------------------------------------


def _lu_factor_infer(a: TensorType, *, pivot: bool, check: bool) -> tuple[TensorType, ...]:
    check_matrix(a)
    *batch, m, n = a.shape
    return a, typed(a, *batch, smaller(m, n), dtype=DType.i32), typed(a, *batch, dtype=DType.i32)


def _lu_factor(a: Array, *, pivot: bool, check: bool) -> Any:
    m, n = a.shape[-2:]
    k = min(m, n)

    def one(x: Array) -> Any:
        if empty(m, n):
            return x, np.zeros(k, np.int32), 0
        if pivot:
            lu, piv, info = lapack("getrf", x)(x)
            return lu, piv + 1, info
        lu, info = x.copy(), 0
        for j in range(k):
            if lu[j, j] == 0 and not info:
                info = j + 1
            lu[j + 1 :, j] /= lu[j, j]
            lu[j + 1 :, j + 1 :] -= np.outer(lu[j + 1 :, j], lu[j, j + 1 :])
        return lu, np.arange(1, k + 1), info

    return over_batches(one, [a], [2], [((m, n), a.dtype), ((k,), np.int32), ((), np.int32)])


def _factor_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for shape in [(5, 5), (2, 3, 7, 4), (3, 6), (1, 1), (0, 4, 4), (2, 0, 3), (19, 19)]:
        yield Sample((random_array(rng, shape, dt),), {})


op(
    "linalg_lu_factor",
    "a",
    {"pivot": (bool, True), "check": (bool, False)},
    infer=_lu_factor_infer,
    numpy=_lu_factor,
    category="linalg",
    cost=cubic(0.67),
    samples=lambda rng: [
        *per_dtype(_factor_samples)(rng),
        Sample((well_conditioned(rng, (4, 6, 6), np.float32),), {"pivot": False}),
    ],
    doc="A = P L U packed in one matrix; pivots count rows from 1; info: the first zero pivot, or 0.",
)


def _lu_solve_infer(
    lu: TensorType, pivots: TensorType, b: TensorType | None = None, *, left: bool, adjoint: bool
) -> TensorType:
    check_matrix(lu, square=True, what="LU")
    if b is None:
        return lu
    check_matrix(b, what="B")
    check_same(lu, b)
    n, have = lu.shape[-1], b.shape[-2 if left else -1]
    require(same_dim(n, have), f"B has {have} {'rows' if left else 'columns'}, the system {n}")
    return typed(b, *batch_of((lu, 2), (pivots, 1), (b, 2)), *b.shape[-2:])


def _lu_solve(lu: Array, pivots: Array, b: Array | None = None, *, left: bool, adjoint: bool) -> Any:
    n = lu.shape[-1]
    if b is None:
        b = np.eye(n, dtype=lu.dtype)

    def one(f: Array, p: Array, rhs: Array) -> Any:
        if empty(*rhs.shape):
            return rhs
        getrs, q = lapack("getrs", f), p - 1
        if left:
            return getrs(f, q, rhs, trans=2 if adjoint else 0)[0]
        if adjoint:  # X A^H = B is conj(A) X^T = B^T, that is A conj(X^T) = conj(B^T)
            return getrs(f, q, rhs.T.conj())[0].T.conj()
        return getrs(f, q, rhs.T, trans=1)[0].T

    return over_batches(one, [lu, pivots, b], [2, 1, 2], [(b.shape[-2:], lu.dtype)])


def _lu_solve_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for batch_a, batch_b, n, k in [
        ((), (), 5, 3),
        ((2, 1), (3,), 4, 1),
        ((0,), (0,), 3, 2),
        ((), (), 1, 1),
        ((3,), (3,), 11, 0),
    ]:
        lu, piv, _ = _lu_factor(well_conditioned(rng, (*batch_a, n, n), dt), pivot=True, check=False)
        for left in (True, False):
            for adjoint in (True, False):
                b = random_array(rng, (*batch_b, n, k) if left else (*batch_b, k, n), dt)
                yield Sample((lu, piv, b), {"left": left, "adjoint": adjoint})
        yield Sample((lu, piv, None), {})


op(
    "linalg_lu_solve",
    "lu pivots b?",
    {"left": (bool, True), "adjoint": (bool, False)},
    infer=_lu_solve_infer,
    numpy=_lu_solve,
    category="linalg",
    cost=cubic(2),
    samples=per_dtype(_lu_solve_samples),
    doc="op(A) X = B, or X op(A) = B; op is the conjugate transpose if adjoint. Without B the identity: the inverse.",
)


def _lu_det_infer(lu: TensorType, pivots: TensorType) -> tuple[TensorType, ...]:
    check_matrix(lu, square=True, what="LU")
    batch = lu.shape[:-2]
    return typed(lu, *batch), typed(lu, *batch), typed(lu, *batch, dtype=lu.dtype.real)


def _lu_det(lu: Array, pivots: Array) -> Any:
    d = np.diagonal(lu, 0, -2, -1).astype(np.complex128)
    n = lu.shape[-1]
    flips = np.where((np.asarray(pivots) != np.arange(1, n + 1)).sum(-1) % 2, -1, 1)
    m = np.abs(d)
    with np.errstate(all="ignore"):
        sign = np.prod(np.where(m == 0, 0, d / np.where(m == 0, 1, m)), -1) * flips
        det, log = np.prod(d, -1) * flips, np.sum(np.log(m), -1)
    real = lu.real.dtype

    def fix(z: Any) -> Any:
        return (z if lu.dtype.kind == "c" else z.real).astype(lu.dtype)

    return fix(det), fix(sign), log.astype(real)


def _lu_of(rng: np.random.Generator, dt: Any, shapes: Sequence[tuple[int, ...]]) -> Iterator[Sample]:
    for s in shapes:
        lu, piv, _ = _lu_factor(well_conditioned(rng, s, dt), pivot=True, check=False)
        yield Sample((lu, piv))


op(
    "linalg_lu_det",
    "lu pivots",
    infer=_lu_det_infer,
    numpy=_lu_det,
    category="linalg",
    samples=per_dtype(lambda rng, dt: _lu_of(rng, dt, [(4, 4), (2, 3, 5, 5), (0, 2, 2), (3, 0, 0), (1, 1)])),
    doc="Determinant, its sign (or phase) and the logarithm of its magnitude, from an LU factorisation.",
)


def _lu_unpack_infer(lu: TensorType, pivots: TensorType) -> tuple[TensorType, ...]:
    check_matrix(lu, what="LU")
    *batch, m, n = lu.shape
    k = smaller(m, n)
    return typed(lu, *batch, m, m), typed(lu, *batch, m, k), typed(lu, *batch, k, n)


def _lu_unpack(lu: Array, pivots: Array) -> Any:
    m, n = lu.shape[-2:]
    k = min(m, n)

    def one(f: Array, p: Array) -> Any:
        rows = np.arange(m)
        for i, j in enumerate(p - 1):
            rows[[i, j]] = rows[[j, i]]
        perm = np.zeros((m, m), f.dtype)
        perm[rows, np.arange(m)] = 1
        return perm, np.tril(f[:, :k], -1) + np.eye(m, k), np.triu(f[:k])

    return over_batches(one, [lu, pivots], [2, 1], [((m, m), lu.dtype), ((m, k), lu.dtype), ((k, n), lu.dtype)])


op(
    "linalg_lu_unpack",
    "lu pivots",
    infer=_lu_unpack_infer,
    numpy=_lu_unpack,
    category="linalg",
    samples=per_dtype(lambda rng, dt: _lu_of(rng, dt, [(4, 4), (2, 3, 7), (7, 3), (0, 2, 2), (2, 0, 3), (2, 3, 0)])),
    doc="P, L, U with A = P L U from the packed form.",
)


# Triangular and positive definite systems ---------------------------------------------------------------------------


def _triangular_infer(
    a: TensorType, b: TensorType, *, left: bool, upper: bool, unit: bool, transpose: str
) -> TensorType:
    check_matrix(a, square=True)
    check_matrix(b, what="B")
    check_same(a, b)
    require(transpose in ("N", "T", "H"), f"transpose is N, T or H, not {transpose!r}")
    n, have = a.shape[-1], b.shape[-2 if left else -1]
    require(same_dim(n, have), f"B has {have} {'rows' if left else 'columns'}, the system {n}")
    return typed(b, *batch_of((a, 2), (b, 2)), *b.shape[-2:])


def _triangular(a: Array, b: Array, *, left: bool, upper: bool, unit: bool, transpose: str) -> Any:
    from scipy.linalg import solve_triangular

    def one(t: Array, rhs: Array) -> Any:
        if empty(*rhs.shape):
            return rhs
        t = np.triu(t) if upper else np.tril(t)
        t = {"N": t, "T": t.T, "H": t.conj().T}[transpose]
        lower = upper == (transpose != "N")
        if left:
            return solve_triangular(t, rhs, lower=lower, unit_diagonal=unit)
        return solve_triangular(t.T, rhs.T, lower=not lower, unit_diagonal=unit).T

    return over_batches(one, [a, b], [2, 2], [(b.shape[-2:], a.dtype)])


def _triangular_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for k, (batch_a, batch_b, n, m) in enumerate(
        [((), (), 5, 3), ((2, 1), (3,), 4, 1), ((0,), (0,), 3, 2), ((), (), 1, 1)]
    ):
        for left in (True, False):
            for upper in (True, False):
                for unit in (True, False):
                    a = well_conditioned(rng, (*batch_a, n, n), dt)
                    b = random_array(rng, (*batch_b, n, m) if left else (*batch_b, m, n), dt)
                    attrs = {"left": left, "upper": upper, "unit": unit, "transpose": "NTH"[(k + left + upper) % 3]}
                    yield Sample((a, b), attrs)


op(
    "linalg_solve_triangular",
    "a b",
    {"left": (bool, True), "upper": (bool, False), "unit": (bool, False), "transpose": (str, "N")},
    infer=_triangular_infer,
    numpy=_triangular,
    category="linalg",
    cost=cubic(1),
    samples=per_dtype(_triangular_samples),
    doc="op(A) X = B, or X op(A) = B, with one triangle of A; op: N, T (transpose), H (its conjugate).",
)


def _cholesky_infer(a: TensorType, *, upper: bool, check: bool) -> tuple[TensorType, ...]:
    check_matrix(a, square=True)
    return a, typed(a, *a.shape[:-2], dtype=DType.i32)


def _cholesky(a: Array, *, upper: bool, check: bool) -> Any:
    n = a.shape[-1]

    def one(x: Array) -> Any:
        return lapack("potrf", x)(x, lower=not upper, clean=True) if n else (x, 0)

    return over_batches(one, [a], [2], [((n, n), a.dtype), ((), np.int32)])


def _cholesky_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for shape in [(5, 5), (2, 3, 4, 4), (1, 1), (0, 3, 3), (2, 0, 0), (17, 17)]:
        yield Sample((positive_definite(rng, shape, dt),), {"upper": len(shape) % 2 == 0})


op(
    "linalg_cholesky",
    "a",
    {"upper": (bool, False), "check": (bool, False)},
    infer=_cholesky_infer,
    numpy=_cholesky,
    category="linalg",
    cost=cubic(0.33),
    samples=per_dtype(_cholesky_samples),
    doc="L with A = L L^H (upper: U with A = U^H U), zero elsewhere; info: order of the first minor not positive.",
)


def _cholesky_solve_infer(factor: TensorType, b: TensorType | None = None, *, upper: bool) -> TensorType:
    check_matrix(factor, square=True, what="the factor")
    if b is None:
        return factor
    check_matrix(b, what="B")
    check_same(factor, b)
    require(same_dim(factor.shape[-1], b.shape[-2]), f"B has {b.shape[-2]} rows, the system {factor.shape[-1]}")
    return typed(b, *batch_of((factor, 2), (b, 2)), *b.shape[-2:])


def _cholesky_solve(factor: Array, b: Array | None = None, *, upper: bool) -> Any:
    if b is None:
        b = np.eye(factor.shape[-1], dtype=factor.dtype)

    def one(c: Array, rhs: Array) -> Any:
        t = np.triu(c).conj().T if upper else np.tril(c)
        return np.linalg.solve(t.conj().T, np.linalg.solve(t, rhs))

    return over_batches(one, [factor, b], [2, 2], [(b.shape[-2:], factor.dtype)])


def _cholesky_solve_samples(rng: np.random.Generator, dt: Any) -> Iterator[Sample]:
    for batch_a, batch_b, n, k in [((), (), 5, 3), ((2, 1), (3,), 4, 1), ((0,), (0,), 3, 2), ((), (), 1, 1)]:
        for upper in (True, False):
            c = well_conditioned(rng, (*batch_a, n, n), dt)
            yield Sample((c, random_array(rng, (*batch_b, n, k), dt)), {"upper": upper})
            yield Sample((c, None), {"upper": upper})


op(
    "linalg_cholesky_solve",
    "factor b?",
    {"upper": (bool, False)},
    infer=_cholesky_solve_infer,
    numpy=_cholesky_solve,
    category="linalg",
    cost=cubic(2),
    samples=per_dtype(_cholesky_solve_samples),
    doc="A X = B from the Cholesky factor of A; without B the inverse of A.",
)
