"""The emitters: how each op of the IR is written with ATen operators, one declaration an op, in files by family.

    @emits("flip")
    def flip(cx, node, x): ...

An emitter gets the scope, the node and its operands as Refs (None for an absent one), and returns the Ref of the
result, or a tuple of them. It raises Refuse for what it does not cover.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from ....ir.graph import Node
from ....ir.torch_types import ELEMENT_NAME
from ..context import Cx, Ref, Refuse

EMITTERS: dict[str, Callable[..., Any]] = {}


def emits(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares the function below it as the emitter of ``ops``."""

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in EMITTERS:
                raise ValueError(f"{op} has two MLIR emitters")
            EMITTERS[op] = run
        return run

    return add


def load() -> dict[str, Callable[..., Any]]:
    """The table, filled."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return EMITTERS


def native(op: str) -> bool:
    """Whether the target has the op itself; the others are decomposed where they can be."""
    from ....ir.op import get

    return op in load() or get(op).decompose is None


def emit(cx: Cx, node: Node, refs: Sequence[Ref | None]) -> tuple[Ref, ...]:
    """The results of one node; Refuse with the reason if the dialect has no form for it."""
    run = load().get(node.op)
    if run is None:
        raise Refuse("no ATen operator computes this")
    for t in [*node.types, *(v.type for v in node.operands)]:
        if t.encoding.format != "dense":
            raise Refuse(f"operands in the encoding {t.encoding} have no form in the torch dialect")
        if t.dtype not in ELEMENT_NAME:
            raise Refuse(f"the torch dialect has no tensors of {t.dtype}")
    out = run(cx, node, *refs)
    return (out,) if isinstance(out, Ref) else tuple(out)
