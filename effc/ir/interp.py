"""The numpy interpreter: runs any graph through the ops' references. It is the meaning of the IR, and the ``reference``
backend."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from . import dims
from .dims import SymExpr
from .dtypes import DType
from .graph import Builder, Graph, Node, Value
from .op import eval_attrs, get
from .types import TensorType

Array = np.ndarray[Any, Any]
# Numpy hands out more than there is, and the process is killed when the pages are touched.
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bind_symbols(graph: Graph, arrays: Sequence[Array]) -> dict[str, int]:
    """Sizes of the symbols from the inputs' shapes; EffcError where shapes contradict the signature or its bounds."""
    env: dict[str, int] = {}
    pending: list[tuple[Node, int, Any, int]] = []
    for n, a in zip(graph.inputs, arrays, strict=True):
        t = n.types[0]
        if a.ndim != t.rank:
            raise EffcError(f"input {n.name} has rank {a.ndim}, expected {t}", op="input")
        for i, (d, size) in enumerate(zip(t.shape, a.shape, strict=True)):
            name = str(d)
            if isinstance(d, SymExpr) and name.isidentifier():
                if env.setdefault(name, size) != size:
                    raise EffcError(
                        f"input {n.name}: dim {i} is {size}, but {name} is {env[name]} elsewhere", op="input"
                    )
            else:
                pending.append((n, i, d, size))
    for n, i, d, size in pending:
        free = dims.symbols(d) - env.keys()
        if len(free) == 1:
            solve_linear(d, next(iter(free)), size, env)
        if dims.evaluate(d, env) != size:
            raise EffcError(f"input {n.name}: dim {i} is {size}, expected {d}", op="input")
    for name, size in env.items():
        lo, hi = graph.symbols.get(name, (0, None))
        if size < lo or (hi is not None and size > hi):
            raise EffcError(f"size {name}={size} is outside its bounds [{lo}, {hi}]", op="input")
    return env


def known_bytes(t: TensorType, env: Mapping[str, int]) -> int:
    """The bytes of a value of this type; 0 while its size is not known."""
    if not all(isinstance(d, int) or dims.symbols(d) <= env.keys() for d in t.shape):
        return 0
    return math.prod(dims.evaluate(d, env) for d in t.shape) * t.dtype.itemsize


def solve_linear(d: dims.Dim, name: str, size: int, env: dict[str, int]) -> None:
    """Binds ``name`` so that the linear dim ``d`` is ``size``, the other symbols known."""
    at = [dims.evaluate(d, {**env, name: v}) for v in (0, 1)]
    slope = at[1] - at[0]
    if slope and (size - at[0]) % slope == 0:
        env[name] = (size - at[0]) // slope


