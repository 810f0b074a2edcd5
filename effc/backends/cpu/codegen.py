"""Generated loops: a fused region's body becomes inner loops in C++ on top of kernels/loop.hpp.

The text depends on the body and on the stride pattern of the operands, never on sizes, so equal regions of different
shapes (and of different models) are one kernel, named by the hash of its text. Three forms: a map, an epilogue (a map
over a tile of accumulators), and a staged reduction (see loop.hpp). A chain calls these and library kernels (see
row_chain.hpp).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.dims import Dim
from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value
from ...runtime.errors import EffcError
from .bytes import Rounding, roundings
from .division import quotients
from .gelu import gelus
from .sigmoid import sigmoids

ANY = 2  # stride pattern: known only at run time

STORAGE = {
    DType.bool: "bool", DType.u8: "uint8_t", DType.i8: "int8_t", DType.u16: "uint16_t", DType.i16: "int16_t",
    DType.u32: "uint32_t", DType.i32: "int32_t", DType.u64: "uint64_t", DType.i64: "int64_t", DType.f16: "f16",
    DType.bf16: "bf16", DType.f32: "float", DType.f64: "double", DType.f8e4m3: "f8e4m3", DType.f8e5m2: "f8e5m2",
    DType.c32: "cf16", DType.c64: "cf32", DType.c128: "cf64", DType.i4: "int4", DType.u4: "uint4", DType.i2: "int2",
    DType.u2: "uint2", DType.f4e2m1: "f4e2m1", DType.f8e4m3fnuz: "f8e4m3fnuz", DType.f8e5m2fnuz: "f8e5m2fnuz",
    DType.f8e8m0: "f8e8m0",
}  # fmt: skip
# Ops whose results are worth keeping between the stages of a reduction rather than computing again.
DEAR = frozenset(
    "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv "
    "lgamma digamma sigmoid pow atan2 hypot div".split()
)


def compute_type(dt: DType) -> str:
    return STORAGE[dt.compute]


def literal(value: Any, dt: DType) -> str:
    """A C++ literal of the compute type of ``dt`` with exactly the value ``value`` of that dtype."""
    if dt.is_complex:
        c = complex(value)
        part = DType.f64 if dt is DType.c128 else DType.f32
        return f"{compute_type(dt)}{{{literal(c.real, part)}, {literal(c.imag, part)}}}"
    if dt.is_bool:
        return "true" if value else "false"
    if dt.is_float:
        x = float(np.asarray(value).astype(dt.np).astype(np.float64))
        if dt is DType.f64:
            if math.isnan(x) or math.isinf(x):
                return f"bitcast<double>((uint64_t){struct.unpack('<Q', struct.pack('<d', x))[0]}ull)"
            return float(x).hex()
        if math.isnan(x) or math.isinf(x):
            return f"bitcast<float>({struct.unpack('<I', struct.pack('<f', x))[0]}u)"
        return float(x).hex() + "f"
    n = int(value)
    if dt is DType.i64 and n == -(2**63):
        return "(int64_t)(-9223372036854775807LL - 1)"
    return f"({compute_type(dt)}){n}{'ull' if dt is DType.u64 else 'LL'}"


@dataclass
class Generated:
    """The generated kernels of an artifact: symbol -> C++ text."""

    kernels: dict[str, str] = field(default_factory=dict)

    def add(self, prefix: str, text: str) -> str:
        """Registers a kernel whose text has ``@`` for its own name; returns the name."""
        name = f"{prefix}_{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
        self.kernels[name] = text.replace("@", name)
        return name


def limit_of(n: Node) -> Value | None:
    """The constant operand of a maximum or minimum of floats that has one, which is not NaN."""
    if n.op not in ("maximum", "minimum") or n.types[0].dtype not in (DType.f32, DType.f64):
        return None
    known = [v for v in n.operands if v.node.op == "constant"]
    return known[0] if len(known) == 1 and not np.isnan(known[0].node.attrs["data"]).any() else None


def shared_bits(n: Node) -> int | None:
    """The bits of a float constant that is passed like the value of a dim, so that kernels which differ in it alone are
    one (the scales of a quantized model, say); None for numbers of few digits, which say what a kernel does."""
    if n.types[0].dtype is not DType.f32:
        return None
    value = np.asarray(n.attrs["data"], np.float32).reshape(-1)[:1]
    bits = int(value.view(np.uint32)[0])
    return bits if bits & 0x7FFF and np.isfinite(value).all() else None


@dataclass(frozen=True)
class Lookup:
    """Input ``operand`` of a body is taken from a table: its operand is the table, and an index operand of ``dtype``
    follows the inputs. ``size`` of the table's dim ``dim``, ``pitch``: elements from one index to the next."""

    operand: int
    dtype: DType
    dim: int
    size: Dim
    pitch: Dim


