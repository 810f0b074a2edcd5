"""Matrix products and attention."""

from __future__ import annotations

import math
from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ....ir.op import broadcast_shapes
from ..context import Context
from ..registry import Unsupported, aten


def matmul(cx: Context, x: Value, y: Value) -> Value:
    """Product of values of rank 2 or more with broadcast batch dims. Bool products are ors of ands."""
    if x.dtype.is_bool:
        return cx.op("ne", matmul(cx, cx.convert(x, DType.i32), cx.convert(y, DType.i32)), 0)
    return cx.op("matmul", x, y)


def general(cx: Context, x: Value, y: Value) -> Value:
    """torch.matmul's rules for vectors."""
    a = cx.unsqueeze(x, 0) if x.rank == 1 else x
    b = cx.unsqueeze(y, 1) if y.rank == 1 else y
    z = matmul(cx, a, b)
    drop = [d for d, one in ((z.rank - 2, x.rank == 1), (z.rank - 1, y.rank == 1)) if one]
    return cx.squeeze(z, *drop) if drop else z


@aten("matmul", "mm", "bmm", "mv")
def _matmul(cx: Context, x: Value, y: Value) -> Value:
    return general(cx, x, y)


@aten("mm.dtype", "bmm.dtype")
def _mm_dtype(cx: Context, x: Value, y: Value, out_dtype: Any) -> Value:
    out = cx.out.dtype
    return matmul(cx, cx.convert(x, out), cx.convert(y, out))


@aten("dot")
def _dot(cx: Context, x: Value, y: Value) -> Value:
    return general(cx, x, y)


@aten("vdot")
def _vdot(cx: Context, x: Value, y: Value) -> Value:
    return general(cx, cx.op("conj", x) if x.dtype.is_complex else x, y)


