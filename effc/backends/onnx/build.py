"""A graph as an ONNX model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from ...ir.dims import Dim, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value
from ...ir.interp import solve_linear
from ...ir.op import get
from ...ir.ops.movement import symbol_name
from ...runtime.errors import EffcError
from .context import ONNX_TYPE, Array, Cx, Pair, Ref, Refuse, Shared
from .emit import emit, load
from .kernels import IR_VERSION, OPSET, OPSET_WITH_RANDOM
from .tidy import all_nodes, tidy, used

INLINE_LIMIT = 1_900_000_000  # a protobuf message may hold 2 GiB


@dataclass
class Built:
    """An ONNX model without its initializers' data, the data, and what was done.

    ``inputs`` and ``outputs`` are ONNX names in the graph's order; ``states`` and ``written`` (input index) name the
    extra inputs and outputs that carry buffers from one call to the next.
    """

    graph: onnx.GraphProto
    initializers: dict[str, Array]
    dtypes: dict[str, DType]
    inputs: list[str]
    outputs: list[str]
    states: dict[str, tuple[str, str | None]]  # name -> (input, output or None if never written)
    written: dict[int, str]
    metadata: dict[str, str]
    report: dict[str, Any]
    domains: dict[str, int]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.initializers.values())

    def model(self, tensors: Sequence[TensorProto] | None = None) -> onnx.ModelProto:
        """The ModelProto; ``tensors`` in place of initializers that hold their data."""
        given = [tensor(n, a, self.dtypes[n]) for n, a in self.initializers.items()] if tensors is None else tensors
        imports = [helper.make_opsetid(d, v) for d, v in self.domains.items()]
        m = helper.make_model(self.graph, opset_imports=imports, producer_name="effc", ir_version=IR_VERSION)
        m.graph.initializer.extend(given)
        helper.set_model_props(m, self.metadata)
        return m


def tensor(name: str, a: Array, dtype: DType, raw: bool = True) -> TensorProto:
    """A TensorProto with a's bytes in little endian, or, without ``raw``, with everything but them."""
    t = TensorProto(name=name, data_type=ONNX_TYPE[dtype], dims=a.shape)
    if raw:
        t.raw_data = a.tobytes()
    return t


def why_not(node: Node) -> str | None:
    """Why ONNX cannot say what the node computes, or None if it can. Asked of the emitters themselves, in a scope that
    is thrown away: sizes are taken as known."""
    if node.op == "state":
        return None
    for t in [*(v.type for v in node.operands), *node.types]:
        if t.dtype.real not in ONNX_TYPE:
            return f"onnxruntime has no kernels for {t.dtype}"
    cx = Cx(Shared({}))
    _assume_symbols(cx, node)

    def stand_in(v: Value) -> Ref:
        if v.dtype.is_complex:
            return Pair(cx.stand_in(v.dtype.real), cx.stand_in(v.dtype.real))
        return cx.stand_in(v.dtype)

    ins: list[Ref | None] = []
    for v in node.inputs:
        if v is not None and v.node.op == "constant":
            cx.walk([v.node])
            ins.append(cx.values[v])
        else:
            ins.append(None if v is None else stand_in(v))
    try:
        emit(cx, node, ins)
    except Refuse as e:
        return str(e)
    return f"{cx.shared.refused[0][0].op}: {cx.shared.refused[0][1]}" if cx.shared.refused else None


def _assume_symbols(cx: Cx, node: Node) -> None:
    from ...ir import dims as D

    found: set[str] = set()

    def look(x: Any) -> None:
        if isinstance(x, SymExpr):
            found.update(D.symbols(x))
        elif isinstance(x, (tuple, list)):
            for y in x:
                look(y)
        elif isinstance(x, Graph):
            for n in x.nodes:
                visit(n)

    def visit(n: Node) -> None:
        look([t.shape for t in n.types])
        look([v.shape for v in n.operands])
        look(list(n.attrs.values()))

    visit(node)
    for name in found:
        cx.symbols[name] = cx.stand_in(DType.i64)


def _dim(d: Dim) -> int | str:
    return d if isinstance(d, int) else str(d)


