"""A convolution, a depthwise convolution of its result and a pointwise one of that become ``conv_chain``: the inverted
bottleneck of MobileNetV2 and EfficientNet, and the stem before the first one. Where all of the depthwise result is
needed before anything reads it (squeeze and excite), the first two do.

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
from ...ir import dims
from ...ir.dims import Bounds, Dim
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
LARGE = 384 << 10  # bytes between the convolutions from which on a chain pays; of one without a last one, two thirds
SOURCE = 512 << 10  # bytes of x that a step takes which every block of channels reads anew


@dataclass(frozen=True)
class Plan:
    """How a chain is run: most output rows of a step, of which so many are a ``part``; rows of the first result that
    are kept, a ring; channels of it that are made at a time (whole panels of weights, so at least one); bytes of both
    buffers; bytes that are left in a core's cache where a step is the fewest rows that pay: negative where a chain
    doesn't. Of images of any size these are expressions."""

    rows: Dim
    part: Dim
    kept: Dim
    cols: Dim
    buffers: Dim
    spare: Dim


def constant_sizes(shape: Sequence[Dim]) -> list[int] | None:
    """A shape of constant sizes, else None."""
    sizes = [d for d in shape if isinstance(d, int)]
    return sizes if len(sizes) == len(shape) else None


def roles(stages: Sequence[Node]) -> tuple[Node | None, Node, Node | None]:
    """The convolution before the depthwise one, that one, and the one after it."""
    at = next(i for i, n in enumerate(stages) if is_depthwise(n))
    return stages[0] if at else None, stages[at], stages[-1] if len(stages) > at + 1 else None


def plan(stages: Sequence[Node]) -> Plan | str:
    """The plan for two or three convolutions, or why there is none."""
    first, deep, narrow = roles(stages)
    channels, height, width = deep.types[0].shape[1:]
    _, rows_in, width_in = (first.types[0] if first else deep.operands[0].type).shape[1:]
    filters = [constant_sizes(n.operands[1].shape) for n in (first, narrow) if n is not None]
    taps = constant_sizes(deep.operands[1].shape[2:])
    if taps is None or not isinstance(channels, int) or any(f is None for f in filters):
        return "sizes of its filters are not constant"
    weights = sum(4 * math.prod(f) for f in filters if f is not None)
    stride, reach = deep.attrs["stride"][0], deep.attrs["dilation"][0] * (taps[0] - 1) + 1
    if narrow is None:
        assert first is not None
        line = 4 * first.operands[0].shape[1] * first.operands[0].shape[3] * first.attrs["stride"][0] * stride
        made = deep_plan_of((height, width), (rows_in, width_in), stride, reach, line)
    else:
        room = CACHE - weights
        made = plan_of(first is not None, room, channels, (height, width), (rows_in, width_in), stride, reach)
    empty = isinstance(height, int) and height < 1
    return "a step of one row does not fit a core's cache" if empty or not may_fit(made.spare) else made


def may_fit(spare: Dim) -> bool:
    """Whether so many bytes can be there at all."""
    return dims.bounds(spare, {})[1] >= 0


