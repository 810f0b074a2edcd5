"""From a ModelProto to one IR graph: the driver that walks the nodes and calls the mappings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from ...ir import dims as D
from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Builder, Check, Graph, Loc, Value
from ...ir.types import TensorType
from ...runtime.errors import EffcError
from ..imported import ImportedGraph, Problems, Unsupported
from . import registry
from .context import Context
from .dtypes import Array, code_of, dtype_of
from .load import DEEP, Tensors, opsets, read

LEAF: dict[str, Any] = {"t": "leaf"}
REFUSED = object()  # stands for the results of a node that was refused
Item = Any  # a Value, a list of them (a sequence), None (an empty optional), or REFUSED


@dataclass
class Scope:
    """Names of one graph or function body. ``lazy`` holds constants that become values when they are used."""

    values: dict[str, Item] = field(default_factory=dict)
    lazy: dict[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)  # what a function was called with
    opsets: Mapping[str, int] = field(default_factory=dict)
    depth: int = 0


def import_model(model: Any, args: Any = (), kwargs: Any = None, dynamic_shapes: Any = None) -> ImportedGraph:
    """The IR of an ``.onnx`` file or a ``ModelProto``.

    Dims that the file names are dynamic, with its names as symbols. ``args`` (in the order of the inputs) and
    ``kwargs`` (by name) are example inputs. They are needed only where the file does not say an input's rank, where the
    number of elements of a sequence is open, and where an input decides about ranks or axes, which are then as in the
    example. ``dynamic_shapes``: ``{input: {axis: size or torch.export.Dim}}`` fixes or bounds dims. EffcError lists all
    that cannot be taken.
    """
    registry.load()
    proto, folder = read(model)
    return Importer(proto, folder).run(args, dict(kwargs or {}), dynamic_shapes or {})


class Importer:
    """Imports one model, or one of its subgraphs, into one builder."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None, outer: Importer | None = None) -> None:
        self.model = model
        self.b = Builder(outer.b.symbols if outer else None)
        self.outer = outer
        self.tensors = outer.tensors if outer else Tensors(folder)
        self.problems: Problems = outer.problems if outer else Problems()
        self.functions = outer.functions if outer else {(_domain(f.domain), f.name): f for f in model.functions}
        self.taken: set[str] = outer.taken if outer else set()  # names of symbols
        self.cx = Context(self.b, self, outer.cx.checks if outer else [], outer.cx.known if outer else set())
        self.scope = Scope(
            opsets=outer.scope.opsets if outer else opsets(model), depth=outer.scope.depth + 1 if outer else 0
        )

    # the model --------------------------------------------------------------------------------------------------------

    def run(self, args: Any, kwargs: dict[str, Any], sizes: Mapping[str, Any]) -> ImportedGraph:
        graph = self.model.graph
        self._missing()
        self._constants(graph)
        wanted = [i for i in graph.input if i.name not in self.scope.lazy]
        given = self._given(wanted, args, kwargs)
        unknown = sorted(set(sizes) - {i.name for i in wanted})
        if unknown:
            raise EffcError(f"dynamic_shapes names {', '.join(unknown)}, which is no input of the model")
        examples: dict[Value, Array] = {}
        trees = []
        for i in wanted:
            if i.name in self.scope.values:
                raise EffcError(f"the model has two inputs named '{i.name}'")
            item, tree = self._input(i.name, i.type, given.get(i.name, _ABSENT), sizes.get(i.name) or {}, examples)
            self.scope.values[i.name] = item
            trees.append(tree)
        self.cx.known |= {s for n in self.b.inputs for d in n.types[0].shape for s in D.symbols(d)}
        self.cx.examples = examples
        self.nodes(graph.node)
        outputs: list[Value] = []
        names: list[str] = []
        out_trees = [self._output(o.name, outputs, names) for o in graph.output]
        self.problems.check()
        if not graph.output:
            raise EffcError("the model has no outputs")
        made = self.b.graph(outputs, checks=tuple(self.cx.checks), output_names=tuple(names)).without_dead()
        positional = {"t": "tuple", "c": trees, "names": [i.name for i in wanted]}
        return ImportedGraph(
            made,
            {"t": "tuple", "c": [positional, {"t": "dict", "keys": [], "c": []}]},
            {"t": "list", "c": out_trees},
            tuple(n.name for n in self.b.inputs),
            tuple(names),
        )

    def example_sizes(self) -> dict[str, int]:
        """The sizes that the model's example inputs have."""
        if self.outer is not None:
            return self.outer.example_sizes()
        out: dict[str, int] = {}
        for v, a in self.cx.examples.items():
            out.update({str(d): s for d, s in zip(v.shape, a.shape) if str(d).isidentifier()})
        return out

    def _given(self, wanted: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        args = tuple(args) if isinstance(args, (list, tuple)) else (args,)
        names = [i.name for i in wanted]
        if len(args) > len(names):
            raise EffcError(f"{len(args)} example inputs for a model that takes {len(names)}: {', '.join(names)}")
        wrong = [k for k in kwargs if k not in names]
        if wrong:
            raise EffcError(f"the model has no input {', '.join(wrong)}", hint=f"its inputs: {', '.join(names)}")
        return {**dict(zip(names, args)), **kwargs}

    def _input(
        self, name: str, type: onnx.TypeProto, example: Any, sizes: Mapping[int, Any], examples: dict[Value, Array]
    ) -> tuple[Item, dict[str, Any]]:
        kind = type.WhichOneof("value")
        if kind == "optional_type":
            if example is _ABSENT:
                raise EffcError(f"input '{name}' is optional", hint="compile with an example of it, or None")
            if example is None:
                return None, {"t": "none"}
            return self._input(name, type.optional_type.elem_type, example, sizes, examples)
        if kind == "sequence_type":
            if not isinstance(example, (list, tuple)):
                raise EffcError(f"input '{name}' is a sequence", hint="compile with an example of it, a list of arrays")
            both = [
                self._input(f"{name}.{k}", _loose(type.sequence_type.elem_type), x, {}, examples)
                for k, x in enumerate(example)
            ]
            return [b[0] for b in both], {"t": "list", "c": [b[1] for b in both]}
        if kind != "tensor_type":
            raise EffcError(f"input '{name}' is a {kind or 'value without a type'}, which this version does not take")
        try:
            dtype = dtype_of(type.tensor_type.elem_type)
        except Unsupported as e:
            raise EffcError(f"input '{name}': {e} is not supported") from None
        array = None if example is _ABSENT or example is None else _as_array(name, example, dtype)
        if type.tensor_type.HasField("shape"):
            dims = list(type.tensor_type.shape.dim)
            if array is not None and array.ndim != len(dims):
                raise EffcError(f"input '{name}' has rank {len(dims)}, its example has rank {array.ndim}")
        elif array is not None:
            dims = [onnx.TensorShapeProto.Dimension() for _ in array.shape]
        else:
            raise EffcError(f"the model does not say the rank of input '{name}'", hint="compile with an example of it")
        shape = tuple(self._size(name, k, d, sizes.get(k), array) for k, d in enumerate(dims))
        v = self.b.input(name, TensorType(dtype, shape))
        if array is not None:
            examples[v] = array
        return v, dict(LEAF)

    def _size(self, name: str, axis: int, dim: Any, asked: Any, example: Array | None) -> Dim:
        if isinstance(asked, int) and not isinstance(asked, bool):
            return asked
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            if example is not None and example.shape[axis] != dim.dim_value:
                raise EffcError(
                    f"input '{name}' has size {dim.dim_value} in dim {axis}, its example {example.shape[axis]}"
                )
            return int(dim.dim_value)
        # Exporters write "?" for every size that they do not know: such dims are not equal to one another.
        named = dim.HasField("dim_param") and dim.dim_param not in ("", "?", "-1", "None")
        text = dim.dim_param if named else f"{name}_d{axis}"
        symbol = self._symbols.get(text) if named else None
        if symbol is None:
            base = re.sub(r"\W", "_", text, flags=re.ASCII) or "d"
            base = f"d_{base}" if base[0].isdigit() or base in _WORDS else base
            symbol, k = base, 1
            while symbol in self.taken:
                symbol, k = f"{base}_{k}", k + 1
            self.taken.add(symbol)
            if named:
                self._symbols[text] = symbol
            self.b.symbols[symbol] = (0, None)
        lo, hi = getattr(asked, "min", None), getattr(asked, "max", None)
        if isinstance(lo, int) or isinstance(hi, int):
            self.b.symbols[symbol] = (int(lo or 0), hi if isinstance(hi, int) and hi < 1 << 40 else None)
        return D.symbol(symbol)

    @property
    def _symbols(self) -> dict[str, str]:
        if not hasattr(self, "_by_text"):
            self._by_text: dict[str, str] = {}
        return self._by_text

    def _output(self, name: str, outputs: list[Value], names: list[str]) -> dict[str, Any]:
        item = self.item(name)
        if item is REFUSED:
            return {"t": "none"}
        if item is None:
            return {"t": "none"}
        if isinstance(item, list):
            for k, v in enumerate(item):
                outputs.append(v)
                names.append(f"{name}.{k}")
            return {"t": "list", "c": [dict(LEAF) for _ in item]}
        outputs.append(item)
        names.append(name)
        return dict(LEAF)

    # names ------------------------------------------------------------------------------------------------------------

    def _constants(self, graph: onnx.GraphProto) -> None:
        for t in graph.initializer:
            self.scope.lazy[t.name] = t
        for s in graph.sparse_initializer:
            self.scope.lazy[s.values.name] = s

    def item(self, name: str) -> Item:
        """The value of a name; EffcError for one that nothing defines before its use."""
        values = self.scope.values
        if name in values:
            return values[name]
        if name in self.scope.lazy:
            values[name] = self._constant(name, self.scope.lazy[name])
            return values[name]
        raise EffcError(
            f"nothing defines '{name}' before it is used",
            loc=None if self.b.loc is None else str(self.b.loc),
            hint="the nodes of a graph must be in topological order; onnx.checker.check_model tells more",
        )

    def _constant(self, name: str, t: Any) -> Item:
        try:
            if isinstance(t, onnx.SparseTensorProto):
                return self.b.constant(dense(self.tensors, t), dtype_of(t.values.data_type), name=name)
            return self.b.constant(self.tensors.array(t), dtype_of(t.data_type), name=name)
        except Unsupported as e:
            self.problems.add(f"a constant of {e}", Loc(module=name))
            return REFUSED

    # nodes ------------------------------------------------------------------------------------------------------------

    def _missing(self) -> None:
        """Names every operator of the model that has neither a mapping nor a definition, all in one error."""
        seen: set[tuple[str, str]] = set()

        def walk(nodes: Iterable[onnx.NodeProto], versions: Mapping[str, int], depth: int) -> None:
            if depth > DEEP:
                raise EffcError(f"graphs of the model are nested more than {DEEP} deep")
            for n in nodes:
                domain = _domain(n.domain)
                f = self.functions.get((domain, n.op_type))
                if f is not None:
                    if (domain, n.op_type) not in seen:
                        seen.add((domain, n.op_type))
                        walk(f.node, _versions(f, versions), depth + 1)
                elif (domain, n.op_type) in registry.REFUSED:
                    reason = registry.REFUSED[domain, n.op_type]
                    self.problems.add(f"{_named(domain, n.op_type)} ({reason})", location(n))
                elif registry.lookup(domain, n.op_type, versions.get(domain, 1)) is None:
                    if not _has_body(domain, n.op_type, versions.get(domain, 1)):
                        version = f" of operator set {versions[domain]}" if domain in versions else ""
                        self.problems.add(_named(domain, n.op_type) + version, location(n))
                for a in n.attribute:
                    for g in [a.g] if a.type == AttributeProto.GRAPH else a.graphs:
                        walk(g.node, versions, depth + 1)

        walk(self.model.graph.node, self.scope.opsets, 0)
        self.problems.check()

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Imports nodes in order into the current scope."""
        for n in nodes:
            if self.scope.depth == 0 or self.b.loc is None:
                self.b.loc = location(n)
            self.node(n)

    def node(self, n: onnx.NodeProto) -> None:
        """Imports one node: its results are entered under their names."""
        name = _named(_domain(n.domain), n.op_type)
        try:
            inputs = [self.item(i) if i else None for i in n.input]
            wanted = len(n.output)
            while wanted and not n.output[wanted - 1]:
                wanted -= 1
            if any(i is REFUSED for i in inputs):
                results: Any = (REFUSED,) * wanted
            else:
                attrs = {a.name: self._attribute(a) for a in n.attribute}
                attrs = {k: v for k, v in attrs.items() if v is not _ABSENT}
                results = self.apply(_domain(n.domain), n.op_type, inputs, attrs, wanted, n)
        except Unsupported as e:
            self.problems.add(f"{name} ({e})", self.b.loc)
            results = (REFUSED,) * len(n.output)
        except EffcError as e:
            if e.op is None and e.pass_name is None and "nothing defines" in e.message:
                raise
            self.problems.add(f"{name} ({e.message})", self.b.loc)
            results = (REFUSED,) * len(n.output)
        except RecursionError:
            raise EffcError(f"functions or graphs of the model are nested too deep, at {name}") from None
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as e:
            # The file is not to be trusted: a mapping may meet attributes and operands that no such node can have.
            self.problems.add(f"{name} (its operands and attributes do not fit: {e})", self.b.loc)
            results = (REFUSED,) * len(n.output)
        if not isinstance(results, tuple):
            results = (results,)
        for k, o in enumerate(n.output):
            if not o:
                continue
            if o in self.scope.values or o in self.scope.lazy:
                raise EffcError(f"'{o}' is defined twice", loc=str(self.b.loc), op=name)
            if k >= len(results):
                self.problems.add(f"{name} (it has no result {k})", self.b.loc)
                self.scope.values[o] = REFUSED
            else:
                self.scope.values[o] = results[k]

    def apply(
        self, domain: str, op: str, inputs: list[Item], attrs: dict[str, Any], results: int = 1,
        node: onnx.NodeProto | None = None,
    ) -> Any:  # fmt: skip
        """The results of an operator: by the model's own function, else by its mapping, else by its definition."""
        f = self.functions.get((domain, op))
        if f is not None:
            return self._inline(f, inputs, {a.name: a for a in node.attribute} if node is not None else {}, results)
        version = self.scope.opsets.get(domain, onnx.defs.onnx_opset_version() if domain == "" else 1)
        found = registry.lookup(domain, op, version)
        if found is None:
            body = _body(domain, op, version, inputs, attrs, node)
            if body is None:
                raise Unsupported("no mapping")
            given = {a.name: a for a in node.attribute} if node is not None else _protos(attrs)
            return self._inline(body, inputs, given, results)
        attrs = {**_defaults(domain, op, version), **attrs}
        if found.attributes is not None:
            extra = [k for k in attrs if k not in found.attributes]
            for k in extra:
                if k in _defaults(domain, op, version) and attrs[k] == _defaults(domain, op, version)[k]:
                    del attrs[k]
                elif k in _IGNORED:
                    del attrs[k]
                else:
                    raise Unsupported(f"attribute {k}")
        signature = inspect.signature(found.function)
        try:
            signature.bind(self.cx, *inputs, **attrs)
        except TypeError as e:
            raise Unsupported(f"{len(inputs)} operands and attributes {', '.join(attrs) or 'none'}: {e}") from None
        before = self.cx.version, self.cx.node, self.cx.expected
        self.cx.version, self.cx.node, self.cx.expected = version, node, results
        try:
            return found.function(self.cx, *inputs, **attrs)
        finally:
            self.cx.version, self.cx.node, self.cx.expected = before

    def _attribute(self, a: AttributeProto) -> Any:
        if a.ref_attr_name:
            outer = self.scope.attributes.get(a.ref_attr_name)
            if outer is None:
                return _ABSENT
            a = outer
        kind = a.type
        if kind == AttributeProto.FLOAT:
            return float(a.f)
        if kind == AttributeProto.INT:
            return int(a.i)
        if kind == AttributeProto.STRING:
            return a.s.decode("utf-8", "replace")
        if kind == AttributeProto.TENSOR:
            return self.tensors.array(a.t)
        if kind == AttributeProto.SPARSE_TENSOR:
            return dense(self.tensors, a.sparse_tensor)
        if kind == AttributeProto.GRAPH:
            return a.g
        if kind == AttributeProto.FLOATS:
            return tuple(float(x) for x in a.floats)
        if kind == AttributeProto.INTS:
            return tuple(int(x) for x in a.ints)
        if kind == AttributeProto.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in a.strings)
        if kind == AttributeProto.TYPE_PROTO:
            return a.tp
        raise Unsupported(f"attribute {a.name} of a kind that is not known")

    def _inline(
        self, f: onnx.FunctionProto, inputs: Sequence[Item], attrs: Mapping[str, AttributeProto], results: int
    ) -> Any:
        """The body of a function, in place. Results beyond those that are wanted may be missing."""
        if self.scope.depth > DEEP:
            raise EffcError(f"functions of the model are nested more than {DEEP} deep, at {f.name}")
        if len(inputs) > len(f.input):
            raise Unsupported(f"{len(inputs)} operands for a function of {len(f.input)}")
        bound = {a.name: a for a in f.attribute_proto}
        bound.update({k: (self._outer(a)) for k, a in attrs.items()})
        before = self.scope
        self.scope = Scope(
            values=dict(zip(f.input, [*inputs, *[None] * (len(f.input) - len(inputs))])),
            attributes={k: a for k, a in bound.items() if a is not None},
            opsets=_versions(f, before.opsets),
            depth=before.depth + 1,
        )
        try:
            self.nodes(f.node)
            known = self.scope.values
            return tuple(self.item(o) if k < results or o in known else None for k, o in enumerate(f.output))
        finally:
            self.scope = before

    def _outer(self, a: AttributeProto) -> AttributeProto | None:
        return self.scope.attributes.get(a.ref_attr_name) if a.ref_attr_name else a

    # subgraphs --------------------------------------------------------------------------------------------------------

    def captures(self, *graphs: onnx.GraphProto) -> list[str]:
        """The names of this scope that graphs use, in order of their use."""
        found: dict[str, None] = {}
        for g in graphs:
            _free(g, set(), found, 0)
        return [n for n in found if n in self.scope.values or n in self.scope.lazy]

    def subgraph(
        self, g: onnx.GraphProto, inputs: Sequence[TensorType], captured: Sequence[str], name: str = "body"
    ) -> tuple[Graph, list[Value]]:
        """A graph of an attribute's graph: its inputs have these types, and after them come the captured values, which
        are returned. Results of the graph are its outputs in order; sequences and optionals are refused.
        """
        graph, passed, items = self.open_subgraph(g, inputs, captured)
        if any(not isinstance(i, Value) for i in items):
            raise Unsupported("a graph that gives a sequence or an optional")
        return graph.b.graph(items, name=name), passed

    def open_subgraph(
        self, g: onnx.GraphProto, inputs: Sequence[TensorType], captured: Sequence[str],
        known: Mapping[int, Array] | None = None,
    ) -> tuple[Importer, list[Value], list[Item]]:  # fmt: skip
        """As ``subgraph``, but the importer is handed out with the results, so that nodes can be added. ``known``: what
        some of the inputs hold.
        """
        if self.scope.depth > DEEP:
            raise EffcError(f"graphs of the model are nested more than {DEEP} deep")
        if len(g.input) != len(inputs):
            raise Unsupported(f"a graph of {len(g.input)} inputs for {len(inputs)} operands")
        inner = Importer(self.model, None, self)
        inner.scope.attributes = self.scope.attributes
        inner.b.loc = self.b.loc
        passed: list[Value] = []
        for i, t in zip(g.input, inputs, strict=True):
            inner.scope.values[i.name] = inner.b.input(i.name, t)
        for k, content in (known or {}).items():
            inner.cx.contents.set(inner.b.inputs[k][0], content)

        def capture(name: str, item: Item) -> Item:
            if isinstance(item, list):
                return [capture(f"{name}.{k}", x) for k, x in enumerate(item)]
            if not isinstance(item, Value):
                return item
            content = self.cx.content(item)
            passed.append(item)
            v = inner.b.input(name, item.type)
            if content is not None:
                inner.cx.contents.set(v, content)
            return v

        for n in captured:
            if n not in inner.scope.values:  # a graph's own input hides the outer name
                inner.scope.values[n] = capture(n, self.item(n))
        inner._constants(g)
        inner.nodes(g.node)
        items = [inner.item(o.name) for o in g.output]
        if any(i is REFUSED for i in items):
            raise Unsupported("its graph has operators that are not supported")
        return inner, passed, items

    def inlined(self, g: onnx.GraphProto, inputs: Sequence[Item] = ()) -> tuple[Item, ...]:
        """The results of a graph whose nodes are imported in place."""
        before = self.scope
        self.scope = Scope(
            {**before.values, **{i.name: x for i, x in zip(g.input, inputs, strict=True)}}, dict(before.lazy),
            before.attributes, before.opsets, before.depth + 1,
        )  # fmt: skip
        hidden = {o for n in g.node for o in n.output}
        for o in hidden:
            self.scope.values.pop(o, None)
            self.scope.lazy.pop(o, None)
        if self.scope.depth > DEEP:
            raise EffcError(f"graphs of the model are nested more than {DEEP} deep")
        try:
            self._constants(g)
            self.nodes(g.node)
            return tuple(self.item(o.name) for o in g.output)
        finally:
            self.scope = before


