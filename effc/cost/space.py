"""What is measured: shapes drawn at random, one sampler for each kind of call.

A sampler gives a :class:`Case`: a graph of one op, whose lowering makes the call in question. To have another kernel
measured, add a sampler here; its features are declared in ``features.py``. Sizes are drawn log-uniformly, often as
multiples of what models like (8, 16, 32), sometimes odd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.graph import Builder, Value
from ..ir.types import TensorType
from .calls import Call

Rng = np.random.Generator
MOST_FLOPS, MOST_BYTES = 8e8, 32 << 20  # of one call
SAMPLERS: dict[str, Sampler] = {}


@dataclass(frozen=True)
class Case:
    """A graph to measure. ``kernels``: prefixes of the calls that are meant, by family; others (copies, say) are not
    recorded. ``spec`` names it."""

    family: str
    spec: str
    build: Callable[[Builder], Value]
    kernels: tuple[str, ...]


Sampler = Callable[[Rng], Case | None]


def sampler(name: str) -> Callable[[Sampler], Sampler]:
    """Registers a sampler under a name, which ``effc tune --kernels`` takes."""

    def register(f: Sampler) -> Sampler:
        SAMPLERS[name] = f
        return f

    return register


def size(rng: Rng, low: int, high: int) -> int:
    """A size between the two, log-uniform; two of three are multiples of 8, where that is not far off."""
    x = float(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
    step = (1, 8, 32)[int(rng.integers(3))]
    return int(min(high, max(low, round(x / step) * step if x > 2 * step else int(x))))


def _type(*shape: int, dtype: DType = DType.f32) -> TensorType:
    return TensorType(dtype, shape)


def _constant(b: Builder, rng: Rng, *shape: int) -> Value:
    return b.constant(rng.standard_normal(shape, np.float32) * 0.1)


def _tail(b: Builder, x: Value, kind: str, rng: Rng, axis: int) -> Value:
    """What may follow a product: nothing, a bias, a bias and a clamp."""
    if kind == "none":
        return x
    shape = [1] * x.type.rank
    shape[axis] = int(x.shape[axis])  # type: ignore[call-overload]
    y = b.op("add", x, b.op("broadcast_to", _constant(b, rng, *shape), shape=x.shape))
    if kind == "relu":
        zero = b.op("broadcast_to", b.constant(np.zeros((1,) * x.type.rank, np.float32)), shape=x.shape)
        y = b.op("maximum", y, zero)
    return y


@sampler("conv")
def conv(rng: Rng) -> Case | None:
    """Convolutions of images: 1x1, 3x3, 5x5 and 7x7, strides 1 and 2, groups, also long rows of sound."""
    kind = rng.choice(["1x1", "3x3", "3x3", "5x5", "7x7", "row", "grouped"], p=[0.34, 0.16, 0.16, 0.08, 0.06, 0.1, 0.1])
    batch = int(rng.choice([1, 1, 1, 2, 4, 8, 16]))
    groups = 1
    ci, co = size(rng, 3, 1280), size(rng, 8, 1280)
    if kind == "row":
        k, image = (int(rng.choice([3, 5, 9, 16, 64])), 1), (size(rng, 8, 2048), 1)
    elif kind == "1x1":
        k, image = (1, 1), (size(rng, 4, 112),) * 2
    else:
        n = 3 if kind == "grouped" else int(kind[0])
        k, image = (n, n), (size(rng, max(5, n), 112 if n < 7 else 224),) * 2
        if n == 7 or rng.random() < 0.12:
            ci = int(rng.choice([1, 3, 3, 4]))
            if rng.random() < 0.5:
                image = (size(rng, 32, 224),) * 2
    if kind == "grouped":
        groups = int(rng.choice([2, 4, 8, 32]))
        ci, co = max(2, ci // groups) * groups, max(1, co // groups) * groups
    stride = (2, 2 if k[1] > 1 or image[1] > 1 else 1) if rng.random() < 0.25 and kind != "1x1" else (1, 1)
    pad = [(x // 2, x // 2) for x in k] if rng.random() < 0.85 else [(0, 0), (0, 0)]
    out = [(i + p[0] + p[1] - x) // s + 1 for i, p, x, s in zip(image, pad, k, stride)]
    if min(out) < 1:
        return None
    flops = 2.0 * batch * prod(out) * co * (ci // groups) * prod(k)
    if flops > MOST_FLOPS or 4 * co * ci // groups * prod(k) > MOST_BYTES or 4 * batch * ci * prod(image) > MOST_BYTES:
        return None
    tail = str(rng.choice(["none", "bias", "relu"]))
    seed = int(rng.integers(1 << 31))

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        x = b.input("x", _type(batch, *image, ci))  # channels innermost, as a convolution before would leave them
        x = b.op("permute", x, dims=(0, 3, 1, 2)) if ci > 4 else b.op("reshape", x, shape=(batch, ci, *image))
        y = b.op(
            "conv",
            x,
            _constant(b, r, co, ci // groups, *k),
            stride=stride,
            padding=tuple(pad),
            dilation=(1, 1),
            groups=groups,
        )
        return _tail(b, y, tail, r, 1)

    spec = f"conv {batch}x{ci}x{image} {co} {k} s{stride} p{pad} g{groups} {tail}"
    return Case("conv", spec, build, ("effc_conv_f32",))


@sampler("winograd")
def winograd(rng: Rng) -> Case | None:
    """3x3 convolutions by Winograd's algorithm, with tiles of 2 and 4."""
    c, o, batch, tile = size(rng, 8, 512), size(rng, 8, 512), int(rng.choice([1, 1, 2, 4])), int(rng.choice([2, 4]))
    side, pad = size(rng, 5, 160), ((1, 1), (1, 1))
    if 18.0 * batch * side**2 * c * o > MOST_FLOPS or 4 * batch * max(c, o) * side**2 > MOST_BYTES:
        return None
    if 4 * (tile + 2) ** 2 * c * o > MOST_BYTES:
        return None
    seed = int(rng.integers(1 << 31))

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        x = b.op("permute", b.input("x", _type(batch, side, side, c)), dims=(0, 3, 1, 2))
        inner = Builder()
        body = inner.graph([inner.input("acc", _type(batch, o, side, side))])
        return b.op("conv_winograd", x, _constant(b, r, o, c, 3, 3), padding=pad, tile=tile, body=body)

    return Case("winograd", f"winograd {batch}x{c}x{side} {o} F{tile}", build, ("effc_conv_winograd_f32",))


