"""Sorting and selection. Kernels: sort.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.dims import Dim
from ....ir.graph import Node
from . import Lowering, lowers


def _lines(cx: Lowering, node: Node, kernel: str, attrs: Sequence[Dim | bool]) -> None:
    """A kernel over lines of x along ``dim``: two items of key and index per element in each worker's scratch."""
    x = cx.strided(node.operands[0])
    n = x.shape[node.attrs["dim"]]
    scratch = n * (32 if x.dtype.itemsize == 8 else 16)
    cx.call(kernel, [x], [cx.out(node, 0), cx.out(node, 1)], attrs=attrs, thread_scratch=scratch)


@lowers("sort")
def lower_sort(cx: Lowering, node: Node) -> None:
    _lines(cx, node, "effc_sort", [node.attrs["dim"], node.attrs["descending"], node.attrs["stable"]])


@lowers("topk")
def lower_topk(cx: Lowering, node: Node) -> None:
    a = node.attrs
    _lines(cx, node, "effc_topk", [a["k"], a["dim"], a["largest"], a["sorted"]])


@lowers("kthvalue")
def lower_kthvalue(cx: Lowering, node: Node) -> None:
    _lines(cx, node, "effc_kthvalue", [node.attrs["dim"], node.attrs["k"]])


@lowers("median")
def lower_median(cx: Lowering, node: Node) -> None:
    _lines(cx, node, "effc_median", [node.attrs["dim"], node.attrs["ignore_nan"]])


@lowers("mode")
def lower_mode(cx: Lowering, node: Node) -> None:
    _lines(cx, node, "effc_mode", [node.attrs["dim"]])
