"""Budgets of memory: which weights stay, and a window for the others (``memory_budget``).

A model whose weights do not fit runs from a *window*: each instruction's weights are read from the artifact into a
place there, ahead of time, and the place is used again once the instruction is done. Which weights stay, and where in
the window each of the others goes for which instruction, is decided here; ``runtime/src/stream.cpp`` follows it. The
sliding window with prefetch is TPI-LLM's (Li et al. 2024, "TPI-LLM: Serving 70B-scale LLMs Efficiently on Low-resource
Edge Devices") and Superpipeline's (Abbasi et al. 2024); rows of an embedding are read one by one, as in "LLM in a
flash" (Alizadeh et al. 2023).

Every run reads all that does not stay once, in order, so a larger window saves no reads, while each byte that stays
saves one a run: the window holds two instructions' weights (one in use, one being read), the rest of the budget is for
what stays, what is used most often first, then what is small. Weights that are too large are cut: right-hand sides of
products by columns, in panels whose sums are computed as before, tables by rows. Results are bit-identical.

What the budget counts: the arena with all scratch, the window, weights that stay (in whole pages), small constants, the
states of one session, and the buffer for rows. What it does not: the caller's arrays, code, and the program itself.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...ir import dims
from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Graph
from ...passes.memory.plan import lower_bound
from ...passes.memory.program import arena as arena_of
from ...passes.memory.program import blocks, nested, storage
from ...runtime.errors import EffcError
from . import microkernels
from .lower import row_major
from .packing import gemm as packing
from .target import CpuTarget

Program = dict[str, Any]
Array = np.ndarray[Any, Any]

PAGE = 4096
SMALL = PAGE  # constants below this stay, all of them
PIECES = (4 << 20, 1 << 20, 256 << 10, 64 << 10)  # sizes that large weights are cut to, the first that fits the budget
TABLE = 64 << 10  # tables from here on have their rows read one by one
TABLE_CHUNK = 256 << 10  # bytes under one checksum of such a table: what the first row there reads
CHUNK = 4 << 20  # of other weights
PANEL = 64  # a multiple of every micro-kernel's columns
CUT = {f"effc_matmul_{k}": DType(k) for k in ("f32", "f64", "f16", "bf16")}
CUT_PACKED = {f"effc_matmul_packed_{k}": DType(k) for k in ("f32", "f64", "f16", "bf16")}


def pages(n: int) -> int:
    """``n`` rounded up to whole pages."""
    return -(-n // PAGE) * PAGE


@dataclass
class Memory:
    """How an artifact keeps within its budget: ``manifest`` is its entry there, ``report`` for people. ``segments``
    are the constants (by index) that lie in a segment of their own, from segment 1 on, with the bytes under one
    checksum. Empty: everything stays in memory, as without a budget. ``room``: bytes that arenas had to be made smaller
    to, None where they stayed as they were planned, or as an arena_budget asked for."""

    report: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    segments: dict[int, int] = field(default_factory=dict)
    room: int | None = None


# The arena ------------------------------------------------------------------------------------------------------------


def ranges_of(program: Program, graph: Graph, budget: str, control: bool = False) -> dict[str, tuple[int, int]]:
    """Bounds of a program's symbols. EffcError where memory has no bound that is known beforehand, or, without
    ``control``, with control flow."""
    _require_known(program, budget, control)
    ranges = {}
    for s in program["symbols"]:
        lo, hi = graph.symbols.get(s["name"], (0, None))
        if hi is None:
            raise EffcError(
                f"{budget} cannot be kept: the size {s['name']} has no upper bound", pass_name="memory budget",
                hint="give the dynamic dim a bound: torch.export.Dim(name, max=...)",
            )  # fmt: skip
        ranges[s["name"]] = (int(lo), int(hi))
    return ranges


def _require_known(program: Program, budget: str, control: bool) -> None:
    values = program["values"]
    for ins in program["code"]:
        if nested(ins) and not control:
            raise EffcError(
                f"{budget} does not count the memory of control flow", op=ins["op"], loc=ins.get("loc"),
                pass_name="memory budget", hint="leave the budget out for this model",
            )  # fmt: skip
        if ins.get("bind") or any(values[i].get("dyn") or values[i].get("late") for i in ins["out"]):
            raise EffcError(
                f"{budget} cannot be kept: what {ins['name']} needs is known only when it has run", op=ins["name"],
                loc=ins.get("loc"), pass_name="memory budget", hint="leave the budget out for this model",
            )  # fmt: skip
        for sub in nested(ins):
            _require_known(dict(sub), budget, control)


def arena_bytes(program: Program, threads: int, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(bytes, live lower bound) of an arena for bindings of the symbols within ``ranges``: the most of those tried.
    The runtime refuses sizes that need more."""
    totals, bounds = [], []
    for env in sizes_to_try(ranges):
        totals.append(arena_of(program, env, threads))
        bounds.append(lower_bound(blocks(program, env, threads)))
    return max(totals), max(bounds)


