"""What is planned: nodes that make and read tensors, in one or several memory spaces. Neutral: no IR, no backend.

A tensor is live from the step of the node that makes it to that of its last reader, both included; an ``output`` stays
to the last step. An ``input`` is the caller's and takes no space. A node's workspace is live during its step alone.

Three rewrites are part of a plan, not of the problem:

- in place: a node's only output takes over the bytes of an operand that dies there (``Node.inplace_ok`` lists those it
  may overwrite);
- concatenation in place: operands are made inside the result's bytes, each at its own place (``Node.concat``);
- a view: a result takes no bytes but lies in an operand's, at its own place there (``Node.views``: slices, splits). The
  operand then stays until the last reader of the view, and is neither overwritten nor a part of a concatenation before.

Sources: ``from_json`` reads the format "effc-memory-graph-1" (below), ``intervals_from_csv`` instances of MiniMalloc
(id, lower, upper, size; half open), ``program.from_program`` a lowered program.

effc-memory-graph-1: ``{"name", "format", "align", "tensors": [{"id", "name", "bytes", "raw_bytes", "kind":
"input" | "intermediate" | "output"}], "nodes": [{"id", "name", "op", "ins": [tensor], "outs": [tensor], "inplace_ok":
[tensor]}]}``. Nodes stand in the order given. An op ``cat`` joins along the outermost axis: operand k starts behind
the raw bytes of those before it; an op ``split`` is the reverse. Written beside these where they are not the default:
``space`` and ``pinned`` (an offset) of tensors, ``workspace``, ``after`` (nodes that must have run) and ``flops`` of
nodes, ``spaces`` (capacities), ``writes``, ``once`` and ``views`` ([result, operand, byte offset]) of nodes.

A plan is either a ``Plan``, an order that runs every node once with all tensors in place, or ``Steps``, which also
spills, refills, drops and recomputes.
"""

from __future__ import annotations

import csv
import graphlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plan import Interval

FORMAT = "effc-memory-graph-1"
ARENA = "arena"  # the space of tensors that name none


@dataclass(frozen=True)
class Tensor:
    """``bytes`` is what it takes in an arena (a multiple of the alignment), ``raw_bytes`` what it holds."""

    id: int
    bytes: int
    kind: str = "intermediate"
    name: str = ""
    raw_bytes: int = -1  # -1: as bytes
    space: str = ARENA
    pinned: int | None = None

    @property
    def raw(self) -> int:
        return self.bytes if self.raw_bytes < 0 else self.raw_bytes


@dataclass(frozen=True)
class Node:
    id: int
    ins: tuple[int, ...] = ()
    outs: tuple[int, ...] = ()
    op: str = ""
    name: str = ""
    inplace_ok: tuple[int, ...] = ()
    concat: tuple[tuple[int, int], ...] = ()  # operands that may be made inside the only output: (tensor, byte offset)
    workspace: int = 0
    after: tuple[int, ...] = ()
    flops: int = 0  # what running it again would cost
    writes: tuple[int, ...] = ()  # of ``ins``: tensors whose bytes it changes. Such a node runs once
    once: bool = False  # not to be run again, for another reason (a state, a random draw)
    views: tuple[tuple[int, int, int], ...] = ()  # results that may lie in an operand: (result, operand, byte offset)

    @property
    def repeatable(self) -> bool:
        return not self.once and not self.writes


@dataclass(frozen=True)
class Problem:
    """``nodes`` stand in the order given; ``spaces`` has capacities, None where there is no limit."""

    nodes: tuple[Node, ...]
    tensors: Mapping[int, Tensor]
    align: int = 64
    name: str = ""
    spaces: Mapping[str, int | None] = field(default_factory=lambda: {ARENA: None})

    @property
    def given(self) -> list[int]:
        return [n.id for n in self.nodes]

    def node(self) -> dict[int, Node]:
        return {n.id: n for n in self.nodes}


@dataclass(frozen=True)
class Choices:
    """The rewrites of a plan. ``inplace``: node -> the tensor that its output overwrites; ``concat``: node -> tensors
    made inside its output; ``views``: node -> results that lie in an operand."""

    inplace: Mapping[int, int] = field(default_factory=dict)
    concat: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    views: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """``order``: node ids, each once. ``offsets`` by tensor and ``workspaces`` by node, in the tensor's space and in
    the arena."""

    order: tuple[int, ...]
    offsets: Mapping[int, int] | None = None
    choices: Choices = Choices()
    workspaces: Mapping[int, int] = field(default_factory=dict)


