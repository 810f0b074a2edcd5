"""Steps that compute: elementwise, integers, comparisons, reductions, products, convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper as H

from .maker import BOOL, F32, F64, I32, I64, KEEPS_EXACT, PLAIN, UNARY, Dropped, Maker, Val, broadcast


class Compute(Maker):
    """Every method named ``step_...`` adds one operator or idiom; it returns (name of the result, exact) or a list."""

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
