"""The CPU backend: graphs to programs, kernels to one shared object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...cost.calls import Call
from ...cost.decide import Decision
from ...ir.dims import Dim
from ...ir.graph import Graph, Node
from ...runtime import debug
from .codegen import Generated
from .target import CpuTarget


@dataclass
class Compiled:
    """What an artifact is made of: a program per entry, constants they share, one shared object, sources, the
    report. The shared object is compiled when it is first asked for."""

    programs: dict[str, dict[str, Any]]
    constants: list[np.ndarray[Any, Any]]
    kernels: set[str]
    generated: Mapping[str, str]  # sources of those made for these programs
    target: CpuTarget
    notes: list[dict[str, Any]] = field(default_factory=list)
    decisions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)  # what planning did, by entry

    @cached_property
    def code(self) -> bytes:
        from . import build

        if debug.level() >= 4:  # before they are compiled: they may not compile
            debug.show(debug.sources_text(self.programs, self.generated))
        return build.shared_object(self.kernels, self.generated, self.target)

    def build(self) -> None:
        """Compiles the shared object now."""
        _ = self.code

    @cached_property
    def sources(self) -> dict[str, str]:
        from .sources import bundle

        return bundle(self.kernels, self.generated, self.target)


Decide = Callable[[Sequence[Call]], Decision]


def compile_graphs(
    graphs: Mapping[str, Graph],
    target: CpuTarget,
    num_threads: int | None = None,
    decide: Callable[[str], Decide | None] | None = None,
    memory: bool = True,
    others: bool = False,
    winograd: bool = True,
    regions: Mapping[Node, int] | None = None,
) -> Compiled:
    """Lowers entry points that share constants. Programs still hold symbolic dims and constant indices.
    ``decide`` gives what chooses among ways to make a call, for an entry point by name (``effc.cost.model.chooser``);
    without it every call is made as the lowering rules say. ``memory``: False plans none, each buffer apart.
    ``others``: programs also hold their other ways to concatenate, under that name. ``winograd``: False keeps
    convolutions of bytes direct. ``regions``: numbers that the instructions made of these nodes keep as ``region``."""
    from .lower import Constants, Lowering, Options, load_rules

    load_rules()
    generated, constants = Generated(), Constants()
    programs: dict[str, dict[str, Any]] = {}
    kernels: set[str] = set()
    notes: list[dict[str, Any]] = []
    decisions: dict[str, list[dict[str, Any]]] = {}
    plans: dict[str, dict[str, Any]] = {}
    for name, g in graphs.items():
        options = Options(
            target, num_threads, decide=None if decide is None else decide(name), memory=memory, others=others,
            winograd=winograd,
            regions=regions or {},
        )  # fmt: skip
        cx = Lowering(g, options, constants, generated)
        programs[name] = cx.run()
        kernels |= cx.kernels
        notes += [{"entry": name, **n} for n in cx.notes]
        decisions[name] = cx.decisions
        plans[name] = cx.memory
    return Compiled(programs, constants.arrays, kernels, generated.kernels, target, notes, decisions, plans)


__all__ = ["Compiled", "CpuTarget", "Dim", "compile_graphs"]
