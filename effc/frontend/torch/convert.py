"""From an exported program to one IR graph: the driver that walks the FX graph and calls the mappings."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy
import torch
import torch.fx as fx
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from ...ir import dims as D
from ...ir.dims import Dim, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Builder, Check, Commit, Graph, Loc, State, Value
from ...ir.op import OPS
from ...ir.types import TensorType
from ...runtime.errors import EffcError
from ..imported import ImportedGraph, Problems, Unsupported
from . import registry, shapes, trees
from .context import BIG, Context
from .dtypes import dtype_of
from .shapes import NotADim, SymNumber, is_sym, to_dim
from .state import Weights


def import_model(
    model: Any,
    args: Any = (),
    kwargs: Any = None,
    dynamic_shapes: Any = None,
    foreseen: Callable[[Graph], object] | None = None,
) -> ImportedGraph:
    """The IR of an ``nn.Module``, an ``ExportedProgram`` or a ``.pt2`` file; EffcError lists everything that cannot
    be taken. ``foreseen`` is called with a graph that is nearly the result where a second trace follows.
    """
    from .export import to_program

    registry.load()
    program, guards = to_program(model, args, kwargs, dynamic_shapes)
    imported = convert_program(program, guards)
    if dynamic_shapes is None or isinstance(model, (str, os.PathLike, torch.export.ExportedProgram)):
        return imported  # nothing is dynamic, or there is no model to trace again
    from .ones import relax

    if foreseen is not None:
        foreseen(imported.graph)

    args = (args,) if isinstance(args, (torch.Tensor, np.ndarray)) else tuple(args)
    graph = relax(imported.graph, args, kwargs, lambda a, k: convert_program(*to_program(model, a, k, None)).graph)
    return imported if graph is imported.graph else replace(imported, graph=graph)


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')
_TORCH = os.path.dirname(torch.__file__) + os.sep


@functools.lru_cache(maxsize=4096)
def _frame(trace: str) -> tuple[str, int, str]:
    """The innermost frame outside torch; the innermost of all if there is none."""
    frames = _FRAME.findall(trace)
    user = [
        f
        for f in frames
        if not f[0].startswith(_TORCH) and not f[0].startswith("<") and f"{os.sep}torch{os.sep}" not in f[0]
    ]
    if not (user or frames):
        return "", 0, ""
    file, line, code = (user or frames)[-1]
    return file, int(line), code.strip()


def location(n: fx.Node) -> Loc | None:
    stack = n.meta.get("nn_module_stack") or {}
    module = ""
    if stack:
        last = list(stack.values())[-1]
        module = str(last[0]) if not str(last[0]).startswith("_empty") else ""
    trace = n.meta.get("stack_trace")
    if not trace and not module:
        return None
    file, line, code = _frame(trace) if trace else ("", 0, "")
    return Loc(file, line, code, module.removeprefix("L['self'].").removeprefix("L__self___"))


class GraphImporter:
    """Imports one FX graph into one builder."""

    def __init__(
        self, root: torch.nn.Module, builder: Builder, problems: Problems, numbers: dict[str, Value] | None = None
    ) -> None:
        self.root, self.b, self.problems = root, builder, problems
        self.known: dict[str, Dim] = {}
        self.cx = Context(builder, self.known, {} if numbers is None else numbers)
        self.env: dict[fx.Node, Any] = {}
        self.checks: list[Check] = []
        self.natural: dict[
            str, tuple[int, int | None]
        ] = {}  # what data-dependent symbols can be, before any assertion of the model
        self.inputs_known: set[str] = set()  # symbols whose value is known before the first node runs

    # arguments --------------------------------------------------------------------------------------------------------

    def number(self, x: Any) -> Any:
        """A SymInt as a dim, another sym as a SymNumber; plain Python when constant."""
        if not is_sym(x):
            return x
        e = shapes.sym_expr(x)
        if isinstance(x, torch.SymInt):
            if isinstance(e, int) or e.is_Integer:
                return int(e)
            try:
                return to_dim(e, self.known)
            except NotADim:
                return SymNumber(e, int)
        if isinstance(x, torch.SymBool):
            if e in (True, False, sympy.true, sympy.false):
                return bool(e)
            return SymNumber(e, bool)
        return float(e) if e.is_number else SymNumber(e, float)

    def arg(self, a: Any) -> Any:
        if isinstance(a, fx.Node):
            return self.env[a]
        if isinstance(a, (list, tuple)):
            items = [self.arg(x) for x in a]
            return items if isinstance(a, list) else tuple(items)
        if isinstance(a, dict):
            return {k: self.arg(v) for k, v in a.items()}
        if is_sym(a):
            return self.number(a)
        return a

    def type_of(self, fake: Any) -> TensorType | None:
        """The IR type of a fake tensor; sizes without a dim form become symbols computed by ``item``."""
        if not isinstance(fake, torch.Tensor):
            return None
        return TensorType(dtype_of(fake.dtype), tuple(self.size(s) for s in fake.shape))

    def size(self, s: Any) -> Dim:
        if isinstance(s, int):
            return s
        d = self.number(s)
        if isinstance(d, (int, SymExpr)):
            return d
        key = f"@{d.expr}"
        if key not in self.known:
            self.known[key] = self.cx.dim(d)
        return self.known[key]

    # nodes ------------------------------------------------------------------------------------------------------------

    def run(self, graph: fx.Graph) -> Any:
        """Imports all nodes but placeholders; returns the output node's arguments as imported."""
        for n in graph.nodes:
            if n.op == "placeholder":
                continue
            self.b.loc = location(n)
            if n.op == "output":
                return self.arg(n.args[0])
            if n.op == "get_attr":
                self.env[n] = self._attribute(n)
            elif n.op == "call_function":
                self.env[n] = self.call(n)
            else:
                self.problems.add(f"{n.op} {n.target}", self.b.loc)
        return ()

    def _attribute(self, n: fx.Node) -> Any:
        value: Any = self.root
        for part in str(n.target).split("."):
            value = getattr(value, part)
        if isinstance(value, torch.Tensor):
            return Weights(self.b).constant(str(n.target), value)
        return value

    def call(self, n: fx.Node) -> Any:
        target: Any = n.target
        if target is operator.getitem:
            source = self.env[n.args[0]]
            return source[n.args[1]]
        fake = n.meta.get("val")
        if is_sym(fake) or (type(fake) in (int, float, bool) and not isinstance(target, torch._ops.OpOverload)):
            return self._sym_node(n, fake)
        if isinstance(target, torch._ops.HigherOrderOperator):
            from .higher_order import import_hop

            return self._guarded(n, target.name(), lambda: import_hop(self, n))
        if not isinstance(target, torch._ops.OpOverload):
            if fake is None:  # arithmetic on constants, or an assertion helper
                return None
            self.problems.add(f"function {getattr(target, '__name__', target)}", self.b.loc)
            return None
        name = registry.keys_of(target)[0]
        if name.startswith(("_assert", "sym_constrain_range")):
            return self._assert(n, name)
        f = registry.lookup(target)
        if f is None:
            self.problems.add(str(target), self.b.loc)
            return self._stand_in(fake)
        mapping = f
        return self._guarded(n, str(target), lambda: self._mapped(n, mapping, fake))

    def _guarded(self, n: fx.Node, name: str, f: Any) -> Any:
        try:
            return f()
        except Unsupported as e:
            self.problems.add(f"{name} ({e})", self.b.loc)
        except EffcError as e:
            e.hint = e.hint or None
            self.problems.add(f"{name} ({e.message})", self.b.loc)
        return self._stand_in(n.meta.get("val"))

    def _stand_in(self, fake: Any) -> Any:
        """Values of the right types for an operator that was refused, so that the rest can still be looked at."""
        if isinstance(fake, (list, tuple)):
            return tuple(self._stand_in(f) for f in fake)
        try:
            t = self.type_of(fake)
        except (EffcError, Unsupported):
            return None
        if t is None:
            return self.number(fake) if is_sym(fake) else fake
        for d in t.shape:
            for s in D.symbols(d):
                self.b.symbols.setdefault(s, (0, None))
        return self.cx.full(0 if not t.dtype.is_bool else False, t.shape, t.dtype)

    def _mapped(self, n: fx.Node, f: Any, fake: Any) -> Any:
        many = isinstance(fake, (list, tuple))
        self._bind_fresh(n)
        expected = [self.type_of(x) for x in (fake if many else [fake])]
        cx = self.cx
        cx.expected, cx.fx = expected, n
        out = f(cx, *self.arg(n.args), **self.arg(n.kwargs))
        if not many:
            if expected[0] is not None:
                self._verify(n, out, expected[0])
            return out
        out = tuple(out)
        if len(out) != len(expected):
            raise EffcError(
                f"internal: the mapping gave {len(out)} results, torch gives {len(expected)}", op=str(n.target)
            )
        for v, t in zip(out, expected, strict=True):
            if v is not None and t is not None:
                self._verify(n, v, t)
        return out

    def _bind_fresh(self, n: fx.Node) -> None:
        """Declares the data-dependent symbols that this node defines."""
        self.cx.fresh = [str(s) for s in n.meta.get("unbacked_bindings") or {}]
        for s in self.cx.fresh:
            self.b.symbols.setdefault(s, (0, None))
            self.natural[s] = (0, None)

    def _verify(self, n: fx.Node, v: Any, t: TensorType) -> None:
        """torch's own types are the check on every mapping."""
        if not isinstance(v, Value):
            raise EffcError(f"internal: the mapping gave {type(v).__name__} for a tensor", op=str(n.target))
        ok = v.dtype is t.dtype and v.rank == t.rank
        ok = ok and all(
            a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(v.shape, t.shape, strict=True)
        )
        if not ok:
            raise EffcError(f"internal: the mapping gave {v.type}, torch gives {t}", op=str(n.target))

    def _sym_node(self, n: fx.Node, fake: Any) -> Any:
        """A number: its expression says everything, unless the node reads a tensor's content."""
        if isinstance(n.target, torch._ops.OpOverload) and registry.keys_of(n.target)[1] in (
            "_local_scalar_dense",
            "item",
        ):
            source = self.env[n.args[0]]
            for s in n.meta.get("unbacked_bindings") or {}:
                name = str(s)
                if isinstance(fake, torch.SymFloat):
                    self.cx.numbers[name] = self.b.op("convert", self.cx.reshape(source, ()), dtype=DType.f64)
                elif name not in self.known:
                    self.b.symbols.setdefault(name, (-BIG, None))
                    self.natural[name] = (-BIG, None)
                    whole = source if source.dtype is DType.i64 else self.b.op("convert", source, dtype=DType.i64)
                    self.b.op("item", self.cx.reshape(whole, ()), value=D.symbol(name))
        return self.number(fake)

    def _assert(self, n: fx.Node, name: str) -> None:
        """Runtime assertions: on sizes a check, on data an ``assert`` node."""
        if name.startswith(("sym_constrain_range", "_assert_tensor_metadata")):
            return
        args = self.arg(n.args)
        message = str(args[1]) if len(args) > 1 else "an assertion of the model does not hold"
        cond = args[0]
        if isinstance(cond, Value):
            truth = cond if cond.dtype.is_bool else self.b.op("ne", cond, self.cx.const(0, cond.dtype))
            if "assert" in OPS:
                self.b.op("assert", self.cx.reshape(truth, ()), message=message)
        elif isinstance(cond, SymNumber):
            self.condition(cond.expr, message)
        elif cond is False:
            raise EffcError(f"the model asserts what is false: {message}", loc=self.b.loc)

    def condition(self, e: Any, message: str) -> None:
        """Requires a relation between sizes at run time."""
        relation = shapes.RELATIONS.get(type(e))
        if relation is not None:
            try:
                lhs, rhs = to_dim(e.args[0], self.known), to_dim(e.args[1], self.known)
            except NotADim:
                pass
            else:
                if self._implied(lhs, relation, rhs):
                    return
                if D.symbols(lhs - rhs) <= self.inputs_known:
                    if any((c.lhs, c.op, c.rhs) == (lhs, relation, rhs) for c in self.checks):
                        return
                    self.checks.append(Check(lhs, relation, rhs, message))
                    return
        try:
            truth = self.cx.evaluator.value(e, DType.bool)
        except NotADim:
            self.problems.add(f"the condition {e}", self.b.loc)
            return
        if "assert" in OPS:
            self.b.op("assert", truth, message=message)

    def _implied(self, lhs: Dim, relation: str, rhs: Dim) -> bool:
        ranges = {**self.b.symbols, **self.natural}
        lo, hi = D.bounds(lhs - rhs, ranges)
        return {"==": lo == hi == 0, "!=": lo > 0 or hi < 0, "<=": hi <= 0, ">=": lo >= 0, "<": hi < 0, ">": lo > 0}[
            relation
        ]


