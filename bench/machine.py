"""What the machine can do: FMA peak and read bandwidth, measured by a small C++ program (effc/cost/probe.cpp)."""

from __future__ import annotations

from effc.cost.machine import cpu_name, measure

__all__ = ["cpu_name", "measure"]

if __name__ == "__main__":
    print(cpu_name())
    for n in (1, 2):
        print(measure(n))
