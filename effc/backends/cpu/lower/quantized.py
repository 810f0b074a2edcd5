"""Products and convolutions of bytes (kernels/gemm_i8.cpp, conv_i8.cpp, conv_i8_winograd.cpp): constant weights are
packed, a body of elementwise ops becomes an epilogue on the i32 sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.dims import Dim, ceildiv, product
from ....ir.dtypes import DType
from ....ir.graph import Node, Value
from ....passes.winograd import image_of
from .. import microkernels
from ..packing import int8 as packing
from ..packing import int8_winograd as winograd
from . import Buf, Lowering, lowers, views
from .contraction import _rank4, constant_matrix
from .conv import _three, as_rows, channels_last
from .fused import tabled

Array = np.ndarray[Any, Any]


def _weights(cx: Lowering, node: Node) -> tuple[Array, Array, tuple[Any, ...]] | None:
    """The right-hand side and its zero points, and a key that names them, or None where they are not constant."""
    found, zero = constant_matrix(cx, node.operands[1]), cx.constant_of(node.operands[3])
    if found is None or zero is None:
        if node.operands[3].rank == 0 and node.op in ("qmatmul", "qmatmul_fused"):
            return None  # packed by the kernel
        cx.note(node, "the weights are not constant, so they cannot be packed: the sums are taken in i32")
        return None
    return found[0], zero, (*found[1], zero.tobytes())


def _pack(cx: Lowering, key: tuple[Any, ...], b: Array, zero: Array) -> tuple[Array, tuple[float, float, float]]:
    """``b`` [groups, k, n], packed once for all that use it, and its shares (packing/int8.py)."""
    memo = cx.constants.__dict__.setdefault("packed_int8", {})
    if key not in memo:
        split = microkernels.choose(cx.target, "qmatmul", DType.from_np(b.dtype)).saturates
        buffer = packing.pack(b, zero, split=split)
        memo[key] = (b, buffer, packing.shares(buffer))
    return memo[key][1:]  # type: ignore[no-any-return]


def _packed(cx: Lowering, node: Node, key: tuple[Any, ...], b: Array, zero: Array) -> Buf:
    """The same as a constant, with notes of what it says."""
    buffer, (extras, magnitudes, quads) = _pack(cx, key, b, zero)
    if extras:
        cx.note(node, f"{extras:.1%} of the weights' blocks are multiplied apart: 16 bits do not hold their sums")
    if magnitudes:
        cx.note(node, f"{magnitudes:.0%} of the weights' panels are of magnitudes, of which 16 bits hold more")
    if quads:
        cx.note(node, f"{quads:.0%} of the weights' groups of four steps are added in 16 bits by fours")
    return cx.const(buffer)


def _extras(node: Node) -> Sequence[Value]:
    return node.operands[4:]


def _fits(cx: Lowering, node: Node) -> bool:
    """Whether the body's results have the sums' shape."""
    body = node.attrs.get("body")
    if body is None or all(t.shape == body.inputs[0].types[0].shape for t in node.types):
        return True
    cx.note(node, "a result of another shape than the sums'")
    return False


def _epilogue_of(cx: Lowering, node: Node) -> tuple[Any, list[Buf], bool]:
    """The body, or None, its operands after the sums, broadcast to the result, and whether the last is a table."""
    body: Any = node.attrs.get("body")
    shape, extras, table = node.types[0].shape, list(_extras(node)), None
    if body is not None:
        body, (_, *left), table = tabled(cx, body, [None, *extras], shape)
        extras = [v for v in left if v is not None]
    bufs = [views.broadcast(cx, cx.strided(v), shape) for v in extras]
    return body, [*bufs, *([] if table is None else [table])], table is not None


@lowers("qmatmul", "qmatmul_fused")
def lower_qmatmul(cx: Lowering, node: Node) -> None:
    found = _weights(cx, node) if node.operands[1].rank == 2 else None
    if (found is None and node.operands[3].rank) or not _fits(cx, node):
        cx.lower_decomposed(node)
        return
    k, n = node.operands[1].shape[-2:]
    a, za = cx.strided(node.operands[0]), cx.strided(node.operands[2])
    shape = node.types[0].shape
    body, extras, table = _epilogue_of(cx, node)
    outs = [cx.out(node, i) for i in range(len(node.types))]
    # Zero points have one column: any view of rows fits them.
    zeros = views.broadcast(cx, za, (*shape[:-1], 1))
    wide = views.broadcast(cx, zeros, shape)
    shared = all(d == 1 for d in node.operands[1].shape[:-2])
    b = None if found is not None else cx.strided(node.operands[1])
    a4, b4, tiles = _rank4(cx, shape[:-2], a, b, n, shared, [*outs, *extras, wide])
    z4 = cx.view(tiles[-1], (*tiles[-1].shape[:3], 1), tiles[-1].strides)
    outs4, extras4 = tiles[: len(outs)], tiles[len(outs) : -1]
    symbol, values = cx.epilogue(body, DType.i32, extras4, outs4, table) if body is not None else (None, [])
    if b4 is not None:
        zb = cx.strided(node.operands[3])
        cx.call(
            "effc_qmatmul_any", [a4, b4, z4, zb, *extras4], outs4, values, n_own=4, epilogue=symbol,
            scratch=packing.scratch(product(b4.shape[:2]), k, n), thread_scratch=packing.THREAD_SCRATCH,
        )  # fmt: skip
        return
    assert found is not None
    data, zero, key = found
    packed = _packed(cx, node, key, data[None], np.broadcast_to(zero, (1, data.shape[1])))
    cx.call(
        "effc_qmatmul", [a4, packed, z4, *extras4], outs4, [k, n, *values], n_own=3, epilogue=symbol,
        thread_scratch=packing.THREAD_SCRATCH,
    )  # fmt: skip


def _winograd(
    cx: Lowering, node: Node, w: Array, zero: Array, key: tuple[Any, ...]
) -> tuple[Buf, winograd.Blocks] | None:
    """Weights and blocking for Winograd's algorithm, or None; the report says why for every 3x3 window."""
    a = node.attrs
    if w.ndim != 4 or w.shape[2:] != (3, 3):
        return None
    micro = microkernels.choose(cx.target, "qmatmul", node.operands[0].dtype)
    tile, why = winograd.DIRECT, ""
    if a["groups"] != 1 or tuple(a["stride"]) != (1, 1) or tuple(a["dilation"]) != (1, 1):
        why = "groups, stride or dilation"
    elif not cx.options.winograd:
        why = "form_winograd is left out"
    elif not micro.saturates:
        why = f"{micro.name} multiplies bytes at once, four or more for one product of 16 bits"
    else:
        tile, why = winograd.choose(w, zero, image_of(node, cx.graph.symbols), packing.plain(packing.filters(w, 1)))
    if tile == winograd.DIRECT:
        cx.decided("effc_qconv", "direct", why)
        return None
    shape = node.types[0].shape
    count: Dim = shape[0] * product(ceildiv(d, tile) for d in shape[2:])
    blocks = winograd.rule(w.shape[1], len(w), tile, count if isinstance(count, int) else None)
    cx.decided("effc_qconv_winograd", blocks.label, why)
    memo = cx.constants.__dict__.setdefault("packed_int8_winograd", {})
    if (tile, key) not in memo:
        memo[tile, key] = (w, winograd.pack(w, zero, tile))
    return cx.const(memo[tile, key][1]), blocks


