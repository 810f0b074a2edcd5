"""Matrix multiplication and attention (kernels/gemm*.cpp, kernels/attention*.cpp).

Kernels see rank 4, (b0, b1, M, K): batch dims that all operands can view as one are merged, and where the right-hand
side has no batch, they become rows. Constant right-hand sides are packed, unless something else reads them too (a tied
embedding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim, ceildiv, maximum, minimum, product
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ....passes.fuse.rows import only_multiplied
from ....runtime.errors import EffcError
from .. import codegen, microkernels
from ..microkernels import MicroKernel
from ..packing import gemm as packing
from . import Buf, Lowering, lowers, views

Array = np.ndarray[Any, Any]

KERNELS = {
    DType.f32: "f32", DType.f64: "f64", DType.f16: "f16", DType.bf16: "bf16", DType.c64: "c64", DType.c128: "c128",
    **dict.fromkeys((DType.i8, DType.u8, DType.i16, DType.u16, DType.i32, DType.u32, DType.i64, DType.u64), "int"),
}  # fmt: skip
EPILOGUES = (DType.f32, DType.f64, DType.f16, DType.bf16)
TUNED = ("f32", "f64")  # kernels whose blocking the cost model chooses
SHARED_BYTES = 16 << 20  # of B packed at once, where it is not a constant


# Shapes ---------------------------------------------------------------------------------------------------------------


def _viewed(buf: Buf, shape: Sequence[Dim]) -> bool:
    return views.reshape_strides(buf.shape, buf.strides, shape) is not None


def _rank4(
    cx: Lowering, batch: Sequence[Dim], a: Buf, b: Buf | None, n: Dim, shared: bool, tiles: Sequence[Buf]
) -> tuple[Buf, Buf | None, list[Buf]]:
    """a (..., M, K), b (..., K, N) and tiles (batch, M, N) as rank 4, by views where strides allow.

    ``shared``: b has no batch. ``b`` is None when it is packed."""
    m, k = a.shape[-2:]
    if shared and tuple(a.shape[:-2]) == tuple(batch):  # the batch becomes rows
        rows = product(batch) * m
        if _viewed(a, (1, 1, rows, k)) and all(_viewed(t, (1, 1, rows, n)) for t in tiles):
            return (
                views.reshape(cx, a, (1, 1, rows, k)),
                None if b is None else cx.view(b, (1, 1, k, n), (0, 0, *b.strides[-2:])),
                [views.reshape(cx, t, (1, 1, rows, n)) for t in tiles],
            )
    full = [(views.broadcast(cx, a, (*batch, m, k)), (m, k)), *((t, (m, n)) for t in tiles)]
    if b is not None:
        full.append((views.broadcast(cx, b, (*batch, k, n)), (k, n)))
    splits = [(product(batch[:i]), product(batch[i:])) for i in range(len(batch), -1, -1)]
    outer = next((s for s in splits if all(_viewed(x, (*s, *tail)) for x, tail in full)), splits[0])
    a4, *rest = (views.reshape(cx, x, (*outer, *tail)) for x, tail in full)
    return a4, None if b is None else rest.pop(), rest


# Constants ------------------------------------------------------------------------------------------------------------


def constant_matrix(cx: Lowering, v: Value) -> tuple[Array, tuple[Any, ...]] | None:
    """The data of a constant behind permutes and reshapes, and a key that names it; None for anything else."""
    data = cx.constant_of(v)
    if data is not None:
        return data, (id(data),)
    if v.node.op not in ("permute", "reshape"):
        return None
    found = constant_matrix(cx, v.node.operands[0])
    if found is None or not v.type.is_static:
        return None
    data, key = found
    if v.node.op == "permute":
        return data.transpose(v.node.attrs["dims"]), (*key, "permute", *v.node.attrs["dims"])
    return data.reshape(v.node.attrs["shape"]), (*key, "reshape", *v.node.attrs["shape"])


def packed_constant(cx: Lowering, node: Node, v: Value, batch: Sequence[Dim]) -> tuple[Buf, list[Dim]] | None:
    """A packed right-hand side and the kernel's attributes, or None where it cannot be packed."""
    if v.dtype not in packing.PACKABLE:
        return None
    found = constant_matrix(cx, v)
    if found is None:
        return None
    data, key = found
    if any(d != 1 for d in data.shape[:-2]) and tuple(data.shape[:-2]) != tuple(batch):
        return None
    while v.node.op in ("permute", "reshape"):
        v = v.node.operands[0]
    if not only_multiplied(v, cx.uses):
        cx.note(node, "the weights are read by other ops too, so they are kept once, unpacked")
        return None
    micro = microkernels.choose(cx.target, "matmul", v.dtype)
    nr, kr = micro.nr(v.dtype, cx.target.vlen), micro.kr
    memo = cx.constants.__dict__.setdefault("packed_gemm", {})
    if (key, nr, kr) not in memo:
        k, n = data.shape[-2:]
        memo[key, nr, kr] = (data, packing.pack_gemm_b(data.reshape(int(np.prod(data.shape[:-2])), k, n), nr, kr))
    packed = memo[key, nr, kr][1]
    batches = int(np.prod(data.shape[:-2]))
    return cx.const(packed), [batches, data.shape[-2], data.shape[-1]]


