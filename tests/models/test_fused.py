"""Counters: how many kernels a block of a real model becomes, and that no score matrix is ever stored."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import effc
from effc.runtime.artifact import ArtifactReader

from . import zoo


def program_of(model: Any, tmp_path: Any) -> dict[str, Any]:
    model.save(tmp_path / "m.effc")
    with ArtifactReader(tmp_path / "m.effc") as reader:
        program: dict[str, Any] = reader.manifest["entries"]["main"]["program"]
    return program


def calls(program: dict[str, Any]) -> list[dict[str, Any]]:
    assert all(i["op"] == "call" for i in program["code"])
    return program["code"]


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes' rules decide what is fused, not the cost model."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")


@pytest.mark.parametrize("batch", [1, 8])
def test_minilm_between_attentions(batch: int, tmp_path: Any, by_rule: None) -> None:
    """All between two attentions is one kernel for many rows, and six where what is between those would stay in the
    caches anyway; the results are the same, bit for bit."""
    module, _, _, _ = zoo.load("minilm")
    args = zoo.minilm_inputs(batch, 128)
    model, apart = effc.compile(module, args), effc.compile(module, args, disable_passes=("fuse_rows",))
    passes = model.report["entries"]["main"]["passes"]
    few = [d for d in passes["declined"] if "KiB are between the kernels" in str(d)]
    counts = []
    for m in (model, apart):
        kernels = [i["kernel"] for i in calls(program_of(m, tmp_path))]
        starts = [i for i, k in enumerate(kernels) if k.startswith("effc_attention")]
        counts.append({b - a for a, b in pairwise(starts)})
    if batch == 1:
        assert few and counts == [{7}, {7}]
    else:
        assert passes["stats"]["fuse_rows.formed"] == 6 and counts == [{2}, {7}]
        assert passes["stats"]["fuse_rows.products"] == 23 and passes["stats"]["fuse_rows.regions"] == 12
    assert all(torch.equal(a, b) for a, b in zip(tensors(model(*args)), tensors(apart(*args)), strict=True))


def tensors(x: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = [t for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]
    assert found
    return found


def test_minilm_embeddings(tmp_path: Any) -> None:
    """All lookups, their sum and the norm are one kernel before the first product, with constant sizes and without.
    What a mask needs may come before it or later, as memory has it."""
    module, args, dynamic, _ = zoo.load("minilm")
    for shapes, lookups in ((None, 2), (dynamic, 3)):
        model = effc.compile(module, args, dynamic_shapes=shapes)
        kernels = [i["kernel"] for i in calls(program_of(model, tmp_path))]
        assert model.report["entries"]["main"]["passes"]["stats"]["fuse.lookups"] == lookups
        before = kernels[: next(i for i, k in enumerate(kernels) if k.startswith("effc_matmul"))]
        assert "effc_take" not in kernels and sum(k.startswith("red_") for k in before) == 1


def test_minilm_layer(tmp_path: Any) -> None:
    """An encoder layer: QKV as one product, attention, projection, norm, two products of the feed-forward part,
    norm."""
    module, _, _, _ = zoo.load("minilm")
    model = effc.compile(module, zoo.minilm_inputs(1, 512), disable_passes=("fuse_rows",))
    program = program_of(model, tmp_path)
    kernels = [i["kernel"] for i in calls(program)]
    starts = [i for i, k in enumerate(kernels) if k.startswith("effc_attention")]
    assert len(starts) == 6
    per_layer = {b - a for a, b in pairwise(starts)}  # from one attention to the next: one layer
    assert max(per_layer) <= 8, [kernels[a:b] for a, b in pairwise(starts)]
    stats = model.report["entries"]["main"]["passes"]["stats"]
    assert stats["merge_matmuls.merged"] == 6
    assert sum(k.startswith("effc_matmul") for k in kernels) == 24
    score = 12 * 512 * 512  # heads x queries x keys
    for v in program["values"]:
        if v["k"] == "temp":
            size = 1
            for d in v["shape"]:
                size *= d
            assert size < score or v["shape"][-2:] != [512, 512], v
    assert program["arena"]["static_bytes"] >= program["arena"]["lower_bound"] > 0
    assert program["arena"]["static_bytes"] < 4 * score  # one layer's scores alone would not fit


@pytest.mark.parametrize(("name", "large"), [("mobilenet_v2", 7), ("efficientnet_lite0", 6)])
def test_inverted_bottleneck(name: str, large: int, tmp_path: Any, by_rule: None) -> None:
    """Expand, depthwise, project: one kernel for a block of large images, two for a late one; norms, activations and
    residuals inside them, no layout copies."""
    module, _, _, _ = zoo.load(name)
    blocks = sum(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in module.modules())
    convs = sum(isinstance(m, torch.nn.Conv2d) for m in module.modules())
    m = effc.compile(module, (torch.randn(1, 3, 224, 224),))
    inside = m.report["entries"]["main"]["passes"]["stats"]["fuse_chains.convs"]
    kernels = [i["kernel"] for i in calls(program_of(m, tmp_path))]
    chains = [i for i, k in enumerate(kernels) if k == "effc_conv_chain_f32"]
    pairs = [i for i, k in enumerate(kernels) if k == "effc_conv_pair_f32"]
    assert len(chains) == large and len(chains) + len(pairs) == blocks
    assert m.report["entries"]["main"]["passes"]["stats"]["fuse_pairs.formed"] == len(pairs)
    assert max(b - a for a, b in pairwise(sorted(chains + pairs))) <= 2
    made = sum(k.startswith("effc_conv") for k in kernels) - large + inside + len(pairs)
    assert made == convs and inside >= 3 * large - 1
    assert len(kernels) <= convs - inside - len(pairs) + large + 3  # the rest: global pool, classifier and their copies
