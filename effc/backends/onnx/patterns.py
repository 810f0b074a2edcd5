"""Groups of the IR's ops that are one op of ONNX: means, softmax, layer and RMS normalisation, GELU.

A pattern is tried at the last node of its group. What matches is written as the one op; the other nodes of the group
are written as always, and left out of the model if nothing else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Node, Value
from .context import Cx
from .kernels import SINCE

CONTRIBUTED = "com.microsoft"
Pattern = Callable[[Cx, Node], "str | None"]


def number(v: Value) -> float | None:
    """The value of a constant with one element."""
    if v.node.op != "constant" or v.node.attrs["data"].size != 1 or v.dtype.is_complex:
        return None
    return float(v.node.attrs["data"].reshape(-1)[0])


def close(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-6)


def commuted(v: Value, op: str) -> list[tuple[Value, Value]]:
    """The operands of a binary op, in both orders; nothing if v is another op's."""
    if v.node.op != op or len(v.node.operands) != 2:
        return []
    a, b = v.node.operands
    return [(a, b), (b, a)]


def scaled(v: Value, factor: float) -> Value | None:
    """x if v is x * factor or x / (1 / factor)."""
    for a, b in commuted(v, "mul"):
        if close(number(b), factor):
            return a
    if v.node.op == "div" and close(number(v.node.operands[1]), 1 / factor):
        return v.node.operands[0]
    return None


def shifted(v: Value, offset: float) -> Value | None:
    for a, b in commuted(v, "add"):
        if close(number(b), offset):
            return a
    return None


def summed(v: Value, kind: str = "sum") -> Value | None:
    """x if v sums (or otherwise reduces) x over its last dim, which stays with size 1."""
    n = v.node
    if n.op != "reduce" or n.attrs["kind"] != kind or not n.attrs["keepdims"]:
        return None
    x = n.operands[0]
    return x if tuple(n.attrs["dims"]) == (x.rank - 1,) else None


def averaged(v: Value) -> Value | None:
    """x if v is the mean of x over its last dim."""
    if v.node.op != "div":
        return None
    x = summed(v.node.operands[0])
    return x if x is not None and number(v.node.operands[1]) == x.shape[-1] else None


def _read(cx: Cx, v: Value) -> str | None:
    x = cx.find(v)
    return x if isinstance(x, str) else None


def mean(cx: Cx, n: Node) -> str | None:
    """sum / n over any dims."""
    if n.op != "div" or n.operands[0].node.op != "reduce" or n.operands[0].node.attrs["kind"] != "sum":
        return None
    r = n.operands[0].node
    x, dims = r.operands[0], r.attrs["dims"]
    sizes = [x.shape[d] for d in dims]
    if not dims or not all(isinstance(s, int) for s in sizes) or x.dtype not in (DType.f32, DType.f64):
        return None
    if 0 in sizes or number(n.operands[1]) != float(np.prod(sizes)):  # type: ignore[arg-type]
        return None
    name = _read(cx, x)
    return None if name is None else cx.op("ReduceMean", name, cx.ints(*dims), keepdims=int(r.attrs["keepdims"]))


def softmax(cx: Cx, n: Node) -> str | None:
    """exp(x - max) / sum(exp(x - max)) along one dim, and its logarithm."""
    x, e, dim = None, None, 0
    if n.op == "div":
        e = n.operands[0]
        total = n.operands[1].node
        if e.node.op == "exp" and total.op == "reduce" and total.attrs["kind"] == "sum" and total.operands[0] == e:
            x, dim = _centred(e.node.operands[0], total)
    elif n.op == "sub" and n.operands[1].node.op == "log":
        total = n.operands[1].node.operands[0].node
        e = n.operands[0]
        if total.op == "reduce" and total.attrs["kind"] == "sum" and total.operands[0].node.op == "exp":
            if total.operands[0].node.operands[0] == e:
                x, dim = _centred(e, total)
    if x is None or x.dtype not in (DType.f32, DType.f64) or x.shape[dim] == 0:
        return None
    name = _read(cx, x)
    return None if name is None else cx.op("Softmax" if n.op == "div" else "LogSoftmax", name, axis=dim)


def _centred(v: Value, total: Node) -> tuple[Value | None, int]:
    """(x, dim) if v is x - max(x) along the dim that ``total`` sums over."""
    dims = total.attrs["dims"]
    if v.node.op != "sub" or len(dims) != 1 or not total.attrs["keepdims"]:
        return None, 0
    x, top = v.node.operands
    r = top.node
    same = r.op == "reduce" and r.attrs["kind"] == "max" and r.attrs["dims"] == dims and r.attrs["keepdims"]
    return (x, dims[0]) if same and r.operands[0] == x else (None, 0)


def _normalised(v: Value) -> tuple[str, Value, float] | None:
    """(op, x, epsilon) if v is x, centred or not, divided by the root of its mean square."""
    for d, r in commuted(v, "mul"):
        if r.node.op != "rsqrt" or r.node.operands[0].node.op != "add":
            continue
        for square, eps in commuted(r.node.operands[0], "add"):
            e, q = number(eps), averaged(square)
            if e is None or q is None or q.node.op != "mul" or q.node.operands != (d, d):
                continue
            if d.node.op == "sub" and averaged(d.node.operands[1]) == d.node.operands[0]:
                return "LayerNormalization", d.node.operands[0], e
            return "RMSNormalization", d, e
    return None


