"""Convolutions: direct, Winograd's, depthwise, and which of them a region takes."""

from __future__ import annotations

from math import prod

from ..calls import Call
from ..roofline import Context, geometry, taps_inside, windows
from .base import LEVELS, ceil_div, even_share, family, image_of, lg, shares

FEW_WEIGHTS = 256 * 1024  # of conv.hpp: bytes of all weights that stay in the second cache beside the rest


def tile_rows(nv: int, cx: Context) -> int:
    """Rows of a tile of ``nv`` vectors: conv.hpp's own."""
    return ({1: 12, 2: 12, 3: 8, 4: 6} if cx.vlen >= 64 else {1: 10, 2: 6, 3: 4, 4: 3})[nv]


def even_out(threads: int, groups: int, panels: int, tiles: int, cols: int, rows: int) -> tuple[int, int]:
    """Blocks of columns and of rows, a few more where that gives each thread as many: conv.hpp's own."""

    def share(c: int, r: int) -> int:
        return ceil_div(c * r * groups, threads) * 64 * threads // max(1, c * r * groups)

    best, c0, r0 = share(cols, rows), cols, rows
    for more in range(1, threads):
        if best <= 65:
            break
        for c, r in ((c0 + more, r0), (c0, r0 + more)):
            if c <= panels and r <= tiles and share(c, r) < best:
                best, cols, rows = share(c, r), c, r
    return cols, rows


def divided(
    threads: int, groups: int, panels: int, tiles: int, cols: int, rows: int, rows_first: bool
) -> tuple[int, int]:
    """Blocks of columns and of rows: conv_kernel's own of conv.hpp. ``cols`` and ``rows``: what the blocking asks
    for."""
    want = 4 * threads if threads > 1 else 1
    while rows * cols * groups < want and (cols < panels or rows < tiles):
        if cols == panels or (rows_first and tiles >= 4 * rows):
            rows = min(2 * rows, tiles)
        else:
            cols = min(2 * cols, panels)
    return even_out(threads, groups, panels, tiles, cols, rows)


def cycles(rows: float, vectors: int, more: int = 0) -> float:
    """Of a core, for one step of a tile's sums: two multiply-adds and two loads begin in a cycle, six instructions in
    all, and a sum waits four for the one before. ``more`` loads than those of the tile and of what is fetched ahead."""
    loads = rows + vectors + 1 + more
    return max(rows * vectors / 2, loads / 2, (rows * vectors + loads + 3) / 6, 4.0)


def _one_row(call: Call) -> bool:
    """Whether a convolution's windows are its pixels, in their order."""
    a, size = call.attrs, image_of(call)[2]
    same = all(a[8 + d] == 1 and a[11 + d] == 0 and a[17 + d] == size[d] for d in range(3))
    return prod(a[5:8]) == 1 and not a[1] and same


def _innermost(call: Call) -> bool:
    """Whether the channels of a pixel lie next to one another, if need be in a copy."""
    x = call.ins[0]
    assert x is not None
    return x.strides[1] == 1 or x.shape[1] == 1 or bool(call.attrs[2])


