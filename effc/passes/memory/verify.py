"""Checks plans. Shares no code with the planners: it plays an order step by step and looks at the bytes in use.

``verify`` raises ``MemoryPlanError`` with the first fault it finds, else says what it saw. The planners call it on all
that they return.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import Interval
from .problem import Plan, Problem, Steps


class MemoryPlanError(AssertionError):
    """A plan that would compute something else than its graph."""


@dataclass(frozen=True)
class Seen:
    """``peak``: the most bytes live at once (of any space), first at step ``at``; ``arena``: by space, the end of the
    highest byte in use, where the plan has offsets."""

    peak: int
    at: int
    arena: Mapping[str, int]


def verify(p: Problem, plan: Plan) -> Seen:
    """The order, lifetimes, rewrites and offsets of a plan."""
    _order(p, plan.order)
    nodes = {n.id: n for n in p.nodes}
    readers: dict[int, list[int]] = {t: [] for t in p.tensors}
    for step, n in enumerate(plan.order):
        for t in nodes[n].ins:
            readers[t].append(step)
    made = {t: step for step, n in enumerate(plan.order) for t in nodes[n].outs}
    end = {}
    for t, step in made.items():
        end[t] = max([step, *readers[t]])
        if p.tensors[t].kind == "output":
            end[t] = len(plan.order) - 1
    step_of = {n: step for step, n in enumerate(plan.order)}
    seen, last = _views(p, plan, end)

    inside: dict[int, tuple[int, int]] = {}
    gone: dict[int, int] = {}  # the step from which a tensor's bytes are another's
    for n, parts in plan.choices.concat.items():
        if n not in nodes or nodes[n].op != "cat" or len(nodes[n].outs) != 1:
            raise MemoryPlanError(f"node {n} does not concatenate")
        whole = nodes[n].outs[0]
        behind = 0
        offsets: dict[int, int] = {}
        for t in nodes[n].ins:
            offsets[t] = behind
            behind += p.tensors[t].raw_bytes if p.tensors[t].raw_bytes >= 0 else p.tensors[t].bytes
        for t in parts:
            if list(nodes[n].ins).count(t) != 1:
                raise MemoryPlanError(f"tensor {t} is not one of the operands of node {n}, once")
            if p.tensors[t].kind != "intermediate":
                raise MemoryPlanError(f"tensor {t}, an {p.tensors[t].kind}, cannot be made inside another")
            if t in inside:
                raise MemoryPlanError(f"tensor {t} is made inside two tensors")
            if t in seen or any(u == t for u, _ in seen.values()):
                raise MemoryPlanError(f"tensor {t}, a view or seen through one, is made inside another")
            if end[t] > end[whole]:
                raise MemoryPlanError(f"tensor {t} is read after tensor {whole}, which holds it, is dead")
            inside[t] = (whole, offsets[t])
            gone[t] = step_of[n]
    for n, t in plan.choices.inplace.items():
        if n not in nodes or t not in nodes[n].inplace_ok or len(nodes[n].outs) != 1:
            raise MemoryPlanError(f"node {n} may not overwrite tensor {t}")
        if p.tensors[t].kind != "intermediate":
            raise MemoryPlanError(f"tensor {t}, an {p.tensors[t].kind}, is not to be overwritten")
        if t in inside:
            raise MemoryPlanError(f"tensor {t} is part of a concatenation and overwritten")
        if t in gone:
            raise MemoryPlanError(f"tensor {t} is overwritten twice")
        if last[t] > step_of[n]:
            raise MemoryPlanError(f"tensor {t} is read after node {n} has overwritten it")
        through = set(nodes[n].ins) & seen.keys()
        while through:
            if t in through or any(seen[v][0] == t for v in through):
                raise MemoryPlanError(f"node {n} overwrites tensor {t}, which it also reads through a view")
            through = {seen[v][0] for v in through} & seen.keys()
        if t in seen or nodes[n].outs[0] in seen:
            raise MemoryPlanError(f"node {n} overwrites tensor {t}, but its result or that is a view")
        gone[t] = step_of[n]

    peak = at = 0
    arena = dict.fromkeys(p.spaces, 0)
    offsets_given = plan.offsets
    if offsets_given is not None:
        _bound_places(p, plan, made, {**inside, **seen})
    live: set[int] = set()
    for step, n in enumerate(plan.order):
        live.update(nodes[n].outs)
        now = [t for t in live if t not in seen and (t not in gone or step < gone[t])]
        used = sum(p.tensors[t].bytes for t in now) + nodes[n].workspace
        if used > peak:
            peak, at = used, step
        if offsets_given is not None:
            taken = []
            for t in now:
                size = p.tensors[t].bytes
                if t in inside and p.tensors[t].raw_bytes >= 0:
                    size = p.tensors[t].raw_bytes
                taken.append((p.tensors[t].space, offsets_given[t], offsets_given[t] + size, f"tensor {t}"))
            if nodes[n].workspace:
                where = plan.workspaces[n]
                taken.append(("arena", where, where + nodes[n].workspace, f"the workspace of node {n}"))
            taken = sorted(x for x in taken if x[1] < x[2])
            for low, high in itertools.pairwise(taken):
                if low[0] == high[0] and high[1] < low[2]:
                    raise MemoryPlanError(f"{low[3]} and {high[3]} share bytes at step {step}, both live")
            for space, _, stop, _ in taken:
                arena[space] = max(arena[space], stop)
        live = {t for t in live if last[t] > step}
    for space, limit in p.spaces.items():
        if limit is not None and arena[space] > limit:
            raise MemoryPlanError(f"{arena[space]} bytes of {space}, which has {limit}")
    return Seen(peak, at, arena)


def _views(p: Problem, plan: Plan, end: Mapping[int, int]) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
    """View -> the tensor that it lies in, and where; and the last step at which each tensor's bytes are needed."""
    nodes = {n.id: n for n in p.nodes}
    seen: dict[int, tuple[int, int]] = {}
    for n, ts in plan.choices.views.items():
        ways = {t: (u, at) for t, u, at in nodes[n].views} if n in nodes else {}
        for t in ts:
            if t not in ways or t not in nodes[n].outs or ways[t][0] not in nodes[n].ins:
                raise MemoryPlanError(f"tensor {t} is no view that node {n} gives")
            u, at = ways[t]
            if p.tensors[u].kind == "input":
                raise MemoryPlanError(f"tensor {t} would be a view of the input {u}")
            if at < 0 or at + p.tensors[t].raw > p.tensors[u].raw or p.tensors[t].space != p.tensors[u].space:
                raise MemoryPlanError(f"tensor {t} does not lie in tensor {u}")
            if t in nodes[n].writes or any(t in m.writes or u in m.writes for m in p.nodes):
                raise MemoryPlanError(f"tensor {t} or {u} is changed, and one is a view of the other")
            seen[t] = u, at
    last = dict(end)
    for t in seen:
        u = t
        while u in seen:
            u = seen[u][0]
            last[u] = max(last[u], end[t])
    return seen, last


