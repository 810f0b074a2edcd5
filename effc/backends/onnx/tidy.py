"""The last look at a model's nodes: unused ones go, nodes over constants are computed, outputs get their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from .context import Array, Cx

FOLD_LIMIT = 1 << 28  # bytes of a result that is computed here and not by the engine


def tidy(cx: Cx, outputs: Sequence[str]) -> None:
    """Rewrites the nodes of a model's main scope in place; ``outputs`` are the names that its graph gives back."""
    _drop_unused(cx)
    _fold(cx)
    _name_outputs(cx, outputs)


def all_nodes(g: onnx.GraphProto) -> list[onnx.NodeProto]:
    out = []
    for n in g.node:
        out.append(n)
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                out += all_nodes(a.g)
    return out


def used(g: onnx.GraphProto) -> set[str]:
    return {x for n in all_nodes(g) for x in n.input} | {o.name for n in all_nodes(g) for o in graph_outputs(n)}


def graph_outputs(n: onnx.NodeProto) -> list[onnx.ValueInfoProto]:
    return [o for a in n.attribute if a.type == onnx.AttributeProto.GRAPH for o in a.g.output]


def _drop_unused(cx: Cx) -> None:
    """Leaves out nodes whose results nothing takes; the last Identity nodes are the outputs."""
    needed: set[str] = set()
    keep = []
    for n in reversed(cx.nodes):
        final = n.op_type == "Identity" and n.output[0] not in cx.shared.internal and not n.name
        if not final and not any(o in needed for o in n.output):
            continue
        keep.append(n)
        needed.update(n.input)
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                needed |= used(a.g)
    cx.nodes[:] = reversed(keep)


# Constants ------------------------------------------------------------------------------------------------------------


def _reshape(x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


# Ops that move data, by numpy; operands first, then attributes.
MOVES: dict[str, Callable[..., Array]] = {
    "Gather": lambda x, i, axis=0: np.take(x, i, axis),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(int(a) for a in axes)),
    "Squeeze": lambda x, axes: np.squeeze(x, tuple(int(a) for a in axes)),
    "Reshape": _reshape,
    "Transpose": lambda x, perm: np.transpose(x, perm),
}


def _fold(cx: Cx) -> None:
    """Moves of constants are done here: once, and not at each start of an engine."""
    reads = Counter(x for n in _every(cx.nodes) for x in n.input)
    kept = []
    for n in cx.nodes:
        value = _moved(cx, n, reads)
        if value is None:
            kept.append(n)
        else:
            cx.shared.initializers[n.output[0]] = value
    cx.nodes[:] = kept


def _moved(cx: Cx, n: onnx.NodeProto, reads: Mapping[str, int]) -> Array | None:
    """What n makes of constants, or None. A constant that is read elsewhere too stays as it is, so that no weight is
    held twice; so does one that would grow."""
    shared = cx.shared
    given = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
    move = None if n.domain or "allowzero" in given else MOVES.get(n.op_type)
    data = [shared.initializers[x] for x in n.input if x in shared.initializers]
    if move is None or not data or len(data) != len(n.input):
        return None
    size = sum(a.nbytes for a in data)
    if size > FOLD_LIMIT or any(
        reads[x] > 1 and x not in shared.values for x in (n.input if n.op_type == "Concat" else n.input[:1])
    ):
        return None
    if n.op_type == "Gather" and not _inside(data[1], data[0].shape[given.get("axis", 0)]):
        return None  # an error of the model's, for when it is run
    value = move(*data, **given)
    return value if value.nbytes <= size else None


def _inside(index: Array, size: int) -> bool:
    return bool(((index >= -size) & (index < size)).all())


def _every(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for n in nodes:
        yield n
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(a.g)


# Outputs --------------------------------------------------------------------------------------------------------------


def _name_outputs(cx: Cx, outputs: Sequence[str]) -> None:
    """What an output copies takes the output's name, if a node of the main scope makes it and no other output is it."""
    made = {o for n in cx.nodes for o in n.output}
    copies = {n.output[0]: n for n in cx.nodes if n.op_type == "Identity" and n.output[0] in outputs}
    sources: dict[str, str] = {}
    for out, n in copies.items():
        if n.input[0] in made and n.input[0] not in copies and n.input[0] not in sources:
            sources[n.input[0]] = out
    gone = {id(copies[out]) for out in sources.values()}
    cx.nodes[:] = [n for n in cx.nodes if id(n) not in gone]
    for n in _every(cx.nodes):
        for names in (n.input, n.output):
            for i, x in enumerate(names):
                names[i] = sources.get(x, x)
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                for o in a.g.output:
                    o.name = sources.get(o.name, o.name)
