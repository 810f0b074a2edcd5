"""Recognises attention: softmax(scale * q k^T + mask) v in the spellings that models use, and forms the ``attention``
op.

The anchor is the product of the weights and v. From it the pass reads backwards: the softmax (max-sub-exp-sum-div,
without the max, or exp(x - logsumexp(x))), then the scores (scale before or after the masks, on q or on k, added masks,
``where`` masks, a softcap, conversions, reshapes between [B*H, L, L] and [B, H, L, L]), down to the product of q and k;
repeated key heads become grouped ones.

A row that sees no key gives NaN in a plain softmax: ``empty_nan`` is set unless the graph says zeros, or the masks
cannot empty a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..ir.dims import Bounds, Dim, floordiv
from ..ir.dtypes import DType
from ..ir.graph import Builder, Graph, Node, Value
from ..ir.op import OPS, broadcast_shapes, get
from ..runtime.errors import EffcError
from .manager import Pass, PassReport, in_subgraphs
from .masks import anti_causal_offset, bounds, causal_offset, diagonal_of, largest, never_empty
from .rewrite import const, is_one, known, scalar, uniform

HUGE = -1e30  # added to a score in f32 or more, it gives itself: where(c, x, HUGE) is x + where(c, 0, HUGE)
MASKED = -9999.0  # what models that know f16 write for a masked score; beside any other score its weight is 0


class _Declined(Exception):
    """Why a candidate is not attention."""


@dataclass
class _Term:
    """One mask, outermost first. ``added``: coefficient * value is added. Otherwise scores are kept where ``value`` (or
    its negation) is true and are ``fill`` elsewhere."""

    value: Value
    added: bool
    shape: tuple[Dim, ...]  # of the scores where it is applied
    dtype: DType  # of the scores there
    coefficient: float = 1.0
    negated: bool = False
    fill: float = 0.0


@dataclass
class _Scores:
    """scores = masks(softcap(scale * q k^T)); ``carriers`` are the nodes that hold values of the size of the scores."""

    scale: float = 1.0
    softcap: float = 0.0
    q_factor: Value | None = None
    q_factor_shape: tuple[Dim, ...] = ()  # of the scores where it is applied
    terms: list[_Term] = field(default_factory=list)
    carriers: list[Node] = field(default_factory=list)
    lead: tuple[Dim, ...] | None = None  # leading dims [B, H] where a reshape or a mask shows them
    zero_rows: bool = False
    blind: Value | None = (
        None  # the mask whose rows of -inf alone get zeros for weights, where the graph asks that of it
    )
    q: Value | None = None
    kt: Value | None = None


@dataclass(frozen=True)
class FormAttention(Pass):
    """Replaces recognised spellings of attention by the ``attention`` op."""

    name: ClassVar[str] = "attention"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        get("add")
        if "attention" not in OPS:
            return graph
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        uses = graph.uses()
        plan: dict[int, tuple[Node, _Scores, Value]] = {}
        for n in graph.nodes:
            if n.op != "matmul" or not n.types[0].dtype.is_float:
                continue
            s = _Scores()
            try:
                x = _softmax(n.operands[0], s)
                if x is None:
                    continue
                _walk(x, 1.0, s)
                _check(n, s, uses)
            except _Declined as e:
                report.decline(self.name, str(e), n)
                continue
            plan[id(n)] = (n, s, n.operands[1])
        if not plan:
            return graph
        return _Build(graph, plan, report).run()


# Softmax --------------------------------------------------------------------------------------------------------------


def _float_convert(v: Value) -> bool:
    return v.node.op == "convert" and v.dtype.is_float and v.node.operands[0].dtype.is_float


def _strip(v: Value, s: _Scores) -> Value:
    """Through conversions between floats, noting them as carriers."""
    while _float_convert(v):
        s.carriers.append(v.node)
        v = v.node.operands[0]
    return v


def _keepdims(v: Value, s: _Scores) -> Value:
    """Through the reshape that gives a reduction its dims back."""
    if v.node.op == "reshape" and v.node.operands[0].node.op in ("reduce", "log", "add", "where"):
        s.carriers.append(v.node)
        return v.node.operands[0]
    return v


def _reduction(v: Value, kind: str, s: _Scores) -> Value | None:
    """The operand of a reduction of this kind over the last dim, its dims kept or given back by a reshape."""
    v = _keepdims(v, s)
    n = v.node
    if n.op != "reduce" or n.attrs["kind"] != kind or tuple(n.attrs["dims"]) != (n.operands[0].rank - 1,):
        return None
    s.carriers.append(n)
    return n.operands[0]


def _softmax(p: Value, s: _Scores) -> Value | None:
    """The scores whose softmax over the last dim ``p`` is, or None."""
    p = _strip(p, s)
    if p.node.op == "reshape" and p.shape[-2:] == p.node.operands[0].shape[-2:]:  # [B, H, L, L] to [B*H, L, L]
        inner = p.node.operands[0]
        s.carriers.append(p.node)
        if inner.rank in (4, 5):
            s.lead = _lead(inner.shape)
        p = _strip(inner, s)
    n = p.node
    if n.op == "where" and uniform(n.operands[1]) == 0:
        if n.operands[0].node.op == "eq":  # max(mask) == -inf, as in the body of ONNX's Attention
            x, y = n.operands[0].node.operands
            mask, scores = _reduction(x, "max", s), _softmax(n.operands[2], s)
            if mask is None or scores is None or uniform(y) != -math.inf:
                return None
            s.carriers += [n, n.operands[0].node]
            if (u := uniform(mask)) is None or not u > -math.inf:
                s.zero_rows, s.blind = True, mask
            return scores
        blind = _reduction(n.operands[0], "all", s)
        scores = _softmax(n.operands[2], s) if blind is not None else None
        if scores is None or blind is None or blind.node.op != "eq":
            return None
        x, y = blind.node.operands
        s.carriers += [n, blind.node]
        if uniform(y) != -math.inf or x != scores:
            return None
        s.zero_rows = True
        return scores
    if n.op == "div":
        e, total = n.operands
        s.carriers.append(n)
        return _exp_of(e, s) if _reduction(total, "sum", s) == e else None
    if n.op == "mul":
        for e, inverse in (n.operands, n.operands[::-1]):
            if inverse.node.op == "reciprocal":
                trial = _Scores()
                if _reduction(inverse.node.operands[0], "sum", trial) == e:
                    s.carriers += [n, inverse.node, *trial.carriers]
                    return _exp_of(e, s)
        return None
    if n.op == "exp":
        s.carriers.append(n)
        return _log_softmax(n.operands[0], s)
    return None


def _exp_of(e: Value, s: _Scores) -> Value | None:
    """x of exp(x - max(x)) or exp(x)."""
    if e.node.op != "exp":
        return None
    s.carriers.append(e.node)
    d = e.node.operands[0]
    x = _centred(d, s)
    return d if x is None else x


def _centred(d: Value, s: _Scores) -> Value | None:
    """x of x - max(x); max may be replaced by 0 where it is -inf."""
    if d.node.op != "sub":
        return None
    x, m = d.node.operands
    trial = _Scores()
    m = _keepdims(m, trial)
    if m.node.op == "where" and uniform(m.node.operands[1]) == 0:
        trial.carriers.append(m.node)
        m = m.node.operands[2]
    if _reduction(m, "max", trial) != x:
        return None
    s.carriers += [d.node, *trial.carriers]
    return x


def _log_softmax(z: Value, s: _Scores) -> Value | None:
    """x of x - logsumexp(x), or of (x - max) - log(sum(exp(x - max)))."""
    if z.node.op != "sub":
        return None
    d, lse = z.node.operands
    s.carriers.append(z.node)
    lse = _keepdims(lse, s)
    shift: Value | None = None
    if lse.node.op == "add":
        parts = [_keepdims(v, s) for v in lse.node.operands]
        logs = [v for v in parts if v.node.op == "log"]
        if len(logs) != 1:
            return None
        s.carriers.append(lse.node)
        shift = next(v for v in parts if v is not logs[0])
        lse = logs[0]
    if lse.node.op != "log":
        return None
    s.carriers.append(lse.node)
    e = _reduction(lse.node.operands[0], "sum", s)
    if e is None or e.node.op != "exp":
        return None
    s.carriers.append(e.node)
    inner = e.node.operands[0]
    x = _centred(inner, s)
    if shift is not None:  # d is x itself
        return x if x is not None and x == d and _reduction(shift, "max", s) == x else None
    if inner == d:  # (x - max) - log(sum(exp(x - max))), or without the max
        return d if x is None else x
    return None


# Scores ---------------------------------------------------------------------------------------------------------------

_THROUGH = frozenset({"convert", "add", "sub", "mul", "div", "where", "tanh", "maximum", "reshape", "copy", "neg"})


def _carries(v: Value, depth: int = 14) -> bool:
    """Whether ``v`` is made of a product q k^T by ops that scores go through."""
    n = v.node
    if n.op == "matmul":
        return True
    if depth == 0 or n.op not in _THROUGH:
        return False
    if n.op == "reshape" and n.operands[0].shape[-2:] != v.shape[-2:]:
        return False
    return any(_carries(x, depth - 1) for x in n.operands if x.dtype.is_float)


def _lead(scores: tuple[Dim, ...]) -> tuple[Dim, Dim]:
    """Batch and heads of scores [B, H, L, L], or [B, W, H, L, L] of windows of images or frames of videos."""
    return (scores[0], scores[1]) if len(scores) == 4 else (scores[0] * scores[1], scores[2])


def _full_like(v: Value, whole: Value) -> bool:
    return v.rank == whole.rank and v.shape[-2:] == whole.shape[-2:]


def _number(v: Value) -> float | None:
    u = uniform(v)
    return None if u is None or v.dtype.is_complex else float(u)


def _walk(v: Value, mult: float, s: _Scores) -> None:
    """Reads the scores ``mult * v`` from the outside in."""
    n = v.node
    s.carriers.append(n)
    if n.op == "matmul":
        s.q, s.kt = n.operands
        s.scale = s.scale * mult
        return
    if n.op in ("copy", "neg") or _float_convert(v):
        return _walk(n.operands[0], -mult if n.op == "neg" else mult, s)
    if n.op == "reshape" and n.operands[0].shape[-2:] == v.shape[-2:]:
        inner = n.operands[0]
        for t in (v, inner):
            if t.rank in (4, 5) and s.lead is None:
                s.lead = _lead(t.shape)
        ranks = {v.rank, inner.rank}
        if ranks - {2, 3, 4, 5} or (min(ranks) >= 4 and v.shape[-3] != inner.shape[-3]):
            raise _Declined("the scores are reshaped to dims that are not batch, heads, queries and keys")
        return _walk(inner, mult, s)
    if n.op in ("add", "sub"):
        return _add(v, mult, s)
    if n.op in ("mul", "div"):
        return _scale(v, mult, s)
    if n.op == "where":
        return _where(v, mult, s)
    if n.op == "maximum":
        for x, low in (n.operands, n.operands[::-1]):
            c = _number(low)
            if c is not None and c * mult <= HUGE and _carries(x):
                return _walk(x, mult, s)
    raise _Declined(f"the scores come from {n.op}, not from a product of queries and keys")


def _add(v: Value, mult: float, s: _Scores) -> None:
    x, y = v.node.operands
    choices = [(a, b) for a, b in ((x, y), (y, x)) if _carries(a) and a.shape[-2:] == v.shape[-2:]]
    if not choices:
        raise _Declined("no operand of a sum is a product of queries and keys")
    if s.softcap:
        raise _Declined("a mask is added under a softcap")
    if s.q_factor is not None:
        raise _Declined("a mask is added before a scale that is a tensor")
    a, b = choices[0]
    if len(choices) == 2 and x.node.op != "matmul" and y.node.op == "matmul":
        a, b = y, x
    sign = -1.0 if v.node.op == "sub" else 1.0
    s.terms.append(_Term(b, True, v.shape, v.dtype, mult * (sign if b is y else 1.0)))
    if v.rank in (4, 5) and s.lead is None:
        s.lead = _lead(v.shape)
    _walk(a, mult * (sign if a is y else 1.0), s)


def _scale(v: Value, mult: float, s: _Scores) -> None:
    n = v.node
    x, y = n.operands
    if n.op == "mul" and _softcap(v, mult, s):
        return
    for a, b in ((x, y), (y, x)):
        c = _number(b)
        if c is not None and (n.op == "mul" or b is y):
            if c == 0 or not math.isfinite(c):
                raise _Declined("the scores are scaled by zero or infinity")
            return _walk(a, mult * c if n.op == "mul" else mult / c, s)
    for a, b in ((x, y), (y, x)):
        if (
            n.op == "mul"
            and _carries(a)
            and b.rank > 0
            and is_one(b.shape[-1])
            and s.q_factor is None
            and not s.softcap
        ):
            s.q_factor, s.q_factor_shape = b, v.shape
            if v.rank in (4, 5) and s.lead is None:
                s.lead = _lead(v.shape)
            return _walk(a, mult, s)
    raise _Declined("the scores are scaled by a tensor that varies over keys")


def _softcap(v: Value, mult: float, s: _Scores) -> bool:
    """c * tanh(x / c)."""
    for t, c_value in (v.node.operands, v.node.operands[::-1]):
        c = _number(c_value)
        if c is None or t.node.op != "tanh":
            continue
        if mult != 1.0 or c <= 0 or s.softcap or s.q_factor is not None:
            raise _Declined("a scale outside a softcap")
        s.softcap = c
        s.carriers.append(t.node)
        _walk(t.node.operands[0], 1.0, s)
        # tanh(scale * qk) * c == c * tanh((c * scale) * qk / c)
        s.scale *= c
        return True
    return False


def _where(v: Value, mult: float, s: _Scores) -> None:
    cond, x, y = v.node.operands
    for kept, fill_value, negated in ((x, y, False), (y, x, True)):
        fill = _number(fill_value)
        if fill is None or not _carries(kept):
            continue
        if s.softcap:
            raise _Declined("a mask under a softcap")
        if s.q_factor is not None or mult <= 0:
            raise _Declined("a mask before a scale that is a tensor or negative")
        s.terms.append(_Term(cond, False, v.shape, v.dtype, negated=negated, fill=fill * mult))
        if v.rank in (4, 5) and s.lead is None:
            s.lead = _lead(v.shape)
        return _walk(kept, mult, s)
    raise _Declined("a mask fills the scores with values that are not one constant")


def _check(root: Node, s: _Scores, uses: Mapping[Value, list[Node | None]]) -> None:
    """Nothing outside may need the weights or the scores, and the shapes must be those of attention."""
    inside = {id(n) for n in s.carriers} | {id(root)}
    for n in s.carriers:
        for v in n.values:
            if any(u is None or id(u) not in inside for u in uses.get(v, [])):
                raise _Declined("the scores or weights are used elsewhere")
    assert s.q is not None and s.kt is not None
    if s.blind is not None and not (len(s.terms) == 1 and s.terms[0].added and s.terms[0].value == s.blind):
        raise _Declined("the rows that get zeros are not those of the scores' one mask")
    v = root.operands[1]
    if s.q.rank < 2 or any(x.rank > 5 for x in (s.q, s.kt, v, root[0])):
        raise _Declined("more than five dims")
    if known(s.kt) is not None:
        raise _Declined("the keys are constant weights")


# Building -------------------------------------------------------------------------------------------------------------


class _Build:
    def __init__(self, graph: Graph, plan: Mapping[int, tuple[Node, _Scores, Value]], report: PassReport) -> None:
        self.graph, self.plan, self.report = graph, plan, report
        self.symbols: Mapping[str, Bounds] = graph.symbols

    def run(self) -> Graph:
        env: dict[Value, Value] = {}

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            for old, new in zip(n.inputs, ins, strict=True):
                if old is not None and new is not None:
                    env[old] = new
            if id(n) not in self.plan:
                return None
            b.loc = n.loc
            mark = len(b.nodes)
            try:
                out = self.attention(b, n, self.plan[id(n)][1], env)
                if out.type != n.types[0]:
                    raise _Declined(f"the result would be {out.type} instead of {n.types[0]}")
            except (_Declined, EffcError) as e:
                del b.nodes[mark:]
                self.report.decline("attention", e.message if isinstance(e, EffcError) else str(e), n)
                return None
            self.report.count("attention.formed")
            return out

        return self.graph.rebuild(rule)

    def attention(self, b: Builder, root: Node, s: _Scores, env: Mapping[Value, Value]) -> Value:
        def now(v: Value) -> Value:
            return env.get(v, v)

        assert s.q is not None and s.kt is not None
        q, kt, v = now(s.q), now(s.kt), now(root.operands[1])
        scale = s.scale
        k: Value = b.op("permute", kt, dims=(*range(kt.rank - 2), kt.rank - 1, kt.rank - 2))
        k = _flattened(b, k)
        q, fq = scaled(b, q)
        k, fk = scaled(b, k)
        scale = scale * fq * fk
        q, k, v = (self.four(b, t, s) for t in (q, k, v))
        if s.q_factor is not None:
            q = b.op("mul", q, self.four_masks(b, now(s.q_factor), s.q_factor_shape, s))
        k, v = ungrouped(b, k, v)
        q, k, v = self.batched(b, q, k, v)
        q, k, v, dtype = self.narrowed(b, q, k, v, s)
        mask, causal, empty_nan = self.masks(b, s, now, q, k)
        out: Value = b.op(
            "attention", q, k, v, *([] if mask is None else [mask]), scale=scale, causal=causal is not None,
            causal_offset=0 if causal is None else causal, softcap=s.softcap, empty_nan=empty_nan, name=root.name,
        )  # fmt: skip
        if dtype is not out.dtype or root.types[0].dtype is not out.dtype:
            out = b.op("convert", out, dtype=root.types[0].dtype)
        return out if out.shape == root.types[0].shape else b.op("reshape", out, shape=root.types[0].shape)

    def four(self, b: Builder, v: Value, s: _Scores) -> Value:
        """A query, key or value as [B, H, L, E]."""
        if v.rank == 4:
            return v
        shape: tuple[Dim, ...]
        if v.rank == 5:
            shape = (v.shape[0] * v.shape[1], *v.shape[2:])
        elif v.rank == 3 and s.lead is not None:
            batch, heads = s.lead
            if v.shape[0] == batch * heads:
                shape = (batch, heads, *v.shape[1:])
            elif is_one(v.shape[0]):
                shape = (1, *v.shape)
            elif v.shape[0] == heads and is_one(batch):
                shape = (1, *v.shape)
            else:
                raise _Declined(f"a leading dim of {v.shape[0]} is not {batch} * {heads}")
        elif v.rank == 3:
            shape = (v.shape[0], 1, *v.shape[1:])
        else:
            shape = (*[1] * (4 - v.rank), *v.shape)
        out: Value = b.op("reshape", v, shape=shape)
        return out

    def batched(self, b: Builder, q: Value, k: Value, v: Value) -> tuple[Value, Value, Value]:
        """Equal batch sizes, and heads of q that are a multiple of those of k and v."""
        batch = broadcast_shapes(q.shape[:1], k.shape[:1], v.shape[:1])[0]
        heads = broadcast_shapes(k.shape[1:2], v.shape[1:2])[0]

        def wide(t: Value, h: Dim) -> Value:
            shape = (batch, h, *t.shape[2:])
            return t if t.shape == shape else b.op("broadcast_to", t, shape=shape)

        k, v = wide(k, heads), wide(v, heads)
        if is_one(q.shape[1]) and not is_one(heads):
            return wide(q, heads), k, v
        return wide(q, q.shape[1]), k, v

    def narrowed(self, b: Builder, q: Value, k: Value, v: Value, s: _Scores) -> tuple[Value, Value, Value, DType]:
        """Operands that were only widened for the product, in their own short type: the kernel computes in f32
        anyway."""
        dtype = v.dtype
        if q.dtype is not k.dtype:
            raise _Declined(f"queries are {q.dtype}, keys {k.dtype}")
        bare = [t for t in map(_narrow, (q, k, v)) if t is not None]
        short = {t.dtype for t in bare}
        # An added mask has the type of the queries; one that is really wider keeps everything wide.
        exact = all(_narrow_term(t, short) for t in s.terms)
        if len(bare) == 3 and len(short) == 1 and exact:
            for t in s.terms:
                if t.added and (w := _narrow(t.value)) is not None:
                    t.value = w
            return bare[0], bare[1], bare[2], dtype
        for t in s.terms:  # a finite mask of a wider type may have no counterpart in a short one
            if t.dtype.itemsize > q.dtype.itemsize and (t.added or t.fill != -math.inf):
                q, k, v = (_value(x if x.dtype is t.dtype else b.op("convert", x, dtype=t.dtype)) for x in (q, k, v))
        if q.dtype is not v.dtype:  # scores in f32, weights converted back to the values' short type
            if q.dtype.compute is v.dtype or v.dtype.compute is q.dtype:
                wide = DType.f32 if q.dtype.compute is DType.f32 else q.dtype
                q, k, v = (t if t.dtype is wide else b.op("convert", t, dtype=wide) for t in (q, k, v))
            else:
                raise _Declined(f"queries are {q.dtype}, values {v.dtype}")
        return q, k, v, dtype

    def masks(self, b: Builder, s: _Scores, now: Any, q: Value, k: Value) -> tuple[Value | None, Dim | None, bool]:
        """The mask operand, the causal offset, and whether rows that see no key are NaN."""
        terms = [replace(t, value=now(t.value)) for t in s.terms]
        terms = [x for t in terms for x in _split(t) if not (x.added and _number(x.value) == 0)]
        terms = [replace(t, value=self.four_masks(b, t.value, t.shape, s)) for t in terms]
        causal: Dim | None = None
        hidden = 0.0
        for t in terms:
            o = self.causal(t, [x for x in terms if x is not t], q, k)
            if o is not None:
                causal, hidden = o, t.fill
                terms = [x for x in terms if x is not t]
                self.report.count("attention.causal")
                break
        for t in terms:
            if not t.added and HUGE < t.fill:
                raise _Declined(f"masked scores are {t.fill:g}, which a row without other keys would show")
        keeps = [t for t in terms if not t.added and t.fill == -math.inf]
        adds = [t for t in terms if t.added or t.fill != -math.inf]
        mask: Value | None = None
        for t in keeps:
            c = b.op("logical_not", t.value) if t.negated else t.value
            mask = c if mask is None else b.op("logical_and", mask, c)
        total: Value | None = None
        for t in adds:
            x = self.additive(b, t, q.dtype)
            total = x if total is None else b.op("add", total, x)
        if total is not None:
            mask = total if mask is None else b.op("where", mask, total, scalar(b, -math.inf, q.dtype))
        infinite = causal is not None and hidden == -math.inf and not never_empty(causal, self.symbols)
        empty_nan = not s.zero_rows and (infinite or not self.safe(terms, q.dtype))
        if empty_nan:
            self.report.count("attention.empty_nan")
        return mask, causal, empty_nan

    def causal(self, t: _Term, others: list[_Term], q: Value, k: Value) -> Dim | None:
        """The offset under which the op's causal flag can stand for this term."""
        o = _causal(t)
        if o is None or t.value.rank < 2 or t.value.shape[-2] != q.shape[2] or t.value.shape[-1] != k.shape[2]:
            return None
        if t.fill == -math.inf:
            return o
        # Every row must keep a key, or it would show what masked keys weigh.
        ranges = [_range(x) for x in others]
        reach = min(-t.fill / 4, 1e6)
        if t.fill <= MASKED and never_empty(o, self.symbols) and all(-reach < a and b < reach for a, b in ranges):
            return o
        return None

    def safe(self, terms: list[_Term], dtype: DType) -> bool:
        """No row can be -inf throughout."""
        # Adding something small to the lowest number gives that number again: half a unit there is 3e-8 of it in f32.
        slack = 1 if dtype.compute is DType.f64 else 1 + 1e-8
        return sum(min(_range(t)[0], 0.0) for t in terms) >= -largest(dtype.compute) * slack

    def additive(self, b: Builder, t: _Term, dtype: DType) -> Value:
        if not t.added:
            cond = t.value
            zero, fill = scalar(b, 0.0, dtype), scalar(b, t.fill, dtype)
            out: Value = b.op("where", cond, *((fill, zero) if t.negated else (zero, fill)))
            return out
        x = t.value if t.value.dtype is dtype else b.op("convert", t.value, dtype=dtype)
        return x if t.coefficient == 1.0 else b.op("mul", x, scalar(b, t.coefficient, dtype))

    def four_masks(self, b: Builder, mask: Value, scores: tuple[Dim, ...], s: _Scores) -> Value:
        """A mask of scores of this shape as one of [B, H, Lq, Lk]."""
        shape: tuple[Dim, ...]
        rank = len(scores)
        if rank == 5:  # [B, W, H, L, L], the scores of W windows of each image
            wide: tuple[Dim, ...] = (*[1] * (5 - mask.rank), *mask.shape)
            if all(map(is_one, wide[:2])):
                return _value(b.op("reshape", mask, shape=wide[1:]))
            if wide[:2] != scores[:2]:
                wide = (*scores[:2], *wide[2:])
                mask = b.op("broadcast_to", mask, shape=wide)
            return _value(b.op("reshape", mask, shape=(wide[0] * wide[1], *wide[2:])))
        if rank == 3 and mask.rank == 3 and not is_one(mask.shape[0]):  # dim 0 is B*H, or B where there are no heads
            if s.lead is None:
                shape = (mask.shape[0], 1, *mask.shape[1:])
            elif mask.shape[0] == s.lead[0] * s.lead[1]:
                shape = (*s.lead, *mask.shape[1:])
            else:
                raise _Declined(f"a mask's leading dim of {mask.shape[0]} is not {s.lead[0]} * {s.lead[1]}")
        elif mask.rank < 4:
            shape = (*[1] * (4 - mask.rank), *mask.shape)
        else:
            return mask
        return _value(b.op("reshape", mask, shape=shape))