@sampler("depthwise")
def depthwise(rng: Rng) -> Case | None:
    """Depthwise convolutions: 3x3, 5x5, 7x7, strides 1 and 2."""
    batch, c, n = int(rng.choice([1, 1, 2, 4])), size(rng, 8, 1280), int(rng.choice([3, 3, 5, 7]))
    image, s = size(rng, max(5, n), 128), int(rng.choice([1, 1, 2]))
    if 4 * batch * c * image**2 > MOST_BYTES // 2:
        return None
    tail = str(rng.choice(["none", "bias", "relu"]))
    seed, p = int(rng.integers(1 << 31)), n // 2

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        x = b.op("permute", b.input("x", _type(batch, image, image, c)), dims=(0, 3, 1, 2))
        w = _constant(b, r, c, 1, n, n)
        y = b.op("conv", x, w, stride=(s, s), padding=((p, p), (p, p)), dilation=(1, 1), groups=c)
        return _tail(b, y, tail, r, 1)

    return Case("depthwise", f"dw {batch}x{c}x{image} {n} s{s} {tail}", build, ("effc_conv_dw_f32",))


@sampler("matmul")
def matmul(rng: Rng) -> Case | None:
    """Products by a constant (packed in advance), by another operand, and batches of them."""
    kind = str(rng.choice(["packed", "packed", "packed", "plain", "batched"]))
    m = int(rng.choice([1, 1, 2, 4, 8, 16])) if rng.random() < 0.3 else size(rng, 1, 2048)
    k, n = size(rng, 16, 4096), size(rng, 16, 4096)
    batch = 1
    if kind == "batched":
        batch, m, k, n = int(rng.choice([2, 4, 8, 12, 16])), min(m, 512), size(rng, 16, 256), size(rng, 16, 512)
    if rng.random() < 0.08 and kind == "packed":
        n = size(rng, 4096, 32000)
    if 2.0 * batch * m * k * n > MOST_FLOPS or 4 * batch * k * n > MOST_BYTES or 4 * batch * m * n > MOST_BYTES:
        return None
    tail = str(rng.choice(["none", "bias", "relu"]))
    across = bool(rng.random() < 0.3)  # k contiguous in the right-hand side
    seed = int(rng.integers(1 << 31))

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        lead = (batch,) if kind == "batched" else ()
        x = b.input("x", _type(*lead, m, k))
        if kind == "packed":
            w = _constant(b, r, k, n)
        elif across:
            w = b.input("w", _type(*lead, n, k))
            w = b.op("permute", w, dims=(*range(len(lead)), len(lead) + 1, len(lead)))
        else:
            w = b.input("w", _type(*lead, k, n))
        y = b.op("matmul", x, w)
        return _tail(b, y, tail, r, len(lead) + 1)

    spec = f"matmul {kind} {batch}x{m}x{k}x{n} {tail} {int(across)}"
    return Case("matmul", spec, build, ("effc_matmul_f32", "effc_matmul_packed_f32"))


