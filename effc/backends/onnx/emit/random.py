"""Random numbers, made of uniform and normal ones. Only shape and distribution are defined, not the bits."""

from __future__ import annotations

import math
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import ONNX_TYPE, Cx
from . import emits


def _draw(cx: Cx, op: str, shape: Any, dtype: DType, **attrs: float) -> str:
    """ONNX's generator, through its ...Like form, whose shape need not be constant."""
    like = cx.fill(0, shape, dtype)
    return cx.raw(f"{op}Like", [like], [dtype], pure=False, dtype=ONNX_TYPE[dtype], **attrs)[0]


def _uniform(cx: Cx, shape: Any, dtype: DType) -> str:
    return _draw(cx, "RandomUniform", shape, dtype)


def _real(dtype: DType) -> DType:
    return DType.f64 if dtype is DType.f64 or not dtype.is_float else DType.f32


@emits("rand_uniform")
def rand_uniform(cx: Cx, node: Node) -> str:
    a = node.attrs
    u = _uniform(cx, a["shape"], _real(a["dtype"]))
    if (a["lo"], a["hi"]) != (0.0, 1.0):
        u = cx.op("Add", cx.op("Mul", u, cx.like(a["hi"] - a["lo"], u)), cx.like(a["lo"], u))
    return u


@emits("rand_normal")
def rand_normal(cx: Cx, node: Node) -> str:
    a = node.attrs
    return _draw(cx, "RandomNormal", a["shape"], _real(a["dtype"]), mean=a["mean"], scale=a["std"])


@emits("rand_int")
def rand_int(cx: Cx, node: Node) -> str:
    a = node.attrs
    u = _uniform(cx, a["shape"], DType.f64)
    width = cx.scalar(a["hi"] - a["lo"], DType.f64)
    whole = cx.cast(cx.op("Floor", cx.op("Mul", u, width)), DType.i64)
    return cx.op("Add", whole, cx.scalar(a["lo"]))


@emits("exponential", "log_normal", "cauchy", "geometric")
def shaped(cx: Cx, node: Node) -> str:
    a, dtype = node.attrs, _real(node.attrs["dtype"])
    if node.op == "log_normal":
        return cx.op("Exp", _draw(cx, "RandomNormal", a["shape"], dtype, mean=a["mean"], scale=a["std"]))
    u = _uniform(cx, a["shape"], DType.f64)
    if node.op == "cauchy":
        angle = cx.op("Mul", cx.op("Sub", u, cx.like(0.5, u)), cx.like(math.pi, u))
        t = cx.op("Div", cx.op("Sin", angle), cx.op("Cos", angle))
        return cx.op("Add", cx.op("Mul", t, cx.like(a["scale"], u)), cx.like(a["median"], u))
    e = cx.op("Neg", cx.op("Log", cx.op("Sub", cx.like(1, u), u)))
    if node.op == "exponential":
        return cx.op("Div", e, cx.like(a["rate"], u))
    trials = cx.op("Ceil", cx.op("Div", e, cx.like(-math.log1p(-a["p"]) if a["p"] < 1 else math.inf, u)))
    return cx.op("Max", trials, cx.like(1, trials))


@emits("bernoulli")
def bernoulli(cx: Cx, node: Node, p: str) -> str:
    p = cx.cast(p, DType.f64)
    u = cx.raw("RandomUniformLike", [p], [DType.f64], pure=False, dtype=ONNX_TYPE[DType.f64])[0]
    return cx.op("Less", u, p)


@emits("randperm")
def randperm(cx: Cx, node: Node) -> str:
    n = node.types[0].shape[0]
    u = _uniform(cx, (n,), DType.f64)
    return cx.many("TopK", [u, cx.dim(n)], 2, axis=0, largest=1, sorted=1)[1]
