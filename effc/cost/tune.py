"""``effc tune``: measures cases one after the other until the time is up, and appends each as soon as it is done.

The cases are a fixed sequence: case ``i`` of a sampler depends on the seed, its name and ``i`` alone. Whoever resumes
with the same file goes on where it ended.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from . import measure
from .estimating import machine_for
from .machine import Machine, Others
from .model import shipped
from .records import Writer
from .space import SAMPLERS, Case

# How often each sampler's turn comes: those with ways to choose among more often.
TURNS = {
    "conv": 5, "matmul": 4, "map": 2,
    "conv_algorithm": 3, "strided_conv_algorithm": 2, "conv_or_chain": 2, "rows_or_chain": 2,
}  # fmt: skip
# A case is measured again, after a pause, if others use more than ``calm`` of a CPU meanwhile; in the end it is kept.
CALM, ATTEMPTS, PATIENCE = 0.1, 3, 4.0
SWEEPS = (1 << 20, 48 << 20)


def turns(kernels: Sequence[str]) -> list[str]:
    """The order in which samplers come, spread out evenly. ``kernels``: their names, ``NAME:TURNS`` for how often one
    comes; none: all. EffcError for a name that is none."""
    often = dict.fromkeys(SAMPLERS, 1) | TURNS if not kernels else {}
    for text in kernels:
        name, sep, count = text.partition(":")
        if name not in SAMPLERS:
            raise EffcError(f"there is no sampler {name!r}", hint=f"there are {', '.join(SAMPLERS)}")
        if sep and not (count.isdecimal() and int(count)):
            raise EffcError(f"{text!r}: how often a sampler's turn comes is a number of 1 or more", hint=f"{name}:2")
        often[name] = int(count) if count else TURNS.get(name, 1)
    chosen = [k for k in SAMPLERS if k in often]
    slots = [((i + 0.5) / often[k], n, k) for n, k in enumerate(chosen) for i in range(often[k])]
    return [k for _, _, k in sorted(slots)]


def case_of(kind: str, i: int, seed: int, cores: int) -> tuple[Case, int, int, np.random.Generator]:
    """Case ``i`` of a sampler: the case, threads, bytes to read in between, and the generator for its ways."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), i])
    case = None
    while case is None:
        case = SAMPLERS[kind](rng)
    threads = 1 if cores == 1 or rng.random() < 0.4 else int(rng.integers(2, cores + 1))
    sweep = 0 if rng.random() < 0.5 else int(np.exp(rng.uniform(*np.log(SWEEPS))))
    return case, threads, sweep, rng


def _wait(end: float, calm: float) -> None:
    """Waits a few seconds, but not beyond ``end``, for others to leave the machine alone."""
    until = min(end, time.perf_counter() + PATIENCE)
    while calm < 1 and time.perf_counter() < until:
        others = Others()
        time.sleep(0.1)
        if others.share() <= 2 * calm:
            return


def tune(
    out: str | os.PathLike[str],
    target: Any,
    *,
    seconds: float,
    kernels: Sequence[str] = (),
    seed: int = 0,
    blocks: tuple[int, int] = measure.BLOCKS,
    machine: Machine | None = None,
    calm: float = CALM,
    known: Iterable[str] = (),
    report: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, int]:
    """Measures for this many seconds and appends to ``out``; what is there already is not measured again. Returns how
    many records were made by sampler. ``report`` hears of each case. KeyboardInterrupt ends it; what was done is kept.
    ``target`` is a CpuTarget that this machine can run. ``calm``: CPU seconds a second that others may use while a case
    is measured, before it is measured again; 1 and more: any. ``known``: groups that were measured into other files."""
    order = turns(kernels)
    machine = machine or machine_for(shipped(target.name))[0]
    writer, made = Writer(out), dict.fromkeys(order, 0)
    writer.groups |= set(known)
    end, start, n = time.perf_counter() + seconds, time.perf_counter(), 0
    following, disturbed = dict.fromkeys(order, 0), 0
    try:
        with measure.temporary() as folder:
            while time.perf_counter() < end:
                kind = order[n % len(order)]
                n += 1
                while (group := f"{kind}-{seed}-{following[kind]}") in writer.groups:
                    following[kind] += 1
                case, threads, sweep, rng = case_of(kind, following[kind], seed, machine.cores)
                following[kind] += 1
                try:
                    for attempt in range(ATTEMPTS):
                        if attempt:
                            _wait(end, calm)
                        state = rng.bit_generator.state
                        found = measure.measure(
                            case, rng, group, threads, sweep, target, machine, Path(folder), blocks=blocks
                        )
                        if found[0].busy <= calm or time.perf_counter() > end:
                            break
                        disturbed += 1
                        rng.bit_generator.state = state
                except EffcError as e:  # a case that the backend refuses is the sampler's mistake: say so
                    raise EffcError(f"measuring {case.spec}: {e}") from e
                writer.add(found)
                made[kind] += len(found)
                if report is not None:
                    report(
                        {
                            "kind": kind,
                            "spec": case.spec,
                            "records": sum(made.values()),
                            "groups": len(writer.groups),
                            "disturbed": disturbed,
                            "spent": time.perf_counter() - start,
                            "of": seconds,
                        }
                    )
    finally:
        writer.close()
    return made