def _range(t: _Term) -> tuple[float, float]:
    """Bounds of what a term adds to the scores."""
    if not t.added:
        return t.fill, 0.0
    low, high = bounds(t.value)
    ends = sorted((low * t.coefficient, high * t.coefficient)) if t.coefficient else (0.0, 0.0)
    return ends[0], ends[1]


def _value(x: Any) -> Value:
    assert isinstance(x, Value)
    return x


def _causal(t: _Term) -> Dim | None:
    """The offset of a term that is a causal mask and nothing else."""
    if t.added:
        n = t.value.node
        if t.coefficient <= 0:
            return None
        if n.op in ("reshape", "broadcast_to") and n.operands[0].shape[-2:] == t.value.shape[-2:]:
            inner = replace(t, value=n.operands[0])
            o = _causal(inner)
            t.fill = inner.fill
            return o
        if n.op == "where":
            a, c = _number(n.operands[1]), _number(n.operands[2])
            if a == 0 and c is not None and c * t.coefficient <= MASKED:
                t.fill = c * t.coefficient
                return causal_offset(n.operands[0])
            if c == 0 and a is not None and a * t.coefficient <= MASKED:
                t.fill = a * t.coefficient
                return _complement(n.operands[0])
        if n.op == "triu":
            u = _number(n.operands[0])
            if u is not None and u * t.coefficient <= MASKED:
                t.fill = u * t.coefficient
                diagonal: Dim = n.attrs["diagonal"]
                return diagonal - 1
        a_const = const(t.value)
        if a_const is not None and a_const.ndim >= 2 and 0 < a_const.size <= 1 << 24:
            low = float(a_const.min())
            if low * t.coefficient <= MASKED and bool(np.all((a_const == 0) | (a_const == low))):
                t.fill = low * t.coefficient
                return diagonal_of(a_const == 0)
        return None
    return _complement(t.value) if t.negated else causal_offset(t.value)


