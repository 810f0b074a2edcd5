"""What every frontend hands on, and how it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..ir.graph import Graph, Loc
from ..runtime.errors import EffcError
from ..runtime.tree import Tree


class Unhashable(Exception):
    """Why a model cannot be fingerprinted."""


class Unsupported(Exception):
    """Raised by a mapping: the operator is known, but not with these arguments."""


@dataclass(frozen=True)
class ImportedGraph:
    """A graph and how it is called. Trees: see docs/architecture.md; a frontend's own specs rebuild classes while it
    is there.
    """

    graph: Graph
    in_tree: Tree
    out_tree: Tree
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    in_spec: Any = field(default=None, repr=False)
    out_spec: Any = field(default=None, repr=False)


class Problems:
    """Collects refusals, so that one error names all of them."""

    def __init__(self) -> None:
        self.items: dict[str, list[str]] = {}

    def add(self, what: str, loc: Loc | None) -> None:
        self.items.setdefault(what, []).append("" if loc is None else str(loc))

    def check(self) -> None:
        if not self.items:
            return
        lines = []
        for what, places in sorted(self.items.items(), key=lambda kv: -len(kv[1])):
            where = Counter(p for p in places if p)
            shown = "; ".join(f"{p} (x{n})" if n > 1 else p for p, n in where.most_common(3))
            lines.append(f"  {what}, {len(places)} use{'s' * (len(places) > 1)}" + (f", at {shown}" if shown else ""))
        n = len(lines)
        raise EffcError(
            f"{n} operator{'s' * (n > 1)} of the model {'are' if n > 1 else 'is'} not supported:\n" + "\n".join(lines),
            op=sorted(self.items)[0],
            hint="rewrite these lines with other operators, or compile the model without them",
        )
