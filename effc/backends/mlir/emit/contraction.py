"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....ir.graph import Node
from ....ir.types import TensorType
from ..context import Cx, Ref, Refuse
from . import emits


@emits("matmul")
def matmul(cx: Cx, node: Node, a: Ref, b: Ref) -> Any:
    if a.rank == b.rank == 2:
        return cx.aten("mm", a, b, out=node.types[0])
    if a.rank == b.rank == 3 and a.shape[0] == b.shape[0]:
        return cx.aten("bmm", a, b, out=node.types[0])
    return cx.aten("matmul", a, b, out=node.types[0])


def of_parts(cx: Cx, f: Callable[[Ref, Ref, TensorType], Ref], x: Ref, w: Ref, out: TensorType) -> Ref:
    """A bilinear function of complex operands, by their parts."""
    if not x.dtype.is_complex:
        return f(x, w, out)
    real = out.with_dtype(x.dtype.real)
    (xr, xi), (wr, wi) = ([cx.unary(n, v, v.dtype.real) for n in ("real", "imag")] for v in (x, w))
    re = cx.binary("sub.Tensor", f(xr, wr, real), f(xi, wi, real))
    first = f(xr, wi, real)
    im = cx.aten("add.Tensor", first, f(xi, wr, real), out=first.type)
    return cx.aten("complex", re, im, out=out)


def _whole(x: Ref) -> None:
    if x.dtype.is_int:
        raise Refuse(f"ATen has no convolution of {x.dtype}")


@emits("conv")
def conv(cx: Cx, node: Node, x: Ref, w: Ref) -> Any:
    _whole(x)
    a = node.attrs
    nd = x.rank - 2
    padding = [low for low, _ in a["padding"]]
    pads: list[Any] = []
    shape = x.shape
    if any(low != high or not isinstance(low, int) or low < 0 for low, high in a["padding"]):  # ATen's are symmetric
        pads = [p for pair in reversed(a["padding"]) for p in pair]
        padding = [0] * nd
        shape = (*shape[:2], *(n + low + high for n, (low, high) in zip(shape[2:], a["padding"], strict=True)))

    def one(x: Ref, w: Ref, out: TensorType) -> Ref:
        if pads:
            x = cx.aten("constant_pad_nd", x, pads, 0, out=x.type.with_shape(shape))
        args = (list(a["stride"]), padding, list(a["dilation"]), False, [0] * nd, a["groups"])
        return cx.aten("convolution", x, w, None, *args, out=out)

    return of_parts(cx, one, x, w, node.types[0])


@emits("conv_transpose")
def conv_transpose(cx: Cx, node: Node, x: Ref, w: Ref) -> Any:
    _whole(x)
    a = node.attrs
    if any(low != high or not isinstance(low, int) or low < 0 for low, high in a["padding"]):
        raise Refuse("padding that differs at the two ends of a transposed convolution")
    padding = [low for low, _ in a["padding"]]

    def one(x: Ref, w: Ref, out: TensorType) -> Ref:
        args = (list(a["stride"]), padding, list(a["dilation"]), True, list(a["output_padding"]), a["groups"])
        return cx.aten("convolution", x, w, None, *args, out=out)

    return of_parts(cx, one, x, w, node.types[0])
