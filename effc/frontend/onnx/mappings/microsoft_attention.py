"""Attention and rotary embeddings of the domain com.microsoft, as ONNX Runtime's documentation (ContribOperators.md)
has them, with the key/value caches of its processor implementation.
"""

from __future__ import annotations

import math
from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op

MS = "com.microsoft"
MASKED = -10000.0  # what is added to the scores of masked keys by default


# Rotary embeddings ----------------------------------------------------------------------------------------------------


def rotated(cx: Context, x: Value, at: Value, cos: Value, sin: Value, interleaved: bool) -> Value:
    """``x``[batch, heads, length, size] turned by the angles of positions ``at``[batch or 1, length]. The tables have a
    column for each pair of the dims that are turned, which are the first ones. "RoFormer" (Su et al.): the pairs are
    neighbours if interleaved, else an element of the first half and one of the second.
    """
    half = cos.shape[1]
    turned = half * 2
    size = x.shape[3]
    v = cx.opmath(x)
    c, s = (cx.unsqueeze(cx.b.op("take", cx.convert(t, v.dtype), cx.index(at), dim=0), 1) for t in (cos, sin))
    head = cx.slice(v, 3, 0, turned)
    if interleaved:
        pairs = cx.reshape(head, (*x.shape[:3], half, 2))
        first, second = cx.select(pairs, 4, 0), cx.select(pairs, 4, 1)
    else:
        first, second = cx.slice(head, 3, 0, half), cx.slice(head, 3, half, turned)
    low = cx.op("sub", cx.op("mul", first, c), cx.op("mul", second, s))
    high = cx.op("add", cx.op("mul", first, s), cx.op("mul", second, c))
    if interleaved:
        out = cx.reshape(cx.concat([cx.unsqueeze(low, 4), cx.unsqueeze(high, 4)], 4), (*x.shape[:3], turned))
    else:
        out = cx.concat([low, high], 3)
    if turned != size:
        out = cx.concat([out, cx.slice(v, 3, turned, size)], 3)
    return cx.convert(out, x.dtype)


def split_heads(cx: Context, x: Value, heads: Dim) -> Value:
    """[batch, length, heads * size] -> [batch, heads, length, size]"""
    b, n, width = x.shape
    return cx.permute(cx.reshape(x, (b, n, heads, D.floordiv(width, heads))), (0, 2, 1, 3))


def merge_heads(cx: Context, x: Value) -> Value:
    b, h, n, size = x.shape
    return cx.reshape(cx.permute(x, (0, 2, 1, 3)), (b, n, h * size))


@onnx_op("RotaryEmbedding", domain=MS)
def _rotary(
    cx: Context, x: Value, positions: Value, cos: Value, sin: Value, *, interleaved: int = 0, num_heads: int = 0,
    rotary_embedding_dim: int = 0, is_packed_batching: int = 0, scale: float = 1.0,
) -> Value:  # fmt: skip
    """One position is that of the first element of every sequence; otherwise there is one for each element."""
    if scale != 1:
        raise Unsupported(f"scale {scale}")
    if is_packed_batching:
        raise Unsupported("packed batches")
    heads: Dim = num_heads
    if x.rank == 3 and not heads:
        if rotary_embedding_dim:
            raise Unsupported("rotary_embedding_dim without num_heads")
        heads = D.floordiv(x.shape[2], cos.shape[1] * 2)
    v = split_heads(cx, x, heads) if x.rank == 3 else x
    at = cx.convert(positions, DType.i64)
    if positions.rank == 1:
        at = cx.unsqueeze(cx.op("add", cx.iota(v.shape[2]), at), 0)
    y = rotated(cx, v, at, cos, sin, bool(interleaved))
    return merge_heads(cx, y) if x.rank == 3 else y


# Attention ------------------------------------------------------------------------------------------------------------


def _sum(cx: Context, *xs: Value | None) -> Value | None:
    found = [x for x in xs if x is not None]
    out = found[0] if found else None
    for x in found[1:]:
        out = cx.elementwise("add", out, x)
    return out


def _bias_of_keys(cx: Context, keep: Value, dtype: DType, filler: float) -> Value:
    """0 for keys that are kept, ``filler`` for others; ``keep`` has rank 4."""
    kept = keep if keep.dtype.is_bool else cx.op("gt", keep, 0)
    return cx.where(kept, cx.const(0, dtype), cx.const(filler, dtype))


def _key_mask(cx: Context, mask: Value, batch: Dim, total: Dim, dtype: DType, filler: float) -> Value:
    """The bias of a mask: [batch] lengths, [2 * batch] ends and then starts, [batch, total], [batch, length, total] or
    [batch, 1, length, total] of zeros and ones.
    """
    if mask.rank == 1:
        keys = cx.unsqueeze(cx.iota(total, mask.dtype), 0)
        if mask.shape[0] == batch:
            keep = cx.op("lt", keys, cx.unsqueeze(mask, 1))
        elif mask.shape[0] == 2 * batch:
            ends, starts = (cx.unsqueeze(cx.slice(mask, 0, k * batch, (k + 1) * batch), 1) for k in (0, 1))
            keep = cx.op("logical_and", cx.op("lt", keys, ends), cx.op("ge", keys, starts))
        else:
            raise Unsupported(f"a mask of {mask.shape[0]} lengths for {batch} sequences")
        keep = cx.unsqueeze(keep, 1, 2)
    elif mask.rank in (2, 3):
        keep = cx.unsqueeze(mask, *((1, 2) if mask.rank == 2 else (1,)))
    else:
        raise Unsupported(f"a mask of rank {mask.rank}")
    return _bias_of_keys(cx, keep, dtype, filler)


