"""Modules of MLIR's torch dialect (as torch-mlir writes them) to the IR, through the same ATen mappings as PyTorch's.

A module holds one function, ``main`` or the only one. Its ops are ``torch.aten.NAME``, which is the key of the mapping;
literals are constants; every ``?`` of an input is a symbol. ``torch.bind_symbolic_shape`` says which of them are
equal; without it each is a symbol of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch_mlir import ir
from torch_mlir.dialects import torch as torch_dialect

from ..ir import dims as D
from ..ir.dims import Dim, SymExpr
from ..ir.dtypes import DType
from ..ir.graph import Builder, Loc, Value
from ..ir.torch_types import ELEMENTS, SCALAR_CODE
from ..ir.types import TensorType
from ..runtime import dtypes as table
from ..runtime.errors import EffcError
from .imported import ImportedGraph, Problems, Unsupported
from .torch import registry
from .torch.context import Context

# torch's numbers of its dtypes (c10::ScalarType), as operators take them in this dialect
SCALAR_TYPES: dict[int, torch.dtype] = {
    code: getattr(torch, table.BY_NAME[d.value].torch) for d, code in SCALAR_CODE.items()
}
SIZED = frozenset(
    "view reshape _unsafe_view expand broadcast_to full zeros ones empty new_full new_zeros new_ones new_empty rand "
    "randn randint as_strided".split()
)  # operators with a list of the result's sizes
# The sizes of other results that their mappings ask for, from the operands
SIZES: dict[str, Callable[[list[Any]], Sequence[Dim]]] = {
    "arange.start_step": lambda ins: [D.ceildiv(ins[1] - ins[0], ins[2])],
    "gather": lambda ins: ins[2].shape,
}
BY_DATA = frozenset(
    "nonzero masked_select bincount _unique2 unique_consecutive unique_dim unique_dim_consecutive "
    "repeat_interleave".split()
)  # operators that find a size of their first result in the data
UNKNOWN = "unknown_size_"
_TENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],\s*(.*)>$")
_BLOB = re.compile(r'([\w."\-/]+):\s*"0x([0-9A-Fa-f]*)"')
_PLACE = re.compile(r'"([^"]+)":(\d+)')
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "floordiv": lambda x, y: x // y,
    "remainder": lambda x, y: x % y, "prim.max": D.maximum, "prim.min": D.minimum, "neg": lambda x: -x,
    "Int.Scalar": lambda x: x, "Float.Scalar": float,
}  # fmt: skip
RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
}  # fmt: skip


def _one_transform(cx: Context, x: Value, n: Any = None, dim: int = -1, norm: str | None = None) -> Value:
    """fft_fft, fft_ifft and fft_rfft, which torch.export decomposes."""
    kind = str(cx.fx.target).rpartition("_")[2]
    if n is not None:
        raise Unsupported("a transform of another length than its operand's")
    inverse = kind == "ifft"
    by = {"ortho": 1, "backward": 2 if inverse else 0, "forward": 0 if inverse else 2}[norm or "backward"]
    if kind == "rfft":
        return registry.MAPPINGS["_fft_r2c"](cx, x, [dim], by, True)
    if not x.dtype.is_complex:
        x = cx.op("complex", x, cx.full(0.0, x.shape, x.dtype))
    return registry.MAPPINGS["_fft_c2c"](cx, x, [dim], by, not inverse)


# Operators of the dialect that torch.export decomposes, so that they have no mapping
COMPOSITE = dict.fromkeys(("fft_fft", "fft_ifft", "fft_rfft"), _one_transform)


def import_model(model: Any, args: Any = (), kwargs: Any = None, dynamic_shapes: Any = None) -> ImportedGraph:
    """The IR of a module in the torch dialect: an ``ir.Module`` of torch-mlir, or a file with its text. ``args`` and
    ``dynamic_shapes`` are not needed: the module has its types. EffcError lists every operator without a mapping."""
    registry.load()
    if not isinstance(model, (str, os.PathLike)):
        return ModuleImporter(model, str(model)).run()
    text = Path(model).read_text()
    with ir.Context() as context:
        torch_dialect.register_dialect(context)
        try:
            module = ir.Module.parse(text)
        except Exception as e:
            raise EffcError(f"{os.fspath(model)} is not a module of the torch dialect: {str(e)[:800]}") from e
        return ModuleImporter(module, text).run()


class Call:
    """What mappings ask of the operator's node in a graph of torch.export: its name, the strides of its operands (value
    tensors are row-major) and which results are used."""

    def __init__(self, op: Any, name: str, ins: Sequence[Any]) -> None:
        self.target = f"aten.{name}"
        self.args = [Operand(x) if isinstance(x, Value) else x for x in ins]
        used = [i for i, r in enumerate(op.results) if any(True for _ in r.uses)]
        self.users = [SimpleNamespace(args=(None, i), users=(None,)) for i in used]


class Operand:
    """A tensor's stand-in without data."""

    def __init__(self, x: Value) -> None:
        self.meta = {"val": torch.empty([d if isinstance(d, int) else 2 for d in x.shape], device="meta")}


