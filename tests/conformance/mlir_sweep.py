"""The op table through MLIR itself: up to four samples an op are written in the torch dialect, lowered by torch-mlir
and run by MLIR's ExecutionEngine.

    python tests/conformance/mlir_sweep.py [OP OR CATEGORY...]

One line for each op that torch-mlir does not lower or gets wrong, then the totals. What the target itself refuses is
left out; ``test_mlir.py`` has that, and the other judges.
"""

from __future__ import annotations

import collections
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from effc.conformance.ops import build, failures, samples
from effc.ir import OPS
from tests.conformance.mlir_engine import Engine
from tests.conformance.test_mlir import refusal, text_of

SAMPLES = 4


def judged(cases: list[Any]) -> tuple[int, list[str], collections.Counter[str]]:
    """How many are right, what is wrong, what was not lowered; halves of what is refused as a whole on their own."""
    try:
        group = build(cases)
        wrong = failures(group, Engine(text_of(group))(group.arrays), group.expected())
        return len(cases) - len(wrong), wrong, collections.Counter()
    except Exception as e:
        if len(cases) == 1:
            found = re.findall(r"failed to legalize operation '([^']*)'", str(e)) or [str(e).splitlines()[-1][:100]]
            return 0, [], collections.Counter(found[:1])
    half = len(cases) // 2
    a, b = judged(cases[:half]), judged(cases[half:])
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def child(end: Any, cases: list[Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch-mlir prints what it then raises
    end.send(judged(cases))


def main(wanted: list[str]) -> None:
    total: collections.Counter[str] = collections.Counter()
    fork = multiprocessing.get_context("fork")
    for op in sorted(OPS.values(), key=lambda o: (o.category, o.name)):
        if op.samples is None or (wanted and not {op.name, op.category} & set(wanted)):
            continue
        full = [s for s in samples(op) if all(a is None or np.asarray(a).size for a in s.inputs)]
        cases = [(op, s) for s in full[:: max(1, len(full) // SAMPLES)][:SAMPLES] if refusal(op, s) is None]
        if not cases:
            continue
        mine, theirs = fork.Pipe(duplex=False)
        p = fork.Process(target=child, args=(theirs, cases))
        p.start()
        theirs.close()
        try:
            right, wrong, lacking = mine.recv()
        except EOFError:
            right, wrong, lacking = 0, [], collections.Counter({"torch-mlir crashes": len(cases)})
        p.join()
        total += collections.Counter(samples=len(cases), right=right, wrong=len(wrong), not_lowered=lacking.total())
        if lacking:
            print(f"{op.name}: {lacking.total()} of {len(cases)} not lowered: {', '.join(lacking)}", flush=True)
        for w in wrong:
            print(f"WRONG {w}", flush=True)
    print(dict(total))


if __name__ == "__main__":
    main(sys.argv[1:])
