"""What a mapping works with: the vocabulary of IR idioms, and torch's numbers and promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ir.dims import Dim, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Builder, Value
from ...ir.types import TensorType
from ..vocabulary import Vocabulary
from . import dtypes as T
from .registry import Unsupported
from .shapes import Evaluator, NotADim, SymNumber

if TYPE_CHECKING:
    import torch

Number = Any  # a Python number, a dim, or a SymNumber
HALVES = (DType.f16, DType.bf16, DType.f8e4m3, DType.f8e5m2)
BIG = 1 << 62  # torch writes an open end of a slice as the largest int64


def is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float, complex, SymExpr, SymNumber))


class Context(Vocabulary):
    """State of one graph's import. ``expected`` holds the types torch gives the current node's results (None: not a
    tensor).
    """

    def __init__(self, builder: Builder, known: dict[str, Dim], numbers: dict[str, Value]) -> None:
        super().__init__(builder)
        self.known, self.numbers = known, numbers
        self.evaluator = Evaluator(builder, known, numbers)
        self.expected: list[TensorType | None] = []
        self.fresh: list[str] = []  # symbols that the current node defines
        self.fx: Any = None

    # types ------------------------------------------------------------------------------------------------------------

    @property
    def out(self) -> TensorType:
        """The type of the current node's first tensor result."""
        for t in self.expected:
            if t is not None:
                return t
        raise Unsupported("it has no tensor result")

    def dtype(self, dtype: torch.dtype | None, default: DType) -> DType:
        return default if dtype is None else T.dtype_of(dtype)

    def new_symbol(self, hint: str = "m") -> SymExpr:
        """A fresh data-dependent size."""
        k = sum(1 for s in self.b.symbols if s.startswith(hint))
        while f"{hint}{k}" in self.b.symbols:
            k += 1
        return self.b.symbol(f"{hint}{k}")

    def define(self, size: Dim) -> None:
        """The current node's one data-dependent size is this dim: no symbol of its own is needed."""
        for name in self.fresh:
            if name not in self.known:
                self.known[name] = size
                self.b.symbols.pop(name, None)

    # scalars and promotion --------------------------------------------------------------------------------------------

    @staticmethod
    def is_number(x: Any) -> bool:
        return is_number(x)

    def scalar(self, x: Any, dtype: DType) -> Value:
        """A 0-d value of ``dtype`` from a number of any kind; a Value is converted."""
        if isinstance(x, SymNumber):
            work = {bool: DType.bool, int: DType.i64}.get(x.kind, DType.f64)
            try:
                return self.convert(self.evaluator.value(x.expr, work), dtype)
            except NotADim as e:
                raise Unsupported(f"size arithmetic {e}") from None
        return super().scalar(x, dtype)

    def dim(self, x: Any) -> Dim:
        """A size from an argument: an int, a dim, or a number that ``item`` binds to a symbol at run time."""
        if isinstance(x, (int, SymExpr)):
            return x
        if isinstance(x, SymNumber):
            s = self.new_symbol()
            self.b.op("item", self.scalar(x, DType.i64), value=s)
            return s
        if isinstance(x, float) and x.is_integer():
            return int(x)
        raise Unsupported(f"a size given as {x!r}")

    def result_type(self, *xs: Any) -> DType:
        """torch.result_type of tensors (0-d ones count less) and numbers."""
        tensors = [(x.dtype, x.rank) for x in xs if isinstance(x, Value)]
        return T.result_type(tensors, [x for x in xs if is_number(x)])

    def same(self, *xs: Any, dtype: DType | None = None, floating: bool = False) -> list[Value]:
        """The operands as values of their common dtype (made floating if asked)."""
        dt = self.result_type(*xs) if dtype is None else dtype
        if floating and not (dt.is_float or dt.is_complex):
            dt = DType.f32
        return [self.scalar(x, dt) for x in xs]
