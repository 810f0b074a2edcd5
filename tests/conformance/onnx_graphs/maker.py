"""How a random graph grows: values at two batch sizes, constants, and steps that stay where two engines agree."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper as H
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
SEED = 90_001
LARGE = 30.0  # a float value beyond it is squashed
ELEMENTS = 6000
TOLERANCE = 1e-4
F32, F64, I64, I32, BOOL = (np.dtype(t) for t in ("f4", "f8", "i8", "i4", "?"))
IR_VERSION = 8  # the newest of operator set 13's time that holds for all up to 22

UNARY = (
    "Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Erf", "Softplus", "Softsign", "Elu", "Selu", "LeakyRelu", "HardSigmoid",
    "HardSwish", "Gelu", "Mish", "Sin", "Cos", "Atan", "Identity", "Dropout", "Celu", "Exp", "Asinh", "Sinh", "Clip",
)  # fmt: skip
SINCE = {"HardSwish": 14, "Gelu": 20, "Mish": 18, "LayerNormalization": 17, "Trilu": 14, "BitwiseAnd": 18,
         "BitwiseOr": 18, "BitwiseXor": 18, "GroupNormalization": 21, "CenterCropPad": 18}  # fmt: skip
KEEPS_EXACT = {"Relu", "Neg", "Abs", "Identity", "Dropout", "Clip"}
PLAIN = ("Neg", "Abs", "Tanh", "Sigmoid", "Relu", "Identity")  # what onnxruntime has for f64


class Dropped(Exception):
    """The step has no form for the values at hand, or the engines do not agree on it."""


@dataclass(eq=False)
class Val:
    """A value of the graph: what it is at each of the two batch sizes."""

    name: str
    arrays: tuple[Array, Array]
    exact: bool  # every engine gives the same bits

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype  # type: ignore[no-any-return]

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim

    @property
    def dims(self) -> list[tuple[int, int]]:
        return list(zip(self.arrays[0].shape, self.arrays[1].shape, strict=True))

    def static(self, d: int) -> int | None:
        a, b = self.dims[d]
        return a if a == b else None

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"


def broadcast(a: Val, b: Val) -> bool:
    """Whether shapes broadcast at every batch size, not only where the batch happens to be 1 or another dim's size."""
    pairs = zip(reversed(a.dims), reversed(b.dims))
    return all(p == q or p == (1, 1) or q == (1, 1) for p, q in pairs)