def plan_of(
    first: bool, room: Dim, channels: int, size: tuple[Dim, Dim], source: tuple[Dim, Dim], stride: int, reach: int
) -> Plan:
    """The plan for a depthwise convolution of ``source`` (height, width) to ``size`` in ``room`` bytes, whose windows
    are ``reach`` rows high; ``first``: it reads another convolution's result. Where only the sizes of a run tell
    that less than :data:`LARGE` bytes are between them, a thread's buffers have room for a third of those, or one row:
    a compilation for the size would leave the convolutions apart, and a few threads take no more than those would.

    Parts divide the height evenly. Of those that have :data:`PIXELS` the smallest is taken, or the largest whose ring
    is in reach of the first cache and leaves room for the part's result. With n parts of ceil(h / n) rows, at least p
    are in each for n <= (h - 1) // (p - 1), and at most p for n >= ceil(h / p)."""
    height, width, width_in = (dims.maximum(1, d) for d in (*size, source[1]))
    line, out_line = 4 * channels * source[1], 4 * channels * width
    near = NEAR // (4 * PANEL * width_in)  # rows of a panel of channels
    spare, total = room, source[0] * line
    if not isinstance(total, int):
        room = dims.minimum(room, total // 3 + CACHE * dims.minimum(1, dims.maximum(0, total - LARGE + 1)))
    part: Dim = 1
    kept: Dim = 0
    fewest: Dim = 0
    if first:
        wanted = dims.ceildiv(PIXELS, stride * width_in) - 1
        parts = dims.maximum(1, (height - 1) // dims.maximum(1, wanted))
        part = dims.minimum(dims.ceildiv(height, parts), 1 + wanted * height)  # where one row has the pixels: 1
        whole = (room - source[0] * line) // out_line  # beside a ring of all rows
        most = dims.maximum((room - (reach - stride) * line) // (out_line + stride * line), whole)
        most = dims.minimum(most, dims.maximum(1, (near - reach) // stride + 1))
        parts = dims.ceildiv(height, dims.maximum(1, dims.minimum(most, height)))
        part = dims.minimum(part, dims.ceildiv(height, parts))
        kept = dims.minimum(source[0], (part - 1) * stride + reach)
        fewest = dims.minimum(source[0], dims.maximum(reach, dims.minimum(near, reach + stride)))
    rows = dims.maximum(part, dims.maximum(dims.ceildiv(height, 8), dims.ceildiv(STEP, out_line)))
    rows = dims.minimum(dims.minimum(rows, height), dims.maximum(part, (room - kept * line) // out_line))
    rows = rows // part * part
    cols = dims.maximum(1, NEAR // (4 * dims.maximum(1, kept if first else reach) * width_in))
    return Plan(rows, part, kept, cols, kept * line + rows * out_line, spare - fewest * line - out_line)


def deep_plan_of(size: tuple[Dim, Dim], source: tuple[Dim, Dim], stride: int, reach: int, line: Dim) -> Plan:
    """The plan of a chain that ends in its depthwise convolution, as :func:`plan_of`, without a buffer for its result
    and with a ring for a block of channels alone, which is filled anew for every block and step. ``line``: bytes of x
    for a row of the result. ``buffers`` is what one channel takes."""
    height, width_in = dims.maximum(1, size[0]), dims.maximum(1, source[1])
    near = NEAR // (4 * PANEL * width_in)
    wanted = dims.ceildiv(PIXELS, stride * width_in) - 1
    parts = dims.maximum(1, (height - 1) // dims.maximum(1, wanted))
    part = dims.minimum(dims.ceildiv(height, parts), 1 + wanted * height)  # as in plan_of
    most = dims.minimum(dims.maximum(1, (near - reach) // stride + 1), height)
    part = dims.minimum(part, dims.ceildiv(height, dims.ceildiv(height, most)))
    kept = dims.minimum(source[0], (part - 1) * stride + reach)
    rows = dims.maximum(dims.ceildiv(height, 8), SOURCE // dims.maximum(1, line))
    rows = dims.maximum(part, dims.minimum(rows, height))
    cols = dims.maximum(1, NEAR // (4 * dims.maximum(1, kept) * width_in))
    return Plan(rows, part, kept, cols, 4 * kept * width_in, CACHE - 4 * PANEL * reach * width_in)


IN_TURN = "a chain ends in its first convolution: depthwise and pointwise ones in turn gain too little"
APART, CHAIN = 0, 1  # the ways of conv_or_chain (effc/cost/alternatives.py)
STAGE_ATTRS = 8


def alternatives(stages: Sequence[Node], chosen: Plan, rule: int) -> list[Call] | str:
    """The convolutions as a region of ``conv_or_chain``, or why they are none. Attributes: how many they are, the plan
    (rows, kept, buffers), and of each channels, groups, window, stride, padding, dilation, the result's height, and
    what follows it (bias, residual, clamp as bits)."""
    if roles(stages)[2] is None:
        return "chains that end in a depthwise convolution were not measured in numbers"
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
    attrs = (len(stages), int(chosen.rows), int(chosen.kept), int(chosen.buffers), *described)
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
        from .pairs import FusePairs

        uses = graph.uses()
        taken: set[Node] = set()  # what chains end in, and what could have followed those

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            stages = self.stages(n, uses)
            if stages and is_depthwise(n) and FusePairs().fits(stages[0], n, uses):
                return None
            if stages and stages[0] in taken:
                taken.add(n)
                report.decline(self.name, IN_TURN, n)
                return None
            if not stages:
                if (said := self.why_dense(n, uses)) is not None:
                    report.decline(self.name, said, n)
                return None
            reason = self.why_not(stages) or self.why_apart(stages, graph.symbols, report)
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
        if is_depthwise(n):
            first, readers = n.operands[0].node, uses[n[0]]
            after = readers[0] if len(readers) == 1 else None
            joined = is_plain(first) and len(uses[first[0]]) == 1
            return [first, n] if joined and not (after is not None and FuseChains.stages(after, uses)) else []
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
        narrow = roles(stages)[2]
        for n in stages:
            if n.types[0].dtype is not DType.f32:
                return f"a chain of {n.types[0].dtype}"
            if n.operands[1].node.op != "constant":
                return "weights that are not constant"
            steps = steps_of(n.attrs["body"], n.operands[2:], activations=True) if n.op == "conv_fused" else None
            if n.op == "conv_fused" and (steps is None or (n is not narrow and steps.residual is not None)):
                return "its epilogue is more than a bias, a residual, a clamp and a function of what that is"
        chosen = plan(stages)
        return chosen if isinstance(chosen, str) else None

    def why_apart(self, stages: Sequence[Node], ranges: Mapping[str, Bounds], report: PassReport) -> str | None:
        """Why convolutions that could be a chain are better apart, or None. Of images of any size they are a chain if
        they would be one at some of the sizes."""
        chosen = plan(stages)
        assert isinstance(chosen, Plan)
        size = between(stages)
        if isinstance(size, int):
            rule = CHAIN if size >= least(stages) else APART
            why = f"{size >> 10} KiB are between the convolutions"
        else:
            rule = CHAIN if dims.bounds(gain_of(stages), ranges)[1] >= 0 else APART
            which = "images may have" if rule == CHAIN else "no image has"
            why = f"{which} {least(stages) >> 10} KiB between the convolutions and steps that fit a core's cache"
        ways = alternatives(stages, chosen, rule)
        if decide(self.ask, ways, rule, "conv_or_chain", why, stages[-1], report) == CHAIN:
            return None
        if not isinstance(size, int):
            return why
        return f"only {why}" if rule == APART else f"the cost model keeps them apart: {why}"


def least(stages: Sequence[Node]) -> int:
    """Bytes between the convolutions from which on a chain pays."""
    return LARGE if roles(stages)[2] is not None else LARGE * 2 // 3


def between(stages: Sequence[Node]) -> Dim:
    """Bytes of an image between the convolutions."""
    wide = roles(stages)[1].operands[0].type
    return 4 * dims.product(wide.shape[1:])


def gain_of(stages: Sequence[Node]) -> Dim:
    """Negative for images of a size that is better left to the convolutions apart."""
    chosen = plan(stages)
    assert isinstance(chosen, Plan)
    return dims.minimum(between(stages) - least(stages), chosen.spare)


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
