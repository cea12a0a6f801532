"""The image side of Show-o2: patch embedders and the semantic (SigLIP) layers."""

from __future__ import annotations

from torch import Tensor, nn

from flashu.models.showo2.config import VisionConfig
from flashu.models.siglip import SiglipLayer


class PatchEmbed(nn.Module):
    """latents [B, c, H, W] -> tokens [B, N, width], row-major."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class SemanticLayers(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        sizes = (cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads, cfg.layer_norm_eps)
        self.layers = nn.ModuleList(SiglipLayer(*sizes) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
