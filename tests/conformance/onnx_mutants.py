"""Damaged ONNX files: each is refused with an EffcError, or runs and gives what other engines give.

    python -m tests.conformance.onnx_mutants --count 2000 --json build/mutants.json

A mutant is a model of onnx's test suite, or of a few that are built here, with bytes flipped or cut, or with fields
changed that no exporter would write so: shapes and types that lie, names that make cycles, operators swapped, absurd
sizes, external data that climbs out of the folder. Each is written to a folder of its own and compiled in a worker
process with a limit on its memory and time. Status: ``refused``, ``right`` (compiled, and its results equal
onnxruntime's or, where those differ, the evaluator's), ``skip`` (it ran; onnxruntime does not run it, or it draws
random numbers), and the defects: ``wrong``, ``crash``, ``hang``.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto

from effc.conformance import onnx_nodes
from effc.conformance.command import main
from effc.conformance.suite import Result

from .numbered import Numbered

MEMORY = 6 << 30  # bytes of address space beyond what the worker starts with
SEED = 20261


@functools.cache
def bases() -> list[tuple[str, bytes, dict[str, Any]]]:
    """Names, files and inputs: one small model for each operator of the node suite, and the suite's whole models."""
    out: list[tuple[str, bytes, dict[str, Any]]] = []
    seen: set[str] = set()
    for kind in ("node", "pytorch-operator", "simple"):
        for name, case in sorted(onnx_nodes.cases(kind).items()):
            model, sets = onnx_nodes.model_of(case)
            ops = ",".join(sorted({n.op_type for n in model.graph.node}))
            if ops in seen or not all(isinstance(x, np.ndarray) and x.dtype != object for x in sets[0][0]):
                continue
            seen.add(ops)
            constant = {t.name for t in model.graph.initializer}
            names = [i.name for i in model.graph.input if i.name not in constant]
            out.append((name, model.SerializeToString(), dict(zip(names, sets[0][0]))))
    return out


# Mutations ------------------------------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, onnx.ModelProto], None]
ABSURD = (0, -1, 1, 2, 7, 255, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63), -(1 << 31))


def _a_node(r: random.Random, m: onnx.ModelProto) -> onnx.NodeProto:
    return r.choice(list(m.graph.node))  # type: ignore[no-any-return]


def swap_operator(r: random.Random, m: onnx.ModelProto) -> None:
    names = [s.name for s in onnx.defs.get_all_schemas() if s.domain == ""]
    _a_node(r, m).op_type = r.choice([*names, "NoSuchOperator", ""])


def rename_input(r: random.Random, m: onnx.ModelProto) -> None:
    """A name that is not defined, or one that is defined later: a cycle."""
    n = _a_node(r, m)
    names = ["nothing", "", *(o for x in m.graph.node for o in x.output), *(i.name for i in m.graph.input)]
    if n.input:
        n.input[r.randrange(len(n.input))] = r.choice(names)


def rename_output(r: random.Random, m: onnx.ModelProto) -> None:
    n = _a_node(r, m)
    if n.output:
        n.output[r.randrange(len(n.output))] = r.choice(["", "other", *(i.name for i in m.graph.input)])


def more_or_fewer_inputs(r: random.Random, m: onnx.ModelProto) -> None:
    n = _a_node(r, m)
    if n.input and r.random() < 0.5:
        del n.input[-1]
    else:
        n.input.append(r.choice([*(i.name for i in m.graph.input), ""]))


def lie_about_a_shape(r: random.Random, m: onnx.ModelProto) -> None:
    infos = [v for v in [*m.graph.input, *m.graph.output] if v.type.HasField("tensor_type")]
    if not infos:
        return
    shape = r.choice(infos).type.tensor_type.shape
    change = r.randrange(4)
    if change == 0:
        shape.dim.add().dim_value = r.choice(ABSURD)
    elif shape.dim:
        d = r.choice(list(shape.dim))
        if change == 1:
            d.dim_value = r.choice(ABSURD)
        elif change == 2:
            d.dim_param = r.choice(["n", "n + 1", "", "a-b", "max", "0"])
        else:
            del shape.dim[-1]


