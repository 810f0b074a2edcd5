"""Linear algebra kernels against PyTorch: vectors with their signs, edge cases, threads, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_harness import KernelError, KernelLibrary, available_isas

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]
DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
UNITS = ["lu", "qr", "eigh", "svd", "eig", "ldl", "func"]
MODES = [{"mode": "serial"}, {"mode": "reverse", "threads": 3}, {"mode": "threads", "threads": 2}]


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any) -> KernelLibrary:
    return KernelLibrary([f"linalg_{u}.cpp" for u in UNITS], request.param)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    x = rng.normal(size=shape)
    return (x + 1j * rng.normal(size=shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)


def close(got: Array, want: Array, factor: float = 1.0) -> None:
    single = got.dtype in (np.float32, np.complex64)
    tol = (1e-5 if single else 1e-12) * factor
    assert got.shape == want.shape
    worst = np.abs(got - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-30)
    assert worst <= tol, worst


def room(*sizes: int) -> int:
    return sum(s * 16 + 64 for s in sizes) + 2048


def eigh(lib: KernelLibrary, a: Array, lower: bool = True, **kw: Any) -> tuple[Array, Array]:
    n = a.shape[-1]
    w, v = np.empty(a.shape[:-1], a.real.dtype), np.empty(a.shape, a.dtype)
    lib.call("effc_eigh", [a], [w, v], [int(lower)], thread_scratch=room(n * n, n * n, *[n] * 6), **kw)
    return w, v


def svd(lib: KernelLibrary, a: Array, full: bool, **kw: Any) -> tuple[Array, Array, Array]:
    *batch, m, n = a.shape
    k, big = min(m, n), max(m, n)
    u, vh = np.empty((*batch, m, m if full else k), a.dtype), np.empty((*batch, n if full else k, n), a.dtype)
    s = np.empty((*batch, k), a.real.dtype)
    scratch = room(m * n, m * n, big * big, m * m, n * n, *[k * k] * 5, 12 * k, big)
    lib.call("effc_svd", [a], [u, s, vh], thread_scratch=scratch, **kw)
    return u, s, vh


def eig(lib: KernelLibrary, a: Array, **kw: Any) -> tuple[Array, Array]:
    n = a.shape[-1]
    ctype = np.complex64 if a.dtype in (np.float32, np.complex64) else np.complex128
    w, v = np.empty(a.shape[:-1], ctype), np.empty(a.shape, ctype)
    lib.call("effc_eig", [a], [w, v], thread_scratch=room(*[n * n] * 3, *[n] * 6), **kw)
    return w, v


def same_columns(got: Array, want: Array, share: float = 1.0) -> None:
    """Vectors equal with their signs. In single precision a rounding may decide about one more step of the iteration,
    and so about a sign, once in some hundred columns."""
    single = got.real.dtype == np.float32
    same = np.abs(got - want).max(-2, initial=0) <= (5e-3 if single else 1e-8)
    assert same.mean() >= min(share, 0.9 if single else 1.0) if same.size else True, same.mean()


def spectrum_gap(got: Array, want: Array) -> float:
    """The largest distance between eigenvalues, each matched with the nearest that is left: order may differ."""
    left, worst = list(want), 0.0
    for z in got:
        k = int(np.argmin([abs(z - x) for x in left]))
        worst = max(worst, abs(z - left.pop(k)))
    return worst


def hermitian(a: Array) -> Array:
    return np.asarray(a + a.conj().swapaxes(-1, -2)).astype(a.dtype)


def adjoint(a: Array) -> Array:
    return a.conj().swapaxes(-1, -2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigh(lib: KernelLibrary, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for n in (0, 1, 2, 3, 4, 5, 7, 10, 33, 70):
        a = hermitian(random(rng, (6, n, n), dtype))
        for lower in (True, False):
            junk = a.copy()
            junk[..., np.triu(np.ones((n, n), bool), 1) if lower else np.tril(np.ones((n, n), bool), -1)] = np.nan
            w, v = eigh(lib, junk, lower)
            tw, tv = (t.numpy() for t in torch.linalg.eigh(torch.from_numpy(a), UPLO="L" if lower else "U"))
            close(w, tw)
            close(a @ v, v * w[..., None, :])
            close(adjoint(v) @ v, np.broadcast_to(np.eye(n), v.shape).astype(dtype))
            if n <= 10:  # where LAPACK does not divide and conquer, the signs are its own
                same_columns(v, tv)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("full", [False, True])
def test_svd(lib: KernelLibrary, dtype: Any, full: bool) -> None:
    rng = np.random.default_rng(2)
    shapes = [(0, 3), (3, 0), (1, 1), (1, 4), (4, 1), (2, 2), (3, 3), (5, 5), (7, 5), (5, 7), (9, 5), (5, 9), (12, 4)]
    for m, n in [*shapes, (4, 12), (40, 33)]:
        a = random(rng, (5, m, n), dtype)
        u, s, vh = svd(lib, a, full)
        t = [x.numpy() for x in torch.linalg.svd(torch.from_numpy(a), full_matrices=full)]
        k = min(m, n)
        close(s, t[1])
        if k:
            close((u[..., :k] * s[..., None, :]) @ vh[..., :k, :], a)
        close(adjoint(u) @ u, np.broadcast_to(np.eye(u.shape[-1]), (5,) + (u.shape[-1],) * 2).astype(dtype))
        close(vh @ adjoint(vh), np.broadcast_to(np.eye(vh.shape[-2]), (5,) + (vh.shape[-2],) * 2).astype(dtype))
        if k <= 12:
            same_columns(u, t[0])
            same_columns(adjoint(vh), adjoint(t[2]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_svd_of_special_matrices(lib: KernelLibrary, dtype: Any) -> None:
    """Rank one, zero, repeated singular values, extreme scales."""
    rng = np.random.default_rng(3)
    col, row = random(rng, (6, 1), dtype), random(rng, (1, 4), dtype)
    tiny, huge = np.finfo(dtype).tiny * 16, np.finfo(dtype).max / 64
    for a in [col @ row, np.zeros((5, 3), dtype), np.eye(4, dtype=dtype), np.diag([3, 0, -2, 0]).astype(dtype)]:
        for scale in (1.0, tiny, huge / max(1.0, np.abs(a).max() * 8)):
            x = (a * scale).astype(dtype)
            u, s, vh = svd(lib, x, False)
            want = np.linalg.svd(a.astype(np.complex128), compute_uv=False) * scale
            assert np.abs(s - want).max() <= (1e-5 if s.dtype == np.float32 else 1e-13) * max(
                want.max(), np.finfo(dtype).tiny
            )
            close(adjoint(u) @ u, np.eye(u.shape[-1], dtype=dtype))
            close(vh @ adjoint(vh), np.eye(vh.shape[-2], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_eig(lib: KernelLibrary, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    for n in (0, 1, 2, 3, 5, 8, 30):
        a = random(rng, (6, n, n), dtype)
        if n == 5:
            a[0], a[1], a[2, 3, :3] = np.triu(a[0]), np.tril(a[1]), 0  # isolated eigenvalues
            a[4] *= 10.0 ** np.arange(-4, 6, 2)[:, None]  # badly scaled
        w, v = eig(lib, a)
        tw = torch.linalg.eigvals(torch.from_numpy(a)).numpy()
        for k in range(len(a)):
            size = np.abs(tw[k]).max(initial=1e-30)
            assert spectrum_gap(w[k], tw[k]) <= (2e-4 if w.dtype == np.complex64 else 1e-10) * size
            # Backward stable is what is computed for the balanced matrix: the residual is measured in its coordinates.
            d = 10.0 ** np.arange(-2, 3)[:, None] if n == 5 and k == 4 else np.ones((n, 1))
            bound = 40 * np.finfo(dtype).eps * size * np.linalg.norm(v[k] / d, axis=0)
            assert (np.abs(a[k] @ v[k] - v[k] * w[k]) / d <= bound).all()
        assert np.abs(np.linalg.norm(v, axis=-2) - 1).max(initial=0) < 1e-5
        if np.dtype(dtype).kind != "c":
            assert (v.imag[np.broadcast_to((w.imag == 0)[:, None, :], v.shape)] == 0).all()


def test_vectors_of_eig_are_torchs(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(5)
    for dtype in (np.float64, np.complex128):
        for n in (1, 2, 3, 4, 5):
            a = random(rng, (20, n, n), dtype)
            w, v = eig(lib, a)
            tw, tv = (t.numpy() for t in torch.linalg.eig(torch.from_numpy(a)))
            assert np.abs(w - tw).max() < 1e-10
            same_columns(v, tv, 0.95)  # the sign of a complex pair of a real matrix is not always theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m["mode"])
def test_lu_in_threads_and_strides(lib: KernelLibrary, dtype: Any, mode: dict[str, Any]) -> None:
    rng = np.random.default_rng(6)
    base = random(rng, (3, 7, 9, 8), dtype)
    for a in (base, base[:, ::2, ::-1], base.transpose(1, 0, 3, 2), np.broadcast_to(base[:1, :1], (2, 2, 9, 8))):
        *batch, m, n = a.shape
        k = min(m, n)
        lu, piv, info = np.empty(a.shape, dtype), np.empty((*batch, k), np.int32), np.empty(batch, np.int32)
        lib.call("effc_lu_factor", [a], [lu, piv, info], [1, 1], thread_scratch=room(m * n, k), **mode)
        want, tpiv = (t.numpy() for t in torch.linalg.lu_factor(torch.from_numpy(np.ascontiguousarray(a))))
        assert np.array_equal(piv, tpiv)
        close(lu, want)


def test_errors(lib: KernelLibrary) -> None:
    a = np.stack([np.eye(3), np.zeros((3, 3))])
    outs = [np.empty_like(a), np.empty((2, 3), np.int32), np.empty(2, np.int32)]
    lib.call("effc_lu_factor", [a], outs, [1, 0], thread_scratch=room(9, 3))
    assert outs[2].tolist() == [0, 1]
    with pytest.raises(KernelError, match=r"Batch element 1.*singular"):
        lib.call("effc_lu_factor", [a], outs, [1, 1], thread_scratch=room(9, 3))
    b = np.stack([np.eye(3), np.diag([1.0, -1, 1])])
    outs = [np.empty_like(b), np.empty(2, np.int32)]
    lib.call("effc_cholesky", [b], outs, [0, 0], thread_scratch=room(9))
    assert outs[1].tolist() == [0, 2]
    with pytest.raises(KernelError, match=r"Batch element 1.*positive-definite"):
        lib.call("effc_cholesky", [b], outs, [0, 1], thread_scratch=room(9))
    bad = np.full((4, 4), np.nan)
    for call in (eigh, eig):
        with pytest.raises(KernelError, match="finite"):
            call(lib, bad)
    with pytest.raises(KernelError, match="finite"):
        svd(lib, bad, False)


def test_matrix_exp(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(7)
    for dtype in DTYPES:
        for scale in (1e-6, 0.1, 1.0, 4.0):
            a = (random(rng, (3, 6, 6), dtype) * scale).astype(dtype)
            out = np.empty_like(a)
            lib.call("effc_matrix_exp", [a], [out], thread_scratch=room(*[36] * 7, 6))
            wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
            want = torch.linalg.matrix_exp(torch.from_numpy(a.astype(wide))).numpy().astype(dtype)
            for k in range(3):
                close(out[k], want[k])
    out = np.empty((2, 2))
    lib.call("effc_matrix_exp", [np.array([[np.nan, 0], [0, 1.0]])], [out], thread_scratch=room(*[4] * 7, 2))
    assert np.isnan(out).all()