# matmul ---------------------------------------------------------------------------------------------------------------


def _scratch(sizes: _Sizes, a: Buf, b: Buf, blocking: packing.Blocking) -> Dim:
    """Scratch of effc_matmul_*: partial sums of a split reduction, or B in panels (Driver::run of gemm.hpp)."""
    return maximum(_partial(sizes, a, b.shape[3]), _shared(sizes, a, b, blocking))


@dataclass(frozen=True)
class _Sizes:
    """What scratch depends on: the micro-kernel's tile, the accumulators' bytes, and how many rows and steps of the
    kernel's a row and a step of the operands are (``unit``, 2 for complex numbers)."""

    mr: int
    nr: int
    step: int
    itemsize: int
    unit: int

    @staticmethod
    def of(micro: MicroKernel, dtype: DType, vlen: int) -> _Sizes:
        return _Sizes(
            micro.mr, micro.nr(dtype, vlen), micro.step, micro.accumulator(dtype).itemsize, 2 if dtype.is_complex else 1
        )

    def steps(self, k: Dim) -> Dim:
        return ceildiv(k * self.unit, self.step)

    def thread_scratch(self, acc: DType, vlen: int, blocking: packing.Blocking, a: Buf, n: Dim) -> Dim:
        rows, k = product(a.shape[:3]) * self.unit, a.shape[3] * self.unit
        return packing.thread_scratch(acc, vlen, blocking, rows=rows, k=k, n=n, mr=self.mr)


def _flag(condition: Dim) -> Dim:
    """1 where the dim is positive, else 0."""
    return minimum(1, maximum(0, condition))


