"""Training: records to a model. Needs LightGBM; using the model does not.

Records of one group (ways of one call, measured side by side) stay together: a member of an ensemble either learned
from a group or is judged on it. A record counts the less, the larger its own repeat error is. How fast the machine was
when a record was made, by the yardstick beside it, is a feature (:data:`PACE`) of which predictions take the calm
value, 0.

Records of kernels that have become others since are stale, and teach what the present ones are compared with: trees of
the stale records come first, then those of what the present records say beyond them, few and small ones where the
records are few (boosting that goes on with other records; as transfer by residuals, Pardoe and Stone, "Boosting for
Regression Transfer", 2010, has it). A kernel that is a tenth faster everywhere is learned from a few dozen records in
this way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from .alternatives import SETS, rule_of
from .calls import kernel_class
from .features import FAMILIES, amounts, vector
from .model import NEVER, CostModel, FamilyModel, by_work
from .records import Record
from .roofline import Context, floor, vlen_of
from .trees import Trees

Array = np.ndarray[Any, Any]
FOLDS, RANK_FOLDS = 3, 3  # ensembles of times; and of ranks, which are asked about every way there is
LEAST = 60  # records of a family
OWN = 20  # of them on machines with the target's vectors, where records of others teach as well
SHARE = 8.0  # what a record with the target's vectors counts more than another, at most
NOISE = 0.03  # of any measurement, as a share
PARAMETERS: Mapping[str, Any] = {
    "objective": "regression", "learning_rate": 0.06, "num_leaves": 31, "min_data_in_leaf": 8, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "deterministic": True, "force_row_wise": True,
    "num_threads": 1, "seed": 1, "verbose": -1, "use_missing": False, "max_bin": 511,
}  # fmt: skip
ROUNDS = 300
ODD = 0.15  # the error (log) of a sum of work from which on a record counts less
UNEASY = 0.15  # and the pace (log) of a present one: the less calm the machine was, the less it says of a calm one
# Of the trees that a few present records add to those of stale ones.
LATER: Mapping[str, Any] = {"num_leaves": 7, "min_data_in_leaf": 10}
LATER_ROUNDS = 80
MANY = 500  # present records from which on they are worth as many trees, as large, as any
SMALL = 4  # of stale and present records: where one kind is more than so many times the other, see grow_on
# Families whose ways are ranked: those where choosing has paid off (docs/cost.md). That of matrix products has not:
# their ways differ by less than what was measured is good for. Nor has that of chains of convolutions, in whole models.
RANKED = ("conv", "conv_algorithm", "strided_conv_algorithm", "rows_or_chain")
PACE = "pace"
STEADY = 0.15  # repeat error of a record that may say whether a choice was good
VOTES = 200  # groups of present records that say alone whether choosing pays off: few prove nothing
# Smaller gains did not come true: with 0.01 EfficientNet-lite0 took blockings predicted to be 2 % faster, and lost 2 %.
MARGINS = (0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, NEVER)


def lightgbm() -> Any:
    """The library; EffcError if it is not installed."""
    try:
        import lightgbm as lgb
    except ImportError as e:
        raise EffcError("training a cost model needs LightGBM", hint="pip install 'effc[tune]'") from e
    return lgb


def context_of(r: Record) -> Context:
    """Where it was measured. A call of a model, or of a region but its first, is fed by the one before."""
    part = r.group.split("/")[2:]
    fed = r.source != "space" or part not in ([], ["0"])
    return Context(r.machine, vlen_of(r.target), r.threads, r.between, fed)


def paces(records: Sequence[Record]) -> Array:
    """ln of each record's yardstick over the one of a calm minute (the fastest twentieth, for as many threads of the
    machine and the same kernels, of which the yardstick's is one); NaN for a record without."""
    yard = np.array([r.yard or np.nan for r in records])
    kind = [(r.machine.id, r.kernels, r.threads) for r in records]
    out = np.full(len(records), np.nan)
    for k in set(kind):
        own = np.array([x == k for x in kind])
        if not np.isnan(yard[own]).all():
            out[own] = np.log(yard[own] / np.nanpercentile(yard[own], 5))
    return out


