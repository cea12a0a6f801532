"""The original program's computation: the yardstick of the exact runtime.

A pass is over the new tokens of all rows, left-padded, behind a cache that is copied to grow. Its layers share no code
with the ones that the runtime walks through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.janus.model import Janus
from flashu.models.layers import Attention, DecoderLayer, RMSNorm

Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]


def unnamed(component: str) -> AbstractContextManager[None]:
    """The default of ``part``."""
    return nullcontext()


class Rows:
    """Rows of embedded tokens [S, D] that differ in length: what is new of them, and keys and values of the rest."""

    def __init__(self, model: Janus, rows: Sequence[Tensor], part: Part = unnamed) -> None:
        width = max(len(row) for row in rows)
        self.model, self.part = model, part
        self.new = torch.stack([F.pad(row, (0, 0, width - len(row), 0)) for row in rows])
        at = torch.arange(width, device=model.device)
        self.mask = torch.stack([at >= width - len(row) for row in rows])
        """[B, T]: which tokens are real."""
        self.cache: list[tuple[Tensor, Tensor]] = []

    def add(self, embedded: Tensor) -> None:
        """The next token of each row [B, D]."""
        self.new = embedded[:, None]
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(self.mask), 1)), dim=1)

    def behind(self, tokens: int) -> None:
        """For timing: one new token of each row, behind its own and ``tokens`` - 1 more, whichever these are."""
        text, rows, length = self.model.config.text, len(self.new), self.mask.shape[1] + tokens - 1
        shape = rows, text.num_key_value_heads, length, text.hidden_size // text.num_attention_heads
        self.new = self.new[:, -1:]
        self.cache = [(self.new.new_ones(shape), self.new.new_ones(shape)) for _ in self.model.layers]
        self.mask = self.mask.new_ones(rows, length + 1)

    def hidden(self) -> Tensor:
        """Normed hidden states of the last tokens [B, D], after a pass over what is new."""
        total, new = self.mask.shape[1], self.new.shape[1]
        position = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, total - new :]
        at = torch.arange(total, device=self.new.device)
        allowed = (at[None, :] <= at[total - new :, None]) & self.mask[:, None, :]
        allowed = allowed | (at[None, :] == at[total - new :, None])  # padding sees itself, or its row would be empty
        with self.part("LLM"):
            x, decoder = self.new, self.model.decoder
            angles = position[..., None].float() * decoder.rotary_emb.inv_freq.float()
            angles = torch.cat((angles, angles), dim=-1)[:, None]
            turns = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
            for n, block in enumerate(self.model.layers):
                x = layer(block, x, turns, allowed[:, None], lambda k, v, n=n: self._grown(n, k, v))
            return normed(decoder.norm, x)[:, -1]

    def _grown(self, n: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if n == len(self.cache):
            self.cache.append((k, v))
        else:
            old = self.cache[n]
            self.cache[n] = torch.cat((old[0], k), dim=2), torch.cat((old[1], v), dim=2)
        return self.cache[n]


# -- the program's own operations, one for one -----------------------------------------------------------------------
def embedded(model: Janus, ids: Sequence[int]) -> Tensor:
    """Words [S, D]."""
    return model.decoder.embed_tokens(torch.tensor(ids, device=model.device))


def embedded_codes(model: Janus, codes: Tensor) -> Tensor:
    """Codes [B], from 0 on -> [B, D]."""
    return model.model.generation_aligner(model.model.generation_embeddings(codes))


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
