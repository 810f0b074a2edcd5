"""Random graphs over the op table, made by hypothesis: what is compared is the CPU backend after all passes with the
interpreter before any.

Dims are integers or symbols, so one compiled graph runs at several sizes, 1 and (where the graph allows it) 0 among
them. Float values
stay bounded and no float decides a comparison, a rounding or an index, so rounding differences cannot be amplified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from effc.ir import Builder, DType, Graph, TensorType, Value
from effc.ir import dims as D

Draw = Callable[[Any], Any]

UNARY = (
    "neg",
    "abs",
    "tanh",
    "sigmoid",
    "sin",
    "cos",
    "atan",
    "erf",
    "sqrt_abs",
    "exp_tanh",
    "relu",
    "square",
    "reciprocal_1p",
    "log1p_abs",
)
BINARY = ("add", "sub", "mul", "maximum", "minimum", "div_1p", "atan2_1p", "hypot")
INT_BINARY = (
    "add",
    "sub",
    "mul",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "maximum",
    "minimum",
    "floor_div_1",
    "remainder_1",
)
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
LIMIT = 30.0  # larger values are squashed


@dataclass(repr=False)
class Plan:
    """A graph and the sizes to run it at."""

    graph: Graph
    sizes: list[dict[str, int]]
    log: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"steps {self.log}, sizes {self.sizes}\n{self.graph}"


class _Maker:
    def __init__(self, draw: Draw, dtype: DType, symbolic: bool) -> None:
        self.draw, self.dtype = draw, dtype
        self.b = Builder()
        self.values: list[Value] = []
        self.bound: dict[Value, float] = {}
        self.needs_elements = False  # a max or a mean: no size may be 0
        pool: list[Any] = [1, 2, 3, 5, 17]
        if symbolic:
            pool += [self.b.symbol("s0", 0, 64), self.b.symbol("s1", 0, 64)]
        self.pool = pool

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def add(self, v: Value, bound: float = 0.0) -> None:
        if v.dtype.is_float:
            if bound > LIMIT:
                v, bound = self.b.op("tanh", v), 1.0
            self.bound[v] = bound
        self.values.append(v)

    def const(self, like: Value, x: float) -> Value:
        out: Value = self.b.constant(np.asarray(x, like.dtype.np))
        return out

    def of(self, test: Callable[[Value], bool]) -> Value | None:
        found = [v for v in self.values if test(v)]
        return self.pick(found) if found else None

    def partner(self, x: Value) -> Value:
        """A value of x's dtype that broadcasts against x with certainty: x's shape, or ones in some places."""

        def fits(v: Value) -> bool:
            if v.dtype is not x.dtype or v.rank > x.rank:
                return False
            tail = x.shape[x.rank - v.rank :]
            return all(a == b or a == 1 for a, b in zip(v.shape, tail, strict=True))

        return self.pick([v for v in self.values if fits(v)])

    # One step each
    # -----------------------------------------------------------------------------------------------------

    def unary(self) -> None:
        x = self.of(lambda v: v.dtype.is_float)
        assert x is not None
        kind, m = self.pick(UNARY), self.bound[x]
        one = self.const(x, 1)
        b = self.b
        made: tuple[Value, float] = {
            "sqrt_abs": lambda: (b.op("sqrt", b.op("add", b.op("abs", x), one)), (m + 1) ** 0.5),
            "exp_tanh": lambda: (b.op("exp", b.op("tanh", x)), 2.72),
            "relu": lambda: (b.op("maximum", x, self.const(x, 0)), m),
            "square": lambda: (b.op("mul", x, x), m * m),
            "reciprocal_1p": lambda: (b.op("reciprocal", b.op("add", b.op("abs", x), one)), 1.0),
            "log1p_abs": lambda: (b.op("log1p", b.op("abs", x)), m),
        }.get(kind, lambda: (b.op(kind, x), m if kind in ("neg", "abs") else 2.0))()
        self.add(*made)

    def binary(self) -> None:
        x = self.of(lambda v: v.dtype.is_float)
        assert x is not None
        y = self.partner(x)
        if self.draw(st.booleans()):
            x, y = y, x
        kind, b = self.pick(BINARY), self.b
        m, n = self.bound[x], self.bound[y]
        if kind in ("div_1p", "atan2_1p"):
            low = b.op("add", b.op("abs", y), self.const(y, 1))
            self.add(b.op(kind.removesuffix("_1p"), x, low), max(m, 2.0))
        else:
            self.add(b.op(kind, x, y), m * n if kind == "mul" else m + n)

    def integer(self) -> None:
        x = self.of(lambda v: v.dtype is DType.i64)
        if x is None:
            return
        y = self.partner(x)
        kind, b = self.pick(INT_BINARY), self.b
        if kind.endswith("_1"):
            y = b.op("add", b.op("abs", b.op("remainder", y, self.const(y, 7))), self.const(y, 1))
            self.add(b.op(kind.removesuffix("_1"), x, y))
        else:
            out = b.op(kind, x, y)
            self.add(b.op("remainder", out, self.const(out, 1009)))

    def compare(self) -> None:
        x = self.of(lambda v: v.dtype is DType.i64)
        if x is not None:
            self.add(self.b.op(self.pick(COMPARE), x, self.partner(x)))

    def logic(self) -> None:
        x = self.of(lambda v: v.dtype.is_bool)
        if x is not None:
            self.add(self.b.op(self.pick(("logical_and", "logical_or", "logical_xor")), x, self.partner(x)))

    def where(self) -> None:
        c = self.of(lambda v: v.dtype.is_bool)
        if c is None:
            return
        same = [v for v in self.values if v.dtype.is_float and v.shape == c.shape]
        if same:
            x, y = self.pick(same), self.pick(same)
            self.add(self.b.op("where", c, x, y), max(self.bound[x], self.bound[y]))

    def convert(self) -> None:
        x = self.of(lambda v: v.dtype.is_bool or v.dtype is DType.i64)
        if x is not None:
            self.add(self.b.op("tanh", self.b.op("convert", x, dtype=self.dtype)), 1.0)

    def reduce(self) -> None:
        x = self.of(lambda v: v.rank > 0)
        if x is None:
            return
        dims = tuple(sorted(self.draw(st.sets(st.integers(0, x.rank - 1), min_size=1, max_size=x.rank))))
        keep = self.draw(st.booleans())
        if x.dtype.is_bool:
            self.add(self.b.op("reduce", x, kind=self.pick(("any", "all")), dims=dims, keepdims=keep))
            return
        kind = self.pick(("sum", "max", "min"))
        if kind != "sum":
            if any(x.shape[d] == 0 for d in dims):
                return
            self.needs_elements = True
        out = self.b.op("reduce", x, kind=kind, dims=dims, keepdims=keep)
        if x.dtype.is_float and kind == "sum":  # at most 64**3 elements
            self.add(self.b.op("mul", out, self.const(out, 1 / 64)), self.bound[x] * 64)
        elif x.dtype.is_float:
            self.add(out, self.bound[x])
        else:
            self.add(self.b.op("remainder", out, self.const(out, 1009)))

    def norm(self) -> None:
        """softmax or layer norm along the last dim, spelled out: the passes have shapes to recognise."""
        x = self.of(lambda v: v.dtype.is_float and v.rank > 0)
        if x is None or x.shape[-1] == 0:
            return
        self.needs_elements = True
        b, last = self.b, (x.rank - 1,)
        if self.draw(st.booleans()):
            e = b.op("exp", b.op("sub", x, b.op("reduce", x, kind="max", dims=last, keepdims=True)))
            self.add(b.op("div", e, b.op("reduce", e, kind="sum", dims=last, keepdims=True)), 1.0)
            return
        n = b.op("dim_value", value=x.shape[-1])
        n = b.op("convert", n, dtype=x.dtype)
        mean = b.op("div", b.op("reduce", x, kind="sum", dims=last, keepdims=True), n)
        c = b.op("sub", x, mean)
        var = b.op("div", b.op("reduce", b.op("mul", c, c), kind="sum", dims=last, keepdims=True), n)
        self.add(b.op("mul", c, b.op("rsqrt", b.op("add", var, self.const(x, 0.1)))), 64.0)

    def view(self) -> None:
        x = self.of(lambda v: v.rank > 0)
        if x is None:
            return
        b, m = self.b, self.bound.get(x, 0.0)
        kind = self.pick(("permute", "flip", "slice", "merge", "split", "unsqueeze", "broadcast"))
        if kind == "permute":
            self.add(b.op("permute", x, dims=tuple(self.draw(st.permutations(range(x.rank))))), m)
        elif kind == "flip":
            self.add(b.op("flip", x, dims=(self.draw(st.integers(0, x.rank - 1)),)), m)
        elif kind == "slice":
            starts, stops, steps = [0] * x.rank, list(x.shape), [1] * x.rank
            for i, d in enumerate(x.shape):
                if isinstance(d, int) and d > 1:
                    starts[i] = self.draw(st.integers(0, d - 1))
                    stops[i] = self.draw(st.integers(starts[i] + 1, d))
                    steps[i] = self.draw(st.integers(1, 2))
            self.add(b.op("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)), m)
        elif kind == "merge" and x.rank > 1:
            i = self.draw(st.integers(0, x.rank - 2))
            self.add(b.op("reshape", x, shape=(*x.shape[:i], x.shape[i] * x.shape[i + 1], *x.shape[i + 2 :])), m)
        elif kind == "split":
            i = self.draw(st.integers(0, x.rank - 1))
            parts = [k for k in (2, 3, 5) if isinstance(x.shape[i], int) and x.shape[i] % k == 0 and x.rank < 5]
            if parts:
                k = self.pick(parts)
                self.add(b.op("reshape", x, shape=(*x.shape[:i], k, x.shape[i] // k, *x.shape[i + 1 :])), m)
        elif kind == "unsqueeze" and x.rank < 5:
            i = self.draw(st.integers(0, x.rank))
            self.add(b.op("reshape", x, shape=(*x.shape[:i], 1, *x.shape[i:])), m)
        elif kind == "broadcast" and x.rank < 4:
            self.add(b.op("broadcast_to", x, shape=(self.pick(self.pool), *x.shape)), m)

    def concat(self) -> None:
        x = self.of(lambda v: v.rank > 0)
        if x is None:
            return
        i = self.draw(st.integers(0, x.rank - 1))
        mates = [v for v in self.values if v.dtype is x.dtype and v.rank == x.rank
                 and all(a == c for j, (a, c) in enumerate(zip(v.shape, x.shape, strict=True)) if j != i)]  # fmt: skip
        chosen = [x, self.pick(mates)]
        self.add(self.b.op("concat", *chosen, dim=i), max(self.bound.get(v, 0.0) for v in chosen))

    def scan_sum(self) -> None:
        x = self.of(lambda v: v.rank > 0 and v.dtype.is_float)
        if x is not None:
            out = self.b.op("cumsum", x, dim=self.draw(st.integers(0, x.rank - 1)))
            self.add(self.b.op("mul", out, self.const(out, 1 / 64)), self.bound[x] * 2)

    def matmul(self) -> None:
        x = self.of(lambda v: v.rank >= 2 and v.dtype.is_float)
        if x is None:
            return
        b = self.b
        if (
            self.draw(st.booleans()) and isinstance(x.shape[-1], int) and x.shape[-1] > 0
        ):  # by a constant: a Linear layer
            n = self.pick((1, 4, 19))
            w = np.random.default_rng(self.draw(st.integers(0, 1000))).uniform(-1, 1, (x.shape[-1], n))
            out = b.op("matmul", x, b.constant(w.astype(x.dtype.np)))
            m = self.bound[x] * x.shape[-1]
        else:  # by itself transposed, as attention does
            order = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
            out = b.op("matmul", x, b.op("permute", x, dims=order))
            m = self.bound[x] ** 2 * 64
        out = b.op("mul", out, self.const(out, 1 / 64))
        self.add(out, m / 64)


def _large(v: Value) -> bool:
    """Whether a value could get too large to be worth running, the symbols taken as 8."""
    n = 1
    for d in v.shape:
        n *= d if isinstance(d, int) else D.evaluate(d, {"s0": 8, "s1": 8})
    return n > 40_000


STEPS = (
    *("unary", "unary", "binary", "binary", "binary", "integer", "compare", "logic", "where", "convert"),
    *("reduce", "norm", "view", "view", "view", "concat", "scan_sum", "matmul"),
)


@st.composite
def plans(draw: Draw, dtype: DType = DType.f64, symbolic: bool | None = None, steps: int = 14) -> Plan:
    """A random graph whose values that nothing uses are its outputs."""
    symbolic = draw(st.booleans()) if symbolic is None else symbolic
    m = _Maker(draw, dtype, symbolic)
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.sampled_from(m.pool), min_size=0, max_size=3)))
        m.add(m.b.input(f"x{i}", TensorType(dtype, shape)), 2.0)
    m.add(m.b.input("n", TensorType(DType.i64, tuple(draw(st.lists(st.sampled_from(m.pool), min_size=0, max_size=2))))))
    bound = {d for v in m.values for d in v.shape if not isinstance(d, int)}
    m.pool = [d for d in m.pool if isinstance(d, int) or d in bound]  # a symbol that no input binds has no value
    for name in [n for n in m.b.symbols if n not in {str(d) for d in bound}]:
        del m.b.symbols[name]
    log = []
    for _ in range(draw(st.integers(3, steps))):
        step = draw(st.sampled_from(STEPS))
        before = len(m.values)
        getattr(m, step)()
        log.append(step)
        while len(m.values) > before and _large(m.values[-1]):
            m.values.pop()
    used = {v for n in m.b.nodes for v in n.operands}
    computed = {id(n) for n in m.b.nodes}
    outputs = [v for v in m.values if id(v.node) in computed and v not in used][:8]
    if not outputs:
        m.add(m.b.op("neg", m.values[0]), 2.0)
        outputs = [m.values[-1]]
    names = list(m.b.symbols)
    sizes: list[dict[str, int]] = [dict(zip(names, s, strict=False)) for s in ((6, 11), (1, 1), (1, 7))]
    if names and not m.needs_elements:
        sizes.append(dict.fromkeys(names, 0))
    return Plan(m.b.graph(outputs), sizes if names else [{}], log)


def inputs(graph: Graph, env: dict[str, int], seed: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    out = []
    for n in graph.inputs:
        shape = n.types[0].evaluate(env)
        if n.types[0].dtype is DType.i64:
            out.append(rng.integers(-20, 21, shape))
        else:
            out.append(rng.uniform(-2, 2, shape).astype(n.types[0].dtype.np))
    return [np.asarray(a) for a in out]
