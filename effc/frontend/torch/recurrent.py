"""Recurrent layers as single operators while exporting.

torch.export traces ``aten::lstm`` and its kind by running them over every time step, which makes the sequence length
a constant. Inside :func:`whole_layers`, the modules of ``torch.nn`` call operators of our own with the same
arguments, whose shapes are known without running them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_ARGS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)
NAMES = ("gru", "rnn_tanh", "rnn_relu")
_library = torch.library.Library("effc", "FRAGMENT")
_library.define(f"lstm(Tensor input, Tensor[] hx, {_ARGS}) -> (Tensor, Tensor, Tensor)")
for _name in NAMES:
    _library.define(f"{_name}(Tensor input, Tensor hx, {_ARGS}) -> (Tensor, Tensor)")
_eager = {name: getattr(torch._C._VariableFunctions, name) for name in ("lstm", *NAMES)}


def _output(input: torch.Tensor, units: Any, bidirectional: bool) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], units * (2 if bidirectional else 1)))


def _register() -> None:
    def lstm_fake(
        input: Any,
        hx: Any,
        params: Any,
        has_biases: Any,
        layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        first: Any,
    ) -> Any:
        return _output(input, hx[0].shape[-1], bidirectional), torch.empty_like(hx[0]), torch.empty_like(hx[1])

    def fake(
        input: Any,
        hx: Any,
        params: Any,
        has_biases: Any,
        layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        first: Any,
    ) -> Any:
        return _output(input, hx.shape[-1], bidirectional), torch.empty_like(hx)

    def run(name: str) -> Any:
        return lambda *args: _eager[name](*args)

    for name in ("lstm", *NAMES):
        _library.impl(name, run(name), "CPU")
        torch.library.register_fake(f"effc::{name}", lstm_fake if name == "lstm" else fake, lib=_library)


_register()


@contextlib.contextmanager
def whole_layers() -> Iterator[None]:
    """Replaces the functions that ``torch.nn``'s recurrent modules call; packed sequences are left to torch."""

    def replacement(name: str) -> Any:
        op = getattr(torch.ops.effc, name).default

        def call(*args: Any) -> Any:
            return op(*args) if len(args) == 9 and isinstance(args[3], bool) else _eager[name](*args)

        return call

    names = ("lstm", *NAMES)
    try:
        for name in names:
            setattr(torch._VF, name, replacement(name))
        yield
    finally:
        for name in names:
            if name in vars(torch._VF):
                delattr(torch._VF, name)


def keep_layers(gm: torch.fx.GraphModule) -> None:
    """The same for a graph that is traced already, as Dynamo traces it: its calls of ``torch.lstm`` and its kind, on
    padded sequences, become calls of our operators, in submodules too.
    """
    ours = {_eager[name]: getattr(torch.ops.effc, name).default for name in ("lstm", *NAMES)}
    for module in gm.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        found = [
            n
            for n in module.graph.nodes
            if n.op == "call_function" and n.target in ours and len(n.args) == 9 and isinstance(n.args[3], bool)
        ]
        for n in found:
            n.target = ours[n.target]
        if found:
            module.recompile()
