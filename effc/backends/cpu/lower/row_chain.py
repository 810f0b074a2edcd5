"""``row_chain``: products and row-wise regions as one kernel that runs on blocks of rows (kernels/row_chain.hpp)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....ir.dims import Dim, maximum, minimum, product
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ....passes.fuse.rows import Plan, plan
from .. import codegen, microkernels
from ..packing import gemm as packing
from . import Buf, Lowering, lowers, row_major, views
from .contraction import _flag, packed_constant
from .fused import Loop

NEXT, RESULT = -1, -2  # kNext, kResult of row_chain.hpp
MOST_ATTRS, MOST_OPERANDS = 64, 24  # of a stage, as there


class _Apart(Exception):
    """Why the chain's nodes have to be lowered one by one."""


@dataclass
class _Stage:
    """A call on rows. ``operands``: what row_chain.hpp has of each operand and result, four numbers."""

    kernel: str
    epilogue: str | None
    own: int
    ins: list[list[Dim]] = field(default_factory=list)
    outs: list[list[Dim]] = field(default_factory=list)
    attrs: list[Dim] = field(default_factory=list)
    rows_at: int = -1
    thread_scratch: Dim = 0

    def described(self) -> list[Dim]:
        operands = [x for o in (*self.ins, *self.outs) for x in o]
        head: list[Dim] = [len(self.ins), self.own, len(self.outs), len(self.attrs), self.rows_at, self.thread_scratch]
        return [*head, *operands, *self.attrs]