def sizes_to_try(ranges: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Bindings to try: each symbol at its ends, at powers of two and halfway between them, all together."""
    steps = max((hi.bit_length() for _, hi in ranges.values()), default=0)
    sizes = [0, *sorted({n << k >> 1 for k in range(steps + 1) for n in (2, 3)}), 1 << 62]
    envs = [{s: min(max(n, lo), hi) for s, (lo, hi) in ranges.items()} for n in sizes]
    return [dict(e) for e in dict.fromkeys(tuple(e.items()) for e in envs)]


# Cutting large weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Use:
    entry: str
    step: int
    operand: int
    value: int  # what the instruction reads: the constant or a view of it


def _uses(programs: Mapping[str, Program]) -> tuple[dict[int, list[_Use]], set[int]]:
    """Where each constant (by index) is read by calls, and the constants that are needed otherwise."""
    uses: dict[int, list[_Use]] = defaultdict(list)
    fixed: set[int] = set()
    for name, p in programs.items():
        values = p["values"]
        for i in [*p["outputs"], *(c["value"] for c in p["commits"])]:
            if values[storage(values, i)]["k"] == "const":
                fixed.add(values[storage(values, i)]["data"])
        for k, ins in enumerate(p["code"]):
            for j, i in enumerate(ins["in"]):
                if i >= 0 and values[storage(values, i)]["k"] == "const":
                    uses[values[storage(values, i)]["data"]].append(_Use(name, k, j, i))
    return uses, fixed


def _slice(values: list[dict[str, Any]], i: int, lo: int, hi: int) -> int:
    """A view of columns [lo, hi) of a value of rank 4."""
    v = values[i]
    shape = tuple(v["shape"])
    strides = tuple(v["strides"]) if "strides" in v else row_major(shape)
    base, offset = (v["base"], v.get("offset", 0)) if v["k"] == "view" else (i, 0)
    values.append(
        {
            "d": v["d"], "shape": (*shape[:3], hi - lo), "k": "view", "base": base, "strides": strides,
            "offset": offset + lo * strides[3],
        }
    )  # fmt: skip
    return len(values) - 1


class _Cutter:
    """Programs with constants cut to pieces of about ``piece`` bytes; the originals stay as they are."""

    def __init__(
        self, programs: Mapping[str, Program], arrays: Sequence[Array], target: CpuTarget, piece: int, threads: int
    ) -> None:  # fmt: skip
        self.programs: dict[str, Program] = {
            n: {**p, "values": [dict(v) for v in p["values"]], "code": [dict(c) for c in p["code"]]}
            for n, p in programs.items()
        }
        self.arrays, self.target, self.piece, self.threads = list(arrays), target, piece, threads
        self.cut: list[dict[str, Any]] = []
        self.tables: set[int] = set()  # constants whose rows are read one by one
        self._consts: dict[tuple[str, int], int] = {}

    def run(self) -> _Cutter:
        from .lower import memory
        from .lower.finish import compact

        uses, fixed = _uses(self.programs)
        replaced: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for index, where in uses.items():
            array = self.arrays[index]
            if index in fixed or array.nbytes < SMALL:
                continue
            rows = [u for u in where if self._reads_rows(index, u)]
            products = [u for u in where if u not in rows]
            pieces = self._pieces(index, products) if array.nbytes > self.piece and products else None
            if pieces is None and products:
                continue  # read whole by an instruction that cannot be cut: its rows come with it
            if pieces is None:
                pieces = [(0, len(array), index)]
            for u in products:
                replaced[u.entry, u.step] = self._columns(u, pieces)
            for u in rows:
                replaced[u.entry, u.step] = [self._rows(u, pieces)]
            if rows:
                self.tables.update(i for _, _, i in pieces)
            if len(pieces) > 1:
                self.cut.append({"bytes": int(array.nbytes), "pieces": len(pieces), "rows": len(rows)})
        for name, p in self.programs.items():
            p["code"] = [new for k, ins in enumerate(p["code"]) for new in replaced.get((name, k), [ins])]
            p["arena"] = {**p["arena"], "sequences": []}
            compact(p)  # what was cut is not kept whole, too
            memory.place(p, self.threads)
        return self

    def _reads_rows(self, index: int, u: _Use) -> bool:
        p = self.programs[u.entry]
        ins, v, values = p["code"][u.step], p["values"][u.value], p["values"]
        if (
            ins.get("kernel") != "effc_take"
            or u.operand != 0
            or ins["attrs"] != [0]
            or self.arrays[index].nbytes < TABLE
        ):
            return False
        out, at = values[ins["out"][0]], values[ins["in"][1]]
        plain = v["k"] == "const" and "strides" not in v and "strides" not in out and at["d"] in ("i64", "i32")
        return plain and values[storage(values, ins["in"][1])]["k"] != "const" and len(v["shape"]) > 0

    def _pieces(self, index: int, products: list[_Use]) -> list[tuple[int, int, int]] | None:
        """(first column, last, constant) of each piece, or None where some product cannot be cut."""
        shapes = {self._columns_of(index, u) for u in products}
        if len(shapes) != 1 or (found := shapes.pop()) is None:
            return None
        n, k, itemsize, packed = found
        least = 8 * PANEL if k >= packing.SPLIT_STEPS else PANEL  # below, the kernel would add in another order
        step = max(least, self.piece // (k * itemsize) // PANEL * PANEL)
        bounds = [*range(0, max(n - least + 1, 1), step), n]
        if len(bounds) < 3:
            return None
        pieces = []
        for lo, hi in itertools.pairwise(bounds):
            self.arrays.append(_panels(self.arrays[index], lo, hi) if packed else self.arrays[index][lo:hi])
            pieces.append((lo, hi, len(self.arrays) - 1))
        return pieces

    def _columns_of(self, index: int, u: _Use) -> tuple[int, int, int, bool] | None:
        """(columns, steps, bytes of an element, packed) of a right-hand side that columns can be cut from."""
        p = self.programs[u.entry]
        ins, v, values = p["code"][u.step], p["values"][u.value], p["values"]
        kernel = ins.get("kernel")
        if u.operand != 1 or any(
            len(values[i]["shape"]) != 4 for i in [ins["in"][0], *ins["in"][2:], *ins["out"]] if i >= 0
        ):
            return None
        if kernel in CUT:
            dtype, array = CUT[kernel], self.arrays[index]
            if array.ndim != 2 or len(v["shape"]) != 4 or v["d"] != dtype.value:
                return None
            n, k = array.shape  # a table (n, k) read as its transpose: a column is a row there
            if (
                v["k"] != "view"
                or tuple(v["shape"][2:]) != (k, n)
                or tuple(v["strides"]) != (0, 0, 1, k)
                or v["offset"] != 0
            ):
                return None
            packed = False
        elif kernel in CUT_PACKED:
            dtype = CUT_PACKED[kernel]
            batches, k, n = ins["attrs"][:3]
            if batches != 1 or v["k"] != "const":
                return None
            packed = True
        else:
            return None
        if any(values[i]["shape"][3] != n for i in [*ins["in"][2:], *ins["out"]]):
            return None
        return n, k, dtype.itemsize, packed

    def _const(self, entry: str, index: int, d: str) -> int:
        """The program value of a constant that was made here."""
        if (entry, index) not in self._consts:
            values = self.programs[entry]["values"]
            array = self.arrays[index]
            values.append({"d": d, "shape": tuple(array.shape), "k": "const", "data": index})
            self._consts[entry, index] = len(values) - 1
        return self._consts[entry, index]

    def _columns(self, u: _Use, pieces: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
        p = self.programs[u.entry]
        ins, values = p["code"][u.step], p["values"]
        if len(pieces) == 1:
            return [ins]
        kernel, n = ins["kernel"], pieces[-1][1]
        out = []
        for part, (lo, hi, index) in enumerate(pieces):
            new = {**ins, "name": f"{ins['name']} [{part + 1}/{len(pieces)}]"}
            more = [_slice(values, i, lo, hi) for i in ins["in"][2:]]
            if kernel in CUT:
                root = self._const(u.entry, index, values[u.value]["d"])
                k = self.arrays[index].shape[1]
                values.append(
                    {
                        "d": values[root]["d"], "shape": (1, 1, k, hi - lo), "k": "view", "base": root, "offset": 0,
                        "strides": (0, 0, 1, k),
                    }
                )  # fmt: skip
                right = len(values) - 1
                new["scratch"] = self._scratch(ins, values, values[right])
            else:
                right = self._const(u.entry, index, "u8")
                new["attrs"] = [*ins["attrs"][:2], hi - lo, *ins["attrs"][3:]]
            new["in"] = [ins["in"][0], right, *more]
            new["out"] = [_slice(values, i, lo, hi) for i in ins["out"]]
            for key in ("flops", "bytes"):
                new[key] = dims.floordiv(ins[key] * (hi - lo), n)
            out.append(new)
        return out

    def _scratch(self, ins: dict[str, Any], values: list[dict[str, Any]], right: dict[str, Any]) -> Dim:
        """Scratch of a product with fewer columns."""
        from .lower import Buf
        from .lower.contraction import _scratch, _Sizes

        dtype = DType(right["d"])
        micro = microkernels.choose(self.target, "matmul", dtype)
        left = values[ins["in"][0]]
        a, b = (
            Buf(0, 0, dtype, tuple(v["shape"]), tuple(v.get("strides") or row_major(v["shape"]))) for v in (left, right)
        )
        blocking = packing.Blocking(*ins["attrs"][:3])
        return dims.minimum(ins["scratch"], _scratch(_Sizes.of(micro, dtype, self.target.vlen), a, b, blocking))

    def _rows(self, u: _Use, pieces: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        p = self.programs[u.entry]
        ins, v = p["code"][u.step], p["values"][u.value]
        row = math.prod(v["shape"][1:]) * DType(v["d"]).itemsize
        return {
            "op": "rows", "kernel": "rows", "in": [ins["in"][1]], "out": ins["out"], "row_bytes": row,
            "tables": [[index, hi - lo] for lo, hi, index in pieces],
            **{k: ins[k] for k in ("name", "loc", "flops", "bytes")},
        }  # fmt: skip


def _panels(packed: Array, lo: int, hi: int) -> Array:
    """Columns [lo, hi), whole panels but for the last, of a packed right-hand side with one batch."""
    magic, fmt, version, code, nr, batches, k, n, _, kr = packing.HEADER.unpack(packed[: packing.HEADER.size].tobytes())
    panel = (len(packed) - packing.HEADER.size) // -(-n // nr)
    assert lo % nr == 0
    data = packed[packing.HEADER.size :][lo // nr * panel : -(-hi // nr) * panel]
    digest = packing.digest_of(data)
    head = packing.HEADER.pack(magic, fmt, version, code, nr, batches, k, hi - lo, digest, kr)
    return np.concatenate([np.frombuffer(head, np.uint8), data])


# The schedule ---------------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """One way to cut the weights, and the least memory it takes."""

    programs: dict[str, Program]
    arrays: list[Array]
    cut: list[dict[str, Any]]
    steps: dict[str, list[list[int]]]  # per entry and instruction: the constants it reads that need not stay
    order: list[int]  # those constants, by first use
    tables: set[int]
    arena: int
    fixed: int
    rows: int
    block: int  # the most that one instruction reads
    where: tuple[str, dict[str, Any]] | None  # that instruction, with its entry point
    cutter: _Cutter
    spilled: dict[str, dict[str, Any]]  # entry points whose arenas were made smaller, with what that took

    def size(self, index: int) -> int:
        return pages(self.arrays[index].nbytes)

    @property
    def least(self) -> int:
        return self.arena + self.fixed + self.rows + self.block


def _prepare(
    programs: Mapping[str, Program], arrays: Sequence[Array], target: CpuTarget, threads: int,
    ranges: Mapping[str, Mapping[str, tuple[int, int]]], piece: int, states: int, limit: int | None,
) -> _Plan:  # fmt: skip
    c = _Cutter(programs, arrays, target, piece, threads).run()
    spilled = {} if limit is None else _limit_arenas(c, threads, ranges, limit, "arena_budget")
    return _measured(c, threads, ranges, states, spilled)


def _limit_arenas(
    c: _Cutter, threads: int, ranges: Mapping[str, Mapping[str, tuple[int, int]]], limit: int, option: str
) -> dict[str, dict[str, Any]]:
    """Makes the programs run in arenas of at most ``limit`` bytes, as ``arena_budget`` does."""
    from . import spilling

    out = {}
    for n, p in c.programs.items():
        c.programs[n], report = spilling.shrunk(n, p, threads, ranges[n], limit, option)
        report.pop("at", None)
        if report["changed"]:
            out[n] = report
    return out


def _measured(
    c: _Cutter, threads: int, ranges: Mapping[str, Mapping[str, tuple[int, int]]], states: int,
    spilled: dict[str, dict[str, Any]],
) -> _Plan:  # fmt: skip
    uses, fixed = _uses(c.programs)
    stays = {i for i in uses if c.arrays[i].nbytes < SMALL} | fixed
    steps: dict[str, list[list[int]]] = {n: [[] for _ in p["code"]] for n, p in c.programs.items()}
    order: dict[int, None] = {}
    for n, p in c.programs.items():
        for k, ins in enumerate(p["code"]):
            if ins["op"] == "rows":
                order.update(dict.fromkeys(i for i, _ in ins["tables"]))
                continue
            read = {
                p["values"][r]["data"]
                for i in ins["in"]
                if i >= 0 and p["values"][r := storage(p["values"], i)]["k"] == "const"
            }
            steps[n][k] = [i for i in sorted(read) if i not in stays]
            order.update(dict.fromkeys(steps[n][k]))
    block, where = 0, None
    for n, of in steps.items():
        for k, read_here in enumerate(of):
            total = sum(pages(c.arrays[i].nbytes) for i in read_here)
            if total > block:
                block, where = total, (n, c.programs[n]["code"][k])
    return _Plan(
        c.programs, c.arrays, c.cut, steps, list(order), c.tables,
        arena=-(-max((arena_bytes(p, threads, ranges[n])[0] for n, p in c.programs.items()), default=0) // 64) * 64,
        fixed=sum(-(-c.arrays[i].nbytes // 64) * 64 for i in stays) + states,
        rows=max((_chunk(c.arrays[i], True) + 2 * PAGE for i in c.tables), default=0),
        block=block, where=where, cutter=c, spilled=spilled,
    )  # fmt: skip


def _chunk(array: Array, table: bool) -> int:
    """Bytes under one checksum."""
    return min(CHUNK, pages(array.nbytes)) if not table else min(TABLE_CHUNK, pages(-(-array.nbytes // 8)))


def fit(
    programs: Mapping[str, Program], graphs: Mapping[str, Graph], arrays: Sequence[Array], target: CpuTarget,
    threads: int, budget: int, arena: tuple[int, dict[str, Program]] | None = None,
) -> tuple[dict[str, Program], list[Array], Memory]:  # fmt: skip
    """Programs and constants that run within ``budget`` bytes on at most ``threads`` threads, and how. Where streaming
    is not enough, the arena is made smaller, too. ``arena``: an arena_budget, and the programs within it.

    Raises EffcError with the least budget that would do, and what takes it: the arena with its scratch, what has to
    stay, and the weights of the instruction that reads the most, which have to be there together.
    """
    from . import spilling

    ranges = {n: ranges_of(p, graphs[n], "memory_budget") for n, p in programs.items()}
    limited = dict(programs) if arena is None else arena[1]
    programs = {n: {k: v for k, v in p.items() if k != "others"} for n, p in programs.items()}
    states = _state_bytes(graphs)
    uses, fixed = _uses(programs)
    whole = sum(-(-arrays[i].nbytes // 64) * 64 for i in set(uses) | fixed) + states
    most = max((arena_bytes(p, threads, ranges[n])[0] for n, p in limited.items()), default=0)
    if whole + most <= budget:
        report = {"budget": budget, "arena": most, "weights": whole - states, "states": states, "streamed": 0}
        return limited, list(arrays), Memory(report)
    plan = None
    for piece in PIECES:
        tried = _prepare(programs, arrays, target, threads, ranges, piece, states, arena and arena[0])
        if plan is None or tried.least < plan.least:
            plan = tried
        if plan.least <= budget:
            break
    assert plan is not None
    room = None
    if plan.least > budget:
        rest = plan.least - plan.arena
        room = budget - rest
        least = max(spilling.least(p, threads, ranges[n]) for n, p in plan.programs.items())
        if least > room // 64 * 64:
            raise _refusal(replace(plan, arena=least), budget, states)
        try:
            spilled = _limit_arenas(plan.cutter, threads, ranges, room, "what memory_budget leaves the arena")
        except spilling.Refused as e:
            e.least += rest
            raise
        plan = _measured(plan.cutter, threads, ranges, states, spilled)
    programs, arrays, memory = _scheduled(plan, budget, states, threads)
    return programs, arrays, replace(memory, room=room)


def _state_bytes(graphs: Mapping[str, Graph]) -> int:
    """Bytes of the states of one session, and of what those start from that do not start as zeros."""
    sizes: dict[str, int] = {}
    for g in graphs.values():
        for s, state in g.states.items():
            n = -(-math.prod(state.type.shape) * state.type.dtype.itemsize // 64) * 64  # type: ignore[arg-type]
            sizes[s] = n * (2 if state.init is not None and state.init.any() else 1)
    return sum(sizes.values())


def _refusal(plan: _Plan, budget: int, states: int) -> EffcError:
    from . import spilling

    entry, ins = plan.where or ("", {"name": "", "loc": ""})
    step = (
        f" and {plan.block} for the weights of {ins['name']} in entry point {entry}, the most of any instruction"
        if ins["name"]
        else ""
    )
    made = spilling.Refused(
        f"memory_budget is {budget} bytes, the least that this model runs in is {plan.least}: {plan.arena} for the "
        f"arena with its scratch, {plan.fixed - states} for small constants, {states} for states"
        f"{f', {plan.rows} to read rows' if plan.rows else ''}{step}",
        op=ins["name"] or None, loc=ins["loc"], pass_name="memory budget",
        hint=f"give memory_budget={plan.least} or more, fewer threads, or smaller bounds to dynamic dims",
    )  # fmt: skip
    made.least, made.room = plan.least, budget - (plan.least - plan.arena)
    return made


def _scheduled(plan: _Plan, budget: int, states: int, threads: int) -> tuple[dict[str, Program], list[Array], Memory]:
    """Chooses what stays, and gives each entry point its list of loads."""
    spare = budget - plan.least
    window = plan.block + min(spare, plan.block)  # one instruction's weights in use, the next one's being read
    spare = budget - plan.arena - plan.fixed - plan.rows - window
    often: dict[int, int] = defaultdict(int)
    for of in plan.steps.values():
        for read in of:
            for i in read:
                often[i] += 1
    stays: set[int] = set()
    rank = {index: k for k, index in enumerate(plan.order)}
    for index in sorted(plan.order, key=lambda i: (-often[i], plan.size(i), rank[i])):
        if often[index] and plan.size(index) <= spare:
            stays.add(index)
            spare -= plan.size(index)
    # What streams lies together in the file, in the order in which it is read.
    stored = sorted(plan.order, key=lambda i: (i not in stays, rank[i]))
    segment = {index: 1 + k for k, index in enumerate(stored)}
    entries = {}
    for n, p in plan.programs.items():
        loads = _loads([[i for i in read if i not in stays] for read in plan.steps[n]], plan.size, window)
        p["stream"] = {"loads": [{**load, "seg": segment[load["seg"]]} for load in loads]}
        for ins in p["code"]:
            if ins["op"] == "rows":
                ins["tables"] = [[segment[i], rows] for i, rows in ins["tables"]]
        entries[n] = {
            "loads": len(loads),
            "bytes": sum(plan.arrays[load["seg"]].nbytes for load in loads),
            "instructions": len(p["code"]),
        }
    resident = sum(plan.size(i) for i in stays)
    manifest = {
        "budget": budget, "arena": plan.arena, "window": window, "resident": resident, "row_buffer": plan.rows,
        "threads": threads, "stays": sorted(segment[i] for i in stays),
    }  # fmt: skip
    report = {
        "budget": budget, "least": plan.least, "arena": plan.arena, "states": states, "constants": plan.fixed - states,
        "row_buffer": plan.rows, "window": window, "resident": resident,
        "weights": sum(plan.arrays[i].nbytes for i in plan.order),
        "streamed": sum(plan.arrays[i].nbytes for i in plan.order if i not in stays),
        "stay": len(stays), "stream": len(plan.order) - len(stays), "cut": plan.cut, "entries": entries,
        **({"spilled": plan.spilled} if plan.spilled else {}),
        "largest": {"entry": plan.where[0], "name": plan.where[1]["name"], "bytes": plan.block} if plan.where else None,
    }  # fmt: skip
    chunks = {i: _chunk(plan.arrays[i], i in plan.tables) for i in stored}
    return plan.programs, plan.arrays, Memory(report, manifest, chunks)


def _loads(steps: Sequence[Sequence[int]], size: Callable[[int], int], window: int) -> list[dict[str, Any]]:
    """Places in a ring for what each instruction reads, one after the other. A place is free again once all
    instructions that read from it are done (``after``). What is still there from an instruction before is used again.
    """
    live: list[tuple[int, int, dict[str, Any]]] = []  # places in the ring as they were last filled: (start, end, load)
    loads: list[dict[str, Any]] = []
    ring = 0
    for k, read in enumerate(steps):
        again = {load["seg"]: (lo, hi, load) for lo, hi, load in live if load["seg"] in read}
        fresh = [i for i in read if i not in again]
        total = sum(size(i) for i in fresh)
        at = ring if ring + total <= window else 0
        if any(lo < at + total and at < hi for lo, hi, _ in again.values()):
            again, fresh, total = {}, list(read), sum(size(i) for i in read)
            at = ring if ring + total <= window else 0
        for _, _, load in again.values():
            load["steps"].append(k)
        for i in fresh:
            end = at + size(i)
            gone = [load for lo, hi, load in live if lo < end and at < hi]
            live = [(lo, hi, load) for lo, hi, load in live if not (lo < end and at < hi)]
            # At least what the load before waits for: so whoever lay here before that one is done, too.
            before = loads[-1]["after"] if loads else 0
            load = {"seg": i, "at": at, "steps": [k], "after": max((before, *(g["steps"][-1] + 1 for g in gone)))}
            loads.append(load)
            live.append((at, end, load))
            at = end
        if fresh:
            ring = at
    return loads


__all__ = ["Memory", "arena_bytes", "fit", "ranges_of", "sizes_to_try"]
