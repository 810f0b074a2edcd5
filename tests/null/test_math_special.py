"""Special functions of kernels/math_special.hpp against SciPy (in double) and against PyTorch at the edges."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from test_math import VARIANTS, build, call

torch = pytest.importorskip("torch")
sc = pytest.importorskip("scipy.special")
sp = torch.special

EDGES = [0.0, -0.0, 1, -1, 2, -2, 8, -8, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 30, -30, 200, -200]
# op: (SciPy function, PyTorch function for the edges or None, random arguments, floor of the relative error)
UNARY: dict[str, tuple[Any, Any, tuple[float, float], float]] = {
    "erfinv": (sc.erfinv, torch.erfinv, (-1, 1), 0),
    "digamma": (sc.digamma, torch.digamma, (-20, 60), 1),
    "i0": (sc.i0, sp.i0, (-60, 60), 0),
    "i0e": (sc.i0e, sp.i0e, (-300, 300), 0),
    "i1": (sc.i1, sp.i1, (-60, 60), 0),
    "i1e": (sc.i1e, sp.i1e, (-300, 300), 0),
    "bessel_j0": (sc.j0, sp.bessel_j0, (-90, 90), 1),
    "bessel_j1": (sc.j1, sp.bessel_j1, (-90, 90), 1),
    "bessel_y0": (sc.y0, sp.bessel_y0, (0, 90), 1),
    "bessel_y1": (sc.y1, sp.bessel_y1, (0, 90), 1),
    "modified_bessel_i0": (sc.i0, sp.modified_bessel_i0, (-60, 60), 0),
    "modified_bessel_i1": (sc.i1, sp.modified_bessel_i1, (-60, 60), 0),
    "modified_bessel_k0": (sc.k0, sp.modified_bessel_k0, (0, 60), 0),
    "modified_bessel_k1": (sc.k1, sp.modified_bessel_k1, (0, 60), 0),
    "scaled_modified_bessel_k0": (sc.k0e, sp.scaled_modified_bessel_k0, (0, 60), 0),
    "scaled_modified_bessel_k1": (sc.k1e, sp.scaled_modified_bessel_k1, (0, 60), 0),
    "spherical_bessel_j0": (lambda x: np.sinc(x / np.pi), sp.spherical_bessel_j0, (-40, 40), 1),
    "airy_ai": (lambda x: sc.airy(x)[0], sp.airy_ai, (-30, 20), 1e-2),
    "ndtri": (sc.ndtri, sp.ndtri, (0, 1), 1e-3),
    "log_ndtr": (sc.log_ndtr, sp.log_ndtr, (-40, 40), 1e-290),
    "erfcx": (sc.erfcx, sp.erfcx, (-20, 90), 0),
}
BINARY: dict[str, tuple[Any, Any, tuple[float, float], tuple[float, float]]] = {
    "igamma": (sc.gammainc, sp.gammainc, (1e-3, 90), (0, 120)),
    "igammac": (sc.gammaincc, sp.gammaincc, (1e-3, 90), (0, 120)),
    "zeta": (sc.zeta, sp.zeta, (1.01, 30), (0.01, 40)),
}
POLYNOMIALS: dict[str, Any] = {
    **{f"chebyshev_polynomial_{k}": getattr(sp, f"chebyshev_polynomial_{k}") for k in "tuvw"},
    **{f"shifted_chebyshev_polynomial_{k}": getattr(sp, f"shifted_chebyshev_polynomial_{k}") for k in "tuvw"},
    "hermite_polynomial_h": sp.hermite_polynomial_h,
    "hermite_polynomial_he": sp.hermite_polynomial_he,
    "laguerre_polynomial_l": sp.laguerre_polynomial_l,
    "legendre_polynomial_p": sp.legendre_polynomial_p,
}
C_TYPES = {"f32": "float", "f64": "double"}
NP = {"f32": np.float32, "f64": np.float64}


@pytest.fixture(scope="module", params=list(VARIANTS))
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    lines = ['#include "math.hpp"', "using namespace effc;"]
    for t, c in C_TYPES.items():
        for name in UNARY:
            lines.append(f'extern "C" void {name}_{t}({c}* y, const {c}* a, long n)')
            lines.append(f"{{ for (long i = 0; i < n; i++) y[i] = op::{name}(a[i]); }}")
        for name in (*BINARY, *POLYNOMIALS):
            lines.append(f'extern "C" void {name}_{t}({c}* y, const {c}* a, const {c}* b, long n)')
            lines.append(f"{{ for (long i = 0; i < n; i++) y[i] = op::{name}(a[i], b[i]); }}")
    return build("\n".join(lines), request.param, tmp_path_factory.mktemp("special"))


def close(got: np.ndarray, want: np.ndarray, rtol: float, floor: float, *inputs: np.ndarray) -> None:
    """|got - want| <= rtol (|want| + floor) elementwise; NaN and infinities in the same places."""
    with np.errstate(all="ignore"):
        bad = np.isnan(got) != np.isnan(want)
        inf = np.isinf(got) | np.isinf(want)
        bad |= inf & (got != want) & ~np.isnan(want)
        bad |= ~inf & (np.abs(got - want) > rtol * (np.abs(want) + floor))
    i = np.flatnonzero(bad)[:6]
    assert not bad.any(), f"{bad.sum()} of {bad.size}: in {[x[i] for x in inputs]} got {got[i]} want {want[i]}"


@pytest.mark.parametrize("name", list(UNARY))
def test_unary(lib: ctypes.CDLL, name: str) -> None:
    ref, torch_fn, (lo, hi), floor = UNARY[name]
    rng = np.random.default_rng(7)
    near_lo = lo + (hi - lo) * 10.0 ** rng.uniform(-12, -1, 2000)
    x = np.concatenate([rng.uniform(lo, hi, 20000), rng.uniform(max(lo, -3), min(hi, 3), 20000), near_lo])
    got = call(getattr(lib, f"{name}_f64"), np.empty_like(x), x)
    close(got, ref(x), 2e-12, floor, x)
    x32 = x.astype(np.float32)
    got32 = call(getattr(lib, f"{name}_f32"), np.empty_like(x32), x32)
    with np.errstate(all="ignore"):
        close(got32, ref(x32.astype(np.float64)).astype(np.float32), 2e-7, floor + 1e-38, x32)
    edges = np.array(EDGES)
    got = call(getattr(lib, f"{name}_f64"), np.empty_like(edges), edges)
    close(got, torch_fn(torch.from_numpy(edges)).numpy(), 1e-7, floor, edges)


@pytest.mark.parametrize("name", list(BINARY))
def test_binary(lib: ctypes.CDLL, name: str) -> None:
    ref, torch_fn, first, second = BINARY[name]
    rng = np.random.default_rng(8)
    a, x = rng.uniform(*first, 30000), rng.uniform(*second, 30000)
    a[:10000] = first[0] + (2 - first[0]) * rng.random(10000)
    x[5000:12000] = second[0] + 2 * rng.random(7000)
    if name.startswith("igamma"):
        a[20000:25000] = 10 ** rng.uniform(2, 5, 5000)
        x[20000:25000] = a[20000:25000] * (1 + rng.normal(size=5000) * 3 / np.sqrt(a[20000:25000]))
        x[x < 0] = 0
    got = call(getattr(lib, f"{name}_f64"), np.empty_like(a), a, x)
    close(got, ref(a, x), 2e-10, 1e-30, a, x)
    edges = [0.0, 0.5, 1, 1.5, 2, 2.5, 3, np.inf, np.nan, -1, -1.5, -2]
    e1, e2 = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(edges, edges))
    got = call(getattr(lib, f"{name}_f64"), np.empty_like(e1), e1, e2)
    want = torch_fn(torch.from_numpy(e1), torch.from_numpy(e2)).numpy()
    keep = ~np.isinf(e1) | (name != "zeta")
    close(got[keep], want[keep], 1e-9, 1e-30, e1[keep], e2[keep])


@pytest.mark.parametrize("name", list(POLYNOMIALS))
def test_polynomials(lib: ctypes.CDLL, name: str) -> None:
    fn = POLYNOMIALS[name]
    rng = np.random.default_rng(9)
    x, n = rng.uniform(-2.5, 2.5, 5000), rng.integers(-2, 24, 5000).astype(np.float64)
    x[:200], n[:50] = rng.choice([-1.0, 0.0, 1.0, 0.5], 200), 3.7
    for t, tol in (("f64", 1e-9), ("f32", 2e-3)):
        a, b = x.astype(NP[t]), n.astype(NP[t])
        got = call(getattr(lib, f"{name}_{t}"), np.empty_like(a), a, b)
        want = fn(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        close(got, want, tol, 1e-2 if t == "f32" else 1e-3, a, b)