class Operands:
    """A loop's operands in order: the body's inputs, the indices of those that are looked up, the results."""

    def __init__(self, body: Graph, lookups: Sequence[Lookup]) -> None:
        self.inputs = len(body.inputs)
        self.lookups = {x.operand: (self.inputs + j, x) for j, x in enumerate(lookups)}
        self.first_result = self.inputs + len(lookups)
        self.count = self.first_result + len(body.outputs)
        self.dv: list[Dim] = [d for x in lookups for d in (x.size, x.pitch)]  # come first among the loop's attributes

    def make(self, k: int, dtype: DType, stride: str | None = None) -> str:
        """The C++ expression of operand k, not an index; ``stride``: its pattern where that is no parameter."""
        if k not in self.lookups:
            return f"Operand<{STORAGE[dtype]}, {stride or f'S{k}'}>::make(p[{k}], s[{k}])"
        at, x = self.lookups[k]
        j = at - self.inputs
        kinds = f"{STORAGE[dtype]}, {stride or f'S{k}'}, {STORAGE[x.dtype]}, {stride or f'S{at}'}"
        return f"Taken<{kinds}>::make(p[{k}], s[{k}], p[{at}], s[{at}], dv[{2 * j}], dv[{2 * j + 1}])"

    def checks(self, dv: str) -> str:
        """The C++ statement that refuses indices out of range; empty where there are none."""
        found = [
            f"!in_range<{STORAGE[x.dtype]}>(c, {at}, {x.dim}, {dv}[{2 * (at - self.inputs)}])"
            for at, x in self.lookups.values()
        ]
        return f"  if ({' || '.join(found)}) return 1;\n" if found else ""


class Emitter:
    """Writes the expressions of body nodes; ``names`` maps values to C++ variables."""

    def __init__(self, body: Graph, dv: Sequence[Dim] = ()) -> None:
        self.body = body
        self.names: dict[Value, str] = {}
        self.dv: list[Dim] = list(
            dv
        )  # the given ones, then values of symbolic dims, and bits of floats, used in the body: passed as attributes
        self.limits = {c for n in body.nodes if (c := limit_of(n)) is not None}
        self.roundings = roundings(body)
        self.gelus = gelus(body)
        self.sigmoids = sigmoids(body)
        self.quotients = quotients(body)
        self.rounded: dict[Rounding, str] = {}  # the name of what their constants are in
        self.factors: dict[tuple[np.float32, np.float32], str] = {}  # of quotients: what they are in
        self.live = self._live()

    def operands(self, n: Node) -> Sequence[Value]:
        """The values that the node's expression reads."""
        if n in self.gelus:
            return (self.gelus[n],)
        if n in self.sigmoids:
            return [v for v in self.sigmoids[n] if v is not None]
        if n in self.quotients:
            return n.operands[:1]
        return (self.roundings[n][0].x,) if n in self.roundings else n.operands

    def dear(self, n: Node) -> bool:
        return (n.op in DEAR and n not in self.quotients) or n in self.gelus or n in self.sigmoids

    def _live(self) -> set[Node]:
        """Nodes that results need."""
        found: set[Node] = set()
        todo = [v.node for v in self.body.outputs]
        while todo:
            n = todo.pop()
            if n not in found:
                found.add(n)
                todo += [v.node for v in self.operands(n)]
        return found

    def constants(self) -> list[str]:
        """Definitions of what is the same for all elements."""
        lines = [self.define(n) for n in self.body.nodes if not n.operands and n in self.live]
        for r in dict.fromkeys(r for n, (r, _) in self.roundings.items() if n in self.live):
            name = self.rounded[r] = f"bytes{len(self.rounded)}"
            first = len(self.dv)
            values = r.floats()
            self.dv += [int(v.view(np.uint32)) for v in values] + [r.zero]
            parts = [f"bitcast<float>((uint32_t)dv[{first + i}])" for i in range(len(values))]
            kind = "Bytes" if r.nan is None else "BytesNan"
            lines.append(f"const op::{kind} {name} = {{{', '.join(parts)}, (int32_t)dv[{first + len(values)}]}};")
        for pair in dict.fromkeys(f for n, f in self.quotients.items() if n in self.live):
            name = self.factors[pair] = f"quotient{len(self.factors)}"
            parts = [f"bitcast<float>((uint32_t)dv[{len(self.dv) + i}])" for i in range(2)]
            self.dv += [int(v.view(np.uint32)) for v in pair]
            lines.append(f"const op::Quotient {name} = {{{', '.join(parts)}}};")
        if not self.live.isdisjoint(self.gelus):
            lines.append("const op::Gelu gelu = {op::opaque(op::Gelu::kLimit)};")
        if not self.live.isdisjoint(self.sigmoids):
            limits = ", ".join(f"op::opaque(op::Sigmoid::{k})" for k in ("kLow", "kHigh"))
            lines.append(f"const op::Sigmoid sigmoid = {{{limits}}};")
        return lines

    def expression(self, n: Node) -> str:
        """The C++ expression of an elementwise node; rounds results of half types as a tensor between two ops would."""
        out = n.types[0].dtype
        if n.op == "constant":
            bits = shared_bits(n)
            if bits is not None:
                self.dv.append(bits)
                return f"bitcast<float>((uint32_t)dv[{len(self.dv) - 1}])"
            text = literal(n.attrs["data"].reshape(-1)[0], out)
            return f"op::opaque({text})" if n[0] in self.limits else text
        if n.op == "dim_value":
            self.dv.append(n.attrs["value"])
            return f"({compute_type(out)})dv[{len(self.dv) - 1}]"
        if n in self.roundings:
            r, steps = self.roundings[n]
            how = "steps" if steps else f"byte<{STORAGE[out]}>"
            return f"{self.rounded[r]}.{how}({self.names[r.x]})"
        if n in self.gelus:
            return f"gelu({self.names[self.gelus[n]]})"
        if n in self.sigmoids:
            factor, x = self.sigmoids[n]
            text = f"sigmoid({self.names[x]})"
            text = text if factor is None else f"op::mul({self.names[factor]}, {text})"
            return text if out.compute is out else f"round_to<{STORAGE[out]}>({text})"
        if n in self.quotients:
            return f"{self.factors[self.quotients[n]]}({self.names[n.operands[0]]})"
        args = [self.names[v] for v in n.operands]
        limit = limit_of(n)
        if limit is not None:
            x = n.operands[0] if n.operands[1] == limit else n.operands[1]
            return f"op::{'at_least' if n.op == 'maximum' else 'at_most'}({self.names[x]}, {self.names[limit]})"
        if n.op == "convert":
            text = f"to_compute(convert<{STORAGE[out]}>({args[0]}))"
            return text
        if n.op == "where":
            return f"({args[0]} ? {args[1]} : {args[2]})"
        if n.op == "complex":
            return f"{compute_type(out)}{{{args[0]}, {args[1]}}}"
        if n.op in ("real", "imag"):
            return f"{args[0]}.{n.op[:2]}"
        function = {"cabs": "abs"}.get(n.op, n.op)
        text = f"op::{function}({', '.join(args)})"
        return text if out.compute is out else f"round_to<{STORAGE[out]}>({text})"

    def define(self, n: Node) -> str:
        name = f"t{len(self.names)}"
        line = f"const {compute_type(n.types[0].dtype)} {name} = {self.expression(n)};"
        self.names[n[0]] = name
        return line


