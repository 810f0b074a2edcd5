"""PyTorch's own operator samples (``op_db``) through effc: the figures of docs/torch-ops.md.

    python tests/conformance/torch_opdb.py --dtypes float32,int64,bool,bfloat16,complex64 --json build/opdb.json \\
        --resume --table docs/torch-ops.md

For each operator and dtype the first 20 samples are taken, seeded. All their tensors are arguments of the compiled
program, so that nothing can be folded. A sample counts if ``torch.export`` takes it and its program reproduces eager;
then effc compiles the same exported program.

Status of a sample: ``right``, ``wrong``, ``refused`` (an EffcError at compile time), ``crash`` (any other exception,
or the process ended), ``hang``, ``export`` (torch.export does not take or reproduce it), ``skip`` (eager itself
refuses). ``random`` operators are compared by dtype and shape. ``constant`` marks samples whose expectation has one
value only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, ROOT]

DTYPES = ("float32", "int64", "bool", "bfloat16", "complex64")
SEED = 20260
SEEDS = 16  # runs of the exported program that must agree before a sample of a random operator is compared by value
UNINITIALISED = (
    "empty",
    "new_empty",
    "resize_",
)  # operators whose values torch does not define: dtype and shape are compared


def operators() -> dict[str, Any]:
    """op_db by full name (name.variant)."""
    from torch.testing._internal.common_methods_invocations import op_db

    out: dict[str, Any] = {}
    for op in op_db:
        key = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
        if key not in out:
            out[key] = op
    return out


class Case:
    """One sample as a module whose inputs are all its tensors."""

    def __init__(self, op: Any, sample: Any) -> None:
        import torch
        import torch.utils._pytree as pytree

        leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        where = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        self.inputs = tuple(leaves[i].detach().resolve_conj().resolve_neg() for i in where)
        rest = [None if isinstance(x, torch.Tensor) else x for x in leaves]

        class Sample(torch.nn.Module):
            def forward(self, *tensors: Any) -> Any:
                full = list(rest)
                for i, t in zip(where, tensors, strict=True):
                    full[i] = t
                x, args, kwargs = pytree.tree_unflatten(full, spec)
                return op(x, *args, **kwargs)

        self.module = Sample()

    def fresh(self) -> tuple[Any, ...]:
        return tuple(t.clone() for t in self.inputs)


def _arrays(out: Any) -> list[Any]:
    """Numpy arrays of the tensors and numbers in an output."""
    import numpy as np
    import torch
    import torch.utils._pytree as pytree

    from effc.frontend.torch.dtypes import to_numpy

    result = []
    for x in pytree.tree_leaves(out):
        if isinstance(x, torch.Tensor):
            result.append(to_numpy(torch.view_as_real(x) if x.dtype is torch.complex32 else x))
        elif isinstance(x, (bool, int, float, np.ndarray)):  # arrays: effc's for a program without tensor arguments
            result.append(x)
        elif x is not None:
            raise TypeError(f"an output of type {type(x).__name__}")
    return result


def _run_reference(program: Any, inputs: tuple[Any, ...], clock: dict[str, float]) -> list[Any]:
    from effc.frontend.torch import import_model
    from effc.frontend.torch.dtypes import to_numpy
    from effc.ir.interp import run

    t = time.perf_counter()
    g = import_model(program)
    clock["import"] += time.perf_counter() - t
    t = time.perf_counter()
    results = iter(run(g.graph, [to_numpy(x).copy() for x in inputs]))
    clock["run"] += time.perf_counter() - t
    return list(_leaves(g.out_tree, results))


def _leaves(tree: dict[str, Any], results: Any) -> Any:
    kind = tree["t"]
    if kind == "leaf":
        a = next(results)
        yield {"int": int, "float": float, "bool": bool}[tree["py"]](a) if "py" in tree else a
    elif kind == "const":
        yield tree["value"]
    elif kind != "none":
        for c in tree["c"]:
            yield from _leaves(c, results)


def _run_compiled(program: Any, inputs: tuple[Any, ...], clock: dict[str, float], target: str) -> list[Any]:
    import effc

    t = time.perf_counter()
    m = effc.compile(program, inputs, target=target)
    clock["import"] += time.perf_counter() - t
    t = time.perf_counter()
    out = m(*inputs)
    clock["run"] += time.perf_counter() - t
    return _arrays(out)


def _compare(got: list[Any], want: list[Any], random: bool) -> str:
    import numpy as np
    from compare import difference

    if len(got) != len(want):
        return f"{len(got)} outputs, expected {len(want)}"
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if isinstance(b, (bool, int, float)):
            same = a == b or (isinstance(b, float) and ((a != a and b != b) or abs(a - b) <= 1e-6 * abs(b)))
            why = "" if random or same else f"{a}, expected {b}"
        elif random:
            a = np.asarray(a)
            why = "" if (a.dtype, a.shape) == (b.dtype, b.shape) else f"{a.dtype}{a.shape}, expected {b.dtype}{b.shape}"
        else:
            why = difference(a, b)
        if why:
            return f"output {k}: {why}"
    return ""


@dataclass
class Prepared:
    """A sample that torch.export took and reproduced."""

    case: Case
    program: Any
    want: list[Any]
    random: bool
    flags: dict[str, bool]

    def exact(self) -> list[Any]:
        """The expectation as eager gives it in float64 or complex128, rounded to the dtypes of ``want``.

        Eager's own roundings may exceed the bound: the layer norm of one element is 0 and comes out as 1e-4 in
        bfloat16; bicubic sampling rounds every step to it. A result that differs from eager is right all the same if
        it is this one, within the same tolerance; such samples are listed apart. What is no float stays eager's.
        Empty if eager has no such result.
        """
        import numpy as np
        import torch

        wide = {torch.float32: torch.float64, torch.bfloat16: torch.float64, torch.float16: torch.float64}
        wide[torch.complex64] = torch.complex128
        try:
            torch.manual_seed(1)
            out = _arrays(self.case.module(*(t.to(wide.get(t.dtype, t.dtype)) for t in self.case.fresh())))
        except Exception:
            return []
        if len(out) != len(self.want):
            return []
        floats = [isinstance(w, np.ndarray) and w.dtype.kind not in "biu" for w in self.want]
        return [x.astype(w.dtype) if f else w for x, w, f in zip(out, self.want, floats, strict=True)]


def prepare(op: Any, sample: Any, clock: dict[str, float]) -> Prepared | dict[str, Any]:
    """The exported sample, or the status that says why it does not count."""
    import torch
    from compare import is_constant

    from effc.frontend.torch.export import tracing

    def seeded(run: Callable[..., Any], seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return _arrays(run(*case.fresh()))

    try:
        case = Case(op, sample)
        want = seeded(case.module, 1)
        random = bool(_compare(seeded(case.module, 2), want, False)) or op.name.startswith(UNINITIALISED)
    except Exception as e:
        return {"status": "skip", "reason": f"{type(e).__name__}: {str(e)[:200]}"}
    t = time.perf_counter()
    try:
        with tracing():
            program = torch.export.export(case.module, case.fresh(), strict=False)
            clock["export"] += time.perf_counter() - t
            module = program.module()
            got = seeded(module, 1)
            if not random and any(
                torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in program.graph.nodes
            ):
                # Dropout and attention carry the tag at rate 0, too: what all seeds give alike is compared by value.
                # (Eager cannot tell: many operators of op_db set the seed themselves, which the program does not.)
                random = any(_compare(seeded(module, seed), got, False) for seed in range(2, 2 + SEEDS))
            said = _compare(got, want, random)
    except Exception as e:
        return {
            "status": "export",
            "reason": f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200] if str(e).strip() else ''}",
        }
    if said:
        return {"status": "export", "reason": f"not reproduced: {said}"}
    clock["check"] += time.perf_counter() - t
    flags = {k: True for k, v in (("random", random), ("constant", is_constant(want))) if v}
    return Prepared(case, program, want, random, flags)


def judge(p: Prepared, run: Callable[[tuple[Any, ...]], list[Any]]) -> dict[str, Any]:
    """Status and reason of what ``run`` makes of the sample's inputs."""
    from effc.runtime.errors import EffcError

    try:
        why = _compare(run(p.case.fresh()), p.want, p.random)
    except EffcError as e:
        internal = "internal" in str(e) or e.message.startswith(
            ("the reference of", "IndexError", "ValueError", "TypeError")
        )
        return {"status": "crash" if internal else "refused", "reason": str(e)[:600], **p.flags}
    except Exception as e:
        return {"status": "crash", "reason": f"{type(e).__name__}: {str(e)[:400]}", **p.flags}
    if why and not p.random and not _compare(run(p.case.fresh()), p.exact(), False):
        return {"status": "right", "float64": why, **p.flags}
    return {"status": "wrong", "reason": why, **p.flags} if why else {"status": "right", **p.flags}


