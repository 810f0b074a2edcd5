"""Memory graphs of kinds of networks whose order matters, traced from PyTorch: shapes only, no weights.

Operators that PyTorch declares pointwise, and batch norms, are fused behind the sole producer of their first operand;
views take no space; parameters and inputs are the caller's. A training step updates parameters where they lie. With
batch 1 a concatenation of channels is one along the outermost axis.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from effc.passes.memory.problem import Problem, from_dict

FUSED = ("native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm")


class Separable(nn.Module):
    def __init__(self, c_in: int, c_out: int, k: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.depth = nn.Conv2d(c_in, c_in, k, stride, k // 2, groups=c_in, bias=False)
        self.point = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.point(self.depth(F.relu(x))))


class PnasCell(nn.Module):
    """Five pairs of operations on the results of the two cells before, joined (Liu et al. 2018)."""

    def __init__(self, c_a: int, c_b: int, c: int, reduce: bool) -> None:
        super().__init__()
        s = 2 if reduce else 1
        self.left, self.right = nn.Conv2d(c_a, c, 1, bias=False), nn.Conv2d(c_b, c, 1, bias=False)
        kernels = [(5, "max"), (7, "max"), (5, 3), (3, "max"), (3, None)]
        self.ops = nn.ModuleList()
        self.pairs = kernels
        for a, b in kernels:
            self.ops.append(Separable(c, c, a, s))
            self.ops.append(Separable(c, c, b, s) if isinstance(b, int) else nn.MaxPool2d(3, s, 1))
        self.stride = s

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.shape[2] != b.shape[2]:
            a = F.avg_pool2d(a, a.shape[2] // b.shape[2])
        left, right = self.left(F.relu(a)), self.right(F.relu(b))
        out = []
        for i in range(5):
            x, y = (left, right) if i % 2 else (right, left)
            out.append(self.ops[2 * i](x) + self.ops[2 * i + 1](y))
        out[4] = out[4] + out[0]
        return torch.cat(out, 1)


class PnasLike(nn.Module):
    def __init__(self, c: int = 44) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        shapes = [(32, 32, c // 4, True), (32, 5 * (c // 4), c // 2, True)]
        last, now = 5 * (c // 4), 5 * (c // 2)
        for k in range(6):
            wide = c << (k // 3)
            shapes.append((last, now, wide, k == 3))
            last, now = now, 5 * wide
        self.cells = nn.ModuleList(PnasCell(*x) for x in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = b = self.stem(x)
        for cell in self.cells:
            a, b = b, cell(a, b)
        return b.mean((2, 3))


class RandWireStage(nn.Module):
    """Watts and Strogatz's random graph, its edges directed from lower to higher (Xie et al. 2019)."""

    def __init__(self, nodes: int, c_in: int, c: int, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        edges = set()
        for i in range(nodes):
            for d in (1, 2):
                j = (i + d) % nodes
                if rng.random() < 0.75:
                    j = rng.choice([x for x in range(nodes) if x != i])
                edges.add((min(i, j), max(i, j)))
        self.before = [sorted(a for a, b in edges if b == i) for i in range(nodes)]
        self.last = [i for i in range(nodes) if not any(a == i for a, _ in edges)]
        self.ops = nn.ModuleList(Separable(c if b else c_in, c, 3, 1 if b else 2) for b in self.before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: list[torch.Tensor] = []
        for before, op in zip(self.before, self.ops):
            y = x if not before else out[before[0]]
            for k in before[1:]:
                y = y + out[k]
            out.append(op(y))
        y = out[self.last[0]]
        for k in self.last[1:]:
            y = y + out[k]
        return y


class RandWireLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 39, 3, 2, 1)
        self.stages = nn.ModuleList([RandWireStage(32, 39, 78, 1), RandWireStage(32, 78, 156, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))) + x)