def _info(name: str, dtype: DType, shape: Sequence[Dim]) -> onnx.ValueInfoProto:
    sizes: list[int | str] = [_dim(d) for d in shape]
    if dtype.is_complex:
        sizes.append(2)
    if dtype.real not in ONNX_TYPE:
        raise EffcError(f"ONNX has no tensors of {dtype}")
    return helper.make_tensor_value_info(name, ONNX_TYPE[dtype.real], sizes)


def build(
    graph: Graph,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    name: str = "main",
    contributed: bool = False,
    strict_nan: bool = True,
) -> Built:
    """Writes ``graph``, which has been through the passes of this target; ``contributed``: with onnxruntime's own ops
    where they keep every value; ``strict_nan``: maxima over NaN and means of nothing are NaN, as in torch.
    EffcError lists every node that ONNX, or onnxruntime, has no form for."""
    load()
    random = any(get(n.op).effects == "random" for n in graph.walk())
    shared = Shared(graph.symbols, opset=OPSET_WITH_RANDOM if random else OPSET, contributed=contributed,
                    strict_nan=strict_nan)  # fmt: skip
    shared.users = graph.uses()
    cx = Cx(shared)
    given = list(input_names or [n.name or f"x{i}" for i, n in enumerate(graph.inputs)])
    infos: list[onnx.ValueInfoProto] = []
    inputs: list[str] = []
    wanted = [n for n in output_names or () if n not in given]
    shared.taken.update(wanted)
    for n, label in zip(graph.inputs, given, strict=True):
        name_in = cx.name(label or "x")
        inputs.append(name_in)
        _take(cx, n[0], name_in, infos)
    states: dict[str, tuple[str, str | None]] = {}
    shared.states.update({s: _new_input(cx, f"state.{s}", st.type, infos) for s, st in graph.states.items()})
    _bind_symbols(cx, graph, inputs)
    shared.cuts.update(_cuts(shared.users))
    cx.walk(graph.nodes)
    _refuse(shared, len(list(graph.walk())))
    outs: list[onnx.ValueInfoProto] = []
    outputs = [
        _give(cx, v, _label(output_names, i), outs, _label(output_names, i) in wanted)
        for i, v in enumerate(graph.outputs)
    ]
    after: dict[str, str] = {}
    written: dict[int, str] = {}
    for c in graph.commits:
        if c.state is not None:
            after[c.state] = _give(cx, c.value, f"state.{c.state}.next", outs)
        elif c.input is not None:
            written[c.input] = _give(cx, c.value, f"{inputs[c.input]}.next", outs)
    for s in graph.states:
        states[s] = (shared.state_names[s], after.get(s))
    tidy(cx, [*outputs, *after.values(), *written.values()])
    proto = helper.make_graph(cx.nodes, name, infos, outs)
    read = used(proto)
    initializers = {n: a for n, a in shared.initializers.items() if n in read}
    counts = Counter(n.op_type for n in all_nodes(proto))
    report = {
        "opset": shared.opset,
        "nodes": sum(counts.values()),
        "ops": dict(sorted(counts.items())),
        "casts": dict(sorted(shared.casts.items())),
        "notes": dict(shared.notes),
        "initializers": len(initializers),
        "bytes": sum(a.nbytes for a in initializers.values()),
    }
    bounds = {s: list(b) for s, b in graph.symbols.items()}
    checks = [[str(c.lhs), c.op, str(c.rhs), c.message] for c in graph.checks]
    metadata = {"effc.symbols": json.dumps(bounds), "effc.checks": json.dumps(checks)}
    domains = {"": shared.opset, **dict.fromkeys(sorted({n.domain for n in all_nodes(proto)} - {""}), 1)}
    return Built(proto, initializers, shared.dtypes, inputs, outputs, states, written, metadata, report, domains)


