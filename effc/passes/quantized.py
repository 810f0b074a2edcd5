"""Products and convolutions of quantized operands become products of bytes: ``qmatmul`` and ``qconv``.

What frontends make of quantized models is arithmetic that says what is meant and runs in floats or 32-bit integers:

    dequantized   (convert(q) - zero) * scale around a float matmul or conv; weights may be permuted and reshaped
    integer       convert(q) - zero, in i32, around an i32 matmul or conv, scaled afterwards or not

q is u8 or i8 (weights also 4 and 2 bits). The rewrite takes the zero points into the op, and multiplies the i32 sums by
the product of the scales. The epilogue pass then gives the op the bias, the activation and the next rounding to bytes,
and one kernel does it all. A dequantized product is not what it was bit for bit: its sums are exact, not rounded.

Rows taken from a dequantized table (an embedding) are dequantized after they are taken, and maxima of windows after
they are found.

Constant weights have a scale and a zero point for each column or all; those of the other operand are for the whole
tensor, or for rows of a matrix. Where both operands of a matrix product are computed, all
parameters are for whole tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..ir.dtypes import DType
from ..ir.graph import Builder, Graph, Node, Value
from ..ir.op import get
from .manager import Pass, PassReport, in_subgraphs
from .rewrite import const

Array = np.ndarray[Any, Any]
BYTES = (DType.u8, DType.i8)
SHORT = {DType.i4: np.int8, DType.u4: np.uint8, DType.i2: np.int8, DType.u2: np.uint8}
EXACT_STEPS = (1 << 24) // (255 * 255)  # products of bytes whose sum a float holds exactly


@dataclass
class Quantized:
    """A value as (q - zero) * scale; parameters of rank 0 or that of q; None for 0 and 1."""

    q: Value
    zero: Value | None = None
    scale: Value | None = None


@dataclass
class Weights:
    """A constant as (q - zero) * scale, arrays of one shape."""

    q: Array
    zero: Array
    scale: Array | None


class Declined(Exception):
    """Why a product of quantized operands is left as it is."""


class Computed(Exception):
    """The weights are no constants."""


@dataclass
class _Reader:
    """Takes values apart. ``b`` gets the nodes that parameters need."""

    b: Builder
    memo: dict[Value, Array | None] = field(default_factory=dict)

    def known(self, v: Value) -> Array | None:
        """The array of a value that is made of constants by a few plain ops, else None."""
        if v not in self.memo:
            self.memo[v] = self._known(v)
        return self.memo[v]

    def _known(self, v: Value) -> Array | None:
        n = v.node
        if n.op == "constant":
            return const(v)
        if (
            n.op not in ("convert", "reshape", "permute", "sub", "add", "mul", "div", "broadcast_to")
            or not v.type.is_static
        ):
            return None
        arrays = [self.known(x) for x in n.operands]
        if any(a is None for a in arrays):
            return None
        reference = get(n.op).numpy
        assert reference is not None
        result: Array = reference(*arrays, **n.attrs)
        return result

    def difference(self, v: Value) -> Quantized | None:
        """``v`` (an integer, or a float that holds one) as q - zero."""
        n = v.node
        if v.dtype in BYTES or v.dtype in SHORT:
            return Quantized(v)
        if n.op == "convert" and (n.operands[0].dtype.is_int and (v.dtype.is_int or v.dtype is DType.f32)):
            inner = n.operands[0]
            if inner.dtype in BYTES or inner.dtype in SHORT:
                return Quantized(inner)
            return self.difference(inner) if v.dtype.itemsize >= 4 else None
        if n.op == "sub" and v.dtype in (DType.i32, DType.i64):
            left = self.difference(n.operands[0])
            if left is None or left.zero is not None or left.q.shape != v.shape:
                return None
            zero = self.zero(n.operands[1], left.q.dtype)
            return None if zero is None else Quantized(left.q, zero)
        return None

    def zero(self, v: Value, dtype: DType) -> Value | None:
        """``v`` (i32) as a zero point of this dtype, or None."""
        a = self.known(v)
        if a is not None:
            low, high = (int(a.min()), int(a.max())) if a.size else (0, 0)
            info = np.iinfo(SHORT.get(dtype, dtype.np))
            if low < info.min or high > info.max:
                return None
            narrow = a.astype(info.dtype)
            return self.b.constant(narrow, DType.from_np(narrow.dtype))
        if v.node.op == "convert" and v.node.operands[0].dtype is dtype:
            return v.node.operands[0]
        if v.node.op == "reshape":
            inner = self.zero(v.node.operands[0], dtype)
            return None if inner is None else self.b.op("reshape", inner, shape=v.shape)
        return None

    def dequantized(self, v: Value) -> Quantized | None:
        """``v`` (f32) as (q - zero) * scale."""
        n = v.node
        if n.op == "mul" and v.dtype is DType.f32:
            for x, s in (n.operands, n.operands[::-1]):
                found = self.difference(x) if x.node.op == "convert" else None
                if found is not None and found.q.shape == v.shape:
                    return Quantized(found.q, found.zero, s)
        return None

    def weights(self, v: Value, integer: bool) -> Weights | None:
        """A constant right-hand side, seen through views; None if it is no quantized value at all."""
        n = v.node
        if not v.type.is_static:
            raise Computed
        if n.op in ("permute", "reshape"):
            inner = self.weights(n.operands[0], integer)
            if inner is None:
                return None

            def move(a: Array) -> Array:
                return a.transpose(n.attrs["dims"]) if n.op == "permute" else a.reshape(v.type.evaluate({}))

            return Weights(move(inner.q), move(inner.zero), None if inner.scale is None else move(inner.scale))
        found = self.difference(v) if integer else self.dequantized(v)
        if found is None:
            return None
        q = self.known(found.q)
        if q is None:
            raise Computed
        if found.q.dtype in SHORT:
            q = q.astype(SHORT[found.q.dtype])
        zero = np.zeros((), q.dtype) if found.zero is None else self.known(found.zero)
        scale = None if found.scale is None else self.known(found.scale)
        if zero is None or (scale is None and found.scale is not None):
            raise Declined("the weights' scale or zero point is not constant")
        return Weights(
            q,
            np.broadcast_to(zero.astype(q.dtype), q.shape),
            None if scale is None else np.broadcast_to(scale, q.shape),
        )

    def data(self, v: Value, integer: bool) -> Quantized | None:
        """The other operand, seen through views if its parameters are for the whole tensor."""
        n = v.node
        if n.op in ("permute", "reshape"):
            inner = self.data(n.operands[0], integer)
            if inner is None:
                return None
            if any(p is not None and p.rank for p in (inner.zero, inner.scale)):
                raise Declined("a view between a product and parameters that are not for the whole tensor")
            return Quantized(self.b.op(n.op, inner.q, **n.attrs), inner.zero, inner.scale)
        found = self.difference(v) if integer else self.dequantized(v)
        if found is None:
            return None
        if found.q.dtype not in BYTES:
            raise Declined(f"data of {found.q.dtype}: only u8 and i8 are multiplied")
        return Quantized(found.q, self.scalar(found.zero), self.scalar(found.scale))

    def scalar(self, v: Value | None) -> Value | None:
        """A parameter of one element with rank 0."""
        if v is None or v.rank == 0 or v.type.numel != 1:
            return v
        return self.b.op("reshape", v, shape=())  # type: ignore[no-any-return]


def per_column(a: Array, axis: int, what: str) -> Array:
    """The vector along ``axis`` that all of ``a`` repeats; declines if it does not."""
    index = tuple(slice(None) if d == axis else slice(0, 1) for d in range(a.ndim))
    if a.size and not (a == a[index]).all():
        raise Declined(f"the weights have a {what} for each block of the reduction")
    return np.ascontiguousarray(a[index].reshape(-1)) if a.size else np.zeros(a.shape[axis], a.dtype)


@dataclass(frozen=True)
class FormQuantized(Pass):
    """Forms ``qmatmul`` and ``qconv``. It runs before constants are folded, while weights still are bytes."""

    name: ClassVar[str] = "form_quantized"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        memo: dict[Value, Array | None] = {}

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
            if n.op not in ("matmul", "conv", "take", "max_pool"):
                return None
            left, right = ins[0], ins[-1]
            assert left is not None and right is not None
            b.loc, mark = n.loc, len(b.nodes)
            try:
                if n.op == "max_pool":
                    out = self.pooled(_Reader(b, memo), n, left, report)
                elif n.op == "take":
                    out = self.taken(_Reader(b, memo), n, left, right, report)
                else:
                    out = self.formed(_Reader(b, memo), n, left, right, report)
            except Declined as e:
                report.decline(self.name, str(e), n)
                out = None
            finally:
                b.loc = None
            if out is None:
                del b.nodes[mark:]
                return None
            assert out.type == n.types[0], (out.type, n.types[0])
            return (out,)

        return graph.rebuild(rule).without_dead()

    def formed(self, r: _Reader, n: Node, left: Value, right: Value, report: PassReport) -> Value | None:
        integer = n.types[0].dtype is DType.i32
        if not integer and n.types[0].dtype is not DType.f32:
            return None
        data = r.data(left, integer)
        try:
            weights = r.weights(right, integer)
        except Computed:
            return self.computed(r, n, data, r.data(right, integer), report)
        if data is None and weights is None:
            return None
        if data is None or weights is None:
            if not integer:
                raise Declined(f"only the {'weights are' if data is None else 'data is'} quantized")
            return None
        if n.op == "matmul":
            return self.matmul(r, n, data, weights, report)
        return self.conv(r, n, data, weights, report)

    def matmul(self, r: _Reader, n: Node, x: Quantized, w: Weights, report: PassReport) -> Value:
        if w.q.ndim != 2:
            if any(d != 1 for d in w.q.shape[:-2]):
                raise Declined("weights with a batch")
            if w.q.ndim > n.operands[0].rank:
                raise Declined("weights of more dims than the data")
            w = Weights(*(None if a is None else a.reshape(a.shape[-2:]) for a in (w.q, w.zero, w.scale)))  # type: ignore[arg-type]
        b = r.b
        for p in (x.zero, x.scale):
            if p is not None and p.rank and (p.rank != x.q.rank or p.shape[-1] != 1):
                raise Declined("a scale or zero point along the reduction")
        acc = b.op("qmatmul", x.q, b.constant(w.q), self.zero_of(b, x), b.constant(per_column(w.zero, 1, "zero point")))
        report.count(f"{self.name}.matmul")
        if w.scale is None:
            return acc  # type: ignore[no-any-return]
        return self.scaled(b, acc, x.scale, per_column(w.scale, 1, "scale"))

    def computed(
        self, r: _Reader, n: Node, x: Quantized | None, y: Quantized | None, report: PassReport
    ) -> Value | None:
        """A product of two computed operands, as in attention."""
        if x is None or y is None:
            if n.types[0].dtype is DType.i32 or x is y:
                return None
            raise Declined("only one operand is quantized")
        if n.op != "matmul":
            raise Declined("the filters are computed")
        if any(p is not None and p.rank for p in (x.zero, x.scale, y.zero, y.scale)):
            raise Declined("two computed operands with more than one scale or zero point")
        b = r.b
        acc = b.op("qmatmul", x.q, y.q, self.zero_of(b, x), self.zero_of(b, y))
        report.count(f"{self.name}.computed")
        if x.scale is None or y.scale is None:
            return acc  # type: ignore[no-any-return]
        return b.op("mul", b.op("convert", acc, dtype=DType.f32), b.op("mul", x.scale, y.scale))  # type: ignore[no-any-return]

    def conv(self, r: _Reader, n: Node, x: Quantized, w: Weights, report: PassReport) -> Value:
        b = r.b
        if any(p is not None and p.rank for p in (x.zero, x.scale)):
            raise Declined("the data of a convolution has more than one scale or zero point")
        zero, scale = per_column(w.zero, 0, "zero point"), None
        if w.scale is not None:
            scale = per_column(w.scale, 0, "scale").reshape(-1, *[1] * (w.q.ndim - 2))
        groups = n.attrs["groups"]
        steps = int(np.prod(w.q.shape[1:]))
        if w.q.shape[0] == groups and w.q.shape[1] == 1 and groups > 1:
            if scale is not None or steps > EXACT_STEPS:
                raise Declined("a depthwise convolution: it has no product of bytes")
            # Sums of so few products are whole numbers that floats hold: the float kernel is exact.
            q = b.op("sub", *(b.op("convert", v, dtype=DType.f32) for v in (x.q, self.zero_of(b, x))))
            tall = zero.reshape(-1, *[1] * (w.q.ndim - 1))
            acc = b.op("conv", q, b.constant(w.q.astype(np.float32) - tall.astype(np.float32)), **n.attrs)
            report.count(f"{self.name}.depthwise_in_floats")
            return b.op("convert", acc, dtype=DType.i32)  # type: ignore[no-any-return]
        acc = b.op("qconv", x.q, b.constant(w.q), self.zero_of(b, x), b.constant(zero), **n.attrs)
        report.count(f"{self.name}.conv")
        return acc if scale is None else self.scaled(b, acc, x.scale, scale)

    def taken(self, r: _Reader, n: Node, table: Value, index: Value, report: PassReport) -> Value | None:
        """Rows of a dequantized table: bytes are taken, and only those dequantized."""
        found, b = r.dequantized(table), r.b
        if found is None or r.known(found.q) is None:
            return None
        zero, scale = r.scalar(found.zero), r.scalar(found.scale)
        if any(p is not None and p.rank for p in (zero, scale)):
            raise Declined("a table with more than one scale or zero point")
        assert scale is not None
        report.count(f"{self.name}.take")
        return self.made_float(b, b.op(n.op, found.q, index, **n.attrs), zero, scale)

    def pooled(self, r: _Reader, n: Node, x: Value, report: PassReport) -> Value | None:
        """The largest float is that of the largest byte, where the scale is positive."""
        found, b = r.dequantized(x), r.b
        if found is None or found.q.dtype not in BYTES or n.attrs["indices"]:
            return None
        zero, scale = r.scalar(found.zero), r.scalar(found.scale)
        if any(p is not None and p.rank for p in (zero, scale)):
            raise Declined("a pooled value with more than one scale or zero point")
        known = None if scale is None else r.known(scale)
        if scale is None or known is None or not 0 < float(known) < np.inf:
            raise Declined("a pooled value whose scale is not known to be positive")
        inside = (max(p) < k for p, k in zip(n.attrs["padding"], n.attrs["kernel"], strict=True))
        if not all(inside) or any(d != 1 for d in n.attrs["dilation"]):
            raise Declined("a window of padding alone has no largest byte")
        report.count(f"{self.name}.max_pool")
        return self.made_float(b, b.op("max_pool", found.q, **n.attrs), zero, scale)

    def made_float(self, b: Builder, q: Value, zero: Value | None, scale: Value) -> Value:
        q = b.op("convert", q, dtype=DType.i32)
        if zero is not None:
            q = b.op("sub", q, b.op("convert", zero, dtype=DType.i32))
        return b.op("mul", b.op("convert", q, dtype=DType.f32), scale)  # type: ignore[no-any-return]

    def zero_of(self, b: Builder, x: Quantized) -> Value:
        return b.constant(np.zeros((), x.q.dtype.np)) if x.zero is None else x.zero

    def scaled(self, b: Builder, acc: Value, data: Value | None, weights: Array) -> Value:
        assert data is not None
        known, columns = const(data), weights.astype(np.float32)
        scale = b.constant(known * columns) if known is not None else b.op("mul", data, b.constant(columns))
        return b.op("mul", b.op("convert", acc, dtype=DType.f32), scale)  # type: ignore[no-any-return]
