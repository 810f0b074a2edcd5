"""A worker process: ``python -m effc.conformance.worker SUITE BACKEND OPTIONS``. See ``pool.py``."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from .suite import Turn, resolve


def main(spec: str, backend: str, options: str) -> None:
    out = os.fdopen(int(os.environ["EFFC_WORKER_FD"]), "w", buffering=1)

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    np.seterr(all="ignore")
    try:
        suite = resolve(spec)(**json.loads(options))
        suite.prepare(backend)
    except EffcError as e:
        tell({"error": e.message, "hint": e.hint})
        return
    for line in sys.stdin:
        suite.run(backend, Turn(json.loads(line), tell))
        tell({"done": True})


if __name__ == "__main__":
    main(*sys.argv[1:4])