class Table:
    """Records of one family as numbers. ``y``: log of time over the floor; ``group`` and ``way`` as in the records.
    ``pace``: of each record, if others than these say what calm is."""

    def __init__(self, records: Sequence[Record], pace: Array | None = None) -> None:
        self.records = list(records)
        self.family = FAMILIES[records[0].family]
        features = [self.family.features(r.call, context_of(r)) for r in records]
        self.pace = paces(records) if pace is None else pace
        self.names = (*features[0], PACE)
        known = np.nan_to_num(self.pace)
        self.x = np.array([[*vector(f, self.names[:-1]), p] for f, p in zip(features, known, strict=True)])
        self.floor = np.array([floor(r.call, context_of(r)) for r in records])
        self.seconds = np.array([r.seconds for r in records])
        self.y = np.log(self.seconds / self.floor)
        self.noise = np.array([max(NOISE, min(2.0, r.repeat)) for r in records])
        self.weight = 1 / (self.noise**2 + 0.05**2)
        # Names of groups come again (a model's calls, a seed's cases): side by side means beside the same yardstick.
        keys = [f"{r.machine.id} {r.kernels} {r.group} {r.yard:.4g}" for r in records]
        _, self.group = np.unique(keys, return_inverse=True)
        self.way = np.array([r.way for r in records])
        self.rules = np.array([r.way == rule_of(r.call) for r in records])  # the ways that the fixed rule takes
        _, self.shape = np.unique([f"{r.call.kernel} {r.call.ins}" for r in records], return_inverse=True)

    def relative(self) -> Array:
        """y less the weighted mean of its group; of alternatives, log time over that of way 0."""
        if self.family.name in SETS:
            base = np.zeros(self.group.max() + 1)
            base[self.group[self.way == 0]] = np.log(self.seconds[self.way == 0])
            return np.asarray(np.log(self.seconds) - base[self.group])
        total = np.bincount(self.group, self.weight * self.y) / np.bincount(self.group, self.weight)
        return np.asarray(self.y - total[self.group])

    def ranked(self, rank: Callable[[Array], Array], x: Array | None = None) -> Array:
        """What a ranking says of the records, way 0 of alternatives being 0."""
        score = rank(self.x if x is None else x)
        return np.where(self.way == 0, 0.0, score) if self.family.name in SETS else score

    def with_ways(self) -> Array:
        """Which records belong to a group of several ways."""
        return np.asarray(np.bincount(self.group)[self.group] > 1)


def grow(x: Array, y: Array, weight: Array, rounds: int = ROUNDS, **parameters: Any) -> Trees:
    """One ensemble."""
    lgb = lightgbm()
    data = lgb.Dataset(x, y, weight=weight / weight.mean(), free_raw_data=False)
    booster = lgb.train({**PARAMETERS, **parameters}, data, rounds)
    return Trees.from_text(booster.model_to_string())


def grow_on(x: Array, y: Array, weight: Array, stale: Array, rounds: int = ROUNDS) -> Trees:
    """One ensemble: of the stale records, if there are enough of them, and then of the present ones: few and small
    trees where those are few, by themselves or beside the stale ones. Stale ones that are few beside the present ones
    are left out."""
    old, present = int(stale.sum()), int((~stale).sum())
    if old < LEAST or not present:
        return grow(x, y, weight, rounds)
    if SMALL * old < present:
        return grow(x[~stale], y[~stale], weight[~stale], rounds)
    before = grow(x[stale], y[stale], weight[stale], rounds)
    x, y, weight = x[~stale], y[~stale] - before(x[~stale]), weight[~stale]
    later = (rounds, {}) if present >= MANY and SMALL * present >= old else (min(rounds, LATER_ROUNDS), LATER)
    return before.and_also(grow(x, y, weight, later[0], **later[1]))


