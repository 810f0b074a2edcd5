"""Sweeps over cases that follow from their number alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from effc.conformance.suite import Judge, Result, Suite


@dataclass(frozen=True)
class Numbered(Suite):
    """The cases ``first`` to ``first + count - 1``; a subclass judges one by its number."""

    restart_every: ClassVar[int] = 5000
    needs: ClassVar[Mapping[str, str]] = {"onnx": "'effc[onnx]'", "onnxruntime": "onnxruntime"}

    first: int = field(default=0, metadata={"help": "the first number"})
    count: int = field(default=1000, metadata={"help": "how many"})

    def cases(self) -> Sequence[str]:
        return [str(i) for i in range(self.first, self.first + self.count)]

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        yield lambda: self.judge(int(case), backend)

    def judge(self, index: int, backend: str) -> Result:
        """What becomes of one case."""
        raise NotImplementedError
