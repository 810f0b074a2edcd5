"""Plans within a capacity: by order, rewriting, recomputation, and copies to a far memory and back, at the least cost.

A plan here is a sequence of runs, in which nodes may come more than once, and for each tensor the gaps between its uses
in which it is not resident (``problem.Steps`` in full). The cost is in bytes moved; a run that is repeated costs its
floating-point operations divided by an exchange rate. The sequence is found by annealing in ``native/budget.cpp``, from
the order given and that of the least peak; then the gaps for that sequence by an integer program, if OR-tools is
installed; then offsets, and where those need more than the capacity, the steps at fault get less of it. Whatever is
returned was verified with its offsets. What no sequence costs less than is found beside it (``bound.py``).

With a far memory there is a plan for any capacity that the neediest step, and all outputs together, fit into:
everything can be out between two steps. So ``minimum`` is exact, and a refusal is a proof.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ...runtime.errors import EffcError
from . import library
from . import order as ordering
from .bound import below
from .plan import Interval, plan
from .problem import ARENA, Action, Node, Problem, Steps, steps_of
from .schedule import lay_out, schedule
from .verify import SeenSteps, verify_steps

FLOP_PER_BYTE = 32.0  # a core of 100 GFLOP/s beside a far memory of 3 GB/s
PRODUCTS = ("conv", "linear", "matmul", "addmm", "bmm", "attention", "einsum", "lstm", "gru", "gemm")


class BudgetError(EffcError):
    """No plan fits, or none was found. ``minimum``: the least capacity in bytes, ``proven`` or only a bound from below;
    ``node``: the id of the node that needs it, None if it is the outputs."""

    def __init__(self, message: str, minimum: int, node: int | None, proven: bool, hint: str, op: str | None) -> None:
        super().__init__(message, op=op, pass_name="memory budget", hint=hint)
        self.minimum, self.node, self.proven = minimum, node, proven


@dataclass(frozen=True)
class Minimum:
    """``bytes``, a multiple of the alignment, is enough. ``node`` has the step that needs it; None: all outputs
    together. ``bound``: no plan needs less. It is below ``bytes`` only where a node reads a tensor as well as a
    concatenation that may hold it, which only plans that move and repeat nothing do from one place."""

    bytes: int
    node: int | None
    bound: int = -1


@dataclass(frozen=True)
class Budgeted:
    """``moved`` in bytes; ``flops`` of the ``reruns``, ``estimated`` where nodes do not say theirs; ``cost`` of both in
    bytes. ``gaps_optimal``: what is resident when is proven best for the sequence of runs. ``bound``: no plan of any
    order costs less (``bound.py``); ``bound_ended`` says how the proof ended."""

    steps: Steps
    seen: SeenSteps
    capacity: int
    cost: int
    moved: int
    flops: int
    reruns: int
    estimated: bool
    gaps_optimal: bool
    seconds: float
    how: str
    bound: int = 0
    bound_ended: str = "not asked for"

    @property
    def arena(self) -> int:
        return self.seen.arena[ARENA]

    @property
    def optimal(self) -> bool:
        return self.cost <= self.bound

    @property
    def gap(self) -> float:
        """How far the cost may be above the least, as a fraction of the bound; inf where nothing is proven."""
        if self.optimal:
            return 0.0
        return (self.cost - self.bound) / self.bound if self.bound else math.inf


def _up(n: int, align: int) -> int:
    return -(-n // align) * align


def flops_of(p: Problem) -> tuple[dict[int, int], bool]:
    """Floating-point operations by node, and whether any is an estimate: where a node does not say, one for each byte
    that it reads or writes, 128 for convolutions and products."""
    out, estimated = {}, False
    for n in p.nodes:
        if n.flops > 0:
            out[n.id] = n.flops
            continue
        estimated = True
        touched = sum(p.tensors[t].raw for t in {*n.ins, *n.outs})
        out[n.id] = touched * (128 if any(x in n.op for x in PRODUCTS) else 1)
    return out, estimated


def own_bytes(p: Problem, n: Node, rewrite: bool = True, apart: Collection[int] = ()) -> int:
    """What the arena must hold while a node runs, however the rest is planned. With ``rewrite`` its result may
    overwrite an operand or hold operands made inside it. ``apart``: tensors whose bytes are not to be counted."""
    size = {t: 0 if t in apart else p.tensors[t].bytes for t in {*n.ins, *n.outs} if _managed(p, t)}
    operands = sum(b for t, b in size.items() if t in n.ins)
    gain = 0
    if rewrite:
        gain = max(
            sum(size.get(t, 0) for t in _parts(p, n)),
            max((min(size[t], size[n.outs[0]]) for t in _over(p, n)), default=0),
        )
    return max(operands, sum(size.values()) + _up(n.workspace, p.align) - gain)


def minimum(p: Problem, *, rewrite: bool = True) -> Minimum:
    """The least capacity that plans need; with a far memory one that does exists, unless offsets are pinned."""
    outputs = sum(x.bytes for x in p.tensors.values() if x.kind == "output" and _managed(p, x.id))
    pinned = max((x.pinned + x.bytes for x in p.tensors.values() if x.pinned is not None), default=0)
    best, bound = Minimum(max(outputs, pinned), None), max(outputs, pinned)
    held: dict[int, set[int]] = {}  # by a concatenation
    for n in p.nodes:
        own = own_bytes(p, n, rewrite)
        if own > best.bytes:
            best = Minimum(own, n.id)
        inside = set().union(*(held.get(t, ()) for t in n.ins if t not in n.writes)) if rewrite else set()
        if parts := _parts(p, n):
            held[n.outs[0]] = set(parts).union(*(held.get(t, ()) for t in parts))
        bound = max(bound, own_bytes(p, n, rewrite, inside - {*n.outs, *n.writes}))
    return Minimum(_up(best.bytes, p.align), best.node, _up(bound, p.align))


def _managed(p: Problem, t: int) -> bool:
    return p.tensors[t].kind != "input" and p.tensors[t].space == ARENA


def _over(p: Problem, n: Node) -> list[int]:
    if len(n.outs) != 1 or not _managed(p, n.outs[0]):
        return []
    return [
        t
        for t in n.inplace_ok
        if t in n.ins and _managed(p, t) and p.tensors[t].kind == "intermediate" and t not in n.writes
    ]


def _parts(p: Problem, n: Node) -> list[int]:
    if len(n.outs) != 1 or not _managed(p, n.outs[0]):
        return []
    return [t for t, _ in n.concat if _managed(p, t)]


@dataclass(frozen=True)
class Rules:
    """What a plan may do, and what counts. ``sources``: nodes that read what lies in the far memory already, whose
    repetition moves their results' bytes; ``written``: tensors whose first copy is not counted and always made."""

    spill: bool = True
    recompute: bool = True
    rewrite: bool = True
    flop_per_byte: float = FLOP_PER_BYTE
    sources: frozenset[int] = frozenset()
    written: frozenset[int] = frozenset()


