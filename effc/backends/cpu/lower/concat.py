"""Concatenation in place: operands are made inside the result, and nothing is copied.

A part that lies dense in the result's physical order is a run of ``block`` elements for each ``total`` of the result.
Everything that looks at its storage, whoever makes it included, then looks at the result's: strides of a block and
beyond grow by total / block, those within stay. Kernels must take such strides (``STRIDED``), unless the part is one
run. Only kernels whose sums do not depend on strides are listed, so that results stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ....ir import dims
from ....ir.dims import Dim
from ....passes.memory.program import operands, storage

KERNEL = "effc_concat"
STRIDED = (
    "effc_concat",
    "effc_copy",
    "effc_conv_chain_f32",
    "effc_conv_dw_f32",
    "effc_conv_dw_f64",
    "effc_conv_f32",
    "effc_conv_f64",
    "effc_conv_pair_f32",
    "effc_conv_winograd_f32",
    "effc_conv_winograd_f64",
    "effc_pool_f32",
    "effc_pool_f64",
    "effc_resize",
)
GENERATED = "map_"

Values = list[dict[str, Any]]
Code = list[dict[str, Any]]


def candidates(code: Sequence[Mapping[str, Any]]) -> list[int]:
    """Concatenations, by instruction."""
    return [k for k, ins in enumerate(code) if ins.get("kernel") == KERNEL]


def choices_of(values: Values, code: Code, k: int) -> list[tuple[int, ...]]:
    """Which operands of a concatenation to make in place, by position: all of them; all but the one that is made
    first, so that the result does not live from there on; the one that is made last alone."""
    roots = [storage(values, x) for x in code[k]["in"]]
    made = {storage(values, o): j for j in range(k) for o in code[j]["out"]}
    late = sorted(range(len(roots)), key=lambda at: (made.get(roots[at], -1), at))
    return list(dict.fromkeys((tuple(range(len(roots))), tuple(sorted(late[1:])), tuple(late[-1:]))))


def rewrite(
    values: Values, code: Code, which: Mapping[int, Collection[int]], kept: Collection[int]
) -> tuple[Values, Code, int]:
    """The program with operands of these concatenations (by position) made in place, as far as that is possible, and
    how many are. ``kept``: storages that are results or states' next contents."""
    values, code = [dict(v) for v in values], [dict(ins) for ins in code]
    index = _Index(values, code)
    out: Code = []
    placed = 0
    for k in candidates(code):
        if k not in which:
            continue
        done = _place(values, code, k, which[k], kept, index)
        placed += len(done)
        if done:
            code[k]["parts"] = done
    for ins in code:
        done = ins.pop("parts", None)
        out += [ins] if done is None else _rest(values, ins, done)
    return values, out, placed


class _Index:
    """Of each storage, the values over it and the instructions that touch it."""

    def __init__(self, values: Values, code: Code) -> None:
        self.root = [storage(values, i) for i in range(len(values))]
        self.members: dict[int, list[int]] = {}
        self.users: dict[int, set[int]] = {}
        for i, r in enumerate(self.root):
            self.members.setdefault(r, []).append(i)
        for k, ins in enumerate(code):
            for i in (*operands(ins), *ins["out"]):
                self.users.setdefault(self.root[i], set()).add(k)

    def join(self, part: int, whole: int) -> None:
        for i in self.members[part]:
            self.root[i] = whole
        self.members[whole] += self.members.pop(part)
        self.users.setdefault(whole, set()).update(self.users.pop(part, ()))


def _strides(v: Mapping[str, Any]) -> tuple[Dim, ...]:
    from . import row_major

    return tuple(v["strides"]) if v.get("strides") else row_major(v["shape"])


def _dense(shape: Sequence[Dim], strides: Sequence[Dim], order: Sequence[int]) -> bool:
    """Whether the strides are those of a dense array with its dims in this order, outermost first."""
    want: Dim = 1
    for i in reversed(order):
        if shape[i] != 1 and strides[i] != want:
            return False
        want = want * shape[i]
    return True


def _place(
    values: Values, code: Code, k: int, wanted: Collection[int], kept: Collection[int], index: _Index
) -> list[int]:
    """Operands, by position, that are in place now."""
    from . import _size_hint

    ins = code[k]
    out, dim = ins["out"][0], ins["attrs"][0]
    c = values[out]
    if c["k"] not in ("temp", "output") or c.get("dyn") or "alias" in c:
        return []
    strides = _strides(c)
    order = sorted(range(len(strides)), key=lambda i: (-_size_hint(strides[i]), -_size_hint(c["shape"][i]), i))
    if not _dense(c["shape"], strides, order):
        return []
    inner = dims.product(c["shape"][i] for i in order[order.index(dim) + 1 :])
    total = inner * c["shape"][dim]
    start: Dim = 0
    done: list[int] = []
    for at, x in enumerate(ins["in"]):
        n = values[x]["shape"][dim]
        fits = at in wanted and _fits(values, code[k], x, kept, index)
        if fits and _dense(values[x]["shape"], _strides(values[x]), order):
            moved = _moved(values, code, k, x, inner * n, total, index)
            if moved is not None:
                for i, (offset, steps) in moved.items():
                    v = values[i]
                    values[i] = {"d": v["d"], "shape": v["shape"], "k": "view", "base": out}
                    values[i].update(offset=offset + start * inner, strides=steps)
                index.join(index.root[x], index.root[out])
                done.append(at)
        start = start + n
    return done