def _attend(
    cx: Context, q: Value, k: Value, v: Value, bias: Value | None, scale: float | None, causal: bool, offset: Dim
) -> Value:
    if not scale:
        scale = None
    out = cx.b.op("attention", q, k, v, bias, scale=scale, causal=causal, causal_offset=offset, softcap=0.0,
                  empty_nan=False)  # fmt: skip
    return merge_heads(cx, out)


@onnx_op("Attention", domain=MS)
def _attention(
    cx: Context, x: Value, weights: Value, bias: Value | None = None, mask: Value | None = None,
    past: Value | None = None, scores: Value | None = None, past_length: Value | None = None, *, num_heads: int,
    scale: float = 0.0, mask_filter_value: float = MASKED, unidirectional: int = 0, qkv_hidden_sizes: Any = None,
    do_rotary: int = 0, rotary_embedding_dim: int = 0, past_present_share_buffer: int = 0,
) -> tuple[Value, Value]:  # fmt: skip
    """Self attention with its own projection; ``past`` and the second result hold keys and values:
    [2, batch, heads, length, size].
    """
    if do_rotary or past_present_share_buffer or past_length is not None:
        raise Unsupported("do_rotary" if do_rotary else "a buffer shared by past and present")
    width = weights.shape[1]
    sizes = list(qkv_hidden_sizes or [D.floordiv(width, 3)] * 3)
    made = cx.b.op("matmul", x, weights)
    if bias is not None:
        made = cx.elementwise("add", made, bias)
    parts, start = [], 0
    for n in sizes:
        parts.append(split_heads(cx, cx.slice(made, 2, start, start + n), num_heads))
        start = start + n
    q, k, v = parts
    offset: Dim = 0
    if past is not None:
        offset = past.shape[3]
        k, v = (cx.concat([cx.select(past, 0, i), t], 2) for i, t in enumerate((k, v)))
    extra = None if mask is None else _key_mask(cx, mask, x.shape[0], k.shape[2], x.dtype, mask_filter_value)
    out = _attend(cx, q, k, v, _sum(cx, extra, scores), scale, bool(unidirectional), offset)
    if cx.expected < 2:
        return out, k
    if sizes[1] != sizes[2]:
        raise Unsupported("a cache of keys and values of different sizes")
    return out, cx.concat([cx.unsqueeze(k, 0), cx.unsqueeze(v, 0)], 0)


