"""Reductions, softmax and norms of vectors."""

from __future__ import annotations

import math
from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten


def reduced(x: Value, dims: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    return tuple(1 if i in dims else s for i, s in enumerate(x.shape) if keepdims or i not in dims)


@aten("sum", "sum.default", "prims::sum")
def _sum(cx: Context, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **_: Any) -> Value:
    return _total(cx, "sum", cx.convert(x, cx.out.dtype), cx.axes(dim, x.rank), keepdim)


def _total(cx: Context, kind: str, y: Value, dims: tuple[int, ...], keepdim: bool) -> Value:
    """A sum or product in y's dtype; of booleans (dtype=torch.bool) that is whether any or all are true."""
    return cx.reduce({"sum": "any", "prod": "all"}[kind] if y.dtype.is_bool else kind, y, dims, keepdim)


@aten("nansum")
def _nansum(cx: Context, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    y = cx.convert(x, cx.out.dtype)
    if x.dtype.is_float:
        y = cx.where(cx.op("isnan", x), cx.const(0, y.dtype), y)
    return _total(cx, "sum", y, cx.axes(dim, x.rank), keepdim)


@aten("mean")
def _mean(cx: Context, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    dims = cx.axes(dim, x.rank)
    out = cx.out.dtype
    return cx.convert(cx.mean(cx.opmath(cx.convert(x, out)), dims, keepdim), out)


@aten("nanmean")
def _nanmean(cx: Context, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    out = cx.out.dtype
    dims = cx.axes(dim, x.rank)
    v = cx.convert(x, out.compute)
    nan = cx.op("isnan", v)
    total = cx.reduce("sum", cx.where(nan, cx.const(0, v.dtype), v), dims, keepdim)
    return cx.convert(
        cx.div(total, cx.reduce("sum", cx.convert(cx.op("logical_not", nan), v.dtype), dims, keepdim)), out
    )


@aten("prod", "prod.default")
def _prod(cx: Context, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return _total(cx, "prod", cx.convert(x, cx.out.dtype), cx.axes(dim, x.rank), keepdim)


def _truth(cx: Context, x: Value) -> Value:
    return x if x.dtype.is_bool else cx.op("ne", x, 0)


def _logical(kind: str) -> Any:
    def f(cx: Context, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        dims = cx.axes(dim, x.rank)
        if isinstance(dim, (list, tuple)) and not dim and cx.out.rank == x.rank:
            dims = ()
        y = _truth(cx, x)
        y = cx.reduce(kind, y, dims, keepdim) if dims else y
        return cx.convert(y, cx.out.dtype)

    return f


aten("any")(_logical("any"))
aten("all")(_logical("all"))


@aten("count_nonzero")
def _count_nonzero(cx: Context, x: Value, dim: Any = None) -> Value:
    return cx.reduce("sum", cx.convert(_truth(cx, x), DType.i64), cx.axes(dim, x.rank))


def extreme(cx: Context, kind: str, x: Value, dims: tuple[int, ...], keepdim: bool) -> Value:
    if not dims:
        return x
    if x.dtype.is_bool:
        return cx.reduce("any" if kind == "max" else "all", x, dims, keepdim)
    return cx.reduce(kind, x, dims, keepdim)


def _amax(kind: str) -> Any:
    def f(cx: Context, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        return extreme(cx, kind, x, cx.axes(dim, x.rank), keepdim)

    return f


aten("amax")(_amax("max"))
aten("amin")(_amax("min"))


@aten("aminmax")
def _aminmax(cx: Context, x: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    dims = cx.axes(dim, x.rank)
    low, high = extreme(cx, "min", x, dims, keepdim), extreme(cx, "max", x, dims, keepdim)
    if dim is None and keepdim:
        shape = (1,) * x.rank
        return cx.reshape(low, shape), cx.reshape(high, shape)
    return low, high


def arg_extreme(cx: Context, kind: str, x: Value, dim: int, keepdim: bool) -> Value:
    if x.rank == 0:
        return cx.const(0, DType.i64)
    v = cx.convert(x, DType.u8) if x.dtype.is_bool else x
    return cx.reduce("arg" + kind, v, (dim,), keepdim)


def _max(kind: str) -> Any:
    def f(cx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return extreme(cx, kind, x, cx.axes(None, x.rank), False)
        if x.rank == 0:
            return x, cx.const(0, DType.i64)
        d = cx.axis(dim, x.rank)
        index = arg_extreme(cx, kind, x, d, True)
        best = extreme(cx, kind, x, (d,), keepdim)
        return best, index if keepdim else cx.squeeze(index, d)

    return f


aten("max", "max.dim")(_max("max"))
aten("min", "min.dim")(_max("min"))


def _arg(kind: str) -> Any:
    def f(cx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is not None:
            return arg_extreme(cx, kind, x, cx.axis(dim, x.rank), keepdim)
        flat = cx.reshape(x, (D.product(x.shape),))
        return cx.reshape(arg_extreme(cx, kind, flat, 0, False), cx.out.shape)

    return f


aten("argmax")(_arg("max"))
aten("argmin")(_arg("min"))


# Variance ------------------------------------------------------------------------------------------------------------


def variance(cx: Context, x: Value, dims: tuple[int, ...], correction: Any, keepdim: bool) -> tuple[Value, Value]:
    """Two-pass variance and mean in the op-math type; complex input has the real variance of both parts."""
    mean = cx.mean(x, dims, True)
    d = cx.sub(x, mean)
    if x.dtype.is_complex:
        re, im = cx.op("real", d), cx.op("imag", d)
        square = cx.add(cx.mul(re, re), cx.mul(im, im))
    else:
        square = cx.mul(d, d)
    total = cx.reduce("sum", square, dims, keepdim)
    n = cx.count(x, dims)
    if isinstance(n, int) and isinstance(correction, (int, float)):
        free = max(float(n) - correction, 0.0)
        var = cx.div(total, cx.const(free, total.dtype))
    else:
        free_v = cx.op("sub", cx.scalar(n, total.dtype), cx.scalar(correction, total.dtype))
        var = cx.div(total, cx.op("maximum", free_v, 0.0))
    return var, mean if keepdim else cx.reshape(mean, reduced(x, dims, False))


def _correction(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int) -> tuple[Any, Any, bool]:
    """(dim, correction, keepdim) of both overload families: (unbiased), (dim, unbiased, keepdim), (dim, *,
    correction, keepdim).
    """
    args = tuple(args)
    if args and isinstance(args[0], bool):
        return None, int(args[0]), False
    dim = args[0] if args else kwargs.get("dim")
    if len(args) > 1:
        return dim, int(args[1]), bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    if "unbiased" in kwargs:
        return dim, int(kwargs["unbiased"]), bool(kwargs.get("keepdim", False))
    c = kwargs.get("correction")
    return dim, 1 if c is None else c, bool(kwargs.get("keepdim", False))


def _var(root: bool, with_mean: bool) -> Any:
    def f(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        dim, correction, keepdim = _correction(args, kwargs, x.rank)
        first = cx.expected[0]
        assert first is not None
        var, mean = variance(cx, cx.opmath(x), cx.axes(dim, x.rank), correction, keepdim)
        if root:
            var = cx.op("sqrt", var)
        var = cx.convert(var, first.dtype)
        return (var, cx.convert(mean, x.dtype)) if with_mean else var

    return f


aten("var")(_var(False, False))
aten("std")(_var(True, False))
aten("var_mean")(_var(False, True))
aten("std_mean")(_var(True, True))


# Softmax -------------------------------------------------------------------------------------------------------------


def softmax(cx: Context, x: Value, dim: int, log: bool = False) -> Value:
    """Softmax of a float value in its own dtype."""
    if x.rank == 0:
        return cx.mul(cx.sub(x, x), 0.0) if log else cx.op("exp", cx.sub(x, x))
    if x.shape[dim] == 0:
        return x
    z = cx.sub(x, cx.reduce("max", x, (dim,), True))
    e = cx.op("exp", z)
    total = cx.reduce("sum", e, (dim,), True)
    return cx.sub(z, cx.op("log", total)) if log else cx.div(e, total)


def _softmax(log: bool) -> Any:
    def f(cx: Context, x: Value, dim: int, half_to_float: bool = False, **_: Any) -> Value:
        out = cx.out.dtype
        return cx.convert(softmax(cx, cx.convert(x, out.compute), cx.axis(dim, x.rank), log), out)

    return f


aten("_softmax", "_safe_softmax_whole")(_softmax(False))
aten("_log_softmax")(_softmax(True))


@aten("_safe_softmax")
def _safe_softmax(cx: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    out = cx.out.dtype
    v = cx.convert(x, out.compute)
    d = cx.axis(dim, x.rank)
    y = softmax(cx, v, d)
    masked = cx.reduce("all", cx.op("eq", v, -math.inf), (d,), True) if x.rank else cx.op("eq", v, -math.inf)
    return cx.convert(cx.where(masked, cx.const(0.0, y.dtype), y), out)


@aten("logsumexp")
def _logsumexp(cx: Context, x: Value, dim: Any, keepdim: bool = False) -> Value:
    dims = cx.axes(dim, x.rank)
    out = cx.out.dtype
    v = cx.convert(x, out.compute)
    if not dims:
        if v.dtype.is_complex:  # the logarithm wraps the imaginary part
            scale = cx.convert(cx.op("real", v), v.dtype)
            v = cx.add(cx.op("log", cx.op("exp", cx.sub(v, scale))), scale)
        return cx.convert(v, out)
    if v.dtype.is_complex:
        m: Any = cx.reduce("max", cx.op("real", v), dims, True)
    elif any(x.shape[d] == 0 for d in dims):
        return cx.full(-math.inf, cx.out.shape, out)
    else:
        m = cx.reduce("max", v, dims, True)
    m = cx.where(cx.op("isinf", m), cx.const(0.0, m.dtype), m)
    shifted = cx.sub(v, cx.convert(m, v.dtype))
    y = cx.op("log", cx.reduce("sum", cx.op("exp", shifted), dims, keepdim))
    m2 = m if keepdim else cx.reshape(m, reduced(x, dims, False))
    return cx.convert(cx.add(y, cx.convert(m2, y.dtype)), out)


# Norms ---------------------------------------------------------------------------------------------------------------


def magnitude(cx: Context, x: Value) -> Value:
    return cx.op("cabs", x) if x.dtype.is_complex else cx.op("abs", x)


def vector_norm(cx: Context, x: Value, ord: Any, dims: tuple[int, ...], keepdim: bool) -> Value:
    """The p-norm in x's (real) dtype; x is float or complex in its op-math type."""
    a = magnitude(cx, x)
    if ord == 0:
        return cx.reduce("sum", cx.convert(cx.op("ne", a, 0), a.dtype), dims, keepdim)
    if not dims:
        return a
    if ord in (math.inf, -math.inf):
        if any(x.shape[d] == 0 for d in dims):
            return cx.full(0.0 if ord > 0 else math.inf, reduced(x, dims, keepdim), a.dtype)
        return cx.reduce("max" if ord > 0 else "min", a, dims, keepdim)
    if ord == 1:
        return cx.reduce("sum", a, dims, keepdim)
    if ord == 2:
        if x.dtype.is_complex:
            re, im = cx.op("real", x), cx.op("imag", x)
            square = cx.add(cx.mul(re, re), cx.mul(im, im))
        else:
            square = cx.mul(x, x)
        return cx.op("sqrt", cx.reduce("sum", square, dims, keepdim))
    total = cx.reduce("sum", cx.op("pow", a, float(ord)), dims, keepdim)
    return cx.op("pow", total, 1.0 / ord)


@aten("linalg_vector_norm")
def _vector_norm(
    cx: Context, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    out = cx.out.dtype
    work = out.compute
    if x.dtype.is_complex:
        work = {DType.f64: DType.c128}.get(work, DType.c64)
    dims = tuple(range(x.rank)) if dim is None else cx.axes(dim, x.rank)
    if isinstance(dim, (list, tuple)) and not dim:
        dims = tuple(range(x.rank))
    return cx.convert(vector_norm(cx, cx.convert(x, work), ord, dims, keepdim), out)


@aten("norm")
def _norm(cx: Context, x: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return _vector_norm(cx, x, 2 if p is None else p, dim, keepdim)  # type: ignore[no-any-return]


@aten("_cdist_forward")
def _cdist(cx: Context, x: Value, y: Value, p: float, compute_mode: int | None) -> Value:
    """Pairwise p-distances of [..., m, d] and [..., n, d]."""
    if x.dtype in (DType.f32, DType.f64):
        return cx.op("cdist", x, y, p=float(p))
    if x.shape[-1] == 0:
        return cx.full(0.0, cx.out.shape, x.dtype)
    diff = cx.sub(cx.unsqueeze(cx.opmath(x), -2), cx.unsqueeze(cx.opmath(y), -3))
    return cx.convert(vector_norm(cx, diff, p, (diff.rank - 1,), False), cx.out.dtype)


@aten("_pdist_forward")
def _pdist(cx: Context, x: Value, p: float = 2) -> Value:
    if x.dtype in (DType.f32, DType.f64):
        return cx.op("pdist", x, p=float(p))
    n = x.shape[0]
    if not isinstance(n, int):
        raise Unsupported("a dynamic number of rows")
    import numpy as np

    i, j = np.triu_indices(n, 1)
    if not len(i):
        return cx.full(0.0, cx.out.shape, x.dtype)
    a, b = (cx.op("take", x, cx.b.constant(k.astype(np.int64)), dim=0) for k in (i, j))
    return cx.convert(vector_norm(cx, cx.opmath(cx.sub(a, b)), p, (1,), False), cx.out.dtype)


@aten("renorm")
def _renorm(cx: Context, x: Value, p: Any, dim: int, maxnorm: Any) -> Value:
    v = cx.opmath(x)
    d = cx.axis(dim, x.rank)
    norm = vector_norm(cx, v, p, tuple(i for i in range(x.rank) if i != d), True)
    factor = cx.where(cx.op("gt", norm, maxnorm), cx.div(maxnorm, cx.add(norm, 1e-7)), cx.const(1.0, norm.dtype))
    return cx.convert(cx.mul(v, cx.convert(factor, v.dtype)), x.dtype)


@aten("hash_tensor")
def _hash_tensor(cx: Context, x: Value, dim: Any = (), *, keepdim: bool = False, mode: int = 0) -> Value:
    """Exclusive or of the elements as 64-bit patterns: the parity of each bit."""
    if mode != 0:
        raise Unsupported(f"mode {mode}")
    if x.dtype.is_complex:
        raise Unsupported("complex operands")
    wide = cx.op("bitcast", cx.convert(x, DType.f64), dtype=DType.i64) if x.dtype.is_float else cx.convert(x, DType.i64)
    place = cx.iota(64)
    bits = cx.op("bitwise_and", cx.op("shr", cx.unsqueeze(wide, -1), place), 1)
    dims = cx.axes(list(dim) if isinstance(dim, (list, tuple)) else dim, x.rank)
    parity = cx.op("bitwise_and", cx.reduce("sum", bits, dims, keepdim), 1)
    word = cx.reduce("sum", cx.op("shl", parity, place), (parity.rank - 1,))
    return cx.op("bitcast", word, dtype=DType.u64)  # type: ignore[no-any-return]
