"""Views: no code, a new Buf over the operand's storage (a copy first where strides cannot express the view)."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import dims
from ....ir.dims import Dim
from ....ir.graph import Node
from . import Buf, Lowering, lowers, row_major


def reshape_strides(shape: Sequence[Dim], strides: Sequence[Dim], new: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """Strides that view a strided array in a new shape, or None when only a copy can (the rule of torch.Tensor.view).

    Dims may be symbolic: a boundary is found where the products of both sides are equal by form."""
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    # Merge old dims into memory-contiguous chunks, each (size, innermost stride).
    chunks: list[tuple[Dim, Dim]] = []
    for d, s in old:
        if chunks and chunks[-1][1] == s * d:
            chunks[-1] = (chunks[-1][0] * d, s)
        else:
            chunks.append((d, s))
    out: list[Dim] = [0] * len(new)
    j = len(new) - 1
    for size, stride in reversed(chunks):
        done: Dim = 1
        while done != size:
            if j < 0:
                return None
            if (
                isinstance(done, int)
                and isinstance(size, int)
                and isinstance(new[j], int)
                and size % max(done * new[j], 1)
            ):
                return None
            out[j] = stride * done
            done = done * new[j]
            j -= 1
            if isinstance(done, int) and isinstance(size, int) and done > size:
                return None
    while j >= 0:
        if new[j] != 1:
            return None
        out[j] = 0
        j -= 1
    step: Dim = 1  # dims of size 1: any stride does; give them the row-major one
    for i in range(len(new) - 1, -1, -1):
        if new[i] == 1:
            out[i] = step
        step = out[i] * new[i]
    return tuple(out)


def reshape(cx: Lowering, buf: Buf, shape: Sequence[Dim]) -> Buf:
    """``buf`` seen in another shape, copied only if it must be."""
    shape = tuple(shape)
    if any(d == 0 for d in shape):
        return cx.view(buf, shape, row_major(shape))
    strides = reshape_strides(buf.shape, buf.strides, shape)
    if strides is None:
        buf = cx.in_order(buf, None)
        strides = row_major(shape)
    return cx.view(buf, shape, strides)


@lowers("reshape")
def lower_reshape(cx: Lowering, node: Node) -> None:
    cx.bind(node, reshape(cx, cx.strided(node.operands[0]), node.types[0].shape))


@lowers("permute")
def lower_permute(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    p = node.attrs["dims"]
    cx.bind(node, cx.view(x, [x.shape[i] for i in p], [x.strides[i] for i in p]))


@lowers("broadcast_to")
def lower_broadcast(cx: Lowering, node: Node) -> None:
    cx.bind(node, broadcast(cx, cx.strided(node.operands[0]), node.types[0].shape))


def broadcast(cx: Lowering, x: Buf, shape: Sequence[Dim]) -> Buf:
    """``x`` repeated to ``shape`` by zero strides (numpy's rule)."""
    extra = len(shape) - x.rank
    strides: list[Dim] = [0] * extra
    for d, s, to in zip(x.shape, x.strides, shape[extra:], strict=True):
        strides.append(0 if d == 1 and to != 1 else s)
    return cx.view(x, shape, strides)


@lowers("slice")
def lower_slice(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    offset: Dim = 0
    for start, s in zip(node.attrs["starts"], x.strides, strict=True):
        offset = offset + s * start
    strides = [s * step for s, step in zip(x.strides, node.attrs["steps"], strict=True)]
    cx.bind(node, cx.view(x, node.types[0].shape, strides, offset))


@lowers("flip")
def lower_flip(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    offset: Dim = 0
    strides = list(x.strides)
    for i in node.attrs["dims"]:
        offset = offset + x.strides[i] * (x.shape[i] - 1)
        strides[i] = -x.strides[i]
    cx.bind(node, cx.view(x, x.shape, strides, offset))


@lowers("as_strided")
def lower_as_strided(cx: Lowering, node: Node) -> None:
    x = cx.dense(node.operands[0])
    cx.bind(node, cx.view(x, node.attrs["shape"], node.attrs["strides"], node.attrs["offset"]))


@lowers("diagonal")
def lower_diagonal(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    offset, a, b = node.attrs["offset"], node.attrs["dim1"], node.attrs["dim2"]
    a, b = a % x.rank, b % x.rank
    keep = [i for i in range(x.rank) if i not in (a, b)]
    down = dims.maximum(-offset, 0)
    right = dims.maximum(offset, 0)
    start = x.strides[a] * down + x.strides[b] * right
    cx.bind(node, cx.view(x, node.types[0].shape, [x.strides[i] for i in keep] + [x.strides[a] + x.strides[b]], start))


@lowers("unfold")
def lower_unfold(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    d, step = node.attrs["dim"], node.attrs["step"]
    if x.rank == 0:
        cx.bind(node, cx.view(x, node.types[0].shape, (1,)))
        return
    d = d % x.rank
    strides = list(x.strides)
    window = strides[d]
    strides[d] = strides[d] * step
    cx.bind(node, cx.view(x, node.types[0].shape, [*strides, window]))


def _halves(x: Buf) -> list[Dim]:
    return [s * 2 for s in x.strides]


@lowers("real", "imag")
def lower_component(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    cx.bind(node, cx.view(x, x.shape, _halves(x), int(node.op == "imag"), node.types[0].dtype))


@lowers("view_as_real")
def lower_view_as_real(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    cx.bind(node, cx.view(x, node.types[0].shape, [*_halves(x), 1], 0, node.types[0].dtype))


@lowers("view_as_complex")
def lower_view_as_complex(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    known = (
        all(isinstance(s, int) and s % 2 == 0 for s in x.strides[:-1])
        and isinstance(x.offset, int)
        and x.offset % 2 == 0
    )
    if x.strides[-1] != 1 or not known:
        x = cx.in_order(x, None) if not x.is_row_major else x
    halves = [s // 2 for s in x.strides[:-1]]
    cx.bind(node, cx.view(x, x.shape[:-1], halves, 0, node.types[0].dtype))


@lowers("bitcast")
def lower_bitcast(cx: Lowering, node: Node) -> None:
    x = cx.strided(node.operands[0])
    cx.bind(node, cx.view(x, x.shape, x.strides, 0, node.types[0].dtype))
