"""Sorting, selection and cumulative operators."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def _zero_d(cx: Context, x: Value) -> tuple[Value, Value]:
    return x, cx.const(0, DType.i64)


def _sort_args(args: tuple[Any, ...], kwargs: dict[str, Any], stable_first: bool) -> tuple[int, bool, bool]:
    """(dim, descending, stable) of sort.default and sort.stable."""
    dim, descending = kwargs.get("dim", -1), kwargs.get("descending", False)
    if len(args) > 0:
        dim = args[0]
    if len(args) > 1:
        descending = args[1]
    return dim, bool(descending), bool(kwargs.get("stable", False))


@aten("sort")
def _sort(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    dim, descending, stable = _sort_args(args, kwargs, False)
    if x.rank == 0:
        return _zero_d(cx, x)
    return cx.op("sort", x, dim=cx.axis(dim, x.rank), descending=descending, stable=stable)


@aten("argsort")
def _argsort(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
    dim, descending, stable = _sort_args(args, kwargs, False)
    if x.rank == 0:
        return cx.const(0, DType.i64)
    return cx.op("sort", x, dim=cx.axis(dim, x.rank), descending=descending, stable=stable)[1]


@aten("topk")
def _topk(cx: Context, x: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if x.rank == 0:
        return _zero_d(cx, x) if k == 1 else (cx.full(0, (0,), x.dtype), cx.full(0, (0,), DType.i64))
    return cx.op("topk", x, k=cx.dim(k), dim=cx.axis(dim, x.rank), largest=largest, sorted=sorted)


@aten("kthvalue")
def _kthvalue(cx: Context, x: Value, k: Any, dim: int = -1, keepdim: bool = False) -> Any:
    if x.rank == 0:
        return _zero_d(cx, x)
    return cx.op("kthvalue", x, k=cx.dim(k), dim=cx.axis(dim, x.rank), keepdim=keepdim)


def _median(ignore_nan: bool) -> Any:
    def f(cx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            if x.shape and D.product(x.shape) == 0:
                return cx.full(float("nan") if x.dtype.is_float else -(2 ** (8 * x.dtype.itemsize - 1)), (), x.dtype)
            return cx.op("median", cx.reshape(x, (D.product(x.shape),)), dim=0, ignore_nan=ignore_nan)[0]
        if x.rank == 0:
            return _zero_d(cx, x)
        return cx.op("median", x, dim=cx.axis(dim, x.rank), keepdim=keepdim, ignore_nan=ignore_nan)

    return f


aten("median")(_median(False))
aten("nanmedian")(_median(True))


@aten("mode")
def _mode(cx: Context, x: Value, dim: int = -1, keepdim: bool = False) -> Any:
    if x.rank == 0:
        return _zero_d(cx, x)
    return cx.op("mode", x, dim=cx.axis(dim, x.rank), keepdim=keepdim)


def _running(ir: str) -> Any:
    def f(cx: Context, x: Value, dim: int, *, dtype: Any = None) -> Value:
        v = cx.convert(x, cx.out.dtype)
        if x.rank == 0:
            return v
        return cx.op(ir, v, dim=cx.axis(dim, x.rank))

    return f


for _name in ("cumsum", "cumprod", "logcumsumexp"):
    aten(_name)(_running(_name))


def _extreme(ir: str) -> Any:
    def f(cx: Context, x: Value, dim: int) -> Any:
        if x.rank == 0:
            return _zero_d(cx, x)
        v = cx.convert(x, DType.u8) if x.dtype.is_bool else x
        values, indices = cx.op(ir, v, dim=cx.axis(dim, x.rank))
        return cx.convert(values, x.dtype), indices

    return f


aten("cummax")(_extreme("cummax"))
aten("cummin")(_extreme("cummin"))


@aten("isin")
def _isin(cx: Context, elements: Any, test: Any, *, assume_unique: bool = False, invert: bool = False) -> Value:
    """Binary search in the sorted test elements; NaN is in nothing."""
    dt = cx.result_type(elements, test)
    e, t = cx.scalar(elements, dt), cx.scalar(test, dt)
    n = D.product(t.shape)
    if n == 0:
        return cx.full(invert, e.shape, DType.bool)
    t = cx.reshape(t, (n,))
    if isinstance(n, int) and n <= 16:
        hit = cx.reduce("any", cx.op("eq", cx.unsqueeze(e, -1), t), (e.rank,))
    else:
        line = cx.op("sort", t, dim=0)[0]
        at = cx.op("searchsorted", line, cx.reshape(e, (D.product(e.shape),)), dtype=DType.i64)
        at = cx.op("minimum", at, cx.scalar(n - 1, DType.i64))
        hit = cx.op("eq", cx.reshape(cx.op("take", line, at, dim=0), e.shape), e)
    return cx.op("logical_not", hit) if invert else hit