def _vector(v: Value, x: Value) -> bool:
    """Whether v is one value for each element of x's last dim."""
    return v.dtype is x.dtype and v.rank > 0 and v.shape == (*(1,) * (v.rank - 1), x.shape[-1])


def normalisation(cx: Cx, n: Node) -> str | None:
    """Layer and RMS normalisation, with scale and bias or, where passes moved those into the next layer, without."""
    v = n[0]
    for found, scale, bias in _candidates(n.op, v):
        op, x, eps = found
        size = x.shape[-1]
        if x.dtype is not DType.f32 or not isinstance(size, int) or size == 0 or SINCE.get(op, 0) > cx.shared.opset:
            continue
        if any(w is not None and not _vector(w, x) for w in (scale, bias)):
            continue
        name = _read(cx, x)
        given = [None if w is None else _read(cx, w) for w in (scale, bias)]
        if name is None or any(g is None and w is not None for g, w in zip(given, (scale, bias), strict=True)):
            continue
        flat = [g if g is None or w is None or w.rank == 1 else cx.reshape(g, None, (size,))
                for g, w in zip(given, (scale, bias), strict=True)]  # fmt: skip
        flat[0] = flat[0] or cx.const(np.ones(size), DType.f32)
        if cx.shared.contributed and op == "LayerNormalization" and (parts := _residual(cx, x)) is not None:
            ins = [*parts, *flat]
            return cx.raw("SkipLayerNormalization", ins, [DType.f32], domain=CONTRIBUTED, epsilon=eps)[0]
        return cx.raw(op, [name, *flat], [DType.f32], axis=-1, epsilon=eps)[0]
    return None


def _candidates(op: str, v: Value) -> Iterator[tuple[tuple[str, Value, float], Value | None, Value | None]]:
    """(normalised x, scale, bias) in every way to read v."""
    if op == "add":
        for a, b in commuted(v, "add"):
            for y, w in commuted(a, "mul"):
                if (hit := _normalised(y)) is not None and hit[0] == "LayerNormalization":
                    yield hit, w, b
        return
    for y, w in commuted(v, "mul"):
        if (hit := _normalised(y)) is not None:
            yield hit, w, None
    if (hit := _normalised(v)) is not None:
        yield hit, None, None


def _residual(cx: Cx, x: Value) -> list[str] | None:
    """The operands of x = a + b if only a normalisation (which centres it and sums it) reads x."""
    if x.node.op != "add" or x.rank != 3 or len(cx.shared.users.get(x, ())) != 2:
        return None
    a, b = x.node.operands
    names = [_read(cx, v) for v in (a, b)]
    return None if a.shape != b.shape or a.shape != x.shape or None in names else [n for n in names if n is not None]


def silu(cx: Cx, n: Node) -> str | None:
    """x * sigmoid(x), for which onnxruntime has an op of its own."""
    if not cx.shared.contributed or n.types[0].dtype is not DType.f32:
        return None
    for x, s in commuted(n[0], "mul"):
        if s.node.op == "sigmoid" and s.node.operands[0] == x and (name := _read(cx, x)) is not None:
            return cx.raw("QuickGelu", [name], [DType.f32], domain=CONTRIBUTED, alpha=1.0)[0]
    return None


def gelu(cx: Cx, n: Node) -> str | None:
    """x / 2 * (1 + erf(x / sqrt 2)), in any order of the factors."""
    if n.op != "mul" or n.types[0].dtype is not DType.f32:
        return None
    for a, b in commuted(n[0], "mul"):
        e, x = shifted(b, 1.0), scaled(a, 0.5)
        if e is not None and x is not None and e.node.op == "erf":
            if scaled(e.node.operands[0], math.sqrt(0.5)) == x:
                name = _read(cx, x)
                return None if name is None else cx.op("Gelu", name)
    x = scaled(n[0], 0.5)  # (x * (1 + erf)) / 2
    if x is not None:
        for a, b in commuted(x, "mul"):
            e = shifted(b, 1.0)
            if e is not None and e.node.op == "erf" and scaled(e.node.operands[0], math.sqrt(0.5)) == a:
                name = _read(cx, a)
                return None if name is None else cx.op("Gelu", name)
    return None


PATTERNS: tuple[tuple[tuple[str, ...], Pattern], ...] = (
    (("add", "mul"), normalisation),
    (("mul",), gelu),
    (("mul",), silu),
    (("div", "sub"), softmax),
    (("div",), mean),
)


def formed(cx: Cx, n: Node) -> Any:
    """What n is as the last node of a pattern, or None."""
    for ops, pattern in PATTERNS:
        if n.op in ops and (out := pattern(cx, n)) is not None:
            cx.shared.notes[f"formed {pattern.__name__}"] += 1
            return out
    return None