Action = tuple[str, int]  # ("run", node), ("spill" | "refill" | "drop", tensor)


@dataclass(frozen=True)
class Steps:
    """A plan against a capacity: what is done, one action after another. Actions are referred to by their index.

    - ``("run", node)``: operands are resident, results become so. A second run recomputes: nodes are functions, so what
      is resident already or lies in the far memory stays valid.
    - ``("spill", tensor)`` copies a resident tensor to the far memory, which has no limit. The copy stays, and is good
      until a node ``writes`` the tensor.
    - ``("refill", tensor)`` makes it resident again from its copy.
    - ``("drop", tensor)`` ends its residency. Evicting is a spill, unless there is a copy, and a drop.

    A residency begins where the tensor is made or refilled and ends where it is dropped, overwritten or becomes part of
    a concatenation. ``offsets``: (action at which it begins, tensor) -> byte offset in the tensor's space. Workspaces
    and rewrites belong to one run: action -> offset, tensor overwritten, tensors that lie at their places in the
    result. A part is also readable where what holds it is resident.
    """

    actions: tuple[Action, ...]
    offsets: Mapping[tuple[int, int], int] | None = None
    workspaces: Mapping[int, int] = field(default_factory=dict)
    inplace: Mapping[int, int] = field(default_factory=dict)
    concat: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


# Reading and writing --------------------------------------------------------------------------------------------------


def from_dict(g: Mapping[str, Any]) -> Problem:
    """ValueError, with the node or tensor and its field, for what is no graph of the format, or has no order: tensors
    that nobody or several make, nodes that wait for each other, sizes below zero."""
    if not isinstance(g, Mapping) or g.get("format") != FORMAT:
        raise ValueError(
            f"not a memory graph of the format {FORMAT}: {g.get('format') if isinstance(g, Mapping) else g!r}"
        )
    align = _integer(g, "the graph", "align", 64, least=1)
    tensors: dict[int, Tensor] = {}
    for t in _objects(g, "tensors"):
        k = _integer(t, "a tensor", "id")
        what = f"tensor {k}"
        if k in tensors:
            raise ValueError(f"{what} is there twice")
        if t.get("kind") not in ("input", "intermediate", "output"):
            raise ValueError(f"{what}: its kind is {t.get('kind')!r}, not input, intermediate or output")
        size = _integer(t, what, "bytes", least=0)
        pinned = None if t.get("pinned") is None else _integer(t, what, "pinned", least=0)
        if pinned is not None and pinned % align:
            raise ValueError(f"{what}: it is pinned at {pinned}, which is no multiple of the alignment, {align}")
        raw = _integer(t, what, "raw_bytes", size, least=0)
        if raw > size:
            raise ValueError(f"{what}: its raw_bytes, {raw}, are more than its bytes, {size}")
        tensors[k] = Tensor(k, size, t["kind"], t.get("name", ""), raw, t.get("space", ARENA), pinned)
    nodes = []
    for n in _objects(g, "nodes"):
        k = _integer(n, "a node", "id")
        what = f"node {k}"
        lists = {key: _integers(n, what, key) for key in ("ins", "outs", "inplace_ok", "after", "writes")}
        for key in ("ins", "outs", "inplace_ok", "writes"):
            for x in lists[key]:
                if x not in tensors:
                    raise ValueError(f"{what}: {x} in its {key} is no tensor of the graph")
        for key in ("inplace_ok", "writes"):
            for x in lists[key]:
                if x not in lists["ins"]:
                    raise ValueError(f"{what}: tensor {x} in its {key} is not in its ins")
        for x in n.get("views", ()):
            if len(x) != 3 or x[0] not in lists["outs"] or x[1] not in lists["ins"]:
                raise ValueError(f"{what}: {x} in its views is not [result, operand, byte offset]")
        nodes.append(
            Node(
                k,
                lists["ins"],
                lists["outs"],
                n.get("op", ""),
                n.get("name", ""),
                lists["inplace_ok"],
                _parts(n, tensors),
                _integer(n, what, "workspace", 0, least=0),
                lists["after"],
                _integer(n, what, "flops", 0, least=0),
                lists["writes"],
                n.get("once", False),
                _views(n, tensors),
            )
        )
    _check_edges(nodes, tensors)
    spaces = g.get("spaces") or dict.fromkeys(sorted({ARENA, *(t.space for t in tensors.values())}))
    for made in tensors.values():
        if made.space not in spaces:
            raise ValueError(
                f"tensor {made.id}: its space, {made.space!r}, is not among the spaces: {', '.join(spaces)}"
            )
    return Problem(tuple(nodes), tensors, align, g.get("name", ""), spaces)


