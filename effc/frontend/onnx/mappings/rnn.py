"""LSTM, GRU and RNN: a macro op for each direction where its formulas are the usual ones, else a scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Builder, Value
from ...vocabulary import Vocabulary
from ..context import Context
from ..registry import Unsupported, onnx_op
from . import elementwise as E

Activation = Callable[[Any, Value], Value]

_SIMPLE: dict[str, Activation] = {
    "relu": E.relu, "softplus": E.softplus, "softsign": E.softsign,
    "sigmoid": lambda cx, x: cx.op("sigmoid", x), "tanh": lambda cx, x: cx.op("tanh", x),
}  # fmt: skip
# activations with numbers: their defaults (None where the standard has none), and what they compute
_NUMBERS: dict[str, tuple[tuple[float | None, ...], Callable[..., Value]]] = {
    "affine": ((None, None), lambda cx, x, a, b: cx.add(cx.mul(x, a), b)),
    "leakyrelu": ((0.01,), lambda cx, x, a: E.leaky_relu(cx, x, alpha=a)),
    "thresholdedrelu": ((1.0,), lambda cx, x, a: E.thresholded_relu(cx, x, alpha=a)),
    "scaledtanh": ((None, None), lambda cx, x, a, b: cx.mul(cx.op("tanh", cx.mul(x, b)), a)),
    "hardsigmoid": ((0.2, 0.5), lambda cx, x, a, b: E.hard_sigmoid(cx, x, alpha=a, beta=b)),
    "elu": ((1.0,), lambda cx, x, a: E.elu(cx, x, alpha=a)),
}


def _activations(names: Sequence[str], alphas: Any, betas: Any) -> list[tuple[str, Activation]]:
    """Each name's function. The lists of numbers serve, in order, the functions that take them."""
    alpha, beta = iter(alphas or ()), iter(betas or ())
    out: list[tuple[str, Activation]] = []
    for name in (n.lower() for n in names):
        if name in _SIMPLE:
            out.append((name, _SIMPLE[name]))
            continue
        if name not in _NUMBERS:
            raise Unsupported(f"activation {name}")
        defaults, f = _NUMBERS[name]
        numbers = [next(given, default) for given, default in zip((alpha, beta), defaults)]
        if None in numbers:
            raise Unsupported(f"activation {name} without its numbers")

        def applied(cx: Any, x: Value, f: Callable[..., Value] = f, numbers: list[Any] = numbers) -> Value:
            return f(cx, x, *numbers)

        out.append((name, applied))
    return out


LSTM_USUAL = ("sigmoid", "tanh", "tanh")
LSTM_ORDER = (0, 2, 3, 1)  # the macro op's gates i f c o among ONNX's i o f c


