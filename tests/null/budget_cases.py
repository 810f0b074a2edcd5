"""The least cost within a capacity by exhaustion: Dijkstra's search over what has run, is resident and has a copy."""

from __future__ import annotations

import heapq

from effc.passes.memory.problem import Problem


def least_cost(
    p: Problem,
    capacity: int,
    rerun: dict[int, int],
    *,
    spill: bool = True,
    rewrite: bool = True,
    limit: int = 400_000,
) -> int | bool | None:
    """In bytes moved, with ``rerun`` for each repeated run; bytes alone, no offsets. None: no plan; False: too many
    states. Concatenations in place are left out; a problem whose tensors are written has no place here."""
    tensors = sorted(t for t, x in p.tensors.items() if x.kind != "input")
    index = {t: k for k, t in enumerate(tensors)}
    size = [p.tensors[t].bytes for t in tensors]
    raw = [p.tensors[t].raw for t in tensors]
    nodes = list(p.nodes)
    place = {n.id: k for k, n in enumerate(nodes)}
    ins = [sum(1 << index[t] for t in set(n.ins) if t in index) for n in nodes]
    outs = [sum(1 << index[t] for t in n.outs) for n in nodes]
    after = [sum(1 << place[a] for a in n.after) for n in nodes]
    work = [-(-n.workspace // p.align) * p.align for n in nodes]
    over = [
        [index[t] for t in n.inplace_ok if p.tensors[t].kind == "intermediate"] if rewrite and len(n.outs) == 1 else []
        for n in nodes
    ]
    final = sum(1 << index[t] for t in tensors if p.tensors[t].kind == "output")
    everything = (1 << len(nodes)) - 1

    sums: dict[int, int] = {}

    def held(mask: int) -> int:
        if mask not in sums:
            sums[mask] = sum(size[k] for k in range(len(tensors)) if mask >> k & 1)
        return sums[mask]

    best = {(0, 0, 0): 0}
    todo = [(0, 0, 0, 0)]
    while todo:
        cost, ran, near, far = heapq.heappop(todo)
        if best[ran, near, far] < cost:
            continue
        if ran == everything and near & final == final:
            return cost
        if len(best) > limit:
            return False
        more: list[tuple[int, int, int, int]] = []
        for k in range(len(tensors)):
            bit = 1 << k
            if near & bit:
                more.append((cost, ran, near & ~bit, far))
                if spill and not far & bit:
                    more.append((cost + raw[k], ran, near, far | bit))
            elif far & bit and held(near) + size[k] <= capacity:
                more.append((cost + raw[k], ran, near | bit, far))
        for k, n in enumerate(nodes):
            again = ran >> k & 1
            if ins[k] & ~near or (not again and after[k] & ~ran) or (again and n.id not in rerun):
                continue
            if again and not outs[k] & ~near:
                continue
            price = cost + (rerun[n.id] if again else 0)
            if held(near | outs[k]) + work[k] <= capacity:
                more.append((price, ran | 1 << k, near | outs[k], far))
            for t in over[k]:
                if outs[k] & near:
                    continue
                rest = near & ~(1 << t)
                wide = max(0, size[t] - size[outs[k].bit_length() - 1])
                if held(rest | outs[k]) + work[k] + wide <= capacity:
                    more.append((price, ran | 1 << k, rest | outs[k], far))
        for c, *state in more:
            key = (state[0], state[1], state[2])
            if c < best.get(key, 1 << 60):
                best[key] = c
                heapq.heappush(todo, (c, *key))
    return None