def _check(body: Graph) -> None:
    for n in body.nodes:
        if n.op == "constant" and n.attrs["data"].size != 1:
            raise EffcError("a fused body may hold only scalar constants", op="fused")


def _rows_of_a_pair(row: Sequence[str], lines: Sequence[str], ops: Sequence[DType]) -> list[str]:
    """The loop over an epilogue's rows where they are pairs of vectors, as a depthwise convolution's blocks of channels
    are: the start and the end of a loop of unknown length would take longer than they do. Two pairs where an operand
    has bytes, which else fill half a vector. ``row``: the start of one; ``ops``: the operands' dtypes."""
    known = " && ".join(f"S{k} != ANY" for k in range(len(ops)))
    step = "(2 * PAIR)" if any(dt.itemsize == 1 for dt in ops) else "PAIR"
    return [
        f"    if ({known} && n % {step} == 0) {{",
        *row,
        f"    for (int64_t pair = 0; pair < n; pair += {step}) {{",
        "#pragma GCC ivdep",
        f"    for (int64_t i = pair; i < pair + {step}; ++i) {{",
        *lines,
        "    }",
        "    }",
        "    }",
        "    return;",
        "    }",
    ]


def map_kernel(
    gen: Generated,
    body: Graph,
    patterns: Sequence[int],
    acc: DType | None = None,
    *,
    epilogue: bool = False,
    prologue: bool = False,
    lookups: Sequence[Lookup] = (),
    table: bool = False,
) -> tuple[str, list[Dim]]:
    """A map over the body's inputs and outputs, or (``epilogue``) one whose input 0 is a tile of ``acc``, or
    (``prologue``) one that writes rows for a kernel to load.

    ``patterns``: the expected innermost stride of each input, each index of ``lookups``, the table, each output.
    ``table``: the body's one result, a byte, is the index of the real one in a table of 256 bytes, an operand that
    follows the inputs and has strides 0 (tables.py). Returns the symbol and the dims the kernel needs as its first
    attributes."""
    _check(body)
    loop = Operands(body, lookups)
    e = Emitter(body, loop.dv)
    operands: list[str] = []
    lines: list[str] = []
    n_in = loop.first_result + table
    ops = [n.types[0].dtype for n in body.inputs] + [x.dtype for x in lookups] + [DType.u8] * table
    ops += [DType.u8 if table else v.dtype for v in body.outputs]
    if epilogue:
        assert acc is not None
    for k, dt in enumerate(ops):
        if len(body.inputs) <= k < n_in:
            continue  # an index, or the table
        own = acc if epilogue and k == 0 and acc is not None else dt
        operands.append(f"    const auto o{k} = {loop.make(k, own)};")
    for k, n in enumerate(body.inputs):
        name = f"x{k}"
        e.names[n[0]] = name
        load = f"o{k}.load(i)"
        if epilogue and k == 0 and acc is not n.types[0].dtype:
            load = f"to_compute(convert<{STORAGE[n.types[0].dtype]}>({load}))"
        lines.append(f"      const auto {name} = {load};")
    # Constants before the loop: see opaque in math.hpp.
    constants = [f"    {c}" for c in e.constants()]
    lines += [f"      {e.define(n)}" for n in body.nodes if n.operands and n in e.live]
    blocks: list[str] = []
    blocks_end: list[str] = []
    if table:
        blocks = [
            "    for (int64_t from = 0; from < n; from += LOOKUPS) {",
            "    const int64_t to = from + LOOKUPS < n ? from + LOOKUPS : n;",
        ]
        blocks_end = ["    }"]
        lines.append(f"      index[i - from] = (uint8_t){e.names[body.outputs[0]]};")
    else:
        lines += [f"      o{n_in + k}.store(i, {e.names[v]});" for k, v in enumerate(body.outputs)]
    params = ", ".join(f"int S{k}" for k in range(len(ops)))
    fast = ", ".join(str(p) for p in patterns)
    slow = ", ".join([str(ANY)] * len(ops))
    if epilogue:
        slow = ", ".join(["1", *[str(ANY)] * (len(ops) - 1)])
        # Rows are as short as a block of channels: what is the same for all of them is worked out once.
        row = [
            "    for (int64_t r = 0; r < m; ++r) {",
            f"      char* const p[] = {{{', '.join(f'first[{k}] + r * row[{k}]' for k in range(len(ops)))}}};",
            *operands,
        ]
        # With a sigmoid the loop of pairs still gains (1.5 % of EfficientNet-B0), with what takes longer it does not.
        cheap = not any(e.dear(n) for n in e.live - e.sigmoids.keys())
        start = [
            "  static void rows(int64_t m, int64_t n, char* const* first, const int64_t* row, const int64_t* s, "
            "[[maybe_unused]] const int64_t* dv) {",
            *constants,
            *(_rows_of_a_pair(row, lines, ops) if cheap and not table else ()),
            *row,
            *blocks,
        ]
        end = [*blocks_end, "    }"]
    else:
        start = [
            "  static void inner(int64_t n, char* const* p, const int64_t* s, [[maybe_unused]] const int64_t* dv) {",
            *operands,
            *constants,
            *blocks,
        ]
        end = blocks_end
    text = "\n".join(
        [
            "namespace effc {",
            "namespace {",
            f"struct @_ {{  // {describe(body)}",
            f"  template <{params}>",
            *start,
            *(["      uint8_t index[LOOKUPS];"] if table else []),
            "#pragma GCC ivdep",
            f"    for (int64_t i = {'from' if table else '0'}; i < {'to' if table else 'n'}; ++i) {{",
            *lines,
            "    }",
            *([f"    look_up((const uint8_t*)p[{n_in - 1}], o{n_in}, index, from, to - from);"] if table else []),
            *end,
            "  }",
            "};",
            f"constexpr int8_t @_pattern[] = {{{fast}}};",
            "}",
            "}",
        ]
    )
    if epilogue:
        text += (
            '\nextern "C" EFFC_EXPORT void @(const effc_call* c, int64_t b0, int64_t b1, int64_t m0, int64_t m1, '
            "int64_t n0, int64_t n1, "
            "const void* acc, int64_t ld) {\n"
            f"  using namespace effc;\n  run_epilogue<{len(ops)}>(c, b0, b1, m0, m1, n0, n1, acc, ld, "
            f"sizeof({STORAGE[acc or DType.f32]}), c->attr + c->n_attr - {len(e.dv)}, @_::rows<{fast}>, "
            f"@_pattern, @_::rows<{slow}>);\n}}\n"
        )
        return gen.add("epi", text), e.dv
    if prologue:
        text += (
            '\nextern "C" EFFC_EXPORT void @(const effc_call* c, int64_t b, int64_t h, int64_t m0, int64_t m1, '
            "int64_t, int64_t, const void* to, int64_t ld) {\n"
            f"  using namespace effc;\n  run_prologue<{len(ops)}>(c, b, h, m0, m1, (void*)to, ld, "
            f"sizeof({STORAGE[body.outputs[0].dtype]}), c->attr + c->n_attr - {len(e.dv)}, @_::inner<{fast}>, "
            f"@_pattern, @_::inner<{slow}>);\n}}\n"
        )
        return gen.add("pro", text), e.dv
    text += (
        '\nextern "C" EFFC_EXPORT int32_t @(const effc_call* c) {\n'
        f"  using namespace effc;\n{loop.checks('c->attr')}"
        f"  return run_map<{len(ops)}>(c, @_::inner<{fast}>, @_pattern, @_::inner<{slow}>);\n}}\n"
    )
    return gen.add("map", text), e.dv