@dataclass(frozen=True)
class SeenSteps:
    """``peak``: the most bytes live at once (of all spaces), first during action ``at``; ``peaks`` and ``arena`` by
    space: the most live bytes, and the end of the highest byte in use where there are offsets. ``spilled`` and
    ``refilled`` in bytes (of what tensors hold, without padding); ``flops`` of the ``reruns``."""

    peak: int
    at: int
    peaks: Mapping[str, int]
    arena: Mapping[str, int]
    spilled: int
    refilled: int
    reruns: int
    flops: int

    @property
    def moved(self) -> int:
        return self.spilled + self.refilled


def verify_steps(p: Problem, plan: Steps) -> SeenSteps:
    """Plays a plan of actions: every operand is where it is read, as it was when it was made; no two residents share
    bytes; every node ran; outputs are resident at the end; spaces are kept to."""
    return _Player(p, plan).play()


class _Player:
    """The state of a machine that carries out actions."""

    def __init__(self, p: Problem, plan: Steps) -> None:
        self.p, self.plan = p, plan
        self.nodes = {n.id: n for n in p.nodes}
        self.near: dict[int, int] = {}  # resident tensor -> action at which its residency began
        self.far: dict[int, int] = {}  # version of the copy
        self.version: dict[int, int] = {t.id: 0 for t in p.tensors.values()}
        self.holder: dict[int, int] = {}  # part -> the tensor that was made around it, and holds it when resident
        self.read: dict[int, dict[int, int]] = {}  # node -> versions of operands when it first ran
        self.made = {t for n in p.nodes for t in n.outs}
        self.parts: set[tuple[int, int]] = set()  # residencies that end as parts, and lie where the whole has them

    def play(self) -> SeenSteps:
        p, plan = self.p, self.plan
        self._refers()
        peak = at = spilled = refilled = reruns = flops = 0
        peaks, arena = dict.fromkeys(p.spaces, 0), dict.fromkeys(p.spaces, 0)
        for k, (action, x) in enumerate(plan.actions):
            workspace = 0
            if action == "run":
                if x not in self.nodes:
                    raise MemoryPlanError(f"action {k} runs node {x}, which there is not")
                again = x in self.read
                reruns += again
                flops += self.nodes[x].flops if again else 0
                self._run(k, x)
                workspace = self.nodes[x].workspace
            elif x not in p.tensors or x not in self.made:
                raise MemoryPlanError(f"action {k} is about tensor {x}, which no node makes")
            elif action == "refill":
                if x not in self.far or self.far[x] != self.version[x]:
                    raise MemoryPlanError(f"tensor {x} is refilled at action {k} without a copy of its present value")
                if x in self.near:
                    raise MemoryPlanError(f"tensor {x} is refilled at action {k} but resident")
                self._begin(k, x)
                refilled += p.tensors[x].raw
            elif x not in self.near:
                raise MemoryPlanError(f"action {k} would {action} tensor {x}, which is not resident")
            elif action == "spill":
                self.far[x] = self.version[x]
                spilled += p.tensors[x].raw
            elif action != "drop":
                raise MemoryPlanError(f"action {k} is {action!r}")
            live = dict.fromkeys(p.spaces, 0)
            for t in self.near:
                live[p.tensors[t].space] += p.tensors[t].bytes
            if workspace:
                live["arena"] += workspace
            if sum(live.values()) > peak:
                peak, at = sum(live.values()), k
            peaks = {s: max(n, live[s]) for s, n in peaks.items()}
            if plan.offsets is not None:
                for space, stop in self._apart(k, x if workspace else None).items():
                    arena[space] = max(arena[space], stop)
            if action == "drop":
                del self.near[x]
        self._end()
        for space, limit in p.spaces.items():
            used = max(peaks[space], arena[space])
            if limit is not None and used > limit:
                raise MemoryPlanError(f"{used} bytes of {space}, which has {limit}")
        return SeenSteps(peak, at, peaks, arena, spilled, refilled, reruns, flops)

    def _run(self, k: int, n: int) -> None:
        p, plan, node = self.p, self.plan, self.nodes[n]
        for t in node.ins:
            if p.tensors[t].kind != "input" and not self._readable(t):
                raise MemoryPlanError(f"node {n} runs at action {k} without its operand {t}")
        versions = {t: self.version[t] for t in node.ins}
        if n in self.read:
            if not node.repeatable:
                raise MemoryPlanError(f"node {n} runs twice, which it may not")
            if versions != self.read[n] or any(self.version[t] for t in node.outs):
                raise MemoryPlanError(f"node {n} runs again at action {k} but its tensors were changed meanwhile")
        else:
            for u in node.after:
                if u not in self.read:
                    raise MemoryPlanError(f"node {n} runs before node {u}, which it must follow")
            self.read[n] = versions
        for t in node.writes:
            if t not in node.ins or t not in self.near:
                raise MemoryPlanError(f"node {n} changes tensor {t} at action {k}, which is not resident by itself")
            self.version[t] += 1
            self.holder = {part: by for part, by in self.holder.items() if by != t}
        over = plan.inplace.get(k)
        if over is not None:
            if over not in node.inplace_ok or len(node.outs) != 1 or over in node.writes:
                raise MemoryPlanError(f"node {n} may not overwrite tensor {over}")
            self._taken(k, over, node.outs[0], 0)
        parts = plan.concat.get(k, ())
        if parts:
            if node.op != "cat" or len(node.outs) != 1:
                raise MemoryPlanError(f"node {n} does not concatenate")
            behind = 0
            places: dict[int, int] = {}
            for t in node.ins:
                places[t] = behind
                behind += p.tensors[t].raw_bytes if p.tensors[t].raw_bytes >= 0 else p.tensors[t].bytes
            for t in parts:
                if list(node.ins).count(t) != 1:
                    raise MemoryPlanError(f"tensor {t} is not one of the operands of node {n}, once")
                self._taken(k, t, node.outs[0], places[t])
        for t in node.outs:
            if t in self.near and (over is not None or parts):
                raise MemoryPlanError(f"node {n} remakes tensor {t} at action {k} elsewhere, but it is resident")
            if t not in self.near:
                self._begin(k, t)
        for t in parts:
            self.holder[t] = node.outs[0]

    def _readable(self, t: int) -> bool:
        """Resident, by itself or in what holds it (which may be a part itself)."""
        while t not in self.near:
            if t not in self.holder:
                return False
            t = self.holder[t]
        return True

    def _begin(self, k: int, t: int) -> None:
        self.near[t] = k
        self.holder.pop(t, None)
        if self.plan.offsets is not None:
            where = self.plan.offsets.get((k, t))
            if where is None:
                raise MemoryPlanError(f"tensor {t} has no offset at action {k}, where it becomes resident")
            if where < 0:
                raise MemoryPlanError(f"tensor {t} has a negative offset at action {k}")
            pinned = self.p.tensors[t].pinned
            if pinned is not None and where != pinned:
                raise MemoryPlanError(f"tensor {t} is pinned to {pinned} but lies at {where} at action {k}")
            if where % self.p.align and (k, t) not in self.parts:
                raise MemoryPlanError(f"tensor {t} at {where} is not aligned to {self.p.align}")

    def _taken(self, k: int, t: int, by: int, at: int) -> None:
        """Tensor ``t``'s bytes become those of ``by`` from byte ``at`` on."""
        if t not in self.near:
            raise MemoryPlanError(f"tensor {t} is not resident by itself at action {k}, which takes its bytes")
        if self.p.tensors[t].space != self.p.tensors[by].space:
            raise MemoryPlanError(f"tensors {t} and {by} lie in different spaces")
        if self.plan.offsets is not None:
            there, here = self.plan.offsets[self.near[t], t], self.plan.offsets.get((k, by))
            if here is None or there != here + at:
                raise MemoryPlanError(f"tensor {t} at {there} is not at its place in tensor {by} at action {k}")
        del self.near[t]

    def _refers(self) -> None:
        """Tables by action refer to runs; tensors lie in spaces that exist. Finds ``parts``."""
        runs = {k: x for k, (action, x) in enumerate(self.plan.actions) if action == "run"}
        for k in (*self.plan.inplace, *self.plan.concat, *self.plan.workspaces):
            if k not in runs:
                raise MemoryPlanError(f"action {k} runs nothing but has a workspace or rewrites")
        for t in self.made:
            if self.p.tensors[t].space not in self.p.spaces:
                raise MemoryPlanError(f"tensor {t} lies in {self.p.tensors[t].space}, which there is not")
        since: dict[int, int] = {}
        for k, (action, x) in enumerate(self.plan.actions):
            if action == "run" and x in self.nodes:
                self.parts.update((since.pop(t), t) for t in self.plan.concat.get(k, ()) if t in since)
                since.pop(self.plan.inplace.get(k, -1), None)
                for t in self.nodes[x].outs:
                    since.setdefault(t, k)
            elif action == "refill":
                since[x] = k
            elif action == "drop":
                since.pop(x, None)

    def _apart(self, k: int, ran: int | None) -> dict[str, int]:
        """By space, where the highest resident ends. No two share bytes."""
        offsets = self.plan.offsets
        assert offsets is not None
        taken = []
        for t, since in self.near.items():
            x = self.p.tensors[t]
            size = x.raw if (since, t) in self.parts else x.bytes
            taken.append((x.space, offsets[since, t], offsets[since, t] + size, f"tensor {t}"))
        if ran is not None:
            where = self.plan.workspaces.get(k)
            if where is None or where < 0 or where % self.p.align:
                raise MemoryPlanError(f"the workspace of node {ran} has no aligned offset at action {k}")
            taken.append(("arena", where, where + self.nodes[ran].workspace, f"the workspace of node {ran}"))
        taken = sorted(x for x in taken if x[1] < x[2])
        out: dict[str, int] = {}
        for a, b in itertools.pairwise(taken):
            if a[0] == b[0] and b[1] < a[2]:
                raise MemoryPlanError(f"{a[3]} and {b[3]} share bytes at action {k}, both live")
        for space, _, stop, _ in taken:
            out[space] = max(out.get(space, 0), stop)
        return out

    def _end(self) -> None:
        for n in self.nodes:
            if n not in self.read:
                raise MemoryPlanError(f"node {n} does not run")
        for t in self.made:
            if self.p.tensors[t].kind == "output" and not self._readable(t):
                raise MemoryPlanError(f"tensor {t}, an output, is not resident at the end")


