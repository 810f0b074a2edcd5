"""The emitters: how each op of the IR is written in ONNX, one declaration an op, in files by family.

    @emits("flip", parts=True)
    def flip(cx, node, x): ...

An emitter gets the scope, the node, and its operands as ONNX tensor names (None for an absent one, ``Pair`` for a
complex one), and returns a name or a ``Pair``, or a tuple of them for several results. It raises ``Refuse`` with a
reason. ``parts``: what moves data without looking at it is applied to real and imaginary parts alike. ``wide``: half
types are computed in f32 and rounded once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Pair, Ref, Refuse


@dataclass(frozen=True)
class Emitter:
    """One row of the table."""

    run: Callable[..., Any]
    parts: bool = False
    wide: bool = False
    complex: bool = False


EMITTERS: dict[str, Emitter] = {}


def emits(*ops: str, parts: bool = False, wide: bool = False, complex: bool = False) -> Any:
    """Declares the function below it as the emitter of ``ops``; ``complex``: it takes ``Pair`` operands itself."""

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in EMITTERS:
                raise ValueError(f"{op} has two ONNX emitters")
            EMITTERS[op] = Emitter(run, parts, wide, complex)
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


def emit(cx: Cx, node: Node, ins: Sequence[Ref | None]) -> tuple[Ref, ...]:
    """Writes a node; Refuse says why not."""
    e = load().get(node.op)
    if e is None:
        raise Refuse("ONNX has no counterpart")
    for t in [*node.types, *(v.type for v in node.operands)]:
        if t.encoding.format != "dense":
            raise Refuse(f"operands in the encoding {t.encoding} have no ONNX form")
    mixed = any(isinstance(x, Pair) for x in ins) or any(t.dtype.is_complex for t in node.types)
    if mixed and e.parts:
        halves = [
            _results(e.run(cx, node, *(getattr(x, part) if isinstance(x, Pair) else x for x in ins)))
            for part in ("re", "im")
        ]
        return tuple(Pair(re, im) if t.dtype.is_complex else re for t, re, im in zip(node.types, *halves, strict=True))
    if mixed and not e.complex:
        raise Refuse("not written for complex numbers")
    if e.wide:
        ins = [
            cx.cast(x, cx.dtype(x).compute, node.op) if isinstance(x, str) and cx.dtype(x).is_float else x for x in ins
        ]
    outs = _results(e.run(cx, node, *ins))
    return tuple(_typed(cx, o, t.dtype) for o, t in zip(outs, node.types, strict=True))


def _typed(cx: Cx, x: Ref, dtype: DType) -> Ref:
    if isinstance(x, Pair):
        return Pair(cx.cast(x.re, dtype.real), cx.cast(x.im, dtype.real))
    return cx.cast(x, dtype)


def _results(out: Any) -> tuple[Ref, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)