def _limits(vr: Any) -> tuple[int, int | None]:
    lo, hi = vr.lower, vr.upper

    def clip(x: Any, default: int | None) -> int | None:
        return int(x) if getattr(x, "is_Integer", False) and abs(int(x)) < BIG - 2 else default

    return clip(lo, -BIG) or 0, clip(hi, None)


def convert_program(ep: torch.export.ExportedProgram, guards: Sequence[str] = ()) -> ImportedGraph:
    """The IR of a functional exported program. ``guards``: torch's conditions on input sizes, as Python text."""
    b = Builder()
    problems = Problems()
    imp = GraphImporter(ep.graph_module, b, problems)
    weights = Weights(b)
    for s, vr in ep.range_constraints.items():
        b.symbols[str(s)] = _limits(vr)
    sig = ep.graph_signature
    mutated = {spec.target for spec in sig.output_specs if spec.kind in _STATE_OUT}
    leaves: list[trees.Tree] = []
    user: dict[str, int] = {}
    nodes = {n.name: n for n in ep.graph.nodes if n.op == "placeholder"}
    for spec in sig.input_specs:
        n = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            imp.env[n] = _user_input(imp, n, spec, leaves, user)
        elif spec.kind is InputKind.TOKEN:
            imp.env[n] = None
        elif spec.kind is InputKind.CUSTOM_OBJ:
            problems.add(f"the script object {spec.target}", None)
            imp.env[n] = None
        else:
            t = _tensor_of(ep, spec)
            name = str(spec.target)
            imp.env[n] = weights.state(name, t) if spec.target in mutated else weights.constant(name, t)
    imp.inputs_known = _bound_by_inputs(b)
    _dim_inputs(imp, b)
    for text in guards:
        _guard(imp, text, ep)
    _unused_symbols(b, ep)
    results = imp.run(ep.graph)
    outputs: list[Value] = []
    out_leaves: list[trees.Tree] = []
    names: list[str] = []
    commits: list[Commit] = []
    for spec, value in zip(sig.output_specs, results, strict=True):
        if spec.kind in _STATE_OUT:
            commits.append(
                Commit(imp.cx.convert(value, weights.states[str(spec.target)].type.dtype), state=str(spec.target))
            )
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            commits.append(Commit(value, input=user[str(spec.target)]))
        elif spec.kind is OutputKind.TOKEN:
            continue
        else:
            _output(imp, value, outputs, out_leaves, names, str(getattr(spec.arg, "name", "") or ""))
    problems.check()
    in_spec, out_spec = ep.call_spec.in_spec, ep.call_spec.out_spec
    graph = b.graph(
        outputs,
        commits=tuple(commits),
        states=dict(weights.states),
        checks=tuple(imp.checks),
        output_names=tuple(names),
    )
    in_tree = trees.to_tree(in_spec, iter(leaves))
    call = ep.module_call_graph[0].signature if ep.module_call_graph else None
    arg_names = list(getattr(call, "forward_arg_names", None) or [])
    if len(arg_names) >= len(in_tree["c"][0]["c"]) and in_tree["c"][0]["c"]:
        in_tree["c"][0]["names"] = arg_names[: len(in_tree["c"][0]["c"])]
    return ImportedGraph(
        graph,
        in_tree,
        trees.to_tree(out_spec, iter(out_leaves)),
        tuple(n.name for n in b.inputs),
        tuple(names),
        in_spec,
        out_spec,
    )


