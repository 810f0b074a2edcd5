"""Fourier transforms, dim by dim: the dialect has fft_fft, fft_ifft and fft_rfft. An inverse real transform is the
inverse transform of the whole spectrum, of which the conjugate half is written out."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.graph import Node
from ..context import Cx, Ref
from . import emits


def scaled(cx: Cx, x: Ref, factor: Any) -> Ref:
    return x if factor == 1 else cx.binary("mul.Tensor", x, factor)


def line(cx: Cx, x: Ref, dim: int, inverse: bool) -> Ref:
    """One complex transform, without a factor."""
    norm = "forward" if inverse else "backward"
    return cx.aten("fft_ifft" if inverse else "fft_fft", x, None, dim, norm, out=x.type)


@emits("fft")
def fft(cx: Cx, node: Node, x: Ref) -> Any:
    if 0 in x.shape:
        return x
    for d in node.attrs["dims"]:
        x = line(cx, x, d % x.rank, node.attrs["inverse"])
    return scaled(cx, x, node.attrs["scale"])


@emits("rfft")
def rfft(cx: Cx, node: Node, x: Ref) -> Any:
    dims = [d % x.rank for d in node.attrs["dims"]]
    if 0 in x.shape:
        return cx.full(0, node.types[0])
    y = cx.aten("fft_rfft", x, None, dims[-1], "backward", out=node.types[0])
    for d in dims[:-1]:
        y = line(cx, y, d, False)
    return scaled(cx, y, node.attrs["scale"])


@emits("irfft")
def irfft(cx: Cx, node: Node, x: Ref) -> Any:
    dims, n = [d % x.rank for d in node.attrs["dims"]], node.attrs["last_size"]
    last = dims[-1]
    if 0 in x.shape:
        return cx.full(0, node.types[0])
    for d in dims[:-1]:
        x = line(cx, x, d, True)
    rest: Dim = D.floordiv(n + 1, 2)  # places 1 .. rest - 1 have a mirror image
    if not (isinstance(rest, int) and rest <= 1):
        mirror = cx.flip(cx.slice(x, last, 1, rest), [last])
        x = cx.cat([x, cx.conjugate(mirror)], last)
    if x.shape[last] != n:
        x = Ref(x.value, x.type.with_shape((*x.shape[:last], n, *x.shape[last + 1 :])))
    y = line(cx, x, last, True)
    return scaled(cx, cx.unary("real", y, x.dtype.real), node.attrs["scale"])
