"""Matrix multiplication and attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import dims
from ..dims import Dim
from ..dtypes import DType
from ..graph import Builder, Graph, Value
from ..op import Cost, DimAttr, Sample, broadcast_shapes, get, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the references sum."""
    if dtype.kind == "c":
        return np.dtype(np.complex128)
    return dtype if dtype.kind in "iu" else np.dtype(np.float64)


def _matmul(a: TensorType, b: TensorType) -> TensorType:
    require(a.rank >= 2 and b.rank >= 2, f"operands must have rank 2 or more, not {a.rank} and {b.rank}")
    require(a.dtype is b.dtype, f"operands have different dtypes, {a.dtype} and {b.dtype}")
    require(not a.dtype.is_bool, "not defined for bool")
    require(same_dim(a.shape[-1], b.shape[-2]), f"inner sizes {a.shape[-1]} and {b.shape[-2]} differ")
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return TensorType(a.dtype, (*batch, a.shape[-2], b.shape[-1]))


def _matmul_np(a: Array, b: Array) -> Array:
    w = wide(a.dtype)
    result: Array = np.matmul(a.astype(w), b.astype(w)).astype(a.dtype)
    return result


def _matmul_cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Cost:
    a, b = ins[0], ins[1]
    assert a is not None and b is not None
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    work: Dim = a.shape[-2] * a.shape[-1] * b.shape[-1] * (8 if a.dtype.is_complex else 2)
    for d in batch:
        work = work * d
    moved: Dim = 0
    for t in [*ins, *outs]:
        moved = moved + (0 if t is None else t.nbytes)
    return Cost(work, moved)


def _matmul_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases = [
        ((5, 7), (7, 3), "one tile"),
        ((1, 64), (64, 129), "one row"),
        ((130, 33), (33, 1), "one column"),
        ((3, 1), (1, 5), "outer product"),
        ((200, 65), (65, 300), "several blocks, odd edges"),
        ((31, 700), (700, 70), "two reduction blocks"),
        ((4, 9000), (9000, 5), "tiny result, long reduction"),
        ((2, 3, 9, 17), (2, 3, 17, 11), "batches"),
        ((2, 1, 9, 17), (3, 17, 11), "broadcast batches"),
        ((4, 9, 17), (17, 65), "shared right side"),
        ((9, 17), (3, 17, 65), "shared left side"),
        ((2, 2, 2, 2, 5, 6), (2, 1, 2, 1, 6, 4), "four batch dims"),
        ((0, 4), (4, 3), "no rows"),
        ((3, 0), (0, 4), "empty reduction gives zeros"),
        ((0, 2, 3), (0, 3, 4), "no batches"),
        ((2, 3), (3, 0), "no columns"),
    ]
    for sa, sb, why in cases:
        yield Sample((random_array(rng, sa, np.float32), random_array(rng, sb, np.float32)), {}, why)
    for dt in (
        np.float64,
        np.int8,
        np.uint8,
        np.int16,
        np.int32,
        np.int64,
        np.complex64,
        np.complex128,
        DType.f16.np,
        DType.bf16.np,
    ):
        for sa, sb in (((3, 19, 33), (3, 33, 70)), ((1, 40), (40, 33)), ((2, 300, 7), (7, 9))):
            low, high = (-100, 100) if np.dtype(dt).kind in "iu" else (-1, 1)
            yield Sample(
                (random_array(rng, sa, dt, low, high), random_array(rng, sb, dt, low, high)), {}, "other dtypes"
            )


op(
    "matmul",
    "a b",
    infer=_matmul,
    numpy=_matmul_np,
    category="contraction",
    cost=_matmul_cost,
    samples=_matmul_samples,
    doc="a[..., M, K] b[..., K, N] -> [..., M, N]; leading dims broadcast. Short floats accumulate in f32, integers "
    "modulo 2^bits.",
)


def _fused(a: TensorType, b: TensorType, *extras: TensorType, body: Graph) -> tuple[TensorType, ...]:
    acc = _matmul(a, b)
    ins = [n.types[0] for n in body.inputs]
    require(len(ins) == 1 + len(extras), f"the body takes {len(ins)} operands, there are {1 + len(extras)}")
    require(
        ins[0].dtype is acc.dtype and ins[0].rank == acc.rank,
        f"the body's first operand is {ins[0]}, the product is {acc}",
    )
    require(
        all(t.dtype is e.dtype and t.rank == e.rank for t, e in zip(ins[1:], extras)),
        "the body's operands have other types",
    )
    return tuple(v.type for v in body.outputs)


