"""A choice among ways to make one kernel call, and what the report says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LOSERS = 4  # kept for the report


@dataclass(frozen=True)
class Decision:
    """``index`` of the way taken; ``rule``: of the fixed rule's own. ``seconds``: what is predicted for each; ``gain``:
    predicted time of the rule's way over this one's; ``uncertainty``: what it had to gain by to be taken (log)."""

    index: int
    seconds: tuple[float, ...] = ()
    gain: float = 1.0
    uncertainty: float = 0.0
    why: str = ""
    rule: int = 0

    def as_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """For the report: times in microseconds, the best few losers, and the rule's own way if it lost."""
        out: dict[str, Any] = {"chosen": labels[self.index], "why": self.why, "ways": len(labels), "rule": self.rule}
        if not self.seconds:
            return out
        order = sorted(range(len(labels)), key=lambda i: (self.seconds[i], i))
        losers = [i for i in order if i != self.index][:LOSERS]
        if self.rule not in (self.index, *losers):
            losers.append(self.rule)

        def line(i: int) -> dict[str, Any]:
            return {"way": labels[i], "index": i, "us": round(self.seconds[i] * 1e6, 3)}

        out["predicted"] = line(self.index)
        out["losers"] = [line(i) for i in losers]
        out["gain"] = round(self.gain, 4)
        out["uncertainty"] = round(self.uncertainty, 4)
        return out
