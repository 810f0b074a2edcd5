"""The CPU backend: graphs to programs, kernels to one shared object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.dims import Dim
from ...ir.graph import Graph
from ...runtime import debug
from .codegen import Generated
from .target import CpuTarget


@dataclass
class Compiled:
    """What an artifact is made of: a program per entry, constants they share, one shared object, sources, the
    report."""

    programs: dict[str, dict[str, Any]]
    constants: list[np.ndarray[Any, Any]]
    code: bytes
    sources: dict[str, str]
    notes: list[dict[str, Any]] = field(default_factory=list)


def compile_graphs(graphs: Mapping[str, Graph], target: CpuTarget, num_threads: int | None = None) -> Compiled:
    """Lowers and compiles entry points that share constants. Programs still hold symbolic dims and constant indices."""
    from . import build
    from .lower import Constants, Lowering, Options, load_rules
    from .sources import bundle

    load_rules()
    generated, constants = Generated(), Constants()
    programs: dict[str, dict[str, Any]] = {}
    kernels: set[str] = set()
    notes: list[dict[str, Any]] = []
    for name, g in graphs.items():
        cx = Lowering(g, Options(target, num_threads), constants, generated)
        programs[name] = cx.run()
        kernels |= cx.kernels
        notes += [{"entry": name, **n} for n in cx.notes]
    if debug.level() >= 4:  # before they are compiled: they may not compile
        debug.show(debug.sources_text(programs, generated.kernels))
    code = build.shared_object(kernels, generated.kernels, target)
    return Compiled(programs, constants.arrays, code, bundle(kernels, generated.kernels, target), notes)


__all__ = ["Compiled", "CpuTarget", "Dim", "compile_graphs"]
