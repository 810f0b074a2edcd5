"""Random memory problems, and what is best for them by exhaustion."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator

import numpy as np

from effc.passes.memory.plan import Interval
from effc.passes.memory.problem import Choices, Node, Plan, Problem, Tensor, boxes
from effc.passes.memory.verify import MemoryPlanError, verify


def random_graph(
    seed: int,
    nodes: int,
    *,
    inplace: float = 0.0,
    concat: float = 0.0,
    workspace: float = 0.2,
    after: float = 0.1,
    wide: float = 0.5,
    align: int = 64,
) -> Problem:
    """Nodes with one or two results that read some earlier tensors; ``wide``: how likely a node starts anew."""
    rng = np.random.default_rng(seed)
    tensors: dict[int, Tensor] = {0: Tensor(0, 1024, "input", "x", 1024)}
    readers: dict[int, int] = {0: 0}
    out: list[Node] = []
    for k in range(nodes):
        pool = [t for t in tensors if t] or [0]
        recent = pool[-4:] if rng.random() > wide else pool
        count = int(min(len(recent), rng.integers(1, 4)))
        ins = tuple(dict.fromkeys(int(t) for t in rng.choice(recent, count, replace=False)))
        if rng.random() < 0.1:
            ins = (0,)
        made = []
        op, parts = "op", ()
        if rng.random() < concat and len(ins) > 1 and all(tensors[t].kind == "intermediate" for t in ins):
            op = "cat"
            size = sum(tensors[t].raw for t in ins)
            at, places = 0, []
            for t in ins:
                places.append((t, at))
                at += tensors[t].raw
            parts = tuple(places)
        for _ in range(1 if op == "cat" else int(rng.choice([0, 1, 1, 1, 1, 2]))):
            t = len(tensors)
            if op != "cat":
                size = align * int(rng.choice([1, 2, 3, 4, 7, 8, 16]))
            raw = size if op == "cat" or rng.random() < 0.7 else size - int(rng.integers(0, align))
            tensors[t] = Tensor(t, -(-size // align) * align, "intermediate", f"t{t}", raw)
            made.append(t)
        may = tuple(
            t
            for t in ins
            if t
            and len(made) == 1
            and op != "cat"
            and tensors[t].bytes == tensors[made[0]].bytes
            and rng.random() < inplace
        )
        out.append(
            Node(
                k,
                ins,
                tuple(made),
                op,
                f"n{k}",
                may,
                parts,
                align * int(rng.integers(1, 6)) if rng.random() < workspace else 0,
                (int(rng.integers(0, k)),) if k and rng.random() < after else (),
            )
        )
        for t in ins:
            readers[t] = readers.get(t, 0) + 1
    for t in list(tensors):
        if t and not readers.get(t) and rng.random() < 0.7:
            tensors[t] = Tensor(t, tensors[t].bytes, "output", tensors[t].name, tensors[t].raw)
    kinds = {t: x.kind for t, x in tensors.items()}
    assert kinds[0] == "input"
    return Problem(tuple(out), tensors, align, f"random{seed}")


def least_peak(p: Problem, inplace: bool = False) -> int:
    """Over all orders, by memory states; nothing is assumed of the function (no dominance but equal sets)."""
    nodes = list(p.nodes)
    n = len(nodes)
    producer = {t: k for k, x in enumerate(nodes) for t in x.outs}
    index = {x.id: k for k, x in enumerate(nodes)}
    need = [{producer[t] for t in x.ins if t in producer} | {index[a] for a in x.after} for x in nodes]
    readers = {t: {k for k, x in enumerate(nodes) if t in x.ins} for t in producer}

    def live(done: frozenset[int]) -> set[int]:
        return {t for t, k in producer.items() if k in done and (p.tensors[t].kind == "output" or readers[t] - done)}

    best = {frozenset(): 0}
    for _ in range(n):
        after: dict[frozenset[int], int] = {}
        for done, peak in best.items():
            now = live(done)
            for k in range(n):
                if k in done or not need[k] <= done:
                    continue
                use = sum(p.tensors[t].bytes for t in now | set(nodes[k].outs)) + nodes[k].workspace
                if inplace and len(nodes[k].outs) == 1:
                    use -= max(
                        (
                            p.tensors[t].bytes
                            for t in nodes[k].inplace_ok
                            if p.tensors[t].kind == "intermediate" and readers[t] <= done | {k}
                        ),
                        default=0,
                    )
                key = done | {k}
                after[key] = min(after.get(key, 1 << 60), max(peak, use))
        best = after
    return next(iter(best.values()))


def random_intervals(seed: int, n: int, steps: int = 6, align: int = 1, pinned: float = 0.0) -> list[Interval]:
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        a, b = sorted(int(x) for x in rng.integers(0, steps, 2))
        size = align * int(rng.integers(1, 7))
        out.append(Interval(k, a, b, size, align))
    if pinned and rng.random() < pinned:
        k = int(rng.integers(0, n))
        i = out[k]
        out[k] = Interval(i.id, i.start, i.stop, i.bytes, align, align * int(rng.integers(0, 8)))
    return out


def _fits(order: list[Interval], capacity: int, offsets: dict[int, int]) -> bool:
    """Whether the rest of the buffers can be placed beside those that have offsets."""
    k = len(offsets)
    if k == len(order):
        return True
    i = order[k]
    for at in [i.offset] if i.offset is not None else range(0, capacity - i.bytes + 1, i.align):
        clear = all(
            i.stop < o.start or o.stop < i.start or at + i.bytes <= offsets[o.id] or offsets[o.id] + o.bytes <= at
            for o in order[:k]
        )
        if at + i.bytes <= capacity and clear and _fits(order, capacity, {**offsets, i.id: at}):
            return True
    return False


def least_arena(intervals: list[Interval]) -> int:
    """By all offsets at multiples of the alignment, smallest arena first (tiny cases)."""
    align = intervals[0].align
    order = sorted(intervals, key=lambda i: (i.offset is None, -i.bytes))
    return next(c for c in itertools.count(align, align) if _fits(order, c, {}))


def has_order_below(p: Problem, peak: int, inplace: bool = False, limit: int = 300_000) -> bool | None:
    """Whether some order stays below ``peak``: all reachable sets of nodes that have run, one by one. None if there are
    more than ``limit``."""
    nodes = list(p.nodes)
    producer = {t: k for k, x in enumerate(nodes) for t in x.outs}
    index = {x.id: k for k, x in enumerate(nodes)}
    need = [
        sum(1 << k for k in {producer[t] for t in x.ins if t in producer} | {index[a] for a in x.after}) for x in nodes
    ]
    readers = {t: sum(1 << k for k, x in enumerate(nodes) if t in x.ins) for t in producer}
    size = {t: p.tensors[t].bytes for t in producer}
    made = [sum(size[t] for t in x.outs) + x.workspace for x in nodes]
    over = [
        [t for t in x.inplace_ok if p.tensors[t].kind == "intermediate"] if inplace and len(x.outs) == 1 else []
        for x in nodes
    ]
    everything = (1 << len(nodes)) - 1
    seen, todo = {0}, [0]
    while todo:
        done = todo.pop()
        if done == everything:
            return True
        live = sum(
            size[t]
            for t, k in producer.items()
            if done >> k & 1 and (p.tensors[t].kind == "output" or readers[t] & ~done)
        )
        for k in range(len(nodes)):
            if done >> k & 1 or need[k] & ~done:
                continue
            after = done | 1 << k
            gain = max((size[t] for t in over[k] if not readers[t] & ~after), default=0)
            if live + made[k] - gain < peak and after not in seen:
                seen.add(after)
                todo.append(after)
        if len(seen) > limit:
            return None
    return False


def all_orders(p: Problem) -> Iterator[list[int]]:
    nodes = p.node()
    maker = {t: n.id for n in p.nodes for t in n.outs}
    need = {n.id: {maker[t] for t in n.ins if t in maker} | set(n.after) for n in p.nodes}

    def extend(done: list[int]) -> Iterator[list[int]]:
        if len(done) == len(nodes):
            yield list(done)
        for n in nodes:
            if n not in done and need[n] <= set(done):
                yield from extend([*done, n])

    return extend([])


def all_choices(p: Problem) -> Iterator[Choices]:
    over = [[None, *n.inplace_ok] for n in p.nodes]
    parts = [[t for t, _ in n.concat] for n in p.nodes]
    kept = [list(_subsets(ts)) for ts in parts]
    seen = [list(_subsets([t for t, _, _ in n.views])) for n in p.nodes]
    for picks in itertools.product(*over):
        inplace = {n.id: t for n, t in zip(p.nodes, picks) if t is not None}
        for joins in itertools.product(*kept):
            concat = {n.id: ts for n, ts in zip(p.nodes, joins) if ts}
            for views in itertools.product(*seen):
                yield Choices(inplace, concat, {n.id: ts for n, ts in zip(p.nodes, views) if ts})


def _subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, k) for k in range(len(items) + 1))


def with_views(p: Problem, seed: int, share: float = 0.7) -> Problem:
    """Some results become slices of an operand that is large enough."""
    rng = np.random.default_rng(seed)
    nodes = []
    for n in p.nodes:
        views = []
        for t in n.outs:
            bases = [u for u in n.ins if p.tensors[u].kind != "input" and p.tensors[u].raw >= p.tensors[t].raw]
            if bases and n.op != "cat" and rng.random() < share:
                u = int(rng.choice(bases))
                spare = (p.tensors[u].raw - p.tensors[t].raw) // p.align
                views.append((t, u, p.align * int(rng.integers(0, spare + 1))))
        nodes.append(dataclasses.replace(n, views=tuple(views)))
    return dataclasses.replace(p, nodes=tuple(nodes))


def least_rewritten(p: Problem) -> int:
    """The least peak over all orders and rewrites that the checker accepts."""
    best = 1 << 60
    choices = list(all_choices(p))
    for order in all_orders(p):
        for c in choices:
            try:
                best = min(best, verify(p, Plan(tuple(order), None, c)).peak)
            except MemoryPlanError:
                continue
    return best


def least_coupled(p: Problem) -> int:
    """The least arena over all orders, without rewrites."""
    return min(least_arena(boxes(p, order, Choices())[0]) for order in all_orders(p))


def least_cost(
    p: Problem, capacity: int, byte_flops: int, *, spill: bool, recompute: bool, cost: dict[int, int]
) -> int:
    """By shortest paths over (nodes that ran, residents, copies): what it costs to stay within a capacity of live
    bytes, ``cost`` being that of running a node again. -1 if nothing does."""
    nodes = p.node()
    maker = {t: n.id for n in p.nodes for t in n.outs}
    outputs = frozenset(t for t in maker if p.tensors[t].kind == "output")
    size = {t: p.tensors[t].bytes for t in maker}
    State = tuple[frozenset[int], frozenset[int], frozenset[int]]
    start: State = (frozenset(), frozenset(), frozenset())
    best: dict[State, int] = {start: 0}
    queue: list[tuple[int, int, State]] = [(0, 0, start)]
    count = itertools.count(1)
    while queue:
        so_far, _, state = heapq.heappop(queue)
        if so_far > best[state]:
            continue
        ran, near, far = state
        if len(ran) == len(nodes) and outputs <= near:
            return so_far
        after: list[tuple[int, State]] = []
        for t in near:
            after.append((0, (ran, near - {t}, far)))
            if spill and t not in far:
                after.append((p.tensors[t].raw * byte_flops, (ran, near, far | {t})))
        for t in far - near:
            if sum(size[u] for u in near | {t}) <= capacity:
                after.append((p.tensors[t].raw * byte_flops, (ran, near | {t}, far)))
        for n in nodes.values():
            if n.id in ran and not recompute:
                continue
            if not all(t in near for t in n.ins if t in maker) or not set(n.after) <= ran:
                continue
            held = near | set(n.outs)
            if sum(size[t] for t in held) + n.workspace <= capacity:
                after.append((cost[n.id] if n.id in ran else 0, (ran | {n.id}, held, far)))
        for more, to in after:
            if so_far + more < best.get(to, 1 << 60):
                best[to] = so_far + more
                heapq.heappush(queue, (so_far + more, next(count), to))
    return -1
