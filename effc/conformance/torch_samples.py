"""The suite ``torch``: PyTorch's own operator samples (``op_db``).

For each operator and dtype the first samples are taken, seeded. All their tensors are arguments of the compiled
program, so that nothing can be folded. A sample counts if ``torch.export`` takes it and its program reproduces eager;
then effc compiles the same exported program. Statuses are those of ``suite.Result``: ``export``, torch.export does not
take or reproduce it, ``skip``, eager itself refuses. ``random`` operators are compared by dtype and shape.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..runtime.errors import EffcError
from .compare import difference, is_constant
from .report import Run
from .suite import Judge, Result, Suite, classify

DTYPES = ("float32", "int64", "bool", "bfloat16", "complex64")
SEED = 20260
SEEDS = 16  # runs of the exported program that must agree before a sample of a random operator is compared by value
# operators whose values torch does not define: dtype and shape are compared
UNINITIALISED = ("empty", "new_empty", "resize_")
ROOT = Path(__file__).resolve().parents[2]


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

    from ..frontend.torch.dtypes import to_numpy

    result = []
    for x in pytree.tree_leaves(out):
        if isinstance(x, torch.Tensor):
            result.append(to_numpy(torch.view_as_real(x) if x.dtype is torch.complex32 else x))
        elif isinstance(x, (bool, int, float, np.ndarray)):  # arrays: effc's for a program without tensor arguments
            result.append(x)
        elif x is not None:
            raise TypeError(f"an output of type {type(x).__name__}")
    return result


def _compare(got: list[Any], want: list[Any], random: bool) -> str:
    import numpy as np

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


def prepare(op: Any, sample: Any) -> Prepared | Result:
    """The exported sample, or the result that says why it does not count."""
    import torch

    from ..frontend.torch.export import tracing

    def seeded(run: Callable[..., Any], seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return _arrays(run(*case.fresh()))

    try:
        case = Case(op, sample)
        want = seeded(case.module, 1)
        random = bool(_compare(seeded(case.module, 2), want, False)) or op.name.startswith(UNINITIALISED)
    except Exception as e:
        return Result("skip", f"{type(e).__name__}: {str(e)[:200]}")
    try:
        with tracing():
            program = torch.export.export(case.module, case.fresh(), strict=False)
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
        return Result("export", f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200] if str(e).strip() else ''}")
    if said:
        return Result("export", f"not reproduced: {said}")
    flags = {k: True for k, v in (("random", random), ("constant", is_constant(want))) if v}
    return Prepared(case, program, want, random, flags)


def judge(p: Prepared, run: Callable[[tuple[Any, ...]], list[Any]]) -> Result:
    """What ``run`` makes of the sample's inputs."""
    try:
        why = _compare(run(p.case.fresh()), p.want, p.random)
    except EffcError as e:
        internal = "internal" in str(e) or e.message.startswith(
            ("the reference of", "IndexError", "ValueError", "TypeError")
        )
        return Result("crash" if internal else "refused", str(e)[:600], **p.flags)
    except Exception as e:
        return Result("crash", f"{type(e).__name__}: {str(e)[:400]}", **p.flags)
    if why and not p.random and not _compare(run(p.case.fresh()), p.exact(), False):
        return Result("right", float64=why, **p.flags)
    return Result("wrong", why, **p.flags) if why else Result("right", **p.flags)


def run_case(op: Any, sample: Any, target: str) -> Result:
    """What becomes of one sample on a target."""
    import effc

    p = prepare(op, sample)
    if isinstance(p, Result):
        return p
    return judge(p, lambda inputs: _arrays(effc.compile(p.program, inputs, target=target)(*inputs)))


