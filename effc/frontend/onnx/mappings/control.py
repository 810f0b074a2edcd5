"""If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ....ir import dims as D
from ....ir.contents import Ratio
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ....ir.types import TensorType
from ..context import Context
from ..registry import Unsupported, onnx_op

UNROLLED = 256  # iterations of a loop whose body cannot be one graph: it grows a tensor or a sequence


@onnx_op("If")
def _if(cx: Context, cond: Value, *, then_branch: onnx.GraphProto, else_branch: onnx.GraphProto) -> Any:
    """A condition that is known while compiling takes its branch in place."""
    imp = cx.importer
    cond = cx.reshape(cond, ())
    if _known(cx, cond) is None:
        names = imp.captures(then_branch, else_branch)
        then, passed, a = imp.open_subgraph(then_branch, [], names)
        orelse, _, b = imp.open_subgraph(else_branch, [], names)
        pairs = list(zip(_flat(a), _flat(b)))
        if _shape_of(a) == _shape_of(b) and all(x.dtype is y.dtype and x.rank == y.rank for x, y in pairs):
            for k, (x, y) in enumerate(pairs):
                pairs[k] = _same_sizes(cx, then, orelse, x, y)
            graphs = {
                "then": then.b.graph([x for x, _ in pairs], name="then"),
                "orelse": orelse.b.graph([y for _, y in pairs], name="orelse"),
            }
            return tuple(_like(a, iter(cx.b.node("if", (cond, *passed), graphs).values)))
        taken = _assumed(cx, cond)
        if taken is not None:
            return imp.inlined(then_branch if taken else else_branch)
        cx.number(cond, "the condition of branches with results of different ranks")
    return imp.inlined(then_branch if _known(cx, cond) else else_branch)


def _assumed(cx: Context, cond: Value) -> bool | None:
    """Which of two branches with results of different ranks is meant, where the condition is that two sizes are equal
    (exporters write a squeeze of a dim that may be 1 so): the example's, else the one for equal sizes. A run for which
    it does not hold is refused.
    """
    n = cond.node
    while n.op in ("reshape", "convert") and n.operands:
        n = n.operands[0].node
    if n.op != "eq":
        return None
    sides = [cx.content(v) for v in n.operands]
    if any(c is None or c.size != 1 for c in sides):
        return None
    a, b = (c.reshape(-1)[0] for c in sides if c is not None)
    if isinstance(a, Ratio) or isinstance(b, Ratio) or not D.symbols(a - b) <= cx.known:
        return None
    sizes = cx.importer.example_sizes()
    equal = D.evaluate(a, sizes) == D.evaluate(b, sizes) if D.symbols(a - b) <= sizes.keys() else True
    cx.require(
        a, "==" if equal else "!=", b, f"the model was compiled for inputs with {a} {'==' if equal else '!='} {b}"
    )
    return equal


def _known(cx: Context, v: Value | None) -> Any:
    """The number that a value holds, or None."""
    c = None if v is None else cx.content(v)
    return None if c is None or c.dtype == object or c.size != 1 else c.reshape(-1)[0].item()


def _flat(items: Sequence[Any]) -> list[Value]:
    return [v for i in items for v in (_flat(i) if isinstance(i, list) else [i]) if v is not None]


def _shape_of(items: Sequence[Any]) -> list[Any]:
    return [_shape_of(i) if isinstance(i, list) else i is None for i in items]


def _like(items: Sequence[Any], values: Any) -> list[Any]:
    return [_like(i, values) if isinstance(i, list) else None if i is None else next(values) for i in items]


def _same_sizes(cx: Context, then: Any, orelse: Any, x: Value, y: Value) -> tuple[Value, Value]:
    """Where the branches' sizes differ, a symbol that either branch binds to its own."""
    if x.shape == y.shape:
        return x, y
    shape: list[Dim] = []
    fresh: list[int] = []
    for k, (a, b) in enumerate(zip(x.shape, y.shape)):
        if a == b:
            shape.append(a)
        else:
            shape.append(cx.new_symbol())
            fresh.append(k)
    out = []
    for imp, v in ((then, x), (orelse, y)):
        for k in fresh:
            imp.b.symbols[str(shape[k])] = cx.b.symbols[str(shape[k])]
            imp.b.op("item", imp.cx.scalar(v.shape[k], DType.i64), value=shape[k])
        out.append(imp.b.op("reshape", v, shape=tuple(shape)))
    return out[0], out[1]


