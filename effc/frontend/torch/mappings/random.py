"""Random numbers: dtype, shape and distribution are torch's, the bits are not."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import HALVES, Context
from ..registry import Unsupported, aten


def _work(dt: DType) -> DType:
    return DType.f32 if dt in HALVES else dt


def uniform(cx: Context, lo: float = 0.0, hi: float = 1.0) -> Value:
    out = cx.out
    if out.dtype.is_complex:
        part = out.dtype.real
        a, b = (cx.b.op("rand_uniform", lo=lo, hi=hi, shape=out.shape, dtype=_work(part)) for _ in range(2))
        return cx.op("complex", cx.convert(a, part), cx.convert(b, part))
    return cx.convert(cx.b.op("rand_uniform", lo=lo, hi=hi, shape=out.shape, dtype=_work(out.dtype)), out.dtype)


def normal(cx: Context, mean: float = 0.0, std: float = 1.0) -> Value:
    out = cx.out
    if out.dtype.is_complex:  # unit variance in all
        part = out.dtype.real
        a, b = (
            cx.b.op("rand_normal", mean=mean, std=std * 0.5**0.5, shape=out.shape, dtype=_work(part)) for _ in range(2)
        )
        return cx.op("complex", cx.convert(a, part), cx.convert(b, part))
    return cx.convert(cx.b.op("rand_normal", mean=mean, std=std, shape=out.shape, dtype=_work(out.dtype)), out.dtype)


@aten("rand", "rand_like")
def _rand(cx: Context, *_: Any, **__: Any) -> Value:
    return uniform(cx)


@aten("randn", "randn_like")
def _randn(cx: Context, *_: Any, **__: Any) -> Value:
    return normal(cx)


@aten("uniform", "prims::_uniform_helper")
def _uniform(cx: Context, x: Any, *args: Any, low: float = 0.0, high: float = 1.0, **kwargs: Any) -> Value:
    lo = args[0] if args else kwargs.get("from", low)
    hi = args[1] if len(args) > 1 else kwargs.get("to", high)
    return uniform(cx, float(lo), float(hi))


@aten("normal_functional")
def _normal_functional(cx: Context, x: Value, mean: float = 0.0, std: float = 1.0, **_: Any) -> Value:
    return normal(cx, float(mean), float(std))


@aten("prims::normal")
def _prims_normal(cx: Context, shape: Any, *, mean: Any, std: Any, **_: Any) -> Value:
    return normal(cx, float(mean), float(std))


@aten("normal")
def _normal(cx: Context, mean: Any, std: Any = 1.0, *rest: Any, **_: Any) -> Value:
    out = cx.out
    if not isinstance(mean, Value) and not isinstance(std, Value):
        return normal(cx, float(mean), float(std))
    z = normal(cx)
    z = cx.mul(z, cx.scalar(std, out.dtype))
    return cx.broadcast(cx.add(z, cx.scalar(mean, out.dtype)), out.shape)


@aten("randint", "randint_like", "randint.low", "randint_like.low_dtype", "randint.default")
def _randint(cx: Context, *args: Any, **_: Any) -> Value:
    name = str(cx.fx.target)
    args = args[1:] if "like" in name else args
    low = 0 if ".low" not in name else args[0]
    high = args[1] if ".low" in name else args[0]
    if isinstance(high, Value) or isinstance(low, Value):
        raise Unsupported("bounds given as tensors")
    out = cx.out
    y = cx.b.op("rand_int", lo=cx.dim(low), hi=cx.dim(high), shape=out.shape, dtype=DType.i64)
    return cx.convert(y, out.dtype)


@aten("random", "random.from", "random.to")
def _random(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
    lo, hi = 0, None
    if len(args) == 1:
        hi = args[0]
    elif len(args) == 2:
        lo, hi = args
    if hi is None:
        bits = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}.get(x.dtype.value)
        hi = (
            (1 << bits) + 1
            if bits
            else (2 if x.dtype.is_bool else 1 << (8 * x.dtype.itemsize - int(x.dtype.is_signed)))
        )
        hi = min(hi, (1 << 63) - 1)
    return cx.convert(cx.b.op("rand_int", lo=lo, hi=hi, shape=cx.out.shape, dtype=DType.i64), x.dtype)


@aten("randperm")
def _randperm(cx: Context, n: Any, **_: Any) -> Value:
    return cx.convert(cx.b.op("randperm", n=cx.dim(n), dtype=DType.i64), cx.out.dtype)


@aten("bernoulli", "bernoulli.p", "bernoulli.Tensor")
def _bernoulli(cx: Context, x: Value, p: Any = None, **_: Any) -> Value:
    if p is None:
        prob = x
    elif isinstance(p, Value):
        prob = cx.broadcast(p, x.shape)
    else:
        prob = cx.broadcast(cx.const(float(p), DType.f32), x.shape)
    prob = cx.convert(prob, DType.f32) if prob.dtype not in (DType.f32, DType.f64) else prob
    return cx.convert(cx.op("bernoulli", prob, dtype=DType.f32), cx.out.dtype)


@aten("multinomial")
def _multinomial(cx: Context, weights: Value, num_samples: Any, replacement: bool = False, **_: Any) -> Value:
    w = cx.opmath(weights)
    return cx.op("multinomial", w, samples=cx.dim(num_samples), replacement=replacement)


def _drawn(ir: str, *names: str) -> Any:
    def f(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
        out = cx.out
        attrs = {n: float(v) for n, v in zip(names, args, strict=False)}
        torch_names = {"rate": "lambd", "scale": "sigma"}
        for n in names:
            key = torch_names.get(n, n)
            if key in kwargs:
                attrs[n] = float(kwargs[key])
        dt = out.dtype if not (out.dtype in HALVES or (ir != "geometric" and not out.dtype.is_float)) else DType.f32
        return cx.convert(cx.b.op(ir, shape=out.shape, dtype=dt, **attrs), out.dtype)

    return f


aten("exponential")(_drawn("exponential", "rate"))
aten("geometric")(_drawn("geometric", "p"))
aten("cauchy")(_drawn("cauchy", "median", "scale"))
aten("log_normal")(_drawn("log_normal", "mean", "std"))


@aten("poisson")
def _poisson(cx: Context, rate: Value, *_: Any, **__: Any) -> Value:
    return cx.convert(cx.op("poisson", cx.opmath(rate)), rate.dtype)


@aten("_standard_gamma")
def _standard_gamma(cx: Context, alpha: Value, *_: Any, **__: Any) -> Value:
    return cx.convert(cx.op("gamma", cx.opmath(alpha)), alpha.dtype)


@aten("_sample_dirichlet")
def _dirichlet(cx: Context, alpha: Value, *_: Any, **__: Any) -> Value:
    g = cx.op("gamma", cx.opmath(alpha))
    return cx.convert(cx.div(g, cx.reduce("sum", g, (g.rank - 1,), True)), alpha.dtype)


@aten("binomial")
def _binomial(cx: Context, count: Value, prob: Value, *_: Any, **__: Any) -> Value:
    shape = cx.out.shape
    y = cx.op("binomial", cx.broadcast(cx.opmath(count), shape), cx.broadcast(cx.opmath(prob), shape))
    return cx.convert(y, cx.out.dtype)


def keep_mask(cx: Context, x: Value, p: float) -> Value:
    """True with probability 1 - p, per element."""
    prob = cx.broadcast(cx.const(1.0 - p, DType.f32), x.shape)
    return cx.op("bernoulli", prob, dtype=DType.bool)


@aten("native_dropout")
def _native_dropout(cx: Context, x: Value, p: float, train: bool | None) -> tuple[Value, Value]:
    if not train or p == 0:
        return x, cx.full(True, x.shape, DType.bool)
    mask = keep_mask(cx, x, p)
    if p == 1:
        return cx.full(0.0, x.shape, x.dtype), mask
    return cx.where(mask, cx.mul(x, 1 / (1 - p)), cx.const(0, x.dtype)), mask


@aten("rrelu_with_noise_functional", "rrelu_with_noise")
def _rrelu(
    cx: Context,
    x: Value,
    noise: Value,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Any:
    v = cx.opmath(x)
    if training:
        slope: Any = cx.convert(
            cx.b.op("rand_uniform", lo=float(lower), hi=float(upper), shape=x.shape, dtype=_work(x.dtype)), v.dtype
        )
    else:
        slope = cx.const((lower + upper) / 2, v.dtype)
    positive = cx.op("gt", v, 0)
    y = cx.convert(cx.where(positive, v, cx.mul(v, slope)), x.dtype)
    if len(cx.expected) == 1:
        return y
    return y, cx.convert(cx.broadcast(cx.where(positive, cx.const(1.0, v.dtype), slope), x.shape), noise.dtype)