def run_together(op: Any, samples: Sequence[Any], target: str) -> list[Result] | None:
    """All samples as entry points of one artifact: one compiler call. None if they do not compile together."""
    import effc

    prepared = [prepare(op, s) for s in samples]
    good = {i: p for i, p in enumerate(prepared) if isinstance(p, Prepared)}
    results: dict[int, Result] = {i: p for i, p in enumerate(prepared) if isinstance(p, Result)}
    if good:
        try:
            m = effc.compile_entries(
                {f"s{i}": effc.Entry(p.program, p.case.inputs) for i, p in good.items()}, target=target
            )
        except Exception:  # some sample's, and on its own it says which
            return None
        for i, p in good.items():
            results[i] = judge(p, lambda inputs, i=i: _arrays(m.entry(f"s{i}")(*inputs)))
    return [results[i] for i in sorted(results)]


@dataclass(frozen=True)
class Samples(Suite):
    """The operators of op_db at some dtypes, so many samples of each."""

    timeout: ClassVar[float] = 300.0
    restart_every: ClassVar[int] = 200
    needs: ClassVar[Mapping[str, str]] = {"torch": "'effc[torch]'"}

    dtypes: str = "float32"
    samples: int = 20

    def check(self, backend: str) -> None:
        super().check(backend)
        import torch

        for name in self.dtypes.split(","):
            if not isinstance(getattr(torch, name, None), torch.dtype):
                raise EffcError(f"torch has no dtype {name!r}", hint=f"for example {','.join(DTYPES)}")

    def identity(self) -> dict[str, Any]:
        return {"samples": self.samples}

    def cases(self) -> list[str]:
        import torch

        table = sorted(operators().items())
        return [
            f"{key}@{dtype}"
            for dtype in self.dtypes.split(",")
            for key, op in table
            if getattr(torch, dtype) in op.supported_dtypes("cpu")
        ]

    def prepare(self, backend: str) -> None:
        import torch

        torch.set_num_threads(1)

    def _drawn(self, case: str) -> tuple[Any, list[Any]]:
        """The operator, and its samples from fixed seeds."""
        import random

        import numpy as np
        import torch

        key, _, dtype = case.partition("@")
        op = operators()[key]
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        random.seed(SEED)
        made = op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=False)
        return op, list(itertools.islice(made, self.samples))

    def together(self, backend: str, cases: Sequence[str]) -> dict[tuple[int, int], Result] | None:
        (case,) = cases
        try:
            op, drawn = self._drawn(case)
        except Exception:  # judgements() says so
            return None
        results = run_together(op, drawn, backend) if len(drawn) > 1 else None
        return None if results is None else {(0, k): r for k, r in enumerate(results)}

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        try:
            op, drawn = self._drawn(case)
        except Exception as e:
            yield lambda why=f"no samples: {e}"[:300]: Result("skip", why)
            return
        for sample in drawn:
            yield lambda sample=sample: run_case(op, sample, backend)

    @staticmethod
    def page(runs: Sequence[Run], command: str, kept: str) -> str:
        """docs/torch-ops.md."""
        (run,) = runs
        return page(run.results, run.backend, run.suite.identity()["samples"], command)


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


def page(results: dict[str, Any], target: str, samples: int, command: str) -> str:
    """The page of docs on these results."""
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
        f"    {command}",
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
            reason = textwrap.shorten(
                those[0].get("reason", "").replace(f"{ROOT}{os.sep}", ""), 160, placeholder=" ..."
            )
            reason = reason.replace("|", "\\|")
            lines.append(f"| {name} | {state} | {len(those)} of {len(cases)} | {reason} |")
        lines += ["", f"Every sample compared by dtype and shape only: {names(s['random'])}.", ""]
        lines += [f"Some samples compared by dtype and shape only: {names(s['random_some'])}.", ""]
        lines += [f"Right by torch's values in float64: {names(s['float64'])}.", ""]
        lines += [f"Right, but every sample is constant: {names(s['constant'])}.", ""]
        lines.append(f"Not taken or not reproduced by `torch.export`: {names(s['export'])}.")
    return "\n".join(lines) + "\n"