def lie_about_a_type(r: random.Random, m: onnx.ModelProto) -> None:
    infos = [v for v in [*m.graph.input, *m.graph.output] if v.type.HasField("tensor_type")]
    if infos:
        r.choice(infos).type.tensor_type.elem_type = r.choice([*range(27), 99])


def no_type(r: random.Random, m: onnx.ModelProto) -> None:
    infos = [*m.graph.input, *m.graph.output]
    if infos:
        r.choice(infos).ClearField("type")


def change_attribute(r: random.Random, m: onnx.ModelProto) -> None:
    attributes = [a for n in m.graph.node for a in n.attribute]
    if not attributes:
        n = _a_node(r, m)
        n.attribute.append(onnx.helper.make_attribute(r.choice(["axis", "to", "k", "perm"]), r.choice(ABSURD)))
        return
    a = r.choice(attributes)
    kind = r.randrange(5)
    if kind == 0:
        a.i = r.choice(ABSURD)
    elif kind == 1 and a.ints:
        a.ints[r.randrange(len(a.ints))] = r.choice(ABSURD)
    elif kind == 2:
        a.ints.append(r.choice(ABSURD))
    elif kind == 3:
        a.type = r.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 11])
    else:
        a.s = r.choice([b"", b"\xff\xfe", b"reflect", b"SAME_UPPER", b"x" * 1000])


def change_constant(r: random.Random, m: onnx.ModelProto) -> None:
    tensors = [*m.graph.initializer, *(a.t for n in m.graph.node for a in n.attribute if a.HasField("t"))]
    if not tensors:
        m.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), m.graph.input[0].name
                                                               if m.graph.input else "x"))  # fmt: skip
        return
    t = r.choice(tensors)
    kind = r.randrange(5)
    if kind == 0:
        t.dims.append(r.choice(ABSURD))
    elif kind == 1 and t.dims:
        t.dims[r.randrange(len(t.dims))] = r.choice(ABSURD)
    elif kind == 2:
        t.data_type = r.choice([*range(27), 99])
    elif kind == 3:
        t.raw_data = t.raw_data[: len(t.raw_data) // 2]
    else:
        t.data_location = TensorProto.EXTERNAL
        t.ClearField("raw_data")
        place = r.choice(["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", ".", "missing.bin", "data.bin",
                          "link.bin"])  # fmt: skip
        for key, value in (("location", place), ("offset", str(r.choice(ABSURD))), ("length", str(r.choice(ABSURD)))):
            if key == "location" or r.random() < 0.5:
                t.external_data.add(key=key, value=value)


def constant_instead_of_input(r: random.Random, m: onnx.ModelProto) -> None:
    """An input becomes a constant of random integers: axes, shapes and indices that make no sense."""
    if not m.graph.input:
        return
    i = r.randrange(len(m.graph.input))
    name = m.graph.input[i].name
    size = r.choice([0, 1, 2, 3, 5])
    values = np.array([r.choice(ABSURD) for _ in range(size)], np.int64)
    m.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    del m.graph.input[i]


def change_versions(r: random.Random, m: onnx.ModelProto) -> None:
    if r.random() < 0.5 and m.opset_import:
        r.choice(list(m.opset_import)).version = r.choice([*ABSURD, 1, 6, 7, 9, 11, 13, 18, 21])
    else:
        m.opset_import.add(domain=r.choice(["", "ai.onnx.ml", "com.microsoft", "x"]), version=r.choice(ABSURD))


def repeat_a_node(r: random.Random, m: onnx.ModelProto) -> None:
    m.graph.node.append(_a_node(r, m))


def drop_something(r: random.Random, m: onnx.ModelProto) -> None:
    field = r.choice(["node", "input", "output", "initializer"])
    items = getattr(m.graph, field)
    if items:
        del items[r.randrange(len(items))]


def recursive_function(r: random.Random, m: onnx.ModelProto) -> None:
    n = _a_node(r, m)
    n.domain = "loop"
    f = m.functions.add(name=n.op_type, domain="loop", input=list(dict.fromkeys(n.input)), output=list(n.output))
    f.node.add().CopyFrom(n)
    f.opset_import.add(domain="", version=20)
    f.opset_import.add(domain="loop", version=1)
    m.opset_import.add(domain="loop", version=1)


def nest_deeply(r: random.Random, m: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("Identity", [m.graph.node[0].output[0]], ["deep"])], "g", [],
                                   [onnx.helper.make_empty_tensor_value_info("deep")])  # fmt: skip
    for k in range(r.choice([3, 40, 90])):
        node = onnx.helper.make_node("If", ["never"], [f"d{k}"], then_branch=inner, else_branch=inner)
        if node.ByteSize() > 1 << 20:
            break
        inner = onnx.helper.make_graph([node], "g", [], [onnx.helper.make_empty_tensor_value_info(f"d{k}")])
    m.graph.node.extend(inner.node)