class Layer:
    """One node: its operands in the order of the IR's macro ops, one direction at a time."""

    def __init__(
        self, cx: Context, x: Value, lengths: Value | None, attrs: dict[str, Any], gates: int, usual: tuple[str, ...]
    ) -> None:
        self.cx, self.gates = cx, gates
        self.layout = attrs["layout"]
        self.x = cx.transpose(x, 0, 1) if self.layout else x
        direction = attrs["direction"]
        if direction not in ("forward", "reverse", "bidirectional"):
            raise Unsupported(f"direction {direction}")
        self.ways = 2 if direction == "bidirectional" else 1
        self.backward = [False, True] if self.ways == 2 else [direction == "reverse"]
        names = attrs["activations"] or usual * self.ways
        if len(names) != len(usual) * self.ways:
            raise Unsupported(f"{len(names)} activations for {self.ways} directions")
        found = _activations(names, attrs["activation_alpha"], attrs["activation_beta"])
        self.activations = [found[w * len(usual) : (w + 1) * len(usual)] for w in range(self.ways)]
        clip = attrs["clip"]
        self.clip: float | None = float(clip) if clip else None
        self.lengths: Value | None = None
        if lengths is not None:
            c = cx.content(lengths)
            if c is None or c.dtype == object or any(int(n) != self.x.shape[0] for n in c.reshape(-1)):
                self.lengths = cx.convert(lengths, DType.i64)

    def part(self, v: Value | None, way: int) -> Value | None:
        return None if v is None else self.cx.select(v, 0, way)

    def units(self, r: Value) -> Any:
        return r.shape[2]

    def start(self, given: Value | None, way: int, units: Any) -> Value:
        if given is None:
            return self.cx.full(0.0, (self.x.shape[1], units), self.x.dtype)
        return self.cx.select(given, 1 if self.layout else 0, way)

    def reordered(self, v: Value, order: Sequence[int], units: Any, base: int = 0, axis: int = 0) -> Value:
        """The blocks of ``units`` along an axis, from block ``base`` on, in another order."""
        return self.cx.concat(
            [self.cx.slice(v, axis, (base + k) * units, (base + k + 1) * units) for k in order], axis
        )  # fmt: skip

    def results(self, ys: list[Value], *ends: list[Value]) -> Any:
        """Y [T, directions, B, H], the last states [directions, B, H], or those of layout 1."""
        cx = self.cx
        at = 2 if self.layout else 1
        y = cx.concat([cx.unsqueeze(cx.transpose(v, 0, 1) if self.layout else v, at) for v in ys], at)
        at = 1 if self.layout else 0
        return (y, *(cx.concat([cx.unsqueeze(v, at) for v in e], at) for e in ends))

    def scan(
        self, way: int, xg: Value, states: Sequence[Value], consts: Sequence[Value | None],
        step: Callable[[Vocabulary, Value, Sequence[Value], Sequence[Any]], Sequence[Value]],
    ) -> tuple[Value, ...]:  # fmt: skip
        """Runs ``step`` over time; its first result is also the step's output. Past the end of a sequence its states
        stay, and its outputs are 0; from the other end a sequence so begins with its own last element.
        """
        cx = self.cx
        present = [c for c in consts if c is not None]
        inner = Vocabulary(Builder(cx.b.symbols))
        f = inner.b
        s = [f.input(f"state{i}", v.type) for i, v in enumerate(states)]
        scanned = [xg]
        if self.lengths is not None:
            scanned.append(cx.iota(xg.shape[0]))
            present.append(self.lengths)
        ins = [f.input(f"x{i}", v.type.with_shape(v.shape[1:])) for i, v in enumerate(scanned)]
        passed = [f.input(f"const{i}", v.type) for i, v in enumerate(present)]
        given = iter(passed)
        new = list(step(inner, ins[0], s, [None if c is None else next(given) for c in consts]))
        y = new[0]
        if self.lengths is not None:
            live = f.op("lt", ins[1], passed[-1])
            live = inner.reshape(live, (live.shape[0], 1))
            y = inner.where(live, y, 0.0)
            new = [f.op("where", live, v, old) for v, old in zip(new, s, strict=True)]
        body = f.graph([*new, y])
        out = cx.b.op(
            "scan", *states, *scanned, *present, carries=len(states), scanned=len(scanned), length=xg.shape[0],
            reverse=self.backward[way], body=body,
        )  # fmt: skip
        return tuple(cx.convert(v, self.x.dtype) for v in (out[-1], *out[:-1]))

    def clipped(self, f: Vocabulary, v: Value) -> Value:
        if self.clip is None:
            return v
        return f.op("minimum", f.op("maximum", v, -self.clip), self.clip)  # type: ignore[no-any-return]


def _linear(f: Vocabulary, x: Value, w: Value, bias: Value | None) -> Value:
    y = f.b.op("matmul", x, f.transpose(w))
    return y if bias is None else f.op("add", y, bias)  # type: ignore[no-any-return]


def _gate(f: Vocabulary, g: Value, k: int, units: Any) -> Value:
    return f.slice(g, 1, k * units, (k + 1) * units)


def _wide(cx: Context, *xs: Value | None) -> list[Any]:
    return [None if x is None else cx.opmath(x) for x in xs]