def _complement(cond: Value) -> Dim | None:
    """The causal offset of ``not cond``."""
    o = anti_causal_offset(cond)
    return None if o is None else o - 1


def _split(t: _Term) -> list[_Term]:
    """Conjunctions of conditions and sums of masks, term by term."""
    n = t.value.node
    if not t.added and not t.negated and n.op in ("logical_and", "bitwise_and") and n.operands[0].dtype.is_bool:
        if t.fill != -math.inf:
            return [t]
        return [x for v in n.operands for x in _split(replace(t, value=v))]
    if t.added and n.op == "add":
        return [x for v in n.operands for x in _split(replace(t, value=v))]
    return [t]


def scaled(b: Builder, v: Value) -> tuple[Value, float]:
    """``v`` without the constant factors on it, through views; and their product."""
    chain: list[Node] = []
    at, factor = v, 1.0
    found = False
    while True:
        n = at.node
        if n.op in ("reshape", "permute"):
            chain.append(n)
            at = n.operands[0]
            continue
        if n.op in ("mul", "div"):
            c = _number(n.operands[1])
            if c is not None and c != 0 and math.isfinite(c) and n.operands[0].shape == at.shape:
                factor = factor * c if n.op == "mul" else factor / c
                at, found = n.operands[0], True
                continue
        break
    if not found:
        return v, 1.0
    for n in reversed(chain):
        at = b.op(n.op, at, **n.attrs)
    return at, factor


