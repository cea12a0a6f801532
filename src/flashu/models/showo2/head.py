"""The diffusion (flow) head of Show-o2: modulated blocks, final layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flashu.models.ffn import GatedFFN
from flashu.models.layers import Attention, AttentionContext, KeyValue, RMSNorm, Rope, RotaryEmbedding
from flashu.models.showo2.config import HeadConfig
from flashu.models.showo2.content import Row, modulation

if TYPE_CHECKING:
    from flashu.models.showo2.model import ShowO2

QK_NORM_EPS = 1e-6


def spread(modulation: Tensor) -> Tensor:
    """[B, n] -> [B, 1, n], the same at every position; [B, S, n] as it is."""
    return modulation[:, None] if modulation.ndim == 2 else modulation


def modulate(x: Tensor, shift: Tensor, scale: Tensor, image: Tensor | None) -> Tensor:
    """x * (1 + scale) + shift in fp32, at image positions only (``image`` bool [B, S, 1]; None = all of them)."""
    modulated = (x.float() * (1 + scale.float()) + shift.float()).to(x.dtype)
    return modulated if image is None else torch.where(image, modulated, x)


class ModulatedBlock(nn.Module):
    """Pre-norm block with adaLN modulation of the image positions; text goes through as a plain block (gate 1)."""

    def __init__(self, cfg: HeadConfig) -> None:
        super().__init__()
        scaling = {
            "factor": cfg.rope_factor,
            "low": cfg.rope_low,
            "high": cfg.rope_high,
            "original_length": cfg.rope_original_length,
        }
        rotary = RotaryEmbedding(cfg.head_dim, cfg.rope_theta, scaling)
        self.self_attn = Attention(
            cfg.hidden_size,
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.head_dim,
            rotary,
            qkv_bias=False,
            qk_norm_eps=QK_NORM_EPS,
        )
        self.mlp = GatedFFN(cfg.hidden_size, cfg.intermediate_size)
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cfg.hidden_size, 6 * cfg.hidden_size))

    def forward(
        self, x: Tensor, context: AttentionContext, e_t: Tensor | None, image: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """x [B, S, d]; e_t [1 or B, d], [B, S, d] where it differs by position, or None for text alone; image bool
        [B, S, 1] or None (all image)."""
        if e_t is None:
            attended, kv = self.self_attn(self.input_layernorm(x), context)
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x)), kv
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = spread(self.adaLN_modulation(e_t)).chunk(6, dim=-1)
        if image is not None:
            gate_a = torch.where(image, gate_a, torch.ones_like(gate_a))
            gate_m = torch.where(image, gate_m, torch.ones_like(gate_m))
        attended, kv = self.self_attn(modulate(self.input_layernorm(x), shift_a, scale_a, image), context)
        x = x + gate_a * attended
        return x + gate_m * self.mlp(modulate(self.post_attention_layernorm(x), shift_m, scale_m, image)), kv


class FinalLayer(nn.Module):
    """Modulated norm and projection of the image tokens to their latent patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, QK_NORM_EPS)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, e_t: Tensor, image: Tensor | None = None) -> Tensor:
        shift, scale = spread(self.adaLN_modulation(e_t)).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale, image))


class FlowHead:
    """The head as the core calls it (see `models.protocol.Head`): a view of the model's parts, made at every use."""

    def __init__(self, model: ShowO2) -> None:
        self.model = model
        self.blocks: Sequence[Any] = model.diffusion_head_a  # type: ignore[assignment]

    def rope(self, position: Tensor) -> Rope:
        return self.blocks[0].self_attn.rotary_emb(position)

    def condition(self, contents: Sequence[Sequence[Row]], width: int) -> tuple[Tensor | None, ...]:
        return modulation(contents, width)

    def enter(self, hidden: Tensor) -> Tensor:
        return self.model.diff_proj(hidden)

    def prediction(self, features: Tensor, contents: Sequence[Sequence[Row]]) -> Tensor:
        """Velocity [R, c, H, W] of the one image that each row draws."""
        drawn = [next(image for row in rows for image in row.images()) for rows in contents]
        times = [image.e_t for image in drawn]
        e_t = times[0] if all(t is times[0] for t in times) else torch.cat(times)
        patches = self.model.diffusion_head_b(features, e_t)
        return self.model.unpatchify(patches, *drawn[0].latents.shape[-2:])
