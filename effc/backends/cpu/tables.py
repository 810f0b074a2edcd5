"""Bytes that are a function of one byte: a table of 256 entries instead of what is between two roundings.

Quantized models round before and after an activation: bytes, made floats, a GELU, bytes again. Whatever lies between is
a function of the byte, so all of its values are known when the model is compiled. :func:`split` finds it in a body, and
computes it for each byte by the ops' references (numpy, each op in its own type): the arithmetic as the graph has it,
which is what defines the result. The loop then ends with the first byte, an index, and looks the result up.

Looking up takes half a cycle for each byte (16 shuffles and 15 blends for 32), less than a transcendental function
takes, and more than a few additions and products in vectors: a body without the former keeps its arithmetic. So does
one with constants between the roundings that vary by channel, a bias say: a table for each channel would have to be
looked up byte by byte, which takes as long as a GELU (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import get
from ...passes.fuse.kinds import is_map

Array = np.ndarray[Any, Any]
BYTES = (DType.u8, DType.i8)
ENTRIES = 256
DEAR = frozenset(
    "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv "
    "lgamma digamma sigmoid pow atan2".split()
)


@dataclass(frozen=True)
class Tabled:
    """``body`` makes the first byte, from those inputs that it still reads (``kept``, by number); ``table``, u8 [256],
    has the bits of the last one. ``nodes``: how many a lookup stands for."""

    body: Graph
    kept: tuple[int, ...]
    table: Array
    nodes: int


def split(body: Graph, known: Sequence[Array | None]) -> Tabled | str | None:
    """A body with one result, of bytes, that is a function of one byte within it and of constants; why not, where it
    nearly is; None where it is no such thing. ``known``: the data of the body's inputs, where they are constant."""
    if len(body.outputs) != 1 or body.outputs[0].dtype not in BYTES:
        return None
    out = body.outputs[0]
    data = {n[0]: a for n, a in zip(body.inputs, known, strict=True) if a is not None}
    for v in [*(n[0] for n in body.inputs), *(v for n in body.nodes for v in n.values)]:
        if v.dtype not in BYTES or v.shape != out.shape or v == out or v in data:
            continue
        between = _between(v, out, data)
        if between is None or not any(n.op in DEAR for n in between):
            continue
        if any(x in data and data[x].size != 1 for n in between for x in n.operands):
            return "between two roundings it depends on a byte and the channel: no table of 256 entries"
        return _tabled(body, v, _table(v, out, between, data), len(between))
    return None


def _between(first: Value, out: Value, data: dict[Value, Array]) -> list[Node] | None:
    """The nodes that make ``out`` of ``first`` and constants, in order; None if something else is read."""
    found: dict[Node, None] = {}
    reads = False

    def visit(v: Value) -> bool:
        nonlocal reads
        if v == first:
            reads = True
            return True
        if v in data or v.node in found:
            return True
        n = v.node
        if n.op != "constant" and (not is_map(n) or n.op == "dim_value" or get(n.op).numpy is None):
            return False
        if not all(visit(x) for x in n.operands):
            return False
        found[n] = None
        return True

    return list(found) if visit(out) and reads else None


def _table(first: Value, out: Value, nodes: Sequence[Node], data: dict[Value, Array]) -> Array:
    """The results for bytes 0 .. 255, as bits."""
    env: dict[Value, Array] = {v: a.reshape(()) for v, a in data.items() if a.size == 1}
    env[first] = np.arange(ENTRIES, dtype=np.uint8).view(first.dtype.np)
    with np.errstate(all="ignore"):
        for n in nodes:
            if n.op == "constant":
                env[n[0]] = n.attrs["data"].reshape(())
                continue
            reference = get(n.op).numpy
            assert reference is not None
            env[n[0]] = np.asarray(reference(*(env[v] for v in n.operands), **n.attrs))
    table = env[out]
    assert table.shape == (ENTRIES,) and table.dtype == out.dtype.np, (table.shape, table.dtype)
    return np.ascontiguousarray(table).view(np.uint8)


def _tabled(body: Graph, first: Value, table: Array, nodes: int) -> Tabled:
    needed: set[Value] = set()
    todo = [first]
    while todo:
        v = todo.pop()
        if v not in needed:
            needed.add(v)
            todo += v.node.operands
    kept = tuple(k for k, n in enumerate(body.inputs) if k == 0 or n[0] in needed)
    b = Builder(body.symbols)
    env = {body.inputs[k][0]: b.input(body.inputs[k].name or f"x{k}", body.inputs[k].types[0]) for k in kept}
    for n in body.nodes:
        if any(v in needed for v in n.values):
            made = replace(n, inputs=tuple(None if v is None else env[v] for v in n.inputs))
            b.nodes.append(made)
            env.update(zip(n.values, made.values, strict=True))
    return Tabled(b.graph([env[first]]), kept, table, nodes)
