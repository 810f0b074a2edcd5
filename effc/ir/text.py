"""The IR's text form: ``to_text`` prints a graph, ``parse`` reads it back.

A graph reads as::

    graph main(%x: f32[s0, 4], %w: f32[4] "weight") {
      symbol s0 in 1..512
      state "cache" : f32[8] = zeros
      check s0 <= 2*s1 "too long"
      %0 = mul(%x, %w) : f32[s0, 4]
      %1, %2 = sort(%0) {dim=1, descending=true} : f32[s0, 4], i64[s0, 4]
      return %1, %2 "indices"
      commit state "cache" = %w
      commit input 0 = %1
    }

Attribute values: ``true false none``, integers, floats (``1.0 inf -inf nan``), ``complex(re, im)``, ``"strings"``,
dtypes (``f32``), dims that are not constant (``<s0+1>``), tuples (``[1, 2]``), tensor types (``f32[2, s0]``), subgraphs
(``graph ...``) and arrays: ``array(f32[2], [1.0, 2.0])`` when small, else ``array(f32[900], @name)``, a reference into
a dict of arrays that travels beside the text. Attributes that have their default are left out; result types may be left
out by hand and are then inferred. A missing optional operand is ``_``. ``# ...`` is a comment.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from . import dims
from .dims import Bounds, Dim, SymExpr
from .dtypes import DType
from .graph import Builder, Check, Commit, Graph, Loc, Node, State, Value
from .op import OPS, get
from .types import DENSE, Encoding, TensorType

Array = np.ndarray[Any, Any]
INLINE = 16  # arrays up to this many elements are printed in place
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


# Printing -------------------------------------------------------------------------------------------------------------


def to_text(graph: Graph, arrays: MutableMapping[str, Array] | None = None, *, locs: bool = False) -> str:
    """The text of a graph. Large arrays are put into ``arrays`` under the names the text refers to; ``locs`` adds
    source lines."""
    return _Printer({} if arrays is None else arrays, locs).graph(graph, "") + "\n"


class _Printer:
    def __init__(self, arrays: MutableMapping[str, Array], locs: bool) -> None:
        self.arrays, self.locs = arrays, locs
        self.refs: dict[int, str] = {id(a): k for k, a in arrays.items()}

    def graph(self, g: Graph, indent: str) -> str:
        names: dict[Value, str] = {}
        taken: set[str] = set()
        head: list[str] = []
        for i, n in enumerate(g.inputs):
            plain = bool(_NAME.match(n.name)) and n.name not in taken and not n.name.isdigit()
            name = n.name if plain else f"in{i}"
            while name in taken:
                name += "_"
            taken.add(name)
            names[n[0]] = f"%{name}"
            head.append(
                f"%{name}: {n.types[0]}" + ("" if name == n.name else f" {json.dumps(n.name)}") + self.loc(n.loc)
            )
        title = g.name if _NAME.match(g.name) else json.dumps(g.name)
        pad = indent + "  "
        lines = [f"graph {title}({', '.join(head)}) {{"]
        for s, (lo, hi) in g.symbols.items():
            lines.append(f"{pad}symbol {s} in {lo}..{'' if hi is None else hi}")
        for key, st in g.states.items():
            init = "zeros" if st.init is None else self.array(st.init, st.type.dtype, key)
            lines.append(f"{pad}state {json.dumps(key)} : {st.type} = {init}")
        for c in g.checks:
            lines.append(f"{pad}check {c.lhs} {c.op} {c.rhs}" + (f" {json.dumps(c.message)}" if c.message else ""))
        for n in g.nodes:
            for v in n.values:
                names[v] = f"%{len(names) - len(g.inputs)}"
            lines.append(pad + self.node(n, names, pad))
        outs = []
        for i, v in enumerate(g.outputs):
            label = g.output_names[i] if i < len(g.output_names) else ""
            outs.append(names.get(v, "%?") + (f" {json.dumps(label)}" if label else ""))
        lines.append(f"{pad}return {', '.join(outs)}".rstrip())
        for cm in g.commits:
            where = f"state {json.dumps(cm.state)}" if cm.state is not None else f"input {cm.input}"
            lines.append(f"{pad}commit {where} = {names.get(cm.value, '%?')}")
        return "\n".join(lines) + f"\n{indent}}}"

    def node(self, n: Node, names: Mapping[Value, str], pad: str) -> str:
        ins = ", ".join("_" if v is None else names.get(v, "%?") for v in n.inputs)
        shown = {k: v for k, v in n.attrs.items() if not _is_default(n.op, k, v)}
        attrs = ", ".join(f"{k}={self.attr(v, pad, n)}" for k, v in shown.items())
        text = ", ".join(names[v] for v in n.values)
        text += (" = " if text else "") + f"{n.op}({ins})" + (f" {{{attrs}}}" if attrs else "")
        text += " : " + ", ".join(map(str, n.types)) if n.types else ""
        return text + (f" {json.dumps(n.name)}" if n.name else "") + self.loc(n.loc)

    def loc(self, loc: Loc | None) -> str:
        if not self.locs or loc is None:
            return ""
        return f" at({json.dumps(loc.file)}, {loc.line}, {json.dumps(loc.code)}, {json.dumps(loc.module)})"

    def attr(self, v: Any, pad: str, n: Node | None = None) -> str:
        if v is None or isinstance(v, bool):
            return {None: "none", True: "true", False: "false"}[v]
        if isinstance(v, (DType, TensorType)):
            return str(v)
        if isinstance(v, SymExpr):
            return f"<{v}>"
        if isinstance(v, (int, float)) and not isinstance(v, np.generic):
            return _float(v) if isinstance(v, float) else str(v)
        if isinstance(v, complex) and not isinstance(v, np.generic):
            return f"complex({_float(v.real)}, {_float(v.imag)})"
        if isinstance(v, str):
            return json.dumps(v)
        if isinstance(v, tuple):
            return "[" + ", ".join(self.attr(x, pad, n) for x in v) + "]"
        if isinstance(v, Graph):
            return self.graph(v, pad)
        if isinstance(v, np.ndarray):
            dtype = n.attrs.get("dtype") if n is not None else None
            return self.array(v, dtype if isinstance(dtype, DType) else None, n.name if n is not None else "")
        if isinstance(v, np.generic):
            return self.attr(v.item(), pad, n)
        raise EffcError(f"an attribute of type {type(v).__name__} has no text form", op=None if n is None else n.op)

    def array(self, a: Array, dtype: DType | None, name: str) -> str:
        dt = dtype if dtype is not None and dtype.np == a.dtype else DType.from_np(a.dtype)
        t = TensorType(dt, tuple(a.shape))
        if a.size <= INLINE:
            return f"array({t}, [{', '.join(_element(x, dt) for x in a.reshape(-1))}])"
        if id(a) not in self.refs:
            key = base = re.sub(r"[^A-Za-z0-9_.]", "_", name) or f"c{len(self.arrays)}"
            i = 0
            while key in self.arrays:
                i += 1
                key = f"{base}_{i}"
            self.arrays[key] = a
            self.refs[id(a)] = key
        return f"array({t}, @{self.refs[id(a)]})"


def _is_default(op: str, key: str, v: Any) -> bool:
    if op == "input":
        return key == "index"
    d = OPS[op].attrs.get(key, (None, v))[1] if op in OPS else None
    if op not in OPS or key not in OPS[op].attrs or type(d) is not type(v) or isinstance(v, (Graph, np.ndarray)):
        return False
    return bool(d == v) and repr(d) == repr(v)


def _float(x: float) -> str:
    return "nan" if math.isnan(x) else repr(float(x))


def _element(x: Any, dt: DType) -> str:
    if dt.is_bool:
        return "true" if x else "false"
    if dt.is_complex:
        return f"complex({_float(float(x.real))}, {_float(float(x.imag))})"
    if not dt.is_float:
        return str(int(x))
    if dt is DType.f32:
        short = str(x) if isinstance(x, np.float32) else repr(float(x))
        if np.isfinite(x) and np.float32(float(short)) == x:
            return short if any(c in short for c in ".e") else short + ".0"
    return _float(float(x))


# Parsing --------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\n\s*)*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<value>%[A-Za-z0-9_.]+)
    | (?P<ref>@[A-Za-z0-9_.]+)
    | (?P<number>-?(?:\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+(?!\.\d)))
    | (?P<name>-?inf\b|[A-Za-z_][A-Za-z0-9_]*(?:\.(?!\.)[A-Za-z0-9_]+)*)
    | (?P<sym>==|!=|<=|>=|//|\.\.|[(){}\[\]<>,:=+*%-])
    )""",
    re.VERBOSE,
)


