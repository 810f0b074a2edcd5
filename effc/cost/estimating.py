"""A model's latency without running it: the sum of what is predicted for its calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from .calls import Call, calls, footprint, kernel_class
from .machine import Machine, caches, cpu_name, this_machine
from .model import CostModel, Prediction, shipped
from .roofline import SLACK, Context, estimate, floor, vlen_of

RUN = 15e-6  # seconds of any run besides its calls: arguments bound, results handed over


@dataclass(frozen=True)
class Line:
    """A call with what is predicted for it. ``floor``: the roofline's bound. Seconds, of one call."""

    call: Call
    prediction: Prediction
    floor: float


@dataclass(frozen=True)
class Estimate:
    """``seconds`` of a run, and one standard deviation of it as a share; ``learned``: the part of the seconds that
    models answered for. ``unknown``: how often control flow runs was assumed."""

    seconds: float
    uncertainty: float
    learned: float
    lines: list[Line]
    threads: int
    machine: Machine
    notes: list[str]


def machine_for(model: CostModel | None) -> tuple[Machine, list[str]]:
    """The machine to predict for: this one. Where it is of the kind that the model was measured on, that one's figures
    are taken, which were measured with more care. The name alone does not tell: one may stand for several
    generations."""
    if model is not None:
        m = model.machine
        measured = (m.cpu, m.cores, {"l1": m.l1, "l2": m.l2, "l3": m.l3})
        if measured == (cpu_name(), len(os.sched_getaffinity(0)), caches()):
            return m, []
    here = this_machine()
    if model is None:
        return here, ["there is no cost model for this target: the roofline alone"]
    return here, [f"the cost model was measured on {model.machine.cpu}, this is {here.cpu}: ratios are carried over"]


def of_program(
    program: Mapping[str, Any], env: Mapping[str, int], target: str, threads: int, model: CostModel | None = None
) -> Estimate:
    """The estimate of one run of a program with these sizes. ``model``: by default the one for the target."""
    model = model or shipped(target)
    machine, notes = machine_for(model)
    cx = Context(machine, vlen_of(target), threads, footprint(program, env), True)
    lines = []
    for c in calls(program, env):
        p = Prediction(estimate(c, cx), SLACK - 1, "roofline", "no model") if model is None else model.predict(c, cx)
        lines.append(Line(c, p, floor(c, cx)))
    total = RUN + sum(x.prediction.seconds * x.call.times for x in lines)
    learned = sum(x.prediction.seconds * x.call.times for x in lines if x.prediction.source == "model")
    # Errors of calls of one kind are one error; those of different kinds are independent.
    kinds: dict[str, float] = {}
    for x in lines:
        off = x.prediction.seconds * x.call.times * x.prediction.uncertainty
        key = kernel_class(x.call.kernel)
        kinds[key] = kinds.get(key, 0.0) + off
    if any(x.call.times != 1 for x in lines):
        notes.append("how often loops and branches run was assumed: a branch half the time, a while loop once")
    return Estimate(
        total, sqrt(sum(v * v for v in kinds.values())) / total, learned / total, lines, threads, machine, notes
    )
