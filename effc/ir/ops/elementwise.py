"""Elementwise ops. Operands broadcast as in numpy and share one dtype; the C++ counterpart is ``effc::op::<name>``.

Adding one: a line here, and, unless it has a decomposition, a function of that name in backends/cpu/kernels/math.hpp.
half and bf16 operands are computed in f32 and rounded once, by the interpreter and by generated code alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..dims import product
from ..dtypes import DType
from ..op import Cost, Sample, broadcast_shapes, op, require
from ..types import TensorType

# What a dtype's operands may be: f(loat) c(omplex) i(nteger) b(ool)
KINDS: dict[str, str] = {}  # op -> operand kinds
RESULT: dict[str, str] = {}  # op -> "same" | "bool" | "real"


def kind(dtype: DType) -> str:
    return "b" if dtype.is_bool else "c" if dtype.is_complex else "f" if dtype.is_float else "i"


def _rule(name: str, kinds: str, result: str) -> Callable[..., TensorType]:
    def infer(*types: TensorType) -> TensorType:
        first = types[0].dtype
        require(
            all(t.dtype is first for t in types),
            "operands have different dtypes: " + ", ".join(str(t.dtype) for t in types),
        )
        require(kind(first) in kinds, f"not defined for {first}")
        out = {"same": first, "bool": DType.bool, "real": first.real}[result]
        return TensorType(out, broadcast_shapes(*(t.shape for t in types)))

    return infer


def _samples(arity: int, kinds: str, low: float, high: float) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def make(rng: np.random.Generator) -> Iterator[Sample]:
        shapes: list[tuple[tuple[int, ...], ...]] = [
            ((5, 37),) * arity,
            ((),) * arity,
            ((0, 3),) * arity,
            ((1,),) * arity,
        ]
        if arity > 1:
            shapes += [((4, 1, 9),) + ((3, 1),) * (arity - 1), ((17,),) + ((6, 17),) * (arity - 1)]
        dtypes: dict[str, list[Any]] = {
            "f": [np.float32, np.float64],
            "i": [np.int32, np.int64, np.uint8],
            "b": [np.bool_],
            "c": [np.complex64],
        }
        for k in kinds:
            for dt in dtypes[k]:
                for case in shapes:
                    yield Sample(tuple(random_array(rng, s, dt, low, high) for s in case))

    return make


def random_array(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, low: float = -4, high: float = 4
) -> np.ndarray[Any, Any]:
    """Random data of any dtype; integers in [max(low, dtype min), high]."""
    dt = np.dtype(dtype)
    if dt.kind == "b":
        return rng.random(shape) < 0.5
    if dt.kind in "iu":
        lo = max(int(low), int(np.iinfo(dt).min))
        return np.asarray(rng.integers(lo, max(int(high), lo + 1) + 1, shape)).astype(dt)
    if dt.kind == "c":
        return np.asarray(rng.uniform(low, high, shape) + 1j * rng.uniform(low, high, shape)).astype(dt)
    return np.asarray(rng.uniform(low, high, shape)).astype(dt)


def elementwise(
    name: str,
    numpy: Callable[..., Any],
    arity: int = 1,
    kinds: str = "f",
    result: str = "same",
    decompose: Callable[..., Any] | None = None,
    low: float = -4,
    high: float = 4,
    flops: int = 1,
) -> None:
    """Declares an elementwise op over ``arity`` operands; ``low``..``high`` is the domain its samples are drawn
    from."""
    KINDS[name], RESULT[name] = kinds, result

    def cost(ins: Any, outs: Any, attrs: Any) -> Cost:
        return Cost(product(outs[0].shape) * flops, sum((t.nbytes for t in [*ins, *outs]), 0))

    op(
        name,
        ["x", "x y", "x y z"][arity - 1],
        infer=_rule(name, kinds, result),
        numpy=numpy,
        category="elementwise",
        level="core" if decompose is None else "macro",
        decompose=decompose,
        cost=cost,
        samples=_samples(arity, kinds, low, high),
    )


def _vec(f: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts a scalar double function over arrays, in double, cast back."""
    g = np.vectorize(f, otypes=[np.float64])

    def run(*xs: np.ndarray[Any, Any]) -> Any:
        return g(*xs).astype(xs[0].dtype) if xs[0].size else np.zeros(np.broadcast(*xs).shape, xs[0].dtype)

    return run