class Maker:
    """Builds one graph. Every method named ``step_...`` adds one operator or idiom."""

    def __init__(self, index: int) -> None:
        self.r = random.Random(SEED * 1_000_003 + index)
        self.rng = np.random.default_rng([SEED, index])
        self.opset = self.r.choice(range(13, 23))
        self.sizes = self.r.choice([(2, 5), (3, 7), (1, 4), (4, 1), (2, 3), (6, 2)])
        self.values: list[Val] = []
        self.inputs: list[Val] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.pending: list[onnx.NodeProto] = []
        self.fresh: list[str] = []
        self.used: set[str] = set()
        self.counter = 0
        for _ in range(self.r.randint(1, 3)):
            self._input()

    # parts ------------------------------------------------------------------------------------------------------------

    def _input(self) -> None:
        k = len(self.inputs)
        shape: tuple[Any, ...] = self.r.choice([
            *(("N", 3, 8, 6), ("N", 4, 10)) * 3,
            ("N", 6), ("N", 5, 4), (2, "N", 3), ("N",), ("N", 1, 5), ("N", 8), (4, 6),
        ])  # fmt: skip
        if k == 0 and "N" not in shape:
            shape = ("N", 6)
        dtype = self.r.choice([F32, F32, F32, F32, I64, I32, BOOL] if k else [F32])
        arrays = []
        for n in self.sizes:
            sizes = [n if d == "N" else d for d in shape]
            if dtype == F32:
                arrays.append(self.rng.uniform(-2, 2, sizes).astype(F32))
            elif dtype == BOOL:
                arrays.append(self.rng.random(sizes) < 0.5)
            else:
                arrays.append(self.rng.integers(-20, 21, sizes).astype(dtype))
        v = Val(f"x{k}", (arrays[0], arrays[1]), True)
        self.inputs.append(v)
        self.values.append(v)
        self.shapes = [*getattr(self, "shapes", []), shape]

    def name(self) -> str:
        self.counter += 1
        return f"v{self.counter}"

    def const(self, x: Any, dtype: Any = F32) -> str:
        """The name of a constant: an initializer, sometimes a Constant node."""
        a = np.asarray(x, dtype)
        name = self.name()
        if self.r.random() < 0.3:
            self.pending.append(H.make_node("Constant", [], [name], value=numpy_helper.from_array(a)))
        else:
            self.constants[name] = a
        return name

    def weights(self, *shape: int) -> str:
        return self.const(self.rng.uniform(-0.5, 0.5, shape).astype(F32))

    def node(self, op: str, *inputs: Val | str, results: int = 1, **attrs: Any) -> Any:
        if SINCE.get(op, 0) > self.opset:
            raise Dropped
        outs = [self.name() for _ in range(results)]
        names = [i.name if isinstance(i, Val) else i for i in inputs]
        self.pending.append(H.make_node(op, names, outs, **attrs))
        return outs[0] if results == 1 else outs

    def pick(self, test: Callable[[Val], bool] = lambda v: True) -> Val:
        found = [v for v in self.values if test(v)]
        if not found:
            raise Dropped
        # the latest ones more often: graphs get deep
        return self.r.choice(found[-4:] if self.r.random() < 0.6 else found)

    def a_float(self, rank: int = 0, exact: bool = False, f32: bool = True) -> Val:
        return self.pick(
            lambda v: (v.dtype == F32 if f32 else v.is_float) and v.rank >= rank and (v.exact or not exact)
        )

    def mate(self, x: Val) -> Val | str:
        """An operand that broadcasts against x: a value of its dtype, or a constant."""
        if self.r.random() < 0.6:
            return self.pick(lambda v: v.dtype == x.dtype and broadcast(v, x))
        shape = [d[0] if d[0] == d[1] and self.r.random() < 0.6 else 1 for d in x.dims]
        shape = shape[self.r.randint(0, len(shape)) :]
        if x.is_float:
            return self.const(self.rng.uniform(-2, 2, shape), x.dtype)
        if x.dtype == BOOL:
            return self.const(self.rng.random(shape) < 0.5, BOOL)
        return self.const(self.rng.integers(-9, 10, shape), x.dtype)

    def axis(self, x: Val, low: int = 0) -> int:
        if x.rank <= low:
            raise Dropped
        a = self.r.randrange(low, x.rank)
        return a - x.rank if self.r.random() < 0.4 else a

    def exact_of(self, *xs: Val | str) -> bool:
        return all(not isinstance(x, Val) or x.exact for x in xs)

    def unsqueezed(self, x: Val | str) -> Any:
        return self.node("Unsqueeze", x, self.const([0], I64))

    def size_of(self, x: Val, d: int, rank: int = 1) -> str:
        """The size of a dim as a tensor, by one of the ways that exporters write."""
        if self.opset >= 15 and self.r.random() < 0.3:
            one = self.node("Shape", x, start=d, end=d + 1)
            return one if rank == 1 else self.node("Squeeze", one, self.const([0], I64))  # type: ignore[no-any-return]
        shape = self.node("Shape", x)
        if rank == 1 and self.r.random() < 0.4:
            return self.node("Slice", shape, self.const([d], I64), self.const([d + 1], I64))  # type: ignore[no-any-return]
        one = self.node("Gather", shape, self.const(d, I64))
        return self.unsqueezed(one) if rank == 1 else one  # type: ignore[no-any-return]

    # growing ----------------------------------------------------------------------------------------------------------

    def grow(self) -> None:
        steps = [getattr(self, n) for n in sorted(dir(self)) if n.startswith("step_")]
        often = dict.fromkeys(("matmul", "reduce", "compare", "slice", "integer", "norm"), 2)
        often.update(unary=3, binary=4, reshape=3, where=3, conv=5, pool=4)
        weights = [often.get(s.__name__.removeprefix("step_"), 1) for s in steps]
        wanted = self.r.randint(3, 25)
        for _ in range(200):
            if len(self.nodes) >= wanted:
                return
            constants = dict(self.constants)
            self.pending = []
            try:
                made = self.r.choices(steps, weights)[0]()
                if len(self.nodes) + len(self.pending) > 25:
                    raise Dropped
                self._take(made if isinstance(made, list) else [made])
            except Dropped:
                self.constants = constants

    def _take(self, made: list[tuple[str, bool]]) -> None:
        """Runs the step on both engines, and keeps it if they agree and its values are fit for going on."""
        nodes, names = self.pending, [m[0] for m in made]
        used = {i for n in nodes for i in [*n.input, *_captured(n)]}
        feeds = [v for v in self.values if v.name in used]
        results = self._both(nodes, names, feeds)
        for k, name in enumerate(names):
            pair = (results[0][k], results[1][k])
            if any(a.size > ELEMENTS for a in pair) or pair[0].ndim > 5 or pair[0].ndim != pair[1].ndim:
                raise Dropped
            if pair[0].dtype not in (F32, F64, I64, I32, BOOL):
                raise Dropped
            if pair[0].dtype.kind == "f" and any(not np.isfinite(a).all() for a in pair):
                raise Dropped
            if pair[0].dtype.kind == "i" and any(a.size and np.abs(a).max() > 1 << 20 for a in pair):
                raise Dropped
            if pair[0].dtype.kind == "f" and any(a.size and np.abs(a).max() > LARGE for a in pair):
                if len(names) > 1:
                    raise Dropped
                names[k] = self.node("Tanh", name)
                results = self._both(nodes, names, feeds)
                pair, made = (results[0][k], results[1][k]), [(names[k], False)]
            self.values.append(Val(names[k], pair, made[k][1]))
        self.nodes += nodes
        self.used |= used

    def _both(self, nodes: list[onnx.NodeProto], names: list[str], feeds: list[Val]) -> list[list[Array]]:
        infos = [H.make_tensor_value_info(v.name, H.np_dtype_to_tensor_dtype(v.dtype), [None] * v.rank) for v in feeds]
        part = self._model(nodes, infos, names)
        inputs = [{v.name: v.arrays[k] for v in feeds} for k in range(2)]
        found = agreed(part, inputs, 1e-5)
        if found is None:
            raise Dropped
        return found

    def _model(self, nodes: list[onnx.NodeProto], infos: list[Any], outputs: Sequence[str]) -> onnx.ModelProto:
        used = {i for n in nodes for i in [*n.input, *_captured(n)]}
        graph = H.make_graph(
            nodes, "random", infos, [H.make_empty_tensor_value_info(o) for o in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used],
        )  # fmt: skip
        return H.make_model(graph, opset_imports=[H.make_opsetid("", self.opset)], ir_version=IR_VERSION)

    def model(self) -> onnx.ModelProto:
        """The whole: its outputs are the values that nothing uses, and one that something does."""
        computed = [v for v in self.values if v not in self.inputs]
        outputs = [v for v in computed if v.name not in self.used][-6:]
        more = [v for v in computed if v.name in self.used]
        if more:
            outputs.append(self.r.choice(more))
        infos = [
            H.make_tensor_value_info(
                v.name, H.np_dtype_to_tensor_dtype(v.dtype), ["batch" if d == "N" else d for d in s]
            )
            for v, s in zip(self.inputs, self.shapes, strict=True)
        ]
        made = self._model(self.nodes, infos, [])
        made.graph.output.extend(
            H.make_tensor_value_info(v.name, H.np_dtype_to_tensor_dtype(v.dtype), [None] * v.rank) for v in outputs
        )
        return made


