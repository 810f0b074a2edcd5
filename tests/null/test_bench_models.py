"""What the comparison of engines says of one that does not get ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import models


@pytest.mark.parametrize(
    "program,says",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "does not compile: ended by SIGSEGV"),
        ("raise SystemExit(3)", "does not compile: exit status 3"),
        ("import time; time.sleep(60)", "does not compile: not ready within 1 s"),
    ],
)
def test_engine_that_does_not_get_ready(
    program: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A crash, an exit and a compilation without end become the engine's row, and its process is gone."""
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", program], **options)
    )
    worker = models.Worker.start("model", "engine", 1, tmp_path, limit=1.0 if "sleep" in program else 60.0)
    try:
        assert worker.info == {"failed": says} and not worker.alive
        assert worker.process.poll() is not None
    finally:
        worker.close()
    result: dict[str, Any] = {"model": "model", "engines": {"engine": worker.info}}
    assert f"| model | engine | failed: {says} |" in models.table([result], {})