def describe(body: Graph) -> str:
    ops: list[str] = []
    for n in body.nodes:
        if n.op not in ("constant", "convert"):
            ops.append(n.attrs["kind"] if n.op == "reduce" else n.op)
    return " ".join(ops[:24]) + (" ..." if len(ops) > 24 else "")


def counts(body: Graph) -> str:
    """How often each op occurs, for the cost model: ``"add:2 exp:1"``."""
    found: dict[str, int] = {}
    for n in body.nodes:
        if n.op != "constant":
            op = n.attrs["kind"] if n.op == "reduce" else n.op
            found[op] = found.get(op, 0) + 1
    return " ".join(f"{op}:{k}" for op, k in sorted(found.items()))


def chain_kernel(gen: Generated, stages: Sequence[tuple[str, str | None]]) -> str:
    """The kernel that runs these (kernel, epilogue) on blocks of rows (kernels/row_chain.hpp); returns its symbol."""
    kernels = dict.fromkeys(k for k, _ in stages)
    epilogues = dict.fromkeys(e for _, e in stages if e is not None)
    text = "\n".join(
        [
            *(f'extern "C" EFFC_EXPORT int32_t {k}(const effc_call*);' for k in kernels),
            *(
                f'extern "C" EFFC_EXPORT void {e}(const effc_call*, int64_t, int64_t, int64_t, int64_t, int64_t, '
                "int64_t, const void*, int64_t);"
                for e in epilogues
            ),
            'extern "C" EFFC_EXPORT int32_t @(const effc_call* c) {',
            "  static const effc::row_chain::Stage stages[] = {",
            *(f"      {{{k}, {e or 'nullptr'}}}," for k, e in stages),
            "  };",
            f"  return effc::row_chain::run(c, stages, {len(stages)});",
            "}",
            "",
        ]
    )
    return gen.add("chain", text)


