"""Recurrent layers (kernels/rnn.hpp): one product for the inputs of all steps, then one call for the recurrence."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node, Value
from .. import microkernels
from ..packing import gemm, rnn
from . import Buf, Lowering, lowers
from .contraction import KERNELS, _partial, _Sizes, constant_matrix


def _packed(cx: Lowering, v: Value, gates: int, lanes: int, nr: int) -> Buf:
    """Weights (gates * units, k) or a bias, rearranged and packed: a constant, or packed at run time."""
    rows, k = v.shape[0], v.shape[1] if v.rank == 2 else 1
    assert isinstance(rows, int) and isinstance(k, int)
    found = constant_matrix(cx, v)
    if found is not None:
        data, key = found
        memo: dict[Any, Any] = cx.constants.__dict__.setdefault("packed_rnn", {})
        if (key, gates, lanes, nr) not in memo:
            matrix = rnn.arrange(data.reshape(rows, k), gates, lanes)
            memo[key, gates, lanes, nr] = (data, gemm.pack_gemm_b(matrix, nr))
        return cx.const(memo[key, gates, lanes, nr][1])
    size = gemm.packed_bytes(1, k, rnn.columns(rows // gates, gates, lanes), v.dtype, nr)
    out = cx.temp(DType.u8, (size,))
    cx.call(f"effc_rnn_pack_{KERNELS[v.dtype]}", [cx.strided(v)], [out], [gates, lanes, nr, k], name="pack")
    return out


def _lower(cx: Lowering, node: Node, kernel: str, gates: int, vectors: int, weights: int) -> None:
    """``weights``: index of w_ih among the operands; before it stand x and the states."""
    x, h0 = node.inputs[0], node.inputs[1]
    c0 = node.inputs[2] if weights == 3 else None
    ins = (*node.inputs, *[None] * 8)
    w_ih, w_hh, b_ih, b_hh = ins[weights : weights + 4]
    w_hr = ins[weights + 4] if weights == 3 else None
    assert x is not None and h0 is not None and w_ih is not None and w_hh is not None
    dtype = x.dtype
    if dtype not in (DType.f32, DType.f64) or not w_ih.type.is_static or not w_hh.type.is_static:
        reason = (
            "the weights' sizes are dynamic" if dtype in (DType.f32, DType.f64) else f"no recurrent kernel for {dtype}"
        )
        cx.note(node, reason)
        cx.lower_decomposed(node)
        return
    rows = w_hh.shape[0]
    assert isinstance(rows, int)
    units, vlen = rows // gates, cx.target.vlen
    lanes = vlen // dtype.itemsize * (vectors if gates == 1 else 1)  # units of a panel
    wide = vectors * vlen // dtype.itemsize
    columns = rnn.columns(units, gates, lanes)
    (steps, batch, features), xs = x.shape, cx.dense(x)
    xg = cx.temp(dtype, (steps, batch, columns))
    total: Dim = steps * batch
    a = cx.view(xs, (1, 1, total, features), (0, 0, features, 1))
    product = cx.view(xg, (1, 1, total, columns), (0, 0, columns, 1))
    sizes = _Sizes.of(microkernels.choose(cx.target, "matmul", dtype), dtype, vlen)
    inputs = _packed(cx, w_ih, gates, lanes, sizes.nr)
    cx.call(
        f"effc_matmul_packed_{KERNELS[dtype]}", [a, inputs], [product],
        [1, w_ih.shape[1], columns, *gemm.Blocking().attrs],
        name=f"{node.name or node.op} inputs", scratch=_partial(sizes, a, columns),
        thread_scratch=sizes.thread_scratch(dtype, vlen, gemm.Blocking(), a, columns),
        flops=total * features * rows * 2,
    )  # fmt: skip
    biases = [None if b is None else _packed(cx, b, gates, lanes, wide) for b in (b_ih, b_hh)]
    states = [cx.dense(h0), None if c0 is None else cx.dense(c0)]
    projection = None if w_hr is None else cx.dense(w_hr)
    outs = [cx.out(node, i) for i in range(len(node.types))]
    padded = -(-units // lanes) * lanes
    cx.call(
        f"effc_{kernel}_{KERNELS[dtype]}",
        [xg, *states, _packed(cx, w_hh, gates, lanes, wide), *biases, projection], outs,
        [node.attrs["reverse"], units], scratch=batch * (padded * dtype.itemsize * (1 if w_hr is None else 2)),
        flops=total * int(np.prod(w_hh.shape)) * 2,  # type: ignore[arg-type]
    )  # fmt: skip


@lowers("lstm_layer")
def lower_lstm(cx: Lowering, node: Node) -> None:
    _lower(cx, node, "lstm", 4, 4, 3)


@lowers("gru_layer")
def lower_gru(cx: Lowering, node: Node) -> None:
    _lower(cx, node, "gru", 3, 3, 2)


@lowers("rnn_layer")
def lower_rnn(cx: Lowering, node: Node) -> None:
    _lower(cx, node, f"rnn_{node.attrs['activation']}", 1, 4, 2)
