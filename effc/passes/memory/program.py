"""A lowered program (architecture.md) as a memory problem: its temporaries and calls, for given sizes and threads.

Dims may be integers, symbolic expressions, or their JSON form, so that the same reading serves the compiler and whoever
opens an artifact. It follows the runtime's rules: a value whose size only data decides takes no part of the arena, nor
does the scratch of a call that waits for such a size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import dims
from ...ir.dims import SymExpr
from ...ir.dtypes import DType
from .plan import ALIGN, Interval, aligned, place
from .problem import Choices, Node, Problem, Tensor, boxes

NESTED = ("then", "else", "cond", "body")


class Sizes(dict[str, int]):
    """What symbols are, and what expressions of them that were asked for came to: of one program, written in ways."""

    def __init__(self, env: Mapping[str, int]) -> None:
        super().__init__(env)
        self.known: dict[int, tuple[SymExpr, int]] = {}  # by identity: comparing them takes longer than the sums


def size(d: Any, env: Mapping[str, int]) -> int:
    """A dim as a number; KeyError names a symbol that ``env`` lacks."""
    if isinstance(d, int):
        return d
    if isinstance(d, SymExpr):
        known = env.known if isinstance(env, Sizes) else {}
        if id(d) not in known:
            try:
                known[id(d)] = d, dims.evaluate(d, env)
            except ZeroDivisionError:
                known[id(d)] = d, 0
        return known[id(d)][1]
    if isinstance(d, str):
        return env[d]
    if isinstance(d, float):
        return int(d)
    op, a, b = d[0], size(d[1], env), size(d[2], env)
    if op in ("//", "%") and b == 0:
        return 0
    return _OPS[op](a, b)


_OPS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
}


def symbols(d: Any) -> frozenset[str]:
    """Names in a dim of any form."""
    if isinstance(d, SymExpr):
        return dims.symbols(d)
    if isinstance(d, str):
        return frozenset((d,))
    return symbols(d[1]) | symbols(d[2]) if isinstance(d, (list, tuple)) else dims.NO_NAMES


def operands(ins: Mapping[str, Any]) -> Iterator[int]:
    """The values that an instruction reads."""
    for key in ("in", "carry", "xs", "consts"):
        yield from (i for i in ins.get(key, ()) if i >= 0)
    if isinstance(ins.get("cond"), int):
        yield ins["cond"]


def storage(values: Sequence[Mapping[str, Any]], i: int) -> int:
    """The value that owns the bytes of value ``i``."""
    while True:
        v = values[i]
        if v["k"] == "view":
            i = v["base"]
        elif "alias" in v:
            i = v["alias"]
        else:
            return i


def nested(ins: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The programs inside a control-flow instruction."""
    return [ins[k] for k in NESTED if isinstance(ins.get(k), Mapping)]


def free_symbols(program: Mapping[str, Any]) -> set[str]:
    """Symbols that a nested program takes from outside."""
    out: set[str] = set()
    for v in program["values"]:
        for key in ("shape", "strides"):
            for d in v.get(key, ()):
                out |= symbols(d)
        for key in ("offset", "bytes"):
            out |= symbols(v.get(key, 0))
    for ins in program["code"]:
        out |= _used(ins)
    for c in program.get("checks", ()):
        out |= symbols(c["lhs"]) | symbols(c["rhs"])
    return out - {s["name"] for s in program.get("symbols", ()) if s.get("own")}


def _used(ins: Mapping[str, Any]) -> set[str]:
    """Symbols in an instruction's own dims and in what it holds."""
    out: set[str] = set()
    for d in (*ins.get("attrs", ()), ins.get("scratch", 0), ins.get("thread_scratch", 0), ins.get("length", 0)):
        if not isinstance(d, int):
            out |= symbols(d)
    for sub in nested(ins):
        out |= free_symbols(sub)
    return out


def has_effect(ins: Mapping[str, Any], what: str) -> bool:
    """Whether an instruction, or one inside it, has this effect: ``random``, ``effect`` (an assertion)."""
    return ins.get("effect") == what or any(has_effect(x, what) for sub in nested(ins) for x in sub["code"])


def states(program: Mapping[str, Any]) -> set[str]:
    """Names of the states that a program touches, nested ones included."""
    own = {v["name"] for v in program["values"] if v["k"] == "state"}
    return own.union(*(states(sub) for ins in program["code"] for sub in nested(ins)))


