"""Scalar functions of the generated loops (kernels/math.hpp) against PyTorch eager, on random and special values.

One translation unit with a plain loop per (function, type) is compiled for each vector width and called through ctypes,
so that what is tested is what the vectoriser makes of the functions inside a loop.
"""

from __future__ import annotations

import ctypes
import pathlib
import re
import subprocess
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

KERNELS = pathlib.Path(__file__).parents[2] / "effc/backends/cpu/kernels"
FLAGS = "-std=c++17 -O3 -fPIC -shared -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti".split()
VARIANTS = {
    "v3": ["-march=x86-64-v3", "-DEFFC_VLEN=32"],
    "v4": ["-march=x86-64-v4", "-DEFFC_VLEN=64", "-mprefer-vector-width=512"],
}
C_TYPES = {
    "f32": "float", "f64": "double", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "u8": "uint8_t", "bool": "bool", "c64": "cf32", "c128": "cf64",
}  # fmt: skip
NP_TYPES = {
    "f32": np.float32, "f64": np.float64, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "bool": np.bool_, "c64": np.complex64, "c128": np.complex128,
}  # fmt: skip
FLOATS, CPLX = ("f32", "f64"), ("c64", "c128")
SIGNED = ("i8", "i16", "i32", "i64")
INTS = (*SIGNED, "u8")
REAL = (*FLOATS, *INTS)

# op: (types, result: "same" | "real" | "bool", torch function, bound of the ulp error for floats)
UNARY: dict[str, tuple[tuple[str, ...], str, Any, float]] = {
    "neg": ((*REAL, *CPLX), "same", torch.neg, 0),
    "abs": ((*REAL, *CPLX), "real", torch.abs, 1),
    "sign": ((*REAL, "bool"), "same", torch.sign, 0),
    "sgn": ((*REAL, *CPLX), "same", torch.sgn, 1),
    "signbit": (REAL, "bool", torch.signbit, 0),
    "conj": (CPLX, "same", lambda x: torch.conj(x).resolve_conj(), 0),
    "real": (CPLX, "real", torch.real, 0),
    "imag": (CPLX, "real", torch.imag, 0),
    "angle": ((*FLOATS, *CPLX), "real", torch.angle, 1),
    "exp": ((*FLOATS, *CPLX), "same", torch.exp, 2),
    "exp2": ((*FLOATS, *CPLX), "same", torch.exp2, 2),
    "expm1": ((*FLOATS, *CPLX), "same", torch.expm1, 2),
    "log": ((*FLOATS, *CPLX), "same", torch.log, 2),
    "log1p": ((*FLOATS, *CPLX), "same", torch.log1p, 2),
    "log2": ((*FLOATS, *CPLX), "same", torch.log2, 2),
    "log10": ((*FLOATS, *CPLX), "same", torch.log10, 2),
    "sqrt": ((*FLOATS, *CPLX), "same", torch.sqrt, 1),
    "rsqrt": ((*FLOATS, *CPLX), "same", torch.rsqrt, 2),
    "reciprocal": ((*FLOATS, *CPLX), "same", torch.reciprocal, 1),
    "sin": ((*FLOATS, *CPLX), "same", torch.sin, 2),
    "cos": ((*FLOATS, *CPLX), "same", torch.cos, 2),
    "tan": ((*FLOATS, *CPLX), "same", torch.tan, 2),
    "asin": ((*FLOATS, *CPLX), "same", torch.asin, 2),
    "acos": ((*FLOATS, *CPLX), "same", torch.acos, 2),
    "atan": ((*FLOATS, *CPLX), "same", torch.atan, 2),
    "sinh": ((*FLOATS, *CPLX), "same", torch.sinh, 3),
    "cosh": ((*FLOATS, *CPLX), "same", torch.cosh, 3),
    "tanh": ((*FLOATS, *CPLX), "same", torch.tanh, 2.5),
    "asinh": ((*FLOATS, *CPLX), "same", torch.asinh, 3),
    "acosh": ((*FLOATS, *CPLX), "same", torch.acosh, 3),
    "atanh": ((*FLOATS, *CPLX), "same", torch.atanh, 3),
    "erf": (FLOATS, "same", torch.erf, 2),
    "erfc": (FLOATS, "same", torch.erfc, 4),
    "lgamma": (FLOATS, "same", torch.lgamma, 5),
    "sigmoid": ((*FLOATS, *CPLX), "same", torch.sigmoid, 3),
    "ceil": (REAL, "same", torch.ceil, 0),
    "floor": (REAL, "same", torch.floor, 0),
    "round": (REAL, "same", torch.round, 0),
    "trunc": (REAL, "same", torch.trunc, 0),
    "isnan": ((*REAL, *CPLX), "bool", torch.isnan, 0),
    "isinf": ((*REAL, *CPLX), "bool", torch.isinf, 0),
    "isfinite": ((*REAL, *CPLX), "bool", torch.isfinite, 0),
    "logical_not": ((*REAL, "bool", *CPLX), "bool", torch.logical_not, 0),
    "bitwise_not": ((*INTS, "bool"), "same", torch.bitwise_not, 0),
}


