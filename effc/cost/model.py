"""Predicting a call's time, and choosing among ways to make it.

A family's model is a sum of amounts of work at rates that were measured (:func:`effc.cost.features.amounts`), and a few
ensembles of trees, each trained without a part of the records, that predict the logarithm of time over that sum. Their
mean is the prediction; their spread and the error that each made on the part it
had not seen are its uncertainty. A second set ranks the ways of one call. Where a call lies outside of what was
measured (another kernel or element type, larger, smaller), the roofline answers instead, and says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from .alternatives import SETS, rule_of, way_of
from .calls import Call, kernel_class
from .decide import Decision
from .features import FAMILIES, Family, amounts, family_of, vector
from .machine import Machine
from .roofline import SLACK, Context, estimate, floor, vlen_of
from .trees import Trees

Array = np.ndarray[Any, Any]
DATA = Path(__file__).with_name("data")
VERSION = 1
NEVER = 10.0  # the margin (log) of a ranking that did not pay off
MARGIN = 0.5  # octaves beyond what was measured in which a model is still believed
UPWARD = 4.0  # and in which its times are, of larger calls: those keep the efficiency of the largest that was measured
# What the order of additions depends on: attributes of the families that have ways.
ORDER: dict[str, Callable[[Call], int]] = {
    "conv": lambda c: c.attrs[23],
    "matmul": lambda c: c.attrs[3 if "packed" in c.kernel else 0],
}


@dataclass(frozen=True)
class Prediction:
    """``seconds``, and one standard deviation of its logarithm. ``source``: "model", or "roofline" and ``why``."""

    seconds: float
    uncertainty: float
    source: str
    why: str = ""


@dataclass
class FamilyModel:
    """What was learned of one family. ``rates``: what each amount of its work costs (none: the floor alone counts).
    ``error``: standard deviation of log time on records that a member had not seen; ``rank_error``: how much a way must
    gain by the ranking (log) to be taken, so that it paid off on such records."""

    names: tuple[str, ...]
    kernels: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    members: list[Trees]
    error: float
    rankers: list[Trees] = field(default_factory=list)
    rank_error: float = 0.0
    rates: tuple[float, ...] = ()
    family: Family | None = None

    def log_ratio(self, x: Array) -> tuple[Array, Array]:
        """ln(time / floor) of rows of features: mean and spread over the members."""
        base, x = self.by_work(x)
        each = np.stack([m(x) for m in self.members])
        return each.mean(0) + base, each.std(0)

    def by_work(self, x: Array) -> tuple[Array, Array]:
        """ln(sum of the work at its rates / floor), and the features that members see."""
        if self.family is None or not self.rates:
            return np.zeros(len(x)), x
        return by_work(self.family, self.names, x, np.array(self.rates))

    def rank(self, x: Array) -> Array:
        """Log times relative to one another, of the ways of one call."""
        return np.asarray(np.mean([m(x) for m in self.rankers], 0))

    def why_no_rank(self, call: Call) -> str:
        """Why another way than the rule's is never taken for such a call, or nothing."""
        if not self.rankers or kernel_class(call.kernel) not in self.kernels:
            return "no model ranks its ways"
        return "" if self.rank_error < NEVER else "choosing did not pay off where it was measured"

    def beyond(self, features: Mapping[str, float], upward: float = MARGIN) -> str:
        """Why a call of these features is outside of what was measured, or nothing."""
        for n, (lo, hi) in self.ranges.items():
            if not lo - MARGIN <= features[n] <= hi + upward:
                return f"2^{features[n]:.1f} {n}: measured were 2^{lo:.1f} to 2^{hi:.1f}"
        return ""


def by_work(family: Family, names: Sequence[str], x: Array, rates: Array) -> tuple[Array, Array]:
    """Of rows of features: ln(sum of amounts of work at these rates / floor), and the features with that sum's
    logarithm and each amount's share in it. A rate that holds for one size of call seldom does for another: where an
    amount is most of a call, and how long that is, trees can tell by how much."""
    floor = 2.0 ** x[:, list(names).index("floor")] * 1e-9
    parts = amounts(family, names, x) * rates
    total = np.maximum(parts.sum(1), 0.1 * floor)
    shares = (parts / total[:, None])[:, rates > 0]
    return np.log(total / floor), np.concatenate([x, np.log2(total * 1e9)[:, None], shares], 1)


