"""The suites ``onnx`` and ``onnx-models``: ONNX's own backend test suite, its node cases and its models.

Every case runs through ``effc.onnx_backend`` (``prepare``, then ``run`` on each of its data sets) and is judged by the
suite's own comparison and tolerances: number of outputs, shapes and dtypes exact. ``random``: the model draws random
numbers, so that the suite's values are one engine's for one seed; dtypes and shapes are as they must be. The peers
``onnxruntime`` and ``onnx-evaluator`` run the same cases.
"""

from __future__ import annotations

import functools
import glob
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..runtime.errors import EffcError
from .report import Run, cell, counts, table_of
from .suite import BAD, Judge, Result, Suite, error_text

KINDS = ("node", "simple", "real", "pytorch-converted", "pytorch-operator")
PEERS = ("onnxruntime", "onnx-evaluator")


@functools.cache
def cases(kind: str) -> dict[str, Any]:
    """The suite's cases of a kind by name. The ``real`` ones are the light nets that come with the package."""
    import numpy as np
    from onnx.backend.test.loader import load_model_tests

    with np.errstate(all="ignore"), warnings.catch_warnings():  # some expectations are infinite on purpose
        warnings.simplefilter("ignore")
        found = {t.name: t for t in load_model_tests(kind=kind)}
    return {n: t for n, t in found.items() if t.url is None or "onnx/backend/test/data/light/" in t.url}


def model_of(case: Any) -> tuple[Any, list[tuple[list[Any], list[Any]]]]:
    """The model and its data sets: inputs and expected outputs."""
    import onnx

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


def _light(case: Any) -> tuple[Any, list[tuple[list[Any], list[Any]]]]:
    """A net of the package's folder: the suite's own dummy data, and the results that lie beside it."""
    import onnx
    from onnx.backend.test.runner import Runner

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


def _load(path: str, type: Any) -> Any:
    import onnx

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
    import onnx

    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


def runner(target: str, model: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
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


def judge(target: str, case: Any) -> Result:
    """What becomes of one case on a target."""
    model, sets = model_of(case)
    try:
        run = runner(target, model)
        for inputs, expected in sets:
            out = list(run(inputs))
            try:
                compare(expected, out, case)
            except (AssertionError, TypeError, AttributeError) as e:
                if draws(model) and [(x.dtype, x.shape) for x in out] == [(x.dtype, x.shape) for x in expected]:
                    return Result("random")
                return Result("wrong", " ".join(str(e).split())[:300])
    except EffcError as e:
        return Result("refused", " ".join(e.message.split())[:300])
    except Exception as e:  # the peers have no exception of one kind for what they do not take
        return Result("refused" if target in PEERS else "crash", error_text(e)[:300])
    return Result("right")


def compare(expected: Sequence[Any], out: Sequence[Any], case: Any) -> None:
    """The suite's comparison; of sequences item by item, which the suite does not do where an item is 0-d."""
    from onnx.backend.test.runner import Runner

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


def draws(model: Any) -> bool:
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
        return f"{_named(name)}, expanded"
    return kinds.pop() if kinds else "none"


def _named(name: str) -> str:
    """The operator that a case is named after (test_layer_normalization_4d_axis1), else the name's first word."""
    import onnx

    plain = name.replace("_", "").lower()
    known = {s.name for s in onnx.defs.get_all_schemas()}
    return max((k for k in known if plain.startswith(k.lower())), key=len, default=name.partition("_")[0])


@dataclass(frozen=True)
class Nodes(Suite):
    """The cases of single operators, and those of their expansions."""

    needs: ClassVar[Mapping[str, str]] = {"onnx": "'effc[onnx]'"}
    peers: ClassVar[tuple[str, ...]] = PEERS
    kinds: ClassVar[tuple[str, ...]] = KINDS[:1]

    def check(self, backend: str) -> None:
        super().check(backend)
        if backend == "onnxruntime":
            _require_onnxruntime()

    def cases(self) -> list[str]:
        return [name for kind in self.kinds for name in sorted(cases(kind))]

    def prepare(self, backend: str) -> None:
        for kind in self.kinds:
            cases(kind)

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        found = next(known[case] for known in map(cases, self.kinds) if case in known)

        def judged() -> Result:
            r = judge(backend, found)
            return Result(r.status, r.reason, operator=operator(found), part=found.kind)

        yield judged

    @staticmethod
    def page(runs: Sequence[Run], command: str, kept: str) -> str:
        """docs/onnx-suite.md."""
        return page(runs, command)


@dataclass(frozen=True)
class Models(Nodes):
    """Small models, real nets and what PyTorch once exported; data and tolerances are the suite's."""

    kinds: ClassVar[tuple[str, ...]] = KINDS[1:]


def _require_onnxruntime() -> None:
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        raise EffcError("onnxruntime is not installed", hint="pip install onnxruntime")


def page(runs: Sequence[Run], command: str) -> str:
    """The page of docs on these suites."""
    import onnx

    results = {case: r for run in runs for case, samples in run.results.items() for r in samples.values()}
    rows = []
    for kind in KINDS:
        of = counts(r for r in results.values() if r.get("part") == kind)
        if total := sum(of.values()):
            bad = of["crash"] + of["hang"]
            rows.append([kind, total, *(of[s] for s in ("right", "random", "refused", "wrong")), bad])
    refused: dict[str, list[str]] = defaultdict(list)
    for _, r in sorted(results.items()):
        if r["status"] == "refused":
            refused[r["operator"]].append(r["reason"])
    bad_ones = [
        f"- {n}: {r['status']}: {r.get('reason', '')}" for n, r in sorted(results.items()) if r["status"] in BAD
    ]
    targets = ", ".join(f"`{t}`" for t in dict.fromkeys(run.backend for run in runs))
    lines = [
        "# ONNX's backend test suite",
        "",
        f"onnx {onnx.__version__}, its own cases, data and tolerances, target {targets};",
        "`random`: the model draws random numbers, dtypes and shapes are right. Written by",
        "",
        f"    {command}",
        "",
        *table_of(["suite", "cases", "right", "random", "refused", "wrong", "crash or hang"], rows),
        "",
        "## Refused",
        "",
        *table_of(
            ["operator", "cases", "reason of the first"],
            [[op, len(why), cell(_short(why[0]), 300)] for op, why in sorted(refused.items())],
        ),
    ]
    if bad_ones:
        lines += ["", "## Wrong", "", *bad_ones]
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    return reason.split(": ", 1)[-1] if "not supported" in reason else reason
