"""Passes over the IR for this target alone: shapes that onnxruntime's kernels run better, at no more nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...ir.dims import Dim
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import get
from ...passes.manager import Pass, PassReport

WINDOWS = ("conv", "max_pool", "avg_pool")
AFTER = {"max_pool", "avg_pool"}  # without weights


@dataclass(frozen=True)
class DropUnitDims(Pass):
    """Convolutions and poolings over images one pixel high or wide become one-dimensional.

    onnxruntime's kernels for images take several pixels of a row at once, which such images do not have; its
    one-dimensional convolution is a matrix product over windows. Elementwise ops in between follow, so that the two
    reshapes stand at the ends of a chain.
    """

    name: ClassVar[str] = "drop_unit_dims"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        twins: dict[Value, tuple[Value, int]] = {}  # an image -> (it without its dim of 1, that dim)

        def without(b: Builder, v: Value, dim: int) -> Value:
            if v in twins and twins[v][1] == dim:
                return twins[v][0]
            return b.op("reshape", v, shape=_drop(v.shape, dim))

        def twin(b: Builder, y: Value, dim: int, n: Node) -> Sequence[Value]:
            whole = b.op("reshape", y, shape=n.types[0].shape)
            twins[whole] = (y, dim)
            return (whole,)

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
            given = [v for v in ins if v is not None]
            if n.op in WINDOWS and len(n.types) == 1:
                dim = _unit(n)
                if dim is None:
                    return None
                operands = [without(b, given[0], dim), *(b.op("reshape", w, shape=_drop(w.shape, dim))
                                                         for w in given[1:])]  # fmt: skip
                report.count(f"{self.name}.{n.op}")
                return twin(b, b.op(n.op, *operands, **_narrow(n.attrs, dim)), dim, n)
            known = [twins[v] for v in given if v in twins]
            if not known or len({dim for _, dim in known}) != 1 or len(n.types) != 1 or n.types[0].rank != 4:
                return None
            dim = known[0][1]
            if n.op == "permute" and n.attrs["dims"][dim] == dim:
                dims = tuple(d - (d > dim) for d in n.attrs["dims"] if d != dim)
                return twin(b, b.op("permute", known[0][0], dims=dims), dim, n)
            if get(n.op).category != "elementwise" or n.types[0].shape[dim] != 1:
                return None
            at = dim - 4  # from the end, as operands of a lower rank are aligned
            if any(-at <= v.rank and v.shape[at] != 1 for v in given):
                return None
            small = [without(b, v, dim) if v in twins else v if v.rank < -at
                     else b.op("reshape", v, shape=_drop(v.shape, v.rank + at)) for v in given]  # fmt: skip
            return twin(b, b.op(n.op, *small, **n.attrs), dim, n)

        return graph.rebuild(rule)


def _drop(shape: Sequence[Dim], dim: int) -> tuple[Dim, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def _unit(n: Node) -> int | None:
    """The spatial dim of an image that is 1 before and after n, and under its window."""
    x, a = n.operands[0], n.attrs
    if x.rank != 4 or x.shape[2:] == (1, 1):  # one pixel has no row
        return None
    kernel = a["kernel"] if n.op in AFTER else n.operands[1].shape[2:]
    for dim in (3, 2):
        if (x.shape[dim], n.types[0].shape[dim], kernel[dim - 2]) == (1, 1, 1) and a["padding"][dim - 2] == (0, 0):
            return dim
    return None


def _narrow(attrs: Any, dim: int) -> dict[str, Any]:
    """Attributes by spatial dim, without one of them."""
    per_dim = ("kernel", "stride", "padding", "dilation")
    return {k: _drop(v, dim - 2) if k in per_dim else v for k, v in attrs.items()}


@dataclass(frozen=True)
class FoldPermutes(Pass):
    """``reshape(permute(x), [N, K]) @ w`` with a constant w becomes ``reshape(x, [N, K]) @ w'``, w' being w with its
    rows in another order: nothing is moved while running."""

    name: ClassVar[str] = "fold_permutes"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        uses = graph.uses()

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
            if n.op != "matmul" or ins[0] is None or ins[1] is None or ins[0].node.op != "reshape":
                return None
            flat, w = ins[0], ins[1]
            p = flat.node.operands[0].node
            if p.op != "permute" or p.attrs["dims"][0] != 0 or flat.rank != 2 or w.rank != 2:
                return None
            if flat.shape[0] != p.types[0].shape[0] or not all(isinstance(d, int) for d in p.types[0].shape[1:]):
                return None
            turned = w.node.op == "permute"
            c = w.node.operands[0] if turned else w
            if c.node.op != "constant" or len(uses.get(c, ())) != 1 or len(uses.get(n.operands[1], ())) != 1:
                report.decline(self.name, "the weight is not a constant of its own", n)
                return None
            data = c.node.attrs["data"]
            rows, perm = p.types[0].shape[1:], [d - 1 for d in p.attrs["dims"][1:]]
            k = data.T if turned else data
            back = np.transpose(k.reshape(*rows, -1), [*np.argsort(perm), len(perm)]).reshape(k.shape)
            x = p.operands[0]
            made = b.constant(np.ascontiguousarray(back.T if turned else back))
            y = b.op("reshape", x, shape=flat.shape)
            report.count(f"{self.name}.moved")
            right = b.op("permute", made, dims=(1, 0)) if turned else made
            return (b.op("matmul", y, right, **n.attrs),)

        return graph.rebuild(rule)