@onnx_op("Loop")
def _loop(cx: Context, trip: Value | None, cond: Value | None, *start: Any, body: onnx.GraphProto) -> Any:
    """By the body's own form: a scan where nothing ends it early, else a while; unrolled where types change from one
    iteration to the next and the number of iterations is known.
    """
    imp = cx.importer
    if len(body.input) != len(start) + 2:
        raise Unsupported(f"a body of {len(body.input)} inputs for {len(start)} carried values")
    length = None if trip is None else _trip(cx, trip)
    first = True if cond is None else _known(cx, cond)
    if first is False or length == 0:
        return _no_iterations(cx, start, body)
    if all(isinstance(v, Value) for v in start):
        types = [TensorType(DType.i64, ()), TensorType(DType.bool, ()), *(v.type for v in start)]
        names, outside = imp.captures(body), set(cx.b.symbols)
        inner, passed, items = imp.open_subgraph(body, types, names, {1: np.asarray(True)})
        outs = _flat(items)
        if len(outs) == len(items) and _fit(inner.cx, outs, start):
            _declared(inner.cx, outs, body, 1 + len(start), outside)
            outs[0] = inner.cx.reshape(outs[0], ())
            if _known(inner.cx, outs[0]) is True and first is True and length is not None:
                return _as_scan(cx, inner, outs[1:], start, passed, length)
            if length is None and trip is not None and len(outs) > 1 + len(start):
                length = cx.dim(trip, "the number of iterations")
            return _as_while(cx, inner, outs, start, passed, length, cond)
    return _unrolled(cx, trip, cond, start, body)


def _fit(cx: Context, outs: list[Value], start: Sequence[Value]) -> bool:
    """Whether the body gives the types that it is given; a size known only while running must agree then."""
    for k, want in enumerate((v.type for v in start), start=1):
        v = outs[k]
        if v.dtype is not want.dtype or v.rank != want.rank:
            return False
        if any(a != b and D.symbols(a - b) <= cx.known for a, b in zip(v.shape, want.shape)):
            return False  # another size for nearly every input: a tensor that grows
        if v.shape != want.shape:
            for a, b in zip(v.shape, want.shape):
                cx.require(a, "==", b, "what a loop carries must keep its size")
            outs[k] = cx.reshape(v, want.shape)
    return True


def _declared(cx: Context, outs: list[Value], body: onnx.GraphProto, first: int, outside: set[str]) -> None:
    """Stacked results whose sizes only the body knows take the sizes that the model declares, which is checked."""
    for k in range(first, len(outs)):
        inside = [i for i, d in enumerate(outs[k].shape) if not D.symbols(d) <= outside]
        if not inside:
            continue
        declared = body.output[k].type.tensor_type.shape.dim
        shape = list(outs[k].shape)
        for i in inside:
            if len(declared) != len(shape) or not declared[i].HasField("dim_value"):
                raise Unsupported(f"stacked result {body.output[k].name} of a size computed in each iteration")
            shape[i] = int(declared[i].dim_value)
            cx.require(outs[k].shape[i], "==", shape[i], "stacked results must have the size that the model declares")
        outs[k] = cx.reshape(outs[k], shape)


def _trip(cx: Context, trip: Value) -> Dim | None:
    c = cx.content(trip)
    if c is None:
        return None
    n = cx.dim(trip, "the number of iterations", -(1 << 62))
    return None if isinstance(n, int) and n >= 1 << 40 else cx.most(n, 0)