def _partial(z: _Sizes, a: Buf, n: Dim) -> Dim:
    rows, k = product(a.shape[:3]) * z.unit, z.steps(a.shape[3])
    panels = ceildiv(n, z.nr)
    # The kernel may fold batches into rows, which makes fewer tiles than it would count otherwise.
    few = _flag(8 - ceildiv(ceildiv(rows, z.mr), 4) * panels)
    splits = minimum(16, dims.floordiv(k, packing.SPLIT_STEPS // 2))
    return few * _flag(k - packing.SPLIT_STEPS + 1) * splits * rows * panels * z.nr * z.itemsize


def _shared(z: _Sizes, a: Buf, b: Buf, blocking: packing.Blocking) -> Dim:
    distinct: Dim = 1
    repeat: Dim = 1
    for size, stride in zip(b.shape[:2], b.strides[:2], strict=True):
        if stride == 0:
            repeat = repeat * size
        else:
            distinct = distinct * size
    # It starts with the third pair of blocks of rows that multiplies the same B.
    many = _flag(ceildiv(ceildiv(a.shape[2] * z.unit, z.mr), 2 * (blocking.rows // z.mr)) * repeat - 2)
    panel = z.steps(b.shape[2]) * z.nr * z.itemsize
    return many * minimum(distinct * ceildiv(b.shape[3], z.nr) * panel, maximum(SHARED_BYTES, 4 * panel))


def _emit(cx: Lowering, node: Node, outs: list[Buf], body: Graph | None, extras: list[Buf]) -> None:
    left, right = node.operands[0], node.operands[1]
    dtype, vlen = left.dtype, cx.target.vlen
    micro = microkernels.choose(cx.target, "matmul", dtype)
    acc, sizes = micro.accumulator(dtype), _Sizes.of(micro, dtype, vlen)
    batch, n = outs[0].shape[:-2], right.shape[-1]
    packed = packed_constant(cx, node, right, batch)
    if packed is not None:
        shared, b = packed[1][0] == 1, None
    else:
        shared, b = all(d == 1 for d in right.shape[:-2]), cx.strided(right)
    a4, b4, tiles = _rank4(cx, batch, cx.strided(left), b, n, shared, [*outs, *extras])
    outs4, extras4 = tiles[: len(outs)], tiles[len(outs) :]
    symbol, values = cx.epilogue(body, acc, extras4, outs4) if body is not None else (None, [])
    buf, attrs = packed if packed is not None else (b4, [])
    assert buf is not None
    kernel = f"effc_matmul_{'packed_' if packed is not None else ''}{KERNELS[dtype]}"
    more = {"n_own": 2, "body": "" if body is None else codegen.counts(body)}
    ins = [a4, buf, *extras4]
    ways = [packing.Blocking()]
    if cx.options.decide is not None and KERNELS[dtype] in TUNED and all(isinstance(d, int) for d in (*a4.shape, n)):
        rows, k = int(product(a4.shape[:3])), int(a4.shape[3])  # type: ignore[call-overload]
        ways = packing.candidates(rows, k, int(n), acc, vlen)  # type: ignore[call-overload]
    labels = [w.label for w in ways]
    options = [[*attrs, *w.attrs] for w in ways]
    blocking = ways[cx.decide(kernel, ins, outs4, options, labels, epilogue=symbol is not None, **more)]
    scratch = _partial(sizes, a4, n) if packed else _scratch(sizes, a4, buf, blocking)
    cx.call(
        kernel, ins, outs4, [*attrs, *blocking.attrs, *values], epilogue=symbol, scratch=scratch,
        thread_scratch=sizes.thread_scratch(acc, vlen, blocking, a4, n), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _check(node: Node) -> DType:
    dtype = node.operands[0].dtype
    if dtype not in KERNELS:
        raise EffcError(
            f"target cpu multiplies no matrices of {dtype}", op=node.op, loc=node.loc, pass_name="lower",
            hint="convert the operands to float32 first",
        )  # fmt: skip
    return dtype


@lowers("matmul")
def lower_matmul(cx: Lowering, node: Node) -> None:
    _check(node)
    _emit(cx, node, [cx.out(node)], None, [])


@lowers("matmul_fused")
def lower_matmul_fused(cx: Lowering, node: Node) -> None:
    dtype = _check(node)
    body: Any = node.attrs["body"]
    shape = body.inputs[0].types[0].shape
    fits = all(t.shape == shape for t in node.types)
    if not fits or dtype not in EPILOGUES:
        cx.note(node, "a result of another shape than the product's" if not fits else f"no epilogue for {dtype}")
        cx.lower_decomposed(node)
        return
    extras = [views.broadcast(cx, cx.strided(v), shape) for v in node.operands[2:]]
    _emit(cx, node, [cx.out(node, i) for i in range(len(node.types))], body, extras)


# Attention ------------------------------------------------------------------------------------------------------------

_QUERIES, _FEW, _KEYS, _PART, _PARTS, _KEPT = 512, 64, 300, 256, 16, 16  # kQB, kQFew, ..., kKept of attention.hpp


@lowers("attention")
def lower_attention(cx: Lowering, node: Node) -> None:
    q = cx.strided(node.operands[0])
    if q.dtype not in EPILOGUES:
        cx.note(node, f"no attention kernel for {q.dtype}")
        cx.lower_decomposed(node)
        return
    _attention(cx, node, q, node.operands[1], node.operands[2], node.inputs[3] if len(node.inputs) > 3 else None)


@lowers("attention_fused")
def lower_attention_fused(cx: Lowering, node: Node) -> None:
    body: Graph = node.attrs["body"]
    q, masked = body.outputs[0], node.attrs["masked"]
    extras = [views.broadcast(cx, cx.strided(v), q.shape) for v in node.operands[2 + masked :]]
    if q.dtype not in EPILOGUES or not extras:
        cx.note(node, f"no attention kernel for {q.dtype}" if extras else "its queries are the same everywhere")
        cx.lower_decomposed(node)
        return
    shape = (*q.shape[:3], product(q.shape[3:]))
    some = next((x for x in extras if x.dtype is q.dtype), None) or cx.temp(q.dtype, (1,))
    shaped = cx.view(some, shape, (0, 0, 0, 0))
    _attention(cx, node, shaped, node.operands[0], node.operands[1], node.operands[2] if masked else None, extras)


def _attention(
    cx: Lowering, node: Node, q: Buf, key: Value, value: Value, mask: Value | None, extras: Sequence[Buf] = ()
) -> None:
    """The call; with ``extras``, the operands of a prologue, ``q`` has a shape only."""
    k, v = cx.strided(key), cx.strided(value)
    a = node.attrs
    (b, h, lq, e), (lk, ev) = q.shape, v.shape[2:]
    m = None if mask is None else views.broadcast(cx, cx.strided(mask), (b, h, lq, lk))
    # [B, H, L, E] is stored as [B, L, H, E]: what follows joins the heads
    out = cx.out(node, order=(0, 2, 1, 3))
    acc = q.dtype.compute
    nr = packing.panel_width(acc, cx.target.vlen)
    thread = e * _QUERIES + 2 * _KEYS * nr + ev * _QUERIES + _KEYS * (e + ev) + 6 * _QUERIES + _KEPT
    # Bound on the tasks that split their keys, times parts (Attention::run)
    parts = minimum(_PARTS, dims.floordiv(lk, _PART))
    partial = _flag(parts - 1) * _PARTS * parts * (ev + 2) * _FEW * acc.itemsize
    symbol, values = None, []
    if extras:
        thread = thread + e * _QUERIES
        patterns = [x.strides[-1] if x.strides[-1] in (0, 1) else codegen.ANY for x in extras]
        symbol, values = codegen.map_kernel(cx.generated, a["body"], [*patterns, 1], prologue=True)
    cx.call(
        f"effc_attention_{KERNELS[q.dtype]}", [q, k, v, m, *extras], [out],
        [a["causal"], a["causal_offset"], a["empty_nan"], a["scale"] is None, *values],
        [a["scale"] or 0.0, a["softcap"]], scratch=partial, thread_scratch=thread * acc.itemsize, n_own=4,
        epilogue=symbol, body=codegen.counts(a["body"]) if extras else "",
    )  # fmt: skip
