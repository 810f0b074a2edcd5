"""Pooling. Input without a batch gets a batch of one."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten
from .conv import _tuple


def batched(cx: Context, x: Value, n: int) -> Value:
    return x if x.rank == n + 2 else cx.unsqueeze(x, 0)


def _back(cx: Context, y: Value, index: int = 0) -> Value:
    t = cx.expected[index]
    assert t is not None
    return cx.reshape(y, t.shape)


def _max_pool(n: int, indices: bool) -> Any:
    def f(
        cx: Context,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Any:
        k = _tuple(kernel, n)
        out = cx.expected[0]
        assert out is not None
        if 0 in out.shape:
            empty = cx.full(0, out.shape, x.dtype)
            return (empty, cx.full(0, out.shape, DType.i64)) if indices else empty
        y = cx.op(
            "max_pool",
            batched(cx, x, n),
            kernel=k,
            stride=_tuple(stride, n) if stride not in ((), [], None) else k,
            padding=tuple((p, p) for p in _tuple(padding, n)),
            dilation=_tuple(dilation, n),
            ceil_mode=ceil_mode,
            indices=indices,
        )
        return (_back(cx, y[0]), _back(cx, y[1], 1)) if indices else _back(cx, y)

    return f


for _n in (1, 2, 3):
    aten(f"max_pool{_n}d_with_indices")(_max_pool(_n, True))
    aten(f"max_pool{_n}d")(_max_pool(_n, False))


def _avg_pool(n: int) -> Any:
    def f(
        cx: Context,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        k = _tuple(kernel, n)
        if 0 in cx.out.shape:
            return cx.full(0, cx.out.shape, x.dtype)
        y = cx.op(
            "avg_pool",
            batched(cx, x, n),
            kernel=k,
            stride=_tuple(stride, n) if stride not in ((), [], None) else k,
            padding=tuple((p, p) for p in _tuple(padding, n)),
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor=divisor_override or 0,
        )
        return _back(cx, y)

    return f


for _n in (1, 2, 3):
    aten(f"avg_pool{_n}d")(_avg_pool(_n))


def _size(cx: Context, x: Value, size: Any, n: int) -> tuple[Any, ...]:
    given = _tuple(size, n)
    return tuple(s if g is None else cx.dim(g) for g, s in zip(given, x.shape[-n:], strict=True))


def _adaptive_avg(n: int) -> Any:
    def f(cx: Context, x: Value, size: Any) -> Value:
        if 0 in cx.out.shape:
            return cx.full(0, cx.out.shape, x.dtype)
        want = _size(cx, x, size, n)
        if all(s == 1 for s in want):
            v = cx.opmath(x)
            return cx.convert(cx.mean(v, tuple(range(x.rank - n, x.rank)), True), x.dtype)
        return _back(cx, cx.op("adaptive_avg_pool", batched(cx, x, n), size=want))

    return f


def _adaptive_max(n: int) -> Any:
    def f(cx: Context, x: Value, size: Any) -> Any:
        t = cx.expected[0]
        assert t is not None
        if 0 in t.shape:
            return cx.full(0, t.shape, x.dtype), cx.full(0, t.shape, DType.i64)
        y, i = cx.op("adaptive_max_pool", batched(cx, x, n), size=_size(cx, x, size, n), indices=True)
        return _back(cx, y), _back(cx, i, 1)

    return f


for _n in (1, 2, 3):
    aten(f"_adaptive_avg_pool{_n}d", f"adaptive_avg_pool{_n}d")(_adaptive_avg(_n))
    aten(f"adaptive_max_pool{_n}d")(_adaptive_max(_n))


def _unpool(n: int) -> Any:
    def f(cx: Context, x: Value, indices: Value, output_size: Any, *_: Any) -> Value:
        """Values at their flat positions of an image of zeros."""
        out = cx.out
        lead = x.rank - n
        size = D.product(out.shape[lead:])
        flat = (D.product(x.shape[:lead]), D.product(x.shape[lead:]))
        base = cx.full(0, (flat[0], size), x.dtype)
        y = cx.op("scatter", base, cx.reshape(cx.index(indices), flat), cx.reshape(x, flat), dim=1)
        return cx.reshape(y, out.shape)

    return f


aten("max_unpool2d")(_unpool(2))
aten("max_unpool3d")(_unpool(3))


def _fractional(n: int) -> Any:
    def f(cx: Context, x: Value, kernel: Any, output_size: Any, samples: Value) -> Any:
        """Windows at pseudo-random starts: floor((i + u) * a) - floor(u * a) with a = (in - k) / (out - 1), the last
        one at the end.
        """
        k, out = _tuple(kernel, n), _tuple(output_size, n)
        v = batched(cx, x, n)
        lead, sizes = v.shape[:2], v.shape[2:]
        if not all(isinstance(s, int) for s in (*sizes, *out)):
            raise Unsupported("dynamic sizes")
        u = samples if samples.rank == 3 else cx.unsqueeze(samples, 0)
        flat: Any = None
        for d in range(n):
            column = (1, 0)[d] if n == 2 else d
            s = cx.convert(cx.slice(u, 2, column, column + 1), x.dtype.compute)
            i = cx.iota(out[d] - 1)
            if out[d] > 1:
                a = (sizes[d] - k[d]) / (out[d] - 1)
                low = cx.convert(cx.mul(cx.add(cx.convert(i, s.dtype), s), a), DType.i64)
                starts = cx.sub(low, cx.convert(cx.mul(s, a), DType.i64))
                last = cx.full(sizes[d] - k[d], (*lead, 1), DType.i64)
                starts = cx.concat([cx.broadcast(starts, (*lead, out[d] - 1)), last], 2)
            else:
                starts = cx.full(sizes[d] - k[d], (*lead, 1), DType.i64)
            place = cx.add(cx.unsqueeze(starts, -1), cx.iota(k[d]))  # [N, C, out, k]
            shape = [*lead] + [1] * (2 * n)
            shape[2 + d], shape[2 + n + d] = out[d], k[d]
            place = cx.reshape(place, shape)
            flat = place if flat is None else cx.add(cx.mul(flat, sizes[d]), place)
        taps = D.product(k)
        cells = D.product(out)
        rows = lead[0] * lead[1]
        flat = cx.reshape(cx.broadcast(flat, (*lead, *out, *k)), (rows, cells * taps))
        values = cx.op("gather", cx.reshape(v, (rows, D.product(sizes))), flat, dim=1)
        values = cx.reshape(values, (rows, cells, taps))
        best = cx.reduce("argmax", values, (2,), True)
        y = cx.op("gather", values, best, dim=2)
        where = cx.op("gather", cx.reshape(flat, (rows, cells, taps)), best, dim=2)
        return _back(cx, cx.reshape(y, (*lead, *out))), _back(cx, cx.reshape(where, (*lead, *out)), 1)

    return f


aten("fractional_max_pool2d")(_fractional(2))
aten("fractional_max_pool3d")(_fractional(3))
