"""SmolLM2-135M in float32 in a third of the memory of its weights, held there by the kernel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import cgroup, streaming
from tests.models import zoo


@pytest.mark.slow
def test_smollm2_runs_in_a_third_of_its_weights(tmp_path: Path) -> None:
    """Prefill and 16 decoded tokens have the resident artifact's bits, from a cold page cache, in a process of
    ``LIMIT`` bytes; a larger one is killed."""
    paths = streaming.build(tmp_path, streaming.BUDGET)
    prompt = list(zoo.SMOLLM2_PROMPT)
    free, streamed, plain = streaming.WAYS[0], streaming.WAYS[2], streaming.WAYS[3]
    want = streaming.measure(free, paths, streaming.LIMIT, 16, prompt, 120)
    for way in (streamed, plain):
        got = streaming.measure(way, paths, streaming.LIMIT, 16, prompt, 300)
        assert "failed" not in got, got
        assert got["how"] != "no limit" and got["peak"] <= streaming.LIMIT
        assert got["bits"] == want["bits"] and got["ids"] == want["ids"]
        sizes, decode = got["sizes"], got["decode"]
        assert sizes["arena"] + sizes["window"] + sizes["resident"] < streaming.LIMIT
        # What does not stay is read once for every token, and every token waits for some of it.
        assert decode["bytes"] > 16 * (streaming.WEIGHTS - sizes["resident"] - (1 << 20))
        assert decode["bytes"] < 16 * (streaming.WEIGHTS - sizes["resident"] + (1 << 20))
        assert 0 < decode["wait_ns"] < decode["run_ns"]
    assert "Paris" in zoo.smollm2_tokenizer().decode(want["ids"])
    too_much = [sys.executable, "-c", f"x = bytearray({streaming.LIMIT}); print('lives')"]
    assert cgroup.run_limited(too_much, streaming.LIMIT, 60).status != 0