def activations(gen: Generated, stages: Sequence[tuple[str, Sequence[Dim]] | None]) -> str:
    """One epilogue for a kernel of several stages: of each the symbol of its own and the numbers that this needs, or
    None. The stage is the first of the arguments (``activate`` of conv_dw.hpp)."""
    own = list(dict.fromkeys(s[0] for s in stages if s is not None))
    box = "int64_t b0, int64_t b1, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const void* acc, int64_t ld"
    lines = []
    for k, s in enumerate(stages):
        if s is not None:
            values = ", ".join(str(d) for d in s[1]) or "0"  # of constants: bits of floats
            lines += [
                f"  static const int64_t dv{k}[] = {{{values}}};",
                f"  if (b0 == {k}) {{",
                f"    at.attr = dv{k}, at.n_attr = {len(s[1])};",
                f"    return {s[0]}(&at, b0, b1, m0, m1, n0, n1, acc, ld);",
                "  }",
            ]
    text = "\n".join(
        [
            *(f'extern "C" EFFC_EXPORT void {e}(const effc_call*, {box});' for e in own),
            f'extern "C" EFFC_EXPORT void @(const effc_call* c, {box}) {{',
            "  effc_call at = *c;",
            *lines,
            "}",
            "",
        ]
    )
    return gen.add("act", text)


# Staged reductions ----------------------------------------------------------------------------------------------------


