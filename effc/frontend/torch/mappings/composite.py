"""Composite operators as the exporter leaves them. With these most inference graphs need no decomposition pass at
all.
"""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.graph import Value
from ..context import Context
from ..registry import aten
from . import conv, norm, reduce
from .random import keep_mask


@aten("layer_norm")
def _layer_norm(
    cx: Context,
    x: Value,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    dims = tuple(range(x.rank - len(shape), x.rank))
    z = norm.standardise(cx, cx.opmath(x), dims, eps)[0]
    return cx.convert(norm.affine(cx, z, weight, bias), cx.out.dtype)


@aten("group_norm")
def _group_norm(
    cx: Context, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Value:
    n, c, *rest = x.shape
    return norm._group_norm(cx, x, weight, bias, n, c, D.product(rest), groups, eps)[0]  # type: ignore[no-any-return]


@aten("batch_norm")
def _batch_norm(
    cx: Context,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Value:
    return norm._batch(cx, x, weight, bias, mean, var, training, momentum, eps)[0]


@aten("dropout", "feature_dropout")
def _dropout(cx: Context, x: Value, p: float, train: bool) -> Value:
    if not train or p == 0:
        return x
    if p == 1:
        return cx.mul(x, 0.0)
    shape = x.shape[:2] + (1,) * (x.rank - 2) if "feature" in str(cx.fx.target) else x.shape
    mask = keep_mask(cx, cx.full(0.0, shape, x.dtype), p)
    return cx.where(mask, cx.mul(x, 1 / (1 - p)), cx.const(0, x.dtype))


@aten("softmax.int", "softmax")
def _softmax(cx: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    out = cx.out.dtype
    return cx.convert(reduce.softmax(cx, cx.convert(x, out.compute), cx.axis(dim, x.rank)), out)


@aten("log_softmax.int", "log_softmax")
def _log_softmax(cx: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    out = cx.out.dtype
    return cx.convert(reduce.softmax(cx, cx.convert(x, out.compute), cx.axis(dim, x.rank), True), out)


def _conv(n: int) -> Any:
    def f(
        cx: Context,
        x: Value,
        w: Value,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Value:
        return conv._convolution(cx, x, w, bias, stride, padding, dilation, False, 0, groups)

    return f


def _conv_transpose(n: int) -> Any:
    def f(
        cx: Context,
        x: Value,
        w: Value,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Value:
        return conv._convolution(cx, x, w, bias, stride, padding, dilation, True, output_padding, groups)

    return f


for _n, _suffix in ((1, ""), (2, ""), (3, "")):
    aten(f"conv{_n}d.default")(_conv(_n))
aten("conv_transpose1d")(_conv_transpose(1))
aten("conv_transpose2d", "conv_transpose2d.input")(_conv_transpose(2))
aten("conv_transpose3d", "conv_transpose3d.input")(_conv_transpose(3))


@aten("expand_as", "view_as", "reshape_as")
def _as(cx: Context, x: Value, other: Value) -> Value:
    return cx.broadcast(x, cx.out.shape) if "expand" in str(cx.fx.target) else cx.reshape(x, cx.out.shape)


@aten("type_as", "to", "to.dtype_layout", "to.device", "to.other", "float", "half", "double", "long", "int", "bool")
def _to(cx: Context, x: Value, *_: Any, **__: Any) -> Value:
    return cx.convert(x, cx.out.dtype)


@aten("numpy_T", "mT", "matrix_H", "mH", "adjoint")
def _transposed(cx: Context, x: Value) -> Value:
    if x.rank < 2:
        return x
    y = cx.permute(x, list(reversed(range(x.rank)))) if "numpy_T" in str(cx.fx.target) else cx.transpose(x)
    conj = any(k in str(cx.fx.target) for k in ("matrix_H", "mH", "adjoint"))
    return cx.op("conj", y) if conj and x.dtype.is_complex else y


@aten("movedim", "moveaxis")
def _movedim(cx: Context, x: Value, source: Any, destination: Any) -> Value:
    src = [cx.axis(d, x.rank) for d in ([source] if isinstance(source, int) else source)]
    dst = [cx.axis(d, x.rank) for d in ([destination] if isinstance(destination, int) else destination)]
    if not x.rank:
        return x
    rest = iter(d for d in range(x.rank) if d not in src)
    place = dict(zip(dst, src, strict=True))
    return cx.permute(x, [place[d] if d in place else next(rest) for d in range(x.rank)])


@aten("outer", "ger")
def _outer(cx: Context, x: Value, y: Value) -> Value:
    out = cx.out.dtype
    return cx.op("mul", cx.unsqueeze(cx.convert(x, out), 1), cx.unsqueeze(cx.convert(y, out), 0))


@aten("diff")
def _diff(
    cx: Context, x: Value, n: int = 1, dim: int = -1, prepend: Value | None = None, append: Value | None = None
) -> Value:
    d = cx.axis(dim, x.rank)
    parts = [cx.convert(p, cx.out.dtype) for p in (prepend, x, append) if p is not None]
    y = cx.concat(parts, d) if len(parts) > 1 else x
    for _ in range(n):
        size = y.shape[d]
        if size == 0:
            break
        a, b = cx.slice(y, d, 1, size), cx.slice(y, d, 0, size - 1)
        y = cx.op("logical_xor", a, b) if y.dtype.is_bool else cx.sub(a, b)
    return y


@aten("meshgrid")
def _meshgrid(cx: Context, xs: Any, indexing: str = "ij") -> tuple[Value, ...]:
    flat = [cx.reshape(x, (1,)) if x.rank == 0 else x for x in xs]
    order = list(range(len(flat)))
    if indexing == "xy" and len(flat) > 1:
        order[0], order[1] = 1, 0
    out = []
    for k, x in enumerate(flat):
        t = cx.expected[k]
        assert t is not None
        shape = [x.shape[0] if order[k] == d else 1 for d in range(len(flat))]
        out.append(cx.broadcast(cx.reshape(x, shape), t.shape))
    return tuple(out)
