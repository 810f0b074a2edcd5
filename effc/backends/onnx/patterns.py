"""Groups of the IR's ops that are one op of ONNX: means, softmax, normalisations, GELU, Clip, PRelu, Gemm, biases.

A pattern is tried at the last node of its group. What matches is written as the one op; the other nodes of the group
are written as always, and left out of the model if nothing else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dims import Dim
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
    count = D.product([x.shape[d] for d in dims])
    if not dims or x.dtype not in (DType.f32, DType.f64) or count == 0 or _count(n.operands[1]) != count:
        return None
    if cx.shared.strict_nan and any(cx.low(x.shape[d]) <= 0 for d in dims):  # onnxruntime's mean of nothing is 0
        return None
    name = _read(cx, x)
    if name is None:
        return None
    pooled = x.rank == 4 and dims == (2, 3) and r.attrs["keepdims"] and x.dtype is DType.f32
    if pooled and all(cx.low(d) > 0 for d in x.shape):  # onnxruntime keeps its blocked layout up to a pooling
        return cx.op("GlobalAveragePool", name)
    return cx.op("ReduceMean", name, cx.ints(*dims), keepdims=int(r.attrs["keepdims"]))


def _count(v: Value) -> Dim | None:
    """The whole number or the size that a float scalar holds."""
    if v.node.op == "dim_value":
        d: Dim = v.node.attrs["value"]
        return d
    x = number(v)
    return int(x) if x is not None and x == int(x) else None


def norm(cx: Cx, n: Node) -> str | None:
    """sqrt(sum(x * x)) over any dims."""
    if n.op != "sqrt" or n.types[0].dtype not in (DType.f32, DType.f64):
        return None
    r = n.operands[0].node
    if r.op != "reduce" or r.attrs["kind"] != "sum" or not r.attrs["dims"] or r.operands[0].node.op != "mul":
        return None
    a, b = r.operands[0].node.operands
    name = _read(cx, a) if a == b else None
    return (
        None if name is None else cx.op("ReduceL2", name, cx.ints(*r.attrs["dims"]), keepdims=int(r.attrs["keepdims"]))
    )


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
    """(x, dim) if v is x - max(x) along the dim that ``total`` sums over; more dims may be, of size 1."""
    dims = total.attrs["dims"]
    if v.node.op != "sub" or not total.attrs["keepdims"]:
        return None, 0
    x, top = v.node.operands
    r = top.node
    same = r.op == "reduce" and r.attrs["kind"] == "max" and r.attrs["dims"] == dims and r.attrs["keepdims"]
    if not same or r.operands[0] != x:
        return None, 0
    wide = [d for d in dims if x.shape[d] != 1] or list(dims[:1])
    return (x, wide[0]) if len(wide) == 1 else (None, 0)


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


def _channels(v: Value, x: Value) -> bool:
    """Whether v is a constant with one value for each channel of x, which is [N, C, ...] with a spatial dim."""
    if v.node.op == "reshape":  # of a shared constant
        return _channels_shape(v, x) and v.node.operands[0].node.op == "constant"
    return _channels_shape(v, x) and v.node.op == "constant"


def _channels_shape(v: Value, x: Value) -> bool:
    ones = (1,) * (x.rank - 2)
    return x.rank > 2 and v.dtype is x.dtype and v.shape in ((x.shape[1], *ones), (1, x.shape[1], *ones))


def _flat(cx: Cx, v: Value) -> str | None:
    """One value for each channel, as a vector."""
    if v.node.op == "reshape" and v.node.operands[0].rank == 1:
        return _read(cx, v.node.operands[0])
    x = _read(cx, v)
    return None if x is None else cx.reshape(x, v.shape, (D.product(v.shape),))


def biased(cx: Cx, n: Node) -> str | None:
    """A convolution and its bias, if only the bias reads it."""
    from .emit.contraction import conv, conv_transpose

    if n.op != "add" or n.types[0].dtype is not DType.f32:
        return None
    for y, b in commuted(n[0], "add"):
        c = y.node
        if c.op not in ("conv", "conv_transpose") or len(cx.shared.users.get(y, ())) != 1:
            continue
        made = b.node.op == "reshape" and b.node.operands[0].rank == 1 and _channels_shape(b, y)
        if not (made or _channels(b, y)):
            continue
        if y.shape != n.types[0].shape or 0 in y.shape or 0 in c.operands[1].shape:
            continue
        x, w, bias = _read(cx, c.operands[0]), _read(cx, c.operands[1]), _flat(cx, b)
        if x is not None and w is not None and bias is not None:
            written: str = (conv if c.op == "conv" else conv_transpose)(cx, c, x, w, bias)
            return written
    return None


def gemm(cx: Cx, n: Node) -> str | None:
    """A product of matrices and its bias, if only the bias reads it."""
    if n.op != "add" or n.types[0].dtype is not DType.f32:
        return None
    for y, c in commuted(n[0], "add"):
        if y.node.op != "matmul" or y.rank != 2 or len(cx.shared.users.get(y, ())) != 1:
            continue
        a, b = y.node.operands
        # Gemm's C is broadcast to the product, never the product to C; an inner size of 0 is left to MatMul.
        if n.types[0].shape != y.shape or c.shape not in ((y.shape[1],), (1, y.shape[1]), y.shape):
            continue
        if a.rank != 2 or b.rank != 2 or cx.low(a.shape[1]) <= 0 or 0 in y.shape:
            continue
        turned = b.node.op == "permute" and b.node.attrs["dims"] == (1, 0)
        ins = [_read(cx, v) for v in (a, b.node.operands[0] if turned else b, c)]
        if None not in ins:
            return cx.op("Gemm", *ins, **({"transB": 1} if turned else {}))
    return None


def batch_norm(cx: Cx, n: Node) -> str | None:
    """(x - mean) * scale + bias by channel; a variance of 1 and no epsilon leave the scale as it is."""
    if n.op != "add" or n.types[0].dtype is not DType.f32:
        return None
    for y, bias in commuted(n[0], "add"):
        for d, scale in commuted(y, "mul"):
            mean: Value | None = None
            x = d
            if d.node.op == "sub" and _channels(d.node.operands[1], d):
                x, mean = d.node.operands
            if x.shape != n.types[0].shape or not _channels(bias, x) or not _channels(scale, x):
                continue
            if not isinstance(x.shape[1], int) or x.shape[1] == 0:
                continue
            zero, one = (cx.const(np.full(x.shape[1], k), DType.f32) for k in (0, 1))
            ins = [_read(cx, x), _flat(cx, scale), _flat(cx, bias), zero if mean is None else _flat(cx, mean), one]
            if None not in ins:
                return cx.op("BatchNormalization", *ins, epsilon=0.0)
    return None


def clip(cx: Cx, n: Node) -> str | None:
    """min(max(x, low), high) for two numbers in order; NaN stays."""
    if n.op != "minimum" or n.types[0].dtype is not DType.f32:
        return None
    for y, high in commuted(n[0], "minimum"):
        for x, low in commuted(y, "maximum"):
            lo, hi = number(low), number(high)
            if lo is None or hi is None or not lo <= hi or x.shape != n.types[0].shape:
                continue
            if (name := _read(cx, x)) is not None:
                return cx.op("Clip", name, cx.like(lo, name), cx.like(hi, name))
    return None


def prelu(cx: Cx, n: Node) -> str | None:
    """x where it is positive, else x * slope, for constant slopes."""
    if n.op != "where" or n.types[0].dtype is not DType.f32 or n.operands[0].node.op not in ("lt", "le", "gt", "ge"):
        return None
    test = n.operands[0].node
    below, above = n.operands[1:] if test.op in ("lt", "le") else n.operands[:0:-1]
    x = test.operands[0]
    if number(test.operands[1]) != 0 or above != x or x.shape != n.types[0].shape:
        return None
    for y, slope in commuted(below, "mul"):
        data = slope.node.attrs["data"] if slope.node.op == "constant" else None
        if y != x or data is None or not np.isfinite(data).all():
            continue
        name, by = _read(cx, x), _read(cx, slope)
        if name is None or by is None:
            continue
        if data.size == 1:
            return cx.op("LeakyRelu", name, alpha=float(data.reshape(-1)[0]))
        if slope.rank > x.rank:
            continue
        by = cx.reshape(by, slope.shape, _trimmed(slope.shape))
        # onnxruntime's PRelu branches at each element. For slopes up to 1 it is max(x, x * slope), ten times faster at
        # one node more; a slope of 0 would make NaN of infinity.
        if cx.shared.contributed and (data <= 1).all() and (data != 0).all():
            return cx.op("Max", name, cx.op("Mul", name, by))
        return cx.op("PRelu", name, by)
    return None


def _trimmed(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """A shape without ones in front: [1, C, 1, 1] as [C, 1, 1], for which onnxruntime has a path of its own."""
    ones = next((i for i, d in enumerate(shape) if d != 1), len(shape))
    return tuple(shape[ones:])


def unwrapped(v: Value, size: Dim) -> Value:
    """i of where(i < 0, i + size, i): Gather counts negative indices from the end by itself."""
    n = v.node
    if n.op != "where" or n.operands[0].node.op != "lt" or number(n.operands[0].node.operands[1]) != 0:
        return v
    i = n.operands[0].node.operands[0]
    for a, s in commuted(n.operands[1], "add"):
        same = n.operands[2] == i or (i.node.op == "broadcast_to" and i.node.operands[0] == n.operands[2])
        if a == i and same and i.shape == v.shape and _count(s) == size:
            return i
    return v


def gather(cx: Cx, n: Node) -> str | None:
    """Entries by indices that were made positive first."""
    x, dim = n.operands[0], n.attrs["dim"]
    i = unwrapped(n.operands[1], x.shape[dim])
    if i == n.operands[1] or x.dtype.is_complex or 0 in n.types[0].shape:
        return None
    data, at = _read(cx, x), _read(cx, i)
    if data is None or at is None:
        return None
    return cx.op("Gather" if n.op == "take" else "GatherElements", data, at, axis=dim)


def split(cx: Cx, n: Node) -> str | None:
    """One part of a tensor of which all parts along one dim are taken."""
    x = n.operands[0]
    parts: dict[tuple[int, int, int], None] = {}
    for u in cx.shared.users.get(x, ()):
        part = None if u is None or u.op != "slice" else _part(u)
        if part is None:
            return None
        parts[part] = None
    mine = _part(n)
    rows = sorted(parts)
    if mine is None or x.dtype.is_complex or len(rows) < 2 or len({dim for dim, *_ in rows}) != 1:
        return None
    dim = mine[0]
    edges = [0, *(hi for _, _, hi in rows)]
    if [lo for _, lo, _ in rows] != edges[:-1] or edges[-1] != x.shape[dim] or (name := _read(cx, x)) is None:
        return None
    sizes = cx.ints(*(hi - lo for _, lo, hi in rows))
    return cx.many("Split", [name, sizes], len(rows), axis=dim)[rows.index(mine)]


def _part(n: Node) -> tuple[int, int, int] | None:
    """(dim, start, stop) if n takes a constant range of one dim."""
    a, shape = n.attrs, n.operands[0].shape
    cut = [d for d, size in enumerate(shape) if (a["starts"][d], a["stops"][d]) != (0, size)]
    if len(cut) != 1 or set(a["steps"]) != {1}:
        return None
    lo, hi = a["starts"][cut[0]], a["stops"][cut[0]]
    return (cut[0], lo, hi) if isinstance(lo, int) and isinstance(hi, int) and 0 <= lo < hi else None


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
    (("add",), biased),
    (("add",), gemm),
    (("add", "mul"), normalisation),
    (("add",), batch_norm),
    (("minimum",), clip),
    (("where",), prelu),
    (("take", "gather"), gather),
    (("slice",), split),
    (("sqrt",), norm),
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