def run_case(op: Any, sample: Any, target: str, clock: dict[str, float]) -> dict[str, Any]:
    """Status and reason of one sample."""
    p = prepare(op, sample, clock)
    if isinstance(p, dict):
        return p
    program = p.program
    if target == "reference":
        return judge(p, lambda inputs: _run_reference(program, inputs, clock))
    return judge(p, lambda inputs: _run_compiled(program, inputs, clock, target))


def run_batch(op: Any, samples: list[Any], target: str, say: Callable[[dict[str, Any]], None]) -> bool:
    """All samples as entry points of one artifact: one compiler call. False if that does not work; nothing is said
    then.
    """
    import effc

    say({"begin": -1})
    clock: dict[str, float] = Counter()  # type: ignore[assignment]
    start = time.perf_counter()
    prepared = [prepare(op, s, clock) for s in samples]
    good = {i: p for i, p in enumerate(prepared) if isinstance(p, Prepared)}
    results: dict[int, dict[str, Any]] = {i: p for i, p in enumerate(prepared) if isinstance(p, dict)}
    if good:
        t = time.perf_counter()
        try:
            m = effc.compile_entries(
                {f"s{i}": effc.Entry(p.program, p.case.inputs) for i, p in good.items()}, target=target
            )
        except Exception:
            return False
        clock["import"] += time.perf_counter() - t
        t = time.perf_counter()
        for i, p in good.items():
            results[i] = judge(p, lambda inputs, i=i: _arrays(m.entry(f"s{i}")(*inputs)))
        clock["run"] += time.perf_counter() - t
    clock["all"] = time.perf_counter() - start
    for i in sorted(results):
        share = {k: round(v / len(results), 4) for k, v in clock.items()}
        say({"case": i, **results[i], "seconds": share})
    return True


