"""Convolutions: direct, Winograd's, depthwise, and which of them a region takes."""

from __future__ import annotations

from math import prod

from ..calls import Call
from ..roofline import Context, geometry, taps_inside, windows
from .base import ceil_div, even_share, family, image_of, lg


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
    batch, channels, _ = image_of(call)
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
    from ...ir.ops.conv import winograd_positions, winograd_side

    a, m = call.attrs, cx.machine
    batch, channels, _ = image_of(call)
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
    batch, channels, size = image_of(call)
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


@family("strided_conv_algorithm", "strided_conv_algorithm")
@family("conv_algorithm", "conv_algorithm")
def conv_algorithm(call: Call, cx: Context) -> dict[str, float]:
    """The region of form_winograd: see passes/winograd.py, whose estimate is among the features."""
    from ...ir.ops.conv import winograd_side
    from ...passes.winograd import DIRECT, TILES, Image, costs

    a, m, lanes = call.attrs, cx.machine, cx.vlen // 4
    batch, c, _ = image_of(call)
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
