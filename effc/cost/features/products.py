"""Matrix products, attention, recurrent layers, and chains along rows."""

from __future__ import annotations

from math import prod

from ..calls import Call
from ..roofline import Context
from .base import ceil_div, even_share, family, lg

QUERIES, KEYS = (64, 256), 192  # of a task of attention.hpp, at least and at most; of a block of keys


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
