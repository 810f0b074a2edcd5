"""What the cost model sees of a call: numbers, computed from the call, the machine and the threads alone.

A :class:`Family` is a set of kernels that one model predicts. To teach the cost model another kernel, declare its
family here, with :func:`family`, and a sampler in ``space.py``; nothing else needs to know. Features are logarithms
where sizes span decades (trees split them the same, but ranges are checked on that scale), shares where a remainder
costs, and sizes of blocks over sizes of caches. Where a kernel derives something from its attributes (how many blocks,
how even), the features mirror it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np

from .calls import Call, Tensor
from .roofline import Context, floor, geometry, operations, taps_inside, windows

Array = np.ndarray[Any, Any]
Extract = Callable[[Call, Context], dict[str, float]]
SLOW = frozenset(
    "exp exp2 expm1 log log2 log10 log1p tanh sin cos tan erf erfc erfinv sigmoid pow softplus gelu silu sinh cosh "
    "asin acos atan atan2 lgamma digamma".split()
)
CONV_ATTRS = 25  # of effc_conv_*
QUERIES, KEYS = (64, 256), 192  # of a task of attention.hpp, at least and at most; of a block of keys
FAR = 1.5  # times the last cache: what lies further back has left it, however far
MEDIUM = frozenset("div sqrt rsqrt reciprocal mod remainder floor_divide floordiv".split())


@dataclass(frozen=True)
class Family:
    """``kernels``: prefixes of kernel names. ``extract``: features. ``work``: what the kernel does many of, each a
    product of sizes (features that are logarithms): its time is nearly a sum of them (:func:`amounts`). ``depth``: the
    features in whose measured range a call must lie for the model to be trusted."""

    name: str
    kernels: tuple[str, ...]
    extract: Extract
    work: tuple[tuple[str, ...], ...] = ()
    depth: tuple[str, ...] = ("flops", "bytes", "between")

    @property
    def parts(self) -> int:
        """How many amounts there are."""
        return 4 + len(self.work) + 5

    def features(self, call: Call, cx: Context) -> dict[str, float]:
        """All features by name, in an order that depends on the family alone."""
        return {**common(call, cx), **self.extract(call, cx)}


FAMILIES: dict[str, Family] = {}


def family(name: str, *kernels: str, work: str = "") -> Callable[[Extract], Extract]:
    """Declares a family by its features. ``work``: amounts, as in ``"rows*k rows"``."""

    def register(f: Extract) -> Extract:
        FAMILIES[name] = Family(name, kernels, f, tuple(tuple(t.split("*")) for t in work.split()))
        return f

    return register


def family_of(call: Call) -> str:
    """The family that a call belongs to; ``other`` for a kernel that none has."""
    best = max(
        ((len(p), f.name) for f in FAMILIES.values() for p in f.kernels if call.kernel.startswith(p)),
        default=(0, "other"),
    )
    return best[1]


def amounts(family: Family, names: Sequence[str], x: Array) -> Array:
    """(rows, amounts) of rows of features: of operations and bytes, of bytes that do not come from the second or the
    last cache, of the family's own work, in seconds at the machine's peak and bandwidth; of calls, and of calls that
    wake threads, in nanoseconds. What threads share counts as the busiest has it; the bandwidth is all threads'."""
    at = {n: x[:, i] for i, n in enumerate(names)}
    busiest, peak = np.maximum(1.0, at.get("even", np.ones(len(x)))), 2.0 ** at["speed"]
    near, far = busiest / peak, 2.0 ** at["balance"] / peak
    moved = 2.0 ** at["bytes"]
    work = [
        2.0 ** sum(at[n] for n in names) for names in (*((n,) for n in ("flops", "out", "in0", "in1")), *family.work)
    ]
    return np.stack(
        [
            *(w * near for w in work), moved * near, moved * near * (at["between"] > at["own_cache"]),
            moved * far * (at["l3"] > 1), np.full(len(x), 1e-9), 1e-9 * (at.get("used", at["threads"]) > 1),
        ],
        1,
    )  # fmt: skip


def lg(x: float) -> float:
    """log2, of 0 as of 1."""
    return log2(x) if x > 0 else 0.0


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def ops_of(body: str) -> dict[str, int]:
    """The op counts of a generated body."""
    return {op: int(n) for op, _, n in (item.partition(":") for item in body.split())}


def common(call: Call, cx: Context) -> dict[str, float]:
    """Features that every family has."""
    m, size, ops = cx.machine, call.bytes, ops_of(call.body)
    slow, medium = sum(n for o, n in ops.items() if o in SLOW), sum(n for o, n in ops.items() if o in MEDIUM)
    between = min(max(cx.between, size), FAR * m.l3)
    return {
        "floor": lg(floor(call, cx) * 1e9),
        "flops": lg(operations(call)),
        "bytes": lg(size),
        "between": lg(between),
        "intensity": lg(operations(call) / max(1, size)),
        "out": lg(sum(t.nbytes for t in call.outs)),
        "in0": lg(call.ins[0].nbytes) if call.ins and call.ins[0] is not None else 0.0,
        "in1": lg(call.ins[1].nbytes) if len(call.ins) > 1 and call.ins[1] is not None else 0.0,
        "extras": float(len(call.ins) - call.n_own),
        "threads": float(cx.threads),
        "l1": size / m.l1,
        "l2": size / m.l2,
        "l3": between / m.l3,
        "own_cache": lg(m.l2),
        "speed": lg(m.peak(cx.threads)),
        "balance": lg(m.peak(cx.threads) / m.bandwidth(cx.threads)),
        "epilogue": float(call.epilogue),
        "slow": float(slow),
        "medium": float(medium),
        "quick": float(sum(ops.values()) - slow - medium),
    }


# Convolution ----------------------------------------------------------------------------------------------------------


def _spatial(call: Call) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and size (depth, height, width) of a convolution's image."""
    x = call.ins[0]
    assert x is not None
    return x.shape[0], x.shape[1], (1,) * (5 - len(x.shape)) + x.shape[2:]


def even_share(threads: int, n: int) -> float:
    """The busiest thread's part of n equal blocks, over an equal part."""
    return ceil_div(n, threads) * threads / max(1, n)


def tile_rows(nv: int, cx: Context) -> int:
    """Rows of a tile of ``nv`` vectors: conv.hpp's own."""
    return ({1: 12, 2: 12, 3: 8, 4: 6} if cx.vlen >= 64 else {1: 10, 2: 6, 3: 4, 4: 3})[nv]