@sampler("attention")
def attention(rng: Rng) -> Case | None:
    """Attention: heads of 16 to 128, one query or many, causal or not."""
    b, h, e = (
        int(rng.choice([1, 1, 2, 4])),
        int(rng.choice([2, 4, 6, 8, 12, 16])),
        int(rng.choice([16, 32, 64, 64, 128])),
    )
    lk = size(rng, 4, 2048)
    lq = 1 if rng.random() < 0.2 else lk if rng.random() < 0.7 else size(rng, 1, lk)
    causal = bool(rng.random() < 0.4) and lq == lk
    if 4.0 * b * h * lq * lk * e > MOST_FLOPS or 4 * b * h * lk * e > MOST_BYTES // 2:
        return None

    def build(g: Builder) -> Value:
        q, k, v = (
            g.op("permute", g.input(n, _type(b, x, h, e)), dims=(0, 2, 1, 3))
            for n, x in (("q", lq), ("k", lk), ("v", lk))
        )
        return g.op("attention", q, k, v, causal=causal)

    return Case("attention", f"attention {b}x{h}x{lq}x{lk}x{e} {int(causal)}", build, ("effc_attention_f32",))


UNARY = ("exp", "tanh", "erf", "sigmoid", "sqrt", "reciprocal", "abs", "neg")
BINARY = ("add", "mul", "sub", "div", "maximum")


def _loop_body(b: Builder, x: Value, ys: list[Value], names: tuple[str, ...]) -> Value:
    todo = list(ys)
    for n in names:
        if n in BINARY:
            x = b.op(n, x, todo.pop() if todo else x)
        else:
            x = b.op(n, x)
    return x


# Loops are compiled for each body, so that bodies come from a fixed list.
BODIES: tuple[tuple[str, ...], ...] = (
    ("add",),
    ("mul", "add"),
    ("maximum",),
    ("exp",),
    ("tanh",),
    ("sigmoid", "mul"),
    ("erf", "mul", "add"),
    ("div", "sub"),
    ("add", "add", "mul"),
    ("sqrt", "reciprocal"),
    ("mul", "tanh", "add", "mul"),
    ("exp", "exp", "add"),
)


