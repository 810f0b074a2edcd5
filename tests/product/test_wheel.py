"""The wheel, installed where there is nothing but numpy, runs an artifact."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import torch

import effc
from effc.backends.cpu.build import KERNELS, unit_target
from effc.backends.cpu.prebuilt import object_name
from effc.backends.cpu.target import host

from .factories import small

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
import numpy as np
import effc

model = effc.load(sys.argv[1])
with np.load(sys.argv[2]) as data:
    out = model.run({k: data[k] for k in data.files})
np.savez(sys.argv[3], **out)
for name in ("torch", "ml_dtypes", "scipy", "onnx"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is here: this proves nothing")
try:
    effc.compile(None)
except effc.EffcError as e:
    assert "pip install" in str(e) or "cannot compile" in str(e), e
print(effc.__file__)
"""


def test_wheel_in_a_bare_environment(tmp_path: Path) -> None:
    sources = tmp_path / "src"
    _copy_sources(sources)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path / "dist"),
        str(sources),
    ]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "EFFC_PREBUILT": "cpu"})
    (wheel,) = (tmp_path / "dist").glob("effc-*.whl")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert "effc/runtime/lib/libeffc_rt.so" in names
    assert any(n.endswith("kernels/loop.hpp") for n in names) and "effc/runtime/include/effc.h" in names
    units = [Path(n).name for n in names if n.startswith("effc/backends/cpu/lib/")]
    want = {object_name(u.name, unit_target(u.name, host())) for u in KERNELS.glob("*.cpp")}
    assert set(units) == want and len(want) > 40, "the kernel library for this machine"
    assert not any(n.startswith(("tests/", "bench/", "examples/")) for n in names)

    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    python = bare / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"numpy=={np.__version__}"], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)

    module, args = small()
    effc.compile(module, args).save(tmp_path / "m.effc")
    np.savez(tmp_path / "in.npz", **dict(zip(("x", "bias"), (a.numpy() for a in args), strict=True)))
    env = {"PATH": str(tmp_path / "nothing"), "HOME": str(tmp_path), "EFFC_CACHE_DIR": str(tmp_path / "cache")}
    files = [str(tmp_path / n) for n in ("m.effc", "in.npz", "out.npz")]
    done = subprocess.run([str(python), "-c", RUN, *files], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(bare) in done.stdout, "it ran another effc than the installed one"
    with torch.no_grad():
        want = module(*args)
    with np.load(tmp_path / "out.npz") as got:
        for name, w in zip(got.files, want.values(), strict=True):
            np.testing.assert_allclose(got[name], w.numpy(), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "cache").exists(), "loading built something"
    help_text = subprocess.run(
        [str(bare / "bin" / "effc"), "--help"], env={**os.environ, "PATH": env["PATH"]}, capture_output=True, text=True
    )
    assert help_text.returncode == 0 and "compile" in help_text.stdout


def _copy_sources(to: Path) -> None:
    """The files of the checkout that belong to the project, and its compiled units: pip must not see other build
    leftovers."""
    import shutil

    leftovers = shutil.ignore_patterns("__pycache__", "*.so", "libeffc_rt.hash")
    shutil.copytree(ROOT / "effc", to / "effc", ignore=leftovers)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