_STATE_OUT = tuple(getattr(OutputKind, k) for k in ("BUFFER_MUTATION", "PARAMETER_MUTATION") if hasattr(OutputKind, k))


def _tensor_of(ep: torch.export.ExportedProgram, spec: Any) -> torch.Tensor:
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in ep.state_dict:
        return ep.state_dict[spec.target]
    t = ep.constants[spec.target]
    assert isinstance(t, torch.Tensor)
    return t


def _user_input(imp: GraphImporter, n: fx.Node, spec: Any, leaves: list[trees.Tree], user: dict[str, int]) -> Any:
    fake = n.meta.get("val")
    if isinstance(spec.arg, ConstantArgument) or not (isinstance(fake, torch.Tensor) or is_sym(fake)):
        value = spec.arg.value if isinstance(spec.arg, ConstantArgument) else fake
        leaves.append(trees.leaf_of(value))
        return value
    user[n.name] = len(imp.b.inputs)
    if isinstance(fake, torch.Tensor):
        leaves.append(dict(trees.LEAF))
        if fake.layout is not torch.strided:
            imp.problems.add(f"input {n.name} of layout {fake.layout}", None)
            return imp.b.input(n.name, TensorType(DType.f32, ()))
        t = imp.type_of(fake)
        assert t is not None
        return imp.b.input(n.name, t)
    kind = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}[type(fake)]
    leaves.append({"t": "leaf", "py": kind})
    dtype = {"int": DType.i64, "float": DType.f64, "bool": DType.bool}[kind]
    imp.b.input(n.name, TensorType(dtype, ()))
    return fake  # becomes a number once all inputs are known