@sampler("map")
def elementwise(rng: Rng) -> Case | None:
    """Elementwise loops over 1 KB to 48 MB, with operands of full size or repeated along rows or columns."""
    names = BODIES[int(rng.integers(len(BODIES)))]
    cols = size(rng, 8, 4096)
    rows = size(rng, 1, max(1, min(1 << 20, (MOST_BYTES // 12) // cols)))
    need = sum(n in BINARY for n in names)
    full = [bool(rng.random() < 0.5) for _ in range(need)]

    def build(b: Builder) -> Value:
        x = b.input("x", _type(rows, cols))
        ys = []
        for i, whole in enumerate(full):
            y = b.input(f"y{i}", _type(rows if whole else 1, cols))
            ys.append(y if whole else b.op("broadcast_to", y, shape=(rows, cols)))
        return _loop_body(b, x, ys, names)

    return Case("map", f"map {'.'.join(names)} {rows}x{cols} {full}", build, ("map_",))


@sampler("reduce")
def reduction(rng: Rng) -> Case | None:
    """Sums and maxima along rows and columns, softmax, layer and RMS norms."""
    kind = str(rng.choice(["sum", "max", "softmax", "layer_norm", "rms_norm"]))
    cols = size(rng, 8, 4096)
    rows = size(rng, 1, max(1, min(1 << 18, (MOST_BYTES // 8) // cols)))
    axis = 0 if kind in ("sum", "max") and rng.random() < 0.4 else 1

    def build(b: Builder) -> Value:
        x = b.input("x", _type(rows, cols))

        def reduce(v: Value, what: str) -> Value:
            return b.op("broadcast_to", b.op("reduce", v, kind=what, dims=(axis,), keepdims=True), shape=(rows, cols))

        def scalar(value: float) -> Value:
            return b.op("broadcast_to", b.constant(np.full((1, 1), value, np.float32)), shape=(rows, cols))

        if kind in ("sum", "max"):
            return b.op("reduce", x, kind=kind, dims=(axis,), keepdims=False)
        if kind == "softmax":
            e = b.op("exp", b.op("sub", x, reduce(x, "max")))
            return b.op("div", e, reduce(e, "sum"))
        if kind == "layer_norm":
            x = b.op("sub", x, b.op("mul", reduce(x, "sum"), scalar(1 / cols)))
        square = b.op("mul", reduce(b.op("mul", x, x), "sum"), scalar(1 / cols))
        y = b.op("mul", x, b.op("rsqrt", b.op("add", square, scalar(1e-5))))
        g = b.op("broadcast_to", b.input("g", _type(1, cols)), shape=(rows, cols))
        return b.op("mul", y, g)

    return Case("red", f"reduce {kind} {rows}x{cols} {axis}", build, ("red_",))


@sampler("copy")
def copy(rng: Rng) -> Case | None:
    """Copies that change the order of dims."""
    a, b_, c = size(rng, 1, 16), size(rng, 4, 1024), size(rng, 4, 1024)
    if 4 * a * b_ * c > MOST_BYTES // 2:
        return None
    order: Any = [(0, 2, 1), (2, 0, 1), (1, 0, 2)][int(rng.integers(3))]

    def build(b: Builder) -> Value:
        y = b.op("permute", b.input("x", _type(a, b_, c)), dims=order)
        return b.op("reshape", y, shape=(a * b_ * c,))  # a permutation alone is a view

    return Case("copy", f"copy {a}x{b_}x{c} {order}", build, ("effc_copy",))


# Calls of models ------------------------------------------------------------------------------------------------------


def like(call: Call) -> Case | None:
    """A case whose lowering makes a call of these shapes, with weights and inputs made up; None for a kind of call that
    no case is made of. Bias and clamp stay, other epilogues do not."""
    x = call.ins[0]
    if x is None or any(t is not None and t.dtype not in ("f32", "u8") for t in call.ins):
        return None
    if call.kernel == "effc_conv_f32" and call.attrs[0] and not call.attrs[1] and not call.attrs[2]:
        return _conv_like(call)
    if call.kernel.startswith("effc_matmul") and x.shape[:2] == (1, 1):
        return _matmul_like(call)
    return None


def _conv_like(call: Call) -> Case:
    a, x = call.attrs, call.ins[0]
    assert x is not None
    batch, ci, nd = x.shape[0], x.shape[1], len(x.shape) - 2
    groups, oc, size = a[3], a[4], x.shape[2:]
    k, s, low, dil, out = (tuple(a[i + 3 - nd : i + 3]) for i in (5, 8, 11, 14, 17))
    high = [(o - 1) * t + d * (n - 1) + 1 - i - p for o, t, d, n, i, p in zip(out, s, dil, k, size, low)]
    pad = tuple((p, max(0, h)) for p, h in zip(low, high))
    tail = "relu" if a[24] & 4 else "bias" if a[24] & 1 or call.epilogue else "none"
    inner = x.strides[1] == 1

    def build(b: Builder) -> Value:
        r = np.random.default_rng(0)
        if inner and ci > 1:
            v = b.op("permute", b.input("x", _type(batch, *size, ci)), dims=(0, nd + 1, *range(1, nd + 1)))
        else:
            v = b.input("x", _type(batch, ci, *size))
        w = _constant(b, r, oc, ci // groups, *k)
        y = b.op("conv", v, w, stride=s, padding=pad, dilation=dil, groups=groups)
        return _tail(b, y, tail, r, 1)

    return Case("conv", f"conv {batch}x{ci}x{size} {oc} {k} s{s} p{pad} g{groups} {tail}", build, ("effc_conv_f32",))


def _matmul_like(call: Call) -> Case:
    x, packed = call.ins[0], "packed" in call.kernel
    assert x is not None
    m, k = x.shape[2:]
    n = call.outs[0].shape[3]
    across = not packed and call.ins[1] is not None and call.ins[1].strides[2] == 1
    tail = "bias" if call.epilogue else "none"

    def build(b: Builder) -> Value:
        r = np.random.default_rng(0)
        v = b.input("x", _type(m, k))
        if packed:
            w = _constant(b, r, k, n)
        else:
            w = b.op("permute", b.input("w", _type(n, k)), dims=(1, 0)) if across else b.input("w", _type(k, n))
        return _tail(b, b.op("matmul", v, w), tail, r, 1)

    kind = "packed" if packed else "plain"
    return Case("matmul", f"matmul {kind} {m}x{k}x{n} {tail} {int(across)}", build, ("effc_matmul_",))