def _no_iterations(cx: Context, start: Sequence[Any], body: onnx.GraphProto) -> Any:
    scans = body.output[1 + len(start) :]
    out = list(start)
    for o in scans:
        t = o.type.tensor_type
        from ..dtypes import dtype_of

        shape = [int(d.dim_value) for d in t.shape.dim]
        out.append(cx.full(0, (0, *shape), dtype_of(t.elem_type)))
    return tuple(out)


def _as_scan(
    cx: Context, inner: Any, outs: list[Value], start: Sequence[Value], passed: list[Value], length: Dim
) -> Any:
    """for i in range(length), with the iteration's number as the scanned operand."""
    b = inner.b
    number, always, *rest = b.inputs
    k = len(start)
    carries, captured = rest[:k], rest[k:]
    del always  # true in every iteration; the body's uses of it are constants by now
    inputs = [*carries, number, *captured]
    body = _graph(b, inputs, outs, skip=1)
    attrs = {"carries": k, "scanned": 1, "length": length, "body": body}
    return tuple(cx.b.node("scan", (*start, cx.iota(length), *passed), attrs).values)


def _graph(b: Any, inputs: Sequence[Any], outs: Sequence[Value], skip: int | None = None) -> Any:
    """The graph of a builder with its inputs in another order; input ``skip`` stands for true."""
    from ....ir.graph import Builder

    made = b.graph(outs, name="body")
    new = Builder(b.symbols)
    env = {n: new.input(n.name, n.types[0]) for n in inputs}
    args = [env[n] if n in env else new.constant(True, DType.bool) for n in b.inputs]
    if skip is None and len(env) != len(b.inputs):
        raise AssertionError("an input is missing")
    return new.graph(made.inline(new, args), name="body")


def _as_while(
    cx: Context,
    inner: Any,
    outs: list[Value],
    start: Sequence[Value],
    passed: list[Value],
    length: Dim | None,
    cond: Any,
) -> Any:
    """Carries: the iteration's number, the condition, the loop's own, and a buffer for each stacked result, whose rows
    that were written are cut out afterwards.
    """
    from ....ir.graph import Builder

    k = len(start)
    stacked = outs[1 + k :]
    if stacked and length is None:
        raise Unsupported("stacked results of a loop whose number of iterations has no bound known while compiling")
    one = inner.cx
    number = inner.b.inputs[0][0]
    buffers = [cx.full(False if v.dtype.is_bool else 0, (length, *v.shape), v.dtype) for v in stacked]
    rows = [inner.b.input(f"rows{j}", x.type) for j, x in enumerate(buffers)]
    at = one.reshape(number, (1,))
    written = [
        one.b.op("index_copy", r, at, one.reshape(v, (1, *v.shape)), dim=0) for r, v in zip(rows, stacked)
    ]  # fmt: skip
    results = [one.add(number, 1), *outs[: 1 + k], *written]
    order = [*inner.b.inputs[: 2 + k], *(r.node for r in rows)]
    order += [n for n in inner.b.inputs if n not in order]
    body = _graph(inner.b, order, results)
    test = Builder(inner.b.symbols)
    ins = [test.input(n.name, n.types[0]) for n in order]
    go = ins[1]
    if length is not None:
        limit = test.op("dim_value", value=length, dtype=DType.i64)
        go = test.op("logical_and", go, test.op("lt", ins[0], limit))
    begin = cx.const(True, DType.bool) if cond is None else cx.reshape(cond, ())
    carries = [cx.const(0, DType.i64), begin, *start, *buffers]
    attrs = {"carries": len(carries), "cond": test.graph([go], name="cond"), "body": body}
    done = cx.b.node("while", (*carries, *passed), attrs).values
    found = list(done[2 : 2 + k])
    if stacked:
        n = cx.new_symbol()
        cx.b.op("item", done[0], value=n)
        found += [cx.slice(v, 0, 0, n) for v in done[2 + k :]]
    return tuple(found)


