"""How good the cost model is: on shapes and on models that it has not seen.

    python -m bench.cost RECORDS ... [--models held,out] [--judge FRESH.jsonl] [--rounds 300] [--json]

A model is trained on records whose group is not held out, and asked about the rest. Held out are a fifth of the sampled
cases (ways of one shape and the kernels that a region is made of stay together), or all records of the named models;
with ``--judge`` the records of a file, of shapes that no training and no choice of features or of anything else has
seen, and the model is the shipped one, of the RECORDS. Times: R2 on log time and the mean of
|predicted / measured - 1|, beside the measurement's own repeat error, and beside the roofline with the best constant
factor. A record's prediction is for the speed that the yardstick beside it says the machine had then. Choices: time of
the way taken over the fastest of those that were measured (a fair lot of all), beside the fixed rule, and a way drawn
at random. The fastest of some noisy times is too good, so that this is an upper bound; "by halves" the fastest is found
by one half of each way's blocks and timed by the other, a lower one (:func:`by_halves`). Threads: how many calls would
have been faster with one thread than with all. Stale records (of kernels that have become others) teach; nothing is
judged by them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from effc.cost import train
from effc.cost.calls import kernel_class
from effc.cost.features import vector
from effc.cost.model import FamilyModel, shipped
from effc.cost.records import Record, read

HELD = "mobilenet_v2,minilm,resnet18,mtcnn_onet,gpt2"
CALM = 0.35  # CPUs that neighbours used while a record with several threads was made
DRAWS = 64  # of which half was slower
GOOD = 0.05  # repeat error of a record that was measured well


def times(y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Figures of logs of time."""
    off = predicted - y
    return {
        "r2": 1 - float(np.sum(off**2) / np.sum((y - y.mean()) ** 2)),
        "mean_error": float(np.mean(np.abs(np.expm1(off)))),
        "median_error": float(np.median(np.abs(np.expm1(off)))),
    }


def family_figures(
    learn: Sequence[Record], judge: Sequence[Record], rounds: int, model: FamilyModel | None = None
) -> dict[str, Any]:
    """Figures of one family. ``model``: what was learned from these records, if that is known."""
    pace = train.paces([*learn, *judge])
    model = model or train.fit_family(learn, rounds, pace[: len(learn)])
    t = train.Table(judge, pace[len(learn) :])
    log_t, low = np.log(t.seconds), np.log(t.floor)
    constant = np.median([np.log(r.seconds) for r in learn]) - np.median(np.log(train.Table(learn).floor))
    timed = ~np.isnan(t.pace)
    out: dict[str, Any] = {"learned": len(learn), "judged": int(timed.sum()), "margin": model.rank_error}
    if timed.sum() > 4:
        predicted = low + model.log_ratio(t.x)[0]
        repeat = np.array([r.repeat for r in judge])
        well = timed & (repeat <= GOOD)
        out["time"] = times(log_t[timed], predicted[timed])
        out["roofline"] = times(log_t[timed], low[timed] + constant)
        out["repeat"] = {"mean": float(repeat[timed].mean()), "median": float(np.median(repeat[timed]))}
        if well.sum() > 4:
            out["time_well_measured"] = {"judged": int(well.sum()), **times(log_t[well], predicted[well])}
    if model.rankers:
        out["choice"] = choices(t, t.ranked(model.rank), model.rank_error)
    return out


def by_halves(seconds: np.ndarray, repeat: np.ndarray, rng: np.random.Generator) -> float:
    """What the fastest of some ways takes, seconds (geometric mean), if one half of each way's blocks says which it is
    and the other half how long it takes: noise that made a way the fastest is not in its time. A record tells how far
    its halves are apart (``repeat``, of a logarithm), not which was slower: either, as often."""
    half = rng.choice([-0.5, 0.5], (DRAWS, len(seconds))) * repeat
    best = np.argmin(np.log(seconds) + half, 1)
    return float(np.exp(np.mean(np.log(seconds[best]) - half[np.arange(DRAWS), best])))


