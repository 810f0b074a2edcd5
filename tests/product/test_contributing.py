"""The recipes of CONTRIBUTING.md, applied to a copy of the tree as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- (append|create|after) (\S+)(?: ([^\n]+?))? -->\n```\w+\n(.*?)```", re.S)

CHECK = """
import numpy as np
from effc.ir import OPS
from effc.ir.text import parse, to_text
from effc.passes.flip_twice import FlipTwice
from effc.passes.manager import PassReport
from effc.conformance.ops import run_op, samples

for name in ("softsign", "alternating_sum"):
    chosen = samples(OPS[name])
    assert chosen
    problems = run_op(OPS[name], chosen, "cpu")
    assert not problems, problems

def run(text):
    report = PassReport()
    return to_text(FlipTwice().run(parse(text), report)), report

before = '''graph main(%x: f32[3, 4]) {
  %0 = flip(%x) {dims=[0]} : f32[3, 4]
  %1 = flip(%0) {dims=[DIM]} : f32[3, 4]
  %2 = neg(%1) : f32[3, 4]
  return %2
}
'''
after, report = run(before.replace("DIM", "0"))
assert "flip" not in after and "neg(%x)" in after, after
assert report.stats == {"flip_twice.removed": 1}
after, report = run(before.replace("DIM", "1"))
assert after.count("flip(") == 2 and report.reasons("flip_twice") == {"the dims differ"}
print("recipes work")
"""


def test_recipes(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "effc", tmp_path / "effc", ignore=ignore)
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 6
    for action, name, anchor, code in blocks:
        path = tmp_path / name
        if action == "create":
            assert not path.exists(), name
            path.write_text(code)
        elif action == "append":
            path.write_text(path.read_text() + "\n" + code)
        else:
            lines = path.read_text().split("\n")
            (at,) = [i for i, line in enumerate(lines) if line.startswith(anchor)]
            path.write_text("\n".join([*lines[: at + 1], code.rstrip("\n"), *lines[at + 1 :]]))
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0 and "recipes work" in done.stdout, done.stderr[-4000:]
