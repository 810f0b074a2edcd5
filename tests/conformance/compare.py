"""What *right* means: dtype and shape exact, NaN and Inf in the same places, integers and bools equal, floats within
a bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = {
    "float64": 1e-10,
    "complex128": 1e-10,
    "float32": 1e-5,
    "complex64": 1e-5,
    "float16": 4e-3,
    "bfloat16": 2e-2,
}


def difference(got: Any, want: Any, tolerance: float | None = None) -> str:
    """Empty when right, else what differs. Arrays may be of ml_dtypes."""
    got, want = np.asarray(got), np.asarray(want)
    if want.dtype == np.float16 and got.dtype == np.complex64:  # complex32, which numpy has not: compared as pairs
        got = np.stack([got.real, got.imag], -1).astype(np.float16)
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.size == 0:
        return ""
    kind = want.dtype.name
    if kind not in TOLERANCE and want.dtype.kind in "biu":
        bad = int((got != want).sum())
        return f"{bad} of {want.size} elements differ" if bad else ""
    if want.dtype.kind == "c":
        return _complex(got, want, tolerance or TOLERANCE[kind])
    a, b = got.astype(np.float64), want.astype(np.float64)
    return _floats(a, b, tolerance if tolerance is not None else TOLERANCE.get(kind, 0.13), _scale(b))


def _scale(b: Any) -> float:
    finite = np.abs(b[np.isfinite(b)])
    return float(finite.max()) if finite.size else 0.0


def _complex(got: Any, want: Any, tolerance: float) -> str:
    scale = _scale(want.astype(np.complex128))
    for part in ("real", "imag"):
        why = _floats(getattr(got, part).astype(np.float64), getattr(want, part).astype(np.float64), tolerance, scale)
        if why:
            return f"{part} part: {why}"
    return ""


def _floats(a: Any, b: Any, tolerance: float, scale: float) -> str:
    for name, f in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
        if (f(a) != f(b)).any():
            return f"{name} in other places ({int(f(a).sum())} against {int(f(b).sum())})"
    ok = np.isfinite(b)
    if not ok.any():
        return ""
    worst = float(np.abs(a[ok] - b[ok]).max())
    if worst <= tolerance * scale or worst == 0:
        return ""
    return f"max error {worst:.3g} of max {scale:.3g} is above {tolerance:g}"


def is_constant(arrays: list[Any]) -> bool:
    """Whether the expectation says little: every output is empty or has one value only."""
    for a in arrays:
        flat = np.asarray(a).reshape(-1)
        if flat.size > 1 and not (flat[1:] == flat[:1]).all():
            return False
        if flat.size == 1 and flat[0] != 0:
            return False
    return True