def lstm_cells(
    layer: Layer, way: int, xg: Value, h: Value, c: Value, weights: Sequence[Value | None],
    product: Callable[[Vocabulary, Value, Sequence[Any]], Value], holes: Value | None, input_forget: int,
) -> tuple[Value, ...]:  # fmt: skip
    """One direction as a scan over the inputs' share of the gates ``xg`` [T, B, 4H], in the order i f c o:
    (Y, last h, last c). ``product`` makes the state's share from it and ``weights``; ``holes`` [3H] are the peepholes
    of i, o, f.
    """
    cx, units = layer.cx, h.shape[1]
    f_gate, f_cell, f_out = (f for _, f in layer.activations[way])
    parts = [None if holes is None else cx.slice(holes, 0, k * units, (k + 1) * units) for k in range(3)]

    def step(f: Vocabulary, xg: Value, states: Sequence[Value], consts: Sequence[Any]) -> Any:
        cell = states[1]
        *rec, pi, po, pf = consts
        g = f.op("add", xg, product(f, states[0], rec))
        i, fo, n, o = (_gate(f, g, k, units) for k in range(4))

        def seen(v: Value, hole: Value | None, state: Value) -> Value:
            v = v if hole is None else f.op("add", v, f.op("mul", state, hole))
            return layer.clipped(f, v)

        i = f_gate(f, seen(i, pi, cell))
        fo = f.sub(1.0, i) if input_forget else f_gate(f, seen(fo, pf, cell))
        n = f_cell(f, layer.clipped(f, n))
        cell = f.op("add", f.op("mul", fo, cell), f.op("mul", i, n))
        o = f_gate(f, seen(o, po, cell))
        return f.op("mul", o, f_out(f, cell)), cell

    return layer.scan(way, xg, (h, c), (*weights, *parts), step)


@onnx_op("LSTM")
def _lstm(
    cx: Context, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    initial_h: Value | None = None, initial_c: Value | None = None, p: Value | None = None, *,
    activation_alpha: Any = None, activation_beta: Any = None, activations: Any = None, clip: float | None = None,
    direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
    output_sequence: int = 0,
) -> Any:  # fmt: skip
    """Gates i o f c; the macro op's are i f c o. Peepholes p: of i, o, f. A clip bounds what goes into the gates and
    the new cell, as in ONNX Runtime, not the cell's state.
    """
    usual = LSTM_USUAL
    layer = Layer(cx, x, lengths, locals(), 4, usual)
    units = layer.units(r)
    order = LSTM_ORDER
    ys, hs, cs = [], [], []
    for way in range(layer.ways):
        wi = layer.reordered(cx.select(w, 0, way), order, units)
        wh = layer.reordered(cx.select(r, 0, way), order, units)
        both = layer.part(b, way)
        bi = None if both is None else layer.reordered(both, order, units)
        bh = None if both is None else layer.reordered(both, order, units, 4)
        h, c = layer.start(initial_h, way, units), layer.start(initial_c, way, units)
        names = tuple(n for n, _ in layer.activations[way])
        if names == usual and p is None and layer.lengths is None and layer.clip is None and not input_forget:
            y, h, c = cx.b.op("lstm_layer", layer.x, h, c, wi, wh, bi, bh, reverse=layer.backward[way])
        else:
            xs, h, c, wi, wh, bi, bh, holes = _wide(cx, layer.x, h, c, wi, wh, bi, bh, layer.part(p, way))
            y, h, c = lstm_cells(
                layer,
                way,
                _linear(cx, xs, wi, bi),
                h,
                c,
                (wh, bh),
                lambda f, v, w: _linear(f, v, *w),
                holes,
                input_forget,
            )
        ys.append(y)
        hs.append(h)
        cs.append(c)
    return layer.results(ys, hs, cs)