def _order(p: Problem, order: Sequence[int]) -> None:
    if sorted(order) != sorted(n.id for n in p.nodes):
        raise MemoryPlanError("the order is not a permutation of the nodes")
    nodes = {n.id: n for n in p.nodes}
    exists = {t.id for t in p.tensors.values() if t.kind == "input"}
    ran: set[int] = set()
    for n in order:
        for t in nodes[n].ins:
            if t not in exists:
                raise MemoryPlanError(f"node {n} runs before its operand {t} exists")
        for u in nodes[n].after:
            if u not in ran:
                raise MemoryPlanError(f"node {n} runs before node {u}, which it must follow")
        exists.update(nodes[n].outs)
        ran.add(n)


def _bound_places(p: Problem, plan: Plan, made: Mapping[int, int], inside: Mapping[int, tuple[int, int]]) -> None:
    """Alignment, pinned offsets, the places of parts and of results that overwrite."""
    offsets = plan.offsets
    assert offsets is not None
    outs = {n.id: n.outs for n in p.nodes}
    for t in made:
        if t not in offsets:
            raise MemoryPlanError(f"tensor {t} has no offset")
        if p.tensors[t].space not in p.spaces:
            raise MemoryPlanError(f"tensor {t} lies in {p.tensors[t].space}, which there is not")
        if offsets[t] < 0:
            raise MemoryPlanError(f"tensor {t} has a negative offset")
        pinned = p.tensors[t].pinned
        if pinned is not None and offsets[t] != pinned:
            raise MemoryPlanError(f"tensor {t} is pinned to {pinned} but lies at {offsets[t]}")
        if t in inside:
            whole, at = inside[t]
            if offsets[t] != offsets.get(whole, -1) + at or p.tensors[t].space != p.tensors[whole].space:
                raise MemoryPlanError(f"tensor {t} is not at its place in tensor {whole}")
        elif offsets[t] % p.align:
            raise MemoryPlanError(f"tensor {t} at {offsets[t]} is not aligned to {p.align}")
    for n, t in plan.choices.inplace.items():
        out = outs[n][0]
        if offsets[out] != offsets[t] or p.tensors[out].space != p.tensors[t].space:
            raise MemoryPlanError(f"node {n} overwrites tensor {t} but its result lies elsewhere")
    for node in p.nodes:
        if node.workspace:
            where = plan.workspaces.get(node.id)
            if where is None or where < 0 or where % p.align:
                raise MemoryPlanError(f"the workspace of node {node.id} has no aligned offset")


