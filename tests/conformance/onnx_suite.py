"""ONNX's own backend test suite through effc: the figures of docs/onnx-suite.md.

    python tests/conformance/onnx_suite.py --target cpu --json build/onnx.json --table docs/onnx-suite.md

Every case runs through ``effc.onnx_backend`` (``prepare``, then ``run`` on each of its data sets) in a worker process
and is judged by the suite's own comparison and tolerances: number of outputs, shapes and dtypes exact. Status of a
case: ``right``, ``wrong``, ``refused`` (an EffcError), ``crash`` (any other exception, or the process ended), ``hang``,
and ``random``: the model draws random numbers, so that the suite's values are one engine's for one seed; dtypes and
shapes are as they must be.

``--target onnxruntime`` and ``--target onnx-evaluator`` run the peers on the same cases.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import os
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, ROOT]

GOOD = ("right", "random", "refused")
KINDS = ("node", "simple", "real", "pytorch-converted", "pytorch-operator")


@functools.cache
def cases(kind: str) -> dict[str, Any]:
    """The suite's cases of a kind by name. The ``real`` ones are the light nets that come with the package."""
    found = {t.name: t for t in load_model_tests(kind=kind)}
    return {n: t for n, t in found.items() if t.url is None or "onnx/backend/test/data/light/" in t.url}


def model_of(case: Any) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    """The model and its data sets."""
    if case.model is not None and case.data_sets is not None:
        return case.model, [([_array(x) for x in i], [_array(x) for x in o]) for i, o in case.data_sets]
    if case.url:
        return _light(case)
    model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
    sets = []
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set*"))):
        both: list[list[Any]] = []
        for what, infos in (("input", model.graph.input), ("output", model.graph.output)):
            items: list[Any] = []
            for k in range(len(glob.glob(os.path.join(folder, f"{what}_*.pb")))):
                items.append(_load(os.path.join(folder, f"{what}_{k}.pb"), infos[k].type))
            both.append(items)
        sets.append((both[0], both[1]))
    return model, sets


def _light(case: Any) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    """A net of the package's folder: the suite's own dummy data, and the results that lie beside it."""
    path = os.path.join(os.path.dirname(onnx.__file__), *case.url.split("/")[1:])
    model = onnx.load(path)
    constant = {t.name for t in model.graph.initializer}
    inputs = [
        Runner.generate_dummy_data(i, seed=0, name=case.model_name, random=False)
        for i in model.graph.input
        if i.name not in constant
    ]
    files = [f"{os.path.splitext(path)[0]}_output_{k}.pb" for k in range(len(model.graph.output))]
    if all(map(os.path.exists, files)):
        outputs = [_load(f, o.type) for f, o in zip(files, model.graph.output)]
    else:
        from onnx.reference import ReferenceEvaluator

        names = [i.name for i in model.graph.input if i.name not in constant]
        outputs = list(ReferenceEvaluator(model).run(None, dict(zip(names, inputs))))
    return model, [(inputs, outputs)]


def _load(path: str, type: onnx.TypeProto) -> Any:
    with open(path, "rb") as f:
        data = f.read()
    kind = type.WhichOneof("value")
    made, read = {
        "sequence_type": (onnx.SequenceProto, onnx.numpy_helper.to_list),
        "optional_type": (onnx.OptionalProto, onnx.numpy_helper.to_optional),
    }.get(kind, (onnx.TensorProto, onnx.numpy_helper.to_array))
    proto = made()
    proto.ParseFromString(data)
    return read(proto)


def _array(x: Any) -> Any:
    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


def runner(target: str, model: onnx.ModelProto) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function of the inputs for one model on a target."""
    if target == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return lambda xs: session.run(None, {n: x for n, x in zip(names, xs) if x is not None})  # type: ignore[no-any-return]
    if target == "onnx-evaluator":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        inputs = [i.name for i in model.graph.input]
        return lambda xs: evaluator.run(None, dict(zip(inputs, xs)))  # type: ignore[return-value]
    import effc.onnx_backend

    return effc.onnx_backend.prepare(model, "CPU" if target == "cpu" else target).run  # type: ignore[no-any-return]


def judge(target: str, case: Any) -> tuple[str, str]:
    """The status of one case, and why."""
    from effc import EffcError

    model, sets = model_of(case)
    try:
        run = runner(target, model)
        for inputs, expected in sets:
            out = list(run(inputs))
            try:
                compare(expected, out, case)
            except (AssertionError, TypeError, AttributeError) as e:
                if draws(model) and [(x.dtype, x.shape) for x in out] == [(x.dtype, x.shape) for x in expected]:
                    return "random", ""
                return "wrong", " ".join(str(e).split())[:300]
    except EffcError as e:
        return "refused", " ".join(e.message.split())[:300]
    except Exception as e:
        if target in ("onnxruntime", "onnx-evaluator"):
            return "refused", f"{type(e).__name__}: {e}"[:300]
        return "crash", f"{type(e).__name__}: {e}"[:300]
    return "right", ""


def compare(expected: Sequence[Any], out: Sequence[Any], case: Any) -> None:
    """The suite's comparison; of sequences item by item, which the suite does not do where an item is 0-d."""
    assert len(expected) == len(out), f"{len(out)} results, not {len(expected)}"
    for want, got in zip(expected, out):
        if isinstance(want, (list, tuple)):
            assert isinstance(got, (list, tuple)), f"{type(got).__name__} for a sequence"
            compare(want, got, case)
        elif want is None or got is None:
            assert want is got, f"{got} for {want}"
        else:
            Runner.assert_similar_outputs([want], [got], case.rtol, case.atol)


RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def draws(model: onnx.ModelProto) -> bool:
    """Whether a model draws random numbers; Dropout does in training."""
    return any(n.op_type in RANDOM or (n.op_type == "Dropout" and len(n.input) > 2) for n in model.graph.node)


def operator(case: Any) -> str:
    """What a case is about: its node's operator, or the one that an expanded case's name tells."""
    name = case.name.removeprefix("test_")
    if case.kind != "node":
        return str(case.kind)
    model = model_of(case)[0]
    kinds = {n.op_type for n in model.graph.node}
    if "_expanded" in name or len(kinds) > 1:
        return "expanded: " + re.sub(r"_expanded.*", "", name)
    return kinds.pop() if kinds else "none"


def serve_worker() -> None:
    import worker_pool

    warnings.filterwarnings("ignore")

    def run(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        found = cases(request["kind"])
        for i, name in enumerate(request["names"]):
            if i < request.get("start", 0):
                continue
            say({"begin": i})
            started = time.perf_counter()
            status, reason = judge(request["target"], found[name])
            say({"case": i, "status": status, "reason": reason, "seconds": round(time.perf_counter() - started, 2)})

    worker_pool.serve(run)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", default="cpu")
    p.add_argument("--kinds", default=",".join(KINDS))
    p.add_argument("--only", default="", help="a regular expression that a case's name must match")
    p.add_argument("--shard", default="1/1", help="i/n: every n-th case from the i-th")
    p.add_argument("--json", default="", help="read and keep results here")
    p.add_argument("--resume", action="store_true", help="keep what --json holds already")
    p.add_argument("--retry", default="", help="with --resume: statuses to run again, e.g. refused,crash")
    p.add_argument("--table", default="", help="write the Markdown table here")
    p.add_argument("--timeout", type=float, default=120)
    p.add_argument("--worker", action="store_true")
    args = p.parse_args()
    if args.worker:
        serve_worker()
        return 0
    import worker_pool
    from tqdm import tqdm

    results: dict[str, dict[str, Any]] = {}
    if args.resume and args.json and os.path.exists(args.json):
        with open(args.json) as f:
            results = json.load(f)
    again = set(filter(None, args.retry.split(",")))
    part, parts = map(int, args.shard.split("/"))
    requests = []
    for kind in args.kinds.split(","):
        names = [
            n for n in sorted(cases(kind))
            if re.search(args.only, n) and (n not in results or results[n]["status"] in again)
        ][part - 1 :: parts]  # fmt: skip
        requests += [
            {"target": args.target, "kind": kind, "names": names[i : i + 20]} for i in range(0, len(names), 20)
        ]
    bar = tqdm(total=sum(len(r["names"]) for r in requests), unit="case", mininterval=5)

    def on_case(request: dict[str, Any], said: dict[str, Any]) -> None:
        name = request["names"][said["case"]]
        results[name] = {
            "kind": request["kind"], "status": said["status"], "reason": said.get("reason", ""),
            "seconds": said.get("seconds"),
        }  # fmt: skip
        bar.update()
        if said["status"] not in GOOD:
            bar.write(f"{name}: {said['status']}: {said.get('reason', '')}")

    for _ in worker_pool.sweep([__file__], requests, on_case, args.timeout):
        if args.json:
            os.makedirs(os.path.dirname(args.json) or ".", exist_ok=True)
            with open(args.json, "w") as f:
                json.dump(results, f, indent=1, sort_keys=True)
    bar.close()
    print(summary(results))
    if args.table:
        with open(args.table, "w") as f:
            f.write(table(args, results))
    return int(any(r["status"] not in GOOD for r in results.values()))


def summary(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| suite | cases | right | random | refused | wrong | crash or hang |", "|---|---|---|---|---|---|---|"]
    for kind in KINDS:
        of = Counter(r["status"] for r in results.values() if r["kind"] == kind)
        if of:
            bad = of["crash"] + of["hang"]
            counts = " | ".join(str(of[s]) for s in ("right", "random", "refused", "wrong"))
            lines.append(f"| {kind} | {sum(of.values())} | {counts} | {bad} |")
    return "\n".join(lines)


def table(args: Any, results: dict[str, dict[str, Any]]) -> str:
    known = {n: t for kind in KINDS for n, t in cases(kind).items()}
    refused: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, str] = {}
    bad = []
    for name, r in sorted(results.items()):
        if r["status"] == "refused":
            op = operator(known[name])
            refused[op].append(name)
            reasons.setdefault(op, r["reason"])
        elif r["status"] not in GOOD:
            bad.append(f"- {name}: {r['status']}: {r['reason']}")
    lines = [
        "# ONNX's backend test suite", "",
        f"onnx {onnx.__version__}, its own cases, data and tolerances, target `{args.target}`;",
        "`random`: the model draws random numbers, dtypes and shapes are right. Written by", "",
        f"    python tests/conformance/onnx_suite.py --target {args.target} --json build/onnx-{args.target}.json "
        f"--table docs/onnx-suite.md", "",
        summary(results), "", "## Refused", "", "| operator | cases | reason of the first |", "|---|---|---|",
    ]  # fmt: skip
    for op in sorted(refused):
        reason = reasons[op].split(": ", 1)[-1] if "not supported" in reasons[op] else reasons[op]
        lines.append(f"| {op} | {len(refused[op])} | {reason.replace('|', '/').strip()} |")
    if bad:
        lines += ["", "## Wrong", "", *bad]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