class CostModel:
    """The families' models, and the machine that they were measured on, of several the last one. ``info``: how it was
    made."""

    def __init__(
        self, families: Mapping[str, FamilyModel], machine: Machine, target: str, info: Mapping[str, Any]
    ) -> None:
        self.families, self.machine, self.target, self.info = dict(families), machine, target, dict(info)

    # Predictions ------------------------------------------------------------------------------------------------------

    def context(self, threads: int, between: int, machine: Machine | None = None) -> Context:
        """Where a model's calls run: by default on the machine that was measured."""
        return Context(machine or self.machine, vlen_of(self.target), threads, between, True)

    def predict(self, call: Call, cx: Context) -> Prediction:
        """Seconds of one call. Never less than the floor."""
        name = family_of(call)
        model = self.families.get(name)
        if model is None:
            return Prediction(estimate(call, cx), log(SLACK), "roofline", f"no model of family {name}")
        if kernel_class(call.kernel) not in model.kernels:
            return Prediction(
                estimate(call, cx), log(SLACK), "roofline", f"no {kernel_class(call.kernel)} was measured"
            )
        f = FAMILIES[name].features(call, cx)
        why = model.beyond(f, UPWARD)
        if why:
            return Prediction(estimate(call, cx), log(SLACK), "roofline", why)
        mean, spread = model.log_ratio(np.array([vector(f, model.names)]))
        low = floor(call, cx)
        return Prediction(max(low, low * exp(mean[0])), sqrt(spread[0] ** 2 + model.error**2), "model")

    # Choices ----------------------------------------------------------------------------------------------------------

    def why_not(self, call: Call, cx: Context) -> str:
        """Why the rule decides about a call's ways, or nothing."""
        name = family_of(call)
        model = self.families.get(name)
        if model is None:
            return f"no model of family {name}"
        return model.why_no_rank(call) or model.beyond(FAMILIES[name].features(call, cx))

    def choose(self, ways: Sequence[Call], cx: Context) -> Decision:
        """The way to make a call; ``ways[0]`` is the backend's own. Another is taken only if the ranking says that it
        gains more than the margin with which that paid off. What decides the order of additions is settled for one
        thread, so that it does not depend on how many there are."""
        why = self.why_not(ways[0], cx)
        if why:
            return Decision(0, why=f"the rule's own: {why}")
        name = family_of(ways[0])
        model, one = self.families[name], Context(cx.machine, cx.vlen, 1, cx.between, cx.fed)
        score = self._rank(ways, one)
        index = _better(score, range(len(ways)), 0, model.rank_error)
        if cx.threads > 1:
            order = ORDER[name]
            same = [i for i, w in enumerate(ways) if order(w) == order(ways[index])]
            score = self._rank(ways, cx)
            index = _better(score, same, index, model.rank_error)
        return self._decision(ways, score, index, 0, cx)

    def choose_region(self, ways: Sequence[Call], contexts: Sequence[Context]) -> Decision:
        """The way of a set of alternatives that is best in all of these contexts together (the mean of the logs)."""
        rule = rule_of(ways[0])
        why = self.why_not(ways[0], contexts[-1])
        if why:
            return Decision(rule, why=why, rule=rule)
        score = np.asarray(np.mean([self._rank(ways, cx) for cx in contexts], 0))
        index = _better(score, range(len(ways)), rule, self.families[ways[0].kernel].rank_error)
        return self._decision(ways, score, index, rule, contexts[-1])

    def _rank(self, ways: Sequence[Call], cx: Context) -> Array:
        """Log times of ways of one call, up to a constant. Those of alternatives are over way 0, which has none."""
        name = family_of(ways[0])
        f, names = FAMILIES[name], self.families[name].names
        score = self.families[name].rank(np.array([vector(f.features(w, cx), names) for w in ways]))
        return np.where([way_of(w) == 0 for w in ways], 0.0, score) if name in SETS else score

    def _decision(self, ways: Sequence[Call], score: Array, index: int, rule: int, cx: Context) -> Decision:
        base = self.predict(ways[0], cx).seconds
        seconds = tuple(base * exp(s - score[0]) for s in score)
        margin = self.families[family_of(ways[0])].rank_error
        why = "predicted to be faster than the rule's way"
        if index == rule:
            why = "the rule's way: nothing beats it by more than the margin"
        return Decision(index, seconds, exp(score[rule] - score[index]), margin, why, rule)

    # Files ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an npz file: numbers, and one JSON text."""
        arrays: dict[str, Array] = {}
        meta: dict[str, Any] = {
            "version": VERSION,
            "machine": self.machine.as_json(),
            "target": self.target,
            "info": self.info,
            "families": {},
        }
        for name, m in self.families.items():
            meta["families"][name] = {
                "names": m.names,
                "kernels": m.kernels,
                "ranges": m.ranges,
                "error": m.error,
                "members": len(m.members),
                "rankers": len(m.rankers),
                "rank_error": m.rank_error,
                "rates": m.rates,
            }
            for kind, trees in (("m", m.members), ("r", m.rankers)):
                for i, t in enumerate(trees):
                    arrays |= t.arrays(f"{name}.{kind}{i}")
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        part = Path(f"{path}.{os.getpid()}")
        with open(part, "wb") as f:
            np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        part.replace(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> CostModel:
        """Reads what :meth:`save` wrote; EffcError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {k: data[k] for k in data.files}
            meta = json.loads(arrays["meta"].tobytes())
            if meta["version"] != VERSION:
                raise EffcError(
                    f"{path} is a cost model of version {meta['version']}, not {VERSION}", hint="train it anew"
                )
            families = {}
            for name, m in meta["families"].items():
                if name in FAMILIES and m.get("rates") and len(m["rates"]) != FAMILIES[name].parts:
                    continue  # its work is counted in another way now: no model of this family, the roofline answers
                families[name] = FamilyModel(
                    tuple(m["names"]),
                    tuple(m["kernels"]),
                    {k: (v[0], v[1]) for k, v in m["ranges"].items()},
                    [Trees.from_arrays(arrays, f"{name}.m{i}") for i in range(m["members"])],
                    m["error"],
                    [Trees.from_arrays(arrays, f"{name}.r{i}") for i in range(m["rankers"])],
                    m["rank_error"],
                    tuple(m.get("rates", ())),
                    FAMILIES.get(name),
                )
            return CostModel(families, Machine.from_json(meta["machine"]), meta["target"], meta["info"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise EffcError(
                f"cannot read the cost model {path}: {e}", hint="train it anew with effc tune --train"
            ) from e


def _better(score: Array, among: Sequence[int] | range, base: int, error: float) -> int:
    """The best of some ways if it beats ``base`` by more than the error, else ``base``."""
    best = min(among, key=lambda i: (score[i], i))
    return best if score[base] - score[best] > error else base


@lru_cache(maxsize=4)
def _loaded(path: str) -> CostModel:
    return CostModel.load(path)


def shipped(target: str) -> CostModel | None:
    """The model for a target by name: the one that ``$EFFC_COST_MODEL`` names, else the shipped one for its vectors.
    None where there is none, and where ``$EFFC_COST_MODEL`` is 0."""
    named = os.environ.get("EFFC_COST_MODEL", "")
    if named == "0":
        return None
    named = "" if named == "1" else named
    path = Path(named) if named else DATA / f"{'x86-64-v4' if vlen_of(target) == 64 else 'x86-64-v3'}.npz"
    if not path.exists():
        if named:
            raise EffcError(f"there is no cost model {named}", hint="unset EFFC_COST_MODEL to use the shipped one")
        return None
    model = _loaded(str(path))
    return model if vlen_of(model.target) == vlen_of(target) else None


def chooser(target: str, threads: int | None, between: int) -> Callable[[Sequence[Call]], Decision] | None:
    """What lowering asks; None without a model for the target. ``between``: bytes that a run of the program touches.
    Answers are kept: the layers of a model repeat. They are for so many ``threads``, by default those of the machine
    that was measured, whatever this one has."""
    model = shipped(target)
    if model is None:
        return None
    cx = model.context(threads or model.machine.cores, between)
    known: dict[Any, Decision] = {}

    def decide(ways: Sequence[Call]) -> Decision:
        key = (ways[0], len(ways))
        if key not in known:
            known[key] = model.choose(ways, cx)
        return known[key]

    return decide
