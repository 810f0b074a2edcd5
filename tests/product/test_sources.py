"""An artifact's code rebuilt from what the artifact carries, without effc."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import effc
from effc.backends.cpu.build import compiler
from effc.backends.cpu.library import KERNELS

from .factories import small
from .repack import repack


class Several(torch.nn.Module):
    """Units with headers of their own, an epilogue, control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 5, batch_first=True)
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, _ = self.lstm(x)
        image = torch.nn.functional.gelu(self.conv(x[:, None]))
        return torch.softmax(y @ y.mT, -1), image.amax(1).sort(-1).values, torch.linalg.inv(y.mT @ y + torch.eye(5))


def several() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Several().eval(), (torch.randn(2, 7, 6),)


@pytest.mark.parametrize("factory", [small, several, lambda: (torch.nn.Identity(), (torch.randn(3),))])
def test_rebuilt_from_the_artifact_alone(factory: Any, tmp_path: Path) -> None:
    module, args = factory()
    effc.compile(module, args).save(tmp_path / "m.effc")
    with zipfile.ZipFile(tmp_path / "m.effc") as z:
        names = [n for n in z.namelist() if n.startswith("sources/")]
        z.extractall(tmp_path / "out", names)
        assert sum(z.getinfo(n).file_size for n in names) < 1_000_000
    folder = tmp_path / "out" / "sources"
    assert not any(str(KERNELS) in p.read_text() for p in folder.rglob("*.*"))
    env = {**os.environ, "CXX": " ".join(compiler())}
    subprocess.run(["sh", "sources/build.sh"], cwd=tmp_path / "out", env=env, check=True, timeout=500)
    again = repack(tmp_path / "m.effc", tmp_path / "again.effc", {"code/cpu.so": (folder / "cpu.so").read_bytes()})
    got, want = (torch.utils._pytree.tree_leaves(effc.load(p)(*args)) for p in (again, tmp_path / "m.effc"))
    assert got and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_every_unit_finds_its_headers(tmp_path: Path) -> None:
    """A unit may only include what the artifact takes along."""
    from effc.backends.cpu import build

    for unit in sorted(KERNELS.glob("*.cpp")):
        found = {unit.name, *(p.name for p in build.headers(unit))}
        for p in (unit, *build.headers(unit)):
            for line in p.read_text().splitlines():
                if line.startswith('#include "'):
                    assert line.split('"')[1] in found, f"{p.name}: {line}"