def worker(limit: int, target: str) -> None:
    import logging

    import torch
    from worker_pool import serve

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    table = operators()

    def run(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        import random

        import numpy as np

        op, dtype = table[request["op"]], getattr(torch, request["dtype"])
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        random.seed(SEED)
        try:
            samples = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), limit))
        except Exception as e:
            say({"case": 0, "status": "skip", "reason": f"no samples: {e}"[:300]})
            return
        if (
            target != "reference"
            and len(samples) > 1
            and not request.get("single")
            and run_batch(op, samples, target, say)
        ):
            return
        for i, sample in enumerate(samples):
            if i < request["start"]:
                continue
            say({"begin": i})
            clock: dict[str, float] = Counter()  # type: ignore[assignment]
            t = time.perf_counter()
            result = run_case(op, sample, target, clock)
            clock["all"] = time.perf_counter() - t
            say({"case": i, **result, "seconds": {k: round(v, 4) for k, v in clock.items()}})

    serve(run)


def classify(cases: dict[str, dict[str, Any]]) -> str:
    """Status of an operator at a dtype, from its samples: the worst that counts."""
    states = Counter(c["status"] for c in cases.values())
    counted = [c for c in cases.values() if c["status"] not in ("skip", "export")]
    if not counted:
        return "export" if states["export"] else "skip"
    for bad in ("crash", "hang", "wrong", "refused"):
        if states[bad]:
            return bad
    return "right"


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Counts by dtype, in the order of DTYPES; names of the operators that need a word."""
    out: dict[str, Any] = {}
    for dtype in sorted({k.partition("@")[2] for k in results}, key=lambda d: (*DTYPES, d).index(d)):
        mine = {k.partition("@")[0]: v for k, v in sorted(results.items()) if k.endswith("@" + dtype)}
        states = {k: classify(v) for k, v in mine.items()}
        counts = Counter(states.values())
        counted = [k for k, state in states.items() if state not in ("skip", "export")]
        samples = [c for v in mine.values() for c in v.values() if c["status"] not in ("skip", "export")]
        right = {k: [c for c in v.values() if c["status"] == "right"] for k, v in mine.items() if states[k] == "right"}
        out[dtype] = {
            "counts": dict(counts),
            "exportable": len(counted),
            "exportable_all_samples": sum(all(c["status"] != "export" for c in mine[k].values()) for k in counted),
            "samples": len(samples),
            "samples_right": sum(c["status"] == "right" for c in samples),
            "samples_constant": sum(bool(c.get("constant")) for c in samples),
            "float64": [k for k, v in right.items() if any("float64" in c for c in v)],
            "samples_random": sum(bool(c.get("random")) for c in samples),
            "constant": [k for k, v in right.items() if all(c.get("constant") for c in v)],
            "random": [k for k, v in right.items() if all(c.get("random") for c in v)],
            "random_some": [k for k, v in right.items() if 0 < sum(bool(c.get("random")) for c in v) < len(v)],
            "export": [k for k, state in states.items() if state == "export"],
        }
    return out


def write_table(results: dict[str, Any], path: str, target: str, samples: int) -> None:
    """docs/torch-ops.md."""
    import torch

    said = summary(results)
    declared = {
        d: [k for k, op in operators().items() if getattr(torch, d) in op.supported_dtypes("cpu")] for d in said
    }
    missing = {d: sorted(k for k in keys if f"{k}@{d}" not in results) for d, keys in declared.items()}
    lines = [
        "# PyTorch operators",
        "",
        f"PyTorch {torch.__version__}'s own samples (`op_db` of "
        f"`torch.testing._internal.common_methods_invocations`), the first {samples} of each operator, seeded, on "
        f"target `{target}`. Written by",
        "",
        f"    python tests/conformance/torch_opdb.py --target {target} --samples {samples} "
        f"--dtypes {','.join(said)} \\",
        "        --json build/opdb.json --resume --table docs/torch-ops.md",
        "",
        "All tensors of a sample are arguments of the compiled program: nothing can be folded. An operator counts when",
        "`torch.export` takes at least one of its samples and the exported program reproduces eager; it is right when",
        "every such sample is: structure, dtype and shape exact, NaN and Inf in the same places, integers and bools",
        "equal, floats within 1e-5 (bfloat16 2e-2) of the largest value. Where eager's own roundings exceed that",
        "bound, a result that agrees within it with torch's float64 result is right; those operators are named below.",
        "Samples whose values depend on the random seed are compared by dtype and shape, as are those of `empty*`,",
        "`new_empty*` and `resize_*`, whose values torch does not define. *Constant* samples, whose",
        "expectation is empty or one value throughout, say little; they are counted apart.",
        "",
        "| dtype | operators run | torch.export takes | right | refused | wrong | crash or hang |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype, s in said.items():
        c = s["counts"]
        all_ = len(declared[dtype])
        lines.append(
            f"| {dtype} | {all_ - len(missing[dtype])} of {all_} | {s['exportable']} | {c.get('right', 0)} | "
            f"{c.get('refused', 0)} | {c.get('wrong', 0)} | {c.get('crash', 0) + c.get('hang', 0)} |"
        )
    lines += ["", "| dtype | samples that count | right | by dtype and shape | constant |", "|---|---|---|---|---|"]
    for dtype, s in said.items():
        lines.append(
            f"| {dtype} | {s['samples']} | {s['samples_right']} | {s['samples_random']} | {s['samples_constant']} |"
        )

    def names(keys: list[str]) -> str:
        return ", ".join(keys) or "none"

    for dtype, s in said.items():
        lines += ["", f"## {dtype}", ""]
        if missing[dtype]:
            lines += [f"Not yet run: {names(missing[dtype])}.", ""]
        bad = [
            (key.partition("@")[0], classify(cases), cases)
            for key, cases in sorted(results.items())
            if key.endswith("@" + dtype) and classify(cases) not in ("right", "skip", "export")
        ]
        if bad:
            lines += ["Not right:", "", "| operator | status | samples | reason |", "|---|---|---|---|"]
        else:
            lines.append("Not right: none.")
        for name, state, cases in bad:
            those = [c for c in cases.values() if c["status"] == state]
            reason = textwrap.shorten(those[0].get("reason", "").replace(ROOT + os.sep, ""), 160, placeholder=" ...")
            reason = reason.replace("|", "\\|")
            lines.append(f"| {name} | {state} | {len(those)} of {len(cases)} | {reason} |")
        lines += ["", f"Every sample compared by dtype and shape only: {names(s['random'])}.", ""]
        lines += [f"Some samples compared by dtype and shape only: {names(s['random_some'])}.", ""]
        lines += [f"Right by torch's values in float64: {names(s['float64'])}.", ""]
        lines += [f"Right, but every sample is constant: {names(s['constant'])}.", ""]
        lines.append(f"Not taken or not reproduced by `torch.export`: {names(s['export'])}.")
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", default="cpu")
    p.add_argument("--dtypes", default="float32")
    p.add_argument("--ops", default="", help="comma-separated names; a trailing * matches a prefix")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--shard", default="1/1", help="i/n: every n-th operator from the i-th")
    p.add_argument("--json", default="")
    p.add_argument("--resume", action="store_true", help="keep what --json holds already")
    p.add_argument("--retry", default="", help="with --resume: statuses to run again, e.g. refused,crash")
    p.add_argument("--table", default="", help="write the Markdown table here")
    p.add_argument("--timeout", type=float, default=300)
    p.add_argument("--worker", action="store_true")
    p.add_argument("--quiet", action="store_true")
    a = p.parse_args(argv)
    if a.worker:
        worker(a.samples, a.target)
        return 0
    import torch
    from worker_pool import sweep

    table = operators()
    wanted = [w for w in a.ops.split(",") if w]
    i, n = (int(x) for x in a.shard.split("/"))
    results: dict[str, Any] = {}
    if a.resume and a.json and os.path.exists(a.json):
        with open(a.json) as f:
            results = json.load(f)["results"]
        again = set(a.retry.split(","))
        results = {k: v for k, v in results.items() if classify(v) not in again}
    requests = []
    for dtype in a.dtypes.split(","):
        for key, op in itertools.islice(sorted(table.items()), i - 1, None, n):
            hit = not wanted or any(key == w or (w.endswith("*") and key.startswith(w[:-1])) for w in wanted)
            if hit and getattr(torch, dtype) in op.supported_dtypes("cpu") and f"{key}@{dtype}" not in results:
                requests.append({"op": key, "dtype": dtype})
    begun = time.perf_counter()

    def on_case(request: dict[str, Any], said: dict[str, Any]) -> None:
        case = {k: v for k, v in said.items() if k != "case"}
        results.setdefault(f"{request['op']}@{request['dtype']}", {})[str(said["case"])] = case

    def save() -> None:
        if a.json:
            os.makedirs(os.path.dirname(os.path.abspath(a.json)), exist_ok=True)
            with open(a.json + ".part", "w") as f:
                json.dump({"target": a.target, "samples": a.samples, "results": results}, f)
            os.replace(a.json + ".part", a.json)

    me = [os.path.abspath(__file__), "--samples", str(a.samples), "--target", a.target]
    for done, request in enumerate(sweep(me, requests, on_case, a.timeout), 1):
        key = f"{request['op']}@{request['dtype']}"
        state = classify(results.setdefault(key, {}))
        if not a.quiet and state not in ("right", "skip", "export"):
            why = next((c.get("reason", "") for c in results[key].values() if c["status"] == state), "")
            print(f"{state:8} {key}: {' '.join(why.split())[:300]}", flush=True)
        if done % 50 == 0:
            save()
            print(f"-- {done}/{len(requests)} operators, {time.perf_counter() - begun:.0f} s", flush=True)
    save()
    spent: Counter[str] = Counter()
    for cases in results.values():
        for c in cases.values():
            spent.update(c.get("seconds", {}))
    said = summary(results)
    for dtype, s in said.items():
        print(
            dtype,
            s["counts"],
            f"exportable {s['exportable']} (all samples: {s['exportable_all_samples']}),",
            f"constant only {len(s['constant'])}",
        )
    print("seconds:", {k: round(v, 1) for k, v in spent.items()})
    if a.table:
        write_table(results, a.table, a.target, a.samples)
    return 0 if not any(s["counts"].get(b) for s in said.values() for b in ("wrong", "crash", "hang")) else 1


if __name__ == "__main__":
    sys.exit(main())
