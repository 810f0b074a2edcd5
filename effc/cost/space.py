"""What is measured: shapes drawn at random, one sampler for each kind of call.

A sampler gives a :class:`Case`: a graph of one op, whose lowering makes the call in question. To have another kernel
measured, add a sampler here; its features are declared in ``features``. Sizes are drawn log-uniformly, often as
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
from ..ir.ops.conv import winograd_side
from ..ir.types import TensorType
from .calls import Call

Rng = np.random.Generator
MOST_FLOPS, MOST_BYTES = 8e8, 32 << 20  # of one call
SAMPLERS: dict[str, Sampler] = {}


@dataclass(frozen=True)
class Case:
    """A graph to measure. ``kernels``: prefixes of the calls that are meant, by family; others (copies, say) are not
    recorded. For a set of alternatives ``family`` is its name, and all calls are. ``spec`` names it."""

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


def most(rng: Rng) -> float:
    """The most operations of a call: one of six is of a large model."""
    return MOST_FLOPS * (6 if rng.random() < 1 / 6 else 1)


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
    if flops > most(rng) or 4 * co * ci // groups * prod(k) > MOST_BYTES or 4 * batch * ci * prod(image) > MOST_BYTES:
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


@sampler("upsampling")
def upsampling(rng: Rng) -> Case | None:
    """Transposed convolutions with a stride of 2: windows of 2, and of 3 or 4 that overlap."""
    ci, co, side, k = size(rng, 8, 512), size(rng, 8, 512), size(rng, 4, 128), int(rng.choice([2, 2, 3, 4]))
    if 2.0 * ci * co * side**2 * k**2 > MOST_FLOPS or 16 * max(ci, co) * side**2 > MOST_BYTES:
        return None
    pad, extra, seed = (k - 1) // 2, int(k == 3), int(rng.integers(1 << 31))

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        x = b.op("permute", b.input("x", _type(1, side, side, ci)), dims=(0, 3, 1, 2))
        more = {"stride": (2, 2), "padding": ((pad, pad),) * 2, "output_padding": (extra, extra), "dilation": (1, 1)}
        y = b.op("conv_transpose", x, _constant(b, r, ci, co, k, k), groups=1, **more)
        return _tail(b, y, "relu", r, 1)

    return Case("conv", f"upsampling {ci}x{side} {co} {k}", build, ("effc_conv_f32",))


@sampler("winograd")
def winograd(rng: Rng) -> Case | None:
    """3x3 convolutions by Winograd's algorithm, with tiles of 2 and 4, a fourth of them of stride 2."""
    c, o, batch, tile = size(rng, 8, 512), size(rng, 8, 512), int(rng.choice([1, 1, 2, 4])), int(rng.choice([2, 4]))
    stride = int(rng.choice([1, 1, 1, 2]))
    side, pad = size(rng, 5, 160), ((1, 1), (1, 1))
    if 18.0 * batch * side**2 * c * o > MOST_FLOPS or 4 * batch * max(c, o) * side**2 > MOST_BYTES:
        return None
    if 4 * winograd_side(tile, stride) ** 2 * c * o > MOST_BYTES:
        return None
    seed, out = int(rng.integers(1 << 31)), (side - 1) // stride + 1

    def build(b: Builder) -> Value:
        r = np.random.default_rng(seed)
        x = b.op("permute", b.input("x", _type(batch, side, side, c)), dims=(0, 3, 1, 2))
        inner = Builder()
        body = inner.graph([inner.input("acc", _type(batch, o, out, out))])
        w = _constant(b, r, o, c, 3, 3)
        return b.op("conv_winograd", x, w, padding=pad, tile=tile, stride=stride, body=body)

    spec = f"winograd {batch}x{c}x{side} {o} F{tile}" + (f" s{stride}" if stride > 1 else "")
    return Case("winograd", spec, build, ("effc_conv_winograd_f32",))


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
    if 2.0 * batch * m * k * n > most(rng) or 4 * batch * k * n > 4 * MOST_BYTES or 4 * batch * m * n > MOST_BYTES:
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
    if 4.0 * b * h * lq * lk * e > most(rng) or 4 * b * h * lk * e > MOST_BYTES // 2:
        return None
    return heads(b, h, lq, lk, e, causal)


