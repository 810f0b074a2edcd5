"""Dense fp32 models that deployments are made of, in the form of tests/models/zoo.py's entries: those of the zoo at the
sizes that are compared, and architectures without weights in any package, with seeded weights.

``DENSE`` is the set, in the order of the table in docs/benchmarks.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.spectral import seeded
from tests.models import zoo
from tests.models.fetch import fetch
from tests.models.zoo import Entry


class First(nn.Module):
    """A transformers model's first result as a plain tensor."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(x), self.key)
        return result


def _settled(net: nn.Module) -> nn.Module:
    """Batch norms with statistics that are not 0 and 1, so that folding them is work that shows in the results."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return net


def resnet50() -> nn.Module:
    """He et al., 2015: 224 x 224."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return First(_settled(ResNetForImageClassification(ResNetConfig(num_labels=1000))), "logits")


def vit_s16() -> nn.Module:
    """Dosovitskiy et al., 2020, in the small size of DeiT."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return First(ViTForImageClassification(config), "logits")


def whisper_tiny_encoder() -> nn.Module:
    """Radford et al., 2022: 30 s of sound as 80 x 3000 log-mel values."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    return First(WhisperEncoder(config), "last_hidden_state")


class OnnxFile(nn.Module):
    """A model that is published as an ONNX file. Its results are what onnxruntime makes of it without optimisations;
    engines take the file itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.onnx_file = path

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        from bench.int8 import written

        result: torch.Tensor = torch.from_numpy(written(self.onnx_file, args)[0])
        return result


def rapidocr_rec() -> nn.Module:
    """The recogniser of PP-OCRv4 (Chinese and English), a line of text of 48 x 320."""
    return OnnxFile(fetch("rapidocr") / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")


class UNet(nn.Module):
    """Ronneberger et al., 2015, with batch norm and padded convolutions, 32 channels at full size."""

    def __init__(self, channels: int = 32, levels: int = 4) -> None:
        super().__init__()

        def pair(a: int, b: int) -> nn.Module:
            layers: list[nn.Module] = []
            for i in (a, b):
                layers += [nn.Conv2d(i, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*layers)

        sizes = [channels << i for i in range(levels + 1)]
        self.down = nn.ModuleList(pair(a, b) for a, b in zip([3, *sizes], sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * s, s, 2, 2) for s in reversed(sizes[:-1]))
        self.join = nn.ModuleList(pair(2 * s, s) for s in reversed(sizes[:-1]))
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for block in self.down[:-1]:
            x = block(x)
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.down[-1](x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        result: torch.Tensor = self.head(x)
        return result


DENSE: dict[str, Entry] = {
    e.name: e
    for e in (
        zoo.ZOO["minilm"],
        replace(zoo.ZOO["minilm"], name="minilm_8x128", bench=lambda: zoo.minilm_inputs(8, 128)),
        replace(zoo.ZOO["smollm2"], name="smollm2_1x200", bench=lambda: zoo.smollm2_inputs(1, 200)),
        seeded("resnet50", resnet50, 1, 3, 224, 224),
        zoo.ZOO["efficientnet_lite0"],
        zoo.ZOO["mobilenet_v2"],
        seeded("vit_s16", vit_s16, 1, 3, 224, 224),
        seeded("unet", lambda: _settled(UNet()), 1, 3, 256, 256),
        seeded("whisper_tiny_encoder", whisper_tiny_encoder, 1, 80, 3000),
        zoo.ZOO["resemblyzer"],
        seeded("rapidocr_rec", rapidocr_rec, 1, 3, 48, 320),
    )
}