def _scipy(name: str) -> Callable[..., Any]:
    def run(*xs: np.ndarray[Any, Any]) -> Any:
        import scipy.special

        return np.asarray(getattr(scipy.special, name)(*(x.astype(np.float64) for x in xs))).astype(xs[0].dtype)

    return run


def _sign(x: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind == "b":
        return x
    return np.where(np.isnan(x), x.dtype.type(0), np.sign(x)).astype(x.dtype) if x.dtype.kind == "f" else np.sign(x)


def _floor_div(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind in "iu":
        return np.floor_divide(x, y)
    m = np.fmod(x, y)  # PyTorch's div_floor_floating
    d = (x - m) / y
    d = np.where((m != 0) & ((y < 0) != (m < 0)), d - 1, d)
    f = np.floor(d)
    f = np.where(d - f > 0.5, f + 1, f)
    f = np.where(d == 0, np.copysign(np.zeros_like(d), x / y), f)
    return np.where(y == 0, x / y, f).astype(x.dtype)


def _trunc_div(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind not in "iu":
        return np.trunc(x / y)
    q = np.floor_divide(x, y)
    return (q + ((np.remainder(x, y) != 0) & ((x < 0) != (y < 0)))).astype(x.dtype)


def _remainder(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind in "iu":
        return np.remainder(x, y)
    m = np.fmod(x, y)
    return np.where((m != 0) & ((y < 0) != (m < 0)), m + y, m).astype(x.dtype)


def _sgn(x: np.ndarray[Any, Any]) -> Any:
    a = np.abs(x)
    return np.where(a == 0, 0, x / np.where(a == 0, 1, a)).astype(x.dtype)


def _int_pow(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind not in "iu":
        return np.power(x, y)
    out = np.power(x, np.maximum(y, 0)).astype(x.dtype)  # wraps
    negative = np.where(x == 1, 1, np.where(x == -1, np.where(y % 2 == 0, 1, -1), 0)) if x.dtype.kind == "i" else out
    return np.where(y < 0, negative, out).astype(x.dtype)


def _shift(f: Callable[..., Any], fill: Callable[[Any], Any]) -> Callable[..., Any]:
    def run(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        bits = x.dtype.itemsize * 8
        ok = (y >= 0) & (y < bits)
        return np.where(ok, f(x, np.where(ok, y, 0)), fill(x)).astype(x.dtype)

    return run


def _logaddexp(b: Any, x: Any, y: Any) -> Any:
    m = b.op("maximum", x, y)
    d = b.op("neg", b.op("abs", b.op("sub", x, y)))
    same = b.op("logical_and", b.op("eq", x, y), b.op("eq", b.op("abs", x), b.constant(math.inf, x.dtype)))
    return b.op("where", same, x, b.op("add", m, b.op("log1p", b.op("exp", d))))


_PLAIN: list[tuple[str, Any, str]] = [
    ("neg", np.negative, "fci"),
    ("abs", np.abs, "fi"),
    ("sign", _sign, "fib"),
    ("ceil", np.ceil, "f"),
    ("floor", np.floor, "f"),
    ("round", np.rint, "f"),
    ("trunc", np.trunc, "f"),
    ("exp", np.exp, "fc"),
    ("exp2", np.exp2, "f"),
    ("expm1", np.expm1, "f"),
    ("sin", np.sin, "fc"),
    ("cos", np.cos, "fc"),
    ("tan", np.tan, "fc"),
    ("atan", np.arctan, "fc"),
    ("sinh", np.sinh, "fc"),
    ("cosh", np.cosh, "fc"),
    ("tanh", np.tanh, "fc"),
    ("asinh", np.arcsinh, "fc"),
    ("erf", _scipy("erf"), "f"),
    ("erfc", _scipy("erfc"), "f"),
    ("reciprocal", np.reciprocal, "fc"),
]
for _name, _f, _kinds in _PLAIN:
    elementwise(_name, _f, kinds=_kinds)
_BOUNDED: list[tuple[str, Any, float, float, str]] = [
    ("log", np.log, 1e-3, 8, "fc"),
    ("log1p", np.log1p, -0.9, 8, "f"),
    ("log2", np.log2, 1e-3, 8, "fc"),
    ("log10", np.log10, 1e-3, 8, "fc"),
    ("sqrt", np.sqrt, 0, 8, "fc"),
    ("rsqrt", lambda x: 1 / np.sqrt(x), 1e-3, 8, "fc"),
    ("asin", np.arcsin, -1, 1, "fc"),
    ("acos", np.arccos, -1, 1, "fc"),
    ("acosh", np.arccosh, 1, 8, "fc"),
    ("atanh", np.arctanh, -0.99, 0.99, "fc"),
    ("erfinv", _scipy("erfinv"), -0.99, 0.99, "f"),
    ("lgamma", _scipy("gammaln"), 0.1, 9, "f"),
    ("digamma", _scipy("digamma"), 0.1, 9, "f"),
]
for _name, _f, _low, _high, _kinds in _BOUNDED:
    elementwise(_name, _f, kinds=_kinds, low=_low, high=_high)


def _sigmoid(x: np.ndarray[Any, Any]) -> Any:
    return (1 / (1 + np.exp(-x))).astype(x.dtype)


elementwise("sigmoid", _sigmoid, kinds="fc")
elementwise("sgn", _sgn, kinds="c")
elementwise("conj", np.conj, kinds="c")
elementwise("cabs", np.abs, kinds="c", result="real")
elementwise("angle", np.angle, kinds="c", result="real")
elementwise("isnan", np.isnan, kinds="fc", result="bool")
elementwise("isinf", np.isinf, kinds="fc", result="bool")
elementwise("isfinite", np.isfinite, kinds="fc", result="bool")
elementwise("signbit", np.signbit, kinds="f", result="bool")
elementwise("logical_not", np.logical_not, kinds="fcib", result="bool")
elementwise("bitwise_not", np.invert, kinds="ib")

elementwise("add", np.add, 2, "fci")
elementwise("sub", np.subtract, 2, "fci")
elementwise("mul", np.multiply, 2, "fcib")
elementwise("div", np.true_divide, 2, "fc")
elementwise("floor_div", _floor_div, 2, "fi", low=1)
elementwise("trunc_div", _trunc_div, 2, "fi", low=1)
elementwise("fmod", np.fmod, 2, "fi", low=1)
elementwise("remainder", _remainder, 2, "fi", low=1)
elementwise("pow", _int_pow, 2, "fci", low=0.1, high=5)
elementwise("maximum", np.maximum, 2, "fib")
elementwise("minimum", np.minimum, 2, "fib")
elementwise("fmax", np.fmax, 2, "f")
elementwise("fmin", np.fmin, 2, "f")
elementwise("atan2", np.arctan2, 2, "f")
elementwise("hypot", np.hypot, 2, "f")
elementwise("copysign", np.copysign, 2, "f")
elementwise("nextafter", np.nextafter, 2, "f")
elementwise("eq", np.equal, 2, "fcib", "bool")
elementwise("ne", np.not_equal, 2, "fcib", "bool")
elementwise("lt", np.less, 2, "fib", "bool")
elementwise("le", np.less_equal, 2, "fib", "bool")
elementwise("gt", np.greater, 2, "fib", "bool")
elementwise("ge", np.greater_equal, 2, "fib", "bool")
elementwise("logical_and", np.logical_and, 2, "fcib", "bool")
elementwise("logical_or", np.logical_or, 2, "fcib", "bool")
elementwise("logical_xor", np.logical_xor, 2, "fcib", "bool")
elementwise("bitwise_and", np.bitwise_and, 2, "ib")
elementwise("bitwise_or", np.bitwise_or, 2, "ib")
elementwise("bitwise_xor", np.bitwise_xor, 2, "ib")
elementwise("shl", _shift(np.left_shift, lambda x: 0), 2, "i", low=0)
elementwise("shr", _shift(np.right_shift, lambda x: np.where(x < 0, -1, 0)), 2, "i", low=0)
elementwise("gcd", np.gcd, 2, "i")
elementwise("lcm", np.lcm, 2, "i")
elementwise("logaddexp", np.logaddexp, 2, "f", decompose=_logaddexp)


def _where_infer(c: TensorType, x: TensorType, y: TensorType) -> TensorType:
    require(c.dtype.is_bool, f"the condition must be bool, not {c.dtype}")
    require(x.dtype is y.dtype, f"branches have different dtypes: {x.dtype}, {y.dtype}")
    return TensorType(x.dtype, broadcast_shapes(c.shape, x.shape, y.shape))


def _where_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.int64, np.bool_, np.complex64):
        yield Sample((rng.random((3, 1, 5)) < 0.5, random_array(rng, (4, 5), dt), random_array(rng, (1,), dt)))
        yield Sample((rng.random((0, 5)) < 0.5, random_array(rng, (0, 5), dt), random_array(rng, (), dt)))


op(
    "where", "condition x y", infer=_where_infer, numpy=np.where, category="elementwise", samples=_where_samples,
    moves=True,
)  # fmt: skip


def _convert(x: np.ndarray[Any, Any], *, dtype: DType) -> Any:
    if x.dtype.kind == "c" and not dtype.is_complex:
        x = x.real if not dtype.is_bool else x != 0
    x = x.astype(DType.from_np(x.dtype).compute.np)  # exact, and ml_dtypes has no casts between some of its types
    if dtype.is_bool:
        return x != 0
    if dtype.is_int:
        if x.dtype.kind not in "iub":  # out of range is undefined in C and PyTorch; wrap through i64
            with np.errstate(invalid="ignore"):
                x = np.nan_to_num(x.astype(np.float64), nan=0.0).astype(np.int64)
        return x.astype(dtype.np)
    if dtype.is_float and dtype.bits <= 8:
        with np.errstate(over="ignore"):
            x = np.asarray(x.astype(np.float32))
        if dtype is DType.f8e4m3:
            x = np.clip(x, -448, 448)
        if dtype is DType.f8e8m0:
            size = np.abs(x).view(np.uint32)
            size = (size + np.uint32(0x3FFFFF) + (size > 0x7FFFFF)) >> 23
            return np.minimum(size, 255).astype(np.uint8).view(dtype.np)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype.np)


def conversion_values(rng: np.random.Generator, src: DType, dst: DType) -> np.ndarray[Any, Any]:
    """Values of ``src`` that try a conversion to ``dst``: all of a type of 8 bits or less, else those of ``dst``, half
    way between them, next to that, too large, random ones and the special ones. None that no type rule covers: floats
    far outside an integer's range."""
    if src.bits <= 8 and src not in (DType.bool, DType.u8, DType.i8):
        x = np.arange(2**src.bits).astype(np.uint8).view(src.np)
    elif src.is_bool:
        x = rng.random(9) < 0.5
    elif src.is_int:
        ends = np.iinfo(src.np)
        small = np.arange(-20 if src.is_signed else 0, 21).astype(src.np)
        both = np.array([ends.min, ends.max], src.np)
        x = np.concatenate([small, both, rng.integers(ends.min, ends.max, 21, src.np, endpoint=True)])
    else:
        v = np.arange(-20, 20, 0.25)
        if dst.is_float and dst.bits <= 8:
            v = np.arange(2**dst.bits).astype(np.uint8).view(dst.np).astype(np.float64)
            v = np.unique(v[np.isfinite(v)])
        half = (0.5 * (v[1:] + v[:-1])).astype(np.float32)
        out = np.float32(np.inf)
        near = [half, np.nextafter(half, out), np.nextafter(half, -out), 1.0625 * v[[0, -1]], 1.25 * v[[0, -1]]]
        special = [0, -0.0, np.inf, -np.inf, np.nan, 1e-9, -1e-9, 3e38, -3e38, *rng.uniform(-9, 9, 50)]
        with np.errstate(over="ignore"):
            x = np.concatenate([v, *near, special]).astype(src.np)
    if not dst.is_float and not dst.is_bool and src.is_float:
        wide = x.astype(np.float64)
        x = x[np.abs(np.where(np.isfinite(wide), wide, np.inf)) < 1 << 20]
    return x


def _convert_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for src in (np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_):
        for dst in (DType.f32, DType.f64, DType.f16, DType.bf16, DType.i64, DType.i32, DType.u8, DType.bool, DType.c64):
            yield Sample((random_array(rng, (3, 19), src, 0, 90),), {"dtype": dst})
    real = [d for d in DType if not d.is_complex]
    for a in real:
        for b in real:
            if a is not b and (a.is_storage or b.is_storage or (a.is_float and b in (DType.f8e4m3, DType.f8e5m2))):
                yield Sample((conversion_values(rng, a, b),), {"dtype": b})


op(
    "convert",
    "x",
    {"dtype": DType},
    infer=lambda x, *, dtype: x.with_dtype(dtype),
    numpy=_convert,
    category="elementwise",
    moves=True,
    samples=_convert_samples,
    doc="Value-preserving cast, as in PyTorch; float to int truncates, int to int keeps the low bits, anything to bool "
    "is != 0. Floats round to nearest, ties to even; f64 goes to types of 8 bits and less by way of f32. What is too "
    "large, infinity included, becomes the largest value in f8e4m3 and f4e2m1, infinity in f8e5m2, NaN in f8e4m3fnuz, "
    "f8e5m2fnuz and f8e8m0. NaN becomes a zero in f4e2m1. f8e8m0 rounds half up and takes the magnitude; zero and what "
    "is smaller than 2^-127 become that. `effc.ir.casts` has the other ways to round and saturate.",
)


def _bitcast_infer(x: TensorType, *, dtype: DType) -> TensorType:
    require(x.dtype.itemsize == dtype.itemsize, f"cannot reinterpret {x.dtype} as {dtype}: sizes differ")
    return x.with_dtype(dtype)


def _bitcast_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for a, b in [("f32", "i32"), ("i64", "f64"), ("bf16", "u16"), ("f8e5m2", "i8")]:
        x = rng.integers(0, 256, (5, DType(a).itemsize * 3)).astype(np.uint8)
        yield Sample((x.view(DType(a).np),), {"dtype": DType(b)})
    for narrow in [d for d in DType if d.is_storage]:
        bits = np.arange(2**narrow.bits).astype(np.uint8)
        yield Sample((bits.view(narrow.np),), {"dtype": DType.u8})
        yield Sample((bits,), {"dtype": narrow})


op(
    "bitcast",
    "x",
    {"dtype": DType},
    infer=_bitcast_infer,
    category="view",
    samples=_bitcast_samples,
    numpy=lambda x, *, dtype: np.ascontiguousarray(x).reshape(x.shape).view(dtype.np),
    doc="Same bytes, another dtype of equal size.",
)


def _complex_infer(re: TensorType, im: TensorType) -> TensorType:
    out = {DType.f32: DType.c64, DType.f64: DType.c128, DType.f16: DType.c32}.get(re.dtype)
    require(out is not None and re.dtype is im.dtype, f"needs two f32 or two f64, got {re.dtype}, {im.dtype}")
    assert out is not None
    return TensorType(out, broadcast_shapes(re.shape, im.shape))


def _complex(re: np.ndarray[Any, Any], im: np.ndarray[Any, Any]) -> Any:
    shape = np.broadcast(re, im).shape
    out = np.empty(shape, np.complex64 if re.dtype != np.float64 else np.complex128)
    out.real, out.imag = re, im
    return out


op(
    "complex",
    "re im",
    infer=_complex_infer,
    numpy=_complex,
    category="elementwise",
    samples=lambda rng: [
        Sample((random_array(rng, (3, 5), d), random_array(rng, (5,), d))) for d in (np.float32, np.float64)
    ],
)