def _dim_inputs(imp: GraphImporter, b: Builder) -> None:
    """Integer inputs bind their symbols by an ``item`` node; float ones are looked up as values."""
    by_name = {n.name: n for n in b.inputs}
    for n, fake in list(imp.env.items()):
        if not is_sym(fake):
            continue
        e = shapes.sym_expr(fake)
        source = by_name[n.name][0]
        name = str(e)
        if isinstance(fake, torch.SymFloat) and e.is_Symbol:
            imp.cx.numbers[name] = source
        elif isinstance(fake, torch.SymInt) and e.is_Symbol:
            if name not in imp.inputs_known:
                b.symbols.setdefault(name, (-BIG, None))
                b.op("item", source, value=D.symbol(name))
                imp.inputs_known.add(name)
        elif isinstance(fake, torch.SymInt):
            raise EffcError(f"integer input {n.name} is tied to {e}", hint="give it its own dynamic dimension")
        imp.env[n] = imp.number(fake)


def _bound_by_inputs(b: Builder) -> set[str]:
    out: set[str] = set()
    for n in b.inputs:
        for d in n.types[0].shape:
            out |= D.symbols(d)
    return out


def _unused_symbols(b: Builder, ep: torch.export.ExportedProgram) -> None:
    """Keeps bounds only of symbols that something binds; data-dependent ones are added where they are bound."""
    fresh = {str(s) for n in ep.graph.nodes for s in (n.meta.get("unbacked_bindings") or {})}
    bound = _bound_by_inputs(b) | {str(n.attrs["value"]) for n in b.nodes if n.op == "item"}
    for s in [s for s in b.symbols if s not in bound and s not in fresh]:
        del b.symbols[s]


