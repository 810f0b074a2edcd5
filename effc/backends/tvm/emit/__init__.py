"""The emitters: how each op of the IR is written as a tensor expression, one declaration an op, in files by family.

    @emits("flip")
    def flip(cx, node, x): ...

An emitter gets the scope, the node and its operands as TE tensors, and returns the TE tensor of the result. ``unless``
is a function of the node that gives the reason for what is not covered, or None: ``why_not`` asks it, and so does the
build.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....ir.graph import Node
from ..context import TVM_TYPE

Unless = Callable[[Node], str | None]


@dataclass(frozen=True)
class Emitter:
    """One row of the table."""

    run: Callable[..., Any]
    unless: Unless | None = None


EMITTERS: dict[str, Emitter] = {}
OUTSIDE = ("constant", "state")  # values that the build itself places


def emits(*ops: str, unless: Unless | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares the function below it as the emitter of ``ops``."""

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in EMITTERS:
                raise ValueError(f"{op} has two TVM emitters")
            EMITTERS[op] = Emitter(run, unless)
        return run

    return add


def load() -> dict[str, Emitter]:
    """The table, filled."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return EMITTERS


def native(op: str) -> bool:
    """Whether the target has the op itself; the others are decomposed where they can be."""
    from ....ir.op import get

    return op in load() or get(op).decompose is None


def why_not(node: Node) -> str | None:
    """Why TVM cannot say what the node computes, or None if it can."""
    row = load().get(node.op)
    if row is None and node.op not in OUTSIDE:
        return "TVM has no counterpart here"
    for t in [*node.types, *(v.type for v in node.operands)]:
        if t.encoding.format != "dense":
            return f"operands in the encoding {t.encoding} have no form in TVM"
        if t.dtype.is_complex:
            return "TVM has no complex numbers"
        if t.dtype not in TVM_TYPE:
            return f"not written for {t.dtype}"
    return row.unless(node) if row is not None and row.unless is not None else None