def _fused_decompose(b: Builder, x: Value, y: Value, *extras: Value, body: Graph) -> tuple[Value, ...]:
    return body.inline(b, (b.op("matmul", x, y), *extras))


op(
    "matmul_fused",
    "a b extras*",
    {"body": Graph},
    infer=_fused,
    category="contraction",
    level="macro",
    decompose=_fused_decompose,
    cost=_matmul_cost,
    doc="matmul followed by elementwise ops: ``body`` takes the product and the extras, which broadcast to it.",
)


def body_cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Cost:
    """Operations of all nodes of the body; operands are read and results written once."""
    flops: Dim = 0
    for n in attrs["body"].nodes:
        flops = flops + get(n.op).cost_of([None if v is None else v.type for v in n.inputs], n.types, n.attrs).flops
    moved: Dim = 0
    for t in [*ins, *outs]:
        moved = moved + (0 if t is None else t.nbytes)
    return Cost(flops, moved)


def _inlined(b: Builder, *xs: Value, body: Graph, **more: Any) -> tuple[Value, ...]:
    return body.inline(b, xs)


def region(name: str, doc: str, **more: Any) -> None:
    """Declares an op that runs the nodes of its ``body`` as one kernel. ``more``: its other attributes."""
    op(
        name,
        "xs*",
        {"body": Graph, **more},
        infer=lambda *xs, body, **more: tuple(v.type for v in body.outputs),
        category="contraction",
        level="macro",
        decompose=_inlined,
        cost=body_cost,
        doc=doc,
    )


region(
    "row_chain",
    "Products with constant weights, and fused regions that reduce along rows only, as one kernel that runs them "
    "on a block of rows at a time; ``body`` holds them. Values between them and results are [*L, N] with the same L. "
    "``blocks_from``: where L varies, the number of rows from which on there are blocks; 0 leaves it to the backend.",
    blocks_from=(int, 0),
)


# Attention ------------------------------------------------------------------------------------------------------------


def _attention(
    q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None, *, scale: float | None, causal: bool,
    causal_offset: Dim, softcap: float, empty_nan: bool,
) -> TensorType:  # fmt: skip
    require(q.rank == k.rank == v.rank == 4, f"q, k, v must have rank 4, not {q.rank}, {k.rank}, {v.rank}")
    require(
        q.dtype is k.dtype is v.dtype and q.dtype.is_float,
        f"q, k, v must have one float dtype, not {q.dtype}, {k.dtype}, {v.dtype}",
    )
    require(same_dim(q.shape[0], k.shape[0]) and same_dim(k.shape[0], v.shape[0]), "batch sizes differ")
    h, hk = q.shape[1], k.shape[1]
    require(same_dim(hk, v.shape[1]), f"k has {hk} heads, v has {v.shape[1]}")
    if isinstance(h, int) and isinstance(hk, int):
        require((hk > 0 and h % hk == 0) or h == hk, f"{h} query heads do not divide into {hk} key heads")
    require(same_dim(q.shape[3], k.shape[3]), f"q has head size {q.shape[3]}, k has {k.shape[3]}")
    require(same_dim(k.shape[2], v.shape[2]), f"k has length {k.shape[2]}, v has {v.shape[2]}")
    require(softcap >= 0, "softcap must not be negative")
    if mask is not None:
        require(mask.rank == 4, f"the mask must have rank 4, not {mask.rank}")
        require(mask.dtype.is_bool or mask.dtype is q.dtype, f"the mask must be bool or {q.dtype}, not {mask.dtype}")
        full = (q.shape[0], h, q.shape[2], k.shape[2])
        require(
            all(d == 1 or same_dim(d, f) for d, f in zip(mask.shape, full)),
            f"mask {mask.shape} does not broadcast to {full}",
        )
    return q.with_shape((*q.shape[:3], v.shape[3]))


def _scale(scale: float | None, head: Any) -> Any:
    return scale if scale is not None else 1.0 / math.sqrt(head) if head else 1.0


