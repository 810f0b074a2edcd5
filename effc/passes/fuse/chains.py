"""A convolution, a depthwise convolution of its result and a pointwise one of that become ``conv_chain``: the inverted
bottleneck of MobileNetV2 and EfficientNet, and the stem before the first one.

The result between them is several times larger than what goes in and comes out. Unfused it is written to and read from
the last cache or memory twice; fused it stays with the core that makes it, a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...cost.alternatives import DYNAMIC, Ask, decide, ways_of
from ...cost.calls import Call, Tensor, dense_tensor
from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS, get
from ..manager import Pass, PassReport, in_subgraphs
from .regions import body_of
from .steps import steps_of

CACHE = 560 << 10  # bytes of a core's own cache that a chain's buffers and weights may take together
NEAR = 34 << 10  # bytes of a ring of rows, about what a first cache holds: a part of a step
PANEL = 16  # channels that are made together, at least, on most targets
PIXELS = 384  # of a part of a step: from here on its tiles and calls no longer count
STEP = 128 << 10  # bytes of a step's depthwise rows: from here on what its end costs no longer counts
LARGE = 384 << 10  # bytes between the convolutions from which on a chain pays


@dataclass(frozen=True)
class Plan:
    """How a chain is run: most output rows of a step, of which so many are a ``part``; rows of the first result that
    are kept, a ring; channels of it that are made at a time (whole panels of weights, so at least one); bytes of both
    buffers."""

    rows: int
    part: int
    kept: int
    cols: int
    buffers: int


def constant_sizes(shape: Sequence[Dim]) -> list[int] | None:
    """A shape of constant sizes, else None."""
    sizes = [d for d in shape if isinstance(d, int)]
    return sizes if len(sizes) == len(shape) else None


def plan(stages: Sequence[Node]) -> Plan | str:
    """The plan for two or three convolutions, or why there is none."""
    *first, deep, narrow = stages
    result = constant_sizes(deep.types[0].shape[1:])
    source = constant_sizes((first[0].types[0] if first else deep.operands[0].type).shape[1:])
    filters = [constant_sizes(n.operands[1].shape) for n in (*first, narrow)]
    taps = constant_sizes(deep.operands[1].shape[2:])
    if result is None or source is None or taps is None:
        return "sizes of its images are not constant"
    channels, height, width = result
    _, rows_in, width_in = source
    weights = sum(4 * math.prod(f) for f in filters if f is not None)
    stride, reach = deep.attrs["stride"][0], deep.attrs["dilation"][0] * (taps[0] - 1) + 1
    line, out_line = 4 * channels * width_in, 4 * max(1, channels * width)
    near = NEAR // (4 * PANEL * max(1, width_in))  # rows of a panel of channels
    room = CACHE - weights
    best: Plan | None = None
    spare = min(rows_in, max(reach, min(near, reach + stride))) if first else 0  # with less room a chain doesn't pay
    for most in range(1, height + 1) if room - spare * line >= out_line else ():
        part = -(-height // -(-height // most))  # parts of equal size
        need = (part - 1) * stride + reach
        kept = min(rows_in, need) if first else 0
        rows = (room - kept * line) // out_line
        if rows < part or (best and need > near):
            break
        rows = min(rows, height, max(part, -(-height // 8), -(-STEP // out_line)))
        rows = rows // part * part
        cols = max(1, NEAR // (4 * max(1, kept or need) * max(1, width_in)))
        best = Plan(rows, part, kept, cols, kept * line + rows * out_line)
        if part * stride * width_in >= PIXELS or not first:
            break
    return best or "a step of one row does not fit a core's cache"


IN_TURN = "a chain ends in its first convolution: depthwise and pointwise ones in turn gain too little"
APART, CHAIN = 0, 1  # the ways of conv_or_chain (effc/cost/alternatives.py)
STAGE_ATTRS = 8


def alternatives(stages: Sequence[Node], chosen: Plan, rule: int) -> list[Call] | str:
    """The convolutions as a region of ``conv_or_chain``, or why they are none. Attributes: how many they are, the plan
    (rows, kept, buffers), and of each channels, groups, window, stride, padding, dilation, the result's height, and
    what follows it (bias, residual, clamp as bits)."""
    tensors = [stages[0].operands[0].type, *(n.types[0] for n in stages)]
    if not all(isinstance(d, int) for t in tensors for d in t.shape):
        return DYNAMIC
    described: list[int] = []
    for n in stages:
        steps = steps_of(n.attrs["body"], n.operands[2:], activations=True) if n.op == "conv_fused" else None
        a = n.attrs
        described += [
            int(n.types[0].shape[1]), a["groups"], int(n.operands[1].shape[2]), a["stride"][0], a["padding"][0][0],
            a["dilation"][0], int(n.types[0].shape[2]), 0 if steps is None else steps.bits,
        ]  # fmt: skip
    b, c, h, w = (int(d) for d in tensors[0].shape)
    x = Tensor("f32", (b, c, h, w), (h * w * c, 1, w * c, c))
    weights = [dense_tensor("f32", [int(d) for d in n.operands[1].shape]) for n in stages]
    _, oc, *size = (int(d) for d in stages[-1].types[0].shape)
    out = dense_tensor("f32", (b, *size, oc))
    work = sum(int(get(n.op).cost_of([v.type for v in n.operands], n.types, n.attrs).flops) for n in stages)
    attrs = (len(stages), chosen.rows, chosen.kept, chosen.buffers, *described)
    return ways_of(Call("conv_or_chain", (x, *weights), (out,), attrs, 1 + len(stages), flops=work), rule)


@dataclass(frozen=True)
class FuseChains(Pass):
    """Forms ``conv_chain``. ``ask``: the cost model, which chooses where it can; else :data:`LARGE` does."""

    ask: Ask | None = None
    name: ClassVar[str] = "fuse_chains"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "conv_chain" not in OPS:
            return graph
        uses = graph.uses()
        taken: set[Node] = set()  # what chains end in, and what could have followed those

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            stages = self.stages(n, uses)
            if stages and stages[0] in taken:
                taken.add(n)
                report.decline(self.name, IN_TURN, n)
                return None
            if not stages:
                if (said := self.why_dense(n, uses)) is not None:
                    report.decline(self.name, said, n)
                return None
            reason = self.why_not(stages) or self.why_apart(stages, report)
            if reason is not None:
                report.decline(self.name, reason, n)
                return None
            taken.add(n)
            made = [replace(n, inputs=ins)]  # the same nodes as the rebuilt graph has them
            while len(made) < len(stages):
                made.insert(0, made[0].operands[0].node)
            operands = operands_of(made)
            report.count(f"{self.name}.convs", len(made))
            report.count(f"{self.name}.formed")
            chain: Value = b.op(
                "conv_chain", *operands, body=body_of(made, operands, [made[-1][0]]), loc=n.loc, name=n.name
            )
            return chain

        return graph.rebuild(rule)

    @staticmethod
    def stages(n: Node, uses: Mapping[Value, list[Node | None]]) -> list[Node]:
        """The convolutions of a chain that ends in ``n``; none where ``n`` ends none."""
        if not is_pointwise(n):
            return []
        deep = n.operands[0].node
        if not is_depthwise(deep) or len(uses[deep[0]]) != 1:
            return []
        first = deep.operands[0].node
        joined = is_plain(first) and len(uses[first[0]]) == 1
        return [*([first] if joined else []), deep, n]

    @staticmethod
    def why_dense(n: Node, uses: Mapping[Value, list[Node | None]]) -> str | None:
        """Why a convolution that follows another one without a depthwise one between them (a residual block) forms no
        chain with it; None for what is no such pair. A core makes some 5 operations in the time in which it moves a
        byte to the last cache and back; an inverted bottleneck has 6 for each that its chain saves."""
        if not is_plain(n) or not n.operands[0].node.inputs or not is_plain(before := n.operands[0].node):
            return None
        between = n.operands[0]
        work = [get(m.op).cost_of([v.type for v in m.operands], m.types, m.attrs).flops for m in (before, n)]
        size = 2 * between.type.nbytes
        if len(uses[between]) != 1 or not all(isinstance(d, int) for d in (*work, size)) or not size:
            return None
        each = sum(int(d) for d in work) // int(size)
        return f"no depthwise convolution before it: {each} operations for each byte that a chain would save"

    def why_not(self, stages: Sequence[Node]) -> str | None:
        """Why these convolutions stay apart, or None."""
        for n in stages:
            if n.types[0].dtype is not DType.f32:
                return f"a chain of {n.types[0].dtype}"
            if n.operands[1].node.op != "constant":
                return "weights that are not constant"
            steps = steps_of(n.attrs["body"], n.operands[2:], activations=True) if n.op == "conv_fused" else None
            if n.op == "conv_fused" and (steps is None or (n is not stages[-1] and steps.residual is not None)):
                return "its epilogue is more than a bias, a residual, a clamp and a function of what that is"
        chosen = plan(stages)
        return chosen if isinstance(chosen, str) else None

    def why_apart(self, stages: Sequence[Node], report: PassReport) -> str | None:
        """Why convolutions that could be a chain are better apart, or None."""
        chosen = plan(stages)
        assert isinstance(chosen, Plan)
        wide = stages[0].types[0] if len(stages) == 3 else stages[0].operands[0].type
        size = 4 * math.prod(constant_sizes(wide.shape[1:]) or ())
        rule = CHAIN if size >= LARGE else APART
        why = f"{size >> 10} KiB are between the convolutions"
        ways = alternatives(stages, chosen, rule)
        if decide(self.ask, ways, rule, "conv_or_chain", why, stages[-1], report) == CHAIN:
            return None
        return f"only {why}" if rule == APART else f"the cost model keeps them apart: {why}"


def operands_of(stages: Sequence[Node]) -> list[Value]:
    made = {id(n) for n in stages}
    out: dict[Value, None] = {stages[0].operands[0]: None}
    for n in stages:
        for v in n.operands:
            if id(v.node) not in made:
                out[v] = None
    return list(out)


def is_plain(n: Node) -> bool:
    """A convolution without groups of rank 4, not transposed."""
    return (
        n.op in ("conv", "conv_fused") and n.attrs.get("output_padding") is None and n.attrs["groups"] == 1
        and n.types[0].rank == 4 and len(n.types) == 1
    )  # fmt: skip


def is_depthwise(n: Node) -> bool:
    """One filter per channel."""
    if n.op not in ("conv", "conv_fused") or n.attrs.get("output_padding") is not None or n.types[0].rank != 4:
        return False
    w = n.operands[1].shape
    return n.attrs["groups"] > 1 and w[1] == 1 and w[0] == n.attrs["groups"] and len(n.types) == 1


def is_pointwise(n: Node) -> bool:
    """A convolution that makes each pixel of one pixel."""
    return (
        is_plain(n) and n.operands[1].shape[2:] == (1, 1) and tuple(n.attrs["stride"]) == (1, 1)
        and all(p == 0 for both in n.attrs["padding"] for p in both)
    )  # fmt: skip
