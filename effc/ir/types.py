"""Tensor types: dtype, symbolic shape and encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import dims
from .dims import Dim
from .dtypes import DType


@dataclass(frozen=True)
class Encoding:
    """How a tensor's bytes hold it. ``format`` names a registered packing; ``params`` are its parameters in order."""

    format: str = "dense"
    params: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.format if not self.params else f"{self.format}({','.join(map(str, self.params))})"


DENSE = Encoding()


@dataclass(frozen=True)
class TensorType:
    """dtype + shape + encoding. Dims are ints or symbolic expressions; sizes 0 and 1 are ordinary."""

    dtype: DType
    shape: tuple[Dim, ...]
    encoding: Encoding = field(default=DENSE)

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple):
            object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        return dims.product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.numel * self.dtype.itemsize

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape, self.encoding)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, tuple(shape), self.encoding)

    def evaluate(self, env: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(dims.evaluate(d, env) for d in self.shape)

    def __str__(self) -> str:
        body = f"{self.dtype}[{', '.join(map(str, self.shape))}]"
        return body if self.encoding == DENSE else f"{body}:{self.encoding}"