def rates_of_work(t: Table, use: Array, weight: Array) -> tuple[float, ...]:
    """What each amount of a family's work costs: least squares of relative errors without negative rates, large errors
    counting less in later rounds. The share that the machine was slower than in a calm minute is taken out first. None
    for alternatives, whose ways do different work."""
    from scipy.optimize import nnls  # LightGBM needs it as well

    if t.family.name in SETS:
        return ()
    work = amounts(t.family, t.names, t.x)[use]
    scale = work.max(0) + 1e-30
    calm = (t.seconds * np.exp(-np.clip(np.nan_to_num(t.pace), 0, 1)))[use]
    share, counts = work / scale / calm[:, None], np.sqrt(weight[use])
    rates, off = np.zeros(len(scale)), np.zeros(len(calm))
    for _ in range(5):
        w = counts / np.sqrt(np.maximum(1, np.abs(off) / ODD))
        rates, _ = nnls(share * w[:, None], w, maxiter=100 * len(scale))
        off = np.log(np.maximum(share @ rates, 0.01))
    return tuple(float(r) for r in rates / scale)


def _folds(shape: Array, count: int, seed: int = 0) -> Array:
    """A fold for each record, the same for all calls of one shape, whenever they were measured."""
    order = np.random.default_rng(seed).permutation(shape.max() + 1)
    return np.asarray(order[shape] % count)


def fit_family(
    records: Sequence[Record], rounds: int = ROUNDS, pace: Array | None = None, vlen: int | None = None
) -> FamilyModel:
    """The model of one family. Times are learned from records with a yardstick alone, where there are enough of them;
    ranks, within a group, from all. Records whose vectors are not of ``vlen`` bytes teach times only: they say nothing
    of the error, the range, or of ranks."""
    t = Table(records, pace)
    stale = np.array([r.stale for r in records])
    own = np.array([vlen in (None, vlen_of(r.target)) for r in records])
    weight = t.weight * np.where(own, min(SHARE, max(1.0, (~own).sum() / own.sum())), 1.0)
    fold = _folds(t.shape, FOLDS)
    timed = ~np.isnan(t.pace)
    if timed.sum() < LEAST:
        timed[:] = True
    members, unseen = [], np.zeros(len(t.y))
    rates = rates_of_work(t, timed, weight)
    base, x = by_work(t.family, t.names, t.x, np.array(rates)) if rates else (np.zeros(len(t.y)), t.x)
    y = t.y - base
    weight = weight * np.where(stale, 1.0, 1 / (1 + (np.nan_to_num(t.pace) / UNEASY) ** 2))
    for f in range(FOLDS):
        use = timed & (fold != f)
        members.append(grow_on(x[use], y[use], weight[use], stale[use], rounds))
        unseen[fold == f] = members[-1](x[fold == f])
    judge = timed & own & (~stale | stale.all())
    error = _spread((y - unseen)[judge], t.weight[judge], t.noise[judge])
    ranges = {n: _range(t.x[own, i]) for i, n in enumerate(t.names) if n in t.family.depth}
    kernels = {kernel_class(r.call.kernel) for r, o in zip(records, own, strict=True) if o}
    model = FamilyModel(t.names, tuple(sorted(kernels)), ranges, members, error, rates=rates, family=t.family)
    several = t.with_ways() & own
    if several.sum() >= LEAST and t.family.name in RANKED:
        y, learn = t.relative(), several & ((t.way > 0) | (t.family.name not in SETS))
        ranked, fold = np.zeros(len(y)), _folds(t.shape, RANK_FOLDS)
        for f in range(RANK_FOLDS):
            use = learn & (fold != f)
            model.rankers.append(grow_on(t.x[use], y[use], t.weight[use], stale[use], rounds))
            ranked[fold == f] = t.ranked(model.rankers[-1])[fold == f]
        present = several & ~stale
        vote = present if len(set(t.group[present])) >= VOTES else several
        model.rank_error = margin(ranked, y, np.where(vote, t.group, -1), t.rules, t.noise)
        if t.family.name in SETS:
            model.rank_error = max(model.rank_error, SETS[t.family.name].least)
    return model