@dataclass
class Gap:
    """Between two uses of a tensor, at steps ``start`` and ``stop`` of a sequence (its length: the end)."""

    tensor: int
    start: int
    stop: int
    group: int
    out: bool = False


@dataclass
class Stretch:
    """A sequence of runs with all that the choice of gaps depends on."""

    sequence: list[int]
    gaps: list[Gap]
    full: list[int]  # bytes of operands, results and workspace of each step
    pre: list[int]  # of operands
    behind: dict[tuple[int, int], int]  # (tensor, step) -> the gap that starts there
    before: dict[tuple[int, int], int]  # that ends there


class Model:
    """A problem under a capacity, for the searches. Positions instead of ids inside."""

    def __init__(self, p: Problem, capacity: int, rules: Rules) -> None:
        self.p, self.rules = p, rules
        self.align = p.align
        self.capacity = capacity // p.align * p.align
        self.nodes = list(p.nodes)
        self.at = {n.id: k for k, n in enumerate(self.nodes)}
        self.names = [t for n in p.nodes for t in n.outs]
        self.size = {
            t: p.tensors[t].bytes if _managed(p, t) else 0 for t in self.names
        }  # of other spaces: nothing here
        self.index = {t: k for k, t in enumerate(self.names)}
        self.producer = {t: n.id for n in p.nodes for t in n.outs}
        self.flops, self.estimated = flops_of(p)
        changed = {t for n in p.nodes for t in n.writes}
        large = 1 << 40
        self.move = {
            t: max(1, p.tensors[t].raw) if rules.spill or self.producer[t] in rules.sources else large
            for t in self.names
        }
        self.copy = {
            t: 0
            if t in rules.written or self.producer[t] in rules.sources
            else max(1, p.tensors[t].raw)
            if rules.spill
            else large
            for t in self.names
        }
        self.rerun: dict[int, int] = {}
        for n in p.nodes:
            if not rules.recompute or n.id in rules.sources or not n.repeatable or not n.outs:
                continue
            if {*n.ins, *n.outs} & changed:
                continue
            self.rerun[n.id] = max(1, math.ceil(self.flops[n.id] / rules.flop_per_byte))
        place = {t: by for n in p.nodes for t, by in n.concat}
        self.parts = {n.id: _parts(p, n) if rules.rewrite else [] for n in p.nodes}
        self.over = {
            n.id: _over(p, n) if rules.rewrite and place.get(n.outs[0] if n.outs else -1, 0) % p.align == 0 else []
            for n in p.nodes
        }
        self.stays = [t for t in self.names if p.tensors[t].kind == "output"]
        self._arrays()

    def own(self, n: Node, apart: Collection[int] = ()) -> int:
        """Bytes that a step needs by itself, ``apart`` from tensors that may lie in others."""
        return own_bytes(self.p, n, self.rules.rewrite, apart)

    def _ins(self, n: Node) -> list[int]:
        return [t for t in dict.fromkeys(n.ins) if t in self.index]

    def _arrays(self) -> None:
        p, ix = self.p, self.index
        array, ragged = library.array, library.ragged
        nodes = self.nodes
        lists = [
            ragged([[ix[t] for t in self._ins(n)] for n in nodes]),
            ragged([[ix[t] for t in n.outs if t in ix] for n in nodes]),
            ragged([[self.at[u] for u in n.after] for n in nodes]),
            ragged([[ix[t] for t in self.over[n.id]] for n in nodes]),
            ragged([[ix[t] for t in self.parts[n.id]] for n in nodes]),
            ragged([[ix[t] for t in n.writes if t in ix] for n in nodes]),
        ]
        self._fixed = [x for pair in lists for x in pair] + [
            array([self.size[t] for t in self.names]),
            array([self.move[t] for t in self.names]),
            array([self.copy[t] for t in self.names]),
            array([_up(n.workspace, p.align) for n in nodes]),
            array([self.rerun.get(n.id, -1) for n in nodes]),
            (ctypes.c_uint8 * max(1, len(self.names)))(*[p.tensors[t].kind == "output" for t in self.names]),
        ]

    def _question(
        self, sequence: Sequence[int], seed: int, work: int, seconds: float, heat: float
    ) -> library.LimitedIn:
        return library.LimitedIn(
            len(self.nodes),
            len(self.names),
            *self._fixed,
            self.capacity,
            len(sequence),
            library.array([self.at[n] for n in sequence]),
            int(self.rules.recompute),
            seed,
            work,
            seconds,
            heat,
        )

    def anneal(
        self, start: Sequence[int], *, seed: int = 1, work: int = 20_000_000, seconds: float = 8.0, heat: float = 0.0
    ) -> tuple[list[int], int, str]:
        """A sequence, its cost by the search's own choice of gaps, and why it ended."""
        room = 4 * len(self.nodes) + 64
        into = library.array([0] * room)
        question = self._question(start, seed, work, seconds, heat)
        answer = library.SequenceOut(sequence=into, room=room)
        status = library.handle().effc_mem_limit(ctypes.byref(question), ctypes.byref(answer))
        if status == 1:
            raise MemoryError("the search for a plan within a budget had no memory left")
        assert status == 0, status
        found = [self.nodes[into[k]].id for k in range(answer.length)]
        self.evaluations = answer.evaluations
        return found, answer.cost, library.ENDED[answer.ended]

    def stretch(self, sequence: Sequence[int]) -> Stretch:
        size = self.size
        s = Stretch(list(sequence), [], [], [], {}, {})
        last: dict[int, int] = {}
        group: dict[int, int] = {}
        groups = 0

        def gap(t: int, to: int) -> None:
            k = len(s.gaps)
            s.gaps.append(Gap(t, last[t], to, group[t]))
            s.behind[t, last[t]] = s.before[t, to] = k

        for i, name in enumerate(sequence):
            n = self.nodes[self.at[name]]
            need = 0
            for t in self._ins(n):
                gap(t, i)
                last[t] = i
                need += size[t]
            s.pre.append(need)
            for t in n.writes:
                if t in self.index:
                    group[t], groups = groups, groups + 1
            for t in n.outs:
                if t not in last:
                    group[t], groups = groups, groups + 1
                last[t] = i
                need += size[t]
            s.full.append(need + _up(n.workspace, self.align))
        for t in self.names:
            if self.p.tensors[t].kind == "output":
                gap(t, len(s.sequence))
        s.pre.append(sum(size[t] for t in self.stays))
        s.full.append(s.pre[-1])
        return s

    def evict(self, s: Stretch, capacity: Sequence[int], forced: Collection[int]) -> int:
        """Chooses the gaps that are out by the search's own method. The cost with repeated runs; 2^52 and more if a
        step cannot fit."""
        count = len(s.gaps)
        flags = (ctypes.c_uint8 * max(1, count))(*[k in forced for k in range(count)])
        out = (ctypes.c_uint8 * max(1, count))()
        spare = [library.array([0] * count) for _ in range(4)]
        question = self._question(s.sequence, 1, 0, 1.0, 0.0)
        answer = library.GapsOut(*spare, out, count)
        status = library.handle().effc_mem_evict(
            ctypes.byref(question), library.array(list(capacity)), flags, ctypes.byref(answer)
        )
        assert status == 0 and answer.count == count, status
        for k, g in enumerate(s.gaps):
            assert self.names[spare[0][k]] == g.tensor
            g.out = bool(out[k])
        return int(answer.cost)

    def takes(self, s: Stretch, step: int) -> tuple[list[tuple[int, int, int | None]], bool]:
        """Operands of a step whose bytes its result could take: (tensor, bytes that saves, the gap behind), and whether
        all of them can be (parts) or one."""
        n = self.nodes[self.at[s.sequence[step]]]
        size = self.p.tensors
        parts = self.parts[n.id]
        if parts:
            return [(t, size[t].bytes, s.behind.get((t, step))) for t in parts], True
        return [(t, min(size[t].bytes, size[n.outs[0]].bytes), s.behind.get((t, step))) for t in self.over[n.id]], False

    def cost(self, s: Stretch) -> tuple[int, int, int]:
        """Total, bytes moved, operations of reruns."""
        moved = 0
        copied: set[int] = set()
        for g in s.gaps:
            if g.out:
                moved += self.move[g.tensor]
                if g.group not in copied:
                    copied.add(g.group)
                    moved += self.copy[g.tensor]
        ran: set[int] = set()
        again = 0
        flops = 0
        for n in s.sequence:
            if n in ran:
                again += self.rerun[n]
                flops += self.flops[n]
            ran.add(n)
        return moved + again, moved, flops

    def solve(self, s: Stretch, capacity: Sequence[int], forced: Collection[int], effort: float) -> bool:
        """The gaps by an integer program from the present choice on; whether it is proven best. False without
        OR-tools."""
        try:
            from ortools.sat.python import cp_model
        except ImportError:
            return False
        size = {t: b // self.align for t, b in self.size.items()}
        steps = len(s.full)
        spans: list[list[int]] = [[] for _ in range(steps)]
        demand = list(s.full)
        for k, g in enumerate(s.gaps):
            if k in forced or not self.size[g.tensor]:
                continue
            for i in range(g.start + 1, g.stop):
                spans[i].append(k)
                demand[i] += self.size[g.tensor]
        tight = [i for i in range(steps) if demand[i] > capacity[i]]
        m = cp_model.CpModel()
        out: dict[int, cp_model.IntVar] = {}
        copied: dict[int, cp_model.IntVar] = {}
        terms = []
        done = {s.gaps[k].group for k in forced}

        def var(k: int) -> cp_model.IntVar:
            if k not in out:
                g = s.gaps[k]
                out[k] = m.new_bool_var("")
                terms.append(self.move[g.tensor] * out[k])
                if g.group not in done and self.copy[g.tensor]:
                    if g.group not in copied:
                        copied[g.group] = m.new_bool_var("")
                        terms.append(self.copy[g.tensor] * copied[g.group])
                    m.add_implication(out[k], copied[g.group])
            return out[k]

        for i in tight:
            load: list[object] = []
            for k in spans[i]:
                b = size[s.gaps[k].tensor]
                load.append(b - b * var(k))
            room = capacity[i] // self.align
            if i < len(s.sequence):
                takes, all_of_them = self.takes(s, i)
                uses = []
                for _, gain, behind in takes:
                    if behind is None or behind in forced:
                        use = m.new_bool_var("")
                    else:
                        use = var(behind) if all_of_them else m.new_bool_var("")
                        if not all_of_them:
                            m.add_implication(use, var(behind))
                    uses.append(use)
                    load.append(-(gain // self.align) * use)
                if not all_of_them and len(uses) > 1:
                    m.add_at_most_one(uses)
                if uses:
                    m.add(
                        s.pre[i] // self.align + sum(b - b * var(k) for k in spans[i] for b in [size[s.gaps[k].tensor]])
                        <= room
                    )
            m.add(s.full[i] // self.align + sum(load) <= room)  # type: ignore[arg-type]
        m.minimize(sum(terms))
        for k, v in out.items():
            m.add_hint(v, s.gaps[k].out)
        chosen = {s.gaps[k].group for k in out if s.gaps[k].out}
        for group, v in copied.items():
            m.add_hint(v, group in chosen)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.max_deterministic_time = effort
        solver.parameters.max_time_in_seconds = 4 * effort + 1
        status = solver.solve(m)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return False
        before = self.cost(s)[0]
        old = [g.out for g in s.gaps]
        for k, g in enumerate(s.gaps):
            g.out = k in forced or (k in out and bool(solver.value(out[k])))
        if self.cost(s)[0] > before:
            for g, x in zip(s.gaps, old, strict=True):
                g.out = x
            return False
        return bool(status == cp_model.OPTIMAL)


# From a choice to actions and offsets ---------------------------------------------------------------------------------


@dataclass
class _Residency:
    tensor: int
    began: int  # action
    start: int  # step
    stop: int = -1


@dataclass
class _Written:
    actions: list[Action] = field(default_factory=list)
    residencies: list[_Residency] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)  # (action, step)
    inplace: dict[int, int] = field(default_factory=dict)
    concat: dict[int, tuple[int, ...]] = field(default_factory=dict)
    into: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # residency -> (the one that takes its bytes, offset)


def _write(m: Model, s: Stretch, capacity: Sequence[int]) -> _Written:
    """Actions for a choice of gaps; steps overwrite operands only where they would not fit without."""
    w = _Written()
    load = list(s.full)
    for g in s.gaps:
        if not g.out:
            for i in range(g.start + 1, g.stop):
                load[i] += m.size[g.tensor]
    near: dict[int, int] = {}  # tensor -> residency
    copied: set[int] = set()
    saved: set[int] = set()

    def begin(t: int, step: int) -> None:
        near[t] = len(w.residencies)
        w.residencies.append(_Residency(t, len(w.actions) - 1, step))

    def act(kind: str, x: int) -> None:
        w.actions.append((kind, x))

    def refill(t: int, step: int) -> None:
        if m.producer[t] in m.rules.sources:
            act("run", m.producer[t])
        else:
            act("refill", t)
        begin(t, step)

    def spill(t: int, group: int) -> None:
        if group not in copied and m.producer[t] not in m.rules.sources:
            copied.add(group)
            act("spill", t)

    def end(t: int, step: int) -> None:
        w.residencies[near.pop(t)].stop = step

    for i, name in enumerate(s.sequence):
        n = m.nodes[m.at[name]]
        for t in m._ins(n):
            if s.gaps[s.before[t, i]].out:
                refill(t, i)
        taken: list[int] = []
        takes, parts = m.takes(s, i)
        possible = [(gain, t) for t, gain, k in takes if k is None or s.gaps[k].out]
        possible.sort(key=lambda x: (-x[0], x[1]))
        over = load[i] - capacity[i]
        if over > 0 and possible:
            if parts:
                for gain, t in possible:
                    if over > 0:
                        taken.append(t)
                        over -= gain
            else:  # the smallest that is enough
                enough = [x for x in possible if x[0] >= over] or possible[:1]
                taken.append(enough[-1][1])
        for t in taken:
            k = s.behind.get((t, i))
            if k is not None:
                spill(t, s.gaps[k].group)
        act("run", name)
        a = len(w.actions) - 1
        w.runs.append((a, i))
        old = {t: near[t] for t in taken}
        for t in taken:
            end(t, i)
        for t in n.outs:
            begin(t, i)
            w.residencies[-1].began = a
        for t in taken:
            out = n.outs[0]
            by = dict(n.concat)[t] if parts else 0
            w.into[old[t]] = (near[out], by)
        if taken:
            if parts:
                w.concat[a] = tuple(sorted(taken))
            else:
                w.inplace[a] = taken[0]
        for t in n.outs:
            if t in m.rules.written and t not in saved:
                saved.add(t)
                copied.update(g.group for g in s.gaps if g.tensor == t)
                act("spill", t)
        for t in [*m._ins(n), *n.outs]:
            if t not in near:
                continue
            k = s.behind.get((t, i))
            if k is not None and not s.gaps[k].out:
                continue
            if k is not None:
                spill(t, s.gaps[k].group)
            act("drop", t)
            end(t, i)
    length = len(s.sequence)
    for t in m.stays:
        if s.gaps[s.before[t, length]].out:
            refill(t, length)
        end(t, length)
    return w


def _intervals(m: Model, w: _Written) -> tuple[list[Interval], dict[int, tuple[int, int]]]:
    """What is placed, and where each residency lies in it."""
    p = m.p

    def root(r: int) -> tuple[int, int]:
        by = 0
        while r in w.into:
            r, more = w.into[r]
            by += more
        return r, by

    taken_at: dict[int, int] = {}  # residency -> step at which another takes its bytes
    part = {r for r in w.into if dict(m.nodes[m.at[m.producer[w.residencies[w.into[r][0]].tensor]]].concat)}
    widest: dict[int, int] = {}  # of a result that overwrites: the bytes of what it does
    for r, (by, _) in w.into.items():
        taken_at[r] = w.residencies[by].start
        if r not in part:
            widest[by] = max(widest.get(by, 0), p.tensors[w.residencies[r].tensor].bytes)
    pieces: dict[int, list[tuple[int, int, int, int]]] = {}
    places: dict[int, tuple[int, int]] = {}
    for r, x in enumerate(w.residencies):
        base, at = root(r)
        places[r] = base, at
        size = p.tensors[x.tensor].raw if r in part else p.tensors[x.tensor].bytes
        stop = x.stop - 1 if r in taken_at else x.stop
        start = x.start
        mine = pieces.setdefault(base, [])
        if widest.get(r, 0) > size and start <= stop:
            mine.append((start, start, at, at + widest[r]))
            start += 1
        elif widest.get(r, 0) > size:
            mine.append((start, start, at, at + widest[r]))
        if start <= stop:
            mine.append((start, stop, at, at + size))
    out = []
    for base, mine in pieces.items():
        if not mine:
            continue
        pins = {
            pin - places[r][1]
            for r in range(len(w.residencies))
            if places[r][0] == base and (pin := p.tensors[w.residencies[r].tensor].pinned) is not None
        }
        out.append(
            Interval(
                base,
                min(x[0] for x in mine),
                max(x[1] for x in mine),
                max(x[3] for x in mine),
                p.align,
                min(pins) if pins else None,
                tuple(mine) if len(mine) > 1 else (),
            )
        )
    for a, i in w.runs:
        n = m.nodes[m.at[w.actions[a][1]]]
        if n.workspace:
            out.append(Interval(-1 - a, i, i, n.workspace, p.align))
    return out, places


def _finish(
    m: Model, s: Stretch, capacity: list[int], forced: set[int], until: float, effort: float, work: int
) -> tuple[Steps, bool] | None:
    """Chooses gaps, places, and on failure takes capacity from the steps at fault, at last all gaps between them.
    Changes its arguments. Whether the gaps are proven best for the sequence, at the full capacity, is told beside."""
    proven = False
    cuts = 0
    for attempt in range(60):
        if m.evict(s, capacity, forced) >= 1 << 52:
            if all(c == m.capacity for c in capacity):
                return None
            capacity[:] = [m.capacity] * len(capacity)  # too much was taken: cut instead
            cuts = max(cuts, 1)
            if m.evict(s, capacity, forced) >= 1 << 52:
                return None
        if effort and time.perf_counter() < until:
            best = m.solve(s, capacity, forced, effort)
            proven = best and attempt == 0
        w = _write(m, s, capacity)
        intervals, places = _intervals(m, w)
        seconds = max(0.2, min(2.0, until - time.perf_counter()))
        spaces: dict[str, list[Interval]] = {ARENA: []}
        for i in intervals:
            spaces.setdefault(m.p.tensors[w.residencies[i.id].tensor].space if i.id >= 0 else ARENA, []).append(i)
        placements = {space: plan(members, budget=work, seconds=seconds) for space, members in spaces.items()}
        placed = placements[ARENA]
        at = {k: o for x in placements.values() for k, o in x.offsets.items()}
        if placed.total <= m.capacity:
            offsets = {(x.began, x.tensor): at[places[r][0]] + places[r][1] for r, x in enumerate(w.residencies)}
            workspaces = {a: at[-1 - a] for a, _ in w.runs if -1 - a in at}
            return Steps(tuple(w.actions), offsets, workspaces, w.inplace, w.concat), proven
        late = time.perf_counter() > until
        high = [i for i in spaces[ARENA] if placed.offsets[i.id] + i.bytes > m.capacity]
        load = _loads(spaces[ARENA], len(s.full))
        hot = sorted({t for i in high for t in range(i.start, i.stop + 1)}, key=lambda t: (-load[t], t))
        if cuts == 0 and attempt < 8 and not late and any(capacity[t] > _floor(m, s, t) for t in hot):
            # The fullest of these steps get less.
            for t in hot[: max(1, len(hot) // 4)]:
                capacity[t] = max(
                    _floor(m, s, t), min(capacity[t], load[t]) - max(m.align, m.capacity // 64 // m.align * m.align)
                )
        else:
            # Residencies that reach above it are cut at the fullest of these steps, later everything there.
            cuts += 1
            steps = set(range(len(s.full)) if cuts > 24 or late else hot[: 1 + cuts])
            over = {i.id for i in high}
            above = {x.tensor for r, x in enumerate(w.residencies) if places[r][0] in over}
            more = {
                k
                for k, g in enumerate(s.gaps)
                if k not in forced
                and (g.tensor in above or cuts > 16 or late)
                and any(x in steps for x in range(g.start, g.stop + 1))
            }
            if not more:
                if cuts > 24 or late:
                    return None
                cuts += 3
                continue
            forced |= more
            capacity[:] = [m.capacity] * len(capacity)
    return None


def _floor(m: Model, s: Stretch, step: int) -> int:
    """What a step needs with everything else out."""
    gain = 0
    if step < len(s.sequence):
        takes, parts = m.takes(s, step)
        gains = [g for _, g, _ in takes]
        gain = sum(gains) if parts else max(gains, default=0)
    return max(s.pre[step], s.full[step] - gain)


def _loads(intervals: Sequence[Interval], steps: int) -> list[int]:
    out = [0] * (steps + 1)
    for i in intervals:
        for a, b, low, high in i.boxes:
            if a <= b:
                out[a] += high - low
                out[b + 1] -= high - low
    for k in range(steps):
        out[k + 1] += out[k]
    return out


# The planner ----------------------------------------------------------------------------------------------------------


def refuse(p: Problem, capacity: int, least: Minimum, proven: bool = True) -> BudgetError:
    node = p.node().get(least.node) if least.node is not None else None
    who = f"node {node.id} ({node.name or node.op})" if node else "the outputs together"
    what = p.name or "this graph"
    said = f"no plan of {what} fits {capacity} bytes: {who} {'needs' if node else 'need'} {least.bound}"
    if not proven:
        said = f"no plan of {what} was found within {capacity} bytes; none is below {least.bound}, which {who} needs"
    return BudgetError(
        said,
        least.bound,
        least.node,
        proven,
        f"a budget of {least.bytes} bytes or more, smaller inputs, or fewer bytes a value",
        node.op if node else None,
    )


def within(
    p: Problem,
    capacity: int,
    *,
    rules: Rules | None = None,
    work: int = 24_000_000,
    seconds: float = 9.0,
    seed: int = 1,
    prove: float = 2.0,
) -> Budgeted:
    """A verified plan with offsets whose arena is at most ``capacity`` bytes (counted in whole units of the alignment).

    ``work`` limits the annealing in steps evaluated, which makes plans reproducible; ``seconds`` is an outer guard.
    ``prove``: seconds more for a bound on the cost of any plan, 0 for none; it changes nothing of the plan.
    BudgetError where there is no plan, which with ``spill`` is a proof, or where none was found.
    """
    began = time.perf_counter()
    until = began + seconds
    rules = rules or Rules()
    least = minimum(p, rewrite=rules.rewrite)
    usable = capacity // p.align * p.align
    if usable < least.bound:
        raise refuse(p, capacity, least)
    limited = dataclasses.replace(p, spaces={**p.spaces, ARENA: capacity})
    free, starts = _for_nothing(p, limited, capacity, rules, seconds)
    if free is None and usable < least.bytes:
        raise refuse(p, capacity, least, proven=False)
    m = Model(p, capacity, rules)
    if free is not None:
        seen = verify_steps(limited, free)
        took = time.perf_counter() - began
        return Budgeted(free, seen, capacity, 0, 0, 0, 0, m.estimated, True, took, "order", 0, "proven")
    sequences: list[tuple[int, list[int]]] = []
    library.handle()  # an error without a compiler
    tries = [(starts[0], 0.15), (starts[-1], 0.05), (starts[0], 0.4), (None, 0.08)]
    for k, (start, heat) in enumerate(tries):
        left = max(0.1, 0.6 * (until - time.perf_counter()) / (len(tries) - k))
        start = start or min(sequences)[1]
        found, cost, _ = m.anneal(start, seed=seed + k, work=work // len(tries), seconds=left, heat=heat)
        sequences.append((cost, found))
        if not cost:
            break
    sequences.sort(key=lambda x: x[0])
    best: Budgeted | None = None
    for cost, sequence in sequences[:3]:
        if best is not None and (cost >= best.cost or time.perf_counter() > until):
            continue
        made = _realise(m, limited, sequence, until)
        if made is not None and (best is None or made.cost < best.cost):
            best = made
    if best is None:
        raise refuse(p, capacity, least, proven=False)
    if prove > 0:
        proof = below(m, best.cost, seconds=prove)
        best = dataclasses.replace(best, bound=proof.cost, bound_ended=proof.ended)
    return dataclasses.replace(best, seconds=time.perf_counter() - began)


def _realise(m: Model, limited: Problem, sequence: Sequence[int], until: float) -> Budgeted | None:
    s = m.stretch(sequence)
    capacity = [m.capacity] * len(s.full)
    made = _finish(m, s, capacity, set(), until, 1.0, 20_000_000)
    if made is None:
        return None
    steps, proven = made
    seen = verify_steps(limited, steps)
    total, moved, flops = m.cost(s)
    if not m.rules.spill and any(action == "spill" for action, _ in steps.actions):
        return None
    reruns = len(s.sequence) - len(m.nodes)
    return Budgeted(steps, seen, m.capacity, total, moved, flops, reruns, m.estimated, proven, 0.0, "search")


def _for_nothing(
    p: Problem, limited: Problem, capacity: int, rules: Rules, seconds: float
) -> tuple[Steps | None, list[list[int]]]:
    """A plan that moves and repeats nothing, if order, rewriting and placement alone give one; and orders to start
    from."""
    if rules.sources or rules.written:
        return None, [p.given, list(ordering.order(p, budget=200_000, seconds=seconds / 6).order)]
    o = ordering.order(p, budget=500_000, seconds=seconds / 6)
    starts = [list(o.order)]
    if list(o.order) != p.given:
        starts.append(p.given)
    for sequence, peak in ((p.given, o.given_peak), (o.order, o.peak)):
        if peak <= capacity:
            layout = lay_out(p, sequence, budget=100_000_000, seconds=seconds / 6)
            if layout.arena <= capacity:
                return steps_of(p, layout.plan), starts
    if rules.rewrite and any(n.inplace_ok or n.concat for n in p.nodes):
        inplace = ordering.order(p, inplace=True, budget=200_000, seconds=seconds / 8)
        if any(n.concat for n in p.nodes) or inplace.bound <= capacity:
            found = schedule(p, rewrite=True, states=20_000, seconds=min(1.5, seconds / 5))
            if found.layout.seen.arena[ARENA] <= capacity:
                return steps_of(p, found.layout.plan), starts
            if list(found.layout.plan.order) not in starts:
                starts.append(list(found.layout.plan.order))
    return None, starts