class ModuleImporter:
    """Imports one module; ``text`` holds the data of its literals."""

    def __init__(self, module: Any, text: str) -> None:
        self.module = module
        self.b, self.problems = Builder(), Problems()
        self.cx = Context(self.b, {}, {})
        self.env: dict[Any, Any] = {}
        self.shapes: dict[Any, list[Dim]] = {}
        self.blobs = {k.strip('"'): bytes.fromhex(v) for k, v in _BLOB.findall(text)}

    def run(self) -> ImportedGraph:
        block = self._function().regions[0].blocks[0]
        shapes = self.shapes = self._shapes(block)
        for i, a in enumerate(block.arguments):
            t = self.tensor(str(a.type), shapes.get(a), f"s{i}_")
            if t is None:
                raise EffcError(f"argument {i} of the function is a {a.type}", hint="pass tensors")
            self.env[a] = self.b.input(f"x{i}", t)
        results: list[Any] = []
        for o in block.operations:
            op = o.operation
            self.b.loc = _location(op)
            if op.name == "func.return":
                results = [self.env.get(v) for v in op.operands]
            else:
                self._put(op, self.operation(op))
        self.problems.check()
        if not all(isinstance(v, Value) for v in results):
            raise EffcError("the function returns what is not a tensor")
        names = tuple(f"y{i}" for i in range(len(results)))
        graph = self.b.graph(results, output_names=names)
        leaf = {"t": "leaf"}
        given = {"t": "tuple", "c": [dict(leaf) for _ in self.b.inputs]}
        in_tree = {"t": "tuple", "c": [given, {"t": "dict", "keys": [], "c": []}]}
        out_tree: Any = dict(leaf) if len(results) == 1 else {"t": "tuple", "c": [dict(leaf) for _ in results]}
        return ImportedGraph(graph, in_tree, out_tree, tuple(n.name for n in self.b.inputs), names)

    def _function(self) -> Any:
        functions = [o.operation for o in self.module.body.operations if o.operation.name == "func.func"]
        named = [f for f in functions if str(f.attributes["sym_name"]) == '"main"']
        if len(named or functions) != 1:
            raise EffcError(f"the module has {len(functions)} functions", hint="name the one to compile main")
        return (named or functions)[0]

    # Types ------------------------------------------------------------------------------------------------------------

    def tensor(self, text: str, shape: Sequence[Dim] | None = None, hint: str = "") -> TensorType | None:
        """The type that MLIR gives, None if it is not a tensor's. Sizes ``?`` are taken from ``shape``, or are symbols
        that begin with ``hint``."""
        m = _TENSOR.match(text)
        if m is None:
            return None
        if m[2] not in ELEMENTS:
            raise EffcError(f"tensors of {m[2]} are not supported")
        sizes: list[Dim] = []
        for i, s in enumerate(m[1].split(",") if m[1].strip() else []):
            if s.strip() != "?":
                sizes.append(int(s))
            elif shape is not None:
                sizes.append(shape[i])
            else:
                sizes.append(self.b.symbol(f"{hint}{i}", 0, None))
        return TensorType(ELEMENTS[m[2]], tuple(sizes))

    def _shapes(self, block: Any) -> dict[Any, list[Dim]]:
        """What ``bind_symbolic_shape`` says about the function's arguments and its operations' results."""
        names: dict[Any, Dim] = {}
        out: dict[Any, list[Dim]] = {}
        for op in _walk(block):
            if op.name == "torch.symbolic_int":
                name = str(op.attributes["symbol_name"]).strip('"')
                lo, hi = (int(str(op.attributes[k]).partition(":")[0]) for k in ("min_val", "max_val"))
                names[op.results[0]] = self.b.symbol(name, max(lo, 0), hi if hi < 1 << 62 else None)
            elif op.name == "torch.bind_symbolic_shape":
                m = re.search(r"\(([^()]*)\)(?:\[([^\]]*)\])? -> \((.*)\)>", str(op.attributes["shape_expressions"]))
                if m is None:
                    continue
                labels = [s.strip() for s in (m[1] + "," + (m[2] or "")).split(",") if s.strip()]
                env = dict(zip(labels, (names[v] for v in list(op.operands)[1:]), strict=False))
                sizes = [D.parse(e.replace(" floordiv ", "//").replace(" mod ", "%")) for e in _split(m[3])]
                out[op.operands[0]] = [D.substitute(d, env) if isinstance(d, SymExpr) else d for d in sizes]
        return out

    # Operations -------------------------------------------------------------------------------------------------------

    def _put(self, op: Any, out: Any) -> None:
        results = list(op.results)
        if len(results) == 1:
            self.env[results[0]] = out
        elif results:
            self.env.update(zip(results, out, strict=False))

    def operation(self, op: Any) -> Any:
        """The value of one operation: an IR value, a number, a list, or a tuple of these for several results."""
        name = op.name.removeprefix("torch.")
        if name in ("constant.int", "constant.bool", "constant.float", "constant.str"):
            return op.attributes["value"].value
        if name in ("constant.none", "constant.device", "symbolic_int", "bind_symbolic_shape"):
            return None
        ins: list[Any] = [self.env.get(v) for v in op.operands]
        if name == "runtime.assert":
            if isinstance(ins[0], Value):
                self.b.op("assert", ins[0], message=op.attributes["message"].value)
            return None
        if name == "tensor_static_info_cast":
            return ins[0]
        if name in ("prim.If", "prim.Loop"):
            try:
                return self._if(op, ins) if name == "prim.If" else self._loop(op, ins)
            except Unsupported as e:
                self.problems.add(f"{op.name} ({e})", self.b.loc)
                return self._stand_in([str(r.type) for r in op.results])
        if name == "vtensor.literal":
            return self.literal(op)
        if name in ("prim.ListConstruct", "prim.TupleConstruct"):
            return ins
        if name in ("prim.ListUnpack", "prim.TupleUnpack"):
            return tuple(ins[0]) if len(ins[0]) > 1 else ins[0][0]
        if name == "operator":
            name = str(op.attributes["name"]).strip('"').removeprefix("torch.")
        name = name.removeprefix("aten.")
        if name == "size.int":
            return ins[0].shape[ins[1] % ins[0].rank]
        if name in ("Bool.Tensor", "Int.Tensor") and isinstance(ins[0], Value):
            return self._number(name, ins[0])
        base = name.removesuffix(".int")
        if base in RELATIONS and not any(isinstance(x, Value) for x in ins):
            return self._relation(base, *ins)
        if base in ARITHMETIC and not any(isinstance(x, Value) for x in ins):
            return ARITHMETIC[base](*ins)
        return self.mapped(op, name, ins)

    def _number(self, name: str, x: Value) -> Any:
        """A tensor of one element as a number: a size that the data decide, or a condition, which stays a tensor."""
        x = self.cx.reshape(x, ())
        if name == "Bool.Tensor":
            return self.cx.convert(x, DType.bool)
        size = self.b.symbol(f"i{len(self.b.symbols)}", -(1 << 62), None)
        self.b.op("item", self.cx.convert(x, DType.i64), value=size)
        return size

    def _relation(self, name: str, x: Dim, y: Dim) -> Any:
        """A relation of numbers, as a 0-d tensor where it depends on sizes."""
        if isinstance(x, SymExpr) or isinstance(y, SymExpr):
            return self.b.op(name, self.cx.scalar(x, DType.i64), self.cx.scalar(y, DType.i64))
        return RELATIONS[name](x, y)

    # Control flow -----------------------------------------------------------------------------------------------------

    def _free(self, op: Any) -> list[Any]:
        """What the regions of ``op`` take from around them, as far as it is a tensor here."""
        found: dict[Any, None] = {}

        def visit(o: Any) -> None:
            for region in o.regions:
                for inner in region.blocks[0].operations:
                    found.update((v, None) for v in inner.operation.operands if isinstance(self.env.get(v), Value))
                    visit(inner.operation)

        visit(op)
        return list(found)

    def _body(
        self, block: Any, types: Sequence[TensorType], free: Sequence[Any], start: Callable[[list[Value]], list[Any]]
    ) -> tuple[Builder, list[Any]]:
        """A region as a graph: inputs of ``types``, then what is free. ``start(inputs)`` says what the block's
        arguments are. Gives the builder and the operands of the terminator."""
        outer = self.b, self.cx, self.env
        inner = Builder(self.b.symbols)
        inner.loc = self.b.loc
        self.b, self.cx, self.env = inner, Context(inner, {}, {}), dict(self.env)
        try:
            given = [inner.input(f"x{i}", t) for i, t in enumerate([*types, *(self.env[v].type for v in free)])]
            self.env.update(zip(free, given[len(types) :], strict=True))
            self.env.update(zip(block.arguments, start(given), strict=True))
            results: list[Any] = []
            for o in block.operations:
                op = o.operation
                if op.name in ("torch.prim.If.yield", "torch.prim.Loop.condition"):
                    results = [self.env.get(v) for v in op.operands]
                else:
                    self._put(op, self.operation(op))
            return inner, results
        finally:
            for s, limits in inner.symbols.items():
                outer[0].symbols.setdefault(s, limits)
            self.b, self.cx, self.env = outer

    def _if(self, op: Any, ins: list[Any]) -> Any:
        free = self._free(op)
        sides = []
        for region in op.regions:
            b, results = self._body(region.blocks[0], [], free, lambda given: [])
            if not all(isinstance(v, Value) for v in results):
                raise Unsupported("a branch that gives numbers")
            sides.append(b.graph(results))
        cond = ins[0] if isinstance(ins[0], Value) else self.b.constant(bool(ins[0]), DType.bool)
        node = self.b.node("if", [cond, *(self.env[v] for v in free)], {"then": sides[0], "orelse": sides[1]})
        return node.values if len(node.values) != 1 else node[0]

    def _loop(self, op: Any, ins: list[Any]) -> Any:
        """A while: its carries are the step, whether to go on, and the loop's own."""
        trips, go, *carries = ins
        if not all(isinstance(v, Value) for v in carries):
            raise Unsupported("a loop that carries numbers")
        block, free = op.regions[0].blocks[0], self._free(op)
        counter, flag = TensorType(DType.i64, ()), TensorType(DType.bool, ())
        types = [counter, flag, *(v.type for v in carries)]

        def start(given: list[Value]) -> list[Any]:
            step = self.b.symbol(f"i{len(self.b.symbols)}", 0, max(trips - 1, 0) if isinstance(trips, int) else None)
            self.b.op("item", given[0], value=step)
            return [step, *given[2 : len(types)]]

        body, (again, *new) = self._body(block, types, free, start)
        for v, t in zip(new, types[2:], strict=True):
            if not isinstance(v, Value) or v.type != t:
                raise Unsupported("a loop that changes a size")
        step = body.op("add", body.inputs[0][0], body.constant(1, DType.i64))
        going = again if isinstance(again, Value) else body.constant(bool(again), DType.bool)
        cond = Builder(self.b.symbols)
        given = [cond.input(n.name, n.types[0]) for n in body.inputs]
        inside = cond.op("lt", given[0], Context(cond, {}, {}).scalar(trips, DType.i64))
        test = cond.graph([cond.op("logical_and", inside, given[1])])
        first = go if isinstance(go, Value) else self.b.constant(bool(go), DType.bool)
        operands = [self.b.constant(0, DType.i64), first, *carries, *(self.env[v] for v in free)]
        attrs = {"carries": len(types), "cond": test, "body": body.graph([step, going, *new])}
        made = self.b.node("while", operands, attrs).values[2:]
        return made if len(made) != 1 else made[0]

    def literal(self, op: Any) -> Value:
        t = self.tensor(str(op.results[0].type))
        assert t is not None
        value = op.attributes["value"]
        m = re.match(r"dense_resource<([^>]*)>", str(value)) if "dense_resource<" in str(value)[:20] else None
        if m is not None:
            blob = self.blobs.get(m[1].strip('"'))
            if blob is None:
                raise EffcError(f"the module's text lacks the data of literal {m[1]}")
            align = int.from_bytes(blob[:4], "little")
            raw = blob[4:] if align else blob
            if t.dtype.is_bool and len(raw) < int(str(t.numel)):  # packed
                data = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: int(str(t.numel))].astype(bool)
            else:
                data = np.frombuffer(raw, t.dtype.np)
            return self.b.constant(data.reshape(tuple(int(str(d)) for d in t.shape)), t.dtype)
        dense = ir.DenseElementsAttr(value)
        if dense.is_splat:
            one = dense.get_splat_value()
            return self.cx.full(getattr(one, "value", one), t.shape, t.dtype)
        return self.b.constant(np.asarray(dense).astype(t.dtype.np).reshape(t.shape), t.dtype)

    def mapped(self, op: Any, name: str, ins: list[Any]) -> Any:
        """An operator by its mapping, checked against the types that the module gives."""
        f = COMPOSITE.get(name) or registry.MAPPINGS.get(name) or registry.MAPPINGS.get(name.partition(".")[0])
        kinds = [str(r.type) for r in op.results]
        if f is None:
            self.problems.add(op.name.removeprefix("torch."), self.b.loc)
            return self._stand_in(kinds)
        try:
            positional, keywords = self._arguments(name, ins)
            self.cx.fx = Call(op, name, ins)
            self.cx.expected = [
                self.tensor(k, self.shapes[r]) if r in self.shapes else self._expected(k, name if i == 0 else "", ins)
                for i, (k, r) in enumerate(zip(kinds, op.results, strict=True))
            ]
            if name.startswith("_embedding_bag"):  # the others have sizes of their own and are for gradients
                self.cx.expected[1:] = [None for _ in kinds[1:]]
            out = f(self.cx, *positional, **keywords)
            outs = tuple(out) if isinstance(out, (tuple, list)) and len(kinds) > 1 else (out,)
            for k, v, t in zip(kinds, outs, self.cx.expected, strict=False):
                if t is not None:
                    self._verify(op, k, v)
            return out
        except Unsupported as e:
            self.problems.add(f"{op.name} ({e})", self.b.loc)
        except EffcError as e:
            self.problems.add(f"{op.name} ({e.message})", self.b.loc)
        return self._stand_in(kinds)

    def _arguments(self, name: str, ins: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments as PyTorch's schema has them: dtypes from their numbers, keyword-only ones by name."""
        packet, _, overload = name.partition(".")
        try:
            schema: Any = getattr(getattr(torch.ops.aten, packet), overload or "default")._schema
        except AttributeError:
            return ins, {}
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for a, x in zip(schema.arguments, ins, strict=False):
            if a.name == "dtype" and isinstance(x, int):
                x = SCALAR_TYPES[x]
            if a.name == "memory_format" or (a.name in ("layout", "device", "pin_memory") and a.kwarg_only):
                x = None
            if a.kwarg_only:
                keywords[a.name] = x
            else:
                positional.append(x)
        return positional, keywords

    def _expected(self, kind: str, name: str, ins: list[Any]) -> TensorType | None:
        """The module's type of a result. A ``?`` is what the operator's list of sizes says, else a symbol that
        ``_verify`` refuses where a mapping makes it a size of the result."""
        m = _TENSOR.match(kind)
        if m is None:
            return None
        rank = len(m[1].split(",")) if m[1].strip() else 0
        given: list[Any] = []
        if name.partition(".")[0] in SIZED:
            given = next((x for x in ins if isinstance(x, list) and len(x) == rank), [])
        if name in SIZES and not any(isinstance(x, float) for x in ins):
            given = list(SIZES[name](ins))
        known: list[Dim] = [d for d in given if isinstance(d, (int, SymExpr)) and d != -1]
        sizes: list[Dim] = [D.symbol(f"{UNKNOWN}{i}") for i in range(rank)]
        if name.partition(".")[0] in BY_DATA and m[1].strip():
            dim = ins[1] % rank if name.startswith("unique_dim") else 0
            sizes[dim] = self.cx.new_symbol("u")
        for i, d in enumerate(given):
            if isinstance(d, (int, SymExpr)) and d != -1:
                sizes[i] = d
            elif name.startswith(("expand", "broadcast")):
                sizes[i] = ins[0].shape[i - rank]
            elif len(known) == rank - 1 and isinstance(ins[0], Value):
                sizes[i] = D.floordiv(ins[0].type.numel, D.product(known))
        return self.tensor(kind, sizes)

    def _verify(self, op: Any, kind: str, v: Any) -> None:
        m = _TENSOR.match(kind)
        if m is None:
            return
        sizes = [s.strip() for s in m[1].split(",")] if m[1].strip() else []
        fits = isinstance(v, Value) and v.dtype is ELEMENTS[m[2]] and v.rank == len(sizes)
        if fits and any(s.startswith(UNKNOWN) for d in v.shape for s in D.symbols(d)):
            raise Unsupported("a size that the module does not say")
        if not fits or any(isinstance(d, int) and s not in ("?", str(d)) for s, d in zip(sizes, v.shape, strict=True)):
            raise EffcError(f"internal: the mapping gave {getattr(v, 'type', v)}, the module says {kind}", op=op.name)

    def _stand_in(self, kinds: Sequence[str]) -> Any:
        made = tuple(None if (t := self._expected(k, "", [])) is None else self._zeros(t) for k in kinds)
        return made[0] if len(made) == 1 else made

    def _zeros(self, t: TensorType) -> Value:
        shape = tuple(d if isinstance(d, int) else 1 for d in t.shape)
        return self.cx.full(False if t.dtype.is_bool else 0, shape, t.dtype)


def _walk(block: Any) -> Iterator[Any]:
    """The operations of a block and of the regions in it."""
    for o in block.operations:
        yield o.operation
        for region in o.operation.regions:
            yield from _walk(region.blocks[0])


def _split(text: str) -> list[str]:
    """Parts between the commas outside parentheses."""
    out, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and not depth:
            out.append("")
        else:
            out[-1] += c
    return [p.strip() for p in out if p.strip()]


def _location(op: Any) -> Loc | None:
    """The outermost place that the location names: the model's own line."""
    places = _PLACE.findall(str(op.location))
    return Loc(places[-1][0], int(places[-1][1])) if places else None


__all__ = ["ModuleImporter", "import_model"]