def _captured(n: onnx.NodeProto) -> list[str]:
    """Names that a node's graphs use, their own ones among them."""
    return [i for a in n.attribute if a.HasField("g") for m in a.g.node for i in m.input]


def agreed(model: onnx.ModelProto, inputs: list[dict[str, Array]], tolerance: float) -> list[list[Array]] | None:
    """The results on which onnx's evaluator and onnxruntime agree, for each of the inputs; None where they do not."""
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        evaluator = ReferenceEvaluator(model)
        out = []
        for feed in inputs:
            a, b = session.run(None, feed), [np.asarray(x) for x in evaluator.run(None, feed)]
            if any(difference(x, y, tolerance) for x, y in zip(a, b, strict=True)):
                return None
            out.append(list(a))
        return out
    except Exception:  # neither engine has exceptions of one kind for what it does not run
        return None


def difference(got: Any, want: Array, tolerance: float) -> str:
    """Why ``got`` is not ``want``; empty if it is. A float result of rounding errors alone is held against 0.01."""
    got = np.asarray(got)
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    if want.dtype.kind != "f":
        return "" if bool((got == want).all()) else f"{int((got != want).sum())} of {want.size} values differ"
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return "infinities or NaNs differ"
    if not finite.any():
        return ""
    error = float(np.abs(a[finite] - b[finite]).max() / max(float(np.abs(b[finite]).max()), 0.01))
    return "" if error <= tolerance else f"values differ by {error:.1e}"
