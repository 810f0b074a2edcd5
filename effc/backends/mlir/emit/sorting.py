"""Sorting and selection."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Node
from ..context import Cx, Ref
from . import emits


@emits("sort")
def sort(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    if a["stable"]:
        return cx.aten("sort.stable", x, stable=True, dim=a["dim"], descending=a["descending"], out=node.types)
    return cx.aten("sort", x, a["dim"], a["descending"], out=node.types)


@emits("topk")
def topk(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("topk", x, a["k"], a["dim"], a["largest"], a["sorted"], out=node.types)


@emits("kthvalue")
def kthvalue(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("kthvalue", x, a["k"], a["dim"], a["keepdim"], out=node.types)


@emits("median")
def median(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    name = "nanmedian.dim" if a["ignore_nan"] else "median.dim"
    return cx.aten(name, x, a["dim"], a["keepdim"], out=node.types)


@emits("mode")
def mode(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    return cx.aten("mode", x, a["dim"], a["keepdim"], out=node.types)