@dataclass
class Staging:
    """When each value of a staged region is computed: its stage, and whether it is of full or reduced shape."""

    stage: dict[Value, int] = field(default_factory=dict)
    full: dict[Value, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Scratch:
    """Bytes of thread scratch per element of the reduced extent (times LANES for columns), and bytes of one partial
    state."""

    per_element: int
    state: int


SPLITS, SPLIT_UNITS, SPLIT_LEAST = 16, 8, 8 * 8192  # as in loop.hpp


def stage(body: Graph, dims: tuple[int, ...], shape: Sequence[Dim]) -> Staging:
    """A reduced value is ready after its stage; a full value of stage k needs reductions up to stage k - 1."""
    out = Staging()

    def level_of(v: Value) -> bool:
        t = v.type
        pad = len(shape) - t.rank
        return any(d >= pad and t.shape[d - pad] != 1 for d in dims if shape[d] != 1)

    for n in body.inputs:
        out.stage[n[0]] = 0
        out.full[n[0]] = level_of(n[0])
    for n in body.nodes:
        v = n[0]
        before = max((out.stage[x] for x in n.operands), default=0)
        if n.op == "reduce":
            out.stage[v] = before + 1
            out.full[v] = False
        else:
            out.stage[v] = before
            if not n.operands:  # a scalar of the body
                out.full[v] = False
                continue
            # A reduced-shape value that needs no reduction is cheap: loops compute it where they need it.
            out.full[v] = before == 0 or any(out.full[x] for x in n.operands)
    return out


_IDENTITY = {"sum": "0", "prod": "1", "any": "false", "all": "true"}


def rows_kernel(
    gen: Generated,
    body: Graph,
    dims: tuple[int, ...],
    shape: Sequence[Dim],
    patterns: Sequence[int],
    columns: bool,
    lookups: Sequence[Lookup] = (),
) -> tuple[str, list[Dim], Scratch]:
    """A staged reduction over ``dims`` of ``shape``; ``patterns`` as for a map. Returns symbol, dims needed as
    attributes, and the memory it needs."""
    _check(body)
    st = stage(body, dims, shape)
    operands = Operands(body, lookups)
    e = Emitter(body, operands.dv)
    n_in = operands.first_result
    stages = max([st.stage[n[0]] for n in body.nodes if n.op == "reduce"], default=0) + 1
    uses = body.uses()
    reduced_nodes = [n for n in body.nodes if not st.full[n[0]]]
    cached = [
        n[0] for n in body.nodes
        if st.full[n[0]] and e.dear(n) and st.stage[n[0]] < stages - 1 and _needed_later(n[0], st, uses)
        and n in e.live
    ]  # fmt: skip
    field_of = {n[0]: f"r{i}" for i, n in enumerate(reduced_nodes)}
    accs = {n[0]: f"a{i}" for i, n in enumerate(n for n in body.nodes if n.op == "reduce")}
    lanes = "LANES" if columns else "1"
    state = ["  struct State {"]
    for n in reduced_nodes:
        state.append(f"    {compute_type(n.types[0].dtype)} {field_of[n[0]]}[{lanes}];")
    for n in body.nodes:
        if n.op == "reduce":
            state.append(f"    {_part(n)} {accs[n[0]]}[{lanes}]; {_wide(n)} {accs[n[0]]}w[{lanes}];")
    state.append("  };")

    inputs = {n[0]: k for k, n in enumerate(body.inputs)}
    cache_at = {v: n_in + len(body.outputs) + i for i, v in enumerate(cached)}
    consts = e.constants()
    first = [n for n in body.nodes if n.op == "reduce" and st.stage[n[0]] == 1]
    splittable = stages == 2 and not any(st.full[v] for v in body.outputs)
    loops: list[str] = []
    finishes: list[str] = []
    begins: list[str] = []
    flushes: list[str] = []
    for k in range(stages):
        reds = [n for n in body.nodes if n.op == "reduce" and st.stage[n[0]] == k + 1]
        stores = [
            (i, v)
            for i, v in enumerate(body.outputs)
            if st.full[v] and k == (stages - 1 if v in inputs else st.stage[v])
        ]
        fills = [v for v in cached if st.stage[v] == k]
        loops.append(
            _loop(k, body, e, st, reds, stores, fills, inputs, cache_at, field_of, accs, columns, operands, consts)
        )
        b, f, fin = _around(k, body, e, st, reds, reduced_nodes, inputs, field_of, accs, operands, consts)
        begins.append(b)
        flushes.append(f)
        finishes.append(fin)
    kind = "columns" if columns else "rows"
    other = "rows" if columns else "columns"
    items = ", ".join(f"sizeof({STORAGE[v.dtype]})" for v in cached) or "0"
    text = "\n".join(
        [
            "namespace effc {",
            "namespace {",
            f"struct @_ {{  // over {'columns' if columns else 'rows'}: {describe(body)}",
            *state,
            f"  static constexpr int stages = {stages}, caches = {len(cached)}, ops = {operands.count};",
            f"  static int8_t pattern(int k) {{ constexpr int8_t v[] = {{{', '.join(map(str, patterns))}}}; "
            "return v[k]; }",
            f"  static int64_t cache_item(int k) {{ constexpr int64_t v[] = {{{items}}}; return v[k]; }}",
            *loops,
            "  template <bool FAST>",
            f"  static void {kind}(int stage, int64_t n, char* const* p, const int64_t* s, State& st, "
            "const int64_t* dv) {",
            *(
                f"    if (stage == {k}) loop{k}<{', '.join(f'FAST ? {q} : 2' for q in patterns)}>(n, p, s, st, dv);"
                for k in range(stages)
            ),
            "  }",
            "  template <bool FAST>",
            f"  static void {other}(int, int64_t, char* const*, const int64_t*, State&, const int64_t*) {{}}",
            "  static void begin(int stage, [[maybe_unused]] State& st, [[maybe_unused]] int64_t lanes) {",
            *(f"    if (stage == {k}) {{ {b} }}" for k, b in enumerate(begins) if b),
            "    (void)stage;",
            "  }",
            f"  static constexpr bool splittable = {str(splittable).lower()};",
            "  static void merge([[maybe_unused]] State& d, [[maybe_unused]] const State& s, "
            "[[maybe_unused]] int64_t lanes) {",
            *(
                f"    for (int64_t j = 0; j < lanes; ++j) d.{accs[n[0]]}w[j] = "
                f"{_combine(n, f'd.{accs[n[0]]}w[j]', f's.{accs[n[0]]}w[j]')};"
                for n in first
            ),
            "  }",
            "  static void flush(int stage, [[maybe_unused]] State& st, [[maybe_unused]] int64_t lanes) {",
            *(f"    if (stage == {k}) {{ {b} }}" for k, b in enumerate(flushes) if b),
            "    (void)stage;",
            "  }",
            "  static void finish(int stage, [[maybe_unused]] State& st, [[maybe_unused]] int64_t lanes, "
            "[[maybe_unused]] char* const* p,",
            "                     [[maybe_unused]] const int64_t* s, [[maybe_unused]] const int64_t* dv) {",
            *(f"    if (stage == {k}) {{\n{b}\n    }}" for k, b in enumerate(finishes) if b),
            "    (void)stage;",
            "  }",
            "};",
            "}",
            "}",
            'extern "C" EFFC_EXPORT int32_t @(const effc_call* c) {',
            f"  using namespace effc;\n{operands.checks('(c->attr + 4 + c->attr[0])')}  return run_rows<@_>(c);\n}}",
            "",
        ]
    )
    scratch = sum(v.dtype.itemsize for v in cached)
    if cached:  # all caches get equal shares
        scratch = max(v.dtype.itemsize for v in cached) * len(cached)
    # An upper bound of sizeof(State), for the partial states of a split reduction.
    state_bytes = 16 * (len(reduced_nodes) + 2 * len(accs)) * (64 if columns else 1) + 64
    return gen.add("red", text), e.dv, Scratch(scratch, state_bytes if splittable else 0)


def _needed_later(v: Value, st: Staging, uses: dict[Value, list[Node | None]]) -> bool:
    """Whether a later stage than the value's own needs it: directly, or through cheap full-shape values it would
    recompute."""
    seen: set[Value] = set()
    todo = [v]
    while todo:
        x = todo.pop()
        if x in seen:
            continue
        seen.add(x)
        for u in uses.get(x, []):
            if u is None:  # a result is stored by the stage that computes it
                continue
            if u.op == "reduce":
                if st.stage[u[0]] - 1 > st.stage[v]:
                    return True
                continue
            if st.full[u[0]]:
                if st.stage[u[0]] > st.stage[v]:
                    return True
                if u.op not in DEAR:
                    todo.append(u[0])
    return False


def _part(n: Node) -> str:
    return compute_type(n.types[0].dtype)


def _wide(n: Node) -> str:
    """Totals of float sums and products are kept in double: parts are short enough for float."""
    if n.attrs["kind"] in ("sum", "prod") and n.types[0].dtype.compute is DType.f32:
        return "double"
    return "cf64" if n.types[0].dtype in (DType.c64, DType.c32) and n.attrs["kind"] in ("sum", "prod") else _part(n)


def _identity(n: Node, ctype: str) -> str:
    kind = n.attrs["kind"]
    if kind in ("max", "min"):
        return f"limits<{ctype}>::{'lo' if kind == 'max' else 'hi'}"
    return f"{ctype}{{{_IDENTITY[kind]}}}" if not n.types[0].dtype.is_complex else f"{ctype}{{{_IDENTITY[kind]}, 0}}"


def _combine(n: Node, a: str, b: str) -> str:
    kind = n.attrs["kind"]
    dt = n.types[0].dtype
    if kind == "max":
        return f"nan_max({a}, {b})"
    if kind == "min":
        return f"nan_min({a}, {b})"
    if kind in ("any", "all"):
        return f"({a} {'|' if kind == 'any' else '&'} {b})"
    if dt.is_complex:
        return f"op::{'add' if kind == 'sum' else 'mul'}({a}, {b})"
    if dt.is_int:
        return f"op::{'add' if kind == 'sum' else 'mul'}({a}, {b})"
    return f"({a} {'+' if kind == 'sum' else '*'} {b})"


def _loop(
    k: int,
    body: Graph,
    e: Emitter,
    st: Staging,
    reds: list[Node],
    stores: list[tuple[int, Value]],
    fills: list[Value],
    inputs: dict[Value, int],
    cache_at: dict[Value, int],
    field_of: dict[Value, str],
    accs: dict[Value, str],
    columns: bool,
    slots: Operands,
    consts: list[str],
) -> str:
    """The inner loop of one stage: loads, what its reductions, caches and results need, accumulation, stores."""
    n_in = slots.first_result
    params = ", ".join(f"int S{i}" for i in range(slots.count))
    head = [f"  template <{params}>", f"  static void loop{k}([[maybe_unused]] int64_t n, "
            "[[maybe_unused]] char* const* p, [[maybe_unused]] const int64_t* s, "
            "[[maybe_unused]] State& st, [[maybe_unused]] const int64_t* dv) {"]  # fmt: skip
    if not (reds or stores or fills):
        return "\n".join([*head, "  }"])
    needed: list[Value] = [n.operands[0] for n in reds] + [v for _, v in stores] + fills
    order: list[Node] = []
    loads: list[tuple[str, str]] = []
    outer: list[str] = []
    names: dict[Value, str] = {}
    done: set[Value] = set()
    saved = dict(e.names)

    def visit(v: Value) -> None:
        if v in done:
            return
        done.add(v)
        if v in cache_at and st.stage[v] < k:
            names[v] = f"c{cache_at[v]}"
            loads.append((names[v], f"q{cache_at[v]}.load(i)"))
        elif v in inputs:
            names[v] = f"x{inputs[v]}"
            loads.append((names[v], f"q{inputs[v]}.load(i)"))
        elif v.node.op in ("constant", "dim_value"):
            names[v] = saved[v]
        elif v in field_of:
            names[v] = f"{field_of[v]}"
            if columns:
                loads.append((names[v], f"st.{field_of[v]}[i]"))
            else:
                outer.append(f"    const auto {names[v]} = st.{field_of[v]}[0];")
        else:
            for x in e.operands(v.node):
                visit(x)
            order.append(v.node)

    for v in needed:
        visit(v)
    e.names = names
    lines = [f"      const auto {name} = {load};" for name, load in loads]
    for n in order:
        names[n[0]] = f"v{len(names)}"
        lines.append(f"      const {compute_type(n.types[0].dtype)} {names[n[0]]} = {e.expression(n)};")
    operands = []
    for v, i in inputs.items():
        if v in done:
            operands.append(f"    const auto q{i} = {slots.make(i, v.dtype)};")
    for i, v in stores:
        at = n_in + i
        operands.append(f"    const auto q{at} = Operand<{STORAGE[v.dtype]}, S{at}>::make(p[{at}], s[{at}]);")
        lines.append(f"      q{at}.store(i, {names[v]});")
    for v, at in cache_at.items():
        if v in done:
            operands.append(f"    const auto q{at} = Operand<{STORAGE[v.dtype]}, 1>::make(p[{at}], 1);")
        if v in fills:
            lines.append(f"      q{at}.store(i, {names[v]});")
    plain = all(
        not n.types[0].dtype.is_complex and not (n.types[0].dtype.is_int and n.attrs["kind"] in ("sum", "prod"))
        for n in reds
    )
    e.names = saved
    open_, close = [*head, *(f"    {c}" for c in consts), *operands], ["  }"]
    if columns or not reds:
        for n in reds:
            a = f"st.{accs[n[0]]}[i]"
            lines.append(f"      {a} = {_combine(n, a, names[n.operands[0]])};")
        return "\n".join(
            [*open_, *outer, "#pragma GCC ivdep", "    for (int64_t i = 0; i < n; ++i) {", *lines, "    }", *close]
        )
    # Rows: cheap bodies are run on four strips of the row at once, so that sums do not wait for each other's latency.
    strips = 4 if plain and not any(e.dear(n) for n in order) else 1
    args, first, rest, folds, stores_back = [], [], [], [], []
    clauses: dict[str, list[str]] = {}
    for n in reds:
        a, t = accs[n[0]], _part(n)
        args.append(f"{t}& {a}")
        lines.append(f"      {a} = {_combine(n, a, names[n.operands[0]])};")
        first.append(f"    {t} {a}_0 = st.{a}[0];")
        rest += [f"    {t} {a}_{k} = {_identity(n, t)};" for k in range(1, strips)]
        folds += [f"    {a}_0 = {_combine(n, f'{a}_0', f'{a}_{k}')};" for k in range(1, strips)]
        stores_back.append(f"    st.{a}[0] = {a}_0;")
        clauses.setdefault(_CLAUSE[n.attrs["kind"]], []).append(a)

    def pragma(count: int) -> list[str]:
        # Integer sums wrap inside op::add, complex ones are structs: the vectoriser finds what it can by itself.
        if not plain:
            return []
        return [
            "#pragma omp simd "
            + " ".join(
                f"reduction({c} : {', '.join(f'{a}_{k}' for a in names_ for k in range(count))})"
                for c, names_ in clauses.items()
            )
        ]

    step = [
        f"    auto step = [&](int64_t i, {', '.join(args)}) __attribute__((always_inline)) {{",
        *(f"  {line}" for line in lines),
        "    };",
    ]

    def call(k: int) -> str:
        return f"step(i{f' + {k} * q' if k else ''}, {', '.join(f'{accs[n[0]]}_{k}' for n in reds)});"

    wide: list[str] = []
    start = "0"
    if strips > 1:
        start = "4 * q"
        wide = ["    const int64_t q = n / 64 * 16;", *rest, *pragma(strips), "    for (int64_t i = 0; i < q; ++i) {",
                *(f"      {call(k)}" for k in range(strips)), "    }", *folds]  # fmt: skip
    return "\n".join(
        [
            *open_,
            *outer,
            *step,
            *first,
            *wide,
            *pragma(1),
            f"    for (int64_t i = {start}; i < n; ++i) {call(0)}",
            *stores_back,
            *close,
        ]
    )


_CLAUSE = {"sum": "+", "prod": "*", "max": "nanmax", "min": "nanmin", "any": "|", "all": "&"}


def _around(
    k: int,
    body: Graph,
    e: Emitter,
    st: Staging,
    reds: list[Node],
    reduced_nodes: list[Node],
    inputs: dict[Value, int],
    field_of: dict[Value, str],
    accs: dict[Value, str],
    slots: Operands,
    consts: list[str],
) -> tuple[str, str, str]:
    """The text of begin, flush and finish for stage k."""
    begin, flush, fin = [], [], []
    n_in = slots.first_result
    for n in reds:
        a = accs[n[0]]
        begin.append(
            f"for (int64_t j = 0; j < lanes; ++j) st.{a}[j] = {_identity(n, _part(n))}, "
            f"st.{a}w[j] = {_identity(n, _wide(n))};"
        )
        wide = f"convert<{_wide(n)}>(st.{a}[j])" if _wide(n) != _part(n) else f"st.{a}[j]"
        flush.append(
            f"for (int64_t j = 0; j < lanes; ++j) st.{a}w[j] = {_combine(n, f'st.{a}w[j]', wide)}, "
            f"st.{a}[j] = {_identity(n, _part(n))};"
        )
    # Values of reduced shape that become known with this stage's reductions.
    saved = dict(e.names)

    def section(ready: int) -> list[str]:
        names: dict[Value, str] = {}
        lines: list[str] = []

        def name(v: Value) -> str:
            if v in names:
                return names[v]
            if v.node.op in ("constant", "dim_value"):
                return saved[v]
            if v in field_of:
                return f"st.{field_of[v]}[j]"
            if v in inputs:
                i = inputs[v]
                return f"({slots.make(i, v.dtype, '2')}.load(j))"
            args = {x: name(x) for x in e.operands(v.node)}  # a stage 0 value of reduced shape
            e.names = args
            names[v] = f"w{len(names)}"
            lines.append(f"        const {compute_type(v.dtype)} {names[v]} = {e.expression(v.node)};")
            return names[v]

        for n in reduced_nodes:
            if st.stage[n[0]] != ready or n not in e.live:
                continue
            if n.op == "reduce":
                a = accs[n[0]]
                dt = n.types[0].dtype
                value = (
                    f"to_compute(convert<{STORAGE[dt]}>(st.{a}w[j]))"
                    if _wide(n) != compute_type(dt) or dt.compute is not dt
                    else f"st.{a}w[j]"
                )
                lines.append(f"        st.{field_of[n[0]]}[j] = {value};")
            else:
                e.names = {v: name(v) for v in e.operands(n)}
                lines.append(f"        st.{field_of[n[0]]}[j] = {e.expression(n)};")
        for i, v in enumerate(body.outputs):
            if not st.full[v] and st.stage[v] == ready:
                lines.append(
                    f"        (Operand<{STORAGE[v.dtype]}, 2>::make(p[{n_in + i}], s[{n_in + i}])).store(j, {name(v)});"
                )
        e.names = saved
        return lines

    lines = section(k + 1)
    if lines:
        fin = [*(f"      {c}" for c in consts), "      for (int64_t j = 0; j < lanes; ++j) {", *lines, "      }"]
    return " ".join(begin), " ".join(flush), "\n".join(fin)