class _Chain:
    """The stages of one node, while they are made."""

    def __init__(self, cx: Lowering, node: Node, chosen: Plan) -> None:
        self.cx, self.node, self.plan = cx, node, chosen
        self.body: Graph = node.attrs["body"]
        self.outer = {n[0]: v for n, v in zip(self.body.inputs, node.operands, strict=True)}
        self.result = {v: i for i, v in enumerate(self.body.outputs)}
        self.lead = self.body.outputs[0].shape[:-1]
        self.rows = product(self.lead)
        # Where the number of rows is known, the pass has decided that they are enough to be run in blocks.
        large = node.attrs.get("blocks_from", 0) or chosen.large
        self.large = min(large, self.rows) if isinstance(self.rows, int) else large
        self.few = _flag(self.large - self.rows)
        self.ins: list[Buf] = []
        self.stages: list[_Stage] = []

    def seen(self, v: Value, rank: int, width: Dim) -> tuple[list[Dim], int]:
        """An operand as the kernel's attributes have it, and its stride along a row (0, 1 or ANY). Operands from
        outside are put on the list, on ``width`` columns."""
        if v not in self.outer:
            own = v.shape[-1]
            place: Dim = self.plan.places[v] if v in self.plan.places else RESULT - self.result[v]
            return [place, rank, own, self.plan.pitch(v)], 0 if own == 1 else 1
        x = self.cx.strided(self.outer[v])
        shape = (1,) * (len(self.lead) + 1 - x.rank) + tuple(x.shape)
        rows = self.rows if shape[:-1] == tuple(self.lead) else 1
        strides = views.reshape_strides(x.shape, x.strides, (rows, x.shape[-1] if x.rank else 1))
        if strides is None or (rows == 1 and any(d != 1 for d in shape[:-1])):
            raise _Apart("an operand's rows do not lie at equal distances")
        flat = self.cx.view(x, (rows, shape[-1]), strides)
        flat = views.broadcast(self.cx, flat, (self.rows, width))
        ahead = (1,) * (rank - 2)
        self.ins.append(self.cx.view(flat, (*ahead, *flat.shape), (*[0] * (rank - 2), *flat.strides)))
        last = flat.strides[1]
        return [NEXT, 0, 0, 0], last if last in (0, 1) else codegen.ANY  # type: ignore[return-value]

    def looked_up(self, loop: Loop, width: Dim) -> list[int]:
        """Puts tables, then indices, on the list, on ``width`` columns; their strides along a row."""
        for table in loop.tables:
            x = self.cx.strided(self.outer[table])
            self.ins.append(self.cx.view(x, (self.rows, width), (0, x.strides[1])))
        for index in loop.indices:
            x = self.cx.strided(self.outer[index])
            shape = (1,) * (len(self.lead) - x.rank) + tuple(x.shape)
            rows = self.rows if shape == tuple(self.lead) else 1
            strides = views.reshape_strides(x.shape, x.strides, (rows,))
            if strides is None:
                raise _Apart("an operand's rows do not lie at equal distances")
            step = strides[0] if rows is self.rows else 0
            self.ins.append(self.cx.view(x, (self.rows, width), (step, 0)))
        return [*(1 for _ in loop.tables), *(0 for _ in loop.indices)]

    def product(self, n: Node) -> _Stage:
        x, w = n.operands[:2]
        packed = packed_constant(self.cx, n, self.outer[w], ())
        if packed is None:
            raise _Apart("its weights cannot be packed")
        width = n.types[0].shape[-1]
        blocking = packing.Blocking()
        s = _Stage("effc_matmul_packed_f32", None, 2)
        s.ins.append(self.seen(x, 4, x.shape[-1])[0])
        self.ins.append(packed[0])
        s.ins.append([NEXT, 0, 0, 0])
        extras = [self.seen(v, 4, width) for v in n.operands[2:]]
        s.ins += [place for place, _ in extras]
        s.outs = [self.seen(v, 4, width)[0] for v in n.values]
        s.attrs = [*packed[1], *blocking.attrs]
        if n.op == "matmul_fused":
            patterns = [1, *(stride for _, stride in extras), *(1 for _ in n.values)]
            s.epilogue, dv = codegen.map_kernel(self.cx.generated, n.attrs["body"], patterns, DType.f32, epilogue=True)
            s.attrs += dv
        # Few rows all together, else blocks of at most so many.
        together = self.plan.rows + self.few * (self.large - self.plan.rows)
        s.thread_scratch = packing.thread_scratch(
            DType.f32, self.cx.target.vlen, blocking, rows=minimum(self.rows, together), k=x.shape[-1],
            n=width, mr=microkernels.choose(self.cx.target, "matmul", DType.f32).mr,
        )  # fmt: skip
        return s

    def region(self, n: Node) -> _Stage:
        body: Graph = n.attrs["body"]
        width = max(
            (v.shape[-1] for v in (*body.outputs, *n.operands) if v.rank), key=lambda d: d if isinstance(d, int) else 0
        )
        reductions = [m for m in body.nodes if m.op == "reduce"]
        if reductions:
            width = reductions[0].operands[0].shape[-1]
        loop = Loop.of(body, n.operands)
        ins = [self.seen(v, 2, width) for v in loop.plain]
        ins += [([NEXT, 0, 0, 0], stride) for stride in self.looked_up(loop, width)]
        outs = [self.seen(v, 2, width) for v in n.values]
        patterns = [stride for _, stride in (*ins, *outs)]
        s = _Stage("", None, len(ins), [p for p, _ in ins], [p for p, _ in outs])
        lookups = loop.lookups(self.cx, self.outer)
        if not reductions:
            s.kernel, s.attrs = codegen.map_kernel(self.cx.generated, loop.body, patterns, lookups=lookups)
            return s
        if any(p == codegen.ANY for p in patterns):
            raise _Apart("an operand's rows are not contiguous")
        full = (*self.lead, width)
        s.kernel, dv, scratch = codegen.rows_kernel(
            self.cx.generated, loop.body, (len(full) - 1,), full, patterns, False, lookups
        )
        lead = max(range(len(patterns)), key=lambda k: patterns[k])
        s.attrs, s.rows_at = [2, 2, 0, lead, self.rows, width, *dv], 4
        s.thread_scratch = width * scratch.per_element
        return s

    def emit(self) -> None:
        cx = self.cx
        for n in self.body.nodes:
            if n.op == "constant":
                continue  # a scalar that a body holds
            s = self.product(n) if n.op.startswith("matmul") else self.region(n)
            if len(s.attrs) > MOST_ATTRS or len(s.ins) + len(s.outs) > MOST_OPERANDS:
                raise _Apart("a stage has too many operands")
            self.stages.append(s)
        outs = [cx.out(self.node, i) for i in range(len(self.node.types))]
        flat = [cx.view(b, (self.rows, b.shape[-1]), row_major((self.rows, b.shape[-1]))) for b in outs]
        kernel = codegen.chain_kernel(cx.generated, [(s.kernel, s.epilogue) for s in self.stages])
        cx.kernels.update(s.kernel for s in self.stages)
        cx.kernels.update(s.epilogue for s in self.stages if s.epilogue is not None)
        p = self.plan
        attrs: list[Dim] = [self.rows, p.rows, self.large, packing.TILE, p.floats]
        for s in self.stages:
            attrs += s.described()
        # Few rows are run all together, through scratch; blocks of rows have their results with each thread.
        few = self.few
        work: Dim = 0
        for s in self.stages:
            work = maximum(work, s.thread_scratch)
        cx.call(
            kernel, self.ins, flat, attrs, scratch=few * self.rows * p.floats * 4,
            thread_scratch=(1 - few) * p.rows * p.floats * 4 + work, n_own=len(self.ins),
        )  # fmt: skip


@lowers("row_chain")
def lower_row_chain(cx: Lowering, node: Node) -> None:
    chosen = plan(node.attrs["body"].nodes, node.attrs["body"].outputs)
    try:
        if isinstance(chosen, str):
            raise _Apart(chosen)
        _Chain(cx, node, chosen).emit()
    except _Apart as why:
        cx.note(node, str(why))
        cx.lower_decomposed(node)
