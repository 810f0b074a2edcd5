"""Random valid ONNX graphs: effc compiles each once and must be right at two batch sizes.

    python tests/conformance/onnx_random.py --count 1000 --target cpu --json build/random.json

A graph has 3 to 25 nodes of operator sets 13 to 22 over a batch size with a name, and follows from its number alone. It
grows step by step (an operator or a small idiom of several); a step stays only where onnx's evaluator and onnxruntime,
without optimisations, both run it and agree at both sizes, so that what is left is a model on which two engines agree.
No rounded float decides a comparison, a rounding or an index (``exact`` values do), and large values are squashed, so
that a difference is a defect and no amplified rounding. Status: ``right``, ``refused`` (an EffcError), the defects
``wrong``, ``crash`` and ``hang``, and ``uncounted``, where the engines disagree on the whole or the checker refuses it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper as H
from onnx import numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, ROOT]

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

    # steps: each returns (result name, exact) or a list of them -------------------------------------------------------

    def step_unary(self) -> Any:
        x = self.a_float(f32=False)
        op = self.r.choice(UNARY if x.dtype == F32 else PLAIN)
        attrs: dict[str, Any] = {}
        extra: list[str] = []
        if op in ("LeakyRelu", "Elu", "Celu"):
            attrs = {"alpha": self.r.choice([0.1, 0.5, 1.0])}
        if op == "Gelu":
            attrs = {"approximate": self.r.choice(["none", "tanh"])}
        if op == "Clip":
            extra = [self.r.choice(["", self.const(-0.7)]), self.const(0.9)]
        if op in ("Exp", "Sinh") and any(a.size and np.abs(a).max() > 3 for a in x.arrays):
            x = Val(self.node("Tanh", x), x.arrays, False)
        return self.node(op, x, *extra, **attrs), x.exact and op in KEEPS_EXACT

    def step_careful_unary(self) -> Any:
        x = self.a_float()
        safe = self.node("Add", self.node("Abs", x), self.const(1.0))
        return self.node(self.r.choice(["Reciprocal", "Log", "Sqrt"]), safe), False

    def step_rounding(self) -> Any:
        x = self.a_float(exact=True)
        return self.node(self.r.choice(["Floor", "Ceil", "Round", "Sign"]), x), True

    def step_binary(self) -> Any:
        x = self.a_float(f32=False)
        y = self.mate(x)
        op = self.r.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "PRelu", "Pow"])
        if op == "PRelu":
            if x.rank == 0:
                raise Dropped
            n = x.static(x.rank - 1)
            return self.node("PRelu", x, self.weights(*([n] if n and self.r.random() < 0.5 else [1]))), False
        if op == "Pow":
            base = self.node("Add", self.node("Abs", x), self.const(0.5, x.dtype))
            return self.node("Pow", base, self.const(self.r.choice([2.0, 0.5, 1.5, -1.0]), x.dtype)), False
        if op == "Div":
            y = self.node("Add", self.node("Abs", y), self.const(1.0, x.dtype))
        elif self.r.random() < 0.5:
            return self.node(op, y, x), op in ("Max", "Min") and self.exact_of(x, y)
        return self.node(op, x, y), op in ("Max", "Min") and self.exact_of(x, y)

    def an_int(self, rank: int = 0) -> Val:
        return self.pick(lambda v: v.dtype in (I64, I32) and v.rank >= rank)

    def step_integer(self) -> Any:
        x = self.an_int()
        y = self.mate(x)
        op = self.r.choice(["Add", "Sub", "Mul", "Max", "Min", "Div", "Mod", "Abs", "Neg", "BitwiseAnd", "BitwiseXor"])
        if op in ("Abs", "Neg"):
            return self.node(op, x), True
        if op in ("Div", "Mod"):
            seven = self.node("Mod", self.node("Abs", y), self.const(7, x.dtype))
            y = self.node("Add", seven, self.const(1, x.dtype))
            attrs: dict[str, Any] = {"fmod": 1} if op == "Mod" and self.r.random() < 0.3 else {}
            # onnxruntime divides integers towards zero, numpy down: only where they are the same
            return self.node(op, self.node("Abs", x) if op == "Div" else x, y, **attrs), True
        out = self.node(op, x, y)
        return (self.node("Mod", out, self.const(1009, x.dtype)) if op == "Mul" else out), True

    def step_compare(self) -> Any:
        x = self.pick(lambda v: v.exact and v.dtype != BOOL)
        y = self.mate(x)
        if not self.exact_of(y):
            raise Dropped
        return self.node(self.r.choice(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]), x, y), True

    def step_logic(self) -> Any:
        x = self.pick(lambda v: v.dtype == BOOL)
        op = self.r.choice(["And", "Or", "Xor", "Not"])
        return (self.node("Not", x) if op == "Not" else self.node(op, x, self.mate(x))), True

    def step_where(self) -> Any:
        x = self.pick(lambda v: v.is_float or v.dtype == I64)
        y = self.mate(x)
        found = [v for v in self.values if v.dtype == BOOL and broadcast(v, x)]
        exact = [v for v in self.values if v.dtype != BOOL and v.exact and broadcast(v, x)]
        if not found and not exact:
            raise Dropped
        c: Any = self.r.choice(found or exact)
        if not found:
            c = self.node("Greater", c, self.const(0, c.dtype))
        return self.node("Where", c, *([x, y] if self.r.random() < 0.5 else [y, x])), self.exact_of(x, y)

    def step_cast(self) -> Any:
        x = self.pick()
        to = self.r.choice([F32, F32, F64, I64, I32, BOOL])
        if x.is_float and to.kind != "f" and not x.exact:
            raise Dropped
        if self.opset >= 15 and self.r.random() < 0.2:
            return self.node("CastLike", x, self.const(0, to)), x.exact
        return self.node("Cast", x, to=H.np_dtype_to_tensor_dtype(to)), x.exact

    def step_reduce(self) -> Any:
        x = self.pick(lambda v: (v.is_float or v.dtype in (I64, I32)) and v.rank > 0)
        kinds = ["Sum", "Max", "Min"] if not x.is_float else ["Sum", "Mean", "Max", "Min"]
        if x.dtype == F32:
            kinds += ["L1", "L2", "SumSquare", "LogSumExp", "Prod"]
        kind = self.r.choice(kinds)
        axes = sorted({self.axis(x) % x.rank for _ in range(self.r.randint(1, x.rank))})
        axes = [a - x.rank if self.r.random() < 0.3 else a for a in axes]
        attrs: dict[str, Any] = {"keepdims": self.r.randint(0, 1)}
        none = self.r.random() < 0.15
        exact = x.exact and (not x.is_float or kind in ("Max", "Min"))
        if self.opset >= 18 or kind == "Sum":
            if none and self.r.random() < 0.5:
                return self.node(f"Reduce{kind}", x, noop_with_empty_axes=1, **attrs), exact
            return self.node(f"Reduce{kind}", x, *([] if none else [self.const(axes, I64)]), **attrs), exact
        if not none:
            attrs["axes"] = axes
        return self.node(f"Reduce{kind}", x, **attrs), exact

    def step_softmax(self) -> Any:
        x = self.a_float(1)
        return self.node(self.r.choice(["Softmax", "Softmax", "LogSoftmax"]), x, axis=self.axis(x)), False

    def step_norm(self) -> Any:
        op = self.r.choice(["LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"])
        if op == "LayerNormalization":
            x = self.pick(lambda v: v.dtype == F32 and v.rank >= 2 and v.static(v.rank - 1) is not None)
            n = x.dims[-1][0]
            return self.node(op, x, self.weights(n), *([self.weights(n)] if self.r.random() < 0.7 else []),
                             axis=-1, epsilon=0.01), False  # fmt: skip
        x = self.pick(lambda v: v.dtype == F32 and v.rank >= 2 and v.static(1) is not None)
        c = x.dims[1][0]
        if op == "BatchNormalization":
            var = self.const(self.rng.uniform(0.5, 2, c))
            return self.node(op, x, self.weights(c), self.weights(c), self.weights(c), var), False
        if x.rank < 3:
            raise Dropped
        if op == "GroupNormalization":
            groups = self.r.choice([g for g in (1, 2, 3, 4) if c % g == 0])
            return self.node(op, x, self.weights(c), self.weights(c), num_groups=groups, epsilon=0.01), False
        return self.node(op, x, self.weights(c), self.weights(c), epsilon=0.01), False

    def step_matmul(self) -> Any:
        x = self.a_float(1)
        kind = self.r.choice(["weight", "weight", "self", "gemm", "einsum"])
        last = x.static(x.rank - 1)
        if kind == "self" and x.rank >= 2:
            order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
            return self.node("MatMul", x, self.node("Transpose", x, perm=order)), False
        if not last:
            raise Dropped
        n = self.r.choice([1, 4, 7])
        if kind == "einsum" and x.rank == 3:
            return self.node("Einsum", x, self.weights(n, last), equation="bij,kj->bik"), False
        if kind == "gemm" and x.rank == 2:
            t = self.r.randint(0, 1)
            w = self.weights(*((n, last) if t else (last, n)))
            c = [self.weights(*self.r.choice([(n,), (1, n), (1,), ()]))] if self.r.random() < 0.7 else []
            return self.node("Gemm", x, w, *c, transB=t, alpha=self.r.choice([1.0, 0.5]),
                             beta=self.r.choice([1.0, 2.0])), False  # fmt: skip
        return self.node("MatMul", x, self.weights(*((last, n) if self.r.random() < 0.9 else (last,)))), False

    def _window(self, x: Val) -> dict[str, Any]:
        n = x.rank - 2
        kernel = [self.r.randint(1, 3) for _ in range(n)]
        attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": [self.r.randint(1, 2) for _ in range(n)]}
        how = self.r.random()
        if how < 0.5:
            attrs["pads"] = [self.r.randint(0, k - 1) for k in [*kernel, *kernel]]
        elif how < 0.7:
            attrs["auto_pad"] = self.r.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        return attrs

    def an_image(self) -> Val:
        """N, C and spatial sizes that no window is larger than."""

        def fits(v: Val) -> bool:
            return v.dtype == F32 and v.rank in (3, 4) and bool(v.static(1)) and all(min(d) >= 3 for d in v.dims[2:])

        return self.pick(lambda v: fits(v) and v.arrays[0].size < 2000)

    def step_conv(self) -> Any:
        x = self.an_image()
        c = x.dims[1][0]
        attrs = self._window(x)
        bias = self.r.random() < 0.6
        if self.r.random() < 0.25:
            attrs.pop("auto_pad", None)
            n = self.r.randint(1, 4)
            w = self.weights(c, n, *attrs["kernel_shape"])
            return self.node("ConvTranspose", x, w, *([self.weights(n)] if bias else []), **attrs), False
        group = self.r.choice([1, 1, c])
        n = group * self.r.randint(1, 3)
        if self.r.random() < 0.3 and "auto_pad" not in attrs:
            attrs["dilations"] = [self.r.randint(1, 2) for _ in attrs["strides"]]
        w = self.weights(n, c // group, *attrs["kernel_shape"])
        return self.node("Conv", x, w, *([self.weights(n)] if bias else []), group=group, **attrs), False

    def step_pool(self) -> Any:
        x = self.an_image()
        op = self.r.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
        if op.startswith("Global"):
            return self.node(op, x), x.exact and op == "GlobalMaxPool"
        attrs = self._window(x)
        if op == "AveragePool" and "pads" in attrs:
            attrs["count_include_pad"] = self.r.randint(0, 1)
        if op == "LpPool":
            attrs["p"] = self.r.choice([1, 2])
        elif self.r.random() < 0.3 and "auto_pad" not in attrs:
            attrs["ceil_mode"] = 1
        return self.node(op, x, **attrs), x.exact and op == "MaxPool"

    def step_reshape(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        kind = self.r.choice(["merge", "split", "minus", "flatten", "shape", "product", "swap"])
        if kind == "flatten":
            return self.node("Flatten", x, axis=self.r.randint(-x.rank, x.rank)), x.exact
        if kind == "minus":
            return self.node("Reshape", x, self.const([-1], I64)), x.exact
        if kind == "merge" and x.rank >= 2:
            i = self.r.randrange(x.rank - 1)
            # 0 keeps a size: what comes after the merged dims must be static
            rest = [x.static(d) for d in range(i + 2, x.rank)]
            if None in rest or 0 in rest:
                raise Dropped
            return self.node("Reshape", x, self.const([*[0] * i, -1, *rest], I64)), x.exact
        if kind == "split":
            i = self.r.randrange(x.rank)
            n = x.static(i)
            rest = [x.static(d) for d in range(i + 1, x.rank)]
            if not n or None in rest or 0 in rest:
                raise Dropped
            k = self.r.choice([k for k in (1, 2, 3, 5, n) if n % k == 0])
            return self.node("Reshape", x, self.const([*[0] * i, k, n // k, *rest], I64)), x.exact
        if kind == "shape":  # [size of dim 0, -1]
            parts = [self.size_of(x, 0), self.const([-1], I64)]
            return self.node("Reshape", x, self.node("Concat", *parts, axis=0)), x.exact
        if kind == "product" and x.rank >= 2:  # [d0*d1, rest...]
            first = self.node("Mul", self.size_of(x, 0), self.size_of(x, 1))
            parts = [first, *(self.size_of(x, d) for d in range(2, x.rank))]
            return self.node("Reshape", x, self.node("Concat", *parts, axis=0)), x.exact
        if kind == "swap" and x.rank >= 2:  # the sizes of another order of the dims
            order = self.r.sample(range(x.rank), x.rank)
            return self.node("Reshape", x, self.node("Gather", self.node("Shape", x), self.const(order, I64))), x.exact
        raise Dropped

    def step_transpose(self) -> Any:
        x = self.pick(lambda v: v.rank > 1)
        attrs: dict[str, Any] = {} if self.r.random() < 0.2 else {"perm": self.r.sample(range(x.rank), x.rank)}
        return self.node("Transpose", x, **attrs), x.exact

    def step_unsqueeze(self) -> Any:
        x = self.pick()
        ones = [d for d, s in enumerate(x.dims) if s == (1, 1)]
        if ones and self.r.random() < 0.5:
            if self.r.random() < 0.2 and all(1 not in s for s in x.dims if s != (1, 1)):
                return self.node("Squeeze", x), x.exact
            d = self.r.choice(ones)
            return self.node("Squeeze", x, self.const([self.r.choice([d, d - x.rank])], I64)), x.exact
        if x.rank > 4:
            raise Dropped
        return self.node("Unsqueeze", x, self.const([self.r.randint(-x.rank - 1, x.rank)], I64)), x.exact

    def step_concat(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        a = self.axis(x)
        d = a % x.rank

        def fits(v: Val) -> bool:
            return v.dtype == x.dtype and v.rank == x.rank and all(
                p == q for k, (p, q) in enumerate(zip(v.dims, x.dims)) if k != d
            )  # fmt: skip

        xs = [x, *(self.pick(fits) for _ in range(self.r.randint(1, 2)))]
        return self.node("Concat", *xs, axis=a), self.exact_of(*xs)

    def step_split(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        a = self.axis(x)
        n = x.static(a)
        if n is None or n < 2:
            raise Dropped
        k = self.r.randint(1, n - 1)
        if self.r.random() < 0.5 or n % 2:
            outs = self.node("Split", x, self.const([k, n - k], I64), results=2, axis=a)
        else:
            attrs = {"num_outputs": 2} if self.opset >= 18 else {}
            outs = self.node("Split", x, results=2, axis=a, **attrs)
        return [(o, x.exact) for o in outs]

    def step_slice(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        axes = self.r.sample(range(x.rank), self.r.randint(1, x.rank))
        far = self.r.choice([1 << 31, (1 << 63) - 1, (1 << 31) - 1, 1000])
        starts, ends, steps = [], [], []
        for _ in axes:
            step = self.r.choice([1, 1, 1, 2, -1, -2])
            if step > 0:
                starts.append(self.r.choice([0, 0, 1, -2, -3]))
                ends.append(self.r.choice([far, far, 2, 3, -1]))
            else:
                starts.append(self.r.choice([-1, -1, far, 2]))
                ends.append(self.r.choice([-far, -far, 0, -4]))
            steps.append(step)
        named = [a - x.rank if self.r.random() < 0.3 else a for a in axes]
        ins = [self.const(v, I64) for v in (starts, ends, named)]
        if any(s != 1 for s in steps):
            ins.append(self.const(steps, I64))
        return self.node("Slice", x, *ins), x.exact

    def step_late_slice(self) -> Any:
        """Ends that are arithmetic on sizes."""
        x = self.pick(lambda v: v.rank > 0)
        d = self.r.randrange(x.rank)
        size = self.size_of(x, d)
        how = self.r.choice(["Div", "Sub", "Add"])
        end = self.node(how, size, self.const([{"Div": 2, "Sub": 1, "Add": 3}[how]], I64))
        if self.r.random() < 0.3:
            return self.node("Slice", x, end, self.const([1 << 40], I64), self.const([d], I64)), x.exact
        return self.node("Slice", x, self.const([0], I64), end, self.const([d], I64)), x.exact

    def step_pad(self) -> Any:
        x = self.pick(lambda v: v.rank > 0 and v.dtype in (F32, I64))
        mode = self.r.choice(["constant", "constant", "edge", "reflect"])
        if mode == "reflect" and any(min(d) < 3 for d in x.dims):
            raise Dropped
        pads = [self.r.choice([0, 0, 1, 2]) for _ in range(2 * x.rank)]
        extra: list[str] = []
        if mode == "constant" and self.r.random() < 0.5:
            extra = [self.const(2, x.dtype)]
        if self.opset >= 18 and self.r.random() < 0.3:
            d = self.r.randrange(-x.rank, x.rank)
            return self.node("Pad", x, self.const([1, 2], I64), extra[0] if extra else "", self.const([d], I64),
                             mode=mode), x.exact  # fmt: skip
        return self.node("Pad", x, self.const(pads, I64), *extra, mode=mode), x.exact

    def step_expand(self) -> Any:
        x = self.pick(lambda v: v.rank < 4)
        if self.r.random() < 0.5:
            y = self.pick(lambda v: v.rank > 0 and broadcast(v, x))
            return self.node("Expand", x, self.node("Shape", y)), x.exact
        shape = [self.r.choice([1, 2, 3]) if s == (1, 1) else 1 for s in x.dims]
        return self.node("Expand", x, self.const([*([2] if self.r.random() < 0.5 else []), *shape], I64)), x.exact

    def step_tile(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        return self.node("Tile", x, self.const([self.r.choice([1, 1, 2, 3]) for _ in x.dims], I64)), x.exact

    def step_gather(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        a = self.axis(x)
        n = min(x.dims[a])
        if n == 0:
            raise Dropped
        if self.r.random() < 0.3:  # by an index that is computed
            i = self.an_int()
            size = self.size_of(x, a % x.rank, 0)
            at = self.node("Mod", self.node("Cast", i, to=onnx.TensorProto.INT64), size)
            return self.node("Gather", x, at, axis=a), x.exact
        shape = self.r.choice([(), (2,), (1, 3)])
        return self.node("Gather", x, self.const(self.rng.integers(-n, n, shape), self.r.choice([I64, I32])),
                         axis=a), x.exact  # fmt: skip

    def step_scatter(self) -> Any:
        x = self.pick(lambda v: v.rank > 0 and v.dtype in (F32, I64) and all(a == b and a > 0 for a, b in v.dims))
        a = self.axis(x)
        shape = [self.r.randint(1, d[0]) for d in x.dims]
        n = x.dims[a][0]
        at = np.argsort(self.rng.random([*shape[: a % x.rank], *shape[a % x.rank + 1 :], n]))
        at = np.moveaxis(at[..., : shape[a]], -1, a % x.rank) - (n if self.r.random() < 0.2 else 0)
        src = self.const(self.rng.integers(-3, 4, shape), x.dtype)
        attrs: dict[str, Any] = {}
        if self.opset >= 16 and self.r.random() < 0.5:
            attrs = {"reduction": self.r.choice(["add", "mul", *(["max", "min"] if self.opset >= 18 else [])])}
        return self.node("ScatterElements", x, self.const(at, I64), src, axis=a, **attrs), x.exact and not attrs

    def step_gather_nd(self) -> Any:
        x = self.pick(lambda v: v.rank > 0 and all(min(d) > 0 for d in v.dims))
        k = self.r.randint(1, x.rank)
        rows = self.r.randint(1, 3)
        at = np.stack([self.rng.integers(-min(d), min(d), rows) for d in x.dims[:k]], -1)
        return self.node("GatherND", x, self.const(at, I64)), x.exact

    def step_gather_elements(self) -> Any:
        x = self.pick(lambda v: v.rank > 0 and all(min(d) > 0 for d in v.dims))
        a = self.axis(x)
        if any(p != q for k, (p, q) in enumerate(x.dims) if k != a % x.rank):
            raise Dropped
        shape = [self.r.randint(1, min(d)) if k == a % x.rank else d[0] for k, d in enumerate(x.dims)]
        n = min(x.dims[a])
        return self.node("GatherElements", x, self.const(self.rng.integers(-n, n, shape), I64), axis=a), x.exact

    def step_topk(self) -> Any:
        x = self.pick(lambda v: v.exact and v.dtype in (F32, I64) and v.rank > 0)
        a = self.axis(x)
        n = min(x.dims[a])
        if n == 0 or any(len(np.unique(r)) < r.size for y in x.arrays for r in np.moveaxis(y, a, -1).reshape(
            -1, y.shape[a]
        )):  # which of equal elements comes first, engines do not agree on  # fmt: skip
            raise Dropped
        if self.r.random() < 0.2:
            k = self.size_of(x, a % x.rank)
        else:
            k = self.const([self.r.randint(1, n)], I64)
        outs = self.node("TopK", x, k, results=2, axis=a, largest=self.r.randint(0, 1))
        return [(o, True) for o in outs]

    def step_arg(self) -> Any:
        x = self.pick(lambda v: v.exact and v.dtype in (F32, I32) and v.rank > 0)
        return self.node(self.r.choice(["ArgMax", "ArgMin"]), x, axis=self.axis(x), keepdims=self.r.randint(0, 1),
                         select_last_index=self.r.randint(0, 1)), True  # fmt: skip

    def step_cumsum(self) -> Any:
        x = self.pick(lambda v: v.dtype in (F32, I64) and v.rank > 0)
        a = self.const(self.axis(x), I64)
        return self.node("CumSum", x, a, exclusive=self.r.randint(0, 1), reverse=self.r.randint(0, 1)), not x.is_float

    def step_range(self) -> Any:
        """Positions: 0 .. size - 1, added to what they count."""
        x = self.pick(lambda v: v.dtype == F32 and v.rank > 0)
        n = self.size_of(x, x.rank - 1, 0)
        at = self.node("Range", self.const(0, I64), n, self.const(1, I64))
        return self.node("Add", x, self.node("Cast", at, to=onnx.TensorProto.FLOAT)), False

    def step_fill(self) -> Any:
        x = self.pick(lambda v: v.rank > 0)
        kind = self.r.choice(["full", "size", "eye", "onehot", "trilu"])
        if kind == "size":
            n = self.node("Cast", self.node("Size", x), to=onnx.TensorProto.FLOAT)
            return self.node("Div", n, self.const(64.0)), True
        if kind == "eye" and x.rank == 2:
            return self.node("EyeLike", x, dtype=onnx.TensorProto.FLOAT, k=self.r.randint(-1, 1)), True
        if kind == "onehot":
            i = self.pick(lambda v: v.dtype == I64 and v.rank < 4)
            at = self.node("Mod", i, self.const(5, I64))
            return self.node(
                "OneHot", at, self.const([5], I64), self.const([0.0, 1.0]), axis=self.r.choice([-1, 0])
            ), True
        if kind == "trilu" and x.rank >= 2 and x.dtype in (F32, I64):
            return self.node("Trilu", x, self.const(self.r.randint(-1, 1), I64), upper=self.r.randint(0, 1)), x.exact
        value = numpy_helper.from_array(np.array([1.5], F32))
        return self.node("ConstantOfShape", self.node("Shape", x), value=value), True

    def step_qdq(self) -> Any:
        x = self.a_float(1, exact=True)
        dtype = self.r.choice([np.dtype("i1"), np.dtype("u1")])
        point = 3 if dtype.kind == "i" else 128
        d = self.r.randrange(x.rank)
        n = x.static(d)
        if n and self.r.random() < 0.4:
            scale, zero = self.const(self.rng.uniform(0.02, 0.1, n)), self.const(np.full(n, point), dtype)
        else:
            d, scale, zero = 1, self.const(self.r.choice([0.03, 0.0625, 0.1])), self.const(point, dtype)
            if x.rank < 2:
                raise Dropped
        q = self.node("QuantizeLinear", x, scale, zero, axis=d)
        return self.node("DequantizeLinear", q, scale, zero, axis=d), True

    def step_if(self) -> Any:
        """A condition that depends on data; both branches see outer values."""
        x = self.a_float()
        c = self.pick(lambda v: v.exact and v.dtype in (I64, BOOL))
        number = self.node("Cast", c, to=onnx.TensorProto.INT64) if c.dtype == BOOL else c.name
        total = self.node("ReduceSum", number, keepdims=0)
        condition = self.node("Greater", total, self.const(self.r.randint(-5, 10), I64))
        before, self.pending = self.pending, []
        graphs = []
        for _ in range(2):
            y: Any = x
            for _ in range(self.r.randint(1, 2)):
                y = self.node(self.r.choice(["Tanh", "Neg", "Sigmoid", "Abs"]), y)
            out = self.node("Add", y, x)
            info = H.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)
            graphs.append(H.make_graph(self.pending, f"g{self.counter}", [], [info]))
            self.pending = []
        self.pending = before
        return self.node("If", condition, then_branch=graphs[0], else_branch=graphs[1]), False

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


def generate(index: int) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """A model by its number, and its inputs at two batch sizes."""
    m = Maker(index)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        m.grow()
    return m.model(), [{v.name: v.arrays[k] for v in m.inputs} for k in range(2)]


# Judging --------------------------------------------------------------------------------------------------------------


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


def judge(index: int, target: str) -> tuple[str, str]:
    import effc

    model, inputs = generate(index)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as e:
        # its shape inference counts the windows of ceil_mode otherwise than both engines do
        return "uncounted", " ".join(str(e).split())[:300]
    want = agreed(model, inputs, TOLERANCE)
    if want is None:
        return "uncounted", ""
    try:
        made = effc.compile(model, target=target, selftest=False)
        for k, (feed, expected) in enumerate(zip(inputs, want, strict=True)):
            got = made(**feed)
            if len(got) != len(expected):
                return "wrong", f"{len(got)} results, not {len(expected)}"
            for o, g, w in zip(model.graph.output, got, expected, strict=True):
                if why := difference(g, w, TOLERANCE):
                    return "wrong", f"{o.name} at the {('first', 'second')[k]} size: {why}"
    except effc.EffcError as e:
        return ("crash" if e.message.startswith("internal") else "refused"), " ".join(str(e).split())[:300]
    except Exception as e:
        return "crash", f"{type(e).__name__}: {e}"[:300]
    return "right", ""


def serve_worker() -> None:
    import worker_pool

    warnings.filterwarnings("ignore")
    np.seterr(all="ignore")

    def run(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        for k, index in enumerate(request["graphs"]):
            if k < request.get("start", 0):
                continue
            say({"begin": k})
            status, reason = judge(index, request["target"])
            say({"case": k, "status": status, "reason": reason})

    worker_pool.serve(run)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", default="cpu")
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--json", default="")
    p.add_argument("--timeout", type=float, default=120)
    p.add_argument("--show", type=int, default=None, help="print one graph and its judgement")
    p.add_argument("--worker", action="store_true")
    args = p.parse_args()
    if args.worker:
        serve_worker()
        return 0
    if args.show is not None:
        print(onnx.printer.to_text(generate(args.show)[0]))
        print(*judge(args.show, args.target))
        return 0
    import worker_pool
    from tqdm import tqdm

    wanted = range(args.first, args.first + args.count)
    requests = [{"target": args.target, "graphs": list(wanted[i : i + 25])} for i in range(0, len(wanted), 25)]
    results: dict[str, dict[str, str]] = {}
    bar = tqdm(total=args.count, unit="graph", mininterval=5)

    def on_case(request: dict[str, Any], said: dict[str, Any]) -> None:
        index = request["graphs"][said["case"]]
        results[str(index)] = {"status": said["status"], "reason": said.get("reason", "")}
        bar.update()
        if said["status"] not in ("right", "uncounted"):
            bar.write(f"{index}: {said['status']}: {said.get('reason', '')}")

    for _ in worker_pool.sweep([__file__], requests, on_case, args.timeout):
        if args.json:
            os.makedirs(os.path.dirname(args.json) or ".", exist_ok=True)
            Path(args.json).write_text(json.dumps(results, indent=1))
    bar.close()
    counts = Counter(r["status"] for r in results.values())
    print(", ".join(f"{n} {s}" for s, n in counts.most_common()))
    return int(any(counts[s] for s in ("wrong", "crash", "hang")))


if __name__ == "__main__":
    sys.exit(main())