def _cuts(uses: Mapping[Value, Sequence[Node | None]]) -> dict[Value, int]:
    """Inverse real transforms of which only the first values of the last dim are used, as in a linear convolution."""
    found: dict[Value, int] = {}
    for v, users in uses.items():
        if v.node.op != "irfft" or v.node.attrs["dims"][-1] % v.rank != v.rank - 1:
            continue
        stops = []
        for u in users:
            if u is None or u.op != "slice" or any(u.attrs["starts"]) or set(u.attrs["steps"]) != {1}:
                break
            stop = u.attrs["stops"][-1]
            if u.attrs["stops"][:-1] != v.shape[:-1] or not isinstance(stop, int):
                break
            stops.append(stop)
        if stops and len(stops) == len(users) and max(stops) > 0:
            found[v] = max(stops)
    return found


def _label(names: Sequence[str] | None, i: int) -> str:
    return (names[i] if names else "") or f"y{i}"


def _new_input(cx: Cx, label: str, t: Any, infos: list[onnx.ValueInfoProto]) -> Ref:
    name = cx.name(label)
    cx.shared.state_names[label.removeprefix("state.")] = name
    cx.shared.dtypes[name] = t.dtype.real
    infos.append(_info(name, t.dtype, t.shape))
    return cx.split(name) if t.dtype.is_complex else name


def _take(cx: Cx, v: Value, name: str, infos: list[onnx.ValueInfoProto]) -> None:
    cx.shared.dtypes[name] = v.dtype.real
    infos.append(_info(name, v.dtype, v.shape))
    cx.values[v] = cx.split(name) if v.dtype.is_complex else name


def _give(cx: Cx, v: Value, label: str, outs: list[onnx.ValueInfoProto], reserved: bool = False) -> str:
    """Makes v an output of the model under a name of its own."""
    x = cx.find(v)
    assert x is not None
    source = cx.join(x) if isinstance(x, Pair) else x
    name = label if reserved and all(o.name != label for o in outs) else cx.name(label)
    cx.nodes.append(helper.make_node("Identity", [source], [name]))
    cx.shared.dtypes[name] = v.dtype.real
    outs.append(_info(name, v.dtype, v.shape))
    return name


def _bind_symbols(cx: Cx, graph: Graph, inputs: Sequence[str]) -> None:
    """Symbols from the inputs' shapes: those that stand alone first, then those inside linear expressions."""
    later = []
    for n, name in zip(graph.inputs, inputs, strict=True):
        for i, d in enumerate(n.types[0].shape):
            if isinstance(d, int):
                continue
            symbol = symbol_name(d)
            if symbol is None:
                later.append((name, i, d))
            elif symbol not in cx.symbols:
                cx.symbols[symbol] = cx.raw("Shape", [name], [DType.i64], start=i, end=i + 1)[0]
    from ...ir import dims as D

    for name, i, d in later:
        free = D.symbols(d) - cx.symbols.keys()
        if len(free) != 1:
            continue
        symbol = next(iter(free))
        env = dict.fromkeys(D.symbols(d), 0)
        probe: dict[str, int] = dict(env)
        solve_linear(d, symbol, D.evaluate(d, {**env, symbol: 1}), probe)
        slope = D.evaluate(d, {**env, symbol: 1}) - D.evaluate(d, env)
        rest = D.substitute(d, {symbol: 0})
        if slope == 0 or rest + slope * D.symbol(symbol) != d:
            continue
        size = cx.raw("Shape", [name], [DType.i64], start=i, end=i + 1)[0]
        moved = cx.op("Sub", size, cx.dim(rest))
        cx.symbols[symbol] = moved if slope == 1 else cx.op("Div", moved, cx.ints(slope))


def _refuse(shared: Shared, total: int) -> None:
    if not shared.refused:
        return
    rows: dict[tuple[str, str], list[Node]] = {}
    for n, reason in shared.refused:
        rows.setdefault((n.op, reason), []).append(n)
    lines = [
        f"{op} ({reason}), {len(ns)}x, first at {ns[0].loc or 'an unknown line'}: "
        + ", ".join(str(v.type) for v in ns[0].operands)
        for (op, reason), ns in rows.items()
    ]
    first = shared.refused[0][0]
    raise EffcError(
        f"{len(shared.refused)} of {total} operations cannot be written as ONNX:\n    " + "\n    ".join(lines),
        op=first.op, loc=first.loc, shapes=[str(v.type) for v in first.operands],
        hint="replace the operation in the model, or compile with target='cpu'",
    )  # fmt: skip