def _fits(values: Values, ins: Mapping[str, Any], x: int, kept: Collection[int], index: _Index) -> bool:
    """Whether the operand is the whole of a temporary that may move."""
    root, out = index.root[x], ins["out"][0]
    r, v, c = values[root], values[x], values[out]
    if r["k"] != "temp" or r.get("dyn") or root in kept or "bytes" in r or r["d"] != v["d"] or r["d"] != c["d"]:
        return False
    if v["k"] == "view" and v["offset"] != 0:
        return False
    if dims.product(v["shape"]) != dims.product(r["shape"]):
        return False
    return sum(index.root[y] == root for y in ins["in"]) == 1 and root != index.root[out]


def _moved(
    values: Values, code: Code, k: int, x: int, block: Dim, total: Dim, index: _Index
) -> dict[int, tuple[Dim, tuple[Dim, ...]]] | None:
    """Offset and strides, in the result's elements, of every value over the operand's storage; None if one of them, or
    a kernel that touches it, does not allow that."""
    root = index.root[x]
    one_run = dims.product(values[x]["shape"]) == block
    if not one_run and (not isinstance(block, int) or not isinstance(total, int) or block <= 1):
        return None
    for j in index.users[root]:
        if code[j]["op"] != "call":
            return None
        strided = code[j]["kernel"] in STRIDED or code[j]["kernel"].startswith(GENERATED)
        if not one_run and not strided and j != k:
            return None
    out: dict[int, tuple[Dim, tuple[Dim, ...]]] = {}
    for i in index.members[root]:
        v = values[i]
        if v["d"] != values[root]["d"] or "alias" in v or v.get("dyn"):
            return None
        offset = v["offset"] if v["k"] == "view" else 0
        if one_run:
            out[i] = (offset, _strides(v))
            continue
        assert isinstance(block, int) and isinstance(total, int)
        new = _scaled(offset, v["shape"], _strides(v), block, total)
        if new is None:
            return None
        out[i] = new
    return out


def _scaled(
    offset: Dim, shape: Sequence[Dim], strides: Sequence[Dim], block: int, total: int
) -> tuple[Dim, tuple[Dim, ...]] | None:
    """A view of runs of ``block`` elements, over runs of ``total``."""
    if isinstance(offset, int):
        runs: Dim = offset // block
        within = offset % block
    else:
        whole = dims.exact_div(offset, block)
        if whole is None:
            return None
        runs, within = whole, 0
    out: list[Dim] = []
    for n, s in zip(shape, strides, strict=True):
        many = dims.exact_div(s, block) if s != 0 else None
        if many is not None and (not isinstance(s, int) or s > 0):
            out.append(many * total)
        elif n == 1 or s == 0:
            out.append(s)
        elif isinstance(s, int) and isinstance(n, int) and 0 < s < block:
            within += (n - 1) * s
            out.append(s)
        else:
            return None
    # Steps within a run must not leave it, wherever they start.
    return (runs * total + (offset % block if isinstance(offset, int) else 0), tuple(out)) if within < block else None


def _rest(values: Values, ins: dict[str, Any], done: Sequence[int]) -> Code:
    """Copies of the operands that are not in place."""
    out, dim = ins["out"][0], ins["attrs"][0]
    strides = _strides(values[out])
    start: Dim = 0
    code: Code = []
    for at, x in enumerate(ins["in"]):
        n = values[x]["shape"][dim]
        if at not in done and n != 0:
            values.append({"d": values[out]["d"], "shape": values[x]["shape"], "k": "view", "base": out})
            values[-1].update(offset=start * strides[dim], strides=strides)
            copy = {**ins, "kernel": "effc_copy", "in": [x], "out": [len(values) - 1], "attrs": [], "n_own": 1}
            code.append({**copy, "bytes": 2 * dims.product(values[x]["shape"]) * _item(values[x])})
        start = start + n
    return code


def _item(v: Mapping[str, Any]) -> int:
    from ....ir.dtypes import DType

    return DType(v["d"]).itemsize


def kept_storages(
    values: Sequence[Mapping[str, Any]], outputs: Sequence[int], commits: Sequence[Mapping[str, Any]]
) -> set[int]:
    """Storages that outlive the program."""
    return {storage(values, i) for i in [*outputs, *(c["value"] for c in commits)]}
