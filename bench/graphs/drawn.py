"""Memory graphs drawn by kind, size and seed: networks whose depth, widths and wiring vary, and random graphs.

Networks: residual, dense, inception, cell-search (NASNet's cells with random operations, Zoph et al. 2018), random
wirings (Erdos-Renyi, Barabasi-Albert, Watts-Strogatz; Xie et al. 2019), U-Nets, mixtures of experts, and training
steps of convolutional networks, transformers and U-Nets. Random: layered, series-parallel and windowed graphs, and
several of them side by side, unconnected. ``shuffled`` gives a graph's nodes in another topological order, drawn at
random: what comes from a parser is rarely that bad, but it may.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable

import numpy as np

from effc.passes.memory.problem import Node, Problem, Tensor

from .built import ALIGN, Graph


def _pick(rng: np.random.Generator, *choices: int) -> int:
    return int(rng.choice(choices))


def _stem(g: Graph, rng: np.random.Generator, width: int) -> int:
    x = g.conv(g.x, width, stride=2)
    return g.conv(x, width, stride=2) if rng.random() < 0.5 else x


def _image(name: str, rng: np.random.Generator) -> Graph:
    side = 8 * int(rng.integers(5, 29))
    return Graph(name, 3, side, side)


def _unit(g: Graph, x: int, channels: int, k: int = 3, stride: int = 1, training: bool = False) -> int:
    x = g.conv(x, channels, k, stride)
    return g.one("norm", [x], cost=4) if training else x


def _residual(g: Graph, rng: np.random.Generator, nodes: int, training: bool) -> int:
    width = 4 * int(rng.integers(3, 25))
    bottleneck = rng.random() < 0.5
    x = _stem(g, rng, width)
    every = int(rng.integers(2, 5))
    for block in itertools.count():
        if len(g.nodes) >= nodes:
            return x
        stride = 2 if block and block % every == 0 and g.shape[x][1] > 4 else 1
        width *= stride
        out = 4 * width if bottleneck else width
        y = g.one("relu", [_unit(g, x, width, 1 if bottleneck else 3, stride, training)], over=True)
        if bottleneck:
            y = g.one("relu", [_unit(g, y, width, 3, 1, training)], over=True)
        y = _unit(g, y, out, 1 if bottleneck else 3, 1, training)
        short = _unit(g, x, out, 1, stride, training) if g.shape[x] != g.shape[y] else x
        x = g.one("relu", [g.one("add", [y, short], over=True)], over=True)


def _head(g: Graph, x: int, classes: int = 100) -> int:
    return g.conv(g.pool(x, g.shape[x][1], op="avg_pool"), classes, 1)


def residual(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    g = _image(f"residual{seed}", rng)
    return g.done(_head(g, _residual(g, rng, nodes, False)))


def train_residual(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    g = _image(f"train_residual{seed}", rng)
    g.backward(_head(g, _residual(g, rng, nodes // 3, True)))
    return g.done()


def dense(seed: int, nodes: int) -> Problem:
    """DenseNet (Huang et al. 2017)."""
    rng = np.random.default_rng(seed)
    g = _image(f"dense{seed}", rng)
    growth = 4 * int(rng.integers(2, 13))
    x = _stem(g, rng, 2 * growth)
    while len(g.nodes) < nodes:
        parts = [x]
        for _ in range(int(rng.integers(3, 13))):
            y = g.cat(parts) if len(parts) > 1 else x
            y = g.conv(g.one("norm", [y], cost=4), 4 * growth, 1)
            parts.append(g.conv(g.one("relu", [y], over=True), growth))
        x = g.conv(g.cat(parts), sum(g.shape[t][0] for t in parts) // 2, 1)
        x = g.pool(x, 2, 2, "avg_pool") if g.shape[x][1] > 4 else x
    return g.done(_head(g, x))


def inception(seed: int, nodes: int) -> Problem:
    """Branches of one to four convolutions, some of which split again (Inception-v4), joined."""
    rng = np.random.default_rng(seed)
    g = _image(f"inception{seed}", rng)
    x = _stem(g, rng, 32)
    while len(g.nodes) < nodes:
        stride = 2 if rng.random() < 0.25 and g.shape[x][1] > 6 else 1
        ends = []
        for b in range(int(rng.integers(2, 7))):
            y = g.pool(x, stride) if b == 0 and rng.random() < 0.7 else x
            depth = int(rng.integers(1, 5))
            for d in range(depth):
                last = d == depth - 1
                s = stride if last and g.shape[y][1] == g.shape[x][1] else 1
                if last and s == 1 and rng.random() < 0.3:
                    ends.append(g.conv(y, 8 * int(rng.integers(1, 25)), 3))
                y = g.conv(y, 8 * int(rng.integers(1, 33)), 3, s)
            ends.append(y)
        x = g.cat(ends)
        if g.shape[x][0] > 1536:
            x = g.conv(x, 384, 1)
    return g.done(_head(g, x))


def cell_search(seed: int, nodes: int) -> Problem:
    """Cells of a random design: each sum takes two earlier results of the cell, what no sum reads is joined."""
    rng = np.random.default_rng(seed)
    g = _image(f"cell_search{seed}", rng)
    filters = 2 * int(rng.integers(6, 41))
    steps = int(rng.integers(3, 8))
    design = [(*(int(rng.integers(0, k + 2)) for _ in range(2)), *rng.integers(0, 5, 2)) for k in range(steps)]
    previous = g.conv(g.x, filters, stride=2)
    current = g.conv(previous, filters)

    def apply(kind: int, x: int) -> int:
        if kind == 0:
            return x
        if kind == 1:
            return g.pool(x, 1)
        for _ in range(2):
            x = g.conv(x, filters, 2 * kind - 1, 1, filters, "depthwise")
            x = g.conv(x, filters, 1)
        return x

    for cell in itertools.count():
        if len(g.nodes) >= nodes:
            break
        if cell % 4 == 3 and g.shape[current][1] > 6:
            current = g.pool(current, 2)
            filters *= 2
        stride = -(-g.shape[previous][1] // g.shape[current][1])
        made = [g.conv(previous, filters, 1, stride), g.conv(current, filters, 1)]
        read = set()
        for a, b, u, v in design:
            x, y = apply(int(u), made[a]), apply(int(v), made[b])
            read |= {a, b}
            made.append(g.one("add", [x, y], over=x not in made and y not in made) if x != y else g.pool(x, 1))
        ends = [t for k, t in enumerate(made) if k not in read]
        previous, current = current, g.cat(ends) if len(ends) > 1 else ends[0]
        if len(ends) < 2:
            current = g.conv(current, filters, 1)
    x = g.cat([g.pool(current, 1), g.conv(g.conv(previous, 8, 1, -(-g.shape[previous][1] // g.shape[current][1])), 8)])
    return g.done(_head(g, x))


def wired(seed: int, nodes: int) -> Problem:
    """Stages wired by a random graph, each node a sum of what it reads and a convolution."""
    rng = np.random.default_rng(seed)
    g = _image(f"wired{seed}", rng)
    channels = 2 * int(rng.integers(12, 60))
    x = _stem(g, rng, channels)
    kind = seed % 3
    while len(g.nodes) < nodes:
        n = int(rng.integers(12, 41))
        edges = set()
        if kind == 0:
            edges = {(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < 0.2}
        elif kind == 1:
            m = _pick(rng, 2, 3, 5)
            for j in range(1, n):
                weight = np.array([1 + sum(i in e for e in edges) for i in range(j)], float)
                edges |= {(int(i), j) for i in rng.choice(j, min(m, j), False, weight / weight.sum())}
        else:
            for i in range(n):
                for d in (1, 2):
                    j = int(rng.integers(0, n)) if rng.random() < 0.75 else (i + d) % n
                    edges |= {(min(i, j), max(i, j))} if i != j else set()
        made: list[int] = []
        for i in range(n):
            sources = [made[a] for a, b in sorted(edges) if b == i] or [x]
            y = g.one("sum", sources, cost=len(sources)) if len(sources) > 1 else sources[0]
            made.append(g.conv(g.one("relu", [y], over=len(sources) > 1), channels))
        ends = [made[a] for a in range(n) if not any(e[0] == a for e in edges)]
        x = g.one("sum", ends, cost=len(ends)) if len(ends) > 1 else ends[0]
        if g.shape[x][1] > 6:
            x = g.pool(x, 2)
    return g.done(_head(g, x))


def _unet(g: Graph, rng: np.random.Generator, nodes: int, training: bool) -> int:
    depth = int(rng.integers(3, 6))
    per = max(1, nodes // ((2 * depth - 1) * (3 if training else 1)) // (3 if training else 2))
    width = 4 * int(rng.integers(2, 13))
    x, skips = g.x, []

    def level(x: int, channels: int) -> int:
        for _ in range(per):
            x = g.one("relu", [_unit(g, x, channels, training=training)], over=True)
        return x

    for k in range(depth):
        x = level(x, width << k)
        if k < depth - 1:
            skips.append(x)
            x = g.pool(x, k=2)
    for k in reversed(range(depth - 1)):
        x = level(g.cat([skips[k], g.conv(g.up(x), width << k, 1)]), width << k)
    return g.conv(x, 2, 1)


def u_net(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    side = 16 * int(rng.integers(2, 13))
    g = Graph(f"u_net{seed}", 3, side, side) if seed % 2 else Graph(f"u_net{seed}", 1, side // 2, side // 2, side // 2)
    return g.done(_unet(g, rng, nodes, False))


def train_u_net(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    side = 16 * int(rng.integers(2, 13))
    g = Graph(f"train_u_net{seed}", 3, side, side)
    g.backward(_unet(g, rng, nodes, True))
    return g.done()


def _transformer(g: Graph, rng: np.random.Generator, nodes: int, experts: int) -> int:
    rows, width = g.shape[g.x]
    x = g.linear(g.x, width)
    wide = _pick(rng, 2, 3, 4) * width
    while len(g.nodes) < nodes:
        y = g.one("norm", [x], cost=5)
        heads = _pick(rng, 1, 2, 4)
        joined = []
        for _ in range(heads):
            joined.append(g.attention(*(g.linear(y, width // heads) for _ in range(3))))
        y = joined[0] if heads == 1 else g.node("concat", joined, [(rows, width)], 1)[0]
        if heads > 1:
            g.tape.append(("concat", tuple(joined), y, 0, 1))
        x = g.one("add", [x, g.linear(y, width)], over=True)
        y = g.one("norm", [x], cost=5)
        if experts:
            gate = g.linear(y, experts)
            parts = []
            for _ in range(experts):
                z = g.one("mul", [g.one("silu", [g.linear(y, wide)], over=True), g.linear(y, wide)], over=True)
                parts.append(g.one("mul", [g.linear(z, width), gate]))
            z = g.one("sum", parts, cost=experts)
        else:
            z = g.linear(g.one("gelu", [g.linear(y, wide)], cost=10), width)
        x = g.one("add", [x, z], over=True)
    return g.linear(g.one("norm", [x], cost=5), 1000)


def transformer(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    g = Graph(f"transformer{seed}", 8 * int(rng.integers(2, 65)), 64 * int(rng.integers(1, 13)))
    return g.done(_transformer(g, rng, nodes, 0))


def experts(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    g = Graph(f"experts{seed}", 8 * int(rng.integers(2, 65)), 64 * int(rng.integers(1, 13)))
    return g.done(_transformer(g, rng, nodes, _pick(rng, 4, 8, 16)))


def train_transformer(seed: int, nodes: int) -> Problem:
    rng = np.random.default_rng(seed)
    g = Graph(f"train_transformer{seed}", 8 * int(rng.integers(2, 65)), 64 * int(rng.integers(1, 13)))
    g.backward(_transformer(g, rng, nodes // 3, 0))
    return g.done()


def _size(rng: np.random.Generator) -> int:
    """Bytes, over three orders of magnitude, some of them round."""
    raw = int(2 ** rng.uniform(6, 20))
    return raw if rng.random() < 0.5 else -(-raw // 4096) * 4096


def _random(name: str, sizes: list[int], edges: list[tuple[int, int]]) -> Problem:
    """A node with one result each; the first has the caller's input, sinks are outputs."""
    reads: list[list[int]] = [[] for _ in sizes]
    read = set()
    for a, b in edges:
        reads[b].append(a + 1)
        read.add(a)
    tensors = {0: Tensor(0, 1024, "input", "x", 1024)}
    nodes = []
    for k, raw in enumerate(sizes):
        kind = "intermediate" if k in read else "output"
        tensors[k + 1] = Tensor(k + 1, -(-raw // ALIGN) * ALIGN, kind, f"t{k + 1}", raw)
        nodes.append(Node(k, tuple(dict.fromkeys(reads[k])) or (0,), (k + 1,), "op", f"n{k}", flops=raw))
    return Problem(tuple(nodes), tensors, ALIGN, name)


def layered(seed: int, nodes: int) -> Problem:
    """Layers of 2 to 12 nodes that read one to three of the layer before, now and then of any earlier."""
    rng = np.random.default_rng(seed)
    widest = int(rng.integers(2, 13))
    edges, sizes, before, all_before = [], [], [], []
    while len(sizes) < nodes:
        layer = []
        for _ in range(int(rng.integers(1, widest + 1))):
            k = len(sizes)
            sizes.append(_size(rng))
            layer.append(k)
            for _ in range(int(rng.integers(1, 4)) if before else 0):
                far = all_before and rng.random() < 0.05
                edges.append((int(rng.choice(all_before if far else before)), k))
        for a in before:
            if not any(e[0] == a for e in edges[-4 * len(layer) :]):
                edges.append((a, int(rng.choice(layer))))
        all_before += before
        before = layer
    return _random(f"layered{seed}", sizes, edges)


def series_parallel(seed: int, nodes: int) -> Problem:
    """By expansion of edges, in series or in parallel, from one."""
    rng = np.random.default_rng(seed)
    edges = [(0, 1)]
    count = 2
    while count < nodes:
        k = int(rng.integers(0, len(edges)))
        a, b = edges[k]
        if rng.random() < 0.5:
            edges[k] = (a, count)
            edges.append((count, b))
            count += 1
        else:
            edges += [(a, count), (count, b)]
            count += 1
    after: list[list[int]] = [[] for _ in range(count)]
    waits = [0] * count
    for a, b in dict.fromkeys(edges):
        after[a].append(b)
        waits[b] += 1
    at, todo = {}, [0]
    while todo:
        a = todo.pop()
        at[a] = len(at)
        for b in after[a]:
            waits[b] -= 1
            if not waits[b]:
                todo.append(b)
    sizes = [_size(rng) for _ in range(count)]
    return _random(f"series_parallel{seed}", sizes, sorted({(at[a], at[b]) for a, b in edges}, key=lambda e: e[::-1]))


def windowed(seed: int, nodes: int) -> Problem:
    """Each node reads one to four of the last ones made, how far back varies with the seed."""
    rng = np.random.default_rng(seed)
    window = int(rng.integers(3, 25))
    edges = []
    for k in range(1, nodes):
        reach = min(k, window)
        edges += [(k - 1 - int(rng.integers(0, reach)), k) for _ in range(int(rng.integers(1, 5)))]
    return _random(f"windowed{seed}", [_size(rng) for _ in range(nodes)], edges)


def apart(seed: int, nodes: int) -> Problem:
    """Several graphs that share nothing, their nodes interleaved."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 6))
    kinds = [residual, inception, layered, series_parallel, transformer]
    parts = [kinds[(seed + k) % len(kinds)](seed * 7 + k, nodes // count) for k in range(count)]
    tensors: dict[int, Tensor] = {}
    queues: list[list[Node]] = []
    for p in parts:
        by = len(tensors)
        tensors.update((t.id + by, dataclasses.replace(t, id=t.id + by)) for t in p.tensors.values())
        queues.append([_moved(n, by) for n in p.nodes])
    nodes_out: list[Node] = []
    while any(queues):
        queue = queues[_pick(rng, *(k for k, q in enumerate(queues) if q))]
        nodes_out.append(dataclasses.replace(queue.pop(0), id=len(nodes_out)))
    return Problem(tuple(nodes_out), tensors, ALIGN, f"apart{seed}")


def _moved(n: Node, by: int) -> Node:
    return dataclasses.replace(
        n,
        ins=tuple(t + by for t in n.ins),
        outs=tuple(t + by for t in n.outs),
        inplace_ok=tuple(t + by for t in n.inplace_ok),
        concat=tuple((t + by, at) for t, at in n.concat),
        views=tuple((t + by, u + by, at) for t, u, at in n.views),
    )


def shuffled(p: Problem, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    producer = {t: n.id for n in p.nodes for t in n.outs}
    needs = {n.id: {producer[t] for t in n.ins if t in producer} | set(n.after) for n in p.nodes}
    after: dict[int, list[int]] = {n.id: [] for n in p.nodes}
    for n, us in needs.items():
        for u in us:
            after[u].append(n)
    waits = {n: len(us) for n, us in needs.items()}
    ready = [(rng.random(), n) for n, w in waits.items() if not w]
    heapq.heapify(ready)
    node, out = p.node(), []
    while ready:
        _, n = heapq.heappop(ready)
        out.append(node[n])
        for v in after[n]:
            waits[v] -= 1
            if not waits[v]:
                heapq.heappush(ready, (rng.random(), v))
    return dataclasses.replace(p, nodes=tuple(out), name=f"{p.name}, shuffled")


KINDS: dict[str, Callable[[int, int], Problem]] = {
    f.__name__: f
    for f in (
        residual,
        dense,
        inception,
        cell_search,
        wired,
        u_net,
        transformer,
        experts,
        train_residual,
        train_transformer,
        train_u_net,
        layered,
        series_parallel,
        windowed,
        apart,
    )
}