def _steps(
    call: Call, cx: Context, inside: float, row_blocks: int, sizes: tuple[int, int, int, int]
) -> dict[str, float]:
    """Cycles of the micro-kernels by the way in which a tile reads its input, and what lists its pixels and gathers
    them: see kernels/conv.hpp. ``sizes``: channels of a panel, panels, vectors of the last one, rows of a tile."""
    a, x, (wide, panels, last, mr) = call.attrs, call.ins[0], sizes
    assert x is not None
    batch, channels, image = image_of(call)
    nv, groups, taps, out = a[20], a[3] // shared(call, cx), prod(a[5:8]), a[17:20]
    cg, rows, transposed = channels // a[3], batch * prod(out), bool(a[1])
    strides = (0,) * (5 - len(x.strides)) + x.strides[2:]
    if a[2]:
        strides = (channels * image[1] * image[2], channels * image[2], channels)
    innermost, plain = _innermost(call), _one_row(call)
    run = cg
    for d in (2, 1, 0) if groups == 1 else ():
        if a[5 + d] == 1:
            continue
        if strides[d] * a[14 + d] != run:
            break
        run *= a[5 + d]
    lines = plain and innermost
    width = prod(out) if plain else out[2]
    together = grouped(call, cx)  # groups with one list of rows
    patches = (cg < 8 and not together) or not innermost
    runs = innermost and (transposed or run >= 8 or together)
    along = not transposed and not runs and width >= 8 * mr  # tiles of one row of the image in one call
    k, valid = cg * taps, taps_inside(call)
    inner = rows * (1.0 if lines or transposed else inside)  # of a transposed one: taken as if no tap were outside
    border = rows - inner
    k_inner = k * valid if transposed else k
    k_border = k if patches else max(0.0, k * (valid * rows - inner)) / max(1.0, border)

    def panel_steps(pixels: float, parts: float, steps: float, more: int = 0) -> float:
        """Cycles of so many pixels in ``parts`` lists, each divided into tiles of nearly equal size."""
        if pixels <= 0:
            return 0.0
        of = parts * ceil_div(round(pixels / parts + 0.49), mr)
        each = pixels / of
        return groups * of * steps * ((panels - 1) * cycles(each, nv, more) + cycles(each, last, more))

    listed = 1 if together else groups
    lists = row_blocks if not along else max(row_blocks, inner / max(1, width))
    inner_steps = panel_steps(inner, lists, k_inner, 0 if lines or runs else 1)
    parts = k_inner / max(1, min(run, k)) if runs else 0.0
    return {
        "line_steps": lg(inner_steps if lines else 0.0),
        "row_steps": lg(inner_steps if runs and not lines else 0.0),
        "offset_steps": lg(inner_steps if not runs and not lines else 0.0),
        "border_steps": lg(panel_steps(border, row_blocks, k_border)),
        "gathered": lg(border * k * groups if patches else 0.0),
        "segments": lg((0.0 if lines else inner * parts) * listed + (0.0 if patches else border * taps * listed)),
        "along": float(along),
        "runs": float(runs),
        "of_line": float(lines),
        "patches": float(patches),
        "run": lg(run),
        "cycle_share": (panels * wide / lanes_of(cx)) * rows * k_inner / 2 * groups / max(1.0, inner_steps),
    }


def grouped(call: Call, cx: Context) -> bool:
    """Groups that are taken with one list of rows: take_scratch() of conv.hpp."""
    a, x = call.attrs, call.ins[0]
    assert x is not None
    cg = x.shape[1] // a[3]
    inner = x.strides[1] == 1 or x.shape[1] == 1 or bool(a[2])
    return inner and not a[1] and a[3] > 1 and (cg >= 4 or shared(call, cx) > 1) and cg * prod(a[5:8]) <= a[23]


def item_of(call: Call) -> int:
    """Bytes of a value in the type that sums are made in."""
    return call.outs[0].itemsize if call.outs[0].dtype in ("f32", "f64") else 4