def _attention_np(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    scale: float | None,
    causal: bool,
    causal_offset: int,
    softcap: float,
    empty_nan: bool,
) -> Array:
    h, hk, lq, lk = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    group = h // hk if hk else 1
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    scores = np.matmul(q64, np.repeat(k64, group, 1).swapaxes(2, 3)) * _scale(scale, q.shape[3])
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if causal:
        scores = np.where(np.arange(lk) <= np.arange(lq)[:, None] + causal_offset, scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask.astype(np.float64)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = weights.sum(-1, keepdims=True)
        out = np.matmul(weights, np.repeat(v64, group, 1)) / np.where(
            total == 0, np.nan if empty_nan and lk else 1, total
        )
    result: Array = out.astype(q.dtype)
    return result


def _attention_decompose(
    b: Builder, q: Value, k: Value, v: Value, mask: Value | None = None, *, scale: float | None, causal: bool,
    causal_offset: Dim, softcap: float, empty_nan: bool,
) -> Value:  # fmt: skip
    dtype, acc = q.dtype, q.dtype.compute
    (n, h, lq, e), (_, hk, lk, ev) = q.shape, v.shape

    def cast(x: Value, to: DType) -> Value:
        return x if x.dtype is to else _value(b.op("convert", x, dtype=to))

    def heads(x: Value) -> Value:
        if x.shape[1] == h:
            return x
        group = h // hk if isinstance(h, int) and isinstance(hk, int) else h.__floordiv__(hk)  # type: ignore[operator]
        wider = b.op("reshape", x, shape=(x.shape[0], hk, 1, x.shape[2], x.shape[3]))
        wider = b.op("broadcast_to", wider, shape=(x.shape[0], hk, group, x.shape[2], x.shape[3]))
        return _value(b.op("reshape", wider, shape=(x.shape[0], h, x.shape[2], x.shape[3])))

    qc, kc, vc = cast(q, acc), cast(heads(k), acc), cast(heads(v), acc)
    minus_inf = b.constant(-math.inf, acc)
    if scale is not None or isinstance(e, int):
        factor = b.constant(_scale(scale, e), acc)
    else:
        factor = b.op("rsqrt", cast(b.op("dim_value", value=e), acc))
    s = b.op("mul", b.op("matmul", qc, b.op("permute", kc, dims=(0, 1, 3, 2))), factor)
    if softcap:
        cap = b.constant(softcap, acc)
        s = b.op("mul", b.op("tanh", b.op("div", s, cap)), cap)
    if causal:
        i = b.op("iota", shape=(lq, 1), dim=0)
        j = b.op("iota", shape=(1, lk), dim=1)
        last = b.op("add", i, b.op("dim_value", value=causal_offset))
        s = b.op("where", b.op("le", j, last), s, minus_inf)
    if mask is not None:
        s = b.op("where", mask, s, minus_inf) if mask.dtype.is_bool else b.op("add", s, cast(mask, acc))
    if lk == 0:
        return _value(b.op("full", value=0, shape=(n, h, lq, ev), dtype=dtype))
    top = b.op("reduce", s, kind="max", dims=(3,), keepdims=True)
    zero = b.constant(0, acc)
    top = b.op("where", b.op("eq", top, minus_inf), zero, top)
    p = b.op("exp", b.op("sub", s, top))
    total = b.op("reduce", p, kind="sum", dims=(3,), keepdims=True)
    total = b.op("where", b.op("eq", total, zero), b.constant(math.nan if empty_nan else 1, acc), total)
    return cast(_value(b.op("div", b.op("matmul", p, vc), total)), dtype)


def _value(x: Any) -> Value:
    assert isinstance(x, Value)
    return x


def _attention_cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Cost:
    q, v = ins[0], ins[2]
    assert q is not None and v is not None
    moved: Dim = 0
    for t in [*ins, *outs]:
        moved = moved + (0 if t is None else t.nbytes)
    return Cost(q.shape[0] * q.shape[1] * q.shape[2] * v.shape[2] * (q.shape[3] + v.shape[3]) * 2, moved)


def _attention_samples(rng: np.random.Generator) -> Iterator[Sample]:
    def qkv(b: int, h: int, hk: int, lq: int, lk: int, d: int, dv: int, dt: Any = np.float32) -> tuple[Array, ...]:
        shapes = ((b, h, lq, d), (b, hk, lk, d), (b, hk, lk, dv))
        return tuple(random_array(rng, s, dt, -2, 2) for s in shapes)

    yield Sample(qkv(2, 3, 3, 17, 19, 32, 32), {}, "encoder")
    yield Sample(
        qkv(1, 4, 2, 130, 130, 20, 20), {"causal": True}, "grouped heads, causal, several tiles, odd head size"
    )
    yield Sample(qkv(1, 6, 2, 1, 300, 64, 64), {"causal": True, "causal_offset": 299}, "decode")
    yield Sample(qkv(2, 2, 2, 70, 33, 8, 24), {"scale": 0.5, "softcap": 3.0}, "cross, other value size, softcap")
    mask = random_array(rng, (2, 1, 40, 90), np.bool_)
    mask[0, 0, 3] = False
    yield Sample((*qkv(2, 2, 1, 40, 90, 16, 16), mask), {}, "bool mask, one row of it empty: zeros")
    bias = random_array(rng, (1, 2, 1, 50), np.float32)
    bias[..., 7:20] = -np.inf
    yield Sample((*qkv(2, 2, 2, 9, 50, 16, 16), bias), {"causal": True, "causal_offset": 41}, "additive mask with -inf")
    yield Sample(qkv(1, 2, 2, 5, 9, 16, 16), {"causal": True, "causal_offset": -2}, "rows before the first key: zeros")
    yield Sample(qkv(1, 2, 2, 5, 9, 16, 16), {"causal": True, "causal_offset": -2, "empty_nan": True}, "the same, NaN")
    yield Sample(qkv(1, 1, 1, 1, 1, 1, 1), {}, "one of everything")
    yield Sample(qkv(0, 2, 2, 3, 4, 8, 8), {}, "no batch")
    yield Sample(qkv(1, 2, 2, 0, 4, 8, 8), {}, "no queries")
    yield Sample(qkv(1, 2, 2, 3, 0, 8, 8), {}, "no keys: zeros")
    for dt in (np.float64, DType.f16.np, DType.bf16.np):
        yield Sample(qkv(2, 2, 2, 37, 45, 24, 24, dt), {"causal": True}, "other dtypes")


op(
    "attention",
    "q k v mask?",
    {
        "scale": (object, None),
        "causal": (bool, False),
        "causal_offset": (DimAttr, 0),
        "softcap": (float, 0.0),
        "empty_nan": (bool, False),
    },
    infer=_attention,
    numpy=_attention_np,
    category="contraction",
    level="macro",
    decompose=_attention_decompose,
    cost=_attention_cost,
    samples=_attention_samples,
    doc="softmax(scale * q k^T + mask) v, q[B, H, Lq, E], k[B, Hk, Lk, E], v[B, Hk, Lk, Ev] -> [B, H, Lq, Ev]; head h "
    "reads key head h // (H / Hk). scale: 1/sqrt(E) by default. mask broadcasts to [B, H, Lq, Lk], bool (true: take "
    "part) or added. causal: query i sees keys j <= i + causal_offset. softcap c > 0: scores become c tanh(scores / c) "
    "before masking. A row that sees no key gives zeros, as torch's scaled_dot_product_attention does, or with "
    "empty_nan NaN, as a written-out softmax does. Short floats are computed in f32.",
)


def _attention_fused(
    k: TensorType, v: TensorType, *extras: TensorType, body: Graph, masked: bool, **attrs: Any
) -> TensorType:
    require(len(body.inputs) == len(extras) - masked, f"the body takes {len(body.inputs)} values of {len(extras)}")
    q = body.outputs[0].type
    require(q.rank >= 4, f"the body makes queries of rank {q.rank}, which must be 4 or more")
    mask = extras[0] if masked else None
    return _attention(q.with_shape((*q.shape[:3], dims.product(q.shape[3:]))), k, v, mask, **attrs)


def _attention_fused_decompose(
    b: Builder, k: Value, v: Value, *extras: Value, body: Graph, masked: bool, **attrs: Any
) -> Value:
    (q,) = body.inline(b, extras[masked:])
    if q.type.rank > 4:
        q = b.op("reshape", q, shape=(*q.shape[:3], dims.product(q.shape[3:])))
    return _value(b.op("attention", q, k, v, *extras[:masked], **attrs))


op(
    "attention_fused",
    "k v extras*",
    {
        "body": Graph,
        "masked": (bool, False),
        "scale": (object, None),
        "causal": (bool, False),
        "causal_offset": (DimAttr, 0),
        "softcap": (float, 0.0),
        "empty_nan": (bool, False),
    },
    infer=_attention_fused,
    category="contraction",
    level="macro",
    decompose=_attention_fused_decompose,
    doc="attention whose queries elementwise ops make: ``body`` takes the extras, after the mask where ``masked``, and "
    "makes q as [B, H, Lq, ...], its last dims E together.",
)
