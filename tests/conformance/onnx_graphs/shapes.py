"""Steps that move and pick: shapes, slices, gathers, sorting, quantisation, branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper as H
from onnx import numpy_helper

from .maker import BOOL, F32, I32, I64, Dropped, Maker, Val, broadcast


class Shapes(Maker):
    """Every method named ``step_...`` adds one operator or idiom; it returns (name of the result, exact) or a list."""

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