def _nonzero(b: Any) -> Any:
    return torch.where(b == 0, torch.ones_like(b), b)


def _int_division(mode: str) -> Any:
    """torch raises on an integer zero divisor; the kernel yields 0 there."""

    def run(a: Any, b: Any) -> Any:
        if b.dtype.is_floating_point:
            if mode == "rem":
                m = _fmod(a, b)
                return torch.where((m != 0) & ((m < 0) != (b < 0)), m + b, m)
            return torch.div(a, b, rounding_mode=mode)
        r = torch.remainder(a, _nonzero(b)) if mode == "rem" else torch.div(a, _nonzero(b), rounding_mode=mode)
        return torch.where(b == 0, torch.zeros_like(r), r)

    return run


def _fmod(a: Any, b: Any) -> Any:
    if b.dtype.is_floating_point:  # PyTorch's vectorised fmod is NaN where the quotient exceeds about 1e37
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.fmod(a.numpy(), b.numpy()))
    return torch.where(b == 0, torch.zeros_like(a), torch.fmod(a, _nonzero(b)))


BINARY: dict[str, tuple[tuple[str, ...], str, Any, float]] = {
    "add": ((*REAL, "bool", *CPLX), "same", torch.add, 0),
    "sub": ((*REAL, *CPLX), "same", torch.sub, 0),
    "mul": ((*REAL, "bool", *CPLX), "same", torch.mul, 1),
    "div": ((*FLOATS, *CPLX), "same", torch.div, 1),
    "floor_div": (REAL, "same", _int_division("floor"), 0),
    "trunc_div": (REAL, "same", _int_division("trunc"), 0),
    "remainder": (REAL, "same", _int_division("rem"), 0),
    "fmod": (REAL, "same", _fmod, 0),
    "pow": ((*REAL, *CPLX), "same", torch.pow, 2),
    "maximum": ((*REAL, "bool"), "same", torch.maximum, 0),
    "minimum": ((*REAL, "bool"), "same", torch.minimum, 0),
    "fmax": (REAL, "same", torch.fmax, 0),
    "fmin": (REAL, "same", torch.fmin, 0),
    "atan2": (FLOATS, "same", torch.atan2, 2),
    "hypot": (FLOATS, "same", torch.hypot, 2),
    "copysign": (FLOATS, "same", torch.copysign, 0),
    "nextafter": (FLOATS, "same", torch.nextafter, 0),
    **{n: ((*REAL, "bool", *CPLX), "bool", getattr(torch, n), 0) for n in ("eq", "ne")},
    **{n: ((*REAL, "bool"), "bool", getattr(torch, n), 0) for n in ("lt", "le", "gt", "ge")},
    **{n: ((*REAL, "bool", *CPLX), "bool", getattr(torch, n), 0) for n in ("logical_and", "logical_or", "logical_xor")},
    **{n: ((*INTS, "bool"), "same", getattr(torch, n), 0) for n in ("bitwise_and", "bitwise_or", "bitwise_xor")},
    "shl": (INTS, "same", torch.bitwise_left_shift, 0),
    "shr": (INTS, "same", torch.bitwise_right_shift, 0),
    "gcd": (INTS, "same", torch.gcd, 0),
    "lcm": (("i32", "i64", "u8"), "same", torch.lcm, 0),
    "xlogy": (FLOATS, "same", torch.xlogy, 3),
    "xlog1py": (FLOATS, "same", torch.special.xlog1py, 3),
    "logaddexp": (FLOATS, "same", torch.logaddexp, 4),
    "logaddexp2": (FLOATS, "same", torch.logaddexp2, 4),
    "heaviside": (REAL, "same", torch.heaviside, 0),
    "ldexp": (FLOATS, "same", torch.ldexp, 2),
}
TERNARY: dict[str, tuple[tuple[str, ...], Any, float]] = {
    "clamp": (REAL, torch.clamp, 0),
    "lerp": ((*FLOATS, *CPLX), torch.lerp, 4),
}
CONVERT = {"f16": torch.float16, "bf16": torch.bfloat16, "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}


def _result(kind: str, t: str) -> str:
    return {"same": t, "bool": "bool", "real": {"c64": "f32", "c128": "f64"}.get(t, t)}[kind]


def _source() -> str:
    lines = ['#include "math.hpp"', "using namespace effc;", '#define X extern "C" void', "#define R __restrict"]
    for name, (types, kind, _, _) in UNARY.items():
        for t in types:
            c, r = C_TYPES[t], C_TYPES[_result(kind, t)]
            lines.append(f"X u_{name}_{t}({r}* R y, const {c}* R a, long n) {{")
            lines.append(f"  for (long i = 0; i < n; i++) y[i] = op::{name}(a[i]); }}")
    for name, (types, kind, _, _) in BINARY.items():
        for t in types:
            c, r = C_TYPES[t], C_TYPES[_result(kind, t)]
            lines.append(f"X b_{name}_{t}({r}* R y, const {c}* R a, const {c}* R b, long n) {{")
            lines.append(f"  for (long i = 0; i < n; i++) y[i] = op::{name}(a[i], b[i]); }}")
    for name, (types, _, _) in TERNARY.items():
        for t in types:
            c = C_TYPES[t]
            lines.append(f"X t_{name}_{t}({c}* R y, const {c}* R a, const {c}* R b, const {c}* R d, long n) {{")
            lines.append(f"  for (long i = 0; i < n; i++) y[i] = op::{name}(a[i], b[i], d[i]); }}")
    for t in CONVERT:
        lines.append(f"X from_{t}(float* R y, const {t}* R a, long n) {{")
        lines.append("  for (long i = 0; i < n; i++) y[i] = to_f32(a[i]); }")
        lines.append(f"X to_{t}({t}* R y, const float* R a, long n) {{")
        lines.append(f"  for (long i = 0; i < n; i++) y[i] = convert<{t}>(a[i]); }}")
    return "\n".join(lines)


def _cpu_flags() -> set[str]:
    return set(re.findall(r"\w+", pathlib.Path("/proc/cpuinfo").read_text()))


def build(source: str, variant: str, folder: pathlib.Path) -> ctypes.CDLL:
    """Compiles a translation unit for one vector width."""
    if variant == "v4" and not {"avx512f", "avx512vl", "avx512dq"} <= _cpu_flags():
        pytest.skip("this machine has no AVX-512")
    src, lib = folder / f"unit_{variant}.cpp", folder / f"unit_{variant}.so"
    src.write_text(source)
    subprocess.run(["g++", *FLAGS, *VARIANTS[variant], f"-I{KERNELS}", str(src), "-o", str(lib), "-lm"], check=True)
    return ctypes.CDLL(str(lib))


@pytest.fixture(scope="module", params=list(VARIANTS))
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(_source(), request.param, tmp_path_factory.mktemp("math"))


def call(fn: Any, out: np.ndarray, *args: np.ndarray) -> np.ndarray:
    fn(*(ctypes.c_void_p(a.ctypes.data) for a in (out, *args)), ctypes.c_long(out.size))
    return out


SPECIAL = [0.0, -0.0, 1, -1, 0.5, -0.5, 2, -2, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 88.8, -104.5]


def values(t: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """n values of type t, many scales; floats with the special values."""
    dt = np.dtype(NP_TYPES[t])
    if t == "bool":
        return rng.integers(0, 2, n).astype(np.bool_)
    if dt.kind in "iu":
        info = np.iinfo(dt)
        v = np.where(rng.random(n) < 0.5, rng.integers(info.min, info.max, n, dt, True), rng.integers(0, 12, n, dt))
        v[:4] = [info.min, info.max, 0, 1]
        if dt.kind == "i":
            v[4:6] = [-1, -2]
        return np.ascontiguousarray(v.astype(dt))
    if dt.kind == "c":
        scale = 10.0 ** rng.uniform(-2, 1, n)
        return ((rng.normal(size=n) + 1j * rng.normal(size=n)) * scale).astype(dt)
    kind = rng.integers(0, 5, n)
    v = np.choose(
        kind,
        [
            rng.normal(size=n), rng.normal(size=n) * 30, rng.uniform(-1, 1, n),
            rng.normal(size=n) * 10.0 ** rng.uniform(-30, 30, n), rng.integers(-9, 10, n).astype(float),
        ],
    )  # fmt: skip
    v[: len(SPECIAL)] = SPECIAL
    return v.astype(dt)


def pairs(t: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    a, b = values(t, n, rng), values(t, n, rng)
    if t in FLOATS:  # every pair of special values
        k = len(SPECIAL)
        a[: k * k], b[: k * k] = np.repeat(SPECIAL, k).astype(a.dtype), np.tile(SPECIAL, k).astype(b.dtype)
    return a, b


def check(
    got: np.ndarray, want: np.ndarray, ulps: float, inputs: tuple[np.ndarray, ...], scale: np.ndarray | None = None
) -> None:
    """Equal up to `ulps` units in the last place; NaN, infinities and the signs of zeros in the same places.

    scale: magnitudes of the terms that were added, where the sum may cancel; the unit is then theirs.
    """
    size = np.abs(want) if scale is None else np.maximum(np.abs(want), scale).astype(want.real.dtype)
    want = want.astype(got.dtype) if want.dtype != got.dtype and got.dtype.kind == "f" else want
    assert got.dtype == want.dtype

    def where(bad: np.ndarray) -> str:
        i = np.flatnonzero(bad)[:5]
        return f"{bad.sum()} differ: in {[x[i] for x in inputs]} got {got[i]} want {want[i]}"

    if got.dtype.kind not in "fc" or ulps == 0:
        bad = (got != want) & ~(np.isnan(got) & np.isnan(want)) if got.dtype.kind in "fc" else got != want
        assert not bad.any(), where(bad)
        return
    if got.dtype.kind == "c":  # relative to the modulus
        eps = np.finfo(got.dtype).eps
        fin = np.isfinite(want)
        bad = (np.isnan(got) != np.isnan(want)) | (fin & ~np.isfinite(got))
        with np.errstate(all="ignore"):
            bad |= fin & (np.abs(got - want) > (4 + 4 * ulps) * eps * size)
        assert not bad.any(), where(bad)
        return
    bad = np.isnan(got) != np.isnan(want)
    inf = np.isinf(got) | np.isinf(want)
    bad |= inf & (got != want) & ~np.isnan(want)
    with np.errstate(all="ignore"):
        step = np.spacing(np.maximum(size, np.finfo(got.dtype).tiny))
        bad |= ~inf & (np.abs(got - want) > ulps * step)
    bad |= (got == 0) & (want == 0) & (np.signbit(got) != np.signbit(want)) if ulps else False
    assert not bad.any(), where(bad)


def reference(fn: Any, out_type: str, *args: np.ndarray) -> np.ndarray:
    """float functions are computed by torch in float64 and rounded, so that the error measured is ours alone."""
    tensors = [torch.from_numpy(a) for a in args]
    result = fn(*tensors).numpy()
    return result.astype(NP_TYPES[out_type])


N = 20000


@pytest.mark.parametrize("name", list(UNARY))
def test_unary(lib: ctypes.CDLL, name: str) -> None:
    types, kind, fn, ulps = UNARY[name]
    rng = np.random.default_rng(len(name))
    for t in types:
        a = values(t, N, rng)
        out = np.empty(N, NP_TYPES[_result(kind, t)])
        call(getattr(lib, f"u_{name}_{t}"), out, a)
        wide = a.astype(np.float64) if t == "f32" and ulps else a
        check(out, reference(fn, _result(kind, t), wide), ulps, (a,))


@pytest.mark.parametrize("name", list(BINARY))
def test_binary(lib: ctypes.CDLL, name: str) -> None:
    types, kind, fn, ulps = BINARY[name]
    rng = np.random.default_rng(len(name))
    for t in types:
        a, b = pairs(t, N, rng)
        if name in ("shl", "shr"):
            b = rng.integers(0 if t == "u8" else -3, 70, N).astype(b.dtype)
        out = np.empty(N, NP_TYPES[_result(kind, t)])
        call(getattr(lib, f"b_{name}_{t}"), out, a, b)
        wide = [x.astype(np.float64) if t == "f32" and ulps and name != "ldexp" else x for x in (a, b)]
        scale = np.maximum(np.where(np.isfinite(a), np.abs(a), 0), 1) if name.startswith("logaddexp") else None
        check(out, reference(fn, _result(kind, t), *wide), ulps, (a, b), scale)


@pytest.mark.parametrize("name", list(TERNARY))
def test_ternary(lib: ctypes.CDLL, name: str) -> None:
    types, fn, ulps = TERNARY[name]
    rng = np.random.default_rng(len(name))
    for t in types:
        (a, b), c = pairs(t, N, rng), values(t, N, rng)
        out = np.empty(N, NP_TYPES[t])
        call(getattr(lib, f"t_{name}_{t}"), out, a, b, c)
        with np.errstate(all="ignore"):
            scale = np.abs(a) + np.abs(b) + np.abs(c) * (np.abs(a) + np.abs(b)) if name == "lerp" else None
        check(out, reference(fn, t, a, b, c), ulps, (a, b, c), scale)


@pytest.mark.parametrize("name", list(CONVERT))
def test_short_floats(lib: ctypes.CDLL, name: str) -> None:
    """Widening for every bit pattern; narrowing for random bits, half-way values and their neighbours."""
    dtype = CONVERT[name]
    word = np.uint8 if name.startswith("f8") else np.uint16
    every = np.arange(np.iinfo(word).max + 1).astype(word)
    wide = call(getattr(lib, f"from_{name}"), np.empty(every.size, np.float32), every)
    want = torch.from_numpy(every.view(np.int8 if word is np.uint8 else np.int16)).view(dtype).float().numpy()
    assert np.array_equal(wide, want, equal_nan=True)
    assert np.array_equal(np.signbit(wide), np.signbit(want)) or name == "f8e4m3"
    rng = np.random.default_rng(0)
    fin = np.sort(wide[np.isfinite(wide)])
    mid = ((fin[1:].astype(np.float64) + fin[:-1]) / 2).astype(np.float32)
    x = np.concatenate([
        wide, mid, np.nextafter(mid, np.float32(np.inf)), np.nextafter(mid, np.float32(-np.inf)),
        rng.integers(0, 2**32, 200000, np.uint64).astype(np.uint32).view(np.float32),
        np.array([448, 463, 464, 464.01, 480, 61440, 61439, 65519.9, 65520, 3.4e38], np.float32),
        np.array([np.inf, np.nan, -np.inf], np.float32),
    ])  # fmt: skip
    got = call(getattr(lib, f"to_{name}"), np.empty(x.size, word), x)
    back = call(getattr(lib, f"from_{name}"), np.empty(x.size, np.float32), got)
    want = torch.from_numpy(x).to(dtype).float().numpy()
    bad = (back != want) & ~(np.isnan(back) & np.isnan(want))
    assert not bad.any(), (x[bad][:5], back[bad][:5], want[bad][:5])


HOT = "exp exp2 expm1 log log1p log2 log10 sin cos tan tanh sigmoid erf sqrt rsqrt floor ceil round trunc abs".split()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_hot_functions_vectorise(variant: str, tmp_path: pathlib.Path) -> None:
    """The loops of the hot float functions become full-width vector code with no call left in them."""
    lines = ['#include "math.hpp"', "using namespace effc;"]
    for name in HOT:
        lines.append(f"void u_{name}(float* __restrict y, const float* __restrict a, long n)")
        lines.append(f"{{ for (long i = 0; i < n; i++) y[i] = op::{name}(a[i]); }}")
    for name in ("pow", "hypot", "maximum", "fmin"):
        lines.append(f"void u_{name}(float* __restrict y, const float* __restrict a, long n)")
        lines.append(f"{{ for (long i = 0; i < n; i++) y[i] = op::{name}(a[i], y[i]); }}")
    for name in CONVERT:
        lines.append(f"void u_to_{name}({name}* __restrict y, const float* __restrict a, long n)")
        lines.append(f"{{ for (long i = 0; i < n; i++) y[i] = from_f32<{name}>(a[i]); }}")
        lines.append(f"void u_from_{name}(float* __restrict y, const {name}* __restrict a, long n)")
        lines.append("{ for (long i = 0; i < n; i++) y[i] = to_f32(a[i]); }")
    src = tmp_path / "hot.cpp"
    src.write_text("\n".join(lines))
    flags = [f for f in FLAGS if f != "-shared"]
    asm = subprocess.run(
        ["g++", *flags, *VARIANTS[variant], f"-I{KERNELS}", "-S", str(src), "-o", "-"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    bodies = re.findall(r"^_Z\d+u_(\w+?)P\w+:$(.*?)\.cfi_endproc", asm, re.M | re.S)
    assert len(bodies) == len(HOT) + 4 + 2 * len(CONVERT)
    wide = "%ymm" if variant == "v3" else "%zmm"
    for name, body in bodies:
        assert wide in body, name
        assert not re.findall(r"\bcall\s+\S+", body), name