def _objects(g: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    got = g.get(key)
    if not isinstance(got, list) or not all(isinstance(x, Mapping) for x in got):
        raise ValueError(f"the graph's {key} must be a list of objects")
    return got


def _integer(x: Mapping[str, Any], what: str, key: str, default: int | None = None, least: int | None = None) -> int:
    got = x.get(key, default)
    if not isinstance(got, int) or isinstance(got, bool) or (least is not None and got < least):
        needs = "an integer" if least is None else f"an integer of at least {least}"
        raise ValueError(f"{what}: its {key} must be {needs}, not {got!r}" if key in x else f"{what} has no {key}")
    return got


def _integers(n: Mapping[str, Any], what: str, key: str) -> tuple[int, ...]:
    got = n.get(key, None if key in ("ins", "outs") else ())
    if not isinstance(got, (list, tuple)) or not all(isinstance(t, int) for t in got):
        raise ValueError(f"{what}: its {key} must be a list of numbers" if key in n else f"{what} has no {key}")
    return tuple(got)


def _check_edges(nodes: Sequence[Node], tensors: Mapping[int, Tensor]) -> None:
    """Each tensor is made once, before it is read; each node once, and after those it must follow."""
    maker: dict[int, int] = {}
    needs: dict[int, set[int]] = {}
    for n in nodes:
        if n.id in needs:
            raise ValueError(f"node {n.id} is there twice")
        needs[n.id] = set()
        for t in n.outs:
            if tensors[t].kind == "input":
                raise ValueError(f"node {n.id}: tensor {t} in its outs is an input, which no node makes")
            if t in maker:
                raise ValueError(f"node {n.id}: tensor {t} in its outs is made by node {maker[t]} already")
            maker[t] = n.id
    for n in nodes:
        for t in n.ins:
            if t in maker:
                needs[n.id].add(maker[t])
            elif tensors[t].kind != "input":
                raise ValueError(f"node {n.id}: tensor {t} in its ins is made by no node, and is no input")
        for u in n.after:
            if u not in needs:
                raise ValueError(f"node {n.id}: {u} in its after is no node of the graph")
            needs[n.id].add(u)
    at = {n.id: k for k, n in enumerate(nodes)}
    early = [(n, u) for n, us in needs.items() for u in us if at[u] >= at[n]]
    if not early:
        return
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as e:
        ring = " -> ".join(str(u) for u in e.args[1])
        raise ValueError(f"these nodes wait for each other, in a cycle: {ring}") from None
    first, needed = early[0]
    raise ValueError(
        f"node {first} stands before node {needed}, which it needs: nodes must stand in an order that can run"
    )


def _parts(n: Mapping[str, Any], tensors: Mapping[int, Tensor]) -> tuple[tuple[int, int], ...]:
    if n.get("op") != "cat" or len(n["outs"]) != 1:
        return ()
    out, at = [], 0
    for t in n["ins"]:
        if tensors[t].kind == "intermediate" and list(n["ins"]).count(t) == 1:
            out.append((t, at))
        at += tensors[t].raw
    return tuple(out) if at <= tensors[n["outs"][0]].bytes else ()


def _views(n: Mapping[str, Any], tensors: Mapping[int, Tensor]) -> tuple[tuple[int, int, int], ...]:
    if "views" in n:
        return tuple((t, u, at) for t, u, at in n["views"])
    if n.get("op") != "split" or len(n["ins"]) != 1 or tensors[n["ins"][0]].kind == "input":
        return ()
    starts = list(itertools.accumulate((tensors[t].raw for t in n["outs"]), initial=0))
    if starts[-1] > tensors[n["ins"][0]].raw:
        return ()
    return tuple((t, n["ins"][0], at) for t, at in zip(n["outs"], starts))


def to_dict(p: Problem) -> dict[str, Any]:
    def rest(**more: tuple[Any, Any]) -> dict[str, Any]:
        return {k: v for k, (v, default) in more.items() if v != default}

    tensors = [
        {"id": t.id, "name": t.name, "bytes": t.bytes, "raw_bytes": t.raw, "kind": t.kind}
        | rest(space=(t.space, ARENA), pinned=(t.pinned, None))
        for t in p.tensors.values()
    ]
    nodes = [
        {"id": n.id, "name": n.name, "op": n.op, "ins": list(n.ins), "outs": list(n.outs)}
        | {"inplace_ok": list(n.inplace_ok)}
        | rest(workspace=(n.workspace, 0), after=(list(n.after), []), flops=(n.flops, 0))
        | rest(writes=(list(n.writes), []), once=(n.once, False))
        for n in p.nodes
    ]
    for n, written in zip(p.nodes, nodes):
        if n.views != _views(written, p.tensors):
            written["views"] = [list(x) for x in n.views]
    out = {"name": p.name, "format": FORMAT, "align": p.align, "tensors": tensors, "nodes": nodes}
    return out | rest(spaces=(dict(p.spaces), {ARENA: None}))


def from_json(path: str | os.PathLike[str]) -> Problem:
    try:
        return from_dict(json.loads(Path(path).read_text()))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """A solution: what other checkers of the format read."""
    out: dict[str, Any] = {"order": list(plan.order)}
    if plan.offsets is not None:
        out["offsets"] = {str(t): o for t, o in sorted(plan.offsets.items())}
    if plan.choices.inplace:
        out["inplace"] = {str(n): t for n, t in sorted(plan.choices.inplace.items())}
    if plan.choices.concat:
        out["concat"] = {str(n): list(ts) for n, ts in sorted(plan.choices.concat.items())}
    if plan.choices.views:
        out["views"] = {str(n): list(ts) for n, ts in sorted(plan.choices.views.items())}
    if plan.workspaces:
        out["workspaces"] = {str(n): o for n, o in sorted(plan.workspaces.items())}
    return out


def plan_from_dict(d: Mapping[str, Any]) -> Plan:
    def numbers(x: Mapping[str, int] | None) -> dict[int, int]:
        return {int(k): v for k, v in (x or {}).items()}

    def lists(x: Mapping[str, Sequence[int]] | None) -> dict[int, tuple[int, ...]]:
        return {int(k): tuple(v) for k, v in (x or {}).items()}

    choices = Choices(numbers(d.get("inplace")), lists(d.get("concat")), lists(d.get("views")))
    offsets = numbers(d["offsets"]) if d.get("offsets") is not None else None
    return Plan(tuple(d["order"]), offsets, choices, numbers(d.get("workspaces")))


def steps_to_dict(s: Steps) -> dict[str, Any]:
    out: dict[str, Any] = {"actions": [list(a) for a in s.actions]}
    if s.offsets is not None:
        out["offsets"] = [[k, t, o] for (k, t), o in sorted(s.offsets.items())]
    for name, by in (("workspaces", s.workspaces), ("inplace", s.inplace)):
        if by:
            out[name] = {str(k): x for k, x in sorted(by.items())}
    if s.concat:
        out["concat"] = {str(k): list(ts) for k, ts in sorted(s.concat.items())}
    return out


def steps_from_dict(d: Mapping[str, Any]) -> Steps:
    return Steps(
        tuple((str(a), int(x)) for a, x in d["actions"]),
        {(k, t): o for k, t, o in d["offsets"]} if d.get("offsets") is not None else None,
        {int(k): o for k, o in (d.get("workspaces") or {}).items()},
        {int(k): t for k, t in (d.get("inplace") or {}).items()},
        {int(k): tuple(ts) for k, ts in (d.get("concat") or {}).items()},
    )


def steps_of(p: Problem, plan: Plan) -> Steps:
    """An ordinary plan as actions: everything dropped behind its last use. ValueError for one with views, which actions
    do not have."""
    if plan.choices.views:
        raise ValueError("a plan with views cannot be written as actions")
    node = p.node()
    runs = with_drops(p, [("run", n) for n in plan.order], plan.choices)
    at = {x: k for k, (a, x) in enumerate(runs) if a == "run"}
    offsets = None
    if plan.offsets is not None:
        offsets = {(k, t): plan.offsets[t] for n, k in at.items() for t in node[n].outs}
    return Steps(
        runs,
        offsets,
        {at[n]: o for n, o in plan.workspaces.items()},
        {at[n]: t for n, t in plan.choices.inplace.items()},
        {at[n]: ts for n, ts in plan.choices.concat.items()},
    )


def with_drops(
    p: Problem,
    actions: Sequence[Action],
    choices: Choices | None = None,
    *,
    inplace: Mapping[int, int] | None = None,
    concat: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[Action, ...]:
    """The actions, which have no drops, with each tensor dropped behind the last use of each of its residencies.

    A use is a run that reads it, or a spill. Whatever makes or refills a tensor begins a residency, also where it is
    resident: the one before then ends at its last use. Outputs stay from their last residency on. Rewrites are given by
    action, or as ``choices`` that every run of a node makes; parts are read from what holds them as soon as it is made.
    """
    node = p.node()
    if choices is not None:
        runs = [(k, n) for k, (action, n) in enumerate(actions) if action == "run"]
        inplace = {k: choices.inplace[n] for k, n in runs if n in choices.inplace}
        concat = {k: choices.concat[n] for k, n in runs if n in choices.concat}
    inplace, concat = inplace or {}, concat or {}
    holder: dict[int, int] = {}  # part -> what was made around it
    last: dict[int, int] = {}  # of what is resident, the last use so far
    drops: list[list[int]] = [[] for _ in actions]

    def use(t: int, k: int) -> None:
        while t not in last and t in holder:
            t = holder[t]
        if t in last:
            last[t] = k

    def begin(t: int, k: int) -> None:
        if t in last:
            drops[last[t]].append(t)
        holder.pop(t, None)
        last[t] = k

    for k, (action, x) in enumerate(actions):
        if action == "spill":
            use(x, k)
        elif action == "refill":
            begin(x, k)
        elif action == "run":
            for t in node[x].ins:
                use(t, k)
            parts = concat.get(k, ())
            for t in (*parts, *([inplace[k]] if k in inplace else [])):
                last.pop(t, None)
            for t in node[x].outs:
                begin(t, k)
            holder.update((t, node[x].outs[0]) for t in parts)
        else:
            raise ValueError(f"an action {action!r} among those that are to get drops")
    for t, k in last.items():
        if p.tensors[t].kind != "output":
            drops[k].append(t)
    return tuple(x for k, action in enumerate(actions) for x in (action, *(("drop", t) for t in drops[k])))


def intervals_from_csv(path: str | os.PathLike[str]) -> list[Interval]:
    """Buffers with given lifetimes and no alignment. ValueError, with the line, for what is none."""
    out: list[Interval] = []
    with open(path, newline="") as f:
        reader = csv.DictReader(f)
        for r in reader:
            try:
                i, start, stop, size = (int(r[key]) for key in ("id", "lower", "upper", "size"))
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {reader.line_num}: four integers are needed, in columns id, lower, upper, size"
                ) from None
            if stop <= start or size < 0:
                raise ValueError(
                    f"{path}, line {reader.line_num}: buffer {i} is live from {start} to {stop}, {size} bytes"
                )
            out.append(Interval(i, start, stop - 1, size, align=1))
    return out


# Lifetimes ------------------------------------------------------------------------------------------------------------


def lifetimes(p: Problem, order: Sequence[int]) -> dict[int, tuple[int, int]]:
    """First and last step of each tensor that is not an input, as if nothing were rewritten."""
    node = p.node()
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, n in enumerate(order):
        for t in node[n].outs:
            first[t] = last[t] = k
        for t in node[n].ins:
            last[t] = k
    end = len(order) - 1
    return {t: (a, end if p.tensors[t].kind == "output" else last[t]) for t, a in first.items()}


def boxes(p: Problem, order: Sequence[int], choices: Choices) -> tuple[list[Interval], dict[int, tuple[int, int]]]:
    """What is placed, and where each tensor lies in it: tensor -> (interval, byte offset).

    Tensors that share bytes form one interval of several parts. Workspaces are intervals too, -1 - node. ValueError for
    rewrites that contradict the order or each other.
    """
    node = p.node()
    life = lifetimes(p, order)
    end = {t: stop for t, (_, stop) in life.items()}
    at = {n: k for k, n in enumerate(order)}
    parent: dict[int, tuple[int, int]] = {}

    def find(t: int) -> tuple[int, int]:
        offset = 0
        while t in parent:
            t, by = parent[t]
            offset += by
        return t, offset

    def reached(view: int, t: int) -> bool:
        while view in seen_in:
            view = seen_in[view]
            if view == t:
                return True
        return False

    held: set[int] = set()
    size = {t: p.tensors[t].bytes for t in life}
    seen_in: dict[int, int] = {}  # view -> operand
    lasts = dict(end)
    for n in reversed(order):
        ways = {t: (u, by) for t, u, by in node[n].views}
        for t in choices.views.get(n, ()):
            if t not in ways or ways[t][0] not in life:
                raise ValueError(f"tensor {t} is no view that node {n} can give")
            u, by = ways[t]
            seen_in[t] = u
            parent[t] = (u, by)
            lasts[u] = max(lasts[u], lasts[t])
            life[u] = (life[u][0], lasts[u])
            life[t] = (life[t][0], life[t][0] - 1)
    for n, parts in choices.concat.items():
        out = node[n].outs[0]
        where = dict(node[n].concat)
        for t in parts:
            if t not in where or t in parent or t in seen_in.values():
                raise ValueError(f"tensor {t} cannot be made inside the result of node {n}")
            if end[t] > end[out]:
                raise ValueError(f"tensor {t} is read after the result of node {n} is dead")
            parent[t] = (out, where[t])
            held.add(t)
            size[t] = p.tensors[t].raw
            life[t] = (life[t][0], at[n] - 1)
    for n, t in choices.inplace.items():
        out = node[n].outs[0]
        if t not in node[n].inplace_ok or t in held or p.tensors[t].kind != "intermediate" or lasts[t] != at[n]:
            raise ValueError(f"node {n} cannot overwrite tensor {t}")
        if t in seen_in or any(reached(v, t) for v in node[n].ins if v in seen_in) or out in seen_in:
            raise ValueError(f"node {n} cannot overwrite tensor {t}, which is seen through another")
        root, offset = find(out)
        if root == t or offset % p.align:
            raise ValueError(f"node {n} cannot overwrite tensor {t}: its result lies inside another")
        if out in held and size[t] > size[out]:  # its padding would reach into the next part
            raise ValueError(f"node {n} cannot overwrite tensor {t}: its result, part of another, is smaller")
        parent[t] = (out, 0)
        life[t] = (life[t][0], at[n] - 1)
    groups: dict[int, list[tuple[int, int]]] = {}
    where_is: dict[int, tuple[int, int]] = {}
    for t in life:
        root, offset = find(t)
        groups.setdefault(root, []).append((t, offset))
        where_is[t] = (root, offset)
    out_intervals: list[Interval] = []
    for root, members in groups.items():
        pins = {p.tensors[t].pinned - o for t, o in members if p.tensors[t].pinned is not None}  # type: ignore[operator]
        if len(pins) > 1 or len({p.tensors[t].space for t, _ in members}) > 1:
            raise ValueError(f"tensors that share bytes with {root} are bound to different places")
        pieces = tuple((life[t][0], life[t][1], o, o + size[t]) for t, o in members if life[t][0] <= life[t][1])
        for a, b in itertools.combinations(pieces, 2):
            if a[0] <= b[1] and b[0] <= a[1] and a[2] < b[3] and b[2] < a[3]:
                raise ValueError(f"tensors that share bytes with {root} meet there")
        pinned = next(iter(pins), None)
        out_intervals.append(
            Interval(
                root,
                min(x[0] for x in pieces),
                max(x[1] for x in pieces),
                max(x[3] for x in pieces),
                p.align,
                pinned,
                pieces if len(pieces) > 1 else (),
            )
        )
    for x in p.nodes:
        if x.workspace:
            out_intervals.append(Interval(-1 - x.id, at[x.id], at[x.id], x.workspace, p.align))
    return out_intervals, where_is
