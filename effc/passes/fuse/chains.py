"""A convolution, a depthwise convolution of its result and a pointwise one of that become ``conv_chain``: the inverted
bottleneck of MobileNetV2 and EfficientNet, and the stem before the first one.

The result between them is several times larger than what goes in and comes out. Unfused it is written to and read from
the last cache or memory twice; fused it stays with the core that makes it, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS
from ..manager import Pass, PassReport, in_subgraphs
from .regions import body_of
from .steps import steps_of

CACHE = 400 << 10  # bytes of a core's own cache that a chain's buffers and weights may take together
LARGE = 384 << 10  # bytes between the convolutions from which on a chain pays


@dataclass(frozen=True)
class Plan:
    """How a chain is run: output rows of a step, rows of the first result that are kept, bytes of both buffers."""

    rows: int
    kept: int
    buffers: int


def plan(stages: Sequence[Node]) -> Plan | str:
    """The plan for two or three convolutions, or why there is none."""
    *first, deep, narrow = stages
    sizes = [n.types[0].shape[1:] for n in stages]
    if not all(isinstance(d, int) for s in sizes for d in s):
        return "sizes of its images are not constant"
    channels, height, width = (int(str(d)) for d in deep.types[0].shape[1:])
    source = (first[0].types[0] if first else deep.operands[0].type).shape
    if not all(isinstance(d, int) for d in source[1:]):
        return "sizes of its images are not constant"
    _, rows_in, width_in = (int(str(d)) for d in source[1:])
    kernel = int(str(deep.operands[1].shape[2]))
    stride, reach = deep.attrs["stride"][0], deep.attrs["dilation"][0] * (kernel - 1) + 1
    weights = sum(4 * int(str(n.operands[1].type.numel)) for n in (*first, narrow))
    best: Plan | None = None
    for rows in range(1, height + 1):
        need = (rows - 1) * stride + reach
        kept = min(rows_in, need + max(rows * stride, reach - stride)) if first else 0
        buffers = 4 * channels * (kept * width_in + rows * width)
        if buffers + weights > CACHE:
            break
        best = Plan(rows, kept, buffers)
        if rows * width >= 48:  # enough pixels for the tiles of the pointwise convolution
            break
    return best or "a step of one row does not fit a core's cache"


@dataclass(frozen=True)
class FuseChains(Pass):
    """Forms ``conv_chain``."""

    name: ClassVar[str] = "fuse_chains"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "conv_chain" not in OPS:
            return graph
        uses = graph.uses()
        chains: dict[int, list[Node]] = {}  # by the last node
        inside: set[int] = set()
        for n in graph.nodes:
            if not _pointwise(n):
                continue
            deep = n.operands[0].node
            if not _depthwise(deep) or len(uses[deep[0]]) != 1:
                continue
            before = deep.operands[0].node
            joined = _plain(before) and len(uses[before[0]]) == 1 and before.types[0].dtype is DType.f32
            stages = [*([before] if joined else []), deep, n]
            reason = self.why_not(stages)
            if reason is not None:
                report.decline(self.name, reason, n)
                continue
            chains[id(n)] = stages
            inside.update(id(m) for m in stages[:-1])
        if not chains:
            return graph
        b = Builder(graph.symbols)
        env: dict[Value, Value] = {i[0]: i[0] for i in graph.inputs}
        for n in graph.nodes:
            if id(n) in inside:
                continue
            if id(n) in chains:
                stages = chains[id(n)]
                operands = _operands(stages)
                body = body_of(stages, operands, [n[0]])
                made = b.node("conv_chain", [env[v] for v in operands], {"body": body}, loc=n.loc, name=n.name)
                report.count(f"{self.name}.convs", len(stages))
                report.count(f"{self.name}.formed")
                env[n[0]] = made[0]
                continue
            ins = tuple(None if v is None else env[v] for v in n.inputs)
            kept = n if ins == n.inputs else replace(n, inputs=ins)
            b.nodes.append(kept)
            env.update(zip(n.values, kept.values, strict=True))
        return replace(
            graph, nodes=tuple(b.nodes), outputs=tuple(env[v] for v in graph.outputs),
            commits=tuple(replace(c, value=env[c.value]) for c in graph.commits),
        ).without_dead()  # fmt: skip

    def why_not(self, stages: Sequence[Node]) -> str | None:
        """Why these convolutions stay apart, or None."""
        for n in stages:
            if n.types[0].dtype is not DType.f32:
                return f"a chain of {n.types[0].dtype}"
            if n.operands[1].node.op != "constant":
                return "weights that are not constant"
            steps = steps_of(n.attrs["body"], n.operands[2:]) if n.op == "conv_fused" else None
            if n.op == "conv_fused" and (steps is None or (n is not stages[-1] and steps.residual is not None)):
                return "its epilogue is more than a bias, a residual and a clamp"
        chosen = plan(stages)
        if isinstance(chosen, str):
            return chosen
        wide = stages[0].types[0] if len(stages) == 3 else stages[0].operands[0].type
        size = 4
        for d in wide.shape[1:]:
            size *= int(str(d))
        return None if size >= LARGE else f"only {size >> 10} KiB are between the convolutions"


def _operands(stages: Sequence[Node]) -> list[Value]:
    made = {id(n) for n in stages}
    out: dict[Value, None] = {stages[0].operands[0]: None}
    for n in stages:
        for v in n.operands:
            if id(v.node) not in made:
                out[v] = None
    return list(out)


def _plain(n: Node) -> bool:
    """A convolution without groups of rank 4, not transposed."""
    return (
        n.op in ("conv", "conv_fused") and n.attrs.get("output_padding") is None and n.attrs["groups"] == 1
        and n.types[0].rank == 4 and len(n.types) == 1
    )  # fmt: skip


def _depthwise(n: Node) -> bool:
    """One filter per channel."""
    if n.op not in ("conv", "conv_fused") or n.attrs.get("output_padding") is not None or n.types[0].rank != 4:
        return False
    w = n.operands[1].shape
    return n.attrs["groups"] > 1 and w[1] == 1 and w[0] == n.attrs["groups"] and len(n.types) == 1


def _pointwise(n: Node) -> bool:
    """A convolution that makes each pixel of one pixel."""
    return (
        _plain(n) and n.operands[1].shape[2:] == (1, 1) and tuple(n.attrs["stride"]) == (1, 1)
        and all(p == 0 for both in n.attrs["padding"] for p in both)
    )  # fmt: skip
