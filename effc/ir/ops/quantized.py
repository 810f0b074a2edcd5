"""Products and convolutions of bytes with zero points: sums of (a - a_zero) (b - b_zero) in i32, modulo 2^32.

``effc.passes.quantized`` forms them; scales, bias, activation and rounding are elementwise ops that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..dtypes import DType
from ..graph import Graph, Value
from ..op import Sample, broadcast_shapes, op, require, same_dim
from ..types import TensorType
from .contraction import _matmul, _matmul_cost
from .conv import _ATTRS, _conv, _conv_cost, _conv_np
from .elementwise import random_array

Array = np.ndarray[Any, Any]
BYTES = (DType.u8, DType.i8)


def _check(x: TensorType, x_zero: TensorType, w: TensorType, w_zero: TensorType) -> None:
    for t, z in ((x, x_zero), (w, w_zero)):
        require(t.dtype in BYTES, f"operands must be u8 or i8, not {t.dtype}")
        require(z.dtype is t.dtype, f"a zero point of an operand of {t.dtype} must be {t.dtype}, not {z.dtype}")


def _sum32(a: Array) -> Array:
    return (a & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


# Matrices -------------------------------------------------------------------------------------------------------------


def _qmatmul(a: TensorType, b: TensorType, a_zero: TensorType, b_zero: TensorType) -> TensorType:
    _check(a, a_zero, b, b_zero)
    acc = _matmul(a.with_dtype(DType.i32), b.with_dtype(DType.i32))
    if a_zero.rank:
        require(
            a_zero.rank == a.rank and same_dim(a_zero.shape[-1], 1)
            and broadcast_shapes(a_zero.shape[:-1], a.shape[:-1]) == a.shape[:-1],
            f"a_zero must have rank 0 or broadcast to {(*a.shape[:-1], 1)}, not shape {a_zero.shape}",
        )  # fmt: skip
    require(
        b_zero.rank == 0 or (b_zero.rank == 1 and same_dim(b_zero.shape[0], b.shape[-1])),
        f"b_zero must have rank 0 or shape ({b.shape[-1]},), not {b_zero.shape}",
    )
    return acc


def _qmatmul_np(a: Array, b: Array, a_zero: Array, b_zero: Array) -> Array:
    return _sum32(np.matmul(a.astype(np.int64) - a_zero, b.astype(np.int64) - b_zero))


def _centred(b: Any, x: Value, zero: Value) -> Value:
    wide = [b.op("convert", v, dtype=DType.i32) for v in (x, zero)]
    out: Value = b.op("sub", *wide)
    return out


def _qmatmul_decompose(b: Any, x: Value, y: Value, x_zero: Value, y_zero: Value) -> Any:
    return b.op("matmul", _centred(b, x, x_zero), _centred(b, y, y_zero))


def _ends(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    info = np.iinfo(dtype)
    return rng.choice(np.array([info.min, info.max], dtype), shape)


def _qmatmul_samples(rng: np.random.Generator) -> Iterator[Sample]:
    def bytes_of(shape: tuple[int, ...], dtype: Any) -> Array:
        info = np.iinfo(dtype)
        return random_array(rng, shape, dtype, info.min, info.max)

    for ta in (np.uint8, np.int8):
        for tb in (np.uint8, np.int8):
            for sa, sb, za, zb, why in [
                ((5, 7), (7, 3), (), (), "one tile"),
                ((2, 3, 17, 70), (70, 33), (2, 1, 17, 1), (33,), "zero points of rows and columns"),
                ((1, 1300), (1300, 17), (), (17,), "one row, two blocks of steps"),
                ((2, 3, 17, 70), (3, 70, 33), (), (), "batches of both"),
                ((2, 1, 5, 9), (4, 9, 6), (2, 1, 5, 1), (), "broadcast batches"),
                ((0, 4), (4, 3), (), (), "no rows"),
                ((3, 0), (0, 4), (), (4,), "an empty reduction gives zeros"),
            ]:
                yield Sample((bytes_of(sa, ta), bytes_of(sb, tb), bytes_of(za, ta), bytes_of(zb, tb)), {}, why)
            ends = (_ends(rng, (9, 200), ta), _ends(rng, (200, 40), tb), _ends(rng, (), ta), _ends(rng, (40,), tb))
            yield Sample(ends, {}, "extremes")


op(
    "qmatmul",
    "a b a_zero b_zero",
    infer=_qmatmul,
    numpy=_qmatmul_np,
    category="contraction",
    level="macro",
    decompose=_qmatmul_decompose,
    cost=_matmul_cost,
    samples=_qmatmul_samples,
    doc="sum of (a - a_zero) (b - b_zero) in i32 modulo 2^32: a[..., M, K] and b[..., K, N] are u8 or i8 each; "
    "leading dims broadcast. A zero point has its operand's dtype; a_zero has rank 0 or broadcasts to [..., M, 1], "
    "b_zero has rank 0 or is [N].",
)


# Convolutions ---------------------------------------------------------------------------------------------------------


def _qconv(x: TensorType, w: TensorType, x_zero: TensorType, w_zero: TensorType, **attrs: Any) -> TensorType:
    _check(x, x_zero, w, w_zero)
    require(x_zero.rank == 0, f"x_zero must have rank 0, not shape {x_zero.shape}")
    require(
        w_zero.rank == 0 or (w_zero.rank == 1 and same_dim(w_zero.shape[0], w.shape[0])),
        f"w_zero must have rank 0 or shape ({w.shape[0]},), not {w_zero.shape}",
    )
    return _conv(x.with_dtype(DType.i32), w.with_dtype(DType.i32), **attrs)


def _qconv_np(x: Array, w: Array, x_zero: Array, w_zero: Array, **attrs: Any) -> Array:
    tall = w_zero.reshape(-1, *[1] * (w.ndim - 1)) if w_zero.ndim else w_zero
    return _sum32(_conv_np(x.astype(np.int64) - x_zero, w.astype(np.int64) - tall, **attrs))


def _qconv_decompose(b: Any, x: Value, w: Value, x_zero: Value, w_zero: Value, **attrs: Any) -> Any:
    tall = b.op("reshape", w_zero, shape=(w.shape[0], *[1] * (w.rank - 1))) if w_zero.rank else w_zero
    return b.op("conv", _centred(b, x, x_zero), _centred(b, w, tall), **attrs)


def _qconv_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: list[tuple[Any, ...]] = [
        ((1, 3, 9, 8), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "odd image"),
        ((2, 8, 7, 7), (24, 8, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1, "pointwise"),
        ((2, 6, 9, 9), (9, 2, 3, 3), (2, 2), ((1, 0), (2, 1)), (1, 2), 3, "groups, uneven padding, dilated"),
        ((1, 10, 33), (17, 10, 8), (1,), ((4, 4),), (1,), 1, "1-d"),
    ]
    for xs, ws, stride, padding, dilation, groups, why in cases:
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        for tx in (np.uint8, np.int8):
            for tw in (np.uint8, np.int8):
                arrays = [_ends(rng, s, t) for s, t in ((xs, tx), (ws, tw), ((), tx), ((ws[0],), tw))]
                yield Sample(tuple(arrays), attrs, why)


op(
    "qconv",
    "x w x_zero w_zero",
    _ATTRS,
    infer=_qconv,
    numpy=_qconv_np,
    category="contraction",
    level="macro",
    decompose=_qconv_decompose,
    cost=_conv_cost,
    samples=_qconv_samples,
    doc="conv of (x - x_zero) and (w - w_zero) in i32 modulo 2^32: x[N, C, *S] and w[O, C/groups, *K] are u8 or i8 "
    "each; padding stands for x_zero. A zero point has its operand's dtype; x_zero has rank 0, w_zero rank 0 or [O].",
)


# With an epilogue -----------------------------------------------------------------------------------------------------


def _body_types(acc: TensorType, extras: Sequence[TensorType], body: Graph) -> tuple[TensorType, ...]:
    ins = [n.types[0] for n in body.inputs]
    require(len(ins) == 1 + len(extras), f"the body takes {len(ins)} operands, there are {1 + len(extras)}")
    require(
        ins[0].dtype is acc.dtype and ins[0].rank == acc.rank,
        f"the body's first operand is {ins[0]}, the sums are {acc}",
    )
    return tuple(v.type for v in body.outputs)


def _qmatmul_fused(*operands: TensorType, body: Graph) -> tuple[TensorType, ...]:
    return _body_types(_qmatmul(*operands[:4]), operands[4:], body)


def _qmatmul_fused_decompose(b: Any, *operands: Value, body: Graph) -> Any:
    return body.inline(b, [b.op("qmatmul", *operands[:4]), *operands[4:]])


op(
    "qmatmul_fused",
    "a b a_zero b_zero extras*",
    {"body": Graph},
    infer=_qmatmul_fused,
    category="contraction",
    level="macro",
    decompose=_qmatmul_fused_decompose,
    cost=_matmul_cost,
    doc="qmatmul followed by elementwise ops: ``body`` takes the sums and the extras, which broadcast to them.",
)


def _qconv_fused(*operands: TensorType, body: Graph, **attrs: Any) -> tuple[TensorType, ...]:
    return _body_types(_qconv(*operands[:4], **attrs), operands[4:], body)


def _qconv_fused_decompose(b: Any, *operands: Value, body: Graph, **attrs: Any) -> Any:
    return body.inline(b, [b.op("qconv", *operands[:4], **attrs), *operands[4:]])


op(
    "qconv_fused",
    "x w x_zero w_zero extras*",
    {**_ATTRS, "body": Graph},
    infer=_qconv_fused,
    category="contraction",
    level="macro",
    decompose=_qconv_fused_decompose,
    cost=_conv_cost,
    doc="qconv followed by elementwise ops: ``body`` takes the sums and the extras, which broadcast to them.",
)
