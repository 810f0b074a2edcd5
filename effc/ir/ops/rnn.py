"""Recurrent layers: one layer, one direction, the whole sequence. Gates and formulas are PyTorch's (i f g o; r z n)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..graph import Builder, Value
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]
Type = TensorType | None

ACTIVATIONS = ("tanh", "relu")


def _check(
    gates: int, x: TensorType, h0: TensorType, w_ih: TensorType, w_hh: TensorType, biases: Sequence[Type]
) -> Dim:
    """Checks the operands that all layers share; returns the number of hidden units."""
    require(x.rank == 3, f"x must have rank 3 (time, batch, features), not {x.rank}")
    require(h0.rank == 2 and w_ih.rank == 2 and w_hh.rank == 2, "states and weights must have rank 2")
    present = [t for t in (h0, w_ih, w_hh, *biases) if t is not None]
    require(x.dtype.is_float and all(t.dtype is x.dtype for t in present), "operands must have one float dtype")
    require(same_dim(w_ih.shape[1], x.shape[2]), f"w_ih takes {w_ih.shape[1]} features, x has {x.shape[2]}")
    require(same_dim(w_hh.shape[1], h0.shape[1]), f"w_hh takes {w_hh.shape[1]} values, the state has {h0.shape[1]}")
    require(same_dim(h0.shape[0], x.shape[1]), f"batch sizes {h0.shape[0]} and {x.shape[1]} differ")
    require(same_dim(w_ih.shape[0], w_hh.shape[0]), "w_ih and w_hh have different numbers of rows")
    rows = w_hh.shape[0]
    require(not isinstance(rows, int) or rows % gates == 0, f"{rows} rows of weights do not divide into {gates} gates")
    require(
        all(b is None or (b.rank == 1 and same_dim(b.shape[0], rows)) for b in biases),
        f"biases must have {rows} values",
    )
    return rows // gates


def _lstm(
    x: TensorType, h0: TensorType, c0: TensorType, w_ih: TensorType, w_hh: TensorType, b_ih: Type = None,
    b_hh: Type = None, w_hr: Type = None, *, reverse: bool,
) -> tuple[TensorType, ...]:  # fmt: skip
    units = _check(4, x, h0, w_ih, w_hh, (b_ih, b_hh))
    require(c0.rank == 2 and same_dim(c0.shape[1], units), f"c0 must be (batch, {units}), not {c0.shape}")
    if w_hr is None:
        require(same_dim(h0.shape[1], units), f"the state has {h0.shape[1]} values, the layer has {units} units")
    else:
        require(
            w_hr.rank == 2 and same_dim(w_hr.shape[1], units), f"w_hr must be (projection, {units}), not {w_hr.shape}"
        )
        require(same_dim(w_hr.shape[0], h0.shape[1]), "w_hr and h0 have different projection sizes")
    return x.with_shape((x.shape[0], x.shape[1], h0.shape[1])), h0, c0


def _plain(
    gates: int,
) -> Callable[..., tuple[TensorType, ...]]:
    def infer(
        x: TensorType, h0: TensorType, w_ih: TensorType, w_hh: TensorType, b_ih: Type = None, b_hh: Type = None, *,
        reverse: bool, activation: str = "tanh",
    ) -> tuple[TensorType, ...]:  # fmt: skip
        units = _check(gates, x, h0, w_ih, w_hh, (b_ih, b_hh))
        require(same_dim(h0.shape[1], units), f"the state has {h0.shape[1]} values, the layer has {units} units")
        require(activation in ACTIVATIONS, f"unknown activation {activation}; one of {', '.join(ACTIVATIONS)}")
        return x.with_shape((x.shape[0], x.shape[1], h0.shape[1])), h0

    return infer


# References -----------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _wide(*xs: Array | None) -> list[Any]:
    return [None if x is None else x.astype(np.float64) for x in xs]


def _steps(x: Array, reverse: bool) -> Iterator[int]:
    return iter(range(len(x) - 1, -1, -1) if reverse else range(len(x)))


def _lstm_np(
    x: Array, h0: Array, c0: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None,
    w_hr: Array | None = None, *, reverse: bool,
) -> tuple[Array, ...]:  # fmt: skip
    xs, h, c, wi, wh, bi, bh, wr = _wide(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    y = np.zeros((*x.shape[:2], h0.shape[1]))
    for t in _steps(x, reverse):
        g = xs[t] @ wi.T + h @ wh.T + (0 if bi is None else bi) + (0 if bh is None else bh)
        i, f, n, o = np.split(g, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(n)
        h = _sigmoid(o) * np.tanh(c)
        h = h if wr is None else h @ wr.T
        y[t] = h
    return y.astype(x.dtype), h.astype(x.dtype), c.astype(x.dtype)


def _gru_np(
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    reverse: bool,
) -> tuple[Array, ...]:
    xs, h, wi, wh, bi, bh = _wide(x, h0, w_ih, w_hh, b_ih, b_hh)
    y = np.zeros((*x.shape[:2], h0.shape[1]))
    for t in _steps(x, reverse):
        xr, xz, xn = np.split(xs[t] @ wi.T + (0 if bi is None else bi), 3, axis=1)
        hr, hz, hn = np.split(h @ wh.T + (0 if bh is None else bh), 3, axis=1)
        r, z = _sigmoid(xr + hr), _sigmoid(xz + hz)
        n = np.tanh(xn + r * hn)
        h = (1 - z) * n + z * h
        y[t] = h
    return y.astype(x.dtype), h.astype(x.dtype)


def _rnn_np(
    x: Array, h0: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None, *,
    reverse: bool, activation: str,
) -> tuple[Array, ...]:  # fmt: skip
    xs, h, wi, wh, bi, bh = _wide(x, h0, w_ih, w_hh, b_ih, b_hh)
    y = np.zeros((*x.shape[:2], h0.shape[1]))
    for t in _steps(x, reverse):
        g = xs[t] @ wi.T + h @ wh.T + (0 if bi is None else bi) + (0 if bh is None else bh)
        h = np.tanh(g) if activation == "tanh" else np.maximum(g, 0)
        y[t] = h
    return y.astype(x.dtype), h.astype(x.dtype)


# Decompositions: one product for the inputs of all steps, then a scan -------------------------------------------------


def _cast(b: Any, v: Value | None, dtype: DType) -> Any:
    return v if v is None or v.dtype is dtype else b.op("convert", v, dtype=dtype)


def _linear(b: Any, x: Value, w: Value, bias: Value | None) -> Any:
    y = b.op("matmul", x, b.op("permute", w, dims=(1, 0)))
    return y if bias is None else b.op("add", y, bias)


def _gate(b: Any, g: Value, index: int, gates: int) -> Any:
    units = g.shape[1] // gates
    starts, stops = (0, index * units), (g.shape[0], (index + 1) * units)
    return b.op("slice", g, starts=starts, stops=stops, steps=(1, 1))


def _scan(
    b: Any, xg: Value, states: Sequence[Value], consts: Sequence[Value | None], reverse: bool, dtype: DType,
    step: Callable[..., Sequence[Value]],
) -> tuple[Value, ...]:  # fmt: skip
    """Runs ``step(builder, xg_t, states, consts)`` over time; its first result is also the output of the step."""
    present = [c for c in consts if c is not None]
    inner = Builder(b.symbols)
    s = [inner.input(f"state{i}", v.type) for i, v in enumerate(states)]
    x = inner.input("x", xg.type.with_shape(xg.shape[1:]))
    given = iter([inner.input(f"const{i}", v.type) for i, v in enumerate(present)])
    new = step(inner, x, s, [None if c is None else next(given) for c in consts])
    body = inner.graph([*new, new[0]])
    out = b.op(
        "scan", *states, xg, *present, carries=len(states), scanned=1, length=xg.shape[0], reverse=reverse, body=body
    )
    return tuple(_cast(b, v, dtype) for v in (out[-1], *out[:-1]))


def _lstm_decompose(
    b: Any, x: Value, h0: Value, c0: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None,
    b_hh: Value | None = None, w_hr: Value | None = None, *, reverse: bool,
) -> tuple[Value, ...]:  # fmt: skip
    acc = x.dtype.compute
    xs, h, c, wi, wh, bi, bh, wr = (_cast(b, v, acc) for v in (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr))

    def step(f: Builder, xg: Value, states: Sequence[Value], consts: Sequence[Value]) -> tuple[Value, ...]:
        g = f.op("add", xg, _linear(f, states[0], consts[0], consts[1]))
        i, forget, n, o = (_gate(f, g, k, 4) for k in range(4))
        kept = f.op("mul", f.op("sigmoid", forget), states[1])
        cell = f.op("add", kept, f.op("mul", f.op("sigmoid", i), f.op("tanh", n)))
        hidden = f.op("mul", f.op("sigmoid", o), f.op("tanh", cell))
        return (hidden if consts[2] is None else _linear(f, hidden, consts[2], None)), cell

    return _scan(b, _linear(b, xs, wi, bi), (h, c), (wh, bh, wr), reverse, x.dtype, step)


def _gru_decompose(
    b: Any, x: Value, h0: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None, *,
    reverse: bool,
) -> tuple[Value, ...]:  # fmt: skip
    acc = x.dtype.compute
    xs, h, wi, wh, bi, bh = (_cast(b, v, acc) for v in (x, h0, w_ih, w_hh, b_ih, b_hh))

    def step(f: Builder, xg: Value, states: Sequence[Value], consts: Sequence[Value]) -> tuple[Value, ...]:
        hg = _linear(f, states[0], consts[0], consts[1])
        r, z = (f.op("sigmoid", f.op("add", _gate(f, xg, k, 3), _gate(f, hg, k, 3))) for k in range(2))
        n = f.op("tanh", f.op("add", _gate(f, xg, 2, 3), f.op("mul", r, _gate(f, hg, 2, 3))))
        return (f.op("add", n, f.op("mul", z, f.op("sub", states[0], n))),)

    return _scan(b, _linear(b, xs, wi, bi), (h,), (wh, bh), reverse, x.dtype, step)


def _rnn_decompose(
    b: Any, x: Value, h0: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None, *,
    reverse: bool, activation: str,
) -> tuple[Value, ...]:  # fmt: skip
    acc = x.dtype.compute
    xs, h, wi, wh, bi, bh = (_cast(b, v, acc) for v in (x, h0, w_ih, w_hh, b_ih, b_hh))

    def step(f: Builder, xg: Value, states: Sequence[Value], consts: Sequence[Value]) -> tuple[Value, ...]:
        g = f.op("add", xg, _linear(f, states[0], consts[0], consts[1]))
        return (f.op("tanh", g) if activation == "tanh" else f.op("maximum", g, f.constant(0, acc)),)

    return _scan(b, _linear(b, xs, wi, bi), (h,), (wh, bh), reverse, x.dtype, step)


# Declarations ---------------------------------------------------------------------------------------------------------


def _cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Cost:
    x = ins[0]
    weights = [t for t in ins[2:] if t is not None and t.rank == 2 and t.shape != outs[-1].shape]
    assert x is not None
    work: Dim = 0
    for w in weights:
        work = work + x.shape[0] * x.shape[1] * w.numel * 2
    moved: Dim = 0
    for t in [*ins, *outs]:
        moved = moved + (0 if t is None else t.nbytes)
    return Cost(work, moved)


def _samples(gates: int, states: int, extra: Sequence[Mapping[str, Any]]) -> Any:
    def make(rng: np.random.Generator) -> Iterator[Sample]:
        def case(
            t: int, n: int, i: int, units: int, bias: bool, dt: Any = np.float32, proj: int = 0, **attrs: Any
        ) -> Sample:
            out = proj or units
            shapes: list[Any] = [(t, n, i), (n, out)]
            if states == 2:
                shapes.append((n, units))
            shapes += [(gates * units, i), (gates * units, out)]
            shapes += [(gates * units,)] * 2 if bias else [None, None]
            if proj:
                shapes.append((proj, units))
            low, high = (-1.0, 1.0) if units < 64 else (-0.3, 0.3)
            return Sample(
                tuple(None if s is None else random_array(rng, s, dt, low, high) for s in shapes), attrs,
                f"time {t}, batch {n}, {i} features, {units} units",
            )  # fmt: skip

        for attrs in extra:
            yield case(7, 3, 5, 4, True, reverse=False, **attrs)
            yield case(5, 1, 40, 96, True, reverse=False, **attrs)
            yield case(4, 9, 6, 33, True, reverse=True, **attrs)
            yield case(3, 2, 3, 17, False, reverse=False, **attrs)
            yield case(1, 1, 1, 1, True, reverse=True, **attrs)
            yield case(0, 2, 3, 4, True, reverse=False, **attrs)
            yield case(3, 0, 3, 4, True, reverse=False, **attrs)
            for dt in (np.float64, DType.f16.np, DType.bf16.np):
                yield case(4, 2, 5, 6, True, dt, reverse=False, **attrs)
            if states == 2:
                yield case(5, 3, 4, 18, True, proj=7, reverse=False, **attrs)
                yield case(5, 1, 4, 40, False, np.float64, proj=40, reverse=True, **attrs)

    return make


_DOC = "x[T, B, I], h0[B, H], w_ih[{g}H, I], w_hh[{g}H, H], biases [{g}H] -> y[T, B, H], final state{s}. "

op(
    "lstm_layer",
    "x h0 c0 w_ih w_hh b_ih? b_hh? w_hr?",
    {"reverse": (bool, False)},
    infer=_lstm,
    numpy=_lstm_np,
    category="recurrent",
    level="macro",
    decompose=_lstm_decompose,
    cost=_cost,
    samples=_samples(4, 2, ({},)),
    doc=_DOC.format(g=4, s="s h, c") + "Gates i f g o. With w_hr[P, H] the output is projected: h0[B, P], w_hh[4H, P].",
)
op(
    "gru_layer",
    "x h0 w_ih w_hh b_ih? b_hh?",
    {"reverse": (bool, False)},
    infer=_plain(3),
    numpy=_gru_np,
    category="recurrent",
    level="macro",
    decompose=_gru_decompose,
    cost=_cost,
    samples=_samples(3, 1, ({},)),
    doc=_DOC.format(g=3, s="") + "Gates r z n; the reset gate multiplies the recurrent product with its bias.",
)
op(
    "rnn_layer",
    "x h0 w_ih w_hh b_ih? b_hh?",
    {"reverse": (bool, False), "activation": (str, "tanh")},
    infer=_plain(1),
    numpy=_rnn_np,
    category="recurrent",
    level="macro",
    decompose=_rnn_decompose,
    cost=_cost,
    samples=_samples(1, 1, ({}, {"activation": "relu"})),
    doc=_DOC.format(g="", s="") + "h = activation(x w_ih^T + b_ih + h w_hh^T + b_hh), tanh or relu.",
)