def choices(t: train.Table, score: np.ndarray, margin: float) -> dict[str, Any]:
    """Time over the fastest way that was measured, of what would be taken."""
    rng = np.random.default_rng(0)
    repeat = np.array([r.repeat for r in t.records])
    kinds = ("model", "rule", "random")
    found: dict[str, list[float]] = {n: [] for k in kinds for n in (k, f"{k} by halves")}
    for g in range(t.group.max() + 1):
        i = np.flatnonzero(t.group == g)
        if len(i) < 2 or not t.rules[i].any():
            continue
        base, top = i[np.argmax(t.rules[i])], i[np.argmin(score[i])]
        best, fair = t.seconds[i].min(), by_halves(t.seconds[i], repeat[i], rng)
        taken = top if score[base] - score[top] > margin else base
        for k, x in (("model", taken), ("rule", base), ("random", rng.choice(i))):
            found[k].append(float(t.seconds[x] / best))
            found[f"{k} by halves"].append(float(t.seconds[x] / fair))
    if not found["model"]:
        return {"groups": 0}
    out: dict[str, Any] = {k: {"mean": float(np.mean(v)), "p95": float(np.percentile(v, 95))} for k, v in found.items()}
    gain = np.log(np.array(found["rule"]) / np.array(found["model"]))
    changed = gain != 0
    # The best of some noisy times is too good: what the two ways of this comparison do not share.
    return {
        "groups": len(found["model"]), **out, "gain": float(np.exp(gain.mean())), "changed": float(changed.mean()),
        "gain_where_changed": float(np.exp(gain[changed].mean())) if changed.any() else 1.0,
    }  # fmt: skip


def whole_models(learn: Sequence[Record], judge: Sequence[Record], rounds: int) -> dict[str, dict[str, float]]:
    """Of each held-out model and number of threads: measured and predicted sums over its calls, in milliseconds, where
    the model makes them, on the newest machine: of others, calls of kernels that are no more have left the records.
    What no learned model answers for is the roofline's guess, as in ``effc estimate``."""
    model = train.fit(learn, rounds)
    placed = [
        r
        for r in judge
        if r.group.removeprefix("a-").removeprefix("b-").rpartition("-t")[0] == f"{r.source}-{r.group.split('-')[-2]}"
    ]
    pace = dict(zip([(r.machine.id, r.group) for r in judge], train.paces([*learn, *judge])[len(learn) :], strict=True))
    newest, out = judge[-1].machine.id, dict[str, dict[str, float]]()
    for r in placed:
        if r.machine.id != newest:
            continue
        cx, low = train.context_of(r), train.floor(r.call, train.context_of(r))
        seconds, family = model.predict(r.call, cx), model.families.get(r.family)
        value = seconds.seconds
        if seconds.source == "model" and family is not None and not np.isnan(pace[r.machine.id, r.group]):
            x = np.array(
                [
                    [
                        *vector(train.FAMILIES[r.family].features(r.call, cx), family.names[:-1]),
                        pace[r.machine.id, r.group],
                    ]
                ]
            )
            value = max(low, low * float(np.exp(family.log_ratio(x)[0][0])))
        line = out.setdefault(f"{r.source}, {r.threads} threads", {"measured": 0.0, "predicted": 0.0, "learned": 0.0})
        line["measured"] += r.seconds * 1e3
        line["predicted"] += value * 1e3
        line["learned"] += value * 1e3 * (seconds.source == "model")
    return out


