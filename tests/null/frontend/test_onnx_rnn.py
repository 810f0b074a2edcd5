"""LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nn import close, compare, floats, run_node

from effc import EffcError

RNG = np.random.default_rng(15)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, I, H = 5, 3, 4


def operands(
    op: str, ways: int = 1, bias: bool = True, lengths: bool = False, start: bool = False, holes: bool = False,
    layout: int = 0, dtype: Any = np.float32,
) -> list[list[Any]]:  # fmt: skip
    """Two sets: another time and another batch, the same weights."""
    g = GATES[op]
    w, r = floats(RNG, ways, g * H, I, dtype=dtype), floats(RNG, ways, g * H, H, dtype=dtype)
    b = floats(RNG, ways, 2 * g * H, dtype=dtype) if bias else None
    p = floats(RNG, ways, 3 * H, dtype=dtype) if holes else None
    sets = []
    for time, batch in ((T, 3), (T + 2, 2)):
        x = floats(RNG, *((batch, time) if layout else (time, batch)), I, dtype=dtype)
        many = np.array([time, 2, time - 1][:batch], np.int32) if lengths else None
        states = [floats(RNG, *((batch, ways) if layout else (ways, batch)), H, dtype=dtype) if start else None
                  for _ in range(2 if op == "LSTM" else 1)]  # fmt: skip
        given = [x, w, r, b, many, *states, *([p] if op == "LSTM" else [])]
        while given[-1] is None:
            given.pop()
        sets.append(given)
    return sets


def results(op: str) -> tuple[str, ...]:
    return ("y", "h", "c")[: 3 if op == "LSTM" else 2]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("extra", [{}, {"start": True}, {"bias": False}, {"lengths": True, "start": True}])
def test_directions(op: str, direction: str, extra: dict[str, Any]) -> None:
    sets = operands(op, 2 if direction == "bidirectional" else 1, **extra)
    attrs = {"linear_before_reset": int("start" in extra)} if op == "GRU" else {}
    compare(op, *sets, opset=14, constant=(1, 2, 3), results=results(op), hidden_size=H, direction=direction, **attrs)


@pytest.mark.parametrize("op", GATES)
def test_first_form_and_a_clip(op: str) -> None:
    compare(op, *operands(op), opset=7, constant=(1, 2, 3), results=results(op), hidden_size=H, clip=0.4)


def test_only_the_last_states() -> None:
    sets = operands("LSTM")
    compare("LSTM", *sets, constant=(1, 2, 3), results=("", "h", "c"), hidden_size=H)


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str) -> None:
    """Layout 1 is the same with the first two dims of what goes in and comes out exchanged."""
    sets = operands(op, 2, start=True, layout=1)
    attrs = {"direction": "bidirectional", "hidden_size": H}
    found = run_node(op, *sets, results=results(op), layout=1, **attrs)
    turned = [[v.swapaxes(0, 1).copy() if k in (0, 5, 6) else v for k, v in enumerate(s)] for s in sets]
    for mine, plain in zip(found, run_node(op, *turned, results=results(op), **attrs)):
        close(mine[0], plain[0].transpose(2, 0, 1, 3))
        for a, b in zip(mine[1:], plain[1:]):
            close(a, b.swapaxes(0, 1))


@pytest.mark.parametrize("lengths", [False, True])
def test_peepholes(lengths: bool) -> None:
    sets = operands("LSTM", 2, holes=True, start=True, lengths=lengths)
    compare("LSTM", *sets, constant=(1, 2, 3), results=results("LSTM"), hidden_size=H, direction="bidirectional")


ACTIVATIONS = [
    (["Relu"], {}), (["Sigmoid"], {}), (["Softsign"], {}), (["Softplus"], {}),
    (["Affine"], {"activation_alpha": [0.4], "activation_beta": [0.1]}),
    (["LeakyRelu"], {"activation_alpha": [0.2]}), (["ThresholdedRelu"], {"activation_alpha": [0.3]}),
    (["ScaledTanh"], {"activation_alpha": [0.7], "activation_beta": [0.9]}),
    (["HardSigmoid"], {"activation_alpha": [0.3], "activation_beta": [0.4]}), (["Elu"], {"activation_alpha": [0.6]}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "numbers"), ACTIVATIONS, ids=[n[0] for n, _ in ACTIVATIONS])
def test_activations(names: list[str], numbers: dict[str, Any]) -> None:
    compare("RNN", *operands("RNN"), results=results("RNN"), hidden_size=H, activations=names, **numbers)


def test_numbers_go_to_the_activations_that_take_them() -> None:
    names = ["HardSigmoid", "Tanh", "Relu"]
    compare("LSTM", *operands("LSTM"), results=results("LSTM"), hidden_size=H, activations=names,
            activation_alpha=[0.3], activation_beta=[0.4])  # fmt: skip
    with pytest.raises(EffcError, match="activation swish"):
        run_node("RNN", *operands("RNN"), hidden_size=H, activations=["Swish"])


def test_coupled_gates() -> None:
    """input_forget: what the input gate lets in is what the forget gate lets go."""
    ((x, w, r, b), _) = operands("LSTM")
    ((y, h, c),) = run_node("LSTM", [x, w, r, b], results=results("LSTM"), hidden_size=H, input_forget=1)

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    hidden, cell, ys = np.zeros((3, H)), np.zeros((3, H)), []
    for t in range(T):
        g = x[t].astype(np.float64) @ w[0].T + hidden @ r[0].T + b[0, : 4 * H] + b[0, 4 * H :]
        i, o, _, n = np.split(g, 4, 1)
        cell = (1 - sigmoid(i)) * cell + sigmoid(i) * np.tanh(n)
        hidden = sigmoid(o) * np.tanh(cell)
        ys.append(hidden)
    close(y[:, 0], np.stack(ys).astype(np.float32))
    close(h[0], hidden.astype(np.float32))
    close(c[0], cell.astype(np.float32))


def test_halves_are_rounded_once() -> None:
    sets = operands("GRU", dtype=np.float16)
    wide = [[v.astype(np.float32) for v in s] for s in sets]
    for mine, want in zip(run_node("GRU", *sets, hidden_size=H), run_node("GRU", *wide, hidden_size=H)):
        close(mine[0], want[0].astype(np.float16), 1e-3)


@pytest.mark.parametrize("op", GATES)
def test_compiled(op: str) -> None:
    sets = operands(op, 2, lengths=op == "RNN", start=True)
    compare(op, *sets, constant=(1, 2, 3), results=results(op), hidden_size=H, direction="bidirectional", target="cpu")
