"""Kernel calls as the cost model sees them: one instruction of a program with all its sizes known.

Everything here is made either while lowering (where a choice is due) or from a program (an artifact's manifest), so
that what is measured, predicted and chosen is described in one way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..runtime.dtypes import BY_NAME

LOOKUPS = ("effc_gather", "effc_index", "effc_take")  # kernels that read a part of their operands, as data says


@dataclass(frozen=True)
class Tensor:
    """An operand: element type, shape, and strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return BY_NAME[self.dtype].size

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are touched: an operand that is repeated along a dim (stride 0) is read once."""
        return self.itemsize * prod(d for d, s in zip(self.shape, self.strides) if s != 0 or d == 0)


@dataclass(frozen=True)
class Call:
    """One kernel call. ``body``: how often each op occurs in a generated loop or epilogue (``"add:2 exp:1"``).
    ``flops`` and ``bytes`` as the op table counts them. ``times``: how often one run of the program makes the call, as
    far as that can be told."""

    kernel: str
    ins: tuple[Tensor | None, ...]
    outs: tuple[Tensor, ...]
    attrs: tuple[int, ...] = ()
    n_own: int = 0
    epilogue: bool = False
    body: str = ""
    flops: int = 0
    name: str = ""
    loc: str = ""
    times: float = 1.0

    @property
    def bytes(self) -> int:
        """Bytes of operands and results, each once; of a table that is looked up, no more than comes out."""
        out = sum(t.nbytes for t in self.outs)
        if self.kernel.startswith(LOOKUPS):
            return out + sum(min(t.nbytes, out) for t in self.ins if t is not None)
        return out + sum(t.nbytes for t in self.ins if t is not None)

    def with_attrs(self, attrs: Sequence[int]) -> Call:
        return replace(self, attrs=tuple(attrs))

    def as_json(self) -> dict[str, Any]:
        """What a record keeps: all that features may read."""
        out: dict[str, Any] = {
            "kernel": kernel_class(self.kernel),
            "in": [None if t is None else [t.dtype, list(t.shape), list(t.strides)] for t in self.ins],
            "out": [[t.dtype, list(t.shape), list(t.strides)] for t in self.outs],
            "attrs": list(self.attrs),
            "own": self.n_own,
            "flops": self.flops,
        }
        if self.epilogue:
            out["epilogue"] = True
        if self.body:
            out["body"] = self.body
        return out

    @staticmethod
    def from_json(j: Mapping[str, Any]) -> Call:
        def tensor(t: Any) -> Tensor:
            return Tensor(t[0], tuple(t[1]), tuple(t[2]))

        return Call(
            j["kernel"], tuple(None if t is None else tensor(t) for t in j["in"]), tuple(tensor(t) for t in j["out"]),
            tuple(j["attrs"]), j["own"], j.get("epilogue", False), j.get("body", ""), j["flops"],
        )  # fmt: skip


def kernel_class(kernel: str) -> str:
    """A kernel's name without the hash of a generated one: ``map``, ``red``, ``chain``, else the name itself."""
    return re.sub(r"^(map|red|chain)_[0-9a-f]{16}$", r"\1", kernel)


def value_of(dim: Any, env: Mapping[str, int]) -> int:
    """A DIM of the manifest (docs/architecture.md) as an int. KeyError for a symbol without a value."""
    if isinstance(dim, int):
        return dim
    if isinstance(dim, str):
        return env[dim]
    if not isinstance(dim, (list, tuple)):  # before the program was written as JSON
        from ..ir import dims

        return dims.evaluate(dim, env)
    op, a, b = dim[0], value_of(dim[1], env), value_of(dim[2], env)
    if op in ("//", "%") and b == 0:
        return 0
    if op == "//":
        return a // b
    if op == "%":
        return a % b
    return {"+": a + b, "-": a - b, "*": a * b, "max": max(a, b), "min": min(a, b)}[op]


def _tensor(values: Sequence[Mapping[str, Any]], i: int, env: Mapping[str, int]) -> Tensor:
    v = values[i]
    shape = tuple(value_of(d, env) for d in v["shape"])
    strides = v.get("strides")
    if strides is not None:
        return Tensor(v["d"], shape, tuple(value_of(s, env) for s in strides))
    return dense_tensor(v["d"], shape)


def dense_tensor(dtype: str, shape: Sequence[int]) -> Tensor:
    """A row-major operand."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * shape[i]
    return Tensor(dtype, tuple(shape), tuple(strides))


class _Late(dict[str, int]):
    """Sizes that are known only while running count as this many, or as their lower bound if that is more."""

    def __missing__(self, key: str) -> int:
        return 8


def calls(program: Mapping[str, Any], env: Mapping[str, int], times: float = 1.0) -> Iterator[Call]:
    """The calls of a program in order, those of nested programs included. A branch counts half, a scan's body as often
    as it is long, a while loop's body once: how often it runs depends on data."""
    known = _Late(env)
    values = program["values"]
    for ins in program["code"]:
        if ins["op"] == "call":
            yield Call(
                ins["kernel"],
                tuple(None if i < 0 else _tensor(values, i, known) for i in ins["in"]),
                tuple(_tensor(values, i, known) for i in ins["out"]),
                tuple(value_of(a, known) for a in ins["attrs"]),
                ins["n_own"],
                bool(ins.get("epilogue")),
                ins.get("body", ""),
                max(0, value_of(ins["flops"], known)),
                ins.get("name", ""),
                ins.get("loc", ""),
                times,
            )
            continue
        share = 0.5 if ins["op"] == "if" else float(value_of(ins["length"], known)) if ins["op"] == "scan" else 1.0
        for key in ("cond", "body", "then", "else"):
            if isinstance(ins.get(key), dict):
                yield from calls(ins[key], env, times * (1.0 if key == "cond" else share))


def footprint(program: Mapping[str, Any], env: Mapping[str, int]) -> int:
    """Bytes that one run touches: constants, states, inputs, outputs and the arena; a call finds in the caches what a
    run that touches no more than they hold has left there."""
    known, total, temps = _Late(env), 0, 0
    for i, v in enumerate(program["values"]):
        if v["k"] == "view" or "alias" in v:
            continue
        size = _tensor(program["values"], i, known).numel * BY_NAME[v["d"]].size
        if v["k"] == "temp":
            temps += size
        else:
            total += size
    arena = (program.get("arena") or {}).get("static_bytes")
    return total + (temps if arena is None else min(temps, arena))
