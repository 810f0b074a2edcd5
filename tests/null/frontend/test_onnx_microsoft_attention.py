"""Attention of com.microsoft against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_one_node import compare as _compare

RNG = np.random.default_rng(23)
F32 = np.float32


def compare(op: str, *sets: Any, **kw: Any) -> Any:
    return _compare(op, *sets, domain="com.microsoft", rtol=1e-4, **kw)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F32)


def tables(places: int, half: int) -> tuple[Any, Any]:
    angles = np.arange(places)[:, None] / 10.0 ** (np.arange(half) / half)
    return np.cos(angles).astype(F32), np.sin(angles).astype(F32)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary(interleaved: int) -> None:
    cos, sin = tables(20, 4)
    kw: dict[str, Any] = {"interleaved": interleaved}
    one = np.array([3], np.int64)
    for b in (1, 2):
        at = RNG.integers(0, 20, (b, 5)).astype(np.int64)
        compare("RotaryEmbedding", [floats(b, 5, 24), at, cos, sin], **kw)
        compare("RotaryEmbedding", [floats(b, 3, 5, 8), at, cos, sin], **kw)
    compare("RotaryEmbedding", *([floats(2, n, 24), one, cos, sin] for n in (5, 1)), **kw)
    compare("RotaryEmbedding", *([floats(2, n, 36), one, cos, sin] for n in (5, 7)), num_heads=3,
            rotary_embedding_dim=8, **kw)  # fmt: skip


@pytest.mark.parametrize("causal", [0, 1])
def test_attention(causal: int) -> None:
    w, bias = floats(10, 36) / 3, floats(36)
    kw: dict[str, Any] = {"num_heads": 3, "unidirectional": causal}
    compare("Attention", *([floats(b, 5, 10), w, bias] for b in (1, 3)), **kw)
    ends = [np.array(e, np.int32) for e in ([4], [5, 2, 3])]
    compare("Attention", *([floats(len(e), 5, 10), w, bias, e] for e in ends), **kw)
    full = [(RNG.random((b, 5)) < 0.7).astype(np.int32) for b in (1, 3)]
    compare("Attention", *([floats(len(m), 5, 10), w, bias, m] for m in full), **kw)
    masks = [(RNG.random((b, 5, 5)) < 0.7).astype(np.int32) for b in (1, 3)]
    compare("Attention", *([floats(len(m), 5, 10), w, bias, m] for m in masks), scale=0.3, **kw)
    scores = floats(1, 3, 5, 5)
    compare("Attention", *([floats(b, 5, 10), w, bias, None, None, scores] for b in (1, 3)), **kw)
    past = [floats(2, 2, 3, p, 4) for p in (1, 6)]
    compare("Attention", *([floats(2, 5, 10), w, bias, None, p] for p in past), outputs=2, **kw)
    w, bias = floats(10, 12 + 12 + 6), floats(30)
    compare("Attention", *([floats(b, 5, 10), w, bias] for b in (1, 3)), qkv_hidden_sizes=[12, 12, 6], **kw)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_multi_head(target: str) -> None:
    kw: dict[str, Any] = {"num_heads": 3, "target": target}
    compare("MultiHeadAttention", *([floats(b, 5, 12), floats(b, 7, 12), floats(b, 7, 18)] for b in (1, 2)), **kw)
    if target == "cpu":
        return
    sets = [[floats(b, 5, 12), floats(b, 7, 12), floats(b, 7, 12), floats(36)] for b in (1, 2)]
    compare("MultiHeadAttention", *sets, unidirectional=0, scale=0.4, **kw)
    masked = [[*s, (RNG.random((len(s[0]), 7)) < 0.7).astype(np.int32)] for s in sets]
    compare("MultiHeadAttention", *masked, **kw)
    compare("MultiHeadAttention", *([*s, None, floats(1, 3, 5, 7)] for s in sets), **kw)
    compare("MultiHeadAttention", *([floats(b, 5, 12), floats(b, 3, 7, 4), floats(b, 3, 7, 4)] for b in (1, 2)), **kw)
    past = [[floats(2, 5, 12), floats(2, 5, 12), floats(2, 5, 12), None, None, None, floats(2, 3, p, 4),
             floats(2, 3, p, 4)] for p in (1, 6)]  # fmt: skip
    compare("MultiHeadAttention", *past, outputs=3, **kw)
    compare("MultiHeadAttention", *past, outputs=3, unidirectional=1, **kw)


def step(
    b: int, s: int, past: int, lengths: list[int], total: int, packed: bool = False, tail: Any = (), size: int = 8
) -> list[Any]:
    """Inputs of GroupQueryAttention for 4 heads over 2."""
    q, kv = 4 * size, 2 * size
    new = [floats(b, s, q + 2 * kv), None, None] if packed else [floats(b, s, q), floats(b, s, kv), floats(b, s, kv)]
    cache = [floats(b, 2, past, size), floats(b, 2, past, size)]
    return [*new, *cache, np.array(lengths, np.int32) - 1, np.array(total, np.int32), *tail]


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("packed", [False, True])
def test_group_query(packed: bool, target: str) -> None:
    kw: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3, "target": target}
    prompt = [step(1, 5, 0, [5], 5, packed), step(2, 6, 0, [6, 6], 6, packed)]
    decode = [step(2, 1, 6, [7, 7], 7, packed), step(2, 1, 9, [10, 10], 10, packed)]
    compare("GroupQueryAttention", *decode, **kw)
    if target == "cpu" and packed:
        return
    for p in prompt:
        compare("GroupQueryAttention", p, **kw)
    compare("GroupQueryAttention", step(2, 1, 6, [7, 4], 7, packed), **kw)
    compare("GroupQueryAttention", step(1, 3, 6, [9], 9, packed), **kw)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_group_query_rotary(interleaved: int) -> None:
    tail = tables(16, 8)
    kw: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3, "do_rotary": 1}
    for packed in (False, True):
        compare("GroupQueryAttention", *(step(2, 1, p, [p + 1, p - 1], p + 1, packed, tail, 16) for p in (4, 8)),
                rotary_interleaved=interleaved, **kw)  # fmt: skip
        compare("GroupQueryAttention", step(2, 5, 0, [5, 5], 5, packed, tail, 16), rotary_interleaved=interleaved, **kw)


def test_group_query_options() -> None:
    kw: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    for window in (1, 2, 3, 20):
        compare("GroupQueryAttention", step(2, 1, 6, [7, 7], 7), local_window_size=window, **kw)
        compare("GroupQueryAttention", step(1, 6, 0, [6], 6), local_window_size=window, **kw)
    compare("GroupQueryAttention", step(2, 1, 6, [7, 7], 7), softcap=2.0, scale=0.6, **kw)
    tail = [None, None, None, floats(2, 4, 1, 7)]
    compare("GroupQueryAttention", step(2, 1, 6, [7, 7], 7, tail=tail), **kw)