def margin(score: Array, y: Array, group: Array, rules: Array, noise: Array) -> float:
    """The predicted gain (log) that a way must have over the rule's own to be taken: the one with which taking it paid
    off most on groups that the ranking had not seen, three standard errors allowed for. NEVER where none did.
    ``score``: ranks; ``y``: logs of relative time; ``rules``: which ways are the rule's own; records with much noise do
    not vote."""
    sets = [np.flatnonzero((group == g) & (noise <= STEADY)) for g in range(group.max() + 1)]
    pairs = []
    for i in sets:
        if len(i) > 1 and rules[i].any():
            base, top = i[np.argmax(rules[i])], i[np.argmin(score[i])]
            pairs.append((score[base] - score[top], y[base] - y[top]))
    if not pairs:
        return NEVER
    predicted, gain = np.array(pairs).T
    gain = gain.clip(-0.2, 0.2)  # more than that is a disturbance more often than a gain
    surely = {m: gain[predicted > m].sum() - 3 * float(np.sqrt((gain[predicted > m] ** 2).sum())) for m in MARGINS}
    best = max(MARGINS, key=lambda m: (surely[m], m))
    return best if surely[best] > 0 else NEVER


def _range(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _spread(off: Array, weight: Array, noise: Array) -> float:
    """The standard deviation that is left when the measurements' own noise is taken out, at least 0.01. Robust: from
    the middle two thirds."""
    scale = np.sqrt(weight / weight.mean())
    measured = float(np.quantile(np.abs(off) * scale, 0.683))
    return max(0.01, float(np.sqrt(max(0.0, measured**2 - float(np.median(noise * scale)) ** 2))))


def digest(records: Sequence[Record]) -> str:
    """Names a set of records."""
    h = hashlib.sha256()
    for r in records:
        h.update(f"{r.group} {r.way} {r.seconds:.5g} {r.threads} {r.between}\n".encode())
    return h.hexdigest()[:16]


def fit(
    records: Sequence[Record],
    rounds: int = ROUNDS,
    report: Callable[[str], None] | None = None,
    only: Collection[str] = (),
) -> CostModel:
    """A model of all families, or ``only`` some, of which there are enough records, for the target and the machine of
    the last: the newest. Records of targets with other vectors help (:func:`fit_family`). EffcError if there is
    none."""
    families, pace = {}, paces(records)
    vlen = vlen_of(records[-1].target) if records else None
    for name in (n for n in FAMILIES if not only or n in only):
        index = [i for i, r in enumerate(records) if r.family == name and r.seconds > 0]
        own = sum(vlen_of(records[i].target) == vlen for i in index)
        if len(index) < LEAST or own < min(OWN, len(index)):
            continue
        if report is not None:
            report(f"{name}: {len(index)} records")
        families[name] = fit_family([records[i] for i in index], rounds, pace[index], vlen)
    if not families:
        raise EffcError(
            f"{len(records)} records are too few to learn from: {LEAST} of one family are the least",
            hint="measure longer: effc tune --seconds 600",
        )
    counts: dict[str, int] = {}
    for r in records:
        counts[r.machine.id] = counts.get(r.machine.id, 0) + 1
    machine = records[-1].machine  # that of the newest: choices are made for it
    info = {
        "records": len(records), "data": digest(records), "rounds": rounds, "folds": FOLDS,
        "lightgbm": lightgbm().__version__, "machines": counts,
    }  # fmt: skip
    return CostModel(families, machine, records[-1].target, info)