MUTATIONS: tuple[Mutation, ...] = (
    swap_operator, rename_input, rename_output, more_or_fewer_inputs, lie_about_a_shape, lie_about_a_type, no_type,
    change_attribute, change_attribute, change_attribute, change_constant, change_constant, constant_instead_of_input,
    constant_instead_of_input, change_versions, repeat_a_node, drop_something, recursive_function, nest_deeply,
)  # fmt: skip


def constant_example(r: random.Random, m: onnx.ModelProto, inputs: dict[str, Any]) -> None:
    """An input becomes a constant that holds its example, of which one element is absurd: a node that is right but for
    one size, axis, index or step. Integers first: those are sizes.
    """
    names = [i.name for i in m.graph.input if i.name in inputs]
    whole = [n for n in names if inputs[n].dtype.kind in "iu"]
    if not names:
        return
    name = r.choice(whole or names)
    a = np.array(inputs[name])
    if a.size and a.dtype.kind in "iuf":
        low, high = (np.iinfo(a.dtype).min, np.iinfo(a.dtype).max) if a.dtype.kind in "iu" else (-(1 << 63), 1 << 63)
        a.reshape(-1)[r.randrange(a.size)] = min(max(r.choice((*ABSURD, 100_000, 3, -2)), low), high)
    m.graph.initializer.append(onnx.numpy_helper.from_array(a, name))
    del m.graph.input[[i.name for i in m.graph.input].index(name)]


def mutant(index: int) -> tuple[str, bytes, dict[str, Any]]:
    """The file of one mutant, by its number alone."""
    r = random.Random(SEED * 1_000_003 + index)
    name, data, inputs = r.choice(bases())
    if r.random() < 0.25:  # bytes
        changed = bytearray(data)
        for _ in range(r.choice([1, 1, 2, 8, 64])):
            changed[r.randrange(len(changed))] = r.randrange(256)
        if r.random() < 0.2:
            del changed[r.randrange(len(changed)) :]
        return f"{name} bytes", bytes(changed), inputs
    model = onnx.ModelProto()
    model.ParseFromString(data)
    if r.random() < 0.35:
        constant_example(r, model, inputs)
        return f"{name} constant_example", model.SerializeToString(), inputs
    done = []
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        if not model.graph.node:
            break
        f = r.choice(MUTATIONS)
        f(r, model)
        done.append(f.__name__)
    return f"{name} {' '.join(done)}", model.SerializeToString(), inputs


