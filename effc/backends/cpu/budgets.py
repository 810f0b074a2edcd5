"""Compiling within budgets (``arena_budget``, ``memory_budget``).

A graph is lowered as its passes left it. Where that does not keep a budget without spilling, fused regions
(``row_chain``, ``conv_chain``, ``conv_pair``) may stand in the way: each needs its operands, all results and its
buffers together. So the graph is lowered again with some of them taken apart (``passes/fuse/apart.py``), in this order:

    needs     those that need more than the budget by themselves, and less as their nodes
    peaks     and those at whose place in the program more lives than the budget, and less as their nodes
    least     those that need less as their nodes, whatever the budget: no choice has a smaller least arena
    all       all of them

The first that keeps the budget with nothing spilled or repeated ends the search. Of what was tried the cheapest is
taken, by what spilling costs and what the roofline says of all calls; of equal ones the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...cost.calls import calls
from ...cost.roofline import operations
from ...ir.graph import Graph, Node
from ...passes.fuse.apart import MADE_BY, regions, take_apart
from ...passes.memory.budget import FLOP_PER_BYTE, own_bytes
from ...passes.memory.plan import aligned
from ...passes.memory.program import blocks
from . import Compiled, spilling, streaming
from .spilling import Refused
from .target import CpuTarget

Program = dict[str, Any]
Apart = Mapping[str, frozenset[int]]  # by entry point: the regions that are taken apart
Lower = Callable[[Mapping[str, Graph], Mapping[Node, int]], Compiled]
Report = dict[str, Any]
Streamed = tuple[dict[str, Program], list[Any], streaming.Memory]  # programs, constants, how


@dataclass(frozen=True)
class Budgets:
    """Bytes, None where there is no limit."""

    arena: int | None
    memory: int | None
    threads: int  # at most so many run the model


@dataclass
class Fitted:
    """A compilation that keeps its budgets, with the graphs that it was made of. ``memory``: how a
    ``memory_budget`` is kept, None without one."""

    graphs: dict[str, Graph]
    parts: Compiled
    memory: streaming.Memory | None = None


@dataclass
class _Variant:
    """The graphs with some regions taken apart, lowered; and by entry point what an arena of the budget takes."""

    apart: Apart
    graphs: dict[str, Graph]
    parts: Compiled
    ranges: dict[str, dict[str, tuple[int, int]]]
    threads: int
    made: dict[str, tuple[Program, Report] | Refused] = field(default_factory=dict)
    streams: Streamed | Refused | None = None

    def base(self, name: str) -> float:
        """What the calls of an entry point cost, in bytes as spilling does: the roofline's operations, or the bytes
        where these take longer."""
        found = calls(self.parts.programs[name], self.largest(name))
        return sum(c.times * max(operations(c), spilling.NEAR * c.bytes) for c in found) / FLOP_PER_BYTE

    def largest(self, name: str) -> dict[str, int]:
        return {s: hi for s, (_, hi) in self.ranges[name].items()}

    def within(self, name: str, budget: int) -> tuple[Program, Report] | Refused:
        if name not in self.made:
            program = self.parts.programs[name]
            try:
                self.made[name] = spilling.shrunk(
                    name, program, self.threads, self.ranges[name], budget, "arena_budget"
                )
            except Refused as e:
                self.made[name] = e
        return self.made[name]

    def streamed(self, target: CpuTarget, budget: int, arena: int | None) -> Streamed | Refused:
        if self.streams is None:
            try:
                limited = None if arena is None else (arena, self._limited(arena))
                programs, constants = self.parts.programs, self.parts.constants
                self.streams = streaming.fit(programs, self.graphs, constants, target, self.threads, budget, limited)
            except Refused as e:
                self.streams = e
        return self.streams

    def _limited(self, arena: int) -> dict[str, Program]:
        out = {}
        for n in self.graphs:
            found = self.within(n, arena)
            if isinstance(found, Refused):
                raise found
            out[n] = found[0]
        return out

    def needs(self, name: str) -> dict[int, tuple[int, int]]:
        """Of each region the most that one of its instructions needs by itself, and the most that lives meanwhile."""
        program = self.parts.programs[name]
        p = spilling.problem(spilling.unplanned(program), self.threads, self.ranges[name])
        own = {n.id: own_bytes(p, n) for n in p.nodes}
        live = [0] * len(program["code"])
        for b in blocks(program, self.largest(name), self.threads):
            for k in range(b.start, min(b.stop + 1, len(live))):
                live[k] += aligned(b.bytes)
        out: dict[int, tuple[int, int]] = {}
        for k, ins in enumerate(program["code"]):
            if "region" in ins:
                a, b = out.get(ins["region"], (0, 0))
                out[ins["region"]] = max(a, own[k]), max(b, live[k])
        return out


class _Search:
    def __init__(self, lower: Lower, graphs: Mapping[str, Graph], target: CpuTarget, b: Budgets) -> None:
        self.lower, self.graphs, self.target, self.budgets = lower, graphs, target, b
        self.regions = {n: regions(g) for n, g in graphs.items()}
        self.variants: dict[frozenset[tuple[str, int]], _Variant] = {}

    def variant(self, apart: Apart) -> _Variant:
        key = frozenset((n, i) for n, which in apart.items() for i in which)
        if key not in self.variants:
            made = {n: take_apart(g, apart.get(n, ())) for n, g in self.graphs.items()}
            graphs = {n: g for n, (g, _) in made.items()}
            parts = self.lower(graphs, {node: i for _, of in made.values() for node, i in of.items()})
            limited = self.budgets.arena is not None
            option = "arena_budget" if limited else "memory_budget"
            ranges = {n: streaming.ranges_of(p, graphs[n], option, limited) for n, p in parts.programs.items()}
            self.variants[key] = _Variant(apart, graphs, parts, ranges, self.budgets.threads)
        return self.variants[key]

    def ladder(self, names: Sequence[str], room: int) -> list[Apart]:
        """What may be taken apart of these entry points so that their arenas take no more than ``room`` bytes, in the
        order above. The last but one has the least arena."""
        names = [n for n in names if self.regions[n]]
        if not names:
            return []
        everything = {n: frozenset(self.regions[n]) for n in names}
        fused = {n: self.variant({}).needs(n) for n in names}
        apart = {n: self.variant(everything).needs(n) for n in names}

        def those(*which: int, above: int) -> Apart:
            """Regions that need (0), or at whose place there live (1), more bytes than that, and fewer as nodes."""
            return {
                n: frozenset(
                    r
                    for r, x in fused[n].items()
                    if any(x[i] > above and apart[n].get(r, (0, 0))[i] < x[i] for i in which)
                )
                for n in names
            }

        return [those(0, above=room), those(0, 1, above=room), those(0, above=0), everything]

    def arenas(self, budget: int) -> tuple[_Variant, dict[str, tuple[Program, Report]]]:
        """What is taken for an ``arena_budget``, with its programs. EffcError names the least arena of all variants."""
        as_given = {n: self.variant({}).within(n, budget) for n in self.graphs}
        tight = [n for n, x in as_given.items() if isinstance(x, Refused) or x[1]["changed"]]
        ladder = [{}, *self.ladder(tight, budget)]
        chosen = {n: self._cheapest(n, ladder, budget) for n in tight}
        v = self.variant(chosen)
        done: dict[str, tuple[Program, Report]] = {}
        for n in self.graphs:
            made = v.within(n, budget)
            if isinstance(made, Refused):
                raise made
            done[n] = made
        for n in tight:
            if self.regions[n]:
                done[n][1].update(self._tried(n, ladder))
        return v, done

    def _cheapest(self, name: str, ladder: Sequence[Apart], budget: int) -> frozenset[int]:
        best: tuple[float, frozenset[int]] | None = None
        refused: list[tuple[Refused, Apart]] = []
        for apart in ladder:
            v = self.variant(apart)
            made = v.within(name, budget)
            which = apart.get(name, frozenset())
            if isinstance(made, Refused):
                refused.append((made, {name: which}))
                continue
            cost = v.base(name) + made[1].get("cost", 0)
            if best is None or cost < best[0]:
                best = cost, which
            if not made[1]["changed"]:
                break
        if best is None:
            raise self._refusal(refused)
        return best[1]

    def _tried(self, name: str, ladder: Sequence[Apart]) -> Report:
        """Of an entry point's report: the least arena of all variants, and those that were tried."""
        smallest = self.variant(ladder[-2])
        least = [spilling.least(smallest.parts.programs[name], smallest.threads, smallest.ranges[name])]
        rows: dict[frozenset[int], Report] = {}
        for v in self.variants.values():
            which, made = v.apart.get(name, frozenset()), v.made.get(name)
            if made is None:
                continue
            rows[which] = {"apart": len(which), "calls_cost": round(v.base(name))}
            if isinstance(made, Refused):
                rows[which]["minimum"] = made.least
            else:
                rows[which] |= {k: made[1][k] for k in ("unlimited", "minimum", "changed")}
                rows[which]["plan_cost"] = made[1].get("cost", 0)
            least.append(rows[which]["minimum"])
        return {"minimum": min(least), "variants": list(rows.values())}

    def memories(self, budget: int) -> tuple[_Variant, Streamed]:
        """What is taken for a ``memory_budget``, of all entry points together. What an ``arena_budget`` took apart
        stays apart in all that is tried."""
        limit = self.budgets.arena
        start: Apart = {} if limit is None else self.arenas(limit)[0].apart
        first = self.variant(start).streamed(self.target, budget, limit)
        room = first.room if isinstance(first, Refused) else first[2].room
        if not isinstance(first, Refused) and room is None:
            return self.variant(start), first
        more = self.ladder(list(self.graphs), min(x for x in (room, limit) if x is not None))
        best: tuple[float, _Variant, Streamed] | None = None
        refused: list[tuple[Refused, Apart]] = []
        for step in [start, *more]:
            apart = {n: start.get(n, frozenset()) | step.get(n, frozenset()) for n in self.graphs}
            v = self.variant(apart)
            made = v.streamed(self.target, budget, limit)
            if isinstance(made, Refused):
                refused.append((made, apart))
                continue
            spilled = made[2].report.get("spilled", {})
            cost = sum(v.base(n) for n in self.graphs) + sum(r["cost"] for r in spilled.values())
            if best is None or cost < best[0]:
                best = cost, v, made
            if made[2].room is None:
                break
        if best is None:
            raise self._refusal(refused)
        return best[1], best[2]

    def named(self, name: str, which: Iterable[int]) -> list[dict[str, str]]:
        """Regions as the report has them."""
        return [
            {"pass": MADE_BY[m.op], "op": m.op, "name": m.name or m.op, "loc": str(m.loc or "")}
            for i in sorted(which)
            for m in self.regions[name][i]
        ]

    def _refusal(self, refused: Sequence[tuple[Refused, Apart]]) -> Refused:
        """The one of the least bytes, which says what was taken apart for it."""
        e, apart = min(refused, key=lambda x: x[0].least)
        taken = Counter(x["pass"] for n, which in apart.items() for x in self.named(n, which))
        if not taken:
            return e
        said = " and ".join(f"{count} of {name}" for name, count in sorted(taken.items()))
        return e.but(f"{e.message}. That is with fused regions taken apart: {said}")