@family(
    "conv", "effc_conv_f32", "effc_conv_f64",
    work="tiles tiles*panels rows reload weights blocks panels rows*k k*og",
)  # fmt: skip
def conv(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_*: see kernels/conv.hpp, whose division into blocks this mirrors."""
    a, m = call.attrs, cx.machine
    batch, channels, _ = _spatial(call)
    item = call.outs[0].itemsize if call.outs[0].dtype in ("f32", "f64") else 4
    lanes = cx.vlen // item
    groups, oc = a[3], a[4]
    taps, pixels = prod(a[5:8]), prod(a[17:20])
    cg, og = channels // groups, oc // groups
    k, rows = cg * taps, batch * pixels
    nv, block_rows, block_cols, block_k = a[20:24]
    mr = tile_rows(nv, cx)
    wide = nv * lanes
    panels, tiles = ceil_div(og, wide), ceil_div(rows, mr)
    row_blocks = ceil_div(tiles, max(1, block_rows // mr))
    col_blocks = ceil_div(panels, max(1, block_cols // wide))
    want = 4 * cx.threads if cx.threads > 1 else 1
    while row_blocks * col_blocks * groups < want and (col_blocks < panels or row_blocks < tiles):
        if col_blocks < panels:
            col_blocks = min(2 * col_blocks, panels)
        else:
            row_blocks = min(2 * row_blocks, tiles)
    blocks = row_blocks * col_blocks * groups
    used_k = min(block_k, k)
    width = a[19] if taps > 1 else pixels
    each = prod(ceil_div(n, s) for n, s in zip(a[5:8], a[8:11])) if a[1] else taps  # taps of a class, the most
    last = og - (panels - 1) * wide
    inside = prod(windows(*g)[1] for g in geometry(call))
    x = call.ins[0]
    assert x is not None
    inner_c = x.strides[1] == 1 or channels == 1 or bool(a[2])
    weights = groups * k * ceil_div(og, lanes) * lanes * item
    return {
        "groups": lg(groups),
        "og": lg(og),
        "cg": lg(cg),
        "taps": lg(taps),
        "k": lg(k),
        "rows": lg(rows),
        "width": lg(width),
        "stride": float(a[10]),
        "dilation": float(a[16]),
        "inside": inside,
        "valid": taps_inside(call),
        "innermost": float(inner_c),
        "copy": float(a[2]),
        "steps": float(a[24]),
        "packed": float(a[0]),
        "transposed": float(a[1]),
        "k_class": lg(cg * each),
        "lines": float(bool(a[1]) and each == 1 and x.shape[-1] >= 8 * mr),
        "nv": float(nv),
        "block_rows": lg(block_rows),
        "block_cols": lg(block_cols),
        "block_k": lg(used_k),
        "k_blocks": float(ceil_div(k, used_k)),
        "panels": lg(panels),
        "tiles": lg(tiles),
        "row_blocks": lg(row_blocks),
        "col_blocks": lg(col_blocks),
        "blocks": lg(blocks),
        "even": even_share(cx.threads, blocks),
        "fill_panels": og / (panels * wide),
        "fill_vectors": og / (ceil_div(og, lanes) * lanes),
        "fill_tiles": rows / (tiles * mr),
        "fill_width": width / (ceil_div(width, mr) * mr),
        "last": float(ceil_div(last, lanes)),
        "panel_l1": used_k * wide * item / m.l1,
        "tile_l1": used_k * (wide + mr) * item / m.l1,
        "block_l2": (rows / row_blocks) * (og / col_blocks) * item / m.l2,
        "x_l2": (rows / row_blocks) * cg * a[10] * item / m.l2,
        "w_l2": weights / m.l2,
        "wb_l2": weights / groups / col_blocks / m.l2,
        "weights": lg(weights),
        "reload": lg((k / used_k) * rows * og * item),
        "latency": float(mr * nv),
    }


@family("winograd", "effc_conv_winograd_f32", work="tiles tiles*c tiles*o tiles*c*o streams weights")
def winograd(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_winograd_*: see kernels/conv_winograd.hpp."""
    from ..ir.ops.conv import winograd_positions, winograd_side

    a, m = call.attrs, cx.machine
    batch, channels, _ = _spatial(call)
    oc, height, width = a[4], a[18], a[19]
    nv, block, cols, block_k, tile, shared = *a[20:24], *a[25:27]
    lanes, positions = cx.vlen // 4, winograd_side(tile, a[10]) ** 2
    count = batch * ceil_div(height, tile) * ceil_div(width, tile)
    # As many whole tiles as take the products that are made: narrow ones take less.
    tiles = batch * winograd_positions(height, tile, a[10]) * winograd_positions(width, tile, a[10]) / positions
    weights = 4 * positions * channels * ceil_div(oc, lanes) * lanes
    blocks = ceil_div(count, block)
    parts = ceil_div(oc, cols)
    tasks = max(parts, 4 * cx.threads) if shared else max(blocks, 4 * cx.threads)
    return {
        "c": lg(channels),
        "o": lg(oc),
        "tiles": lg(tiles),
        "tile": float(tile),
        "stride": float(a[10]),
        "steps": float(a[24]),
        "nv": float(nv),
        "block": lg(block),
        "cols": lg(cols),
        "block_k": lg(min(block_k, channels)),
        "shared": float(shared),
        "weights": lg(weights),
        "w_l2": weights / m.l2,
        "w_l3": weights / m.l3,
        "streams": lg(weights * blocks),
        "v_l2": 4 * positions * block * channels / m.l2,
        "m_l2": 4 * positions * block * cols / m.l2,
        "even": even_share(cx.threads, tasks),
        "fill_tiles": batch * height * width / (tiles * tile * tile),
        "fill_vectors": oc / (ceil_div(oc, lanes) * lanes),
    }


@family(
    "depthwise", "effc_conv_dw_f32", "effc_conv_dw_f64",
    work="batch*pixels*channels*taps batch*pixels*channels batch*height*channels height*channels*taps pixels channels",
)  # fmt: skip
def depthwise(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_dw_*: see kernels/conv_dw.hpp."""
    a = call.attrs
    batch, channels, size = _spatial(call)
    taps, pixels = prod(a[5:8]), prod(a[17:20])
    lanes = cx.vlen // call.outs[0].itemsize
    return {
        "channels": lg(channels),
        "taps": lg(taps),
        "kernel": float(a[7]),
        "stride": float(a[10]),
        "dilation": float(a[16]),
        "pixels": lg(pixels),
        "width": lg(a[19]),
        "height": lg(a[18]),
        "batch": lg(batch),
        "valid": taps_inside(call),
        "copy": float(a[2]),
        "steps": float(a[24]),
        "packed": float(a[0]),
        "fill": channels / (ceil_div(channels, lanes) * lanes),
        "fill2": channels / (ceil_div(channels, 2 * lanes) * 2 * lanes),
        "odd_width": float(a[19] % 8),
        "x_l2": channels * size[2] * a[6] * 4 / cx.machine.l2,
    }


def _least(counts: range, busiest: Callable[[int], int]) -> int:
    """The first of these counts that leaves the busiest thread the least."""
    return min(counts, key=busiest)


def _chain(
    cx: Context, batch: int, sizes: list[tuple[int, int, int, int, int]], rows: int, buffers: int
) -> dict[str, float]:
    """Features of [a convolution,] a depthwise and a pointwise one. ``sizes``: of each the channels that it takes and
    makes, its taps, its result's pixels and height; at most so many ``rows`` of a step, bytes of its ``buffers``."""
    m, lanes = cx.machine, cx.vlen // 4
    first, (_, wide, taps, between, height), (_, out, _, pixels, _) = sizes[:-2], *sizes[-2:]
    work = [2 * n * o * t * p for n, o, t, p, _ in first] + [2 * wide * taps * between, 2 * wide * out * pixels]
    weights = 4 * (sum(n * o * t for n, o, t, _, _ in first) + wide * taps + wide * out)
    if cx.threads > 1:  # chain_share of conv_chain.hpp
        rows = _least(range(max(1, rows), 0, -1), lambda r: ceil_div(batch * ceil_div(height, r), cx.threads) * r)
    steps = batch * ceil_div(height, max(1, rows))
    large = 4 * wide * (first[0][3] if first else between)
    return {
        "first": float(len(first)),
        "in": lg(sizes[0][0]),
        "wide": lg(wide),
        "out_c": lg(out),
        "taps": lg(taps),
        "first_taps": float(first[0][2] if first else 0),
        "pixels": lg(pixels),
        "height": lg(height),
        "step": lg(rows),
        "steps": lg(steps),
        "even": even_share(cx.threads, steps),
        "rest": batch * height / (steps * max(1, rows)),
        "large": lg(large),
        "large_l2": large / m.l2,
        "large_l3": large / m.l3,
        "buffers_l2": buffers / m.l2,
        "weights_l2": weights / m.l2,
        "step_pixels": lg(rows * pixels / max(1, height)),
        "work_first": work[0] / sum(work) if first else 0.0,
        "work_deep": work[-2] / sum(work),
        "ops_first": lg(work[0]) if first else 0.0,
        "ops_deep": lg(work[-2]),
        "fill_out": out / (ceil_div(out, lanes) * lanes),
        "fill_wide": wide / (ceil_div(wide, lanes) * lanes),
        "saved": lg(sum(work) / max(1, large)),
    }


@family("conv_chain", "effc_conv_chain_f32", work="ops_first ops_deep large steps steps*wide pixels")
def conv_chain(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_chain_*: see kernels/conv_chain.hpp; the attributes of its convolutions come last."""
    a = call.attrs
    channels, sizes = _spatial(call)[1], []
    for at in range(len(a) % CONV_ATTRS, len(a), CONV_ATTRS):
        s = a[at : at + CONV_ATTRS]
        sizes.append((channels, s[4], prod(s[5:8]), prod(s[17:20]), s[18]))
        channels = s[4]
    width = sizes[-1][3] // max(1, sizes[-1][4])
    buffers = 4 * sizes[-1][0] * a[1] * width + (4 * sizes[-1][0] * a[2] * (sizes[0][3] // sizes[0][4]) if a[0] else 0)
    return _chain(cx, _spatial(call)[0], sizes, a[1], buffers)


@family(
    "conv_pair", "effc_conv_pair_f32",
    work="ops_deep batch*wide*pixels batch*wide*out_pixels batch*pixels*c batch*c*wide c*wide batch*blocks",
)  # fmt: skip
def conv_pair(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_pair_*: see kernels/conv_chain.hpp, whose division of the channels this mirrors."""
    m, lanes, cols = cx.machine, cx.vlen // 4, call.attrs[0]
    first, deep = call.attrs[2 : 2 + CONV_ATTRS], call.attrs[2 + CONV_ATTRS :]
    batch, channels, _ = _spatial(call)
    wide, pixels, out, taps = first[4], prod(first[17:20]), prod(deep[17:20]), prod(deep[5:8])
    panel, rows = first[20] * lanes, tile_rows(first[20], cx)
    panels = ceil_div(wide, panel)
    fewest = ceil_div(panels, max(1, cols // panel))
    # pair_share of conv_chain.hpp
    blocks = _least(range(fewest, panels + 1), lambda n: ceil_div(batch * n, cx.threads) * ceil_div(panels, n))
    work = 2 * channels * wide * pixels, 2 * wide * taps * out
    return {
        "c": lg(channels),
        "wide": lg(wide),
        "taps": lg(taps),
        "stride": float(deep[10]),
        "pixels": lg(pixels),
        "out_pixels": lg(out),
        "width": lg(deep[19]),
        "odd_width": float(deep[19] % 8),
        "batch": lg(batch),
        "nv": float(first[20]),
        "k_blocks": float(ceil_div(channels, max(1, first[23]))),
        "panels": lg(panels),
        "blocks": lg(blocks),
        "even": ceil_div(batch * blocks, cx.threads) * cx.threads * ceil_div(panels, blocks) / (batch * panels),
        "fill": wide / (panels * panel),
        "fill_tiles": pixels / (ceil_div(pixels, rows) * rows),
        "block_l1": 4 * pixels * ceil_div(panels, blocks) * panel / m.l1,
        "x_l1": 4 * pixels * channels / m.l1,
        "x_l2": 4 * pixels * channels / m.l2,
        "weights_l2": 4 * channels * wide / m.l2,
        "work_deep": work[1] / max(1, sum(work)),
        "ops_deep": lg(work[1]),
        "valid": prod(windows(deep[5 + d], deep[8 + d], deep[11 + d], deep[14 + d], deep[17 + d], first[17 + d])[0]
                      for d in range(3)),
    }  # fmt: skip


@family("conv_or_chain", "conv_or_chain")
def conv_or_chain(call: Call, cx: Context) -> dict[str, float]:
    """The region of fuse_chains: see passes/fuse/chains.py for its attributes."""
    from ..passes.fuse.pairs import CHANNELS, PIXELS

    a = call.attrs
    batch, channels, size = _spatial(call)
    count, rows, kept, buffers = a[:4]
    x_height, x_width, sizes, strides = size[1], size[2], [], 1
    stages = [a[4 + 8 * i : 12 + 8 * i] for i in range(count)]
    for s in stages:
        strides *= s[3]
        width = ceil_div(x_width, strides)
        sizes.append((channels, s[0], s[2] * s[2], s[6] * width, s[6]))
        channels = s[0]
    deep = a[4 + 8 * (count - 2) : 12 + 8 * (count - 2)]
    return {
        "way": float(a[-1]),
        "rule": float(a[-2]),
        "batch": lg(batch),
        "x": lg(x_height * x_width),
        "kept": lg(kept),
        "stride": float(deep[3]),
        "residual": float(bool(a[4 + 8 * (count - 1) + 7] & 2)),
        "pair": float(count == 3 and stages[0][2] == 1 and sizes[0][3] <= PIXELS and sizes[0][1] >= CHANNELS),
        **_chain(cx, batch, sizes, rows, buffers),
    }


@family("strided_conv_algorithm", "strided_conv_algorithm")
@family("conv_algorithm", "conv_algorithm")
def conv_algorithm(call: Call, cx: Context) -> dict[str, float]:
    """The region of form_winograd: see passes/winograd.py, whose estimate is among the features."""
    from ..ir.ops.conv import winograd_side
    from ..passes.winograd import DIRECT, TILES, Image, costs

    a, m, lanes = call.attrs, cx.machine, cx.vlen // 4
    batch, c, _ = _spatial(call)
    o, height, width = a[4], a[18], a[19]
    image = Image(batch, height, width)
    cost = costs(c, o, image, a[9])
    out: dict[str, float] = {
        "way": float(a[-1]),
        "rule": float(a[-2]),
        "c": lg(c),
        "o": lg(o),
        "height": lg(height),
        "width": lg(width),
        "batch": lg(batch),
        "pixels": lg(batch * height * width),
        "extras_own": float(a[20]),
        "fused": float(a[21]),
        "fill_o": o / (ceil_div(o, lanes) * lanes),
        "weights_l2": 36 * c * o / m.l2,
        "weights_l3": 36 * c * o / m.l3,
        "x_l2": 4 * batch * height * width * c / m.l2,
        "y_l2": 4 * batch * height * width * o / m.l2,
        "narrow": lg(1 / c + 1 / o),
    }
    for t in TILES:
        out[f"cost{t}"] = lg(cost[t] / cost[DIRECT])
        tiles = image.products(t, a[9]) / winograd_side(t, a[9]) ** 2  # whole ones that take as many products
        out[f"fill{t}"] = batch * height * width / (tiles * t * t)
        out[f"tiles{t}"] = lg(tiles)
    return out


# Recurrent layers -----------------------------------------------------------------------------------------------------


@family(
    "rnn", "effc_lstm_f32", "effc_gru_f32", "effc_rnn_tanh_f32", "effc_rnn_relu_f32",
    work="time*step_work time time*units time*units*batch",
)  # fmt: skip
def rnn(call: Call, cx: Context) -> dict[str, float]:
    """The recurrence of a layer: see kernels/rnn.hpp."""
    xg, h = call.ins[0], call.ins[1]
    assert xg is not None and h is not None
    steps, batch, columns = xg.shape
    out, units, lanes = h.shape[1], call.attrs[1], cx.vlen // 4
    gates = 4 if "lstm" in call.kernel else 3 if "gru" in call.kernel else 1
    rows, blocks = 4 if gates == 3 else 3, columns // ((3 if gates == 3 else 4) * lanes)
    work = 2.0 * batch * out * columns
    pairs = ceil_div(blocks, 2)
    split = batch <= cx.threads * rows and work >= 1e5 and min(cx.threads, pairs) > 1
    share = ceil_div(batch, cx.threads)
    return {
        "time": lg(steps),
        "batch": lg(batch),
        "units": lg(units),
        "state": lg(out),
        "gates": float(gates),
        "projected": float(out != units),
        "split": float(split),
        "used": float(min(cx.threads, batch) if not split else cx.threads),
        "even": even_share(cx.threads, pairs if split else batch),
        "tile_rows": batch / rows if split else share / (ceil_div(share, rows) * rows),
        "weights_l1": 4 * out * columns / cx.machine.l1,
        "weights_l2": 4 * out * columns / cx.machine.l2,
        "step_work": lg(work),
        "fill": units * gates / columns,
    }


# Matrix products ------------------------------------------------------------------------------------------------------


@family("matmul", "effc_matmul_", work="tiles tasks panels reload batch*m*k distinct*k*n batch*m*n batch*tiles*panels")
def matmul(call: Call, cx: Context) -> dict[str, float]:
    """effc_matmul_*, effc_matmul_packed_*: see kernels/gemm.hpp, whose grid this mirrors."""
    m_, x = cx.machine, call.ins[0]
    assert x is not None
    packed = "packed" in call.kernel
    item = max(4, x.itemsize)
    nr = cx.vlen // item * (4 if cx.vlen >= 64 else 2)
    b0, b1, m, k = x.shape
    w = call.ins[1]
    if packed:
        distinct, n, sizes = call.attrs[0], call.attrs[2], call.attrs[3:6]
        w_row = w_col = 0
    else:
        assert w is not None
        n, sizes = w.shape[3], call.attrs[0:3]
        w_row, w_col = w.strides[2], w.strides[3]
        distinct = prod(d for d, s in zip(w.shape[:2], w.strides[:2]) if s != 0)
        b0, b1 = max(b0, w.shape[0]), max(b1, w.shape[1])
    batch = b0 * b1
    if not call.epilogue and distinct == 1 and batch > 1:  # fold_batches, as far as strides are usual
        m, batch = m * batch, 1
    steps, block_tiles, cols = (v or d for v, d in zip(sizes, (1024, 12, 512)))
    tiles, panels = max(1, ceil_div(m, 6)), max(1, ceil_div(n, nr))
    splits = 1 if k < 4096 or batch * ceil_div(tiles, 4) * panels >= 8 else min(16, k // 2048)
    in_place = not packed and w_col == 1 and m <= 12 and splits == 1
    dots = not packed and not in_place and w_row == 1 and m <= 4 and k >= 64
    repeats = ceil_div(tiles, 2 * block_tiles) * (batch // max(1, distinct))
    shared = not (packed or in_place or dots or splits > 1 or repeats <= 2)
    if not (packed or in_place or dots or shared):  # Driver::taller
        by = 4 if x.strides[3] == 1 else 2
        if block_tiles * by <= 96 and cols // by >= nr:
            block_tiles, cols, steps = block_tiles * by, cols // by, steps if by == 4 else steps // 2
    if packed and not call.epilogue and x.itemsize >= 4:  # Driver::higher
        by = min(cols // (panels * nr), steps // max(1, k), 96 // block_tiles)
        by = min(by, tiles // ((8 * cx.threads if cx.threads > 1 else 1) * block_tiles))
        if by > 1:
            block_tiles, cols, steps = block_tiles * by, cols // by, steps // by
    wide = cx.vlen >= 64
    unit = 1 if tiles > 1 or m > 3 else 2 if wide or m > 1 else 4  # panels at once
    units = ceil_div(panels, unit)
    row_blocks, width = ceil_div(tiles, block_tiles), max(1, cols // (nr * unit))
    narrow = min(width, max(1, 64 // (nr * unit)))
    want = 4 * cx.threads if cx.threads > 1 else 1

    def uneven(n: int) -> bool:
        return 20 * cx.threads * ceil_div(n, cx.threads) > 21 * n

    def tasks() -> int:
        return batch * row_blocks * ceil_div(units, width) * splits

    while width > narrow and (tasks() < want or uneven(tasks())):
        width = max(narrow, width - narrow)
    few = tasks() < cx.threads
    if few and tiles > 1:
        row_blocks = min(tiles, max(row_blocks, ceil_div(2 * cx.threads, max(1, tasks() // row_blocks))))
    if few and tasks() < cx.threads:
        width = 1
    groups = ceil_div(units, width)
    if not few and uneven(batch * row_blocks * groups * splits):  # Driver::balance

        def longest(at: tuple[int, int]) -> int:
            shares = ceil_div(batch * at[0] * at[1] * splits, cx.threads)
            return shares * ceil_div(tiles, at[0]) * ceil_div(units, at[1])

        more = range(1, min(cx.threads, 8) + 1)
        tried = [(row_blocks, groups), *((row_blocks + i * a, groups + i * (1 - a)) for i in more for a in (1, 0))]
        row_blocks, groups = min((at for at in tried if at[0] <= tiles and at[1] <= units), key=longest)
    n_tasks = batch * row_blocks * groups * splits
    k_blocks = max(1, ceil_div(k // splits, steps))
    depth = ceil_div(k, k_blocks * splits)
    height = ceil_div(m, row_blocks)
    return {
        "packed": float(packed),
        "in_place": float(in_place),
        "dots": float(dots),
        "shared": float(shared),
        "batch": lg(batch),
        "m": lg(m),
        "k": lg(k),
        "n": lg(n),
        "m_small": float(min(m, 24)),
        "distinct": lg(distinct),
        "a_direct": float(x.strides[3] == 1),
        "b_row": float(w_row == 1),
        "b_col": float(w_col == 1),
        "splits": float(splits),
        "steps": lg(depth),
        "k_blocks": float(k_blocks),
        "tiles": lg(tiles),
        "panels": lg(panels),
        "block_tiles": lg(ceil_div(tiles, row_blocks)),
        "width": lg(min(unit * ceil_div(units, groups), panels)),
        "row_blocks": lg(row_blocks),
        "tasks": lg(n_tasks),
        "even": even_share(cx.threads, n_tasks),
        "fill_rows": m / (tiles * 6),
        "fill_cols": n / (panels * nr),
        "last_panel": float((n - 1) % nr + 1),
        "panel_l1": depth * nr * item / m_.l1,
        "a_l2": height * depth * item / m_.l2,
        "c_l2": height * min(unit * ceil_div(units, groups), panels) * nr * item / m_.l2,
        "b_l2": n * k * item / m_.l2,
        "b_l3": n * k * item * distinct / m_.l3,
        "reload": lg(k_blocks * m * n * item),
        "a_stride": float(x.strides[2] * item % 4096 == 0),
        "item": float(x.itemsize),
    }


@family("attention", "effc_attention_", work="tasks scores heads*lq*e heads*lk*e tasks*lk*e heads")
def attention(call: Call, cx: Context) -> dict[str, float]:
    """effc_attention_*: see kernels/attention.hpp, whose division into tasks this mirrors."""
    q, k, v = call.ins[0], call.ins[1], call.ins[2]
    assert q is not None and k is not None and v is not None
    heads, lq, e, lk, ev = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], k.shape[2], v.shape[3]
    lanes, nr, shared = cx.vlen // 4, cx.vlen // 4 * (4 if cx.vlen >= 64 else 2), k.shape[0] * k.shape[1]
    units, unit_rows = (shared, heads // max(1, shared) * lq) if lq < QUERIES[0] else (heads, lq)
    fewest, most_blocks = (max(1, ceil_div(unit_rows, n)) for n in reversed(QUERIES))
    parts = 1 if units * most_blocks >= 16 else max(1, min(16, lk // 256))
    row_blocks = most_blocks if parts > 1 else min(most_blocks, max(fewest, ceil_div(16, max(1, units))))
    blocks = units * row_blocks
    share = ceil_div(ceil_div(unit_rows, row_blocks), lanes) * lanes
    return {
        "tasks": lg(blocks * parts),
        "parts": float(parts),
        "share": float(share),
        "fill_rows": unit_rows / (row_blocks * share),
        "fill_panels": share / (ceil_div(share, nr) * nr),
        "key_block": lk / parts / max(1, ceil_div(ceil_div(lk, parts), KEYS)),
        "fill_keys": lk / (ceil_div(lk, 6) * 6),
        "fill_e": ev / (ceil_div(ev, 6) * 6),
        "in_place": float(k.strides[3] == 1 and v.strides[3] == 1),
        "row_bytes": lg(k.strides[2] * k.itemsize),
        "heads": lg(heads),
        "lq": lg(lq),
        "lk": lg(lk),
        "e": lg(e),
        "ev": lg(ev),
        "causal": float(call.attrs[0]),
        "mask": float(len(call.ins) > 3 and call.ins[3] is not None),
        "blocks": lg(blocks),
        "even": even_share(cx.threads, blocks * parts),
        "fill_k": lk / (ceil_div(lk, KEYS) * KEYS),
        "scores": lg(heads * lq * lk),
        "kv_l2": lk * (e + ev) * q.itemsize / cx.machine.l2,
        "lq_small": float(min(lq, 16)),
    }


def _rows(call: Call, cx: Context, rows: int, block: int, floats: int, weights: int) -> dict[str, float]:
    """Features of a chain along rows. ``block``: rows of a block; ``floats`` between the kernels, for a row; bytes of
    ``weights``."""
    m, blocks = cx.machine, ceil_div(rows, max(1, block))
    blocks = ceil_div(blocks, cx.threads) * cx.threads
    return {
        "rows": lg(rows),
        "floats": lg(floats),
        "block": lg(rows / blocks),
        "blocks": lg(blocks),
        "weights": lg(weights),
        "weights_l2": weights / m.l2,
        "weights_l3": weights / m.l3,
        "stream": lg(weights * blocks / max(1, call.flops)),
        "between_l2": 4 * floats * rows / m.l2,
        "between_l3": 4 * floats * rows / m.l3,
        "buffer_l2": 4 * floats * rows / blocks / m.l2,
        "few": float(min(rows, 48)),
        "tile": rows / blocks % 6,
    }


@family("row_chain", "chain", work="stream rows*floats weights blocks rows")
def row_chain(call: Call, cx: Context) -> dict[str, float]:
    """Products and regions along rows as one kernel: see kernels/row_chain.hpp."""
    rows, block, large, _, floats = call.attrs[:5]
    packed = [t for t in call.ins if t is not None and t.dtype == "u8"]
    f = _rows(call, cx, rows, block if rows >= large else rows, floats, sum(t.nbytes for t in packed))
    return {**f, "in_blocks": float(rows >= large), "products": float(len(packed)), "operands": float(len(call.ins))}


@family("rows_or_chain", "rows_or_chain")
def rows_or_chain(call: Call, cx: Context) -> dict[str, float]:
    """The region of fuse_rows: see passes/fuse/rows.py for its attributes."""
    rows, block, floats, weights, products, regions, total, most, steps, rule, way = call.attrs
    return {
        "way": float(way),
        "rule": float(rule),
        **_rows(call, cx, rows, block, floats, weights),
        "products": float(products),
        "regions": float(regions),
        "columns": lg(total),
        "widest": lg(most),
        "longest": lg(steps),
    }


# Loops ----------------------------------------------------------------------------------------------------------------

BLOCK, LANES, CHUNK = 8192, 64, 2048  # of loop.hpp: elements of an inner loop, of a block of columns, of a partial sum
PIECES = (64, 32, 16, 8)  # channels that pool.hpp has loops for
Dims = list[tuple[int, list[int]]]  # sizes, outermost first, each with the operands' strides


def shares(items: int, grain: int, cx: Context) -> tuple[int, float]:
    """How many threads work when so many items are handed out by ``grain``, and the busiest one's part over an equal
    one: parallel_for of the runtime."""
    chunks = ceil_div(items, max(1, grain))
    used = max(1, min(cx.threads, chunks))
    return used, min(items, ceil_div(chunks, used) * max(1, grain)) * cx.threads / max(1, items)


def _order(strides: Sequence[int]) -> list[int]:
    """Dims by how far apart an operand's elements lie, farthest first: sort_dims of loop.hpp."""
    order = list(range(len(strides)))
    for i in range(1, len(order)):
        d, j = order[i], i
        while j > 0 and 0 < abs(strides[order[j - 1]]) < abs(strides[d]):
            order[j] = order[j - 1]
            j -= 1
        order[j] = d
    return order


def _nest(dims: Dims) -> Dims:
    """Dims that all operands walk straight through are one: Nest::push of loop.hpp."""
    out: Dims = []
    for n, s in dims:
        if n == 1:
            continue
        if out and all(outer == n * inner for outer, inner in zip(out[-1][1], s)):
            out[-1] = out[-1][0] * n, s
        else:
            out.append((n, s))
    return out


def _inner(t: Tensor) -> tuple[int, int]:
    """(elements of the run that is contiguous in memory, stride of the last dim that is longer than 1)."""
    run, last = 1, 0
    for d, s in sorted(zip(t.shape, t.strides), key=lambda p: (p[1], p[0])):
        if d == 1 or s == 0:
            continue
        if s != run:
            break
        run *= d
    for d, s in zip(reversed(t.shape), reversed(t.strides)):
        if d != 1:
            last = s
            break
    return run, last


def _loop(call: Call) -> dict[str, float]:
    tensors = [t for t in (*call.ins, *call.outs) if t is not None]
    out = call.outs[0]
    runs = [_inner(t)[0] for t in tensors]
    return {
        "elements": lg(max(t.numel for t in tensors)),
        "operands": float(len(tensors)),
        "run": lg(min(runs)),
        "runs": lg(max(t.numel for t in tensors) / max(1, min(runs))),
        "out_run": lg(_inner(out)[0]),
        "rank": float(sum(d != 1 for d in out.shape)),
        "repeated": float(sum(any(s == 0 and d > 1 for d, s in zip(t.shape, t.strides)) for t in tensors)),
        "odd": float(sum(_inner(t)[1] not in (0, 1) for t in tensors)),
        "last": lg(next((d for d in reversed(out.shape) if d != 1), 1)),
        "item": float(max(t.itemsize for t in tensors)),
        "least_item": float(min(t.itemsize for t in tensors)),
    }


# What an element of a generated loop costs is a sum over the ops of its body, those that cost alike together.
KINDS: dict[str, tuple[str, ...]] = {
    "exp": ("exp", "exp2", "expm1"),
    "tanh": ("tanh", "sigmoid", "silu", "softplus"),
    "erf": ("erf", "erfc", "gelu"),
    "pow": ("pow", "log", "log2", "log10", "log1p"),
    "div": ("div", "reciprocal", "mod", "remainder", "floor_divide", "floordiv"),
    "sqrt": ("sqrt", "rsqrt"),
}


def _work(ops: Mapping[str, int], n: float, rest: float) -> dict[str, float]:
    """Amounts of ops of ``n`` elements; ``rest``: of them those that fill no vector."""
    counts = {k: sum(ops.get(o, 0) for o in of) for k, of in KINDS.items()}
    dear = sum(c for o, c in ops.items() if o in SLOW)
    counts["slow"] = dear - sum(counts[k] for k in ("exp", "tanh", "erf", "pow"))
    counts["quick"] = sum(ops.values()) - sum(counts.values())
    return {
        **{f"n_{k}": lg(n * c) for k, c in counts.items()},
        **{k: float(counts[k]) for k in ("exp", "tanh", "erf", "pow", "div", "sqrt")},
        "rest": lg(rest),
        "n_rest": lg(rest * dear),
    }


WORK = " ".join(f"n_{k}" for k in (*KINDS, "slow", "quick", "rest"))


@family("map", "map", work=f"elements elements*operands units rest {WORK}")
def elementwise(call: Call, cx: Context) -> dict[str, float]:
    """Generated elementwise loops: see kernels/loop.hpp, whose nest of dims this mirrors."""
    tensors = [t for t in (*call.ins, *call.outs) if t is not None]
    ops, out, lanes = ops_of(call.body), call.outs[0], cx.vlen // 4
    nest = _nest([(out.shape[d], [t.strides[d] * t.itemsize for t in tensors]) for d in _order(out.strides)])
    n, steps = nest[-1] if nest else (1, [t.itemsize for t in tensors])
    count = prod(d for d, _ in nest)
    units, per = count // max(1, n) * ceil_div(n, BLOCK), min(n, BLOCK)
    used, even = shares(units, ceil_div(2 * BLOCK, max(1, per)), cx)
    return {
        **_loop(call),
        **_work(ops, count, count // max(1, n) * (n % lanes)),
        "inner": lg(n),
        "units": lg(units),
        "fill": n / (ceil_div(n, lanes) * lanes) if n else 1.0,
        "once": float(sum(s == 0 for s in steps)),
        "strided": float(sum(s not in (0, t.itemsize) for s, t in zip(steps, tensors))),
        "used": float(used),
        "even": even,
        "convert": float(ops.get("convert", 0)),
    }


@family("red", "red", work=f"total passes kept calls rest down {WORK}")
def reduction(call: Call, cx: Context) -> dict[str, float]:
    """Generated reductions, norms and softmaxes: see kernels/loop.hpp, whose division this mirrors. Attributes: rank,
    mask of reduced dims, columns, leading operand, shape."""
    tensors, ops = [*call.ins, *call.outs], ops_of(call.body)
    rank, mask, columns, lead = call.attrs[:4]
    shape = call.attrs[4 : 4 + rank]
    first = tensors[lead] if lead < len(tensors) else None
    order = _order(first.strides if first is not None else [0] * rank)
    both: list[Dims] = [[], []]
    for d in order:
        steps = [t.strides[d] * t.itemsize if t is not None else 0 for t in tensors]
        both[mask >> d & 1].append((shape[d], steps))
    kept, red = (_nest(dims) for dims in both)
    lanes = cx.vlen // 4
    n_red, red_steps = red[-1] if red else (1, [0])
    n_kept, kept_steps = kept[-1] if kept else (1, [0])
    extent, places = prod(n for n, _ in red), prod(n for n, _ in kept)
    blocks = ceil_div(n_kept, LANES)
    units = places // max(1, n_kept) * blocks if columns else places
    inner = min(n_kept, LANES) if columns else n_red
    calls = extent if columns else extent // max(1, n_red) * ceil_div(n_red, CHUNK)  # of an inner loop, of a unit
    each = (LANES if columns else 1) * extent + 1
    stages = sum(ops.get(o, 0) for o in ("sum", "max", "min", "prod", "mean", "any", "all"))
    whole = all(t.numel == places or t.nbytes < extent for t in call.outs)  # no result of full shape
    split = units <= 8 and each >= 8 * BLOCK and calls >= 64 and stages == 1 and whole
    used, even = shares(16 * units, 1, cx) if split else shares(units, ceil_div(BLOCK, each), cx)
    loops, passes = units * calls, stages + (not whole)
    along = n_kept if columns else n_red
    rest = extent * places // max(1, along) * (along % lanes)
    steps = red_steps if columns else kept_steps
    return {
        **_loop(call),
        **_work(ops, extent * places, rest * passes),
        "extent": lg(extent),
        "kept": lg(places),
        "columns": float(columns),
        "down": lg(extent * places * passes * columns),
        "stages": float(stages),
        "used": float(used),
        "even": even,
        "split": float(split),
        "inner": lg(inner),
        "units": lg(units),
        "calls": lg(loops * passes),
        "total": lg(extent * places),
        "passes": lg(extent * places * passes),
        "fill": inner / (ceil_div(inner, lanes) * lanes) if inner else 1.0,
        "step": lg(max(abs(s) for s in steps)),
        "page": float(any(s and s % 4096 == 0 for s in steps)),
        "row_l1": extent * 4 / cx.machine.l1,
        "row_l2": extent * 4 * (min(n_kept, LANES) if columns else 1) / cx.machine.l2,
    }


POOLS = " ".join(f"{op}_{p}" for op in ("max", "mean") for p in (*PIECES, "rest", "last", "pixels"))


@family("pool", "effc_pool_f32", work=f"taps pixels fetched {POOLS}")
def pool(call: Call, cx: Context) -> dict[str, float]:
    """effc_pool_*: see kernels/pool.hpp, whose pieces of channels this mirrors."""
    a, x, out = call.attrs, call.ins[0], call.outs[0]
    assert x is not None
    batch, channels, size = _spatial(call)
    spatial, window, maximum = a[19:22], prod(a[4:7]), bool(a[0])
    if a[1]:
        valid = max(1.0, prod(n / o for n, o in zip(size, spatial)))
    else:
        dims = ((a[4 + d], a[7 + d], a[10 + d], a[16 + d], a[19 + d], size[d]) for d in range(3))
        valid = window * prod(windows(*g)[0] for g in dims)
    by_channels = x.strides[1] == 1 and out.strides[1] == 1 and channels > 1
    pixels = batch * prod(spatial)
    blocks = ceil_div(channels, LANES) if by_channels else channels
    f: dict[str, float] = {}
    counts = dict.fromkeys(PIECES, 0)
    rest = 0
    if by_channels:
        for _ in range(channels // LANES):
            counts[64 if maximum else 32] += 1 if maximum else 2
        rest = channels % LANES
        for p in PIECES[1:]:
            counts[p] += rest // p
            rest %= p
    else:
        rest = channels
    for op in ("max", "mean"):
        on = float((op == "max") == maximum)
        for p in PIECES:
            f[f"{op}_{p}"] = lg(on * pixels * valid * counts[p] * p)
        f[f"{op}_rest"] = lg(on * pixels * valid * rest)
        f[f"{op}_last"] = lg(on * pixels * valid * (rest > 0))
        f[f"{op}_pixels"] = lg(on * pixels * (sum(counts.values()) + (rest > 0)))
    items = batch * prod(spatial[:2]) * blocks
    cost = window * spatial[2] * (LANES if by_channels else 1)
    used, even = shares(items, (131072 if maximum else 65536) // max(1, cost), cx)
    wide = (counts[64] * 64 + counts[32] * 32) / channels
    return {
        **_loop(call),
        **f,
        "maximum": float(maximum),
        "channels": lg(channels),
        "by_channels": float(by_channels),
        "window": lg(window),
        "stride": float(a[9]),
        "pixels": lg(pixels),
        "image": lg(prod(size)),
        "taps": lg(pixels * channels * valid),
        "padded": float(any(a[10:16])),
        "valid": valid / max(1, window),
        "wide": wide,
        "narrow": (counts[16] * 16 + counts[8] * 8) / channels,
        "single": rest / channels,
        "fetched": lg(pixels * blocks * a[5] * a[9] * ceil_div(min(channels, LANES) * x.itemsize, 64)),
        "apart": lg(x.strides[-1] * x.itemsize),
        "used": float(used),
        "even": even,
    }


def _box(shape: Sequence[int], s: Sequence[int], d: Sequence[int], item: int) -> tuple[int, Dims]:
    """(bytes of an element, dims with strides of source and destination in bytes): canonical of copy.cpp."""
    dims = sorted(((n, [a * item, b * item]) for n, a, b in zip(shape, s, d) if n != 1), key=lambda x: -abs(x[1][1]))
    box = _nest(dims)
    if len(box) > 1 and box[-1][1] == [item, item] and box[-1][0] * item in (2, 4, 8, 16):
        item = box.pop()[0] * item
    return item, box


def _copied(x: Tensor, out: Tensor, cx: Context) -> dict[str, float]:
    """Amounts of copying one operand: its elements by the loop that copies them, and the loops' own."""
    item, box = _box(x.shape, x.strides, out.strides, x.itemsize)
    size, (n, (s, d)) = x.numel * x.itemsize, box[-1] if box else (1, [item, item])
    count = prod(k for k, _ in box)
    f = dict.fromkeys(("bytes", "rows", "blocks", "edge", "strided", "lines", "near"), 0.0)
    f |= {"bytes": size, "item": item, "run": n * item, "step": abs(s), "to": abs(box[-2][1][1]) if len(box) > 1 else 0}
    across = next((b for b in box[:-1] if b[1][0] == item and b[0] >= 4), None)
    if s == item and d == item:
        parts = ceil_div(n * item, 1 << 16)
        used, even = shares(count // n * parts, (1 << 17) // max(1, min(n * item, 1 << 16)), cx)
        f |= {"rows": size, "lines": count // n * parts, "kind": 0.0}
    elif d == item and item < 16 and n >= 4 and across is not None:
        edge, block = max(16, 128 // item), 16 // item
        whole = (n // block * block) * (across[0] // block * block) / (n * across[0])
        tiles = count // (n * across[0]) * ceil_div(n, edge) * ceil_div(across[0], edge)
        used, even = shares(tiles, max(1, (1 << 16) // (edge * edge * item)), cx)
        f |= {"blocks": count * whole, "edge": count * (1 - whole), "lines": tiles, "kind": 1.0}
        f |= {"run": min(n, across[0]) * item, "to": abs(across[1][1])}
    else:
        parts = ceil_div(n, 16384)
        used, even = shares(count // max(1, n) * parts, 32768 // max(1, min(n, 16384) * item), cx)
        f |= {"near" if s in (0, 2 * item, -item) and d == item else "strided": count}
        f |= {"lines": count // max(1, n) * parts, "kind": 2.0}
    return {**f, "used": float(used), "even": even}


@family("copy", "effc_copy", "effc_concat", work="moved_rows blocks edge strided near row_lines tiles lines moved_far")
def copy(call: Call, cx: Context) -> dict[str, float]:
    """effc_copy, effc_concat: see kernels/copy.cpp, whose canonical box this mirrors."""
    out, m = call.outs[0], cx.machine
    parts = [_copied(x, out, cx) for x in call.ins if x is not None and len(x.shape) == len(out.shape)]
    total = {k: sum(p[k] for p in parts) for k in ("bytes", "rows", "blocks", "edge", "strided", "near", "lines")}
    most = max(parts, key=lambda p: p["bytes"], default=dict.fromkeys(("kind", "item", "run", "step", "to"), 0.0))
    size = max(1.0, total["bytes"])

    def lines(kind: float) -> float:
        return sum(p["lines"] for p in parts if p["kind"] == kind)

    return {
        **_loop(call),
        "joined": float(len(call.ins)),
        "kind": most["kind"],
        "moved_rows": lg(total["rows"]),
        "blocks": lg(total["blocks"]),
        "edge": lg(total["edge"]),
        "strided": lg(total["strided"]),
        "near": lg(total["near"]),
        "row_lines": lg(lines(0.0)),
        "tiles": lg(lines(1.0)),
        "lines": lg(lines(2.0)),
        "moved_far": lg(total["bytes"] * (max(most["step"], most["to"]) >= 4096)),
        "edge_share": total["edge"] / max(1.0, total["edge"] + total["blocks"]),
        "box_item": most["item"],
        "box_run": lg(most["run"]),
        "step": lg(most["step"]),
        "to": lg(most["to"]),
        "page": float(most["step"] % 4096 == 0 and most["step"] > 0),
        "to_page": float(most["to"] % 4096 == 0 and most["to"] > 0),
        "kept_l1": max(most["run"], 1) * 64 / m.l1,
        "used": float(max((p["used"] for p in parts), default=1.0)),
        "even": sum(p["even"] * p["bytes"] for p in parts) / size if parts else 1.0,
    }


def vector(f: Mapping[str, float], names: tuple[str, ...]) -> list[float]:
    """Features in a given order; one that this version does not have is 0."""
    return [f.get(n, 0.0) for n in names]
