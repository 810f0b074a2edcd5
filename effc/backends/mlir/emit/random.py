"""Random numbers: ATen's distributions; the numbers are those of whoever runs the module."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Ref
from . import emits


def affine(cx: Cx, x: Ref, factor: float, offset: float) -> Ref:
    x = x if factor == 1 else cx.binary("mul.Tensor", x, factor)
    return x if offset == 0 else cx.aten("add.Tensor", x, cx.scalar(offset, x.dtype), out=x.type)


@emits("rand_uniform")
def rand_uniform(cx: Cx, node: Node) -> Any:
    a, out = node.attrs, node.types[0]
    return affine(cx, cx.aten("rand", list(out.shape), dtype=out.dtype, out=out), a["hi"] - a["lo"], a["lo"])


@emits("rand_normal")
def rand_normal(cx: Cx, node: Node) -> Any:
    a, out = node.attrs, node.types[0]
    return affine(cx, cx.aten("randn", list(out.shape), dtype=out.dtype, out=out), a["std"], a["mean"])


@emits("rand_int")
def rand_int(cx: Cx, node: Node) -> Any:
    a, out = node.attrs, node.types[0]
    wide = out.with_dtype(DType.i64)
    return cx.convert(cx.aten("randint.low", a["lo"], a["hi"], list(out.shape), dtype=DType.i64, out=wide), out.dtype)


@emits("cauchy", "exponential", "geometric", "log_normal")
def shaped(cx: Cx, node: Node) -> Any:
    a, out = node.attrs, node.types[0]
    names = {
        "cauchy": ("median", "scale"),
        "exponential": ("rate",),
        "geometric": ("p",),
        "log_normal": ("mean", "std"),
    }
    work = out if out.dtype.is_float else out.with_dtype(DType.f64)
    like = cx.full(0.0, work)
    return cx.convert(cx.aten(node.op, like, *(a[n] for n in names[node.op]), out=work), out.dtype)


@emits("bernoulli")
def bernoulli(cx: Cx, node: Node, p: Ref) -> Any:
    return cx.convert(cx.aten("bernoulli", p, out=p.type), node.types[0].dtype)


@emits("poisson", "gamma")
def rates(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("poisson" if node.op == "poisson" else "_standard_gamma", x, out=node.types[0])


@emits("binomial")
def binomial(cx: Cx, node: Node, count: Ref, prob: Ref) -> Any:
    return cx.aten("binomial", count, prob, out=node.types[0])


@emits("multinomial")
def multinomial(cx: Cx, node: Node, weights: Ref) -> Any:
    a = node.attrs
    return cx.aten("multinomial", weights, a["samples"], a["replacement"], out=node.types[0])


@emits("randperm")
def randperm(cx: Cx, node: Node) -> Any:
    return cx.aten("randperm", node.attrs["n"], dtype=node.attrs["dtype"], out=node.types[0])