def fit(lower: Lower, graphs: Mapping[str, Graph], target: CpuTarget, budgets: Budgets) -> Fitted:
    """Graphs lowered so that they keep the budgets. ``lower`` makes programs of graphs, whose instructions keep the
    numbers that it is given for their nodes. EffcError with the least that would do."""
    search = _Search(lower, graphs, target, budgets)
    memory = None
    if budgets.memory is not None:
        v, (programs, constants, memory) = search.memories(budgets.memory)
        taken = {n: search.named(n, which) for n, which in v.apart.items() if which}
        if taken:
            memory.report["apart"] = taken
    elif budgets.arena is not None:
        v, done = search.arenas(budgets.arena)
        programs, constants = {n: p for n, (p, _) in done.items()}, v.parts.constants
    else:
        return Fitted(dict(graphs), lower(graphs, {}))
    parts = replace(v.parts, programs=programs, constants=constants)
    for n, made in v.made.items():
        assert not isinstance(made, Refused)
        report = {k: x for k, x in made[1].items() if k != "at"}
        report["apart"] = search.named(n, v.apart.get(n, ()))
        parts.memory[n] = {**parts.memory[n], "arena_budget": report}
        for d in parts.decisions[n]:
            if "at" in d and "at" in made[1]:
                d["at"] = made[1]["at"][d["at"]]
    for program in programs.values():
        for ins in program["code"]:
            ins.pop("region", None)
    return Fitted(v.graphs, parts, memory)


__all__ = ["Budgets", "Fitted", "fit"]
