"""What EFFC_DEBUG prints to stderr: 1 the plan when a model is loaded, 2 each kernel's cost after a run, 3 the
compiler's choices, 4 the sources of generated kernels. 5, the IR after each pass, is printed by ``passes/manager.py``,
as is what each pass did and declined (3). Every level includes those below it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loader import ProfileRecord


def level() -> int:
    """EFFC_DEBUG as a number; 0 when unset or not a number."""
    text = os.environ.get("EFFC_DEBUG", "")
    return int(text) if text.isdigit() else 0


def profile_table(records: Sequence[ProfileRecord]) -> str:
    """One line per instruction in program order: share of the time, time, GFLOP/s, GB/s, kernel, name, source line.

    Instructions inside control flow are indented; their time is part of the line above them."""
    total = sum(r.seconds for r in records if r.depth == 0) or 1.0
    lines = [f"{'share':>6} {'us':>10} {'calls':>6} {'GFLOP/s':>8} {'GB/s':>7}  kernel"]
    for r in records:
        if not r.calls:
            continue
        flops, rate = (r.flops / r.seconds * 1e-9, r.bytes / r.seconds * 1e-9) if r.seconds else (0.0, 0.0)
        label = r.kernel if r.name in ("", r.kernel) else f"{r.kernel} {r.name}"
        where = f"  [{r.loc}]" if r.loc else ""
        figures = f"{r.seconds / total:6.1%} {r.seconds * 1e6:10.1f} {r.calls:6} {flops:8.1f} {rate:7.1f}"
        lines.append(f"{figures}  {'  ' * r.depth}{label}{where}")
    lines.append(f"{'':6} {total * 1e6:10.1f} us in all")
    return "\n".join(lines)


def plan_text(manifest: Mapping[str, Any]) -> str:
    """Entry points with their signatures, instructions and memory, as the manifest states them."""
    lines = [
        f"target {manifest['target']}, {len(manifest['segments'])} weight segment(s), "
        f"{sum(s['nbytes'] for s in manifest['segments']) / 2**20:.1f} MiB of weights"
    ]
    for name, e in manifest["entries"].items():
        p = e["program"]
        arena = (p.get("arena") or {}).get("static_bytes")
        memory = "arena sized at run time" if arena is None else f"arena {arena / 2**20:.2f} MiB"
        lines.append(f"entry {name}: {len(p['code'])} instructions, {len(p['values'])} values, {memory}")
        for kind in ("inputs", "outputs"):
            lines += [f"  {kind[:-1]} {io['name']}: {io['dtype']}{io['shape']}" for io in e[kind]]
        for i, c in enumerate(p["code"]):
            lines.append(f"  {i:4} {c.get('kernel', c['op'])} {c.get('in', '')} -> {c['out']}  {c.get('name', '')}")
    return "\n".join(lines)


def instructions(program: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A program's instructions in order with the depth of control flow around them, those of nested programs
    included."""
    for ins in program["code"]:
        yield depth, ins
        for key in ("cond", "body", "then", "else"):
            if isinstance(ins.get(key), dict):
                yield from instructions(ins[key], depth + 1)


def kernels_text(programs: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> str:
    """The kernel chosen for each node, with its line of the user's source, and the fast paths that nodes missed."""
    lines = []
    for name, program in programs.items():
        lines.append(f"kernels of entry {name}")
        for depth, ins in instructions(program):
            kernel = ins.get("kernel", ins["op"]) + (f" with {ins['epilogue']}" if ins.get("epilogue") else "")
            where = f"  [{ins['loc']}]" if ins.get("loc") else ""
            lines.append(f"  {'  ' * depth}{ins.get('name') or ins['op']}: {kernel}{where}")
    for n in notes:
        lines.append(f"  missed: {n['op']} {n['name']}: {n['reason']}  [{n['loc']}]")
    return "\n".join(lines)


def decisions_text(decisions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the cost model chose for each node, by how much it is predicted to gain, and the best of the losers."""
    lines = []
    for name, made in decisions.items():
        lines.append(f"choices of entry {name}" if made else f"entry {name}: nothing to choose")
        for d in made:
            where = f"  [{d['loc']}]" if d.get("loc") else ""
            lines.append(f"  {d['name']}: {d['kernel']}, {d['chosen']}: {d['why']}{where}")
            if d.get("predicted"):
                gain = f", {d['gain']:.2f} times the rule's speed, give or take {d['uncertainty']:.0%}"
                taken = d["predicted"]
                lines.append(
                    f"    {taken['us']:10.1f} us predicted{gain if taken['index'] != d.get('rule', 0) else ''}"
                )
            for x in d.get("losers", ()):
                mark = ", the rule's own" if x["index"] == d.get("rule", 0) else ""
                lines.append(f"    {x['us']:10.1f} us  {x['way']}{mark}")
    return "\n".join(lines)


def sources_text(programs: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The C++ of each generated kernel, under the nodes that it runs."""
    users: dict[str, list[str]] = {name: [] for name in sources}
    for program in programs.values():
        for _, ins in instructions(program):
            for symbol in (ins.get("kernel"), ins.get("epilogue")):
                if symbol in users:
                    users[symbol].append(f"{ins['name']}  [{ins['loc']}]")
    parts = []
    for name, text in sources.items():
        used = "".join(f"\n//   {u}" for u in dict.fromkeys(users[name]))
        parts.append(f"// {name}{used}\n{text}")
    return "\n".join(parts) or "// no generated kernels"


def show(text: str) -> None:
    """Prints to stderr."""
    print(text, file=sys.stderr)
