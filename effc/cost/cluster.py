"""``effc tune --ray``: the machines of a Ray cluster measure, each what it is alone, and this one keeps the records.

Each node is one task at a time that takes all its CPUs, so that nothing else is scheduled beside a measurement. A task
measures for a slice of the time and returns its records, which are appended here; a node that fails or leaves loses its
slice alone. Nodes draw their own shapes (their seed comes from the host's name), so that no two measure the same ones,
and going on with ``--resume`` skips what a host has done. effc must be installed on the nodes, in this version.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import EffcError
from . import records

SLICE = 120.0  # seconds of a task


def measure_here(
    version: str, seconds: float, kernels: Sequence[str], seed: int, calm: float, known: Sequence[str]
) -> str:
    """What a node runs: records made in ``seconds``, as the text of a file."""
    from .. import __version__
    from ..backends.cpu.target import host
    from .tune import tune

    if __version__ != version:
        raise EffcError(f"this node has effc {__version__}, the driver {version}", hint="install the same on all nodes")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.jsonl"
        tune(out, host(), seconds=seconds, kernels=kernels, seed=seed, calm=calm, known=known)
        return out.read_text(encoding="utf-8")


def node_seed(seed: int, host: str) -> int:
    """The seed of a host's own sequence of shapes."""
    return zlib.crc32(f"{seed} {host}".encode())


def collect(
    address: str,
    out: str | os.PathLike[str],
    *,
    seconds: float,
    kernels: Sequence[str],
    seed: int,
    calm: float,
    slice_seconds: float = SLICE,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> dict[str, int]:
    """Measures for this long on every node of the cluster at ``address`` ("local": a cluster of this machine alone) and
    appends to ``out``. Returns how many records each host made. KeyboardInterrupt ends it; what has arrived is kept."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
    except ImportError as e:
        raise EffcError("tuning on a cluster needs Ray", hint="pip install 'effc[cluster]'") from e
    from .. import __version__

    writer = records.Writer(out)
    made: dict[str, int] = {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as e:
        writer.close()
        raise EffcError(
            f"there is no Ray cluster at {address!r}: {e}", hint="ray start --head; --ray local is this machine alone"
        ) from e
    try:
        nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
        left = {n["NodeID"]: seconds for n in nodes}
        task, running = ray.remote(max_retries=0)(measure_here), {}

        def start(node: Mapping[str, Any]) -> None:
            span, host = min(slice_seconds, left[node["NodeID"]]), node["NodeManagerHostname"]
            left[node["NodeID"]] -= span
            mine = node_seed(seed, host)
            known = sorted(g for g in writer.groups if g.split("-")[1] == str(mine))
            where = On(node_id=node["NodeID"], soft=False)
            options = task.options(num_cpus=node["Resources"]["CPU"], scheduling_strategy=where)
            running[options.remote(__version__, span, list(kernels), mine, calm, known)] = node

        for node in nodes:
            start(node)
        while running:
            (done,), _ = ray.wait(list(running))
            node = running.pop(done)
            host = node["NodeManagerHostname"]
            try:
                count = writer.add_text(ray.get(done))
            except ray.exceptions.RayError as e:
                cause = getattr(e, "cause", None)  # a task's own error, else a node that is gone
                text = str(cause).splitlines()[0] if cause else str(e).strip().splitlines()[-1]
                report(f"{host}: {text}")
                left[node["NodeID"]] = 0
                continue
            made[host] = made.get(host, 0) + count
            report(f"{host}: {made[host]} records")
            if left[node["NodeID"]] > 0:
                start(node)
    finally:
        writer.close()
        ray.shutdown()
    return made
