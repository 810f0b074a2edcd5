"""Generated loops and reductions, pools and copies: by the nest of dims that their kernels walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ..calls import Call, Tensor
from ..roofline import Context, windows
from .base import LEVELS, SLOW, ceil_div, family, image_of, levels, lg, ops_of, shares

BLOCK, LANES, CHUNK = 8192, 64, 2048  # of loop.hpp: elements of an inner loop, of a block of columns, of a partial sum
PIECES = (64, 32, 16, 8)  # channels that pool.hpp has loops for
AHEAD = 24  # and pixels of the image that it fetches ahead, at most
Dims = list[tuple[int, list[int]]]  # sizes, outermost first, each with the operands' strides


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
    "tanh": ("tanh", "softplus"),
    "sigmoid": ("sigmoid", "silu"),
    "erf": ("erf", "erfc", "gelu"),
    "pow": ("pow", "log", "log2", "log10", "log1p"),
    "div": ("div", "reciprocal", "mod", "remainder", "floor_divide", "floordiv"),
    "sqrt": ("sqrt", "rsqrt"),
}
DEAR = ("exp", "tanh", "sigmoid", "erf", "pow")  # of these


def _work(ops: Mapping[str, int], n: float, rest: float) -> dict[str, float]:
    """Amounts of ops of ``n`` elements; ``rest``: of them those that fill no vector."""
    counts = {k: sum(ops.get(o, 0) for o in of) for k, of in KINDS.items()}
    dear = sum(c for o, c in ops.items() if o in SLOW)
    counts["slow"] = dear - sum(counts[k] for k in DEAR)
    counts["quick"] = sum(ops.values()) - sum(counts.values())
    return {
        **{f"n_{k}": lg(n * c) for k, c in counts.items()},
        **{k: float(counts[k]) for k in KINDS},
        "rest": lg(rest),
        "n_rest": lg(rest * dear),
    }


WORK = " ".join(f"n_{k}" for k in (*KINDS, "slow", "quick", "rest"))


@family("map", "map", work=f"elements elements*operands units rest {WORK} {LEVELS}")
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


@family("red", "red", work=f"total passes kept calls rest down {WORK} {LEVELS}")
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


@family("pool", "effc_pool_f32", work=f"taps pixels fetched window_rows lines {POOLS} {LEVELS}")
def pool(call: Call, cx: Context) -> dict[str, float]:
    """effc_pool_*: see kernels/pool.hpp, whose pieces of channels this mirrors."""
    a, x, out = call.attrs, call.ins[0], call.outs[0]
    assert x is not None
    batch, channels, size = image_of(call)
    spatial, window, maximum = a[19:22], prod(a[4:7]), bool(a[0])
    if a[1]:
        valid = max(1.0, prod(n / o for n, o in zip(size, spatial)))
        rows = prod(n / o for n, o in zip(size[:2], spatial))
    else:
        dims = [(a[4 + d], a[7 + d], a[10 + d], a[16 + d], a[19 + d], size[d]) for d in range(3)]
        valid = window * prod(windows(*g)[0] for g in dims)
        rows = prod(g[0] * windows(*g)[0] for g in dims[:2])
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
        last = rest
        for p in PIECES[1:]:
            counts[p] += rest // p
            rest %= p
        if rest and last >= 8:  # the last eight, some of them once more
            counts[8], rest = counts[8] + 1, 0
    else:
        rest = channels
    for op in ("max", "mean"):
        on = float((op == "max") == maximum)
        for p in PIECES:
            f[f"{op}_{p}"] = lg(on * pixels * valid * counts[p] * p)
        f[f"{op}_rest"] = lg(on * pixels * valid * rest)
        f[f"{op}_last"] = lg(on * pixels * valid * (rest > 0))
        f[f"{op}_pixels"] = lg(on * pixels * (sum(counts.values()) + (rest > 0)))
    pieces = sum(counts.values()) + (rest > 0)
    items = batch * prod(spatial[:2]) * blocks
    cost = window * spatial[2] * (LANES if by_channels else 1)
    fetched = pixels * rows * min(a[9], AHEAD) * (spatial[2] > 1) if by_channels else 0
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
        "fetched": lg(fetched * blocks * ceil_div(min(channels, LANES) * x.itemsize, 64)),
        "apart": lg(x.strides[-1] * x.itemsize),
        "window_rows": lg(pixels * rows * pieces),
        "lines": lg(items),
        "under": a[4] * a[5] * x.strides[-1] * size[2] * x.itemsize / cx.machine.l1,
        "sets": sets(x.strides[-1] * x.itemsize, a[6] if not a[1] else 8),
        "used": float(used),
        "even": even,
    }


def sets(step: int, count: int) -> float:
    """How many of the first cache's 64 sets so many lines take that lie ``step`` bytes apart, over as many as could."""
    return len({i * step // 64 % 64 for i in range(count)}) / max(1, min(64, count))


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


BEYOND = " ".join(f"{kind}_{at}" for kind in ("rows", "lines", "blocks", "strided") for at in ("l1", "l2", "far"))


@family(
    "copy",
    "effc_copy",
    "effc_concat",
    work=f"moved_rows blocks edge strided near row_lines tiles lines moved_far thrashed {BEYOND} {LEVELS}",
)
def copy(call: Call, cx: Context) -> dict[str, float]:
    """effc_copy, effc_concat: see kernels/copy.cpp, whose canonical box this mirrors."""
    out, m = call.outs[0], cx.machine
    parts = [_copied(x, out, cx) for x in call.ins if x is not None and len(x.shape) == len(out.shape)]
    total = {k: sum(p[k] for p in parts) for k in ("bytes", "rows", "blocks", "edge", "strided", "near", "lines")}
    most = max(parts, key=lambda p: p["bytes"], default=dict.fromkeys(("kind", "item", "run", "step", "to"), 0.0))
    size = max(1.0, total["bytes"])

    def lines(kind: float) -> float:
        return sum(p["lines"] for p in parts if p["kind"] == kind)

    # What a loop waits for depends on how far away the lines are that it walks across.
    walked = {
        "rows": total["rows"],
        "lines": lines(0.0),
        "blocks": total["blocks"] + total["edge"],
        "strided": total["strided"] + total["near"],
    }
    beyond = levels(call, cx)
    few = 32 * sets(int(most["step"]), 32) * 8 < 40  # a block's lines do not stay in the first cache

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
        **{f"{kind}_{at}": lg(n * far) for kind, n in walked.items() for at, far in beyond.items()},
        "thrashed": lg((total["blocks"] + total["edge"]) * few),
        "moved_far": lg(total["bytes"] * (max(most["step"], most["to"]) >= 4096)),
        "edge_share": total["edge"] / max(1.0, total["edge"] + total["blocks"]),
        "box_item": most["item"],
        "box_run": lg(most["run"]),
        "step": lg(most["step"]),
        "to": lg(most["to"]),
        "page": float(most["step"] % 4096 == 0 and most["step"] > 0),
        "to_page": float(most["to"] % 4096 == 0 and most["to"] > 0),
        "kept_l1": max(most["run"], 1) * 64 / m.l1,
        "odd_run": float(most["run"] % 64),
        "sets": sets(int(most["step"]), 32),
        "to_sets": sets(int(most["to"]), 32),
        "used": float(max((p["used"] for p in parts), default=1.0)),
        "even": sum(p["even"] * p["bytes"] for p in parts) / size if parts else 1.0,
    }