def shared(call: Call, cx: Context) -> int:
    """How many groups share a vector."""
    from ...backends.cpu.packing.conv import sharing

    a, x = call.attrs, call.ins[0]
    assert x is not None
    cg, og = x.shape[1] // a[3], a[4] // a[3]
    return sharing(a[3], cg, og, prod(a[5:8]), cx.vlen // item_of(call)) if a[0] and not a[1] else 1


def lanes_of(cx: Context) -> int:
    """Values of f32 in a vector."""
    return cx.vlen // 4


@family(
    "conv", "effc_conv_f32", "effc_conv_f64",
    work="tiles tiles*panels rows reload weights blocks panels rows*k k*og "
         "line_steps row_steps offset_steps border_steps gathered segments listed tails x_stream w_stream copied "
         + LEVELS,
)  # fmt: skip
def conv(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_*: see kernels/conv.hpp, whose division into blocks this mirrors."""
    a, m = call.attrs, cx.machine
    batch, channels, _ = image_of(call)
    item = item_of(call)
    lanes = cx.vlen // item
    cg, groups, oc, together = channels // a[3], a[3] // shared(call, cx), a[4], grouped(call, cx)
    taps, pixels = prod(a[5:8]), prod(a[17:20])
    og = oc // groups
    k, rows = cg * taps, batch * pixels
    nv, block_rows, block_cols, block_k = a[20:24]
    mr = tile_rows(nv, cx)
    wide = nv * lanes
    panels, tiles = ceil_div(og, wide), ceil_div(rows, mr)
    row_blocks = ceil_div(tiles, max(1, block_rows // mr))
    across, apart = (groups, 1) if together else (panels, groups)
    col_blocks = 1 if together else ceil_div(panels, max(1, block_cols // wide))
    weights = groups * k * ceil_div(og, lanes) * lanes * item
    lines = _one_row(call) and _innermost(call) and not together
    col_blocks, row_blocks = divided(
        cx.threads, apart, across, tiles, col_blocks, row_blocks, not lines and weights <= FEW_WEIGHTS
    )
    blocks = row_blocks * col_blocks * apart
    used_k = min(block_k, k)
    width = a[19] if taps > 1 else pixels
    each = prod(ceil_div(n, s) for n, s in zip(a[5:8], a[8:11])) if a[1] else taps  # taps of a class, the most
    last = og - (panels - 1) * wide
    inside = prod(windows(*g)[1] for g in geometry(call))
    x = call.ins[0]
    assert x is not None
    steps = _steps(call, cx, inside, row_blocks, (wide, panels, ceil_div(last, lanes), mr))
    return {
        **steps,
        "listed": lg(rows * col_blocks * apart),
        "tails": lg(rows * (og % lanes) * groups * ceil_div(k, used_k)),
        "x_stream": lg(x.numel * item * col_blocks),
        "w_stream": lg(weights * row_blocks),
        "copied": lg(x.numel if a[2] else 0),
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
        "innermost": float(_innermost(call)),
        "copy": float(a[2]),
        "steps": float(a[24] & ~16),
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
    channels *= a[5]  # the window's depth: as in two dims so many channels
    batch *= a[17]
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
        "steps": float(a[24] & ~16),
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


def slide_cycles(
    widths: tuple[int, int], kernel: int, stride: int, pad: int, rows: float, lines: float
) -> tuple[float, float, int]:
    """Cycles of a vector of channels where the weights of a row of the window stay in registers (conv_dw.hpp): of
    blocks of pixels inside the image, and of those at its edges; and how many blocks a line has. ``widths`` of the
    result and of the image; ``rows`` of windows that lie inside, of so many ``lines``."""
    width, image = widths
    each = 1 if width < 4 else 4 if width < 7 else 8 if ceil_div(width, 8) * 8 <= ceil_div(width, 7) * 7 else 7
    reach, count = (each - 1) * stride + kernel, ceil_div(width, each)
    starts = [min(i * each, width - each) * stride - pad for i in range(count)]
    edges = sum(at < 0 or at + reach > image for at in starts)
    cost = max(each * kernel / 2, (kernel + reach) / 2, (kernel + reach + each * kernel + 4) / 6, 4 * kernel / each)
    return (count - edges) * (rows * cost + lines * (each + 6)), edges * (rows * cost + lines * (each + 10)), count


NEAR = 20 * 1024  # of conv_dw.hpp: bytes of the rows under a window that a block of channels takes


@family(
    "depthwise", "effc_conv_dw_f32", "effc_conv_dw_f64",
    work="batch*pixels*channels*taps batch*pixels*channels batch*height*channels height*channels*taps pixels channels "
         "slide_cycles edge_cycles any_cycles border_cycles rows_read blocks unaligned copied " + LEVELS,
)  # fmt: skip
def depthwise(call: Call, cx: Context) -> dict[str, float]:
    """effc_conv_dw_*: see kernels/conv_dw.hpp, whose blocks this mirrors."""
    a, x = call.attrs, call.ins[0]
    assert x is not None
    batch, _, size = image_of(call)
    channels, taps, pixels, item = a[4], prod(a[5:8]), prod(a[17:20]), call.outs[0].itemsize
    lanes, kernel, stride, pad, width, threads = cx.vlen // item, a[7], a[10], a[13], a[19], cx.threads
    # Blocks of channels, as depthwise_kernel has them.
    lines, step, want = batch * a[17] * a[18], 2 * lanes, 8 * threads if threads > 1 else 1
    fit = max(step, NEAR // max(1, a[5] * a[6] * size[2] * item))
    col_blocks = max(1, min(channels // step, max(ceil_div(want, lines), ceil_div(channels, fit))))
    block = channels // col_blocks // step * step or channels
    col_blocks = max(1, channels // block)
    used, even = shares(lines * col_blocks, max(1, lines * col_blocks // (2 * want)), cx)
    vectors = ceil_div(channels, lanes) if channels >= lanes else channels.bit_count() + 1
    rows = lines * a[5] * a[6] * prod(windows(*g)[0] for g in geometry(call)[:2])  # of windows, inside the image
    sliding = channels >= lanes and item == 4 and a[16] == 1 and kernel in (3, 5) and stride in (1, 2)
    low = max(0, min(width, ceil_div(pad, stride)))
    room = size[2] - 1 - (kernel - 1) * a[16] + pad
    high = max(low, min(width, room // stride + 1)) if room >= 0 else low
    slide = edge = other = border = 0.0
    count = 1
    if sliding:
        slide, edge, count = slide_cycles((width, size[2]), kernel, stride, pad, rows, lines)
        slide, edge = vectors * slide, vectors * edge
    else:
        # Cycles of a multiply-add by how many sums are under way: each waits four for the one before.
        pairs = channels // (2 * lanes)
        single, fours, inner = vectors - 2 * pairs, vectors // 4, high - low
        at = {1: 4.0, 2: 2.0, 4: 1.0, 8: 0.63}
        rest = (inner // 2 % 2 * 2, inner % 2)  # columns after those done by four
        sums = sum(
            (inner // 4 * 4 * at[4 * n] + rest[0] * at[2 * n] + rest[1] * at[n]) * n * of
            for n, of in ((2, pairs), (1, single))
        )
        other = sums * kernel * rows
        border = (width - inner) * (4 * fours * at[4] + (vectors - 4 * fours) * at[1]) * kernel * rows
    return {
        "channels": lg(channels),
        "taps": lg(taps),
        "kernel": float(kernel),
        "stride": float(stride),
        "dilation": float(a[16]),
        "pixels": lg(pixels),
        "width": lg(width),
        "height": lg(a[18]),
        "batch": lg(batch),
        "valid": taps_inside(call),
        "copy": float(a[2]),
        "steps": float(a[24] & ~16),
        "packed": float(a[0]),
        "fill": channels / (ceil_div(channels, lanes) * lanes),
        "fill2": channels / (ceil_div(channels, 2 * lanes) * 2 * lanes),
        "odd_width": float(width % 8),
        "x_l2": channels * size[2] * a[6] * 4 / cx.machine.l2,
        "slide_cycles": lg(slide),
        "edge_cycles": lg(edge),
        "any_cycles": lg(other),
        "border_cycles": lg(border),
        "rows_read": lg(rows * vectors),
        "blocks": lg(lines * count * vectors),
        "unaligned": lg(lines * width * vectors * (channels % (64 // item) != 0)),
        "copied": lg(x.numel if a[2] else 0),
        "sliding": float(sliding),
        "col_blocks": lg(col_blocks),
        "block": lg(block),
        "under": a[5] * a[6] * size[2] * item * block / cx.machine.l1,
        "used": float(used),
        "even": even,
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
