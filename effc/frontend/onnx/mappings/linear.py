"""Matrix products, Einstein sums and determinants."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op

_SIGNED = {DType.u8: DType.i8, DType.u16: DType.i16, DType.u32: DType.i32, DType.u64: DType.i64}


def product(cx: Context, x: Value, y: Value) -> Value:
    """x[..., M, K] y[..., K, N] with broadcast batches. Unsigned integers are multiplied as signed ones of their width:
    the bits of the result are the same.
    """
    cx.require(x.shape[-1], "==", y.shape[-2], "the inner sizes of a matrix product must be equal")
    for k in range(3, min(x.rank, y.rank) + 1):
        a, b = x.shape[-k], y.shape[-k]
        if a != b and 1 not in (a, b):
            cx.require(a, "==", b, f"batch sizes {a} and {b} must be equal")
    if x.dtype in _SIGNED:
        signed = _SIGNED[x.dtype]
        return cx.convert(cx.op("matmul", cx.convert(x, signed), cx.convert(y, signed)), x.dtype)
    return cx.op("matmul", x, y)  # type: ignore[no-any-return]


def matmul(cx: Context, x: Value, y: Value) -> Value:
    """numpy.matmul's rules: a vector is a row on the left, a column on the right, and its dim of 1 is dropped."""
    if not x.rank or not y.rank:
        raise Unsupported("a scalar operand of a matrix product")
    z = product(cx, cx.unsqueeze(x, 0) if x.rank == 1 else x, cx.unsqueeze(y, 1) if y.rank == 1 else y)
    drop = [d for d, vector in ((z.rank - 2, x.rank == 1), (z.rank - 1, y.rank == 1)) if vector]
    return cx.squeeze(z, *drop) if drop else z


@onnx_op("MatMul")
def _matmul(cx: Context, x: Value, y: Value) -> Value:
    return matmul(cx, x, y)


@onnx_op("Gemm")
def _gemm(
    cx: Context, a: Value, b: Value, c: Value | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0, broadcast: int = 1,
) -> Value:  # fmt: skip
    """alpha A' B' + beta C: one product, and what a matmul's epilogue takes. ``broadcast`` belongs to the oldest form,
    where it allowed what is now always allowed.
    """
    y = product(cx, cx.transpose(a) if transA else a, cx.transpose(b) if transB else b)
    y = _factor(cx, y, alpha)
    if c is None or beta == 0:
        return y
    cx.aligned(y, c)
    for have, limit in zip(reversed(c.shape), reversed(y.shape)):
        if have != 1 and limit == 1:
            raise Unsupported(f"C of shape {c.shape} for a product of shape {y.shape}")
    return cx.add(y, _factor(cx, c, beta))


def _factor(cx: Context, x: Value, k: float) -> Value:
    """x*k. Integers with a factor that is none go through f64."""
    if x.dtype.is_float or k == int(k):
        return cx.scale(x, k if x.dtype.is_float else int(k))
    return cx.convert(cx.scale(cx.convert(x, DType.f64), k), x.dtype)


@onnx_op("Det")
def _det(cx: Context, a: Value) -> Value:
    """The product of the diagonal of U, with the sign of the row exchanges."""
    cx.require(a.shape[-1], "==", a.shape[-2], "the matrices of a determinant must be square")
    lu, pivots, _ = cx.op("linalg_lu_factor", cx.opmath(a))
    return cx.convert(cx.op("linalg_lu_det", lu, pivots)[0], a.dtype)


# Einsum ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Term:
    """An operand, and one label for each of its dims, all different."""

    value: Value
    labels: str


def _equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of each operand and of the result. The dims that an ellipsis stands for get labels of their own, counted
    from the right, since they broadcast.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise Unsupported(f"the equation {equation} for {len(ranks)} operands")
    named = [t.replace("...", "") for t in terms]
    extra = [r - len(n) if "..." in t else 0 for t, n, r in zip(terms, named, ranks)]
    for t, n, r, e in zip(terms, named, ranks, extra):
        if e < 0 or len(n) + e != r or set(n) - set(string.ascii_letters) or t.count("...") > 1:
            raise Unsupported(f"the term {t} of equation {equation} for an operand of rank {r}")
    wide = max(extra, default=0)
    dots = "".join(chr(0x3B1 + i) for i in range(wide))  # greek letters: no label of an equation

    def spread(t: str, e: int) -> str:
        return t.replace("...", dots[wide - e :])

    if arrow:
        result = spread(right, wide)
    else:
        result = dots + "".join(c for c in sorted(set("".join(named))) if "".join(named).count(c) == 1)
    inner = [spread(t, e) for t, e in zip(terms, extra)]
    if len(set(result)) != len(result) or set(result) - set("".join(inner)):
        raise Unsupported(f"the result {right} of equation {equation}")
    return inner, result