def _flattened(b: Builder, v: Value) -> Value:
    """permute(permute(x)) and permute(reshape(x)) with the leading dims merged, in a form in which repeated heads
    show."""
    n = v.node
    if n.op != "permute":
        return v
    x = n.operands[0]
    if x.node.op == "permute":
        both = tuple(x.node.attrs["dims"][d] for d in n.attrs["dims"])
        source = x.node.operands[0]
        return source if both == tuple(range(len(both))) else b.op("permute", source, dims=both)
    if x.node.op == "reshape":  # reshape([.., a, b]) of a permute that swaps the last two: swap before the reshape
        inner = x.node.operands[0]
        if inner.rank >= 2 and inner.shape[-2:] == x.shape[-2:] and n.attrs["dims"][-2:] == (x.rank - 1, x.rank - 2):
            swapped = _flattened(
                b, b.op("permute", inner, dims=(*range(inner.rank - 2), inner.rank - 1, inner.rank - 2))
            )
            return _value(b.op("reshape", swapped, shape=v.shape))
    if x.node.op == "broadcast_to" and n.attrs["dims"][-2:] == (x.rank - 1, x.rank - 2):
        inner = x.node.operands[0]
        if inner.rank == x.rank and inner.shape[-2:] == x.shape[-2:]:
            swapped = _flattened(b, b.op("permute", inner, dims=n.attrs["dims"]))
            return _value(b.op("broadcast_to", swapped, shape=v.shape))
    return v