_SIZE = re.compile(r"L(\['[^']*'\](?:\[[^\]]*\])*)\.(size|shape)(?:\(\))?\[(\d+)\]")


def _guard(imp: GraphImporter, text: str, ep: torch.export.ExportedProgram) -> None:
    """A condition that torch found while tracing, on the sizes of the inputs. Those that the types say already are
    dropped.
    """
    names = {n.name: n for n in imp.b.inputs}
    local: dict[str, Any] = {}

    def place(m: re.Match[str]) -> str:
        path = [p.strip("'\"") for p in re.findall(r"\[([^\]]*)\]", m.group(1))]
        node = names.get("_".join(path)) or names.get(path[0])
        if node is None or int(m.group(3)) >= node.types[0].rank:
            return m.group(0)
        key = f"d{len(local)}"
        fx_node = next(k for k in imp.env if k.name == node.name)
        local[key] = fx_node.meta["val"].shape[int(m.group(3))]
        return key

    code = _SIZE.sub(place, text)
    if "L[" in code:
        return
    import math

    try:
        truth = eval(code, {"__builtins__": {"min": min, "max": max}, "torch": torch, "math": math}, local)
    except Exception:  # guards are torch's text: what cannot be read is checked by the graph's own shape rules
        return
    if truth is True:
        return
    if isinstance(truth, torch.SymBool):
        e = shapes.sym_expr(truth)
        if e not in (True, sympy.true):
            imp.condition(e, f"the exported model needs {_readable(text)}")


def _readable(text: str) -> str:
    return _SIZE.sub(lambda m: f"{m.group(1)[2:-2]}.shape[{m.group(3)}]", text)


def _output(
    imp: GraphImporter, value: Any, outputs: list[Value], leaves: list[trees.Tree], names: list[str], name: str
) -> None:
    if isinstance(value, Value):
        leaves.append(dict(trees.LEAF))
        outputs.append(value)
    elif isinstance(value, (SymExpr, SymNumber)):
        kind = getattr(value, "kind", int)
        leaves.append({"t": "leaf", "py": kind.__name__})
        outputs.append(imp.cx.scalar(value, {int: DType.i64, float: DType.f64, bool: DType.bool}[kind]))
    else:
        leaves.append(trees.leaf_of(value))
        return
    names.append(name or f"output{len(outputs) - 1}")


__all__ = ["GraphImporter", "ImportedGraph", "Problems", "State", "convert_program", "import_model"]
