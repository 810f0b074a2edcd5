"""What lies where in a loaded model's arena, and when: as data, as text, and as a picture of tensors over time and
address."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from . import _rt
from .dtypes import BY_NAME, TABLE

CODE = {t.name: i for i, t in enumerate(TABLE)}


@dataclass(frozen=True)
class Block:
    """``bytes`` at ``offset`` of the arena, live from instruction ``first`` to ``last``, both included."""

    what: str  # the dtype and shape of a value, or "workspace"
    op: str  # the kernel that makes it
    name: str
    loc: str
    first: int
    last: int
    bytes: int
    offset: int

    def label(self) -> str:
        where = f"  [{self.loc}]" if self.loc else ""
        named = f" {self.name}" if self.name and self.name != self.op else ""
        return f"{self.what} of {self.op}{named}{where}"


@dataclass(frozen=True)
class Map:
    """The arena of one entry point for given sizes. ``bound``: the most bytes live at once."""

    entry: str
    sizes: Mapping[str, int]
    arena: int
    bound: int
    steps: Sequence[str]  # what each instruction is
    blocks: Sequence[Block]

    def live(self) -> list[int]:
        """Bytes live during each instruction."""
        out = [0] * max(1, len(self.steps))
        for b in self.blocks:
            for k in range(b.first, min(b.last, len(out) - 1) + 1):
                out[k] += b.bytes
        return out

    def peak(self) -> int:
        """The first instruction at which most bytes are live."""
        live = self.live()
        return live.index(max(live))

    def culprits(self) -> list[Block]:
        """What is live at the peak, largest first."""
        at = self.peak()
        return sorted((b for b in self.blocks if b.first <= at <= b.last), key=lambda b: (-b.bytes, b.offset))


def _dim(d: Any, env: Mapping[str, int]) -> int | None:
    if isinstance(d, int):
        return d
    if isinstance(d, str):
        return env.get(d)
    a, b = _dim(d[1], env), _dim(d[2], env)
    if a is None or b is None:
        return None
    if d[0] in ("//", "%") and b == 0:
        return 0
    return int({"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "//": lambda: a // b, "%": lambda: a % b,
                "max": lambda: max(a, b), "min": lambda: min(a, b)}[d[0]]())  # fmt: skip


def arrays(entry: Mapping[str, Any], env: Mapping[str, int]) -> tuple[bytearray, list[Any]]:
    """The inputs of an entry point as the C API takes them, without data except for integers that decide sizes; the
    list keeps those alive."""
    values = {
        s["from"]["input"]: env[s["name"]]
        for s in entry["program"]["symbols"]
        if s.get("from") and s["from"].get("value")
    }
    block = bytearray(_rt.ARRAY_BYTES * max(1, len(entry["inputs"])))
    keep: list[Any] = []
    for i, spec in enumerate(entry["inputs"]):
        shape = [_dim(d, env) or 0 for d in spec["shape"]]
        strides = [1] * len(shape)
        for d in reversed(range(len(shape) - 1)):
            strides[d] = strides[d + 1] * max(shape[d + 1], 1)
        data = 0
        if i in values:
            held = np.asarray(values[i], BY_NAME[spec["dtype"]].numpy)
            keep.append(held)
            data = held.ctypes.data
        at, n = i * _rt.ARRAY_BYTES, len(shape)
        struct.pack_into(f"<Qii{n}q", block, at, data, CODE[spec["dtype"]], n, *shape)
        struct.pack_into(f"<{n}q", block, at + 16 + 8 * _rt.MAX_RANK, *strides)
    return block, keep


def read(model: Any, manifest: Mapping[str, Any], name: str, env: Mapping[str, int]) -> Map:
    """The arena that the runtime lays out for an entry point of a loaded model and a number for each of its symbols.
    EffcError for sizes that the model does not take."""
    entry = manifest["entries"][name]
    block, keep = arrays(entry, env)
    view = (ctypes.c_char * len(block)).from_buffer(block)
    at, n = ctypes.addressof(view), len(entry["inputs"])
    index = list(manifest["entries"]).index(name)
    nbytes, bound, count = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_int32()
    lib = _rt.lib()
    _rt.check(lib.effc_arena(model._ptr, index, at, n, ctypes.byref(nbytes), ctypes.byref(bound)))
    _rt.check(lib.effc_arena_blocks(model._ptr, index, at, n, None, 0, ctypes.byref(count)))
    into = (_rt.Block * max(1, count.value))()
    _rt.check(lib.effc_arena_blocks(model._ptr, index, at, n, into, count.value, ctypes.byref(count)))
    del keep
    program = entry["program"]
    return Map(
        name,
        dict(env),
        nbytes.value,
        bound.value,
        [_step(ins) for ins in program["code"]],
        [_block(program, b, env) for b in into[: count.value]],
    )


def _step(ins: Mapping[str, Any]) -> str:
    op, name = ins.get("kernel", ins["op"]), ins.get("name", "")
    return f"{op} {name}".strip() if name != op else op


def _block(program: Mapping[str, Any], b: _rt.Block, env: Mapping[str, int]) -> Block:
    ins = program["code"][b.first] if program["code"] else {}
    what = "workspace"
    if b.value >= 0:
        v = program["values"][b.value]
        what = f"{v['d']}[{', '.join(str(_dim(d, env)) for d in v['shape'])}]"
    op = ins.get("kernel", ins.get("op", ""))
    return Block(what, op, ins.get("name", ""), ins.get("loc", ""), b.first, b.last, b.bytes, b.offset)


def text(m: Map, rows: int = 48, blocks: int = 40) -> str:
    """The peak, who is to blame, live bytes over the instructions (neighbours joined to at most ``rows`` lines), and
    the largest ``blocks`` tensors."""
    gap = m.arena - m.bound
    share = f" ({gap / m.bound:.1%})" if m.bound else ""
    sizes = ", ".join(f"{k}={v}" for k, v in m.sizes.items()) or "its sizes"
    lines = [f"memory of {m.entry} at {sizes}: arena {m.arena:,} bytes, lower bound {m.bound:,}, gap {gap:,}{share}"]
    if not m.blocks:
        return lines[0]
    live, at = m.live(), m.peak()
    lines.append(f"peak {live[at]:,} bytes at instruction {at}: {m.steps[at]}")
    for b in m.culprits()[:blocks]:
        lines.append(f"  {b.bytes:14,} {b.bytes / live[at]:6.1%}  {b.first}..{b.last}  {b.label()}")
    lines.append("live bytes over time")
    step = -(-len(live) // rows)
    for k in range(0, len(live), step):
        part = live[k : k + step]
        top = k + part.index(max(part))
        bar = "#" * round(40 * max(part) / max(live)) if max(live) else ""
        mark = "*" if k <= at < k + step else " "
        lines.append(f"  {top:5}{mark}{max(part):14,} {bar:40} {m.steps[top]}")
    lines.append(f"tensors, the largest {min(blocks, len(m.blocks))} of {len(m.blocks)}")
    for b in sorted(m.blocks, key=lambda b: (-b.bytes, b.first))[:blocks]:
        lines.append(f"  {b.bytes:14,} at {b.offset:14,}  {b.first}..{b.last}  {b.label()}")
    return "\n".join(lines)


COLOURS = ("#4e79a7", "#59a14f", "#9c755f", "#76b7b2", "#b07aa1", "#8cd17d", "#86bcb6", "#79706e")
WIDTH, HEIGHT, LEFT, TOP, LINE = 1200, 560, 90, 46, 16


def svg(m: Map, named: int = 12) -> str:
    """The picture: instructions from left to right, addresses upwards, a box for each tensor (its label shows when
    pointed at). What is live at the peak is orange, the ``named`` largest of it numbered and listed."""
    steps, arena = max(1, len(m.steps)), max(1, m.arena)
    at, live = (m.peak(), m.live()) if m.blocks else (0, [0])
    culprits = m.culprits() if m.blocks else []
    number = {id(b): k + 1 for k, b in enumerate(culprits[:named])}
    guilty = {id(b) for b in culprits}
    dx, dy = WIDTH / steps, HEIGHT / arena
    total = TOP + HEIGHT + 60 + LINE * (len(number) + 2)
    sizes = ", ".join(f"{k}={v}" for k, v in m.sizes.items())
    title = f"{m.entry}{' at ' + sizes if sizes else ''}: arena {m.arena:,} bytes, live bound {m.bound:,}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{total}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="#f4f4f4"/>',
    ]
    for k in range(5):
        y = TOP + HEIGHT - HEIGHT * k / 4
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{arena * k / 4 / 2**20:.2f} MiB</text>')
    ticks = max(1, steps // 10)
    for k in range(0, steps, ticks):
        out.append(f'<text x="{LEFT + (k + 0.5) * dx:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{k}</text>')
    for n, b in enumerate(m.blocks):
        x, last = LEFT + b.first * dx, min(b.last, steps - 1)
        w, h = (last - b.first + 1) * dx, b.bytes * dy
        y = TOP + HEIGHT - (b.offset + b.bytes) * dy
        fill = "#f28e2b" if id(b) in guilty else COLOURS[n % len(COLOURS)]
        tip = escape(f"{b.label()}: {b.bytes:,} bytes at {b.offset:,}, {b.first}..{b.last}")
        out.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" fill="{fill}" fill-opacity="0.85" '
            f'stroke="white" stroke-width="0.5"><title>{tip}</title></rect>'
        )
        if id(b) in number and h >= 10:
            out.append(f'<text x="{x + w / 2:.1f}" y="{y + h / 2 + 4:.1f}" text-anchor="middle">{number[id(b)]}</text>')
    points = " ".join(
        f"{LEFT + (k + e) * dx:.1f},{TOP + HEIGHT - v * dy:.1f}" for k, v in enumerate(live) for e in (0, 1)
    )
    out.append(f'<polyline points="{points}" fill="none" stroke="black" stroke-width="1"/>')
    x = LEFT + (at + 0.5) * dx
    out.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#e15759" stroke-dasharray="4"/>'
    )
    y = TOP + HEIGHT + 44
    if m.blocks:
        out.append(f'<text x="{LEFT}" y="{y}">{escape(f"peak {live[at]:,} bytes at {at}: {m.steps[at]}")}</text>')
    for b in culprits[:named]:
        y += LINE
        line = f"{number[id(b)]}. {b.bytes:,} bytes ({b.bytes / live[at]:.1%}), {b.first}..{b.last}: {b.label()}"
        out.append(f'<text x="{LEFT}" y="{y}">{escape(line)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