def verify_placement(intervals: Sequence[Interval], offsets: Mapping[int, int]) -> int:
    """Buffers alone: at every step at which one begins, no two live ones share a byte. The arena's size."""
    total = 0
    pieces: list[tuple[int, int, int, int, int]] = []
    for i in intervals:
        if i.id not in offsets:
            raise MemoryPlanError(f"buffer {i.id} has no offset")
        at = offsets[i.id]
        if at < 0 or at % i.align:
            raise MemoryPlanError(f"buffer {i.id} at {at} is not aligned to {i.align}")
        if i.offset is not None and at != i.offset:
            raise MemoryPlanError(f"buffer {i.id} is pinned to {i.offset} but lies at {at}")
        for start, stop, low, high in i.parts or ((i.start, i.stop, 0, i.bytes),):
            if start <= stop and low < high:
                pieces.append((start, stop, at + low, at + high, i.id))
                total = max(total, at + high)
    begins: dict[int, list[tuple[int, int, int, int, int]]] = {}
    for x in pieces:
        begins.setdefault(x[0], []).append(x)
    live: list[tuple[int, int, int, int, int]] = []
    for now in sorted(begins):
        live = [x for x in live if x[1] >= now] + begins[now]
        live.sort(key=lambda x: (x[2], x[3]))
        for a, b in itertools.pairwise(live):
            if b[2] < a[3]:
                raise MemoryPlanError(f"buffers {a[4]} and {b[4]} overlap in the arena while both are live")
    return total
