"""The vocabulary of IR idioms in which every frontend's mappings are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ir import dims as D
from ..ir.dims import Dim, SymExpr
from ..ir.dtypes import DType
from ..ir.graph import Builder, Value


class Vocabulary:
    """Builds on one builder. A number is a Python number, a dim, or what a frontend adds to them."""

    def __init__(self, builder: Builder) -> None:
        self.b = builder
        self.constants: dict[tuple[Any, DType], Value] = {}

    @staticmethod
    def is_number(x: Any) -> bool:
        return isinstance(x, (bool, int, float, complex, SymExpr))

    def const(self, x: Any, dtype: DType) -> Value:
        """A 0-d constant, made once per graph."""
        if dtype.is_int and isinstance(x, float):
            x = int(x)
        if dtype.is_int and isinstance(x, int):
            bits = dtype.itemsize * 8
            x &= (1 << bits) - 1
            if dtype.is_signed and x >> (bits - 1):
                x -= 1 << bits
        key = (repr(x), dtype)
        if key not in self.constants:
            self.constants[key] = self.b.constant(dtype.np.type(x) if not dtype.is_bool else bool(x), dtype)
        return self.constants[key]

    def scalar(self, x: Any, dtype: DType) -> Value:
        """A 0-d value of ``dtype`` from a number of any kind; a Value is converted."""
        if isinstance(x, Value):
            return self.convert(x, dtype)
        if isinstance(x, SymExpr):
            direct = dtype in (DType.i64, DType.i32, DType.f32, DType.f64)
            v = self.b.op("dim_value", value=x, dtype=dtype if direct else DType.i64)
            return self.convert(v, dtype)
        return self.const(x, dtype)

    def convert(self, v: Value, dtype: DType) -> Value:
        return v if v.dtype is dtype else self.b.op("convert", v, dtype=dtype)

    def opmath(self, v: Value) -> Value:
        """f32 for the half families: arithmetic of one torch op is rounded once."""
        return self.convert(v, v.dtype.compute)

    # idioms -----------------------------------------------------------------------------------------------------------

    def op(self, name: str, *xs: Any, **attrs: Any) -> Any:
        """An IR op; numbers among the operands take the dtype of the first tensor."""
        dt = next((x.dtype for x in xs if isinstance(x, Value)), None)
        if dt is not None:
            xs = tuple(self.scalar(x, dt) if self.is_number(x) else x for x in xs)
        return self.b.op(name, *xs, **attrs)

    def add(self, x: Any, y: Any) -> Value:
        return self.op("add", x, y) if isinstance(x, Value) else self.op("add", y, x)

    def mul(self, x: Any, y: Any) -> Value:
        return self.op("mul", x, y) if isinstance(x, Value) else self.op("mul", y, x)

    def sub(self, x: Any, y: Any) -> Value:
        return self.op("sub", self.scalar(x, y.dtype) if self.is_number(x) else x, y)

    def div(self, x: Any, y: Any) -> Value:
        return self.op("div", self.scalar(x, y.dtype) if self.is_number(x) else x, y)

    def where(self, c: Value, x: Any, y: Any) -> Value:
        dt = x.dtype if isinstance(x, Value) else y.dtype
        return self.b.op("where", c, self.scalar(x, dt), self.scalar(y, dt))

    def scale(self, x: Value, k: Any) -> Value:
        """x*k, nothing for k == 1."""
        return x if isinstance(k, (int, float)) and k == 1 else self.mul(x, k)

    def full(self, value: Any, shape: Sequence[Dim], dtype: DType) -> Value:
        if isinstance(value, (bool, int, float, complex)):
            v = bool(value) if dtype.is_bool else value
            return self.b.op("full", None, value=v, shape=tuple(shape), dtype=dtype)
        return self.b.op("full", self.scalar(value, dtype), shape=tuple(shape), dtype=dtype)

    def axis(self, dim: int, rank: int) -> int:
        """A dim argument counted from the front; a 0-d tensor has dim 0."""
        return dim + max(rank, 1) if dim < 0 else dim

    def axes(self, dims: Any, rank: int) -> tuple[int, ...]:
        """A dims argument: None or empty means all."""
        if dims is None or (isinstance(dims, (list, tuple)) and not dims):
            return tuple(range(rank))
        if isinstance(dims, int):
            dims = [dims]
        return tuple(sorted({self.axis(d, rank) for d in dims})) if rank else ()

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        shape = tuple(shape)
        return x if shape == x.shape else self.b.op("reshape", x, shape=shape)

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        dims = tuple(dims)
        return x if dims == tuple(range(x.rank)) else self.b.op("permute", x, dims=dims)

    def transpose(self, x: Value, a: int = -2, b: int = -1) -> Value:
        order = list(range(x.rank))
        a, b = a % x.rank, b % x.rank
        order[a], order[b] = order[b], order[a]
        return self.permute(x, order)

    def broadcast(self, x: Value, shape: Sequence[Dim]) -> Value:
        shape = tuple(shape)
        return x if shape == x.shape else self.b.op("broadcast_to", x, shape=shape)

    def unsqueeze(self, x: Value, *dims: int) -> Value:
        """Inserts sizes 1 so that they stand at ``dims`` of the result."""
        rank = x.rank + len(dims)
        at = {d % rank for d in dims}
        it = iter(x.shape)
        return self.reshape(x, [1 if i in at else next(it) for i in range(rank)])

    def squeeze(self, x: Value, *dims: int) -> Value:
        at = {d % x.rank for d in dims}
        return self.reshape(x, [s for i, s in enumerate(x.shape) if i not in at])

    def moveaxis(self, x: Value, src: int, dst: int) -> Value:
        order = [i for i in range(x.rank) if i != src % x.rank]
        order.insert(dst % x.rank, src % x.rank)
        return self.permute(x, order)

    def slice(self, x: Value, dim: int, start: Dim, stop: Dim, step: int = 1) -> Value:
        """x[start:stop:step] in one dim; bounds are already within the size."""
        dim %= x.rank
        starts, stops, steps = [0] * x.rank, list(x.shape), [1] * x.rank
        starts[dim], stops[dim], steps[dim] = start, stop, step  # type: ignore[call-overload]
        if start == 0 and stop == x.shape[dim] and step == 1:
            return x
        return self.b.op("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))

    def select(self, x: Value, dim: int, index: Dim) -> Value:
        dim %= x.rank
        y = self.slice(x, dim, index, index + 1)
        return self.reshape(y, y.shape[:dim] + y.shape[dim + 1 :])

    def concat(self, xs: Sequence[Value], dim: int) -> Value:
        return xs[0] if len(xs) == 1 else self.b.op("concat", *xs, dim=dim % xs[0].rank)

    def reduce(self, kind: str, x: Value, dims: Sequence[int], keepdims: bool = False) -> Value:
        return self.b.op("reduce", x, kind=kind, dims=tuple(dims), keepdims=keepdims)

    def count(self, x: Value, dims: Sequence[int]) -> Dim:
        return D.product(x.shape[d] for d in dims)

    def mean(self, x: Value, dims: Sequence[int], keepdims: bool = False) -> Value:
        """Mean of a float or complex value in its own dtype."""
        return self.div(self.reduce("sum", x, dims, keepdims), self.count(x, dims))

    def iota(self, n: Dim, dtype: DType = DType.i64, start: Any = 0, step: Any = 1) -> Value:
        return self.b.op("iota", shape=(n,), dim=0, start=start, step=step, dtype=dtype)

    def index(self, v: Value) -> Value:
        """An index operand: i64 or i32."""
        return v if v.dtype in (DType.i64, DType.i32) else self.convert(v, DType.i64)

    def exact(self, x: Any, dtype: DType) -> bool:
        """Whether the number is the same in this dtype."""
        if not isinstance(x, (int, float)) or dtype.is_complex:
            return isinstance(x, (int, float, complex, SymExpr))
        if isinstance(x, float) and not math.isfinite(x):
            return True
        try:
            return float(dtype.np.type(x)) == float(x)
        except (OverflowError, ValueError):
            return False