class Interpreter:
    """Runs graphs node by node. ``states`` holds the session's buffers and is updated by commits."""

    def __init__(self, states: MutableMapping[str, Array] | None = None, seed: int | None = None) -> None:
        self.states: MutableMapping[str, Array] = {} if states is None else states
        self.rng = np.random.default_rng(seed)

    def run(self, graph: Graph, arrays: Sequence[Array]) -> list[Array]:
        """Outputs for these inputs. Committed inputs are written in place where the caller's arrays are writable."""
        arrays = [np.asarray(a) for a in arrays]
        for n, a in zip(graph.inputs, arrays, strict=True):
            if a.dtype != n.types[0].dtype.np:
                raise EffcError(f"input {n.name} has dtype {a.dtype}, expected {n.types[0]}", op="input")
        for name, s in graph.states.items():
            if name not in self.states:
                shape = tuple(dims.evaluate(d, {}) for d in s.type.shape)
                self.states[name] = np.zeros(shape, s.type.dtype.np) if s.init is None else np.array(s.init)
        env = bind_symbols(graph, arrays)
        values = self._eval(graph, arrays, env)
        try:
            results = [np.array(values[v]) for v in graph.outputs]
            commits = [(c, np.array(values[c.value])) for c in graph.commits]
        except MemoryError as e:  # views until now
            raise EffcError(f"the results need more memory than there is: {e}") from e
        for c, a in commits:
            if c.state is not None:
                self.states[c.state] = a
            elif c.input is not None:
                arrays[c.input][...] = a
        return results

    def _eval(self, graph: Graph, arrays: Sequence[Array], env: dict[str, int]) -> dict[Value, Array]:
        values: dict[Value, Array] = {n[0]: a for n, a in zip(graph.inputs, arrays, strict=True)}
        for check in graph.checks:
            if dims.symbols(check.lhs - check.rhs) <= env.keys() and not holds(check.lhs, check.op, check.rhs, env):
                raise EffcError(check.message or f"{check.lhs} {check.op} {check.rhs} does not hold for {env}")
        for n in graph.nodes:
            ins = [None if v is None else values[v] for v in n.inputs]
            need = sum(known_bytes(t, env) for t in n.types)
            if need > MEMORY:
                raise EffcError(f"{n.op} needs {need} bytes, more than this machine's memory", op=n.op, loc=n.loc)
            try:
                outs = self._node(n, ins, env)
            except EffcError:
                raise
            except Exception as e:
                shapes = ", ".join("none" if a is None else f"{a.dtype}{list(a.shape)}" for a in ins)
                raise EffcError(f"{type(e).__name__}: {e}", op=n.op, loc=n.loc, shapes=shapes) from e
            for v, a in zip(n.values, outs, strict=True):
                values[v] = a
        return values

    def _node(self, n: Node, ins: list[Array | None], env: dict[str, int]) -> list[Array]:
        if n.op == "state":
            return [self.states[n.attrs["name"]]]
        if n.op == "if":
            branch = n.attrs["then"] if bool(ins[0]) else n.attrs["orelse"]
            outs = self._sub(branch, ins[1:], env)
            for t, a in zip(n.types, outs, strict=True):
                for d, size in zip(t.shape, a.shape, strict=True):
                    env.setdefault(str(d), size)  # a size that only the branches know
            return outs
        if n.op == "while":
            k = n.attrs["carries"]
            carry, rest = ins[:k], ins[k:]
            while bool(self._sub(n.attrs["cond"], carry + rest, env)[0]):
                carry = list(self._sub(n.attrs["body"], carry + rest, env))
            return [np.asarray(c) for c in carry]
        if n.op == "scan":
            return self._scan(n, ins, env)
        definition = get(n.op)
        attrs = eval_attrs({k: v for k, v in n.attrs.items() if k not in definition.binds}, env)  # binds: not known yet
        if definition.numpy is None:
            if definition.decompose is None:
                raise EffcError(f"op {n.op} has no numpy reference", op=n.op)
            return self._sub(decomposed(n), [a for a in ins if a is not None], env)
        if definition.effects == "random":
            attrs["rng"] = self.rng
        with np.errstate(all="ignore"):
            out = definition.numpy(*_widen(definition.category, n, ins), **attrs)
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        self._bind(definition.binds, n, outs, env)
        return [self._checked(n, t, np.asarray(a), env) for t, a in zip(n.types, outs, strict=True)]

    def _sub(self, g: Graph, ins: Sequence[Array | None], env: dict[str, int]) -> list[Array]:
        arrays = [np.asarray(a) for a in ins]
        own = g.bound()
        inner = self._eval(g, arrays, {s: x for s, x in env.items() if s not in own})
        return [inner[v] for v in g.outputs]

    def _scan(self, n: Node, ins: list[Array | None], env: dict[str, int]) -> list[Array]:
        k, m = n.attrs["carries"], n.attrs["scanned"]
        carry, xs, rest = ins[:k], ins[k : k + m], ins[k + m :]
        length = dims.evaluate(n.attrs["length"], env)
        order = range(length - 1, -1, -1) if n.attrs["reverse"] else range(length)
        stacked = [np.zeros(t.evaluate(env), t.dtype.np) for t in n.types[k:]]
        for i in order:
            outs = self._sub(n.attrs["body"], [*carry, *(x[i] for x in xs if x is not None), *rest], env)
            carry = list(outs[:k])
            for y, a in zip(stacked, outs[k:], strict=True):
                y[i] = a
        return [np.asarray(c) for c in carry] + stacked

    @staticmethod
    def _bind(names: tuple[str, ...], n: Node, outs: list[Any], env: dict[str, int]) -> None:
        """Data-dependent symbols take their values from the shapes of the results, or from the result itself
        (``item``)."""
        for attr in names:
            d = n.attrs[attr]
            name = str(d)
            if isinstance(d, int) or name in env:
                continue
            for t, a in zip(n.types, outs, strict=False):
                for i, td in enumerate(t.shape):
                    if td == d:
                        env[name] = int(np.asarray(a).shape[i])
            if name not in env:
                env[name] = int(np.asarray(outs[0]))

    @staticmethod
    def _checked(n: Node, t: TensorType, a: Array, env: Mapping[str, int]) -> Array:
        if a.dtype != t.dtype.np:
            if get(n.op).category in ("elementwise", "reduction") and t.dtype.compute is not t.dtype:
                a = a.astype(t.dtype.np)
            else:
                raise EffcError(f"the reference of {n.op} gave {a.dtype}, its type rule says {t}", op=n.op, loc=n.loc)
        want = t.evaluate(env)
        if a.shape != want:
            raise EffcError(
                f"the reference of {n.op} gave shape {a.shape}, its type rule says {t} = {want}", op=n.op, loc=n.loc
            )
        return a


def _widen(category: str, n: Node, ins: list[Array | None]) -> list[Array | None]:
    """Elementwise ops on half types compute in f32 and are rounded once."""
    if category not in ("elementwise", "reduction") or n.op in ("convert", "where", "bitcast"):
        return ins
    out: list[Array | None] = []
    for v, a in zip(n.inputs, ins, strict=True):
        dt = None if v is None else v.dtype
        out.append(a.astype(dt.compute.np) if a is not None and dt is not None and dt.compute is not dt else a)
    return out


def holds(lhs: dims.Dim, op: str, rhs: dims.Dim, env: Mapping[str, int]) -> bool:
    a, b = dims.evaluate(lhs, env), dims.evaluate(rhs, env)
    return {"==": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[op]


def decomposed(n: Node) -> Graph:
    """The node's decomposition as a graph over its present operands; EffcError if it has none."""
    definition = get(n.op)
    if definition.decompose is None:
        raise EffcError(f"op {n.op} has no decomposition", op=n.op, loc=n.loc)
    b = Builder()
    b.loc = n.loc
    args = [None if v is None else b.input(f"x{i}", v.type) for i, v in enumerate(n.inputs)]
    out = definition.decompose(b, *args, **n.attrs)
    return b.graph([out] if isinstance(out, Value) else list(out))


def run(
    graph: Graph, arrays: Sequence[Array], states: MutableMapping[str, Array] | None = None, seed: int | None = None
) -> list[Array]:
    """Runs ``graph`` on numpy arrays and returns its outputs."""
    return Interpreter(states, seed).run(graph, arrays)


__all__ = ["DType", "Interpreter", "bind_symbols", "decomposed", "run"]
