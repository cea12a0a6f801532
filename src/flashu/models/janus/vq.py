"""Codes to pixels. Module names are those of transformers' class; its encoder is not needed, as pictures are seen
through another tower."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.conv_autoencoder import Attention, Middle, ResidualBlock, Upsample
from flashu.models.janus.config import VQConfig


class Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, attended: bool, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if attended else 0))
        self.upsample = None if last else Upsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        for n, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[n](x)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        widths = [cfg.base_channels * m for m in reversed(cfg.channel_multiplier)]
        self.conv_in = nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
        self.mid = Middle(widths[0])
        self.up = nn.ModuleList(
            Level(widths[max(n - 1, 0)], width, cfg.num_res_blocks + 1, n == 0, n == len(widths) - 1)
            for n, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], cfg.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.up:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(cfg.num_embeddings, cfg.embed_dim)


class VQ(nn.Module):
    """A frozen decoder of codes; ``factor``: pixels per code, each way."""

    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        self.factor = cfg.factor
        self.quantize, self.decoder = Codebook(cfg), Decoder(cfg)
        self.post_quant_conv = nn.Conv2d(cfg.embed_dim, cfg.latent_channels, 1)
        self.eval()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> pixels [B, 3, H, W], not clipped."""
        table = self.quantize.embedding
        vectors = F.normalize(table(codes.to(table.weight.device)), dim=-1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))