def _unrolled(cx: Context, trip: Value | None, cond: Value | None, start: Sequence[Any], body: onnx.GraphProto) -> Any:
    """Iterations in place; the condition of each must be known."""
    if cond is not None and not cx.number(cond, "the condition of a loop that changes types"):
        return _no_iterations(cx, start, body)
    n = None if trip is None else cx.number(trip, "the number of iterations of a loop that changes types")
    carried, rows = list(start), []
    go, i = True, 0
    while go and (n is None or i < n):
        if i >= UNROLLED:
            raise Unsupported(f"a loop of more than {UNROLLED} iterations that changes the types of what it carries")
        step = cx.b.constant(np.asarray(i, np.int64))
        out = cx.importer.inlined(body, [step, cx.const(True, DType.bool), *carried])
        if n is None or i + 1 < n:
            go = bool(cx.number(out[0], "the condition of a loop that changes types"))
        carried = list(out[1 : 1 + len(start)])
        rows.append(out[1 + len(start) :])
        i += 1
    if not rows:
        return _no_iterations(cx, start, body)
    return (*carried, *(cx.concat([cx.unsqueeze(v, 0) for v in column], 0) for column in zip(*rows)))


@onnx_op("Scan", since=9)
def _scan(
    cx: Context, *xs: Value, body: onnx.GraphProto, num_scan_inputs: int, scan_input_axes: Any = None,
    scan_input_directions: Any = None, scan_output_axes: Any = None, scan_output_directions: Any = None,
) -> Any:  # fmt: skip
    k = len(xs) - num_scan_inputs
    carries, scanned = list(xs[:k]), list(xs[k:])
    for j, x in enumerate(scanned):
        axis = cx.axis(scan_input_axes[j], x.rank) if scan_input_axes else 0
        x = cx.moveaxis(x, axis, 0)
        scanned[j] = cx.b.op("flip", x, dims=(0,)) if scan_input_directions and scan_input_directions[j] else x
    length = scanned[0].shape[0]
    for x in scanned[1:]:
        cx.require(length, "==", x.shape[0], "scanned operands must have the same length")
    types = [*(c.type for c in carries), *(x.type.with_shape(x.shape[1:]) for x in scanned)]
    outside = set(cx.b.symbols)
    inner, passed, items = cx.importer.open_subgraph(body, types, cx.importer.captures(body))
    outs = [inner.b.inputs[0][0], *_flat(items)]  # _fit skips the first, where a loop has its condition
    if not _fit(inner.cx, outs, carries):
        found = [v.type for v in outs[1 : 1 + k]]
        raise Unsupported(f"a scan that changes the types of what it carries, {[c.type for c in carries]} to {found}")
    outs = outs[1:]
    _declared(inner.cx, outs, body, k, outside)
    graph = inner.b.graph(outs, name="body")
    attrs = {"carries": k, "scanned": len(scanned), "length": length, "body": graph}
    out = list(cx.b.node("scan", (*carries, *scanned, *passed), attrs).values)
    for j in range(k, len(out)):
        v = out[j]
        if scan_output_directions and scan_output_directions[j - k]:
            v = cx.b.op("flip", v, dims=(0,))
        axis = cx.axis(scan_output_axes[j - k], v.rank) if scan_output_axes else 0
        out[j] = cx.moveaxis(v, 0, axis)
    return tuple(out)


@onnx_op("Scan", since=8)
def _scan_batched(cx: Context, lengths: Value | None, *xs: Value, body: onnx.GraphProto, num_scan_inputs: int,
                  directions: Any = None) -> Any:  # fmt: skip
    """The first form has a batch dim before the scanned one; each batch element is a scan of its own."""
    if lengths is not None:
        raise Unsupported("lengths of sequences")
    n = xs[0].shape[0]
    if not isinstance(n, int):
        raise Unsupported("a batch whose size is not constant")
    each = [
        _scan(cx, *(cx.select(x, 0, i) for x in xs), body=body, num_scan_inputs=num_scan_inputs,
              scan_input_directions=directions)
        for i in range(n)
    ]  # fmt: skip
    return tuple(cx.concat([cx.unsqueeze(v, 0) for v in column], 0) for column in zip(*each))
