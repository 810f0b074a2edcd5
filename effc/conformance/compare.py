"""What *right* means: dtype and shape exact, NaN and Inf in the same places, integers and bools equal, floats within
a bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# What "equal" means for one op, by the dtype of the result: max|a-b| / max|b|. Floats that are not here are storage
# types, which are only moved and converted: exact.
TOLERANCE = {
    "float8_e4m3fn": 0.13,
    "float8_e5m2": 0.26,
    "float16": 4e-3,
    "bfloat16": 2e-2,
    "float32": 1e-5,
    "float64": 1e-10,
    "complex64": 1e-5,
    "complex128": 1e-10,
}


def difference(got: Any, want: Any, tolerance: float | None = None) -> str:
    """Empty when right, else what differs. Arrays may be of ml_dtypes; ``tolerance`` replaces the dtype's own."""
    got, want = np.asarray(got), np.asarray(want)
    if want.dtype == np.float16 and got.dtype == np.complex64:  # complex32, which numpy has not: compared as pairs
        got = np.stack([got.real, got.imag], -1).astype(np.float16)
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.size == 0:
        return ""
    a, b = got.reshape(-1), want.reshape(-1)
    name = want.dtype.name
    if name not in TOLERANCE and not name.startswith("float"):
        bad = np.flatnonzero(a != b)
        return (
            f"{bad.size} of {b.size} differ; first at {bad[0]}: {a[bad[0]]}, expected {b[bad[0]]}" if bad.size else ""
        )
    limit = TOLERANCE.get(name, 0.0) if tolerance is None else tolerance
    if want.dtype.kind != "c":
        return _floats(a.astype(np.float64), b.astype(np.float64), limit, _scale(b.astype(np.float64)))
    scale = _scale(b.astype(np.complex128))
    for part in ("real", "imag"):
        why = _floats(getattr(a, part).astype(np.float64), getattr(b, part).astype(np.float64), limit, scale)
        if why:
            return f"{part} part: {why}"
    return ""


def _scale(b: Any) -> float:
    return float(np.abs(b[np.isfinite(b)]).max(initial=0))


def _floats(a: Any, b: Any, limit: float, scale: float) -> str:
    for name, f in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
        if (f(a) != f(b)).any():
            return f"{name} in other places: {int(f(a).sum())} of them, expected {int(f(b).sum())}"
    error = np.abs(np.subtract(a, b, where=np.isfinite(b), out=np.zeros_like(b)))
    at = int(error.argmax())
    worst = float(error[at])
    if worst <= limit * scale or worst == 0:
        return ""
    relative = worst / scale if scale else worst
    return f"error {relative:.2e} of the largest value, allowed {limit:.0e}; {a[at]}, expected {b[at]}"


def is_constant(arrays: list[Any]) -> bool:
    """Whether the expectation says little: every output is empty or has one value only."""
    for a in arrays:
        flat = np.asarray(a).reshape(-1)
        if flat.size > 1 and not (flat[1:] == flat[:1]).all():
            return False
        if flat.size == 1 and flat[0] != 0:
            return False
    return True