def heads(b: int, h: int, lq: int, lk: int, e: int, causal: bool) -> Case:
    """Attention of ``h`` heads whose elements are innermost, heads next to them."""

    def build(g: Builder) -> Value:
        q, k, v = (
            g.op("permute", g.input(n, _type(b, x, h, e)), dims=(0, 2, 1, 3))
            for n, x in (("q", lq), ("k", lk), ("v", lk))
        )
        return g.op("attention", q, k, v, causal=causal)

    return Case("attention", f"attention {b}x{h}x{lq}x{lk}x{e} {int(causal)}", build, ("effc_attention_f32",))


UNARY = ("exp", "tanh", "erf", "sigmoid", "sqrt", "reciprocal", "abs", "neg")
BINARY = ("add", "mul", "sub", "div", "maximum")


CONSTANT = {"scale": ("mul", 0.125), "shift": ("add", 3.0), "at_least": ("maximum", 0.0), "at_most": ("minimum", 6.0)}


def _loop_body(b: Builder, x: Value, ys: list[Value], names: tuple[str, ...]) -> Value:
    todo = list(ys)
    for n in names:
        if n in BINARY:
            x = b.op(n, x, todo.pop() if todo else x)
        elif n in CONSTANT:
            x = b.op(CONSTANT[n][0], x, _full(b, CONSTANT[n][1], x))
        elif n == "gelu_tanh":  # half of x (1 + tanh(c (x + 0.0447 x^3)))
            cube = b.op("mul", b.op("mul", b.op("mul", x, x), x), _full(b, 0.044715, x))
            y = b.op("tanh", b.op("mul", b.op("add", x, cube), _full(b, 0.7978845608, x)))
            x = b.op("mul", b.op("mul", x, _full(b, 0.5, x)), b.op("add", y, _full(b, 1.0, x)))
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
    ("add", "gelu_tanh"),
    ("scale",),
    ("at_least", "div"),
    ("shift", "at_least", "at_most", "scale", "mul"),
    ("sqrt",),
)
# Widths of models' layers; channels and sides of their images.
WIDTHS = (192, 256, 320, 384, 512, 576, 768, 1024, 1280, 2048, 3072)
CHANNELS = (3, 16, 24, 32, 40, 48, 64, 64, 80, 96, 112, 128, 128, 192, 256, 256, 320, 480, 512, 672, 960, 1280, 2048)
SIDES = (4, 7, 7, 8, 10, 13, 14, 14, 16, 20, 23, 28, 28, 32, 46, 56, 56, 64, 80, 112, 112, 128, 160)


def one_of(rng: Rng, values: tuple[int, ...]) -> int:
    return values[int(rng.integers(len(values)))]