def parse(text: str, arrays: Mapping[str, Array] | None = None) -> Graph:
    """The graph that ``text`` describes; EffcError with the line for text that is not well formed."""
    p = _Parser(text, arrays or {})
    g = p.graph()
    p.end()
    return g


class _Parser:
    def __init__(self, text: str, arrays: Mapping[str, Array]) -> None:
        self.text, self.arrays, self.pos = text, arrays, 0
        self.kind, self.tok = "", ""
        self.start = 0
        self.next()

    # Tokens

    def next(self) -> str:
        taken = self.tok
        m = _TOKEN.match(self.text, self.pos)
        if m is None:
            rest = re.sub(r"#[^\n]*", "", self.text[self.pos :]).strip()
            self.kind, self.tok, self.start = "", "", self.pos
            if rest:
                self.fail(f"unexpected text {rest[:20]!r}")
            return taken
        self.kind = str(m.lastgroup)
        self.tok, self.start, self.pos = m.group(self.kind), m.start(self.kind), m.end()
        return taken

    def fail(self, message: str) -> Any:
        line = self.text.count("\n", 0, self.start) + 1
        raise EffcError(
            f"line {line} of the IR text: {message}",
            loc=self.text.splitlines()[line - 1].strip() if self.text else None,
        )

    def accept(self, tok: str) -> bool:
        if self.tok == tok and self.kind != "string":
            self.next()
            return True
        return False

    def expect(self, tok: str) -> None:
        if not self.accept(tok):
            self.fail(f"expected {tok!r}, found {self.tok or 'the end'!r}")

    def take(self, kind: str) -> str:
        if self.kind != kind:
            self.fail(f"expected a {kind}, found {self.tok or 'the end'!r}")
        return self.next()

    def string(self) -> str:
        return str(json.loads(self.take("string")))

    def end(self) -> None:
        if self.tok:
            self.fail(f"text after the graph: {self.tok!r}")

    def integer(self) -> int:
        t = self.take("number")
        return int(t) if t.lstrip("-").isdigit() else self.fail(f"{t} is no integer")

    # Dims and types

    def dim(self, stop: str) -> Dim:
        """A dim up to (not including) one of the tokens in ``stop`` at depth zero."""
        begin, depth = self.start, 0
        stops = stop.split()
        while self.tok and not (depth == 0 and self.tok in stops):
            depth += {"(": 1, ")": -1}.get(self.tok, 0)
            if depth < 0:
                break
            self.next()
        source = self.text[begin : self.start].strip()
        try:
            return dims.parse(source)
        except (ValueError, SyntaxError, ZeroDivisionError) as e:
            self.fail(f"not a dim: {source!r} ({e})")
            raise

    def dtype(self) -> DType:
        name = self.take("name")
        try:
            return DType(name)
        except ValueError:
            self.fail(f"unknown dtype {name!r}")
            raise

    def type(self) -> TensorType:
        return self.shaped(self.dtype())

    def shaped(self, dt: DType) -> TensorType:
        self.expect("[")
        shape: list[Dim] = []
        while not self.accept("]"):
            shape.append(self.dim(", ]"))
            if self.tok != "]":
                self.expect(",")
        return TensorType(dt, tuple(shape), self.encoding())

    def encoding(self) -> Encoding:
        if self.tok != ":" or self.text[self.start - 1] != "]":  # "f32[2]:fmt(1)", not the " : " before result types
            return DENSE
        self.next()
        fmt, params = self.take("name"), []
        if self.accept("("):
            while not self.accept(")"):
                params.append(self.integer())
                self.accept(",")
        return Encoding(fmt, tuple(params))

    # Attributes

    def attr(self, outer: Mapping[str, Bounds]) -> Any:
        if self.kind == "string":
            return self.string()
        if self.kind == "number":
            t = self.next()
            return int(t) if t.lstrip("-").isdigit() else float(t)
        if self.accept("["):
            items: list[Any] = []
            while not self.accept("]"):
                items.append(self.attr(outer))
                if self.tok != "]":
                    self.expect(",")
            return tuple(items)
        if self.accept("<"):
            d = self.dim(">")
            self.expect(">")
            return d
        if self.kind != "name":
            self.fail(f"no attribute value: {self.tok!r}")
        word = self.tok
        if word == "graph":
            return self.graph()
        if word in ("true", "false", "none", "inf", "-inf", "nan"):
            self.next()
            return (
                {"true": True, "false": False, "none": None}.get(word, None)
                if word in ("true", "false", "none")
                else float(word)
            )
        if word == "complex":
            self.next()
            return self.complex()
        if word == "array":
            self.next()
            return self.array()
        dt = self.dtype()
        return self.shaped(dt) if self.tok == "[" else dt

    def complex(self) -> complex:
        self.expect("(")
        re_part = float(self.attr({}))
        self.expect(",")
        im_part = float(self.attr({}))
        self.expect(")")
        return complex(re_part, im_part)

    def array(self) -> Array:
        self.expect("(")
        t = self.type()
        self.expect(",")
        shape = tuple(d if isinstance(d, int) else self.fail("an array's shape is constant") for d in t.shape)
        if self.kind == "ref":
            name = self.next()[1:]
            if name not in self.arrays:
                self.fail(f"no array @{name} was given")
            a = self.arrays[name]
            if a.shape != shape or a.dtype != t.dtype.np:
                self.fail(f"@{name} is {a.dtype}{list(a.shape)}, the text says {t}")
        else:
            flat = self.attr({})
            a = np.empty(len(flat), t.dtype.np)
            for i, x in enumerate(flat):
                a[i] = x
            if math.prod(shape) != len(flat):
                self.fail(f"{len(flat)} elements for {t}")
            a = a.reshape(shape)
        self.expect(")")
        return a

    # Graphs

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.string() if self.kind == "string" else self.take("name")
        env: dict[str, Value] = {}
        inputs: list[Node] = []
        self.expect("(")
        while not self.accept(")"):
            var = self.take("value")
            self.expect(":")
            t = self.type()
            label = self.string() if self.kind == "string" else var[1:]
            attrs = MappingProxyType({"index": len(inputs)})
            n = Node("input", (), attrs, (t,), self.loc(), label)
            self.define(env, var, n[0])
            inputs.append(n)
            if self.tok != ")":
                self.expect(",")
        self.expect("{")
        b = Builder()
        states: dict[str, State] = {}
        checks: list[Check] = []
        while True:
            if self.accept("symbol"):
                self.symbol(b)
            elif self.accept("state"):
                self.state(states)
            elif self.accept("check"):
                lhs = self.dim("== != <= >= < >")
                op = self.next()
                checks.append(Check(lhs, op, self.check_rhs(), self.string() if self.kind == "string" else ""))
            elif self.tok == "return" or not self.tok:
                break
            else:
                self.node(b, env)
        self.expect("return")
        outputs: list[Value] = []
        labels: list[str] = []
        while self.kind == "value":
            outputs.append(self.use(env))
            labels.append(self.string() if self.kind == "string" else "")
            if not self.accept(","):
                break
        commits: list[Commit] = []
        while self.accept("commit"):
            key: str | None = None
            index: int | None = None
            if self.accept("state"):
                key = self.string()
            else:
                self.expect("input")
                index = self.integer()
            self.expect("=")
            commits.append(Commit(self.use(env), key, index))
        self.expect("}")
        return Graph(
            tuple(inputs), tuple(b.nodes), tuple(outputs), b.symbols, tuple(commits), states, tuple(checks), name,
            tuple(labels) if any(labels) else (),
        )  # fmt: skip

    def check_rhs(self) -> Dim:
        """The right side of a check: up to the message or the end of the line."""
        begin = self.start
        line_end = self.text.find("\n", begin)
        line_end = len(self.text) if line_end < 0 else line_end
        while self.tok and self.kind != "string" and self.start < line_end:
            self.next()
        source = self.text[begin : min(self.start, line_end)].strip()
        try:
            return dims.parse(source)
        except (ValueError, SyntaxError) as e:
            self.fail(f"not a dim: {source!r} ({e})")
            raise

    def symbol(self, b: Builder) -> None:
        name = self.take("name")
        self.expect("in")
        lo = self.integer()
        self.expect("..")
        b.symbols[name] = (lo, self.integer() if self.kind == "number" else None)

    def state(self, states: dict[str, State]) -> None:
        key = self.string()
        self.expect(":")
        t = self.type()
        self.expect("=")
        if self.accept("zeros"):
            states[key] = State(t)
        else:
            self.expect("array")
            states[key] = State(t, self.array())

    def define(self, env: dict[str, Value], var: str, v: Value) -> None:
        if var in env:
            self.fail(f"{var} is defined twice")
        env[var] = v

    def use(self, env: Mapping[str, Value]) -> Value:
        var = self.take("value")
        if var not in env:
            self.fail(f"{var} is used before it is defined")
        return env[var]

    def loc(self) -> Loc | None:
        if self.tok != "at" or self.kind != "name":
            return None
        self.next()
        self.expect("(")
        file = self.string()
        self.expect(",")
        line = self.integer()
        self.expect(",")
        code = self.string()
        self.expect(",")
        module = self.string()
        self.expect(")")
        return Loc(file, line, code, module)

    def node(self, b: Builder, env: dict[str, Value]) -> None:
        results: list[str] = []
        while self.kind == "value":
            results.append(self.next())
            if not self.accept(","):
                break
        if results:
            self.expect("=")
        op = self.take("name")
        self.expect("(")
        ins: list[Value | None] = []
        while not self.accept(")"):
            ins.append(None if self.accept("_") else self.use(env))
            if self.tok != ")":
                self.expect(",")
        attrs: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key = self.take("name")
                self.expect("=")
                attrs[key] = self.attr(b.symbols)
                if self.tok != "}":
                    self.expect(",")
        types = self.types()
        name = self.string() if self.kind == "string" else ""
        loc = self.loc()
        self.build(b, env, results, op, ins, attrs, types, name, loc)

    def types(self) -> tuple[TensorType, ...] | None:
        if not self.accept(":"):
            return None
        out = [self.type()]
        while self.accept(","):
            out.append(self.type())
        return tuple(out)

    def build(
        self,
        b: Builder,
        env: dict[str, Value],
        results: Sequence[str],
        op: str,
        ins: Sequence[Value | None],
        attrs: dict[str, Any],
        types: tuple[TensorType, ...] | None,
        name: str,
        loc: Loc | None,
    ) -> None:
        if op == "constant" and "dtype" not in attrs and isinstance(attrs.get("data"), np.ndarray):
            attrs["dtype"] = DType.from_np(attrs["data"].dtype)
        if types is None:
            n = b.node(op, ins, attrs, loc, name)
        else:
            n = Node(op, tuple(ins), MappingProxyType(get(op).complete(attrs)), types, loc, name)
            b.nodes.append(n)
        if len(n.types) != len(results):
            self.fail(f"{op} has {len(n.types)} results, {len(results)} are named")
        for var, v in zip(results, n.values, strict=True):
            self.define(env, var, v)
