"""The original program's computation, whole rows at a time: the yardstick of the exact runtime.

Every row is padded to full length, every position goes through every layer, both guidance rows are embedded, logits
are computed everywhere, nothing is cached. Its layers share no code with the ones that the runtime walks through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.ffn import GatedFFN
from flashu.models.layers import Attention, DecoderLayer, RMSNorm, Rope, RotaryEmbedding
from flashu.models.showo2.head import ModulatedBlock, modulate, spread
from flashu.models.showo2.model import ShowO2

Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]


def unnamed(component: str) -> AbstractContextManager[None]:
    """The default of ``part``."""
    return nullcontext()


def omni_mask(length: int, modality_positions: Tensor) -> Tensor:
    """bool [B, 1, S, S]: causal, or both positions inside the same image block (offset, length) [B, M, 2]."""
    at = torch.arange(length, device=modality_positions.device)
    mask = (at[None, :] <= at[:, None]).expand(len(modality_positions), -1, -1).clone()
    for slot in modality_positions.unbind(1):
        offset, size = slot.split(1, dim=1)
        inside = (at >= offset) & (at < offset + size)
        mask |= inside[:, :, None] & inside[:, None, :]
    return mask[:, None]


def splice(
    model: ShowO2, ids: Tensor, latents: Tensor, t: Tensor, modality_positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Embedded rows [B, S, h] with time and image tokens in place; also where (bool [B, S]) and with which time
    embedding they are modulated: [B, d], or [B, S, d] where a row has several images. Image j of row i is
    latents[i*M + j].

    An idle slot (0, 0) still writes its time token over position 0, as the original does.
    """
    x = model.embed_tokens(ids).clone()
    image = model.embed_latent(latents)
    e_t, time_token = model.embed_time(t)
    where = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    slots = modality_positions.shape[1]
    modulation = e_t if slots == 1 else e_t.new_zeros(*ids.shape, e_t.shape[-1])
    for row, positions in enumerate(modality_positions.tolist()):
        for slot, (offset, length) in enumerate(positions):
            n = row * slots + slot
            x[row, offset] = time_token[n]
            x[row, offset + 1 : offset + length] = image[n, : max(length - 1, 0)]
            where[row, offset : offset + length] = True
            if slots > 1:
                modulation[row, offset : offset + length] = e_t[n]
    return x, where, modulation


def decode(model: ShowO2, x: Tensor, mask: Tensor, part: Part = unnamed) -> tuple[Tensor, Tensor]:
    """Embedded rows [B, S, h] -> (normed hidden [B, S, h], logits [B, S, V]), at every position."""
    with part("LLM"):
        tables = turns(model.showo.model.rotary_emb, x)
        for block in model.layers:
            x = layer(block, x, tables, mask)
        hidden = normed(model.showo.model.norm, x)
    with part("logits"):
        return hidden, model.logits(hidden)


def forward(
    model: ShowO2,
    ids: Tensor,
    latents: Tensor,
    t: Tensor,
    mask: Tensor,
    modality_positions: Tensor,
    part: Part = unnamed,
) -> tuple[Tensor, Tensor]:
    """(logits [B, S, V], velocity [n, c, H, W]) of rows [B, S] holding n = B*M images.

    ``mask``: bool or additive [B, 1, S, S]; ``modality_positions`` [B, M, 2]: (index of the time token, image tokens
    + 1). ``part``: a context around the work of each component, for timing.
    """
    with part("features"):
        x, where, modulation = splice(model, ids, latents, t, modality_positions)
    hidden, logits = decode(model, x, mask, part)
    with part("head"):
        x = model.diff_proj(hidden)
        first: ModulatedBlock = model.diffusion_head_a[0]  # type: ignore[assignment]
        tables = turns(first.self_attn.rotary_emb, x)
        for block in model.diffusion_head_a:
            x = modulated(block, x, modulation, where[..., None], tables, mask)  # type: ignore[arg-type]
        patches = model.diffusion_head_b(x, modulation, where[..., None])
    blocks = [
        patches[row, offset + 1 : offset + length]
        for row, positions in enumerate(modality_positions.tolist())
        for offset, length in positions
    ]
    return logits, model.unpatchify(torch.stack(blocks), *latents.shape[-2:])


# -- the program's own operations, one for one ---------------------------------------------------------------------
def turns(rotary: RotaryEmbedding, x: Tensor) -> Rope:
    """cos and sin [B, 1, S, head_dim] at positions 0..S-1 of x [B, S, ...]."""
    pos = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    angles = pos[..., None].float() * rotary.inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def turned(x: Tensor, tables: Rope) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat((-second, first), dim=-1) * tables[1]


def normed(norm: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    return norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype)


def attended(attention: Attention, x: Tensor, tables: Rope, mask: Tensor) -> Tensor:
    def heads(y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, attention.head_dim)

    q, k, v = heads(attention.q_proj(x)), heads(attention.k_proj(x)), heads(attention.v_proj(x))
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = normed(attention.q_norm, q), normed(attention.k_norm, k)
    q, k, v = turned(q.transpose(1, 2), tables), turned(k.transpose(1, 2), tables), v.transpose(1, 2)
    each = attention.heads // attention.kv_heads
    k, v = k.repeat_interleave(each, dim=1), v.repeat_interleave(each, dim=1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))


def mixed(ffn: GatedFFN, x: Tensor) -> Tensor:
    return ffn.down_proj(F.silu(ffn.gate_proj(x)) * ffn.up_proj(x))


def layer(block: DecoderLayer, x: Tensor, tables: Rope, mask: Tensor) -> Tensor:
    x = x + attended(block.self_attn, normed(block.input_layernorm, x), tables, mask)
    return x + mixed(block.mlp, normed(block.post_attention_layernorm, x))


def modulated(
    block: ModulatedBlock, x: Tensor, modulation: Tensor, where: Tensor, tables: Rope, mask: Tensor
) -> Tensor:
    changes = spread(block.adaLN_modulation(modulation)).chunk(6, dim=-1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = changes
    y = attended(block.self_attn, modulate(normed(block.input_layernorm, x), shift_a, scale_a, where), tables, mask)
    x = x + torch.where(where, gate_a, 1) * y
    y = mixed(block.mlp, modulate(normed(block.post_attention_layernorm, x), shift_m, scale_m, where))
    return x + torch.where(where, gate_m, 1) * y