@onnx_op("MultiHeadAttention", domain=MS)
def _multi_head(
    cx: Context, query: Value, key: Value | None = None, value: Value | None = None, bias: Value | None = None,
    mask: Value | None = None, scores: Value | None = None, past_key: Value | None = None,
    past_value: Value | None = None, past_length: Value | None = None, indirection: Value | None = None, *,
    num_heads: int, scale: float = 0.0, mask_filter_value: float = MASKED, unidirectional: int = 0,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """Queries [batch, length, heads * size], or packed with keys and values [batch, length, heads, 3, size]; keys
    packed with values [batch, length, heads, 2, size]; keys and values of rank 4 are already split into heads.
    """
    if past_length is not None or indirection is not None or cx.expected > 3:
        raise Unsupported("a buffer shared by past and present, or the product of queries and keys as a result")

    def unpacked(x: Value, k: int) -> Value:
        return cx.permute(cx.select(x, 3, k), (0, 2, 1, 3))

    if query.rank == 5:
        q, k, v = (unpacked(query, i) for i in range(3))
    else:
        q = split_heads(cx, query, num_heads)
        if key is None:
            raise Unsupported("no keys")
        if key.rank == 5:
            k, v = unpacked(key, 0), unpacked(key, 1)
        elif value is None:
            raise Unsupported("no values")
        else:
            k, v = (split_heads(cx, t, num_heads) if t.rank == 3 else t for t in (key, value))
    if bias is not None:
        start: Dim = 0
        made = []
        for t in (q, k, v):
            n = num_heads * t.shape[3]
            part = cx.reshape(cx.slice(bias, 0, start, start + n), (num_heads, 1, t.shape[3]))
            start = start + n
            split = key is None or key.rank != 4 or t is q  # keys and values that come in heads are complete
            made.append(cx.elementwise("add", t, part) if split else t)
        q, k, v = made
    offset: Dim = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = cx.concat([past_key, k], 2), cx.concat([past_value, v], 2)
    extra = None if mask is None else _key_mask(cx, mask, query.shape[0], k.shape[2], query.dtype, mask_filter_value)
    out = _attend(cx, q, k, v, _sum(cx, extra, scores), scale, bool(unidirectional), offset)
    return out, k, v


@onnx_op("GroupQueryAttention", domain=MS)
def _group_query(
    cx: Context, query: Value, key: Value | None, value: Value | None, past_key: Value | None,
    past_value: Value | None, lengths: Value, total: Value, cos: Value | None = None, sin: Value | None = None,
    positions: Value | None = None, scores: Value | None = None, *, num_heads: int, kv_num_heads: int,
    scale: float = 0.0, softcap: float = 0.0, do_rotary: int = 0, rotary_interleaved: int = 0,
    local_window_size: int = -1, smooth_softmax: int = 0, causal: int = 1, qk_output: int = 0,
    qk_norm_epsilon: float = 1e-6, kv_cache_bit_width: int = 0, k_quant_type: str = "NONE",
    v_quant_type: str = "NONE", sliding_window_cache: int = 0,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """Causal attention of new elements to a cache. ``lengths``[batch] are the numbers of keys, the new ones among them,
    less 1; ``total`` is the largest number. The present cache is as long as ``total``, or as the past one if that is
    longer: each sequence's new keys stand after its old ones, and zeros after them.
    """
    if smooth_softmax == 1 or qk_output or kv_cache_bit_width or sliding_window_cache:
        raise Unsupported("a smooth softmax, scores as a result, or a quantized or sliding cache")
    if k_quant_type != "NONE" or v_quant_type != "NONE" or not causal:
        raise Unsupported("a quantized cache, or attention that is not causal")
    if key is None or value is None:
        size = D.floordiv(query.shape[2], num_heads + 2 * kv_num_heads)
        q_end, k_end = num_heads * size, (num_heads + kv_num_heads) * size
        key, value = cx.slice(query, 2, q_end, k_end), cx.slice(query, 2, k_end, query.shape[2])
        query = cx.slice(query, 2, 0, q_end)
    b, s, _ = query.shape
    q, k, v = (split_heads(cx, t, h) for t, h in ((query, num_heads), (key, kv_num_heads), (value, kv_num_heads)))
    many = cx.dim(total, "total_sequence_length")
    ends = cx.op("add", cx.reshape(cx.convert(lengths, DType.i64), (b, 1)), 1)
    # The first run of a sequence has no past, whatever the padding of shorter sequences says.
    first = cx.op("eq", cx.scalar(many, DType.i64), cx.scalar(s, DType.i64))
    begin = cx.b.op("where", first, cx.const(0, DType.i64), cx.op("sub", ends, cx.scalar(s, DType.i64)))
    at = cx.op("add", begin, cx.unsqueeze(cx.iota(s), 0))  # [batch, length]
    if do_rotary:
        if cos is None or sin is None:
            raise Unsupported("rotary embeddings without tables")
        place = at if positions is None else cx.convert(positions, DType.i64)
        q, k = (rotated(cx, t, place, cos, sin, bool(rotary_interleaved)) for t in (q, k))
    room = many if past_key is None else cx.most(many, past_key.shape[2])
    k, v = (_appended(cx, old, new, at, begin, room) for old, new in ((past_key, k), (past_value, v)))
    present = k, v
    if room is not many:  # nothing is attended to beyond the largest number of keys
        k, v = (cx.slice(t, 2, 0, many) for t in (k, v))
    keys = cx.reshape(cx.iota(many), (1, 1, 1, many))
    here = cx.reshape(at, (b, 1, s, 1))
    keep = cx.op("le", keys, here)
    if local_window_size >= 0:
        keep = cx.op("logical_and", keep, cx.op("gt", keys, cx.sub(here, local_window_size)))
    bias = keep
    if scores is not None:
        if softcap:
            raise Unsupported("attention_bias and softcap")
        cx.require(scores.shape[3], ">=", many, "attention_bias must have a place for every key")
        bias = cx.where(keep, cx.slice(scores, 3, 0, many), -math.inf)
    out = cx.b.op(
        "attention", q, k, v, bias, scale=scale or None, causal=False, causal_offset=0, softcap=float(softcap),
        empty_nan=False,
    )  # fmt: skip
    return merge_heads(cx, out), *present


def _appended(cx: Context, old: Value | None, new: Value, at: Value, begin: Value, room: Dim) -> Value:
    """A cache of ``room`` places: ``old`` up to each sequence's ``begin``, ``new`` at places ``at``, else zeros."""
    b, h, s, size = new.shape
    shape = (b, h, room, size)
    if old is None:
        base = cx.full(0, shape, new.dtype)
    else:
        n = old.shape[2]
        place = cx.reshape(cx.iota(n), (1, 1, n, 1))
        kept = cx.where(cx.op("lt", place, cx.reshape(begin, (*begin.shape[:1], 1, 1, 1))), old, 0)
        base = kept
        if n is not room and n != room:
            base = cx.concat([kept, cx.full(0, (b, h, room - n, size), new.dtype)], 2)
    places = cx.broadcast(cx.reshape(at, (b, 1, s, 1)), new.shape)
    return cx.b.op("scatter", base, places, new, dim=2)  # type: ignore[no-any-return]