def overwritable(values: Sequence[Mapping[str, Any]], ins: Mapping[str, Any], o: int, i: int) -> int | None:
    """The storage that result ``o`` of a call may take over from operand ``i``, as far as layouts go: a temporary, all
    of it, that no other operand shows differently. None if there is none."""
    out, src = ins["out"][o], ins["in"][i]
    if src < 0 or values[out]["k"] != "temp" or "alias" in values[out] or values[out].get("dyn"):
        return None
    root = storage(values, src)
    if values[root]["k"] not in ("temp", "state") or values[root].get("dyn"):
        return None
    if any(x != src for n, x in enumerate(ins["in"]) if n != i and x >= 0 and storage(values, x) == root):
        return None
    view = values[src]
    if view["k"] == "view" and view.get("offset") != 0:
        return None
    if not _same_bytes(view, values[out]):
        return None
    whole = dims.product(values[root]["shape"]) == dims.product(view["shape"])
    return root if whole and DType(values[root]["d"]).itemsize == DType(view["d"]).itemsize else None


def _same_bytes(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a["d"] == b["d"] and tuple(a["shape"]) == tuple(b["shape"]) and _strides(a) == _strides(b)


def _strides(v: Mapping[str, Any]) -> tuple[Any, ...]:
    if v.get("strides"):
        return tuple(v["strides"])
    out: list[Any] = []
    step: Any = 1
    for d in reversed(v["shape"]):
        out.append(step)
        step = step * d
    return tuple(reversed(out))


class _Late:
    """Which values and instructions wait for sizes that data decide."""

    def __init__(self, program: Mapping[str, Any], known: frozenset[str]) -> None:
        self.values, self.sized = program["values"], known
        self._known: dict[int, bool] = {}

    def _open(self, *ds: Any) -> bool:
        return any(not isinstance(d, int) and not symbols(d) <= self.sized for d in ds)

    def value(self, i: int) -> bool:
        if i not in self._known:
            v = self.values[i]
            self._known[i] = bool(
                v.get("dyn")
                or self._open(*v["shape"], *v.get("strides", ()), v.get("bytes", 0))
                or (v["k"] == "view" and (self._open(v["offset"]) or self.value(v["base"])))
                or ("alias" in v and self.value(v["alias"]))
            )
        return self._known[i]

    def instruction(self, ins: Mapping[str, Any]) -> bool:
        return bool(
            ins.get("bind") or not _used(ins) <= self.sized or any(self.value(i) for i in (*operands(ins), *ins["out"]))
        )


def nbytes(v: Mapping[str, Any], env: Mapping[str, int]) -> int:
    """Bytes of a storage."""
    n = DType(v["d"]).itemsize
    for d in v["shape"]:
        n *= size(d, env)
    return max(n, 0, size(v["bytes"], env) if "bytes" in v else 0)


def _empty(v: Mapping[str, Any], env: Mapping[str, int]) -> bool:
    return any(size(d, env) <= 0 for d in v["shape"])


def workspace(values: Sequence[Mapping[str, Any]], ins: Mapping[str, Any], env: Mapping[str, int], threads: int) -> int:
    """Bytes that an instruction needs while it runs: scratch, then each thread's, or for control flow the arena of the
    nested programs, which take turns, then the second copies of carries."""
    total = aligned(size(ins.get("scratch", 0), env)) + threads * aligned(size(ins.get("thread_scratch", 0), env))
    subs = nested(ins)
    if subs:
        total += max(aligned(arena(sub, env, threads)) for sub in subs)
        if ins["op"] != "if":
            total += sum(
                aligned(nbytes(values[i], env)) for i in ins.get("in" if ins["op"] == "while" else "carry", ())
            )
    return total


def arena(program: Mapping[str, Any], env: Mapping[str, int], threads: int) -> int:
    """Bytes of a finished program's arena, as the runtime would lay it out."""
    said = program["arena"]
    if said.get("static_bytes") is not None and said.get("threads") == threads:
        return int(said["static_bytes"])
    intervals = {i.id: i for i in blocks(program, env, threads)}
    if said.get("fixed") and threads <= said["threads"]:
        at = fixed_offsets(program)
        return max((at[k] + aligned(i.bytes) for k, i in intervals.items()), default=0)
    sequences = said.get("sequences") or [list(intervals)]
    return min(height(intervals, seq, bool(said.get("apart"))) for seq in sequences)


def fixed_offsets(program: Mapping[str, Any]) -> dict[int, int]:
    """The offsets that a program states, by block as in :func:`blocks`."""
    at = {i: v["offset"] for i, v in enumerate(program["values"]) if v["k"] == "temp" and "offset" in v}
    return at | {-1 - k: ins["work_at"] for k, ins in enumerate(program["code"]) if "work_at" in ins}


def height(intervals: Mapping[int, Interval], sequence: Sequence[int], apart: bool = False) -> int:
    """What blocks take that are placed in this order, each in the lowest gap; ``apart``: nothing shares bytes."""
    if apart:
        return sum(aligned(i.bytes) for i in intervals.values())
    known = [intervals[i] for i in sequence if i in intervals]
    rest = [i for k, i in intervals.items() if k not in set(sequence)]
    offsets = place([*known, *rest])
    return max((offsets[i.id] + aligned(i.bytes) for i in intervals.values()), default=0)


def blocks(program: Mapping[str, Any], env: Mapping[str, int], threads: int = 1) -> list[Interval]:
    """What the runtime places, in the program's order: storages by value id, workspaces by -1 - instruction."""
    p = from_program(program, sizes=env, threads=threads, these=True)
    return boxes(p, p.given, Choices())[0]


@dataclass(frozen=True)
class _Call:
    """An instruction whatever the sizes: the values it reads and writes, what it has to come after."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    after: tuple[int, ...]
    over: tuple[tuple[int, int], ...]  # (storage of a result, that of an operand it may be written over)
    late: bool
    once: bool


class Reading:
    """A lowered program whose symbols of these names have sizes, read once for problems of many sizes (:meth:`at`)."""

    def __init__(self, program: Mapping[str, Any], known: Iterable[str] = ()) -> None:
        self.known = frozenset(known)
        self.values, self.code = program["values"], program["code"]
        self._late = _Late(program, self.known)
        ends = [*program["outputs"], *(c["value"] for c in program["commits"])]
        self._roots = [storage(self.values, i) for i in range(len(self.values))]
        self._kept = {self._roots[i] for i in ends}
        self._calls = self._read({self._roots[c["value"]] for c in program["commits"]})

    def _read(self, committed: set[int]) -> list[_Call]:
        values, known = self.values, self.known
        places = [_place(values, i) for i in range(len(values))]
        waits: dict[int, set[str]] = {}
        writer: dict[Any, int] = {}  # of a storage, last
        readers: dict[Any, list[int]] = {}  # since then
        binders: dict[str, list[int]] = {}
        drawn = barrier = -1
        written_by: dict[Any, set[int]] = {}
        for k, ins in enumerate(self.code):
            for i in ins["out"]:
                written_by.setdefault(places[i], set()).add(k)
        # What holds one thing now and another later: of tensors, ``writes`` tells.
        changed = {w for w, by in written_by.items() if w[0] in ("state", "input") or (w[0] != "temp" and len(by) > 1)}
        calls = []
        for k, ins in enumerate(self.code):
            reads, writes = tuple(operands(ins)), tuple(ins["out"])
            after: set[int] = set()
            touched = [(places[i], False) for i in reads] + [(places[i], True) for i in writes]
            if ins["op"] in ("spill", "refill"):
                touched.append((("far", ins["slot"]), ins["op"] == "spill"))
            touched += [(("state", state), True) for sub in nested(ins) for state in sorted(states(sub))]
            for where, written in touched:
                if where in writer:
                    after.add(writer[where])
                if written:
                    after.update(readers.get(where, ()))
            for where, written in touched:
                if written:
                    writer[where], readers[where] = k, []
                elif where[0] != "const":
                    readers.setdefault(where, []).append(k)
            needs = _used(ins)
            for i in (*reads, *writes):
                if i not in waits:
                    waits[i] = _late_symbols(values, i, known)
                needs |= waits[i]
            for s in needs - known:
                after.update(binders.get(s, ()))
            for s in ins.get("bind", ()):
                binders.setdefault(s, []).append(k)
            for i in writes:
                if values[i].get("dyn"):
                    for s in set().union(*map(symbols, values[i]["shape"])) - known:
                        binders.setdefault(s, []).append(k)
            if has_effect(ins, "random"):
                after.update({drawn} - {-1})
                drawn = k
            after.update({barrier} - {-1})
            if has_effect(ins, "effect"):
                barrier = k
            over = []
            for o, i in ins.get("inplace", ()):
                root = overwritable(values, ins, o, i)
                if root is not None and root not in committed:
                    over.append((self._roots[ins["out"][o]], root))
            read = {where for where, written in touched if not written}
            calls.append(
                _Call(
                    reads, writes, tuple(sorted(after - {k})), tuple(over), self._late.instruction(ins),
                    _once(ins, read, set(touched), changed),
                )
            )  # fmt: skip
        return calls

    def at(
        self, sizes: Mapping[str, int], threads: int = 1, these: bool = False, name: str = "", align: int = ALIGN
    ) -> Problem:
        """The problem at these sizes, of the symbols that are known. ``these``: for these sizes alone, at which who
        sees none of a storage's elements does not use it."""
        if sizes.keys() != self.known:
            raise ValueError(f"sizes of {sorted(sizes)}, where the program was read for those of {sorted(self.known)}")
        env = sizes if isinstance(sizes, Sizes) else Sizes(sizes)
        values, late = self.values, self._late
        tensors: dict[int, Tensor] = {}
        unseen: dict[int, bool] = {}

        def tensor(i: int) -> int | None:
            i = self._roots[i]
            if i not in tensors:
                v = values[i]
                if v["k"] != "temp" or late.value(i):
                    return None
                n = nbytes(v, env)
                kind = "output" if i in self._kept else "intermediate"
                tensors[i] = Tensor(i, aligned(n, align), kind, name=v.get("name", ""), raw_bytes=n)
            return i

        def idle(i: int) -> bool:
            if i not in unseen:
                root = self._roots[i]
                sized = these and i != root and not late.value(i) and not late.value(root)
                unseen[i] = sized and _empty(values[i], env) and not _empty(values[root], env)
            return unseen[i]

        nodes: list[Node] = []
        made: set[int] = set()
        for k, (ins, call) in enumerate(zip(self.code, self._calls, strict=True)):
            takes = [t for i in call.reads if not idle(i) and (t := tensor(i)) is not None]
            gives: list[int] = []
            again: list[int] = []
            for i in call.writes:
                t = None if idle(i) else tensor(i)
                if t is not None:
                    (again if t in made else gives).append(t)
            made.update(gives)
            takes = [t for t in dict.fromkeys([*takes, *again]) if t not in gives]
            over = [t for out, t in call.over if len(gives) == 1 and t in takes and out in gives]
            nodes.append(
                Node(
                    k,
                    tuple(takes),
                    tuple(dict.fromkeys(gives)),
                    ins.get("kernel", ins["op"]),
                    ins.get("name", "") or "",
                    tuple(dict.fromkeys(over)),
                    workspace=0 if call.late else workspace(values, ins, env, threads),
                    after=call.after,
                    flops=flops if isinstance(flops := ins.get("flops"), int) else 0,
                    writes=tuple(dict.fromkeys(again)),
                    once=call.once,
                )
            )
        return Problem(tuple(nodes), tensors, align, name)


def from_program(
    program: Mapping[str, Any],
    name: str = "",
    align: int = ALIGN,
    *,
    sizes: Mapping[str, int] | None = None,
    threads: int = 1,
    these: bool = False,
) -> Problem:
    """The temporaries and calls of a lowered program, values resolved to their storages. Nodes are instructions by
    number, tensors storages by value id.

    ``sizes``: of its symbols; what others decide is left out. Results of the caller's, constants and states take no
    space. A storage written more than once (in-place aliases, parts) is one tensor whose writers stay in their order;
    so do instructions that draw random numbers, write a state, or define a size and those that use it; an assertion
    comes before all that followed it. ``these``: see :meth:`Reading.at`.
    """
    env = sizes or {}
    return Reading(program, env).at(env, threads, these, name, align)


def _once(ins: Mapping[str, Any], reads: set[Any], touched: set[tuple[Any, bool]], changed: set[Any]) -> bool:
    """Whether running it again could give something else: control flow, random numbers, assertions, sizes that it
    defines, states that change, what it reads and overwrites."""
    return (
        ins["op"] != "call"
        or bool(ins.get("effect") or ins.get("bind"))
        or any(where in changed or (written and where in reads) for where, written in touched)
    )


def _place(values: Sequence[Mapping[str, Any]], i: int) -> tuple[str, Any]:
    """What instructions conflict over: a storage, which of states and inputs several values may be."""
    i = storage(values, i)
    v = values[i]
    return (v["k"], v["name"] if v["k"] == "state" else v["i"] if v["k"] == "input" else i)


def _late_symbols(values: Sequence[Mapping[str, Any]], i: int, known: frozenset[str]) -> set[str]:
    out: set[str] = set()
    while True:
        v = values[i]
        for d in (*v["shape"], *v.get("strides", ()), v.get("bytes", 0), v["offset"] if v["k"] == "view" else 0):
            if not isinstance(d, int):
                out |= symbols(d)
        if v["k"] == "view":
            i = v["base"]
        elif "alias" in v:
            i = v["alias"]
        else:
            return out - known


__all__ = [
    "Reading",
    "Sizes",
    "arena",
    "blocks",
    "fixed_offsets",
    "from_program",
    "nbytes",
    "operands",
    "overwritable",
    "size",
    "storage",
    "workspace",
]
