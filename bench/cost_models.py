"""Models for the cost model's benchmark and for its records: those of the zoo, and architectures with made-up weights.

python -m bench.cost_models OUT_DIR [NAME ...]      compiles them, with fixed sizes and the rules' own blocking
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Made = tuple[Any, tuple[Any, ...]]


def _zoo(name: str) -> Callable[[], Made]:
    def make() -> Made:
        from tests.models import zoo

        entry = zoo.ZOO[name]
        return entry.load().module, entry.bench()

    return make


def _transformer(kind: str, key: str, example: Callable[[], Any], config: dict[str, Any], **more: Any) -> Made:
    """A transformers model with made-up weights, from its input ``key`` to its last hidden state."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.model(**{key: x}, **more).last_hidden_state
            return out

    return Last().eval(), (example(),)


def _vision(kind: str, size: int, **config: Any) -> Callable[[], Made]:
    def image() -> Any:
        import torch

        return torch.randn(1, 3, size, size)

    return lambda: _transformer(kind, "pixel_values", image, config)


def _text(kind: str, batch: int, length: int, **config: Any) -> Callable[[], Made]:
    def tokens() -> Any:
        import torch

        return torch.randint(0, 1000, (batch, length))

    more = {"use_cache": False} if kind == "GPT2" else {}
    return lambda: _transformer(kind, "input_ids", tokens, config, **more)


ZOO = (
    "minilm",
    "smollm2",
    "efficientnet_lite0",
    "mobilenet_v2",
    "crepe",
    "resemblyzer",
    "mtcnn_pnet",
    "mtcnn_rnet",
    "mtcnn_onet",
)
MODELS: dict[str, Callable[[], Made]] = {
    **{n: _zoo(n) for n in ZOO},
    "resnet18": _vision("ResNet", 224, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
    "resnet50": _vision("ResNet", 160),
    "convnext": _vision("ConvNext", 160, depths=[2, 2, 6, 2]),
    "vit_small": _vision(
        "ViT", 224, hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=6
    ),
    "regnet": _vision(
        "RegNet", 192, embedding_size=32, hidden_sizes=[48, 96, 192, 384], depths=[1, 2, 4, 1], groups_width=16
    ),
    "distilbert": _text("DistilBert", 2, 64, n_layers=4, vocab_size=4000),
    "gpt2": _text("GPT2", 1, 96, n_layer=4, n_embd=512, n_head=8, vocab_size=4000),
}


def main() -> None:
    import effc

    os.environ["EFFC_COST_MODEL"] = "0"
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or MODELS:
        out = folder / f"{name}.effc"
        if out.exists():
            continue
        try:
            model, args = MODELS[name]()
            effc.compile(model, args, selftest=False).save(out)
            print(f"{name}: {out.stat().st_size:,} bytes", flush=True)
        except Exception as e:  # one model less
            print(f"{name}: left out, {type(e).__name__}: {str(e)[:300]}", flush=True)


if __name__ == "__main__":
    main()