def ungrouped(b: Builder, k: Value, v: Value) -> tuple[Value, Value]:
    """Keys and values before their heads were repeated, where both were repeated equally often."""
    x, y = _repeated(k), _repeated(v)
    if x is None or y is None or x.shape[1] != y.shape[1]:
        return k, v
    return x, y


def _repeated(v: Value) -> Value | None:
    """x of reshape(broadcast(x[:, :, None], [B, Hk, G, L, E]), [B, Hk*G, L, E])."""
    n = v.node
    if n.op != "reshape" or v.rank != 4:
        return None
    wide = n.operands[0]
    if wide.node.op != "broadcast_to" or wide.rank != 5 or wide.shape[0] != v.shape[0] or wide.shape[3:] != v.shape[2:]:
        return None
    x = wide.node.operands[0]
    if x.node.op != "reshape" or x.rank != 5 or not is_one(x.shape[2]) or x.shape[:2] != wide.shape[:2]:
        return None
    source = x.node.operands[0]
    if source.rank != 4 or source.shape != (*x.shape[:2], *x.shape[3:]):
        return None
    if floordiv(v.shape[1], source.shape[1]) * source.shape[1] != v.shape[1]:
        return None
    return source


def _narrow(v: Value) -> Value | None:
    """The half precision value that ``v`` is the widened form of."""
    n = v.node
    if n.op == "convert" and n.operands[0].dtype in (DType.f16, DType.bf16) and v.dtype is DType.f32:
        return n.operands[0]
    return None


def _narrow_term(t: _Term, short: set[DType]) -> bool:
    """The mask can be used with operands of these short types as it is."""
    if not t.added:
        return t.fill == -math.inf
    w = _narrow(t.value)
    return w is not None and w.dtype in short


def without_causal(b: Builder, mask: Value, q: Value, k: Value) -> tuple[Value | None, Dim | None]:
    """The mask of an ``attention`` node without its causal part, and the offset of that; (mask, None) where it has
    none."""
    s = _Scores(terms=[_Term(mask, not mask.dtype.is_bool, _full(q, k), q.dtype, fill=-math.inf)], zero_rows=True)
    build = _Build(Graph((), (), (), b.symbols), {}, PassReport())
    mark = len(b.nodes)
    rest, offset, _ = build.masks(b, s, lambda v: v, q, k)
    if offset is None:
        del b.nodes[mark:]
        return mask, None
    return rest, offset


def _full(q: Value, k: Value) -> tuple[Dim, ...]:
    """The scores' shape."""
    return (*q.shape[:3], k.shape[2])