@lowers("qconv", "qconv_fused")
def lower_qconv(cx: Lowering, node: Node) -> None:
    found = _weights(cx, node)
    if found is None or not _fits(cx, node):
        cx.lower_decomposed(node)
        return
    w, zero, key = found
    attrs, oc, rank = node.attrs, w.shape[0], w.ndim
    groups = attrs["groups"]
    fast = _winograd(cx, node, w, zero, key)
    if fast is not None:
        packed = fast[0]
    else:
        zeros = np.broadcast_to(zero, (oc,)).reshape(groups, -1)
        packed = _packed(cx, node, ("conv", groups, *key), packing.filters(w, groups), zeros)
    x = cx.in_order(cx.strided(node.operands[0]), channels_last(rank))
    z = cx.strided(node.operands[2])
    shape = node.types[0].shape
    body, extras, table = _epilogue_of(cx, node)
    extras = [as_rows(cx, x) for x in extras]
    outs = [as_rows(cx, cx.out(node, i, order=channels_last(rank))) for i in range(len(node.types))]
    symbol, values = cx.epilogue(body, DType.i32, extras, outs, table) if body is not None else (None, [])
    sizes = [*_three(w.shape[2:], 1), *_three(attrs["stride"], 1), *_three([p[0] for p in attrs["padding"]], 0)]
    sizes += [*_three(attrs["dilation"], 1), *_three(shape[2:], 1)]
    if fast is not None:
        blocks = fast[1]
        cx.call(
            "effc_qconv_winograd", [x, packed, z, *extras], outs, [groups, oc, *sizes, *blocks.attrs, *values], n_own=3,
            epilogue=symbol, scratch=blocks.scratch, thread_scratch=blocks.thread_scratch,
        )  # fmt: skip
        return
    cx.call(
        "effc_qconv", [x, packed, z, *extras], outs, [groups, oc, *sizes, *values], n_own=3, epilogue=symbol,
        thread_scratch=packing.THREAD_SCRATCH,
    )  # fmt: skip
