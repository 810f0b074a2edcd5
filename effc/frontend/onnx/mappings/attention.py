"""Attention in its several forms, rotary embeddings, linear attention and the convolution that goes with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Builder, Value
from ....ir.types import TensorType
from ..context import Context
from ..dtypes import dtype_of
from ..registry import Unsupported, onnx_op
from .linear import product

if TYPE_CHECKING:
    import onnx


def split_heads(cx: Context, x: Value, heads: int) -> Value:
    """[B, L, H*E] -> [B, H, L, E]."""
    b, length, wide = x.shape
    if isinstance(wide, int) and wide % heads:
        raise Unsupported(f"{heads} heads for a hidden size of {wide}")
    return cx.permute(cx.reshape(x, (b, length, heads, D.floordiv(wide, heads))), (0, 2, 1, 3))


def join_heads(cx: Context, x: Value) -> Value:
    """[B, H, L, E] -> [B, L, H*E]."""
    b, h, length, e = x.shape
    return cx.reshape(cx.permute(x, (0, 2, 1, 3)), (b, length, h * e))


def repeat_heads(cx: Context, x: Value, heads: Dim) -> Value:
    """[B, Hk, L, E] -> [B, H, L, E]: each head H / Hk times in a row."""
    b, hk, length, e = x.shape
    if hk == heads:
        return x
    times = D.floordiv(heads, hk)
    return cx.reshape(cx.broadcast(cx.unsqueeze(x, 2), (b, hk, times, length, e)), (b, heads, length, e))


@onnx_op("Attention", since=23)
def _attention(
    cx: Context, q: Value, k: Value, v: Value, mask: Value | None = None, past_k: Value | None = None,
    past_v: Value | None = None, valid: Value | None = None, *, is_causal: int = 0, kv_num_heads: int | None = None,
    q_num_heads: int | None = None, qk_matmul_output_mode: int = 0, scale: float | None = None, softcap: float = 0.0,
    softmax_precision: int | None = None, left_window_size: int = -1, right_window_size: int = -1,
) -> Any:  # fmt: skip
    """(Y, present key, present value, scores). The IR's attention op wherever it is exact: not if the scores are asked
    for or the softmax is to be more precise than the operands' arithmetic. What a query may see is causal with an
    offset where that suffices, a mask otherwise. Rows that see no key give zeros.
    """
    dtype, packed = q.dtype, q.rank == 3
    if packed:
        if not q_num_heads or not kv_num_heads:
            raise Unsupported("operands of rank 3 without their numbers of heads")
        q, k, v = split_heads(cx, q, q_num_heads), split_heads(cx, k, kv_num_heads), split_heads(cx, v, kv_num_heads)
    if q.rank != 4 or k.rank != 4 or v.rank != 4:
        raise Unsupported(f"operands of ranks {q.rank}, {k.rank}, {v.rank}")
    if (past_k is None) != (past_v is None):
        raise Unsupported("a past key without a past value, or the other way round")
    past: Dim = 0
    if past_k is not None and past_v is not None:
        past = past_k.shape[2]
        k, v = cx.concat([past_k, k], 2), cx.concat([past_v, v], 2)
    present = (k, v)
    for a, b, what in (
        (q.shape[0], k.shape[0], "batch sizes"), (k.shape[0], v.shape[0], "batch sizes"),
        (k.shape[1], v.shape[1], "numbers of heads of key and value"),
        (k.shape[2], v.shape[2], "lengths of key and value"),
        (q.shape[3], k.shape[3], "head sizes of query and key"),
    ):  # fmt: skip
        cx.require(a, "==", b, f"{what} must be equal")

    lq, lk = q.shape[2], k.shape[2]
    causal = bool(is_causal)
    keep: Value | None = None  # bool [B or 1, 1, Lq, Lk]: what mask and causality leave, beyond the causal offset
    offset: Dim = past
    if valid is not None and past_k is None:
        counts = cx.reshape(cx.convert(valid, DType.i64), (q.shape[0], 1, 1, 1))
        place = cx.reshape(cx.iota(lk), (1, 1, 1, lk))
        keep = cx.op("lt", place, counts)
        seen = cx.op("sub", counts, cx.scalar(lq, DType.i64))  # keys before the first query, by batch
        if causal or left_window_size >= 0 or right_window_size >= 0:
            at = cx.op("add", cx.reshape(cx.iota(lq), (1, 1, lq, 1)), seen)
            high = 0 if causal else right_window_size
            if high >= 0:
                keep = cx.op("logical_and", keep, cx.op("le", cx.op("sub", place, at), high))
            if left_window_size >= 0:
                keep = cx.op("logical_and", keep, cx.op("le", cx.op("sub", at, place), left_window_size))
        causal = False
    else:
        if not causal and right_window_size >= 0:
            causal, offset = True, past + right_window_size
        if left_window_size >= 0:
            at = cx.op("add", cx.reshape(cx.iota(lq), (1, 1, lq, 1)), cx.scalar(past, DType.i64))
            place = cx.reshape(cx.iota(lk), (1, 1, 1, lk))
            keep = cx.op("le", cx.op("sub", at, place), left_window_size)
    if mask is not None:
        m = _mask(cx, mask, q, lk)
        if keep is None:
            keep = m
        elif m.dtype.is_bool:
            keep = cx.op("logical_and", m, keep)
        else:
            keep = cx.b.op("where", keep, m, cx.const(-math.inf, m.dtype))

    work = v.dtype if v.dtype.itemsize > dtype.itemsize else dtype
    precise = dtype_of(softmax_precision) if softmax_precision else work.compute
    if cx.expected < 4 and precise.itemsize <= work.compute.itemsize:
        keep = cx.convert(keep, work) if keep is not None and not keep.dtype.is_bool else keep
        y = cx.b.op(
            "attention", *(cx.convert(t, work) for t in (q, k, v)), keep, scale=scale, causal=causal,
            causal_offset=offset if causal else 0, softcap=softcap,
        )  # fmt: skip
        y = cx.convert(y, dtype)
        return (join_heads(cx, y) if packed else y), *present

    # written out
    acc = work.compute if work.compute.itemsize >= precise.itemsize else precise
    scores = _scores(cx, cx.convert(q, acc), cx.convert(k, acc), scale)
    shown = scores
    if softcap > 0:
        scores = cx.mul(cx.op("tanh", cx.div(scores, softcap)), softcap)
    if qk_matmul_output_mode == 1:
        shown = scores
    if causal:
        at = cx.op("add", cx.reshape(cx.iota(lq), (lq, 1)), cx.scalar(offset, DType.i64))
        scores = cx.where(cx.op("le", cx.reshape(cx.iota(lk), (1, lk)), at), scores, -math.inf)
    if keep is not None:
        if keep.dtype.is_bool:
            scores = cx.where(keep, scores, -math.inf)
        else:
            scores = cx.op("add", scores, cx.convert(keep, acc))
    if qk_matmul_output_mode == 2:
        shown = scores
    p = _softmax(cx, scores)
    if qk_matmul_output_mode == 3:
        shown = p
    y = cx.convert(product(cx, p, repeat_heads(cx, cx.convert(v, acc), q.shape[1])), dtype)
    return (join_heads(cx, y) if packed else y), *present, cx.convert(shown, dtype)


def _mask(cx: Context, mask: Value, q: Value, lk: Dim) -> Value:
    """A mask of rank 4 whose dims are 1 or those of the scores. A last dim that is shorter than the keys is continued
    with what hides them.
    """
    m = cx.reshape(mask, (*[1] * (4 - mask.rank), *mask.shape))
    if not m.dtype.is_bool and m.dtype is not q.dtype:
        m = cx.convert(m, q.dtype)
    have = m.shape[3]
    if mask.rank and have != lk:
        cx.require(have, "<=", lk, "a mask must not be longer than the keys")
        hidden = False if m.dtype.is_bool else -math.inf
        m = cx.b.op("pad", m, padding=((0, 0), (0, 0), (0, 0), (0, lk - have)), value=hidden)
    for d, full in zip(m.shape[:3], q.shape[:3]):
        if d != 1:
            cx.require(d, "==", full, f"sizes {d} of a mask and {full} of the query must be equal")
    return m


def _scores(cx: Context, q: Value, k: Value, scale: float | None) -> Value:
    """scale * q k^T; 1 / sqrt(E) by default."""
    e = q.shape[3]
    if scale is None and isinstance(e, int):
        scale = 1.0 / math.sqrt(e) if e else 1.0
    factor: Any = scale if scale is not None else cx.op("rsqrt", cx.scalar(e, q.dtype))
    return cx.mul(product(cx, q, cx.transpose(repeat_heads(cx, k, q.shape[1]))), factor)


def _softmax(cx: Context, x: Value) -> Value:
    """Over the last dim; a row that is all -inf gives zeros."""
    d = (x.rank - 1,)
    top = cx.reduce("max", x, d, True)
    top = cx.where(cx.op("eq", top, -math.inf), 0, top)
    e = cx.op("exp", cx.op("sub", x, top))
    total = cx.reduce("sum", e, d, True)
    return cx.op("div", e, cx.where(cx.op("eq", total, 0), 1, total))  # type: ignore[no-any-return]


@onnx_op("FlexAttention", domain="ai.onnx.preview")
def _flex_attention(
    cx: Context, q: Value, k: Value, v: Value, *, scale: float | None = None, softmax_precision: int | None = None,
    score_mod: onnx.GraphProto | None = None, prob_mod: onnx.GraphProto | None = None,
) -> Value:  # fmt: skip
    """Attention with graphs that change its scores and probabilities, which are imported in place."""
    if not q.rank == k.rank == v.rank == 4:
        raise Unsupported(f"operands of ranks {q.rank}, {k.rank}, {v.rank}")
    acc = dtype_of(softmax_precision) if softmax_precision else q.dtype.compute
    if score_mod is None and prob_mod is None and acc.itemsize <= q.dtype.compute.itemsize and q.dtype is v.dtype:
        return cx.b.op("attention", q, k, v, None, scale=scale, empty_nan=True)  # type: ignore[no-any-return]
    work = q.dtype.compute
    scores = cx.convert(_scores(cx, cx.convert(q, work), cx.convert(k, work), scale), acc)
    if score_mod is not None:
        scores = cx.convert(cx.importer.inlined(score_mod, [scores])[0], acc)
    d = (3,)
    e = cx.op("exp", cx.op("sub", scores, cx.reduce("max", scores, d, True)))
    p = cx.op("div", e, cx.reduce("sum", e, d, True))
    if prob_mod is not None:
        p = cx.convert(cx.importer.inlined(prob_mod, [p])[0], acc)
    return cx.convert(product(cx, p, repeat_heads(cx, cx.convert(v, acc), q.shape[1])), v.dtype)


@onnx_op("RotaryEmbedding", since=23)
def _rotary(
    cx: Context, x: Value, cos: Value, sin: Value, position: Value | None = None, *, interleaved: int = 0,
    num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Value:  # fmt: skip
    """Pairs (a, b) of each head's vector become (a cos - b sin, a sin + b cos); a pair is (i, i + half) or,
    interleaved, (2i, 2i + 1). The rest of the vector stays.
    """
    packed = x.rank == 3
    if packed and not num_heads:
        raise Unsupported("an operand of rank 3 without num_heads")
    y = split_heads(cx, x, num_heads) if packed else x
    b, h, length, e = y.shape
    n = rotary_embedding_dim or e
    half = D.floordiv(n, 2)
    if position is not None:
        at = cx.convert(position, DType.i64)
        cos, sin = (cx.b.op("take", t, at, dim=0) for t in (cos, sin))
    if cos.rank != 3:
        raise Unsupported(f"a cache of rank {cos.rank}" + ("" if position is not None else " without positions"))
    c, s = (cx.unsqueeze(cx.opmath(t), 1) for t in (cos, sin))
    for t in (c, s):
        cx.require(t.shape[3], "==", half, "the cache's last size must be half of the rotated size")
        cx.require(t.shape[2], "==", length, "the cache's positions must be as many as the operand's")
        if t.shape[0] != 1:
            cx.require(t.shape[0], "==", b, "the cache's batch size must be the operand's")
    turned = cx.opmath(cx.slice(y, 3, 0, n))
    if interleaved:
        pairs = cx.reshape(turned, (b, h, length, half, 2))
        p, q = cx.select(pairs, 4, 0), cx.select(pairs, 4, 1)
    else:
        p, q = cx.slice(turned, 3, 0, half), cx.slice(turned, 3, half, n)
    first = cx.op("sub", cx.op("mul", c, p), cx.op("mul", s, q))
    second = cx.op("add", cx.op("mul", s, p), cx.op("mul", c, q))
    if interleaved:
        out = cx.reshape(cx.concat([cx.unsqueeze(first, -1), cx.unsqueeze(second, -1)], 4), turned.shape)
    else:
        out = cx.concat([first, second], 3)
    out = cx.convert(out, x.dtype)
    if n != e:
        out = cx.concat([out, cx.slice(y, 3, n, e)], 3)
    return join_heads(cx, out) if packed else out


@onnx_op("LinearAttention", since=27)
def _linear_attention(
    cx: Context, query: Value, key: Value, value: Value, past: Value | None = None, decay: Value | None = None,
    beta: Value | None = None, *, q_num_heads: int, kv_num_heads: int, scale: float = 0.0,
    update_rule: str = "gated_delta", chunk_size: int = 64,
) -> Any:  # fmt: skip
    """S = exp(g) S + k (b (v - S'k))' one token after the other, read by scale q'S: (output, last state).

    ``chunk_size`` is a hint that changes no result. The state is kept in the operands' arithmetic type.
    """
    gated, delta = update_rule in ("gated", "gated_delta"), update_rule in ("delta", "gated_delta")
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Unsupported(f"update_rule {update_rule}")
    if gated != (decay is not None) or delta != (beta is not None):
        raise Unsupported(f"update_rule {update_rule} {'with' if gated == (beta is None) else 'without'} decay or beta")
    acc = query.dtype.compute
    b, length, wide = query.shape
    hk, group = kv_num_heads, q_num_heads // kv_num_heads
    dk, dv = D.floordiv(wide, q_num_heads), D.floordiv(value.shape[2], hk)
    if scale == 0:
        if not isinstance(dk, int):
            raise Unsupported("a head size that is not constant, without scale")
        scale = 1.0 / math.sqrt(dk)

    def rows(x: Value, *shape: Dim) -> Value:
        """[B, T, ...] as [T, B, *shape], to be read token by token."""
        return cx.reshape(cx.permute(cx.convert(x, acc), (1, 0, 2)), (length, b, *shape))

    items = [rows(query, hk, group, dk), rows(key, hk, dk, 1), rows(value, hk, 1, dv)]
    if decay is not None:
        items.append(rows(decay, hk, 1 if decay.shape[2] == hk else dk, 1))
    if beta is not None:
        items.append(rows(beta, beta.shape[2], 1, 1))
    if past is not None:
        kept, state = past.dtype, cx.convert(past, acc)
    else:
        kept, state = query.dtype, cx.full(0.0, (b, hk, dk, dv), acc)

    def step(s: Value, q: Value, k: Value, v: Value, *more: Value) -> tuple[Value, Value]:
        inner = cx if s.node in known else Context(builder, cx.importer, cx.checks, cx.known)
        g = inner.op
        rest = list(more)
        if gated:
            s = g("mul", s, g("exp", rest.pop(0)))
        if delta:
            found = g("matmul", inner.transpose(k), s)
            v = g("mul", rest.pop(0), g("sub", v, found))
        s = g("add", s, g("mul", k, v))
        return s, inner.scale(g("matmul", q, s), scale)

    builder = cx.b
    known = {state.node}
    if length == 1:
        state, y = step(state, *(cx.squeeze(x, 0) for x in items))
        y = cx.unsqueeze(y, 0)
    else:
        builder = Builder(cx.b.symbols)
        builder.loc = cx.b.loc
        ins = [builder.input("state", state.type)]
        ins += [builder.input(f"x{k}", TensorType(acc, x.shape[1:])) for k, x in enumerate(items)]
        known = set()
        body = builder.graph(step(*ins), name="body")
        state, y = cx.b.op("scan", state, *items, carries=1, scanned=len(items), length=length, body=body)
    y = cx.convert(cx.reshape(cx.permute(y, (1, 0, 2, 3, 4)), (b, length, q_num_heads * dv)), query.dtype)
    return y, cx.convert(state, kept)


@onnx_op("CausalConvWithState", since=27)
def _causal_conv(
    cx: Context, x: Value, weight: Value, bias: Value | None = None, past: Value | None = None, *,
    activation: str = "none",
) -> Any:  # fmt: skip
    """(y, last k - 1 positions): each channel's own kernel over what came before, which ``past`` holds, or zeros."""
    if activation not in ("none", "silu", "swish"):
        raise Unsupported(f"activation {activation}")
    channels, _, k = weight.shape
    if not isinstance(k, int) or not isinstance(channels, int):
        raise Unsupported("a kernel whose size is not constant")
    if past is None:
        past = cx.full(0.0, (x.shape[0], channels, k - 1), x.dtype)
    wide = cx.concat([past, x], 2)
    y = cx.op("conv", wide, weight, stride=(1,), padding=((0, 0),), dilation=(1,), groups=channels)
    if bias is not None:
        y = cx.op("add", y, cx.reshape(bias, (channels, 1)))
    if activation != "none":
        v = cx.opmath(y)
        y = cx.convert(cx.op("mul", v, cx.op("sigmoid", v)), x.dtype)
    return y, cx.slice(wide, 2, x.shape[2], wide.shape[2])


@onnx_op("SwiGLU", since=28)
def _swiglu(cx: Context, gate: Value, x: Value, *, alpha: float = 1.0) -> Value:
    """gate sigmoid(alpha gate) x, rounded once."""
    g = cx.opmath(gate)
    y = cx.op("mul", cx.op("mul", g, cx.op("sigmoid", cx.scale(g, alpha))), cx.opmath(x))
    return cx.convert(y, gate.dtype)
