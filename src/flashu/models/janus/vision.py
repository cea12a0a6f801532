"""What Janus-Pro sees with. Module names are those of transformers' class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.janus.config import VisionConfig
from flashu.models.layers import attend


class Attention(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        width, self.heads = cfg.hidden_size, cfg.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=cfg.attention_bias) for _ in range(3))
        self.projection_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.projection_layer(attend(q, k, v, None))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        width, eps = cfg.hidden_size, cfg.layer_norm_eps
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, eps=eps), Attention(cfg)
        self.layer_norm2, self.mlp = nn.LayerNorm(width, eps=eps), MLP(width, int(width * cfg.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, cfg.hidden_size, cfg.patch_size, cfg.patch_size)
        self.position_embedding = nn.Embedding(cfg.side**2, cfg.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))


class VisionModel(nn.Module):
    """Pixels [B, 3, H, W] of the one size it knows -> [B, N, width], in reading order."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(cfg), Encoder(cfg)
        self.post_layernorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels.to(self.post_layernorm.weight.dtype))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Aligner(nn.Module):
    """To the decoder's width: ``depth`` linear layers with GELU between."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.hidden_layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(1, depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(F.gelu(x))
        return x


class CodeHead(nn.Module):
    """Normed hidden states -> logits over the codes."""

    def __init__(self, hidden: int, inner: int, codes: int) -> None:
        super().__init__()
        self.proj_out, self.vision_head = nn.Linear(hidden, inner), nn.Linear(inner, codes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.vision_head(F.gelu(self.proj_out(hidden)))


def stacked(pictures: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(pictures).to(device)
