"""Random numbers. Kernels: random.cpp."""

from __future__ import annotations

from ....ir.graph import Node
from . import Lowering, lowers

PARAMETERS = {
    "rand_uniform": ("lo", "hi"),
    "rand_normal": ("mean", "std"),
    "log_normal": ("mean", "std"),
    "exponential": ("rate",),
    "geometric": ("p",),
    "cauchy": ("median", "scale"),
}


@lowers(*PARAMETERS)
def lower_draw(cx: Lowering, node: Node) -> None:
    cx.call(f"effc_{node.op}", [], [cx.out(node)], fattrs=[node.attrs[k] for k in PARAMETERS[node.op]])


@lowers("rand_int")
def lower_rand_int(cx: Lowering, node: Node) -> None:
    cx.call("effc_rand_int", [], [cx.out(node)], attrs=[node.attrs["lo"], node.attrs["hi"]])


@lowers("bernoulli", "poisson", "gamma", "binomial")
def lower_per_element(cx: Lowering, node: Node) -> None:
    cx.call(f"effc_{node.op}", [cx.dense(v) for v in node.operands], [cx.out(node)])


@lowers("multinomial")
def lower_multinomial(cx: Lowering, node: Node) -> None:
    x = cx.dense(node.operands[0])
    cx.call(
        "effc_multinomial", [x], [cx.out(node)], attrs=[int(node.attrs["replacement"])], thread_scratch=x.shape[-1] * 16
    )


@lowers("randperm")
def lower_randperm(cx: Lowering, node: Node) -> None:
    cx.call("effc_randperm", [], [cx.out(node)], scratch=node.attrs["n"] * 8)
