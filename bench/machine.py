"""What the machine can do: FMA peak and read bandwidth, measured by a small C++ program (effc/cost/probe.cpp)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from effc.cost.machine import built, cpu_name, measure

__all__ = ["cpu_name", "measure", "round_trip"]


def round_trip() -> float | None:
    """Nanoseconds of a line's round trip between two CPUs (``round_trip.cpp``, a few milliseconds): about 100 where
    they share a cache, 300 where they do not. None on a single CPU."""
    exe = built(Path(__file__).with_name("round_trip.cpp"))
    done = subprocess.run([str(exe)], capture_output=True, text=True, check=True)
    ns: float | None = json.loads(done.stdout)["ns"]
    return ns


if __name__ == "__main__":
    print(cpu_name())
    for n in (1, 2):
        print(measure(n))
    print(f"round trip of a line between two CPUs: {round_trip()} ns")