@onnx_op("GRU")
def _gru(
    cx: Context, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    initial_h: Value | None = None, *, activation_alpha: Any = None, activation_beta: Any = None,
    activations: Any = None, clip: float | None = None, direction: str = "forward", hidden_size: int | None = None,
    layout: int = 0, linear_before_reset: int = 0, output_sequence: int = 0,
) -> Any:  # fmt: skip
    """Gates z r h; the macro op's are r z h. The usual GRU of other libraries is that with linear_before_reset."""
    usual = ("sigmoid", "tanh")
    layer = Layer(cx, x, lengths, locals(), 3, usual)
    units = layer.units(r)
    order = (1, 0, 2)
    ys, hs = [], []
    for way in range(layer.ways):
        wi = layer.reordered(cx.select(w, 0, way), order, units)
        wh = layer.reordered(cx.select(r, 0, way), order, units)
        both = layer.part(b, way)
        bi = None if both is None else layer.reordered(both, order, units)
        bh = None if both is None else layer.reordered(both, order, units, 3)
        h = layer.start(initial_h, way, units)
        names = tuple(n for n, _ in layer.activations[way])
        if names == usual and linear_before_reset and layer.lengths is None and layer.clip is None:
            y, h = cx.b.op("gru_layer", layer.x, h, wi, wh, bi, bh, reverse=layer.backward[way])
        else:
            f_gate, f_new = (f for _, f in layer.activations[way])
            xs, h, wi, wh, bi, bh = _wide(cx, layer.x, h, wi, wh, bi, bh)
            # the part of the new state apart, since the reset gate may come before its product
            gates = cx.slice(wh, 0, 0, 2 * units), None if bh is None else cx.slice(bh, 0, 0, 2 * units)
            fresh = cx.slice(wh, 0, 2 * units, 3 * units), None if bh is None else cx.slice(bh, 0, 2 * units, 3 * units)

            def step(f: Vocabulary, xg: Value, states: Sequence[Value], consts: Sequence[Any]) -> Any:
                old = states[0]
                wg, bg, wn, bn = consts
                g = _linear(f, old, wg, bg)
                reset, z = (
                    f_gate(f, layer.clipped(f, f.op("add", _gate(f, xg, k, units), _gate(f, g, k, units))))  # noqa: B023
                    for k in range(2)
                )
                if linear_before_reset:
                    new = f.op("mul", reset, _linear(f, old, wn, bn))
                else:
                    new = _linear(f, f.op("mul", reset, old), wn, bn)
                new = f_new(f, layer.clipped(f, f.op("add", _gate(f, xg, 2, units), new)))  # noqa: B023
                return (f.op("add", new, f.op("mul", z, f.op("sub", old, new))),)

            y, h = layer.scan(way, _linear(cx, xs, wi, bi), (h,), (*gates, *fresh), step)
        ys.append(y)
        hs.append(h)
    return layer.results(ys, hs)


@onnx_op("RNN")
def _rnn(
    cx: Context, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    initial_h: Value | None = None, *, activation_alpha: Any = None, activation_beta: Any = None,
    activations: Any = None, clip: float | None = None, direction: str = "forward", hidden_size: int | None = None,
    layout: int = 0, output_sequence: int = 0,
) -> Any:  # fmt: skip
    if activations and direction != "bidirectional":
        activations = activations[:1]  # the standard's default names two
    layer = Layer(cx, x, lengths, locals(), 1, ("tanh",))
    units = layer.units(r)
    ys, hs = [], []
    for way in range(layer.ways):
        wi, wh, both = cx.select(w, 0, way), cx.select(r, 0, way), layer.part(b, way)
        bi, bh = (None if both is None else cx.slice(both, 0, k * units, (k + 1) * units) for k in range(2))
        h = layer.start(initial_h, way, units)
        ((name, activate),) = layer.activations[way]
        if name in ("tanh", "relu") and layer.lengths is None and layer.clip is None:
            y, h = cx.b.op("rnn_layer", layer.x, h, wi, wh, bi, bh, reverse=layer.backward[way], activation=name)
        else:
            xs, h, wi, wh, bi, bh = _wide(cx, layer.x, h, wi, wh, bi, bh)

            def step(f: Vocabulary, xg: Value, states: Sequence[Value], consts: Sequence[Any]) -> Any:
                g = f.op("add", xg, _linear(f, states[0], consts[0], consts[1]))
                return (activate(f, layer.clipped(f, g)),)  # noqa: B023

            y, h = layer.scan(way, _linear(cx, xs, wi, bi), (h,), (wh, bh), step)
        ys.append(y)
        hs.append(h)
    return layer.results(ys, hs)
