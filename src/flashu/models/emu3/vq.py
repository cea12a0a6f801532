"""Emu3's image tokenizer (a MoVQ with a time axis). Module names are those of transformers' class.

Frames go through two-dimensional convolutions one by one, then through causal ones over time. A picture is as many
equal frames as one code stands for; the spatial parts compute one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.emu3.config import VQConfig

GROUPS, EPS = 32, 1e-6


class CausalConv3d(nn.Module):
    """Three-dimensional convolution; two zeros come before the first frame, and in space the first side gets the larger
    half of the padding."""

    def __init__(
        self, inside: int, outside: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inside, outside, kernel, stride)
        excess = [k - s for k, s in zip(kernel, stride, strict=True)]
        self.padding = [half for e in (excess[2], excess[1]) for half in (e - e // 2, e // 2)] + [2, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class TimeBlock(nn.Module):
    """Residual block over time, x [B, C, T, H, W]. Its norms use the statistics they were trained with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm3d(channels), CausalConv3d(channels, channels, (3, 3, 3))
        self.norm2, self.conv2 = nn.BatchNorm3d(channels), CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class TimeSampling(nn.Module):
    """Halves the frames, or doubles them (``up``)."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = CausalConv3d(channels, channels, (3, 3, 3)) if up else _halving(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x.repeat_interleave(2, dim=2) if self.up else x))


def _halving(channels: int) -> CausalConv3d:
    return CausalConv3d(channels, channels, (4, 3, 3), (2, 1, 1))


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted by what 1x1 convolutions make of the codes' vectors."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(GROUPS, channels, EPS)
        self.conv_y = nn.Conv2d(condition, channels, 1)
        self.conv_b = nn.Conv2d(condition, channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        codes = F.interpolate(codes, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(codes) + self.conv_b(codes)


def norm_of(channels: int, condition: int | None) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels, EPS) if condition is None else SpatialNorm(channels, condition)


Condition = tuple[Tensor, ...]
"""() in the encoder, (vectors of the codes,) in the decoder: what norms take besides x."""


class Block(nn.Module):
    """Residual block of one frame, x [B, C, H, W]."""

    def __init__(self, inside: int, outside: int, condition: int | None) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm_of(inside, condition), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = norm_of(outside, condition), nn.Conv2d(outside, outside, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else None

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, *condition)))
        y = self.conv2(F.silu(self.norm2(y, *condition)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class CellAttention(nn.Module):
    """Attention between the cells of a frame."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        cells = x.flatten(2).mT
        q, k, v = (
            proj(cells).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out_proj(y).mT.unflatten(-1, x.shape[-2:])


class Middle(nn.Module):
    def __init__(self, cfg: VQConfig, channels: int, condition: int | None) -> None:
        super().__init__()
        self.block_1 = Block(channels, channels, condition)
        self.attn_1 = CellAttention(cfg.hidden_size, cfg.num_attention_heads)
        self.attn_norm = norm_of(channels, condition)
        self.block_2 = Block(channels, channels, condition)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        x = self.block_1(x, condition)
        x = x + self.attn_1(self.attn_norm(x, *condition))
        return self.block_2(x, condition)


class Sampling(nn.Module):
    """Halves both sides of a frame, or doubles them (``up``)."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, 1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Blocks of one resolution. ``sampled``: on the way to the next ("downsample", "upsample"), None = the last."""

    def __init__(
        self, cfg: VQConfig, level: int, widths: Sequence[int], condition: int | None, sampled: str | None
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(Block(a, b, condition) for a, b in pairs)
        attended = [b for _, b in pairs if level in cfg.attn_resolutions]
        self.attn = nn.ModuleList(CellAttention(cfg.hidden_size, cfg.num_attention_heads) for _ in attended)
        self.attn_norms = nn.ModuleList(norm_of(b, condition) for b in attended)
        self.sampled = sampled
        if sampled is not None:
            setattr(self, sampled, Sampling(widths[-1], sampled == "upsample"))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        for n, block in enumerate(self.block):
            x = block(x, condition)
            if len(self.attn):
                x = x + self.attn[n](self.attn_norms[n](x, *condition))
        return x if self.sampled is None else getattr(self, self.sampled)(x)


class Levels(nn.Module):
    """``down`` or ``up``: by number; going up, the last is first."""

    def __init__(self, cfg: VQConfig, up: bool) -> None:
        super().__init__()
        widths = [cfg.base_channels * m for m in cfg.channel_multiplier]
        last, n = len(widths) - 1, cfg.num_res_blocks
        levels = []
        for i, width in enumerate(widths):
            if up:
                before = widths[min(i + 1, last)]
                level = Level(cfg, i, [before, *[width] * (n + 1)], cfg.embed_dim, "upsample" if i else None)
            else:
                before = cfg.base_channels if i == 0 else widths[i - 1]
                level = Level(cfg, i, [before, *[width] * n], None, "downsample" if i < last else None)
            levels.append(level)
        self.upwards = up
        setattr(self, "up" if up else "down", nn.ModuleList(levels))

    def forward(self, x: Tensor, condition: Condition = ()) -> Tensor:
        levels = getattr(self, "up" if self.upwards else "down")
        for level in reversed(levels) if self.upwards else levels:
            x = level(x, condition)
        return x


class Encoder(nn.Module):
    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        wide, latent = cfg.base_channels * cfg.channel_multiplier[-1], cfg.latent_channels
        self.conv_in = nn.Conv2d(cfg.in_channels, cfg.base_channels, 3, padding=1)
        self.down_block = Levels(cfg, up=False)
        self.middle_block = Middle(cfg, wide, None)
        self.norm_out = nn.GroupNorm(GROUPS, wide, EPS)
        self.conv_out = nn.Conv2d(wide, latent, 3, padding=1)
        doublings = int(math.log2(cfg.temporal_downsample_factor))
        self.time_conv = nn.ModuleList(TimeSampling(latent, up=False) for _ in range(doublings))
        self.time_res_stack = nn.ModuleList(TimeBlock(latent) for _ in range(cfg.num_res_blocks))

    def spatial(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, c, h, w]."""
        x = self.middle_block(self.down_block(self.conv_in(frames)), ())
        return self.conv_out(F.silu(self.norm_out(x)))

    def temporal(self, x: Tensor) -> Tensor:
        """[B, c, T, h, w] -> [B, c, T / factor, h, w]."""
        for part in (*self.time_conv, *self.time_res_stack):
            x = part(x)
        return x


class VQDecoder(nn.Module):
    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        wide, latent = cfg.base_channels * cfg.channel_multiplier[-1], cfg.latent_channels
        doublings = int(math.log2(cfg.temporal_downsample_factor))
        self.time_res_stack = nn.ModuleList(TimeBlock(latent) for _ in range(cfg.num_res_blocks))
        self.time_conv = nn.ModuleList(TimeSampling(latent, up=True) for _ in range(doublings))
        self.conv_in = nn.Conv2d(latent, wide, 3, padding=1)
        self.middle_block = Middle(cfg, wide, cfg.embed_dim)
        self.up_block = Levels(cfg, up=True)
        self.norm_out = SpatialNorm(cfg.base_channels * cfg.channel_multiplier[0], cfg.embed_dim)
        self.conv_out = nn.Conv2d(cfg.base_channels * cfg.channel_multiplier[0], cfg.out_channels, 3, padding=1)

    def temporal(self, x: Tensor) -> Tensor:
        """[B, c, T, h, w] -> [B, c, T * factor, h, w]."""
        for part in (*self.time_res_stack, *self.time_conv):
            x = part(x)
        return x

    def spatial(self, x: Tensor, codes: Tensor) -> Tensor:
        """Latents and vectors of the codes, both [N, c, h, w] -> frames [N, 3, H, W]."""
        condition = (codes,)
        x = self.up_block(self.middle_block(self.conv_in(x), condition), condition)
        return self.conv_out(F.silu(self.norm_out(x, codes)))


class Codebook(nn.Module):
    def __init__(self, cfg: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(cfg.codebook_size, cfg.embed_dim)

    def nearest(self, z: Tensor) -> Tensor:
        """[..., c] -> the code of least squared distance; the first of equals."""
        table = self.embedding.weight
        distance = z.square().sum(-1, keepdim=True) + table.square().sum(1) - 2 * (z @ table.T)
        return distance.argmin(-1)


class VQ(nn.Module):
    """Pixels to codes and back. It is frozen: always in eval mode, as batch statistics would change its codes."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), VQDecoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = CausalConv3d(config.latent_channels, config.embed_dim, (3, 1, 1))
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_channels, (3, 1, 1))
        self.eval()

    def train(self, mode: bool = True) -> VQ:
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quantize.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.quantize.embedding.weight.device

    @property
    def factor(self) -> int:
        return self.config.factor

    # -- pictures ----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> codes [B, h, w]. All of one size: padding changes the codes."""
        x = self.encoder.spatial(pixels.to(self.device, self.dtype))
        frames = x[:, :, None].expand(-1, -1, self.config.temporal_downsample_factor, -1, -1)
        return self._codes(frames)[:, 0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> pixels [B, 3, H, W], not clipped: the first of the frames that they stand for."""
        x, vectors = self._latents(codes[:, None])
        return self.decoder.spatial(x[:, :, 0], vectors[:, :, 0])

    # -- videos ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [-1, 1], T a multiple of the temporal factor -> codes [B, T / factor, h, w]."""
        x = self.encoder.spatial(frames.to(self.device, self.dtype).flatten(0, 1))
        return self._codes(x.unflatten(0, frames.shape[:2]).transpose(1, 2))

    @torch.no_grad()
    def decode_video(self, codes: Tensor) -> Tensor:
        """Codes [B, T, h, w] -> frames [B, T * factor, 3, H, W]."""
        x, vectors = (part.transpose(1, 2) for part in self._latents(codes))
        return self.decoder.spatial(x.flatten(0, 1), vectors.flatten(0, 1)).unflatten(0, x.shape[:2])

    # -- inside ------------------------------------------------------------------------------------------------
    def latents(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder gives of spatially encoded frames [B, c, T, h, w], and what is compared to the codes."""
        encoded = self.encoder.temporal(frames)
        return encoded, self.quant_conv(encoded)

    def _codes(self, frames: Tensor) -> Tensor:
        return self.quantize.nearest(self.latents(frames)[1].permute(0, 2, 3, 4, 1))

    def _latents(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, T, h, w] -> latents and the vectors of the codes as the decoder's frames see them."""
        vectors = self.quantize.embedding(codes.to(self.device)).permute(0, 4, 1, 2, 3)
        both = self.decoder.temporal(torch.cat((self.post_quant_conv(vectors), vectors)))
        latents, condition = both.chunk(2)
        return latents, condition