@onnx_op("Einsum")
def _einsum(cx: Context, *xs: Value, equation: str) -> Value:
    """Operands are contracted from the left, each pair as one batched matrix product; what only one operand has and the
    result has not is summed before. Short floats are rounded once, at the end.
    """
    inner, result = _equation(equation, [x.rank for x in xs])
    dtype = xs[0].dtype
    single = len(xs) == 2 and all(len(set(t)) == len(t) for t in inner)
    size: dict[str, Dim] = {}
    for x, t in zip(xs, inner):
        for c, d in zip(t, x.shape):
            if size.get(c, 1) == 1:
                size[c] = d
            elif d != 1:
                cx.require(size[c], "==", d, f"sizes {size[c]} and {d} of '{c}' in {equation} must be equal")
    terms = []
    for x, t in zip(xs, inner):
        v = x if single else cx.opmath(x)
        terms.append(_distinct(cx, v, t, size))
    while True:
        for k, term in enumerate(terms):
            keep = set(result).union(*(o.labels for j, o in enumerate(terms) if j != k))
            terms[k] = _summed(cx, term, keep)
        if len(terms) == 1:
            break
        x, y = terms[:2]
        later = set(result).union(*(o.labels for o in terms[2:]))
        terms = [_contract(cx, x, y, later, size), *terms[2:]]
    last = terms[0]
    absent = [c for c in result if c not in last.labels]  # sizes of 1 in every operand
    v = cx.reshape(last.value, (*last.value.shape, *[1] * len(absent)))
    labels = last.labels + "".join(absent)
    v = cx.permute(v, [labels.index(c) for c in result])
    return cx.convert(v, dtype)


def _distinct(cx: Context, v: Value, labels: str, size: dict[str, Dim]) -> _Term:
    """A repeated label is a diagonal; a dim of 1 that meets a larger size, or that is 1 everywhere, is left out."""
    out = ""
    k = 0
    while k < v.rank:
        c = labels[k]
        if c in out:
            first = out.index(c)
            cx.require(v.shape[first], "==", v.shape[k], f"the sizes of the repeated '{c}' must be equal")
            v = cx.moveaxis(cx.b.op("diagonal", v, dim1=first, dim2=k, offset=0), -1, first)
            labels = labels[:k] + labels[k + 1 :]
        else:
            out += c
            k += 1
    ones = [k for k, d in enumerate(v.shape) if d == 1]
    return _Term(cx.squeeze(v, *ones) if ones else v, "".join(c for k, c in enumerate(out) if k not in ones))


def _summed(cx: Context, t: _Term, keep: set[str]) -> _Term:
    dims = [k for k, c in enumerate(t.labels) if c not in keep]
    if not dims:
        return t
    total = cx.convert(cx.reduce("sum", t.value, dims), t.value.dtype)
    return _Term(total, "".join(c for c in t.labels if c in keep))


def _contract(cx: Context, x: _Term, y: _Term, keep: set[str], size: dict[str, Dim]) -> _Term:
    """The sum of x*y over what both have and nothing else needs."""
    both = [c for c in x.labels if c in y.labels]
    batch = [c for c in both if c in keep]
    over = [c for c in both if c not in keep]
    rows = [c for c in x.labels if c not in both]
    cols = [c for c in y.labels if c not in both]
    labels = "".join([*batch, *rows, *cols])
    shape = [size[c] for c in labels]

    def ordered(t: _Term, order: Sequence[str]) -> Value:
        return cx.permute(t.value, [t.labels.index(c) for c in order])

    def spanned(*groups: Sequence[str]) -> list[Dim]:
        return [D.product(size[c] for c in g) for g in groups]

    lead = [size[c] for c in batch]
    if not over:  # nothing is summed: a broadcast product
        a = cx.reshape(ordered(x, [*batch, *rows]), (*lead, *(size[c] for c in rows), *[1] * len(cols)))
        b = cx.reshape(ordered(y, [*batch, *cols]), (*lead, *[1] * len(rows), *(size[c] for c in cols)))
        return _Term(cx.op("mul", a, b), labels)
    a = cx.reshape(ordered(x, [*batch, *rows, *over]), (*lead, *spanned(rows, over)))
    b = cx.reshape(ordered(y, [*batch, *over, *cols]), (*lead, *spanned(over, cols)))
    return _Term(cx.reshape(product(cx, a, b), shape), labels)


__all__ = ["matmul", "product"]