_ABSENT = object()
_IGNORED = {"consumed_inputs", "is_test", "training_mode"}  # of old forms, without a meaning for inference
_WORDS = {"max", "min"} | set(__import__("keyword").kwlist)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _named(domain: str, op: str) -> str:
    return f"{domain}::{op}" if domain else op


def _versions(f: onnx.FunctionProto, outer: Mapping[str, int]) -> dict[str, int]:
    own = {_domain(o.domain): o.version for o in f.opset_import}
    if any(not 1 <= v < 1 << 31 for v in own.values()):
        raise EffcError(f"function {f.name} imports an operator set of a version that cannot be, {own}")
    return {**outer, **own}


def _loose(t: onnx.TypeProto) -> onnx.TypeProto:
    """The type of a sequence's element without its shape: elements may differ, and examples say their ranks."""
    out = onnx.TypeProto()
    out.CopyFrom(t)
    if out.WhichOneof("value") == "tensor_type":
        out.tensor_type.ClearField("shape")
    return out


def _as_array(name: str, x: Any, dtype: DType) -> Array:
    a = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if a.dtype != dtype.np:
        raise EffcError(f"the example of input '{name}' is {a.dtype}, the model takes {dtype}")
    return a


def dense(tensors: Tensors, s: onnx.SparseTensorProto) -> Array:
    """A sparse tensor as an array."""
    values, indices = tensors.array(s.values), tensors.array(s.indices)
    out = np.zeros(tuple(s.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)')


def location(n: onnx.NodeProto) -> Loc:
    """The user's source line where torch's exporter wrote it down, else the node's name."""
    for m in n.metadata_props:
        if m.key == "pkg.torch.onnx.stack_trace" and (frames := _FRAME.findall(m.value)):
            file, line, code = frames[-1]
            return Loc(file, int(line), code.strip(), n.name)
    return Loc(module=f"node {n.name}" if n.name else f"{n.op_type} node of {', '.join(n.output)}")


def _free(g: onnx.GraphProto, bound: set[str], found: dict[str, None], depth: int) -> None:
    if depth > DEEP:
        raise EffcError(f"graphs of the model are nested more than {DEEP} deep")
    inside = bound | {i.name for i in g.input} | {t.name for t in g.initializer}
    for n in g.node:
        for i in n.input:
            if i and i not in inside:
                found[i] = None
        for a in n.attribute:
            for sub in [a.g] if a.type == AttributeProto.GRAPH else a.graphs:
                _free(sub, inside, found, depth + 1)
        inside = inside | set(n.output)
    for o in g.output:
        if o.name not in inside:
            found[o.name] = None


# The standard's own definitions ---------------------------------------------------------------------------------------


def _schema(domain: str, op: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def _has_body(domain: str, op: str, version: int) -> bool:
    s = _schema(domain, op, version)
    return s is not None and (s.has_function or s.has_context_dependent_function)


def _body(
    domain: str, op: str, version: int, inputs: Sequence[Item], attrs: Mapping[str, Any], node: onnx.NodeProto | None
) -> onnx.FunctionProto | None:
    """The function by which the standard defines an operator."""
    s = _schema(domain, op, version)
    if s is None:
        return None
    if s.has_function:
        versions = [v for v in s.function_opset_versions if v <= version]
        if versions:
            f = _parsed(s.get_function_with_opset_version(versions[-1]))
            f.attribute_proto.extend(_protos(_defaults(domain, op, version)).values())
            return f
    if not s.has_context_dependent_function:
        return None
    versions = [v for v in s.context_dependent_function_opset_versions if v <= version]
    if not versions:
        return None
    n = onnx.NodeProto()
    if node is not None:
        n.CopyFrom(node)
    else:
        n.op_type, n.domain = op, domain
        n.attribute.extend(_protos(attrs).values())
    del n.input[:]
    n.input.extend("" if v is None else f"x{k}" for k, v in enumerate(inputs))
    types = []
    for v in inputs:
        t = onnx.TypeProto()
        if isinstance(v, Value):
            t.tensor_type.elem_type = code_of(v.dtype)
            for d in v.shape:
                entry = t.tensor_type.shape.dim.add()
                if isinstance(d, int):
                    entry.dim_value = d
            if v.rank == 0:
                t.tensor_type.shape.SetInParent()
        types.append(t.SerializeToString())
    text = s.get_context_dependent_function_with_opset_version(versions[-1], n.SerializeToString(), types)
    return _parsed(text) if text else None


def _parsed(data: bytes) -> onnx.FunctionProto:
    f = onnx.FunctionProto()
    f.ParseFromString(data)
    return f


def _protos(attrs: Mapping[str, Any]) -> dict[str, AttributeProto]:
    return {
        k: v if isinstance(v, AttributeProto) else onnx.helper.make_attribute(
            k, onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v
        )
        for k, v in attrs.items()
    }  # fmt: skip


_DEFAULTS: dict[tuple[str, str, int], dict[str, Any]] = {}


def _defaults(domain: str, op: str, version: int) -> dict[str, Any]:
    """The default attributes of the standard's schema; none for a foreign domain."""
    key = (domain, op, version)
    if key not in _DEFAULTS:
        s = _schema(domain, op, version)
        out: dict[str, Any] = {}
        for name, a in (s.attributes if s is not None else {}).items():
            if a.default_value.type != AttributeProto.UNDEFINED:
                value = onnx.helper.get_attribute_value(a.default_value)
                many = isinstance(value, list)
                texts = [v.decode() if isinstance(v, bytes) else v for v in (value if many else [value])]
                out[name] = tuple(texts) if many else texts[0]
        _DEFAULTS[key] = out
    return _DEFAULTS[key]


__all__ = ["Check", "Importer", "REFUSED", "import_model"]
