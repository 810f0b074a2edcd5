"""Passes and the pipeline that runs them.

A pass is a frozen dataclass: ``name``, its options as fields, ``run(graph) -> graph``. It changes nothing but what it
returns; what it did and what it declined to do is counted in a ``PassReport``. ``EFFC_DEBUG=5`` prints the IR after
each pass, ``EFFC_DEBUG=3`` which nodes each pass made, removed and declined to change, with the user's lines.
"""

from __future__ import annotations

import abc
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from ..ir.graph import Graph, Node
from ..ir.text import to_text
from ..ir.verify import verify
from ..runtime import debug
from ..runtime.errors import EffcError


@dataclass(frozen=True)
class Declined:
    """A rule that matched but did not apply, and why."""

    rule: str
    reason: str
    op: str = ""
    loc: str = ""


@dataclass
class PassReport:
    """What passes did: counters (``"fold.folded" -> 3``), the reasons of rules that declined, most frequent ones once
    each, and choices among alternatives (``effc.cost.alternatives``)."""

    stats: dict[str, int] = field(default_factory=dict)
    declined: dict[Declined, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def count(self, key: str, n: int = 1) -> None:
        self.stats[key] = self.stats.get(key, 0) + n

    def decline(self, rule: str, reason: str, node: Node | None = None) -> None:
        loc = "" if node is None or node.loc is None else str(node.loc)
        d = Declined(rule, reason, "" if node is None else node.op, loc)
        self.declined[d] = self.declined.get(d, 0) + 1

    def reasons(self, rule: str) -> set[str]:
        """The distinct reasons for which a rule declined."""
        return {d.reason for d in self.declined if d.rule == rule}

    def as_json(self) -> dict[str, Any]:
        """For ``m.report``."""
        rows = [{**dataclasses.asdict(d), "times": n} for d, n in self.declined.items()]
        return {
            "stats": dict(sorted(self.stats.items())),
            "declined": rows,
            "seconds": {k: round(v, 4) for k, v in self.times.items()},
        }


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A graph rewrite. Subclasses set ``name`` and define ``apply``; fields are options."""

    name: ClassVar[str]

    def run(self, graph: Graph, report: PassReport | None = None) -> Graph:
        """The rewritten graph; ``graph`` itself is not changed. EffcError carries the pass's name."""
        report = PassReport() if report is None else report
        start = time.perf_counter()
        try:
            return self.apply(graph, report)
        except EffcError as e:
            if e.pass_name:
                raise
            raise EffcError(e.message, op=e.op, loc=e.loc, shapes=e.shapes, pass_name=self.name, hint=e.hint) from e
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as e:
            hint = f"disable the pass {self.name!r}, and report this as a bug of effc"
            raise EffcError(f"internal error: {type(e).__name__}: {e}", pass_name=self.name, hint=hint) from e
        finally:
            report.times[self.name] = report.times.get(self.name, 0.0) + time.perf_counter() - start

    @abc.abstractmethod
    def apply(self, graph: Graph, report: PassReport) -> Graph: ...


CONTROL = ("if", "while", "scan")


def in_subgraphs(graph: Graph, f: Callable[[Graph], Graph]) -> Graph:
    """``graph`` with ``f`` applied to the bodies of its control flow, innermost first. Bodies see the outer symbols."""
    if not any(n.op in CONTROL for n in graph.nodes):
        return graph

    def rule(b: Any, n: Node, ins: Any) -> Any:
        if n.op not in CONTROL:
            return None
        new = {}
        for key, g in n.attrs.items():
            if isinstance(g, Graph):
                inner = dataclasses.replace(g, symbols={**graph.symbols, **g.symbols})
                new[key] = dataclasses.replace(f(in_subgraphs(inner, f)), symbols=g.symbols)
        if all(new[key] is n.attrs[key] for key in new):
            return None
        made = Node(n.op, ins, MappingProxyType({**n.attrs, **new}), n.types, n.loc, n.name)
        b.nodes.append(made)
        return made.values

    return graph.rebuild(rule)


@dataclass(frozen=True)
class Pipeline:
    """Runs passes in order.

    ``disabled``: names to leave out. ``stop_after``: the last pass to run. ``verify``: the verifier after every pass
    (tests). ``check``: called with (pass, before, after) after every pass (tests). ``print_after``: names, or
    ``("*",)``; also EFFC_DEBUG=5.
    """

    passes: tuple[Pass, ...]
    disabled: Collection[str] = ()
    stop_after: str | None = None
    verify: bool = False
    print_after: Collection[str] = ()
    check: Callable[[Pass, Graph, Graph], None] | None = None

    def __post_init__(self) -> None:
        known = {p.name for p in self.passes}
        stop = () if self.stop_after is None else (self.stop_after,)
        for name in [*self.disabled, *self.print_after, *stop]:
            if name not in known and name != "*":
                raise EffcError(f"no pass is called {name!r}", hint="passes: " + ", ".join(p.name for p in self.passes))

    def run(self, graph: Graph, report: PassReport | None = None) -> Graph:
        report = PassReport() if report is None else report
        level = debug.level()
        show_all = "*" in self.print_after or level >= 5
        if self.verify:
            verify(graph)
        for p in self.passes:
            if p.name in self.disabled:
                continue
            before, said = graph, PassReport(dict(report.stats), dict(report.declined))
            graph = p.run(graph, report)
            if level >= 3:
                debug.show(account(p.name, before, graph, said, report))
            if show_all or p.name in self.print_after:
                print(f"# after {p.name}: {len(graph.nodes)} nodes\n{to_text(graph)}", file=sys.stderr)
            if self.verify:
                _verified(p, graph)
            if self.check is not None:
                self.check(p, before, graph)
            if p.name == self.stop_after:
                break
        return graph


def account(name: str, before: Graph, after: Graph, said: PassReport, report: PassReport) -> str:
    """What a pass did, one line a node: ``-`` removed, ``+`` made, by op, type and the user's line; its counters since
    ``said``; and what it declined, and why."""

    def nodes(g: Graph) -> Counter[str]:
        return Counter(
            f"{n.op} {', '.join(map(str, n.types))}{'' if n.loc is None else f'  [{n.loc}]'}" for n in g.nodes
        )

    old, new = nodes(before), nodes(after)
    counts = ((k, n - said.stats.get(k, 0)) for k, n in report.stats.items())
    lines = [f"pass {name}: {len(before.nodes)} nodes to {len(after.nodes)}"]
    lines += [f"  {k}: {n}" for k, n in counts if n]
    for sign, gone in (("-", old - new), ("+", new - old)):
        lines += [f"  {sign} {text}" + (f"  x{n}" if n > 1 else "") for text, n in gone.items()]
    for d, total in report.declined.items():
        n = total - said.declined.get(d, 0)
        if n:
            times = f"  x{n}" if n > 1 else ""
            lines.append(f"  declined {d.rule} on {d.op or 'the graph'}: {d.reason}  [{d.loc}]{times}")
    return "\n".join(lines)


def _verified(p: Pass, graph: Graph) -> None:
    try:
        verify(graph)
    except EffcError as e:
        raise EffcError(e.message, op=e.op, loc=e.loc, shapes=e.shapes, pass_name=p.name, hint=e.hint) from e


def run(passes: Sequence[Pass], graph: Graph, report: PassReport | None = None) -> Graph:
    """Runs passes in order with no further ado."""
    return Pipeline(tuple(passes)).run(graph, report)
