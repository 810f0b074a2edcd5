"""Counting n-grams, and the operators on strings and of training, which are refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op, refuse

refuse("its operands are strings", "StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch")
refuse("it decodes image files", "ImageDecoder")
refuse("effc compiles for inference", "Gradient", "Adagrad", "Adam", "Momentum", domain="ai.onnx.preview.training")


@onnx_op("TfIdfVectorizer", since=9)
def _tfidf(
    cx: Context, x: Value, *, max_gram_length: int, max_skip_count: int, min_gram_length: int, mode: str,
    ngram_counts: Sequence[int], ngram_indexes: Sequence[int], pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (), weights: Sequence[float] = (),
) -> Value:  # fmt: skip
    """How often each n-gram of the pool is in a row, its items ``skip`` apart for every skip up to the largest one.

    An item becomes its place in the pool's vocabulary, an n-gram the number with these digits, which is looked up among
    those of the pool.
    """
    if pool_strings:
        raise Unsupported("a pool of strings")
    if x.rank not in (1, 2):
        raise Unsupported(f"an operand of rank {x.rank}")
    size = max(ngram_indexes) + 1
    rows = cx.convert(x if x.rank == 2 else cx.unsqueeze(x, 0), DType.i64)
    batch, width = rows.shape
    vocabulary = np.unique(np.asarray(pool_int64s, np.int64))
    base = len(vocabulary) + 1
    words = cx.b.constant(vocabulary, DType.i64)
    at = cx.op("minimum", cx.b.op("searchsorted", words, rows), len(vocabulary) - 1)
    known = cx.op("eq", cx.b.op("take", words, at, dim=0), rows)
    digit = cx.where(known, at, len(vocabulary))
    count = cx.full(0.0, (batch, size + 1), DType.f32)  # the last column takes what is not in the pool
    first = 0
    ends = [*ngram_counts[1:], len(pool_int64s)]
    for n, (start, end) in enumerate(zip(ngram_counts, ends), 1):
        grams = np.searchsorted(vocabulary, np.asarray(pool_int64s[start:end], np.int64)).reshape(-1, n)
        columns = np.asarray(ngram_indexes[first : first + len(grams)], np.int64)
        first += len(grams)
        if not len(grams) or not min_gram_length <= n <= max_gram_length:
            continue
        if base**n >= 1 << 62:
            raise Unsupported(f"{n}-grams of {len(vocabulary)} items")
        codes = sum(grams[:, j].astype(np.int64) * base**j for j in range(n))
        order = np.argsort(codes, kind="stable")
        table = cx.b.constant(np.asarray(codes, np.int64)[order], DType.i64)
        target = cx.b.constant(columns[order], DType.i64)
        for step in range(1, (max_skip_count if n > 1 else 0) + 2):
            wide = cx.most(width - (n - 1) * step, 0)
            code = cx.full(0, (batch, wide), DType.i64)
            for j in range(n):
                begin = cx.least(j * step, width)
                code = cx.op("add", code, cx.scale(cx.slice(digit, 1, begin, begin + wide), base**j))
            place = cx.op("minimum", cx.b.op("searchsorted", table, code), len(grams) - 1)
            hit = cx.op("eq", cx.b.op("take", table, place, dim=0), code)
            column = cx.where(hit, cx.b.op("take", target, place, dim=0), size)
            ones = cx.full(1.0, (batch, wide), DType.f32)
            count = cx.b.op("scatter", count, column, ones, dim=1, reduce="sum")
    y = cx.slice(count, 1, 0, size)
    if weights and len(weights) != size:
        raise Unsupported(f"{len(weights)} weights for {size} columns")
    w = cx.b.constant(np.asarray(weights or [1.0] * size, np.float32), DType.f32)
    if mode == "IDF":
        y = cx.where(cx.op("gt", y, 0), cx.broadcast(w, y.shape), 0)
    elif mode == "TFIDF":
        y = cx.op("mul", y, w)
    elif mode != "TF":
        raise Unsupported(f"mode {mode}")
    return y if x.rank == 2 else cx.squeeze(y, 0)