def still_wanted(data: bytes, inputs: dict[str, Any]) -> list[Any]:
    """The inputs that the file takes, in its order. One that became a constant is left out: the model would be refused
    for the number of its inputs, and the constant never looked at. All of them where the names do not tell.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        constant = {t.name for t in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in constant]
    except Exception:
        names = [""]
    return [inputs[n] for n in names] if all(n in inputs for n in names) else list(inputs.values())


# Judging --------------------------------------------------------------------------------------------------------------


def judge(index: int, target: str) -> Result:
    """What becomes of one mutant."""
    import effc

    _, data, examples = mutant(index)
    inputs = still_wanted(data, examples)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "model"
        folder.mkdir()
        (Path(tmp) / "secret.bin").write_bytes(b"\x7fsecret!" * 4096)
        (folder / "data.bin").write_bytes(bytes(4096))
        (folder / "link.bin").symlink_to("../secret.bin")
        path = folder / "model.onnx"
        path.write_bytes(data)
        try:
            made = effc.compile(path, tuple(inputs), target=target, selftest=False)
            got = made(*inputs)
        except effc.EffcError as e:
            if e.message.startswith("internal"):
                return Result("crash", e.message)
            return Result("refused", " ".join(e.message.split())[:200])
        except Exception as e:
            return Result("crash", f"{type(e).__name__}: {e}"[:300])
        if any(_secret(g) for g in got):
            return Result("wrong", "a file outside the folder was read")
        want = expected(path, inputs)
        if want is None or draws(data):
            return Result("skip", "it ran; there is nothing to compare with")
        why = difference(got, want)
        # onnxruntime takes some fields otherwise than the standard (MaxUnpool's output_shape): the evaluator decides.
        if why and (other := by_evaluator(path, inputs)) is not None and not difference(got, other):
            why = ""
    return Result("wrong", why) if why else Result("right")


def difference(got: list[Any], want: list[Any]) -> str:
    """Why the results are not those wanted; empty if they are. Floats are held against the largest one of an output:
    the small results of a DFT are the rounding errors of the large ones.
    """
    if len(want) != len(got):
        return f"{len(got)} results, not {len(want)}"
    for g, w in zip(got, want):
        if not (isinstance(w, np.ndarray) and isinstance(g, np.ndarray)):
            continue
        if (g.dtype, g.shape) != (w.dtype, w.shape):
            return f"{g.dtype}{g.shape}, not {w.dtype}{w.shape}"
        kind = w.dtype.kind
        if kind == "f":
            b = w.astype(np.float64)
            scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
            same = np.allclose(g.astype(np.float64), b, 1e-3, 1e-4 * max(scale, 1), True)
        else:
            same = kind not in "iub" or bool((g == w).all())
        if not same:
            return "values differ"
    return ""


RANDOM = (*onnx_nodes.RANDOM, "Dropout")


def draws(data: bytes) -> bool:
    """Whether a model may draw random numbers: each engine has its own."""
    return any(name.encode() in data for name in RANDOM)


def _secret(g: Any) -> bool:
    return isinstance(g, np.ndarray) and g.nbytes >= 8 and b"\x7fsecret!" in np.ascontiguousarray(g).tobytes()


def expected(path: Path, inputs: list[Any]) -> list[Any] | None:
    """What onnxruntime makes of it; None where it refuses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return list(session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs)}))
    except Exception:
        return None


def by_evaluator(path: Path, inputs: list[Any]) -> list[Any] | None:
    """What onnx's evaluator makes of a model that the checker takes."""
    from onnx.reference import ReferenceEvaluator

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        constant = {t.name for t in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in constant]
        return [np.asarray(x) for x in ReferenceEvaluator(model).run(None, dict(zip(names, inputs)))]
    except Exception:
        return None


@dataclass(frozen=True)
class Mutants(Numbered):
    """The mutants by their numbers."""

    timeout: ClassVar[float] = 60.0

    def prepare(self, backend: str) -> None:
        """Imports what a mutant is judged with, then limits the memory that its judging may take besides."""
        import onnxruntime  # noqa: F401

        import effc.frontend.onnx  # noqa: F401

        bases()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def judge(self, index: int, backend: str) -> Result:
        r = judge(index, backend)
        return Result(r.status, r.reason, operator=mutant(index)[0])


if __name__ == "__main__":
    sys.exit(main("tests.conformance.onnx_mutants:Mutants"))
