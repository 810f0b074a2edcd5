"""Products with constant weights and fused regions along rows become ``row_chain``: what one core can do with a block
of rows while it stays in its cache. In a transformer that is all from one attention to the next: projection, residual,
norm, the feed-forward pair with its activation and residual, norm, and the next layer's query, key and value.

Unfused, each of these writes all rows before the next reads them; fused, the hidden rows of the feed-forward pair and
the normalised rows never leave the core that makes them. In exchange every block reads all weights, from the last
cache: it pays where what is between the kernels would not stay there, which is known when the number of rows is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...cost.alternatives import DYNAMIC, Ask, decide, ways_of
from ...cost.calls import Call, dense_tensor
from ...cost.decide import Decision
from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS
from ..manager import Pass, PassReport, in_subgraphs
from .few_rows import split
from .groups import Groups, Made
from .kinds import is_scalar
from .regions import body_of

CACHE = 384 << 10  # bytes of a core's own cache that a block's rows may take
WEIGHTS = 32 << 20  # bytes of weights that stay in the last cache from one block to the next
LARGE = 4 << 20  # bytes between the kernels from which on a chain pays
LEAST = 24  # rows of a block from which on its products pay for reading all weights
MOST = 96  # more are not faster, and fewer blocks are harder to divide evenly
LINE = 16  # elements of a cache line

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Plan:
    """How a chain is run: rows of a block, where each value between stages begins in a row's part of them (in
    elements), and how long that part is."""

    rows: int
    places: Mapping[Value, int]
    floats: int

    @property
    def large(self) -> int:
        """Rows from which on the chain is run in blocks."""
        return -(-LARGE // (4 * max(1, self.floats)))

    @staticmethod
    def pitch(v: Value) -> int:
        """Elements from one row to the next: an odd number of cache lines, so that rows fall into different sets."""
        return (-(-_width(v) // LINE) | 1) * LINE


def _width(v: Value) -> int:
    n = v.shape[-1]
    assert isinstance(n, int)
    return n


def plan(nodes: Sequence[Node], outputs: Sequence[Value]) -> Plan | str:
    """The plan for nodes in the order in which they run, or why there is none. ``outputs``: values that are kept."""
    kept = set(outputs)
    last: dict[Value, int] = {}
    for i, n in enumerate(nodes):
        last.update(dict.fromkeys((*n.operands, *n.values), i))
    places: dict[Value, int] = {}
    floats = 0
    for i, n in enumerate(nodes):
        for v in n.values:
            if v in kept or n.op == "constant":
                continue
            living = sorted((at, at + Plan.pitch(x)) for x, at in places.items() if last[x] >= i)
            at = 0
            for begin, end in living:
                if begin - at >= Plan.pitch(v):
                    break
                at = max(at, end)
            places[v] = at
            floats = max(floats, at + Plan.pitch(v))
    lead = outputs[0].shape[:-1]
    outside = [v for n in nodes for v in n.operands if v.node not in nodes and v.rank and v.shape[:-1] == lead]
    width = floats + max((_width(v) for v in (*outputs, *outside)), default=0)
    rows = min(MOST, CACHE // (4 * max(1, width)))
    if rows < LEAST:
        return f"only {rows} rows with all that is between the kernels would fit a core's cache"
    return Plan(rows, places, floats)


APART, CHAIN = 0, 1  # the ways of rows_or_chain (effc/cost/alternatives.py)


def alternatives(
    nodes: Sequence[Node],
    operands: Sequence[Value],
    results: Sequence[Value],
    chosen: Plan,
    rule: int,
    at: int | None = None,
) -> list[Call] | str:
    """The nodes as a region of ``rows_or_chain``, or why they are none. Attributes: rows (``at`` so many, if given),
    rows of a block, elements of a row between the kernels, bytes of weights, products, regions, the sum and the most of
    the products' columns, the most of their steps."""
    lead = nodes[0].types[0].shape[:-1]
    if at is None and not all(isinstance(d, int) for d in lead):
        return DYNAMIC
    rows = math.prod(d for d in lead if isinstance(d, int)) if at is None else at
    products = [n for n in nodes if n.op != "fused"]
    weights = [n.operands[1] for n in products]
    cols, steps = [_width(n[0]) for n in products], [_width(n.operands[0]) for n in products]
    data = sum(4 * c * s for c, s in zip(cols, steps, strict=True))
    ins = [dense_tensor("f32", (rows, _width(v))) for v in operands if v.rank and v.shape[:-1] == lead]
    ins.append(dense_tensor("f32", (data // 4,)))
    outs = tuple(dense_tensor("f32", (rows, _width(v))) for v in results)
    attrs = (rows, chosen.rows, chosen.floats, data, len(weights), len(nodes) - len(products), sum(cols), max(cols))
    flops = sum(2 * rows * c * s for c, s in zip(cols, steps, strict=True))
    region = Call("rows_or_chain", tuple(ins), outs, (*attrs, max(steps)), len(ins), flops=flops)
    return ways_of(region, rule)


def _is_chain(made: Decision) -> bool:
    return bool(made.seconds) and made.index == CHAIN


def blocks_from(
    nodes: Sequence[Node], operands: Sequence[Value], results: Sequence[Value], chosen: Plan, ask: Ask | None
) -> int:
    """Rows from which on a chain of an unknown number of rows is run in blocks: below, each stage runs by itself on all
    rows. That is what the cost model would choose if it knew the number: the least from which on it wants a chain, up
    to :attr:`Plan.large`, and that without a model."""
    if ask is None:
        return chosen.large

    def chain(rows: int) -> bool:
        ways = alternatives(nodes, operands, results, chosen, APART, rows)
        return not isinstance(ways, str) and _is_chain(ask(ways))

    low, high = 0, chosen.large
    for rows in (n for k in range(high.bit_length(), 1, -1) for n in (3 << k >> 1, 1 << k)):
        if rows >= high:
            continue
        if not chain(rows):
            low = rows
            break
        high = rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chain(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class FuseRows(Pass):
    """Forms ``row_chain``. ``ask``: the cost model, which chooses where it can; else :data:`LARGE` does. ``both``:
    where the number of rows varies, few rows go through the chain's nodes instead (:mod:`.few_rows`)."""

    ask: Ask | None = None
    both: bool = True
    name: ClassVar[str] = "fuse_rows"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "row_chain" not in OPS:
            return graph
        groups = Groups(graph)
        lead: dict[int, Shape] = {}  # dims that are rows, of each node that can be a stage
        for i, n in enumerate(graph.nodes):
            if n.op not in ("matmul", "matmul_fused", "fused"):
                continue
            reason = why_no_stage(n, groups.uses)
            if reason is None:
                lead[i] = n.types[0].shape[:-1]
                self.grow(groups, i, lead, report)
            elif n.op != "fused":
                report.decline(self.name, reason, n)
        chains = [g for g in groups.members.values() if self.pays(g, groups, report)]
        if not chains:
            return graph

        def make(nodes: Sequence[Node], operands: Sequence[Value], results: Sequence[Value]) -> Made:
            report.count(f"{self.name}.formed")
            report.count(f"{self.name}.products", sum(n.op != "fused" for n in nodes))
            report.count(f"{self.name}.regions", sum(n.op == "fused" for n in nodes))
            lead, large = nodes[0].types[0].shape[:-1], 0
            if not all(isinstance(d, int) for d in lead):
                found = plan(nodes, results)
                assert isinstance(found, Plan)  # the group has grown by it
                large = blocks_from(nodes, operands, results, found, self.ask)
            return "row_chain", {"body": body_of(nodes, operands, results), "blocks_from": large}

        fused = groups.rebuilt(chains, make)
        return fused.rebuild(lambda b, n, ins: self.split(b, n, ins, report)) if self.both else fused

    def split(self, b: Builder, n: Node, ins: Sequence[Value | None], report: PassReport) -> tuple[Value, ...] | None:
        if n.op != "row_chain" or n.attrs["blocks_from"] <= 1:
            return None
        report.count(f"{self.name}.split")
        return split(b, n, [v for v in ins if v is not None], n.attrs["blocks_from"])

    def grow(self, g: Groups, i: int, lead: Mapping[int, Shape], report: PassReport) -> None:
        """Node ``i`` joins the nearest group that it takes values from, or begins one."""
        n = g.nodes[i]
        before = sorted({g.index.get(id(v.node), -1) for v in n.operands} & set(lead), reverse=True)
        for group in dict.fromkeys(g.group[p] for p in before):
            region = {*g.members[group], i}
            reason = self.why_not(g, region, i) if lead[g.members[group][0]] == lead[i] else "it has other rows"
            if reason is None:
                g.members[group].append(i)
                g.group[i] = group
                return
            report.decline(self.name, reason, n)
        g.members[i], g.group[i] = [i], i

    def why_not(self, g: Groups, region: set[int], new: int) -> str | None:
        """Why node ``new`` stays out of the region, or None."""
        nodes = [g.nodes[i] for i in sorted(region)]
        if g.leaves_and_returns(region, region - {new}, new):
            return "another kernel between them needs the value first"
        constants = [_constant(n.operands[1]) for n in nodes if n.op != "fused"]
        weights = sum(v.node.attrs["data"].nbytes for v in constants if v is not None)
        if weights > WEIGHTS:
            return f"{weights >> 20} MiB of weights would not stay in the last cache from one block of rows to the next"
        found = plan(nodes, g.results(region))
        return found if isinstance(found, str) else None

    def pays(self, group: Sequence[int], g: Groups, report: PassReport) -> bool:
        nodes = [g.nodes[i] for i in group]
        products = [n for n in nodes if n.op != "fused"]
        if not products:
            return False
        if len(nodes) < 2:
            report.decline(self.name, "nothing beside it works on the same rows", nodes[0])
            return False
        region = set(group)
        results = g.results(region)
        found = plan(nodes, results)
        assert isinstance(found, Plan)  # the group has grown by it
        lead = [d for d in nodes[0].types[0].shape[:-1] if isinstance(d, int)]
        few = len(lead) == nodes[0].types[0].rank - 1 and math.prod(lead) < found.large
        size = 4 * math.prod(lead) * found.floats
        rule, why = APART if few else CHAIN, f"{size >> 10} KiB are between the kernels"
        ways = alternatives(nodes, g.operands(nodes, region), results, found, rule)
        if decide(self.ask, ways, rule, "rows_or_chain", why, products[0], report) == CHAIN:
            return True
        said = f"only {why}" if rule == APART else f"the cost model keeps them apart: {why}"
        report.decline(self.name, said, products[0])
        return False


def _constant(v: Value) -> Value | None:
    """The constant under permutes and reshapes, or None."""
    while v.node.op in ("permute", "reshape"):
        v = v.node.operands[0]
    return v if v.node.op == "constant" else None


def only_multiplied(v: Value, uses: Mapping[Value, list[Node | None]]) -> bool:
    """Every use of these data, through views and into chains, is the right-hand side of a product."""
    for u in uses.get(v, []):
        if u is None:
            return False
        if u.op in ("permute", "reshape"):
            fits = only_multiplied(u[0], uses)
        elif u.op == "row_chain":
            body: Graph = u.attrs["body"]
            inside = body.uses()
            fits = all(only_multiplied(n[0], inside) for n, x in zip(body.inputs, u.operands, strict=True) if x == v)
        else:
            fits = u.op in ("matmul", "matmul_fused") and all(x != v or i == 1 for i, x in enumerate(u.operands))
        if not fits:
            return False
    return True


def why_no_stage(n: Node, uses: Mapping[Value, list[Node | None]]) -> str | None:
    """Why this product or fused region cannot be a stage of a chain, or None."""
    lead = n.types[0].shape[:-1]
    if not lead:
        return "it has no rows"
    if any(t.dtype is not DType.f32 for t in n.types):
        return f"results of {n.types[0].dtype}"
    if n.op == "fused":
        reason, extras = _why_no_rows(n, lead) or _why_no_lookups(n, lead), tuple(_read_by_rows(n))
    else:
        x, w = n.operands[:2]
        reason, extras = None, n.operands[2:]
        found = _constant(w)
        if found is None or w.rank != 2:
            reason = "weights that are not constant"
        elif is_scalar(found):
            reason = "weights of one element"
        elif (
            not isinstance(x.shape[-1], int)
            or x.shape[:-1] != lead
            or any(t.shape != n.types[0].shape for t in n.types)
        ):
            reason = "a result of other rows than the left-hand side's"
        elif not only_multiplied(found, uses):
            reason = "the weights are read by other ops too"
        elif found.node.attrs["data"].size >= SPLIT_STEPS * _width(n[0]) and _width(n[0]) < SPLIT_COLUMNS:
            reason = "with few columns and a long sum, its order of additions depends on the number of rows"
    if reason is None and not all(_fits(v.shape, lead) for v in extras):
        reason = "an operand that differs along some rows only"
    return reason


SPLIT_STEPS, SPLIT_COLUMNS = 4096, 512  # gemm.hpp splits sums as long as this where columns are fewer


def _fits(shape: Shape, lead: Shape) -> bool:
    """An operand's rows are the chain's, or it has one for all of them."""
    ahead = shape[:-1]
    return len(shape) <= len(lead) + 1 and (ahead == lead or all(d == 1 for d in ahead))


def _read_by_rows(n: Node) -> list[Value]:
    """The operands of a fused region but for those that only its lookups have."""
    body: Graph = n.attrs["body"]
    looked = {v for m in body.nodes if m.op == "take" for v in m.operands}
    read = {v for m in body.nodes if m.op != "take" for v in m.operands}
    return [v for i, v in zip(body.inputs, n.operands, strict=True) if i[0] in read or i[0] not in looked]


def _why_no_lookups(n: Node, lead: Shape) -> str | None:
    """Why a fused region's lookups are not of one row for each row, or None."""
    body: Graph = n.attrs["body"]
    outer = {i[0]: v for i, v in zip(body.inputs, n.operands, strict=True)}
    for m in body.nodes:
        if m.op != "take":
            continue
        table, index = (outer[v] for v in m.operands)
        if table.node.op != "constant" or table.rank != 2 or m.attrs["dim"] != 0:
            return "a lookup in a table that is no constant matrix"
        if not _fits((*index.shape, 1), lead):
            return "indices that differ along some rows only"
    return None


def _why_no_rows(n: Node, lead: Shape) -> str | None:
    """Why a fused region is not one along rows of a constant width."""
    body: Graph = n.attrs["body"]
    reductions = [m for m in body.nodes if m.op == "reduce"]
    full = reductions[0].operands[0].shape if reductions else (*lead, n.types[0].shape[-1])
    if any(tuple(m.attrs["dims"]) != (len(full) - 1,) for m in reductions):
        return "a reduction along another dim"
    width = full[-1]
    if not isinstance(width, int) or not 1 < width < 1 << 16:
        return "rows of another than a constant length"
    for t in n.types:
        if t.shape[:-1] != lead or len(t.shape) != len(full) or t.shape[-1] not in (1, width):
            return "a result of other rows"
    return None if full[:-1] == lead else "a reduction of other rows"