@aten("linear")
def _linear(cx: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    y = general(cx, x, cx.transpose(weight) if weight.rank == 2 else weight)
    return y if bias is None else cx.add(y, bias)


def _accumulated(cx: Context, base: Value, product: Value, beta: Any, alpha: Any) -> Value:
    """beta*base + alpha*product; base is not looked at when beta is 0."""
    out = cx.out
    y = cx.scale(product, alpha) if not (out.dtype.is_bool and alpha == 1) else product
    if beta == 0:
        return cx.convert(cx.broadcast(y, out.shape), out.dtype)
    if out.dtype.is_bool:
        return cx.op("logical_or", cx.broadcast(base, out.shape), y)
    return cx.add(y, cx.scale(cx.convert(base, y.dtype), beta))


@aten("addmm", "addmv", "baddbmm")
def _addmm(cx: Context, base: Value, x: Value, y: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    return _accumulated(cx, base, general(cx, x, y), beta, alpha)


@aten("addbmm")
def _addbmm(cx: Context, base: Value, x: Value, y: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    b, n, k = x.shape
    flat_x = cx.reshape(cx.permute(x, (1, 0, 2)), (n, b * k))
    flat_y = cx.reshape(y, (b * k, y.shape[2]))
    return _accumulated(cx, base, matmul(cx, flat_x, flat_y), beta, alpha)


@aten("addr")
def _addr(cx: Context, base: Value, x: Value, y: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    out = cx.out.dtype
    p = cx.op("mul", cx.unsqueeze(cx.convert(x, out), 1), cx.unsqueeze(cx.convert(y, out), 0))
    return _accumulated(cx, base, p, beta, alpha)


def triangle_mask(cx: Context, rows: Dim, cols: Dim) -> Value:
    """True where torch's is_causal lets a query see a key: key <= query, aligned at the upper left."""
    i, j = cx.unsqueeze(cx.iota(rows), -1), cx.unsqueeze(cx.iota(cols), 0)
    return cx.op("le", j, i)


@aten("scaled_dot_product_attention")
def _sdpa(
    cx: Context,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    return attention(cx, q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def attention(
    cx: Context,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None,
    dropout_p: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
) -> Value:
    """torch's attention as the IR's, whose operands have rank 4: batch, heads, length, head size."""
    if dropout_p > 0 or not q.dtype.is_float:
        return _explicit(cx, q, k, v, mask, dropout_p, causal, scale, gqa)
    lead = broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    n = D.product(lead)
    flat: list[Value] = []
    for t in (q, k, v):
        heads = t.shape[-3] if t.rank >= 4 else 1
        if t.rank < 4:  # [L, E] or [N, L, E]: one head
            batch = t.shape[0] if t.rank == 3 else 1
            flat.append(cx.reshape(t, (batch, 1, *t.shape[-2:])))
        else:
            wide = cx.broadcast(t, (*lead, *t.shape[-3:]))
            flat.append(cx.reshape(wide, (n, heads, *t.shape[-2:])))
    if q.rank == 3:
        most = next((f.shape[0] for f in flat if f.shape[0] != 1), 1)
        flat = [cx.broadcast(f, (most, *f.shape[1:])) for f in flat]
    hq, hk, hv = (f.shape[1] for f in flat)
    if hk != hv or (not gqa and hq != hk and hk != 1):
        return _explicit(cx, q, k, v, mask, dropout_p, causal, scale, gqa)
    m = None
    if mask is not None:
        m = mask if mask.dtype.is_bool else cx.convert(mask, q.dtype)
        if q.rank == 3 and m.rank == 3:
            m = cx.unsqueeze(m, 1)
        elif m.rank > 4:
            m = cx.reshape(cx.broadcast(m, (*lead, *m.shape[-3:])), (n, *m.shape[-3:]))
        elif q.rank > 4 and m.rank == 4 and m.shape[0] != 1:
            m = cx.reshape(cx.broadcast(m, (*lead, *m.shape[-3:])), (n, *m.shape[-3:]))
        m = cx.reshape(m, ((1,) * (4 - m.rank)) + m.shape)
    y = cx.b.op("attention", *flat, m, scale=scale, causal=causal)
    return cx.reshape(y, cx.out.shape)


def _explicit(
    cx: Context,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None,
    dropout_p: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
) -> Value:
    """softmax(q k^T * scale + mask) v in the op-math type; a row with nothing to look at gives zeros."""
    out = cx.out.dtype
    if gqa and q.shape[-3] != k.shape[-3]:
        k, v = (_repeat_heads(cx, t, D.floordiv(q.shape[-3], t.shape[-3])) for t in (k, v))
    if scale is None:
        e = q.shape[-1]
        if not isinstance(e, int):
            raise Unsupported("a dynamic head size")
        scale = 1.0 / math.sqrt(e) if e else math.nan
    if mask is not None and mask.dtype.is_bool:
        keep: Value | None = mask
        bias: Value | None = None
    else:
        keep, bias = None, mask
    if causal:
        tri = triangle_mask(cx, q.shape[-2], k.shape[-2])
        keep = tri if keep is None else cx.op("logical_and", keep, tri)
    w = out.compute
    qf, kf, vf = (cx.convert(t, w) for t in (q, k, v))
    scores = cx.mul(matmul(cx, qf, cx.transpose(kf)), scale)
    if bias is not None:
        scores = cx.add(scores, cx.convert(bias, w))
    if keep is not None:
        scores = cx.where(keep, scores, -math.inf)
    from .reduce import softmax

    p = softmax(cx, scores, scores.rank - 1)
    if (keep is not None or bias is not None) and scores.shape[-1] != 0:
        blind = cx.reduce("all", cx.op("eq", scores, -math.inf), (scores.rank - 1,), True)
        p = cx.where(blind, cx.const(0.0, w), p)
    if dropout_p > 0:
        from .random import keep_mask

        p = cx.where(keep_mask(cx, p, dropout_p), cx.mul(p, 1 / (1 - dropout_p)), cx.const(0.0, w))
    return cx.convert(matmul(cx, p, vf), out)


def _repeat_heads(cx: Context, x: Value, times: Dim) -> Value:
    shape = x.shape
    wide = (*shape[:-2], times, *shape[-2:])
    y = cx.broadcast(cx.unsqueeze(x, -3), wide)
    return cx.reshape(y, (*shape[:-3], shape[-3] * times, *shape[-2:]))


@aten("_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped_mm(
    cx: Context, x: Value, w: Value, offs: Value | None = None, bias: Any = None, out_dtype: Any = None
) -> Value:
    if offs is None:
        return general(cx, x, w)
    if x.rank != 2 or w.rank != 3 or bias is not None:
        raise Unsupported("groups that are not blocks of rows")
    return cx.op("grouped_matmul", x, w, cx.index(offs))


@aten("_trilinear")
def _trilinear(
    cx: Context,
    a: Value,
    b: Value,
    c: Value,
    expand1: Any,
    expand2: Any,
    expand3: Any,
    sumdim: Any,
    unroll_dim: int = 1,
) -> Value:
    parts = [cx.unsqueeze(t, *e) if e else t for t, e in ((a, expand1), (b, expand2), (c, expand3))]
    wide = cx.mul(cx.mul(parts[0], parts[1]), parts[2])
    return cx.reduce("sum", wide, tuple(sumdim)) if sumdim else wide
