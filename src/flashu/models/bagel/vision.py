"""What BAGEL sees with: the ViT, the connector, and the fixed tables of positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.bagel.config import VisionConfig
from flashu.models.siglip import SiglipLayer


def patches(pixels: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, N, size * size * C] in reading order, channels fastest."""
    parts = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B, C, rows, size, columns, size]
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatched(tokens: Tensor, size: int, rows: int, columns: int) -> Tensor:
    """Inverse of `patches`: [B, N, size * size * C] -> [B, C, H, W]."""
    parts = tokens.unflatten(2, (size, size, -1)).unflatten(1, (rows, columns))
    return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def table_rows(rows: int, columns: int, side: int) -> Tensor:
    """Where the cells of a grid stand in a table of ``side`` x ``side`` positions, in reading order."""
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()


def sincos(width: int, side: int) -> Tensor:
    """Table [side * side, width]: the first half of the channels tells the column, the second the row."""
    k = torch.arange(width // 4, dtype=torch.float64)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10000.0 ** (-k / (width // 4))
    one = torch.cat((angles.sin(), angles.cos()), dim=1)
    return torch.cat((one.repeat(side, 1), one.repeat_interleave(side, 0)), dim=1).float()


class PositionTable(nn.Module):
    """Fixed positions, which a checkpoint stores."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(sincos(width, side), requires_grad=False)

    def forward(self, rows: int, columns: int) -> Tensor:
        return self.pos_embed[table_rows(rows, columns, self.side).to(self.pos_embed.device)]


class Connector(nn.Module):
    """From the ViT's width to the decoder's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Embeddings(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(cfg.patch_size**2 * 3, cfg.hidden_size)
        self.position_embedding = nn.Embedding(cfg.side**2, cfg.hidden_size)


class Encoder(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        sizes = (cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads, cfg.layer_norm_eps)
        self.layers = nn.ModuleList(SiglipLayer(*sizes) for _ in range(cfg.num_hidden_layers))


class VisionTransformer(nn.Module):
    """Patches [B, N, patch] at ``places`` [N] of the position table -> [B, N, width]."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(cfg)
        self.encoder = Encoder(cfg)
        self.post_layernorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        x = self.embeddings.patch_embedding(patches) + self.embeddings.position_embedding(places)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class VisionModel(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(cfg)
