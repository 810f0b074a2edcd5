"""Convolutions that run as one kernel, and whether a region does."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..calls import Call
from ..roofline import Context, windows
from .base import LEVELS, ceil_div, even_share, family, image_of, lg
from .conv import cycles, slide_cycles, tile_rows

CONV_ATTRS = 25  # of effc_conv_*


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
    channels, sizes = image_of(call)[1], []
    for at in range(len(a) % CONV_ATTRS, len(a), CONV_ATTRS):
        s = a[at : at + CONV_ATTRS]
        sizes.append((channels, s[4], prod(s[5:8]), prod(s[17:20]), s[18]))
        channels = s[4]
    if not a[6]:  # as if the result went into one channel more
        sizes.append((channels, 1, 1, *sizes[-1][3:]))
    width = sizes[-1][3] // max(1, sizes[-1][4])
    buffers = 4 * sizes[-1][0] * a[1] * width + (4 * sizes[-1][0] * a[2] * (sizes[0][3] // sizes[0][4]) if a[0] else 0)
    return _chain(cx, image_of(call)[0], sizes, a[1], buffers)


@family(
    "conv_pair", "effc_conv_pair_f32",
    work="ops_deep batch*wide*pixels batch*wide*out_pixels batch*pixels*c batch*c*wide c*wide batch*blocks "
         "line_steps slide edge " + LEVELS,
)  # fmt: skip
def conv_pair(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_pair_*: see kernels/conv_chain.hpp, whose division of the channels this mirrors."""
    m, lanes, cols = cx.machine, cx.vlen // 4, call.attrs[0]
    first, deep = call.attrs[2 : 2 + CONV_ATTRS], call.attrs[2 + CONV_ATTRS :]
    batch, channels, _ = image_of(call)
    wide, pixels, out, taps = first[4], prod(first[17:20]), prod(deep[17:20]), prod(deep[5:8])
    panel, rows = first[20] * lanes, tile_rows(first[20], cx)
    panels = ceil_div(wide, panel)
    fewest = ceil_div(panels, max(1, cols // panel))
    # pair_share of conv_chain.hpp
    blocks = _least(range(fewest, panels + 1), lambda n: ceil_div(batch * n, cx.threads) * ceil_div(panels, n))
    work = 2 * channels * wide * pixels, 2 * wide * taps * out
    last, tiles = ceil_div(wide - (panels - 1) * panel, lanes), ceil_div(pixels, rows)
    each = pixels / tiles
    steps = batch * tiles * channels * ((panels - 1) * cycles(each, first[20]) + cycles(each, last))
    lines = batch * deep[17] * deep[18]
    inside = prod(windows(deep[5 + d], deep[8 + d], deep[11 + d], deep[14 + d], deep[17 + d], first[17 + d])[0]
                  for d in range(2))  # fmt: skip
    slide, edge, _ = slide_cycles(
        (deep[19], first[19]), deep[7], deep[10], deep[13], lines * deep[5] * deep[6] * inside, lines
    )
    return {
        "line_steps": lg(steps),
        "slide": lg(slide * ceil_div(wide, lanes)),
        "edge": lg(edge * ceil_div(wide, lanes)),
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
    from ...passes.fuse.pairs import CHANNELS, PIXELS

    a = call.attrs
    batch, channels, size = image_of(call)
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