@sampler("map")
def elementwise(rng: Rng) -> Case | None:
    """Elementwise loops over 1 KB to 48 MB, a third as wide as models' layers, with operands of full size or repeated
    along rows or columns; one of eight is of few elements."""
    names, how = BODIES[int(rng.integers(len(BODIES)))], rng.random()
    cols = one_of(rng, WIDTHS) if how < 1 / 3 else size(rng, 8, 4096)
    rows = size(rng, 1, max(1, min(1 << 20, (MOST_BYTES // 12) // cols)))
    if how > 7 / 8:
        rows, cols = 1, size(rng, 2, 512)
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
    """Sums and maxima along rows and columns, sums of squares, softmax, layer and RMS norms, and what transformers make
    of them: a sum of two normed, scaled and shifted, and the mean of rows by their weights. Two of five are as wide as
    models' layers and have no more rows than those."""
    kinds = "sum max squares softmax layer_norm rms_norm residual_norm residual_norm mean_rows"
    kind = str(rng.choice(kinds.split()))
    cols = size(rng, 2, 4096)
    rows = size(rng, 1, max(1, min(1 << 18, (MOST_BYTES // 8) // cols)))
    if rng.random() < 0.4:
        cols, rows = one_of(rng, WIDTHS), size(rng, 1, 1024)
    axis = 0 if kind == "mean_rows" or (kind in ("sum", "max") and rng.random() < 0.4) else 1
    if rows == 1 and kind in ("sum", "max", "squares", "mean_rows"):  # one element, or nothing to reduce
        return None

    def build(b: Builder) -> Value:
        x = b.input("x", _type(rows, cols))

        def reduce(v: Value, what: str) -> Value:
            return b.op("broadcast_to", b.op("reduce", v, kind=what, dims=(axis,), keepdims=True), shape=(rows, cols))

        def scalar(value: float) -> Value:
            return b.op("broadcast_to", b.constant(np.full((1, 1), value, np.float32)), shape=(rows, cols))

        if kind in ("sum", "max"):
            return b.op("reduce", x, kind=kind, dims=(axis,), keepdims=False)
        if kind == "squares":
            return b.op("reduce", b.op("mul", x, x), kind="sum", dims=(1,), keepdims=False)
        if kind == "mean_rows":
            weight = b.op("broadcast_to", b.input("w", _type(rows, 1)), shape=(rows, cols))
            return b.op("reduce", b.op("mul", x, weight), kind="sum", dims=(0,), keepdims=False)
        if kind == "residual_norm":
            x = b.op("add", x, b.input("r", _type(rows, cols)))
        if kind == "softmax":
            e = b.op("exp", b.op("sub", x, reduce(x, "max")))
            return b.op("div", e, reduce(e, "sum"))
        if kind in ("layer_norm", "residual_norm"):
            x = b.op("sub", x, b.op("mul", reduce(x, "sum"), scalar(1 / cols)))
        square = b.op("mul", reduce(b.op("mul", x, x), "sum"), scalar(1 / cols))
        y = b.op("mul", x, b.op("rsqrt", b.op("add", square, scalar(1e-5))))
        g = b.op("broadcast_to", b.input("g", _type(1, cols)), shape=(rows, cols))
        y = b.op("mul", y, g)
        if kind == "residual_norm":
            y = b.op("add", y, b.op("broadcast_to", b.input("s", _type(1, cols)), shape=(rows, cols)))
        return y

    return Case("red", f"reduce {kind} {rows}x{cols} {axis}", build, ("red_",))


@sampler("copy")
def copy(rng: Rng) -> Case | None:
    """Copies that change the order of dims: any, an image's channels to the front, and heads before rows."""
    a, b_, c, how = size(rng, 1, 16), size(rng, 4, 1024), size(rng, 4, 1024), rng.random()
    order: Any = [(0, 2, 1), (2, 0, 1), (1, 0, 2)][int(rng.integers(3))]
    if how < 0.2:
        a, b_, c, order = int(rng.choice([1, 1, 2, 16])), one_of(rng, SIDES) ** 2, one_of(rng, CHANNELS), (0, 2, 1)
    elif how < 0.4:
        a, b_, c, order = size(rng, 2, 1024), int(rng.choice([2, 4, 8, 12, 16])), one_of(rng, (32, 64, 128)), (1, 0, 2)
    if a == 1 and order == (1, 0, 2):  # moves nothing
        return None
    if 4 * a * b_ * c > MOST_BYTES // 2:
        return None

    def build(b: Builder) -> Value:
        y = b.op("permute", b.input("x", _type(a, b_, c)), dims=order)
        return b.op("reshape", y, shape=(a * b_ * c,))  # a permutation alone is a view

    return Case("copy", f"copy {a}x{b_}x{c} {order}", build, ("effc_copy",))


@sampler("concat")
def concat(rng: Rng) -> Case | None:
    """Two images joined along their channels, which lie innermost."""
    side, parts = size(rng, 4, 160), [size(rng, 8, 512) for _ in range(2)]
    if 4 * side**2 * sum(parts) > MOST_BYTES // 2:
        return None

    def build(b: Builder) -> Value:
        xs = [b.input(f"x{i}", _type(1, side, side, c)) for i, c in enumerate(parts)]
        return b.op("concat", *(b.op("permute", x, dims=(0, 3, 1, 2)) for x in xs), dim=1)

    return Case("copy", f"concat {side} {parts}", build, ("effc_concat",))


@sampler("pool")
def pool(rng: Rng) -> Case | None:
    """Maxima and means of windows, channels innermost, and means of whole images. Three of five have a model's number
    of channels and side."""
    batch, c, side = int(rng.choice([1, 1, 2, 8, 16])), size(rng, 8, 512), size(rng, 6, 256)
    if rng.random() < 0.6:
        c, side = one_of(rng, CHANNELS), max(6, one_of(rng, SIDES))
    window, stride = ((2, 2), (3, 2), (3, 2), (3, 1), (0, 1))[int(rng.integers(5))]
    op = str(rng.choice(["max_pool", "max_pool", "avg_pool"])) if window else "avg_pool"
    window, pad = window or side, int(rng.choice([0, 1, 1])) if window == 3 else 0
    if 4 * batch * c * side**2 > MOST_BYTES:
        return None

    def build(b: Builder) -> Value:
        x = b.op("permute", b.input("x", _type(batch, side, side, c)), dims=(0, 3, 1, 2))
        more = {"dilation": (1, 1)} if op == "max_pool" else {}
        return b.op(op, x, kernel=(window,) * 2, stride=(stride,) * 2, padding=((pad, pad),) * 2, **more)

    return Case("pool", f"{op} {batch}x{c}x{side} {window} s{stride} p{pad}", build, ("effc_pool_f32",))


@sampler("rnn")
def recurrent(rng: Rng) -> Case | None:
    """LSTM, GRU and plain layers of 16 to 768 units."""
    kind = str(rng.choice(["lstm_layer", "lstm_layer", "gru_layer", "rnn_layer"]))
    units, batch = size(rng, 16, 768), int(rng.choice([1, 1, 1, 2, 3, 8, 16]))
    steps, features = size(rng, 1, 400), size(rng, 8, 512)
    gates = {"lstm_layer": 4, "gru_layer": 3, "rnn_layer": 1}[kind]
    if 2.0 * gates * units * (units + features) * batch * steps > MOST_FLOPS:
        return None
    return layer(kind, steps, batch, features, units)


def layer(kind: str, steps: int, batch: int, features: int, units: int) -> Case:
    """One direction of a recurrent layer with biases."""
    gates = {"lstm_layer": 4, "gru_layer": 3, "rnn_layer": 1}[kind]

    def build(b: Builder) -> Value:
        r = np.random.default_rng(units)
        x, states = b.input("x", _type(steps, batch, features)), 2 if kind == "lstm_layer" else 1
        start = [b.constant(np.zeros((batch, units), np.float32)) for _ in range(states)]
        weights = [_constant(b, r, gates * units, k) for k in (features, units)]
        biases = [_constant(b, r, gates * units) for _ in range(2)]
        y: tuple[Value, ...] = b.op(kind, x, *start, *weights, *biases)
        return y[0]

    spec = f"{kind} {steps}x{batch}x{features} {units}"
    return Case("rnn", spec, build, ("effc_lstm_f32", "effc_gru_f32", "effc_rnn_"))


# Alternatives (alternatives.py): graphs with one region that a pass asks about ---------------------------------------

# Channels and sides of 3x3 convolutions in ResNets, VGG, U-Nets and detectors.
THREES = (
    (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (64, 64, 40), (128, 128, 20), (256, 256, 10),
    (512, 512, 5), (32, 32, 128), (64, 64, 64), (128, 128, 32), (256, 256, 16), (64, 128, 64), (256, 128, 32),
    (128, 64, 64), (64, 32, 128), (16, 16, 96), (24, 24, 80), (48, 48, 48), (96, 96, 28), (192, 192, 14),
    (384, 256, 13), (32, 64, 28), (80, 192, 35), (160, 160, 17), (512, 512, 14),
)  # fmt: skip


def near(rng: Rng, x: int, step: int = 1) -> int:
    """A size up to a third smaller or larger, a multiple of ``step``."""
    return max(step, round(x * float(np.exp(rng.uniform(-0.35, 0.35))) / step) * step)


@sampler("conv_algorithm")
def conv_algorithm(rng: Rng) -> Case | None:
    """3x3 convolutions: those of models, some like them, and any."""
    how = rng.random()
    c, o, side = THREES[int(rng.integers(len(THREES)))]
    if how < 0.4:
        c, o, side = near(rng, c, 8), near(rng, o, 8), near(rng, side)
    elif how < 0.7:
        c, o, side = size(rng, 8, 512), size(rng, 8, 512), size(rng, 4, 160)
    return three(c, o, side, side, int(rng.choice([1, 1, 1, 2, 4])), str(rng.choice(["none", "bias", "relu", "relu"])))


@sampler("strided_conv_algorithm")
def strided_conv_algorithm(rng: Rng) -> Case | None:
    """3x3 convolutions of stride 2: sizes of models' layers and some like them, and any."""
    c, o, side = THREES[int(rng.integers(len(THREES)))]
    if rng.random() < 0.7:
        c, o, side = near(rng, c, 8), near(rng, o, 8), near(rng, 2 * side)
    else:
        c, o, side = size(rng, 8, 512), size(rng, 8, 512), size(rng, 4, 200)
    tail = str(rng.choice(["none", "bias", "relu", "relu"]))
    return three(c, o, side, side, int(rng.choice([1, 1, 1, 2, 4])), tail, stride=2)


def three(c: int, o: int, height: int, width: int, batch: int, tail: str, pad: int = 1, stride: int = 1) -> Case | None:
    """A 3x3 convolution that may become one by Winograd's algorithm."""
    from ..passes.winograd import SETS

    pixels = batch * height * width // stride**2
    if 18.0 * pixels * c * o > 3 * MOST_FLOPS or 4 * pixels * max(c, o) > MOST_BYTES or 144 * c * o > 2 * MOST_BYTES:
        return None

    def build(b: Builder) -> Value:
        x = b.op("permute", b.input("x", _type(batch, height, width, c)), dims=(0, 3, 1, 2))
        w, pads = _constant(b, np.random.default_rng(c), o, c, 3, 3), ((pad, pad), (pad, pad))
        y = b.op("conv", x, w, stride=(stride, stride), padding=pads, dilation=(1, 1), groups=1)
        return _tail(b, y, tail, np.random.default_rng(o), 1)

    spec = f"three {batch}x{c}x{height}x{width} {o} p{pad} {tail}" + (f" s{stride}" if stride > 1 else "")
    return Case(SETS[stride], spec, build, ("effc_conv_",))


# Channels, their multiple between, channels afterwards, side, window and stride of inverted bottlenecks, in MobileNetV2
# and EfficientNet; a multiple of 0 is a block without the first convolution.
BOTTLENECKS = (
    (32, 0, 16, 112, 3, 1), (16, 6, 24, 112, 3, 2), (24, 6, 24, 56, 3, 1), (24, 6, 32, 56, 3, 2),
    (32, 6, 32, 28, 3, 1), (32, 6, 64, 28, 3, 2), (64, 6, 64, 14, 3, 1), (64, 6, 96, 14, 3, 1),
    (96, 6, 96, 14, 3, 1), (96, 6, 160, 14, 3, 2), (160, 6, 160, 7, 3, 1), (24, 6, 40, 56, 5, 2),
    (40, 6, 40, 28, 5, 1), (40, 6, 80, 28, 3, 2), (80, 6, 80, 14, 3, 1), (80, 6, 112, 14, 5, 1),
    (112, 6, 112, 14, 5, 1), (112, 6, 192, 14, 5, 2), (192, 6, 192, 7, 5, 1), (64, 0, 128, 56, 3, 1),
    (128, 0, 128, 56, 3, 1), (256, 0, 256, 28, 3, 1), (512, 0, 512, 14, 3, 1), (16, 4, 24, 48, 3, 1),
    (3, 0, 32, 160, 3, 2),
)  # fmt: skip


@sampler("conv_or_chain")
def conv_or_chain(rng: Rng) -> Case | None:
    """Inverted bottlenecks and separable convolutions."""
    c, multiple, o, side, window, stride = BOTTLENECKS[int(rng.integers(len(BOTTLENECKS)))]
    if rng.random() < 0.6 and c > 3:
        same = c == o
        c, o, side = near(rng, c, 8), near(rng, o, 8), near(rng, side)
        o, window = c if same else o, int(rng.choice([3, 3, 5]))
    first = ((32, 3, 2, 1),) if c == 3 else ((c * multiple, 1, 1, 0),) if multiple else ()
    wide = first[0][0] if first else c
    deep = (wide, window, 1 if c == 3 else stride, window // 2)
    batch = int(rng.choice([1, 1, 1, 2]))
    return bottleneck(batch, c, side, side, first, deep, o, residual=stride == 1 and c == o and bool(first))


@sampler("conv_pair")
def conv_pair(rng: Rng) -> Case | None:
    """The first two convolutions of inverted bottlenecks whose images are small and whose channels are many."""
    c, wide, side = size(rng, 16, 320), size(rng, 256, 1920), size(rng, 3, 20)
    window, stride, batch = int(rng.choice([3, 3, 5, 7])), int(rng.choice([1, 1, 2])), int(rng.choice([1, 1, 1, 2, 4]))
    height = side if rng.random() < 0.8 else size(rng, 3, 20)
    return pair(batch, c, height, side, wide, (wide, window, stride, window // 2))


def pair(batch: int, c: int, height: int, width: int, wide: int, deep: Stage) -> Case | None:
    """A pointwise convolution and a depthwise one of its result, both with a clamp."""
    from ..passes.fuse.chains import CACHE
    from ..passes.fuse.pairs import CHANNELS, PIXELS

    if wide < CHANNELS or height * width > PIXELS or 4 * c * height * width > CACHE or min(height, width) < 1:
        return None

    def build(b: Builder) -> Value:
        r = np.random.default_rng(0)
        y = b.op("permute", b.input("x", _type(batch, height, width, c)), dims=(0, 3, 1, 2))
        for (channels, window, stride, pad), groups in (((wide, 1, 1, 0), 1), (deep, wide)):
            taken = int(y.shape[1])  # type: ignore[call-overload]
            w, both = _constant(b, r, channels, taken // groups, window, window), ((pad, pad), (pad, pad))
            y = b.op("conv", y, w, stride=(stride, stride), padding=both, dilation=(1, 1), groups=groups)
            y = _clamped(b, _tail(b, y, "bias", r, 1))
        return y

    return Case("conv_pair", f"pair {batch}x{c}x{height}x{width} {deep}", build, ("effc_conv_pair_f32",))


Stage = tuple[int, int, int, int]  # channels, window, stride, padding


def bottleneck(
    batch: int, c: int, height: int, width: int, first: tuple[Stage, ...], deep: Stage, o: int, residual: bool
) -> Case | None:
    """[A convolution with a clamp,] a depthwise one with a clamp, a pointwise one."""
    from ..passes.fuse.chains import CACHE

    channels, window, stride, _ = deep
    weights = channels * o + (c * channels * first[0][1] ** 2 if first else 0)
    kept = channels * width // (first[0][2] if first else 1) * (window + max(stride, window - stride)) if first else 0
    if 4 * batch * max(c, channels) * height * width > MOST_BYTES:
        return None
    if 4 * (weights + kept + channels * -(-width // stride)) > CACHE:  # not even one row would fit
        return None

    def build(b: Builder) -> Value:
        r = np.random.default_rng(0)
        x = y = b.op("permute", b.input("x", _type(batch, height, width, c)), dims=(0, 3, 1, 2))
        stages = [*((s, 1) for s in first), (deep, deep[0]), ((o, 1, 1, 0), 1)]
        for i, ((channels, window, stride, pad), groups) in enumerate(stages):
            taken = int(y.shape[1])  # type: ignore[call-overload]
            w, both = _constant(b, r, channels, taken // groups, window, window), ((pad, pad), (pad, pad))
            y = b.op("conv", y, w, stride=(stride, stride), padding=both, dilation=(1, 1), groups=groups)
            y = _tail(b, y, "bias", r, 1)
            y = _clamped(b, y) if i < len(stages) - 1 else y
        return b.op("add", y, x) if residual else y

    spec = f"bottleneck {batch}x{c}x{height}x{width} {first} {deep} {o} {int(residual)}"
    return Case("conv_or_chain", spec, build, ("effc_conv_",))


def _full(b: Builder, value: float, like: Value) -> Value:
    return b.op("broadcast_to", b.constant(np.full((1,) * like.type.rank, value, np.float32)), shape=like.shape)


def _clamped(b: Builder, x: Value) -> Value:
    return b.op("minimum", b.op("maximum", x, _full(b, 0.0, x)), _full(b, 6.0, x))


@sampler("rows_or_chain")
def rows_or_chain(rng: Rng) -> Case | None:
    """What stands between two attentions of a transformer. Widths are few: norms are compiled for each. The widest have
    a narrow product between: with a wide one they would be two regions."""
    d = int(rng.choice([192, 256, 384, 512, 768]))
    h, rows = d * (2 if d == 768 else int(rng.choice([2, 4, 4]))), size(rng, 8, 2048)
    post, after = bool(rng.random() < 0.5), int(rng.choice([0, 1, 3])) * d
    return transformer_rows(rows, d, h, after, post)


def transformer_rows(rows: int, d: int, h: int, after: int, post: bool) -> Case | None:
    """[Projection, residual, norm,] products by (d, h) and (h, d) with a GELU, residual, norm, product by ``after``
    columns; norms stand after what they norm (``post``) or before."""
    if 2.0 * rows * d * (2 * h + d + after) > 5 * MOST_FLOPS:
        return None

    def build(b: Builder) -> Value:
        r = np.random.default_rng(0)

        def linear(x: Value, n: int) -> Value:
            k = int(x.shape[1])  # type: ignore[call-overload]
            return _tail(b, b.op("matmul", x, _constant(b, r, k, n)), "bias", r, 1)

        def mean(x: Value) -> Value:
            total = b.op("reduce", x, kind="sum", dims=(1,), keepdims=True)
            return b.op("broadcast_to", b.op("mul", total, _full(b, 1 / d, total)), shape=(rows, d))

        def norm(x: Value) -> Value:
            x = b.op("sub", x, mean(x))
            y = b.op("mul", x, b.op("rsqrt", b.op("add", mean(b.op("mul", x, x)), _full(b, 1e-5, x))))
            scale, shift = (b.op("broadcast_to", _constant(b, r, 1, d), shape=(rows, d)) for _ in range(2))
            return b.op("add", b.op("mul", y, scale), shift)

        def gelu(x: Value) -> Value:
            e = b.op("erf", b.op("mul", x, _full(b, 0.7071067811865476, x)))
            return b.op("mul", b.op("mul", x, _full(b, 0.5, x)), b.op("add", e, _full(b, 1.0, x)))

        x = b.input("x", _type(rows, d))
        y = b.op("add", linear(b.input("a", _type(rows, d)), d), x)
        if post:
            y = norm(y)
            y = norm(b.op("add", linear(gelu(linear(y, h)), d), y))
        else:
            y = b.op("add", linear(gelu(linear(norm(y), h)), d), y)
            y = norm(y) if after else y
        return linear(y, after) if after else y

    return Case("rows_or_chain", f"rows {rows}x{d} {h} {after} {int(post)}", build, ("effc_matmul_", "chain_"))


# Calls of models ------------------------------------------------------------------------------------------------------


def like(call: Call) -> Case | None:
    """A case whose lowering makes a call of these shapes, with weights and inputs made up; None for a kind of call that
    no case is made of. Bias and clamp stay, other epilogues do not."""
    x = call.ins[0]
    if x is None or any(t is not None and t.dtype not in ("f32", "u8") for t in call.ins):
        return None
    if call.kernel in ("conv_algorithm", "strided_conv_algorithm", "effc_conv_winograd_f32"):
        return _three_like(call)
    if call.kernel == "conv_or_chain":
        return _bottleneck_like(call)
    if call.kernel == "effc_conv_pair_f32":
        return _pair_like(call)
    if call.kernel == "rows_or_chain":
        return _rows_like(call)
    if call.kernel == "effc_attention_f32":
        return _heads_like(call)
    if call.kernel in ("effc_lstm_f32", "effc_gru_f32", "effc_rnn_tanh_f32"):
        return _layer_like(call)
    if call.kernel == "effc_conv_f32" and call.attrs[0] and not call.attrs[1] and not call.attrs[2]:
        return _conv_like(call)
    if call.kernel.startswith("effc_matmul") and x.shape[:2] == (1, 1):
        return _matmul_like(call)
    return None


def _three_like(call: Call) -> Case | None:
    a, x = call.attrs, call.ins[0]
    assert x is not None
    if len(x.shape) != 4:
        return None
    batch, c, height, width = x.shape
    pad, stride = a[12], a[9]
    if a[13] != pad or (a[18], a[19]) != tuple((s + 2 * pad - 3) // stride + 1 for s in (height, width)):
        return None
    region = call.kernel.endswith("conv_algorithm")
    tail = "relu" if (a[21] if region else a[24] or call.epilogue) else "none"
    return three(c, a[4], height, width, batch, tail, pad, stride)


def _rows_like(call: Call) -> Case | None:
    """A transformer's layer from one attention to the next, for a region whose products can be those of one."""
    x, (rows, _, _, data, products, regions, cols) = call.ins[0], call.attrs[:7]
    assert x is not None
    d = x.shape[1]
    h = data // 4 // d - cols + d  # of d d + 2 d h + d after weights and d + h + d + after columns
    after = cols - 2 * d - h
    fits = data == 4 * d * (h + cols - d) and h > 0 and after >= 0 and products == 3 + (after > 0)
    return transformer_rows(rows, d, h, after, post=regions > 1) if fits else None


def _heads_like(call: Call) -> Case | None:
    q, k, v = call.ins[:3]
    assert q is not None and k is not None and v is not None
    plain = q.shape[1] == k.shape[1] and k.shape == v.shape and call.ins[3] is None and not call.attrs[1]
    return heads(*q.shape[:3], *k.shape[2:], bool(call.attrs[0])) if plain else None


def _layer_like(call: Call) -> Case | None:
    """The product for the inputs is a call of its own; here as many features as units go into it."""
    xg, h, units = call.ins[0], call.ins[1], call.attrs[1]
    assert xg is not None and h is not None
    kind = {"lstm": "lstm_layer", "gru_": "gru_layer", "rnn_": "rnn_layer"}[call.kernel[5:9]]
    return layer(kind, xg.shape[0], xg.shape[1], units, units) if h.shape[1] == units else None


def _bottleneck_like(call: Call) -> Case | None:
    a, x = call.attrs, call.ins[0]
    assert x is not None
    stages = [a[4 + 8 * i : 12 + 8 * i] for i in range(a[0])]
    if any(s[5] != 1 for s in stages):
        return None
    made = [(s[0], s[2], s[3], s[4]) for s in stages]
    batch, c, height, width = x.shape
    same = c == made[-1][0] and (height, width) == call.outs[0].shape[1:3]
    return bottleneck(
        batch, c, height, width, tuple(made[:-2]), made[-2], made[-1][0], same and bool(stages[-1][7] & 2)
    )


def _pair_like(call: Call) -> Case | None:
    x, (first, deep) = call.ins[0], (call.attrs[2:27], call.attrs[27:])
    assert x is not None
    batch, c, height, width = x.shape
    square = deep[6] == deep[7] and deep[9] == deep[10] and deep[12] == deep[13] and deep[16] == 1
    return pair(batch, c, height, width, first[4], (first[4], deep[6], deep[9], deep[12])) if square else None


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