def split(records: Sequence[Record], models: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """(to learn from, to judge by): by model if any is named, else a fifth of the sampled groups. Stale records, of
    kernels that have become others, are not judged by."""
    if models:
        return [r for r in records if r.source not in models], present([r for r in records if r.source in models])
    cases = sorted({case_of(r) for r in records if r.source == "space"})
    held = set(np.random.default_rng(7).permutation(cases)[: len(cases) // 5])
    return [r for r in records if case_of(r) not in held], present([r for r in records if case_of(r) in held])


def case_of(r: Record) -> str:
    """What was measured together: the group, or that of the region that a kernel is a part of."""
    return r.group.partition("/")[0]


def present(records: Sequence[Record]) -> list[Record]:
    """Those that are not stale."""
    return [r for r in records if not r.stale]


def threads(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """What could be gained by giving a call fewer threads than there are: calls that were measured with one and with
    all, by kernel. ``loss``: their time with all threads over the faster of both."""
    best: dict[Any, dict[int, float]] = {}
    for r in records:
        if r.threads == 1 or r.busy < CALM:
            key = (r.machine.id, r.call, r.way, r.between, r.source)
            of_call = best.setdefault(key, {})
            of_call[r.threads] = min(r.seconds, of_call.get(r.threads, r.seconds))
    by_kernel: dict[str, list[tuple[float, float]]] = {}
    for (_, call, *_rest), t in best.items():
        if len(t) > 1 and 1 in t:
            by_kernel.setdefault(kernel_class(call.kernel), []).append((t[1], t[max(t)]))
    out = {}
    for kernel, pairs in sorted(by_kernel.items()):
        one, all_ = np.array(pairs).T
        fewer = one < 0.98 * all_
        longest = float(one[fewer].max()) if fewer.any() else 0.0
        loss = float(np.mean(np.maximum(1, all_ / one)))
        out[kernel] = {"pairs": len(pairs), "faster_alone": int(fewer.sum()), "longest": longest, "loss": loss}
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("records", nargs="+")
    p.add_argument("--models", default=HELD)
    p.add_argument("--judge", action="append", default=[], metavar="FILE")
    p.add_argument("--rounds", type=int, default=train.ROUNDS)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    records = read(a.records)
    result: dict[str, Any] = {}
    splits = {"shapes": split(records, []), "models": split(records, a.models.split(","))}
    ready = None
    if a.judge:
        ready = shipped(records[-1].target)
        splits = {"fresh": (records, present(read(a.judge)))}
    for kind, (learn, judge) in splits.items():
        for name in train.FAMILIES:
            own, other = ([r for r in rs if r.family == name] for rs in (learn, judge))
            if len(own) < train.LEAST or len(other) < 5:
                continue
            known = ready.families.get(name) if ready is not None else None
            f = result.setdefault(kind, {})[name] = family_figures(own, other, a.rounds, known)
            if a.json:
                continue
            print(f"held-out {kind}, {name}: learned from {f['learned']}, judged on {f['judged']}")
            for k in ("time", "time_well_measured", "roofline"):
                if k in f:
                    x = f[k]
                    print(
                        f"  {k:20} R2 {x['r2']:.4f}  mean error {x['mean_error']:.1%}  median {x['median_error']:.1%}"
                    )
            if "repeat" in f:
                print(f"  {'repeat':20} mean {f['repeat']['mean']:.1%}  median {f['repeat']['median']:.1%}")
            c = f.get("choice", {})
            if c.get("groups"):
                for k in ("model", "rule", "random"):
                    fair = c[f"{k} by halves"]
                    print(
                        f"  chosen by {k:10} over best of {c['groups']}: mean {c[k]['mean']:.3f}  p95 {c[k]['p95']:.3f}"
                        f"  by halves {fair['mean']:.3f}  {fair['p95']:.3f}"
                    )
                print(
                    f"  rule over model: {c['gain']:.3f}; another way than the rule's in {c['changed']:.0%} of groups, "
                    f"{c['gain_where_changed']:.3f} there (margin {f['margin']:.2f})"
                )
    result["threads"] = threads(present(records))
    learn, judge = split(records, a.models.split(","))
    result["whole"] = {} if a.judge else whole_models(learn, judge, a.rounds)
    off = [abs(x["predicted"] / x["measured"] - 1) for x in result["whole"].values()]
    if a.json:
        print(json.dumps(result))
        return
    for kernel, x in result["threads"].items():
        print(
            f"{kernel}: {x['pairs']} calls with one thread and with all, {x['faster_alone']} faster with one "
            f"(the longest of {x['longest'] * 1e6:.0f} us); all threads over the faster: {x['loss']:.3f}"
        )
    for name, x in result["whole"].items():
        print(
            f"{name}: measured {x['measured']:.3f} ms, predicted {x['predicted']:.3f} ms "
            f"({x['predicted'] / x['measured'] - 1:+.1%}), {x['learned'] / x['predicted']:.0%} of it learned"
        )
    if off:
        print(f"whole models: mean error {np.mean(off):.1%}, largest {np.max(off):.1%}")


if __name__ == "__main__":
    main()
