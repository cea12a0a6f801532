"""The original program's computation: the yardstick of the exact runtime.

A pass is one branch's: its new tokens behind a cache that is copied to grow, logits over the whole vocabulary. Its
layers share no code with the ones that the runtime walks through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.emu3.config import Ids
from flashu.models.emu3.model import Emu3
from flashu.models.layers import Attention, DecoderLayer, RMSNorm

Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]


def unnamed(component: str) -> AbstractContextManager[None]:
    """The default of ``part``."""
    return nullcontext()


class Cache:
    """Keys and values of one branch's rows, layer by layer [B, H, T, d]; ``mask`` [B, T]: which tokens are real."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.layers: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of_length(cls, model: Emu3, rows: int, length: int) -> Cache:
        """A cache of so many tokens, whichever these are, for timing."""
        text = model.config.text
        shape = rows, text.num_key_value_heads, length, text.hidden_size // text.num_attention_heads
        cache = cls(torch.ones(rows, length, dtype=torch.bool, device=model.device))
        like = {"dtype": model.dtype, "device": model.device}
        cache.layers = [(torch.ones(shape, **like), torch.ones(shape, **like)) for _ in model.layers]  # type: ignore[call-overload]
        return cache

    def grown(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            self.layers.append((k, v))
        else:
            old = self.layers[layer]
            self.layers[layer] = torch.cat((old[0], k), dim=2), torch.cat((old[1], v), dim=2)
        return self.layers[layer]


def forward(model: Emu3, ids: Tensor, cache: Cache, part: Part = unnamed) -> Tensor:
    """Logits [B, S, V] of new tokens [B, S], whose mask is part of the cache's already. Real tokens count positions."""
    total, new = cache.mask.shape[1], ids.shape[1]
    position = (cache.mask.long().cumsum(1) - 1).clamp(min=0)[:, total - new :]
    at = torch.arange(total, device=ids.device)
    allowed = (at[None, :] <= at[total - new :, None]) & cache.mask[:, None, :]
    allowed = allowed | (at[None, :] == at[total - new :, None])  # padding sees itself, or its row would be empty
    with part("features"):
        x = model.embed_tokens(ids)
    with part("LLM"):
        angles = position[..., None].float() * model.decoder.rotary_emb.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        turns = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for n, block in enumerate(model.layers):
            x = layer(block, x, turns, allowed[:, None], lambda k, v, n=n: cache.grown(n, k, v))
        x = normed(model.decoder.norm, x)
    with part("logits"):
        return model.lm_head(x).float()


# -- the program's own operations, one for one -----------------------------------------------------------------------
def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turns[0] + torch.cat((-second, first), dim=-1) * turns[1]


def normed(norm: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    return norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype)


def attended(
    attention: Attention, x: Tensor, turns: tuple[Tensor, Tensor], allowed: Tensor, grown: Callable[..., Any]
) -> Tensor:
    def heads(y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, attention.head_dim).transpose(1, 2)

    q, k, v = heads(attention.q_proj(x)), heads(attention.k_proj(x)), heads(attention.v_proj(x))
    k, v = grown(turned(k, turns), v)
    each = attention.heads // attention.kv_heads
    k, v = k.repeat_interleave(each, dim=1), v.repeat_interleave(each, dim=1)
    y = F.scaled_dot_product_attention(turned(q, turns), k, v, attn_mask=allowed)
    return attention.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))


def layer(
    block: DecoderLayer, x: Tensor, turns: tuple[Tensor, Tensor], allowed: Tensor, grown: Callable[..., Any]
) -> Tensor:
    x = x + attended(block.self_attn, normed(block.input_layernorm, x), turns, allowed, grown)
    y, ffn = normed(block.post_attention_layernorm, x), block.mlp
    return x + ffn.down_proj(F.silu(ffn.gate_proj(y)) * ffn.up_proj(y))


class Allowed:
    """Which tokens may come next in an image of ``height`` x ``width`` codes."""

    def __init__(self, ids: Ids, codes: int, height: int, width: int) -> None:
        self.ids, self.height, self.width = ids, height, width
        self.codes = list(range(ids.first, ids.first + codes))

    def after(self, row: Sequence[int]) -> list[int]:
        """The ids that may follow a row, which has the mark before its codes."""
        return self.at(len(row) - list(row).index(self.ids.img))

    def at(self, offset: int) -> list[int]:
        """The ids that may be ``offset`` tokens after that mark. Ends of lines come first: in an image two codes wide
        or less, they come where its end would be."""
        ids, past = self.ids, offset - self.height * (self.width + 1)
        if offset % (self.width + 1) == 0:
            return [ids.eol]
        if past < 1:
            return self.codes
        return [ids.eof, ids.eoi, ids.eos][past - 1 : past] or [ids.pad]


def scores(
    conditional: Tensor, unconditional: Tensor | None, scale: float, allowed: Sequence[Sequence[int]], top_k: int
) -> Tensor:
    """Logits [B, V] of the last token of both branches -> what the next token is chosen by; all else is -inf."""
    guided = conditional
    if unconditional is not None:
        c, u = conditional.log_softmax(-1), unconditional.log_softmax(-1)
        guided = scale * (c - u) + u
    mask = torch.full_like(guided, -torch.inf)
    for row, ids in enumerate(allowed):
        mask[row, torch.tensor(ids, device=mask.device)] = 0
    guided = guided + mask
    if 1 < top_k < guided.shape[-1]:
        guided = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -torch.inf)
    return guided