class HrLike(nn.Module):
    """Branches at several sizes that exchange what they have (Wang et al. 2019)."""

    def __init__(self, c: int = 18, branches: int = 4, rounds: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.ReLU(), nn.Conv2d(c, c, 3, 2, 1), nn.ReLU())
        wide = [c << i for i in range(branches)]
        self.split = nn.ModuleList(nn.Conv2d(wide[i], wide[i + 1], 3, 2, 1) for i in range(branches - 1))
        self.rounds = nn.ModuleList()
        for _ in range(rounds):
            blocks = nn.ModuleList(nn.Sequential(Residual(w), Residual(w)) for w in wide)
            cross = nn.ModuleList(nn.Conv2d(a, b, 1) for a in wide for b in wide)
            self.rounds.append(nn.ModuleList([blocks, cross]))
        self.branches = branches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        xs = [self.stem(x)]
        for conv in self.split:
            xs.append(F.relu(conv(xs[-1])))
        for blocks, cross in self.rounds:
            xs = [block(x) for block, x in zip(blocks, xs)]
            new = []
            for j in range(self.branches):
                y = xs[j]
                for i in range(self.branches):
                    if i != j:
                        z = cross[i * self.branches + j](xs[i])
                        size = xs[j].shape[2:]
                        y = y + (F.interpolate(z, size=size) if i > j else F.adaptive_avg_pool2d(z, size))
                new.append(F.relu(y))
            xs = new
        return torch.cat([F.interpolate(y, size=xs[0].shape[2:]) for y in xs], 1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, w = x.shape
        q, k, v = self.qkv(self.norm_a(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        a = torch.softmax(q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5, -1) @ v
        x = x + self.out(a.transpose(1, 2).reshape(n, t, w))
        return x + self.down(F.gelu(self.up(self.norm_b(x))))


def _inference(net: nn.Module, *shape: int) -> Problem:
    names = [k for k, _ in net.named_parameters()] + [k for k, _ in net.named_buffers()]
    values = [*net.parameters(), *net.buffers()]
    net.eval()

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.func.functional_call(net, dict(zip(names, weights)), (x,))

    return trace(run, [torch.zeros(shape), *(v.detach() for v in values)])


def _training(net: nn.Module, x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> Problem:
    names = [k for k, _ in net.named_parameters()]
    kept = [k for k, _ in net.named_buffers()]
    values = [v.detach().requires_grad_() for v in net.parameters()]
    net.train()

    def step(x: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
        weights = given[: len(names)]
        out = torch.func.functional_call(net, dict(zip([*names, *kept], given)), (x,))
        grads = torch.autograd.grad(loss(out), list(weights))
        return [w - 0.01 * g for w, g in zip(weights, grads)]

    return trace(step, [x, *values, *net.buffers()], updates=True)


def pnasnet_like() -> Problem:
    return _inference(PnasLike(), 1, 3, 224, 224)


def randwire_like() -> Problem:
    return _inference(RandWireLike(), 1, 3, 224, 224)


def hrnet_like() -> Problem:
    return _inference(HrLike(), 1, 3, 256, 256)


def train_transformer() -> Problem:
    return _training(
        nn.Sequential(*(Block(128, 4) for _ in range(4))), torch.zeros(4, 64, 128), lambda y: y.square().mean()
    )


def train_unet() -> Problem:
    from bench.dense import UNet

    return _training(UNet(16, 3), torch.zeros(1, 3, 64, 64), lambda y: y.square().mean())


GRAPHS: dict[str, Callable[[], Problem]] = {
    "pnasnet_like": pnasnet_like,
    "randwire_like": randwire_like,
    "hrnet_like": hrnet_like,
    "train_transformer": train_transformer,
    "train_unet": train_unet,
}


def trace(run: Callable[..., Any], args: list[torch.Tensor], updates: bool = False) -> Problem:
    """``updates``: results are new values of the caller's tensors and take no space."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module = make_fx(run, tracing_mode="fake")(*args)
    module.graph.eliminate_dead_code()
    buffers: dict[Any, list[int]] = {}  # node -> its buffers, -1 for a result that takes none
    tensors: list[dict[str, Any]] = []

    def tensor(value: Any, kind: str) -> int:
        raw = value.numel() * value.element_size()
        size = -(-raw // 64) * 64
        tensors.append({"id": len(tensors), "name": "", "bytes": size, "raw_bytes": raw, "kind": kind})
        return len(tensors) - 1

    def of(node: Any) -> list[int]:
        return [b for n in node.all_input_nodes for b in buffers[n] if b >= 0]

    ops: list[dict[str, Any]] = []
    final: list[int] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            buffers[node] = [tensor(node.meta["val"], "input")]
        elif node.op == "get_attr":
            buffers[node] = [tensor(getattr(module, node.target), "input")]
        elif node.op == "output":
            final = list(dict.fromkeys(b for n in node.all_input_nodes for b in buffers[n] if b >= 0))
        elif "getitem" in str(node.target):
            buffers[node] = [buffers[node.args[0]][node.args[1]]]
        else:
            value = node.meta["val"]
            schema = node.target._schema
            if all(r.alias_info is not None for r in schema.returns):  # a view
                count = len(value) if isinstance(value, (tuple, list)) else 1
                buffers[node] = [buffers[node.all_input_nodes[0]][0]] * count
                continue
            values = value if isinstance(value, (tuple, list)) else [value]
            outs = [tensor(v, "intermediate") if isinstance(v, torch.Tensor) and v.numel() else -1 for v in values]
            buffers[node] = outs
            name = node.target._schema.name.split("::")[1]
            pointwise = torch.Tag.pointwise in node.target.tags
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            outermost = name == "cat" and (
                (len(node.args) < 2 or node.args[1] == 0) or (node.args[1] == 1 and shape[0] == 1)
            )
            ops.append(
                {
                    "op": "cat" if outermost else "concat" if name == "cat" else name,
                    "ins": of(node),
                    "outs": [b for b in outs if b >= 0],
                    "pointwise": pointwise,
                    "fusible": pointwise or name in FUSED,
                }
            )
    return from_dict(_fused(ops, tensors, final, updates))


def _fused(ops: list[dict[str, Any]], tensors: list[dict[str, Any]], final: list[int], updates: bool) -> dict[str, Any]:
    readers: dict[int, int] = {}
    for o in ops:
        for b in set(o["ins"]):
            readers[b] = readers.get(b, 0) + 1
    groups: list[dict[str, Any]] = []
    maker: dict[int, dict[str, Any]] = {}
    for o in ops:
        first = o["ins"][0] if o["ins"] else -1
        before = maker.get(first)
        sole = before is not None and readers[first] == 1 and first not in final and first not in o["ins"][1:]
        same = o["outs"] and first >= 0 and tensors[o["outs"][0]]["bytes"] == tensors[first]["bytes"]
        rest = [b for b in before["outs"] if b != first] if before is not None else []
        if (
            before is not None
            and o["fusible"]
            and sole
            and same
            and not set(rest) & {b for g in groups for b in g["ins"]}
        ):
            groups.remove(before)
            o = {
                "op": before["op"] + "+" + o["op"],
                "ins": list(dict.fromkeys([*before["ins"], *(b for b in o["ins"] if b != first)])),
                "outs": [*o["outs"], *rest],
                "pointwise": before["pointwise"] and o["pointwise"],
                "fusible": o["fusible"],
            }
        groups.append(o)
        maker.update((b, o) for b in o["outs"])
    kept = {b for o in groups for b in (*o["ins"], *o["outs"])}
    for b in final:
        if tensors[b]["kind"] == "intermediate":
            tensors[b]["kind"] = "output"
    if updates:
        gone = set(final)
        for o in groups:
            o["outs"] = [b for b in o["outs"] if b not in gone]
        kept -= gone
    number = {b: k for k, b in enumerate(sorted(kept))}
    nodes = []
    for k, o in enumerate(groups):
        ins = [number[b] for b in dict.fromkeys(o["ins"])]
        over = []
        if o["pointwise"] and len(o["outs"]) == 1:
            size = tensors[o["outs"][0]]["bytes"]
            over = [number[b] for b in o["ins"] if tensors[b]["kind"] == "intermediate" and tensors[b]["bytes"] == size]
        outs = [number[b] for b in o["outs"] if b in number]
        nodes.append({"id": k, "name": f"n{k}", "op": o["op"], "ins": ins, "outs": outs, "inplace_ok": over})
    listed = [{**tensors[b], "id": number[b]} for b in sorted(kept)]
    return {"name": "", "format": "effc-memory-graph-1", "align": 64, "tensors": listed, "nodes": nodes}
