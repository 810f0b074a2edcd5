"""Special functions, elementwise: Bessel and Airy functions, gamma and zeta, polynomials. C++: math_special.hpp.

References come from SciPy, computed in double. The degree operand of a polynomial is a float of the argument's
dtype whose fraction is dropped; the recurrences and the values at the ends are PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import Sample, op, require
from ..types import TensorType
from .elementwise import _scipy, elementwise, random_array

Array = np.ndarray[Any, Any]


def _nan_at_inf(name: str) -> Callable[..., Any]:
    def run(x: Array) -> Any:
        return np.where(np.isinf(x), x.dtype.type(np.nan), _scipy(name)(x)).astype(x.dtype)

    return run


def _airy(x: Array) -> Any:
    import scipy.special

    y = np.where(x > 103.892, 0.0, scipy.special.airy(x.astype(np.float64))[0])
    return np.where(np.isinf(x), np.nan, y).astype(x.dtype)


def _spherical_j0(x: Array) -> Any:
    return np.where(np.isinf(x), 0, np.sinc(x.astype(np.float64) / np.pi)).astype(x.dtype)


for _name, _f, _low, _high in [
    ("i0", _nan_at_inf("i0"), -9, 9),
    ("i0e", _scipy("i0e"), -30, 30),
    ("i1", _nan_at_inf("i1"), -9, 9),
    ("i1e", _scipy("i1e"), -30, 30),
    ("bessel_j0", _nan_at_inf("j0"), -30, 30),
    ("bessel_j1", _nan_at_inf("j1"), -30, 30),
    ("bessel_y0", _nan_at_inf("y0"), 0.1, 30),
    ("bessel_y1", _nan_at_inf("y1"), 0.1, 30),
    ("modified_bessel_i0", _nan_at_inf("i0"), -9, 9),
    ("modified_bessel_i1", _nan_at_inf("i1"), -9, 9),
    ("modified_bessel_k0", _scipy("k0"), 0.1, 9),
    ("modified_bessel_k1", _scipy("k1"), 0.1, 9),
    ("scaled_modified_bessel_k0", _scipy("k0e"), 0.1, 30),
    ("scaled_modified_bessel_k1", _scipy("k1e"), 0.1, 30),
    ("spherical_bessel_j0", _spherical_j0, -30, 30),
    ("airy_ai", _airy, -12, 9),
    ("ndtri", _scipy("ndtri"), 0.001, 0.999),
    ("log_ndtr", _scipy("log_ndtr"), -20, 6),
    ("erfcx", _scipy("erfcx"), -4, 30),
]:
    elementwise(_name, _f, low=_low, high=_high, flops=40)


def _gamma_edges(name: str) -> Callable[..., Any]:
    """SciPy's function; PyTorch's values where an operand is 0 or infinite."""
    upper = name == "gammaincc"

    def run(a: Array, x: Array) -> Any:
        y = np.asarray(_scipy(name)(a, x))
        one, nought = (0.0, 1.0) if upper else (1.0, 0.0)
        y = np.where(np.isinf(x), one, y)
        y = np.where(np.isinf(a), np.where(np.isinf(x), np.nan, nought), y)
        y = np.where(x == 0, nought, y)
        y = np.where(a == 0, np.where(x > 0, one, np.nan), y)
        return np.where((a < 0) | (x < 0), np.nan, y).astype(a.dtype)

    return run


def _zeta(x: Array, q: Array) -> Any:
    return np.asarray(_scipy("zeta")(x, q))


elementwise("igamma", _gamma_edges("gammainc"), 2, low=0.05, high=30, flops=200)
elementwise("igammac", _gamma_edges("gammaincc"), 2, low=0.05, high=30, flops=200)
elementwise("zeta", _zeta, 2, low=1.1, high=20, flops=200)


def _recur(x: float, n: int, p: float, q: float, step: Callable[[int, float, float], float]) -> float:
    if n == 0:
        return p
    for k in range(1, n):
        p, q = q, step(k, q, p)
    return q


def _chebyshev(kind: str, x: float, degree: float) -> float:
    n = int(degree)
    if n < 0:
        return 0.0
    even = n % 2 == 0
    if abs(x) == 1:
        right, wide = x > 0, 2 * n + 1
        return float(
            {
                "t": 1 if right or even else -1,
                "u": n + 1 if right or even else -(n + 1),
                "v": 1 if right else (wide if even else -wide),
                "w": wide if right else (1 if even else -1),
            }[kind]
        )
    first = {"t": x, "u": 2 * x, "v": 2 * x - 1, "w": 2 * x + 1}[kind]
    return _recur(x, n, 1.0, first, lambda k, q, p: 2 * x * q - p)


def _hermite(x: float, degree: float, factor: float) -> float:
    n = int(degree)
    if n < 0:
        return 0.0
    return math.nan if n > 512 else _recur(x, n, 1.0, factor * x, lambda k, q, p: factor * (x * q - k * p))


def _laguerre(x: float, degree: float) -> float:
    n = int(degree)
    return 0.0 if n < 0 else _recur(x, n, 1.0, 1 - x, lambda k, q, p: ((2 * k + 1 - x) * q - k * p) / (k + 1))


def _legendre(x: float, degree: float) -> float:
    n = int(degree)
    return 0.0 if n < 0 else _recur(x, n, 1.0, x, lambda k, q, p: ((2 * k + 1) * x * q - k * p) / (k + 1))


def _scalar(f: Callable[[float, float], float]) -> Callable[..., Any]:
    def run(x: Array, n: Array) -> Any:
        g = np.vectorize(f, otypes=[np.float64])
        if np.broadcast(x, n).size == 0:
            return np.zeros(np.broadcast(x, n).shape, x.dtype)
        out = g(x.astype(np.float64), n.astype(np.float64))
        return np.asarray(out).astype(x.dtype)

    return run


def _cheb(kind: str, shifted: bool) -> Callable[[float, float], float]:
    return (lambda x, n: _chebyshev(kind, 2 * x - 1, n)) if shifted else (lambda x, n: _chebyshev(kind, x, n))


for _kind in "tuvw":
    elementwise(f"chebyshev_polynomial_{_kind}", _scalar(_cheb(_kind, False)), 2, low=-1.2, high=4, flops=20)
    elementwise(f"shifted_chebyshev_polynomial_{_kind}", _scalar(_cheb(_kind, True)), 2, low=-0.2, high=4, flops=20)
elementwise("hermite_polynomial_h", _scalar(lambda x, n: _hermite(x, n, 2.0)), 2, low=-1, high=4, flops=20)
elementwise("hermite_polynomial_he", _scalar(lambda x, n: _hermite(x, n, 1.0)), 2, low=-1, high=4, flops=20)
elementwise("laguerre_polynomial_l", _scalar(_laguerre), 2, low=-1, high=4, flops=20)
elementwise("legendre_polynomial_p", _scalar(_legendre), 2, low=-1, high=4, flops=20)


def _polygamma_infer(x: TensorType, *, n: int) -> TensorType:
    require(x.dtype.is_float, f"not defined for {x.dtype}")
    require(n >= 0, f"the order must not be negative, got {n}")
    return x


def _polygamma(x: Array, *, n: int) -> Any:
    import scipy.special

    v = x.astype(np.float64)
    y = scipy.special.digamma(v) if n == 0 else (-1.0) ** (n + 1) * math.factorial(n) * scipy.special.zeta(n + 1.0, v)
    return np.asarray(y).astype(x.dtype)


def _polygamma_decompose(b: Any, x: Any, *, n: int) -> Any:
    """(-1)^(n+1) n! zeta(n + 1, x)"""
    if n == 0:
        return b.op("digamma", x)
    scale = b.constant((-1.0) ** (n + 1) * math.factorial(n), x.dtype)
    return b.op("mul", scale, b.op("zeta", b.constant(float(n + 1), x.dtype), x))


op(
    "polygamma",
    "x",
    {"n": int},
    infer=_polygamma_infer,
    numpy=_polygamma,
    category="elementwise",
    level="macro",
    decompose=_polygamma_decompose,
    doc="The n-th derivative of digamma.",
    samples=lambda rng: [
        Sample((random_array(rng, (5, 7), dt, 0.2, 9),), {"n": n})
        for dt in (np.float32, np.float64)
        for n in (0, 1, 2, 4)
    ],
)
