"""Memory graphs of known kinds, made by hand: cells joined by concatenation (as in PNASNet, Liu et al. 2018), random
wirings (RandWire, Xie et al. 2019), parallel resolutions (HRNet, Wang et al. 2019), U-Nets, and training steps of a
residual network, a U-Net and a transformer. Values are float32; sizes, operations and what a backward step reads are
those of the layers. What a parameter's update does is its own and runs once."""

from __future__ import annotations

import math

import numpy as np

from effc.passes.memory.problem import Node, Problem, Tensor

ALIGN = 64


class Graph:
    """Nodes in the order they are made. ``x`` is an input; values are tensor ids, ``shape`` has (channels, *size)."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name = name
        self.shape: dict[int, tuple[int, ...]] = {}
        self.tensors: dict[int, Tensor] = {}
        self.nodes: list[Node] = []
        self.tape: list[tuple[str, tuple[int, ...], int, int, int]] = []  # kind, operands, result, parameters, flops
        self.x = self.tensor(shape, "input")

    def tensor(self, shape: tuple[int, ...], kind: str = "intermediate") -> int:
        t = len(self.tensors)
        raw = 4 * math.prod(shape)
        self.shape[t] = shape
        self.tensors[t] = Tensor(t, -(-raw // ALIGN) * ALIGN, kind, f"t{t}", raw)
        return t

    def node(
        self,
        op: str,
        ins: list[int],
        shapes: list[tuple[int, ...]],
        flops: int,
        over: tuple[int, ...] = (),
        once: bool = False,
    ) -> list[int]:
        outs = [self.tensor(s) for s in shapes]
        parts: tuple[tuple[int, int], ...] = ()
        if op == "cat":
            starts = np.cumsum([0, *(self.tensors[t].raw for t in ins)])
            parts = tuple((t, int(at)) for t, at in zip(ins, starts, strict=False) if self.tensors[t].kind != "input")
        views: tuple[tuple[int, int, int], ...] = ()
        if op == "split" and self.tensors[ins[0]].kind != "input":
            starts = np.cumsum([0, *(self.tensors[t].raw for t in outs)])
            views = tuple((t, ins[0], int(at)) for t, at in zip(outs, starts, strict=False))
        over = tuple(t for t in over if self.tensors[t].kind != "input" and self.shape[t] == self.shape[outs[0]])
        k = len(self.nodes)
        self.nodes.append(
            Node(k, tuple(ins), tuple(outs), op, f"{op}{k}", over, parts, flops=max(1, flops), once=once, views=views)
        )
        return outs

    def conv(self, x: int, channels: int, k: int = 3, stride: int = 1, groups: int = 1, op: str = "conv") -> int:
        c, *size = self.shape[x]
        out = (channels, *(-(-s // stride) for s in size))
        params = channels * c // groups * k ** len(size)
        flops = 2 * params * math.prod(out[1:])
        (y,) = self.node(op, [x], [out], flops)
        self.tape.append(("conv", (x,), y, params, flops))
        return y

    def one(self, op: str, xs: list[int], *, over: bool = False, cost: int = 1) -> int:
        """An elementwise op of the first operand's shape."""
        n = math.prod(self.shape[xs[0]])
        (y,) = self.node(op, xs, [self.shape[xs[0]]], cost * n, tuple(xs) if over else ())
        self.tape.append((op, tuple(xs), y, 0, cost * n))
        return y

    def pool(self, x: int, stride: int = 2, k: int = 3, op: str = "max_pool") -> int:
        c, *size = self.shape[x]
        out = (c, *(-(-s // stride) for s in size))
        flops = math.prod(out) * k ** len(size)
        (y,) = self.node(op, [x], [out], flops)
        self.tape.append((op, (x,), y, 0, flops))
        return y

    def up(self, x: int, factor: int = 2) -> int:
        c, *size = self.shape[x]
        (y,) = self.node("upsample", [x], [(c, *(s * factor for s in size))], c * math.prod(size) * factor ** len(size))
        self.tape.append(("upsample", (x,), y, 0, 1))
        return y

    def cat(self, xs: list[int]) -> int:
        _, *size = self.shape[xs[0]]
        (y,) = self.node("cat", xs, [(sum(self.shape[x][0] for x in xs), *size)], 1)
        self.tape.append(("cat", tuple(xs), y, 0, 1))
        return y

    def attention(self, q: int, k: int, v: int) -> int:
        rows, width = self.shape[q]
        flops = 4 * rows * rows * width
        (y,) = self.node("attention", [q, k, v], [(rows, width)], flops)
        self.tape.append(("attention", (q, k, v), y, 0, flops))
        return y

    def linear(self, x: int, width: int) -> int:
        rows, k = self.shape[x]
        (y,) = self.node("linear", [x], [(rows, width)], 2 * rows * k * width)
        self.tape.append(("conv", (x,), y, k * width, 2 * rows * k * width))
        return y

    def backward(self, y: int) -> None:
        """Gradients of all parameters, updated at the end, in the order that a framework has them."""
        (gradient,) = self.node("loss", [y], [self.shape[y]], 4 * math.prod(self.shape[y]))
        grads: dict[int, int] = {y: gradient}
        updates: list[int] = []

        def give(x: int, g: int) -> None:
            if self.tensors[x].kind == "input":
                return
            if x in grads:
                (grads[x],) = self.node("add", [grads[x], g], [self.shape[x]], math.prod(self.shape[x]), (grads[x], g))
            else:
                grads[x] = g

        for kind, xs, out, params, flops in reversed(self.tape):
            if out not in grads:
                continue
            g = grads.pop(out)
            inner = [x for x in xs if self.tensors[x].kind != "input"]
            if kind == "conv":
                made = self.node("conv_backward", [g, *xs], [*(self.shape[x] for x in inner), (params,)], 2 * flops)
                updates.append(made[-1])
                if inner:
                    give(xs[0], made[0])
            elif kind == "relu":
                (d,) = self.node("relu_backward", [g, out], [self.shape[out]], flops, (g,))
                give(xs[0], d)
            elif kind == "add":
                for x in xs:
                    give(x, g)
            elif kind == "cat":
                made = self.node("split", [g], [self.shape[x] for x in xs], 1)
                for x, d in zip(xs, made, strict=True):
                    give(x, d)
            elif kind in ("upsample", "avg_pool"):
                (d,) = self.node(kind + "_backward", [g], [self.shape[xs[0]]], math.prod(self.shape[out]))
                give(xs[0], d)
            else:  # reads what it read before: norms, activations, pools, attention
                made = self.node(kind + "_backward", [g, *xs], [self.shape[x] for x in xs], 2 * flops)
                for x, d in zip(xs, made, strict=True):
                    give(x, d)
        for w in updates:
            self.node("update", [w], [], self.tensors[w].raw, once=True)

    def done(self, *outputs: int) -> Problem:
        for t in outputs:
            x = self.tensors[t]
            self.tensors[t] = Tensor(t, x.bytes, "output", x.name, x.raw_bytes)
        read = {t for n in self.nodes for t in n.ins} | set(outputs)
        assert all(t in read for n in self.nodes if len(n.outs) == 1 for t in n.outs), self.name
        return Problem(tuple(self.nodes), self.tensors, ALIGN, self.name)


def cells(count: int = 6, width: int = 54, size: int = 42, name: str = "cells") -> Problem:
    """PNASNet-5's cell: five sums of two branches each, joined; its operands are the two cells before."""
    g = Graph(name, 3, 4 * size, 4 * size)
    stem = g.conv(g.x, width, stride=2)
    previous, current = stem, g.conv(stem, 2 * width, stride=2)
    for k in range(count):
        reduces = k % 3 == 2
        stride = 2 if reduces else 1
        filters = width * 2 ** (k // 3)
        left_stride = -(-g.shape[previous][1] // g.shape[current][1])
        a, b = g.conv(previous, filters, 1, left_stride), g.conv(current, filters, 1)

        def sep(x: int, kernel: int, stride: int = stride, filters: int = filters) -> int:
            y = g.conv(x, filters, kernel, stride, filters, "depthwise")
            return g.conv(g.conv(g.conv(y, filters, 1), filters, kernel, 1, filters, "depthwise"), filters, 1)

        pooled = g.pool(a, stride)
        sums = [
            g.one("add", [sep(a, 5), pooled], over=True),
            g.one("add", [sep(b, 7), g.pool(b, stride)], over=True),
            g.one("add", [sep(b, 5), sep(b, 3)], over=True),
        ]
        sums.append(g.one("add", [g.conv(sums[2], filters, 3, 1, filters, "depthwise"), g.pool(b, stride)], over=True))
        last = g.conv(b, filters, 1, stride) if reduces else b
        sums.append(g.one("add", [sep(a, 3), last]))
        previous, current = current, g.cat(sums)
    return g.done(g.pool(current, g.shape[current][1], op="avg_pool"))


def randwire(nodes: int = 20, channels: int = 78, size: int = 28, seed: int = 1, stages: int = 2) -> Problem:
    """A Watts-Strogatz ring (4 neighbours, 0.75 rewired) made acyclic, a stage: sum, relu, separable convolution."""
    rng = np.random.default_rng(seed)
    g = Graph(f"randwire{seed}", 3, 4 * size, 4 * size)
    x = g.conv(g.conv(g.x, channels // 2, stride=2), channels, stride=2)
    for stage in range(stages):
        edges: set[tuple[int, int]] = set()
        for i in range(nodes):
            for d in (1, 2):
                j = (i + d) % nodes
                if rng.random() < 0.75:
                    j = int(rng.choice([z for z in range(nodes) if z != i]))
                edges.add((min(i, j), max(i, j)))
        made: list[int] = []
        for i in range(nodes):
            sources = [made[a] for a, b in sorted(edges) if b == i] or [x]
            stride = 2 if sources == [x] and stage else 1
            y = g.one("sum", sources, cost=len(sources)) if len(sources) > 1 else sources[0]
            y = g.one("relu", [y], over=len(sources) > 1)
            y = g.conv(y, channels * 2**stage, 3, stride, g.shape[y][0], "depthwise")
            made.append(g.conv(y, channels * 2**stage, 1))
        ends = [made[a] for a in range(nodes) if not any(e[0] == a for e in edges)]
        x = g.one("sum", ends, cost=len(ends)) if len(ends) > 1 else ends[0]
    return g.done(g.pool(x, g.shape[x][1], op="avg_pool"))


def shufflenet(width: int = 116, size: int = 28, blocks: tuple[int, ...] = (4, 8, 4)) -> Problem:
    """ShuffleNet v2's units (Ma et al. 2018): half of the channels pass, half go through three convolutions; both are
    joined and shuffled."""
    g = Graph("shufflenet", 3, 4 * size, 4 * size)
    x = g.conv(g.conv(g.x, 24, stride=2), width, stride=2)
    for stage, count in enumerate(blocks):
        if stage:
            x = g.conv(g.conv(x, g.shape[x][0], 3, 2, g.shape[x][0], "depthwise"), width * 2**stage, 1)
        for _ in range(count):
            c, *space = g.shape[x]
            left, right = g.node("split", [x], [(c // 2, *space)] * 2, 1)
            y = g.one("relu", [g.conv(right, c // 2, 1)], over=True)
            y = g.conv(g.conv(y, c // 2, 3, 1, c // 2, "depthwise"), c // 2, 1)
            x = g.one("shuffle", [g.cat([left, g.one("relu", [y], over=True)])])
    return g.done(g.pool(x, g.shape[x][1], op="avg_pool"))


def hrnet(width: int = 18, size: int = 56, modules: int = 2) -> Problem:
    """Four resolutions side by side, each module fusing all into all."""
    g = Graph("hrnet", 3, 4 * size, 4 * size)
    x = g.conv(g.conv(g.x, 64, stride=2), 64, stride=2)
    streams = [g.conv(x, width)]
    for stage in range(1, 4):
        streams.append(g.conv(streams[-1], width * 2**stage, stride=2))
        for _ in range(modules):
            made = []
            for y in streams:
                for _ in range(2):
                    y = g.one("add", [g.conv(g.conv(y, g.shape[y][0]), g.shape[y][0]), y], over=True)
                made.append(y)
            fused = []
            for i in range(len(made)):
                total = made[i]
                for j, z in enumerate(made):
                    if j > i:
                        z = g.up(g.conv(z, width * 2**i, 1), 2 ** (j - i))
                    for step in range(max(0, i - j)):
                        z = g.conv(z, width * 2 ** (i if step == i - j - 1 else j), stride=2)
                    if j != i:
                        total = g.one("add", [total, z], over=True)
                fused.append(g.one("relu", [total], over=True))
            streams = fused
    heads = [streams[0], *(g.up(y, 2**k) for k, y in enumerate(streams) if k)]
    return g.done(g.conv(g.cat(heads), 19, 1))


def unet_graph(g: Graph, width: int, depth: int) -> int:
    x, skips = g.x, []
    for k in range(depth):
        x = g.one("relu", [g.one("norm", [g.conv(x, width * 2**k)], cost=4)], over=True)
        x = g.one("relu", [g.one("norm", [g.conv(x, width * 2**k)], cost=4)], over=True)
        if k < depth - 1:
            skips.append(x)
            x = g.pool(x, k=2)
    for k in reversed(range(depth - 1)):
        x = g.cat([skips[k], g.conv(g.up(x), width * 2**k, 1)])
        x = g.one("relu", [g.one("norm", [g.conv(x, width * 2**k)], cost=4)], over=True)
    return g.conv(x, 2, 1)


def unet(width: int = 32, size: int = 128, depth: int = 5) -> Problem:
    g = Graph("unet", 3, size, size)
    return g.done(unet_graph(g, width, depth))


def nested_unet(width: int = 32, size: int = 96, depth: int = 4) -> Problem:
    """U-Net++: every skip is a row of blocks, each reading all before it in the row and the one below, upsampled."""
    g = Graph("nested_unet", 3, size, size)
    made: dict[tuple[int, int], int] = {}
    for i in range(depth):
        x = g.x if i == 0 else g.pool(made[i - 1, 0], k=2)
        made[i, 0] = g.conv(g.conv(x, width * 2**i), width * 2**i)
        for j in range(1, i + 1):
            row = i - j
            joined = g.cat([*(made[row, k] for k in range(j)), g.up(made[row + 1, j - 1])])
            made[row, j] = g.conv(g.conv(joined, width * 2**row), width * 2**row)
    return g.done(g.conv(made[0, depth - 1], 1, 1))


def train_unet(width: int = 16, size: int = 64, depth: int = 4) -> Problem:
    g = Graph("train_unet", 3, size, size)
    g.backward(unet_graph(g, width, depth))
    return g.done()


def train_resnet(blocks: int = 8, width: int = 32, size: int = 56) -> Problem:
    g = Graph("train_resnet", 3, 2 * size, 2 * size)

    def unit(x: int, c: int, stride: int = 1) -> int:
        return g.one("norm", [g.conv(x, c, stride=stride)], cost=4)

    x = g.one("relu", [unit(g.x, width, 2)], over=True)
    for k in range(blocks):
        c, stride = width * 2 ** (k // 2), 2 if k and k % 2 == 0 else 1
        y = unit(g.one("relu", [unit(x, c, stride)], over=True), c)
        short = g.one("norm", [g.conv(x, c, 1, stride)], cost=4) if stride > 1 else x
        x = g.one("relu", [g.one("add", [y, short], over=True)], over=True)
    g.backward(g.conv(g.pool(x, g.shape[x][1], op="avg_pool"), 100, 1))
    return g.done()


def train_transformer(layers: int = 6, rows: int = 256, width: int = 256, name: str = "train_transformer") -> Problem:
    g = Graph(name, rows, width)
    x = g.linear(g.x, width)
    for _ in range(layers):
        y = g.one("norm", [x], cost=5)
        y = g.attention(g.linear(y, width), g.linear(y, width), g.linear(y, width))
        x = g.one("add", [x, g.linear(y, width)], over=True)
        y = g.one("gelu", [g.linear(g.one("norm", [x], cost=5), 4 * width)], cost=10)
        x = g.one("add", [x, g.linear(y, width)], over=True)
    g.backward(g.linear(g.one("norm", [x], cost=5), 1000))
    return g.done()
