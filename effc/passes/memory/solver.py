"""Integer programs, once for several solvers: variables, linear rows that may depend on conditions, boxes that must not
overlap, an objective.

OR-tools' CP-SAT takes them as they are. HiGHS and SCIP, solvers of mixed-integer programs, get conditions as big-M
rows and boxes as a choice for each pair, through OR-tools' MathOpt (which has no boxes of its own, and whose indicators
HiGHS does not take). OR-tools is optional: the extra ``memory``. HiGHS' own package cannot be loaded beside it: each
brings the same library.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...runtime.errors import EffcError

SOLVERS = ("cp-sat", "highs", "scip")
Term = tuple[int, int | None]  # coefficient, variable; None is the constant 0


@dataclass(frozen=True)
class Box:
    """From step ``start`` to ``stop``, both included, at bytes ``step * offset + shift`` and on; there at all where
    ``present`` (a literal) is."""

    start: int
    stop: int
    step: int
    offset: int
    shift: int
    size: int
    present: int | None = None


@dataclass
class Model:
    """Variables are numbers. A literal is a boolean variable ``v``, or ``~v`` for its negation."""

    lower: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, int], int | None, int | None, tuple[int, ...]]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    objective: dict[int, int] = field(default_factory=dict)
    hint: dict[int, int] = field(default_factory=dict)

    def integer(self, lower: int, upper: int) -> int:
        self.lower.append(lower)
        self.upper.append(max(lower, upper))
        return len(self.lower) - 1

    def boolean(self) -> int:
        return self.integer(0, 1)

    def row(
        self, terms: Iterable[Term], at_least: int | None = None, at_most: int | None = None, where: Sequence[int] = ()
    ) -> None:
        """``at_least <= sum of terms <= at_most``, where all the literals ``where`` hold."""
        total: dict[int, int] = {}
        for c, v in terms:
            if v is not None:
                total[v] = total.get(v, 0) + c
        low = sum(min(c * self.lower[v], c * self.upper[v]) for v, c in total.items())
        high = sum(max(c * self.lower[v], c * self.upper[v]) for v, c in total.items())
        if (at_least is None or low >= at_least) and (at_most is None or high <= at_most):
            return
        self.rows.append((total, at_least, at_most, tuple(where)))

    def minimise(self, terms: Iterable[Term]) -> None:
        for c, v in terms:
            if v is not None:
                self.objective[v] = self.objective.get(v, 0) + c


@dataclass(frozen=True)
class Solution:
    """``values`` by variable, None where none was found; ``bound``: no solution has a smaller objective. ``ended``:
    ``proven``, ``time``, ``infeasible``."""

    values: list[int] | None
    objective: int
    bound: int
    ended: str
    seconds: float


def why_not(solver: str = "cp-sat") -> str | None:
    """None where the solver is installed, else the reason."""
    if solver not in SOLVERS:
        raise EffcError(f"there is no solver {solver!r} for memory plans; there are {', '.join(SOLVERS)}")
    if importlib.util.find_spec("ortools") is None:
        return "OR-tools is not installed (pip install 'effc[memory]')"
    return None


def solve(m: Model, *, solver: str = "cp-sat", seconds: float = 60.0, workers: int = 2, seed: int = 1) -> Solution:
    """Reproducible where it ends ``proven`` with ``workers=1``; with several workers the objective is, the plan among
    equals need not be. EffcError where the solver is not installed."""
    missing = why_not(solver)
    if missing:
        raise EffcError(f"the integer program for memory plans cannot run: {missing}")
    if solver == "cp-sat":
        return _cp_sat(m, seconds, workers, seed)
    return _mip(solver, m, seconds, workers, seed)


def _cp_sat(m: Model, seconds: float, workers: int, seed: int) -> Solution:
    from ortools.sat.python import cp_model

    began = time.perf_counter()
    cp = cp_model.CpModel()
    x = [cp.new_int_var(lo, hi, "") for lo, hi in zip(m.lower, m.upper)]

    def literal(v: int) -> cp_model.LiteralT:
        return x[v] if v >= 0 else x[~v].negated()

    top = cp_model.INT32_MAX * 1024
    for terms, low, high, where in m.rows:
        if not terms:  # nothing could make it hold
            cp.add_bool_or([literal(~v) for v in where])
            continue
        total = cp_model.LinearExpr.weighted_sum([x[v] for v in terms], list(terms.values()))
        row = cp.add_linear_constraint(total, -top if low is None else low, top if high is None else high)
        if where:
            row.only_enforce_if([literal(v) for v in where])
    if m.boxes:
        times, places = [], []
        for b in m.boxes:
            at = b.step * x[b.offset] + b.shift
            if b.present is None:
                times.append(cp.new_fixed_size_interval_var(b.start, b.stop + 1 - b.start, ""))
                places.append(cp.new_fixed_size_interval_var(at, b.size, ""))
            else:
                there = literal(b.present)
                times.append(cp.new_optional_fixed_size_interval_var(b.start, b.stop + 1 - b.start, there, ""))
                places.append(cp.new_optional_fixed_size_interval_var(at, b.size, there, ""))
        cp.add_no_overlap_2d(times, places)
    if m.objective:
        cp.minimize(cp_model.LinearExpr.weighted_sum([x[v] for v in m.objective], list(m.objective.values())))
    for v, value in m.hint.items():
        cp.add_hint(x[v], value)
    s = cp_model.CpSolver()
    s.parameters.max_time_in_seconds = max(0.01, seconds)
    s.parameters.num_workers = workers
    s.parameters.random_seed = seed
    status = s.solve(cp)
    took = time.perf_counter() - began
    if status == cp_model.INFEASIBLE:
        return Solution(None, 0, 0, "infeasible", took)
    bound = math.ceil(s.best_objective_bound - 1e-6) if m.objective else 0
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(None, 0, bound, "time", took)
    values = [int(s.value(v)) for v in x]
    found = sum(c * values[v] for v, c in m.objective.items())
    return Solution(values, found, bound, "proven" if status == cp_model.OPTIMAL else "time", took)


def _mip(which: str, m: Model, seconds: float, workers: int, seed: int) -> Solution:
    from ortools.math_opt.python import mathopt

    began = time.perf_counter()
    lower, upper = list(m.lower), list(m.upper)
    rows: list[tuple[dict[int, int], float, float]] = []
    inf = math.inf

    def conditional(terms: Mapping[int, int], low: int | None, high: int | None, where: Sequence[int]) -> None:
        """Rows that hold by themselves as soon as one of the literals does not."""
        for sign, limit in ((1, high), (-1, None if low is None else -low)):
            if limit is None:
                continue
            row = {v: sign * c for v, c in terms.items()}
            most = sum(max(c * lower[v], c * upper[v]) for v, c in row.items())
            slack = max(0, most - limit)
            right = limit + slack * len(where)
            for v in where:
                k, c = (v, slack) if v >= 0 else (~v, -slack)
                row[k] = row.get(k, 0) + c
                right -= 0 if v >= 0 else slack
            rows.append((row, -inf, right))

    for terms, low, high, where in m.rows:
        if where:
            conditional(terms, low, high, where)
        elif not terms:
            return Solution(None, 0, 0, "infeasible", time.perf_counter() - began)
        else:
            rows.append((dict(terms), -inf if low is None else low, inf if high is None else high))
    for k, a in enumerate(m.boxes):
        for b in m.boxes[:k]:
            if a.start > b.stop or b.start > a.stop or a.offset == b.offset:
                continue
            there = [v for v in (a.present, b.present) if v is not None]
            lower.append(0)
            upper.append(1)
            first = len(lower) - 1
            for low_one, high_one, choice in ((a, b, first), (b, a, ~first)):
                gap = high_one.shift - low_one.shift - low_one.size
                terms = {low_one.offset: low_one.step, high_one.offset: -high_one.step}
                conditional(terms, None, gap, [*there, choice])
    model = mathopt.Model()
    x = [model.add_integer_variable(lb=lo, ub=hi) for lo, hi in zip(lower, upper)]
    for coefficients, least, most in rows:
        row = model.add_linear_constraint(lb=least, ub=most)
        for v, c in coefficients.items():
            row.set_coefficient(x[v], c)
    for v, c in m.objective.items():
        model.objective.set_linear_coefficient(x[v], c)
    limit = datetime.timedelta(seconds=max(0.01, seconds))
    parameters = mathopt.SolveParameters(
        time_limit=limit,
        random_seed=seed,
        relative_gap_tolerance=0.0,
        absolute_gap_tolerance=0.5,  # objectives are integers
        threads=workers if which == "scip" else None,  # MathOpt does not hand them on to HiGHS
    )
    hints = mathopt.ModelSolveParameters()
    if m.hint:
        hints.solution_hints.append(mathopt.SolutionHint(variable_values={x[v]: float(c) for v, c in m.hint.items()}))
    result = mathopt.solve(
        model,
        mathopt.SolverType.HIGHS if which == "highs" else mathopt.SolverType.GSCIP,
        params=parameters,
        model_params=hints,
    )
    took = time.perf_counter() - began
    reason = result.termination.reason
    if reason in (mathopt.TerminationReason.INFEASIBLE, mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED):
        return Solution(None, 0, 0, "infeasible", took)
    best = result.best_objective_bound()
    bound = math.ceil(best - 1e-6) if math.isfinite(best) else 0
    if not result.has_primal_feasible_solution():
        return Solution(None, 0, bound, "time", took)
    given = result.variable_values()
    values = [round(given[v]) for v in x[: len(m.lower)]]
    found = sum(c * values[v] for v, c in m.objective.items())
    proven = reason == mathopt.TerminationReason.OPTIMAL
    return Solution(values, found, found if proven else min(bound, found), "proven" if proven else "time", took)
