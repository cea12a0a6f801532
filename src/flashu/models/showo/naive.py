"""The original program's computation, whole padded rows at a time: the yardstick of the exact runtime.

Every position goes through every layer, logits of the whole vocabulary are computed everywhere, nothing is cached. Its
layers share no code with the ones that the runtime walks through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.ffn import PlainFFN
from flashu.models.showo.model import Attention, Layer, ShowO

Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]


def unnamed(component: str) -> AbstractContextManager[None]:
    """The default of ``part``."""
    return nullcontext()


def drawing_mask(ids: Tensor, pad: int, soi: int, eoi: int) -> Tensor:
    """bool [B, 1, S, S] of left-padded rows with one image each: causal, but from soi to eoi everything is seen; only
    padding sees padding."""
    image = _spans(ids, soi, eoi)
    padding = ids == pad
    seen = _causal(ids) | image[:, :, None]
    return (seen & (~padding[:, None, :] | padding[:, :, None]))[:, None]


def question_mask(ids: Tensor, eoi: int) -> Tensor:
    """bool [B, 1, S, S]: causal, but all see everything up to eoi, whose place is the first row's."""
    stop = int((ids[0] == eoi).nonzero()[0]) + 1
    seen = _causal(ids).clone()
    seen[:, :, :stop] = True
    return seen[:, None]


def features_mask(length: int, start: int, count: int) -> Tensor:
    """bool [1, 1, S, S]: causal, but all see the ``count`` features from ``start`` on."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[:, start : start + count] = True
    return seen[None, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the program adds it to the scores: as low as the least 64-bit integer where nothing is seen."""
    low = max(float(torch.iinfo(torch.int64).min), torch.finfo(dtype).min)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, low)


def forward(model: ShowO, x: Tensor, mask: Tensor, part: Part = unnamed, outputs: list[Tensor] | None = None) -> Tensor:
    """Logits [B, S, V] of ids [B, S] or embedded rows [B, S, h] under an additive mask. ``part``: a context around the
    work of each component, for timing; ``outputs``: where to put the output of each layer and of the last norm."""
    with part("features"):
        x = x if x.is_floating_point() else model.embed_tokens(x)
    with part("LLM"):
        tables = turns(model, x)
        for block in model.layers:
            x = layer(block, x, tables, mask)
            if outputs is not None:
                outputs.append(x)
        x = normed(model.showo.model.final_layernorm, x)
        if outputs is not None:
            outputs.append(x)
    with part("logits"):
        return model.showo.lm_head(x).float()


# -- the program's own operations, one for one ---------------------------------------------------------------------
def turns(model: ShowO, x: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [S, 1, rotary channels] at positions 0..S-1 of rows x [B, S, h]."""
    llm = model.config.llm
    frequency = llm.rope_theta ** -(torch.arange(0, llm.rotary_dim, 2, device=x.device).float() / llm.rotary_dim)
    angles = torch.arange(x.shape[1], device=x.device)[:, None].float() * frequency
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def turned(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, S, H, d], whose first channels are rotated."""
    cos, sin = tables
    head, tail = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = head.chunk(2, dim=-1)
    return torch.cat((head * cos + torch.cat((-second, first), dim=-1) * sin, tail), dim=-1)


def normed(norm: Any, x: Tensor) -> Tensor:
    wide = x.float()
    away = wide - wide.mean(-1, keepdim=True)
    scaled = away * torch.rsqrt(away.pow(2).mean(-1, keepdim=True) + norm.eps)
    return (scaled * norm.weight.float() + norm.bias.float()).to(x.dtype)


def attended(attention: Attention, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    def heads(y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, attention.head_dim)

    q = turned(normed(attention.q_layernorm, heads(attention.q_proj(x))), tables)
    k = turned(normed(attention.k_layernorm, heads(attention.k_proj(x))), tables)
    v = heads(attention.v_proj(x))
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return attention.dense(y.transpose(1, 2).reshape(x.shape))


def mixed(ffn: PlainFFN, x: Tensor) -> Tensor:
    inner = ffn.fc1(x)
    gate = torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner.pow(3)))
    return ffn.fc2(0.5 * inner * (1 + gate))


def layer(block: Layer, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    y = normed(block.input_layernorm, x)
    return x + attended(block.self_attn, y, tables, mask) + mixed(block.mlp, y)


def _causal(ids: Tensor) -> Tensor:
    at = torch.arange(ids.shape[1], device=ids.device)
    return (at[None, :] <= at[:, None]).expand(len(ids), -1, -1)


def _spans(ids: Tensor, first: int, last: int) -> Tensor:
    """bool [B, S]: from the token ``first`` of each row to its ``last``."""
    return ((ids == first).cumsum(1) > 0) & ((ids == last).flip(1).cumsum(1).flip(1) > 0)


def training_losses(logits: Tensor, labels: Tensor, counts: tuple[int, int, int], start: int) -> Tensor:
    """The original's losses [3] of a batch of rows to draw, of text and to answer, ``counts`` of each, from logits
    [B, S, V] and labels [B, S] (-100: none): of images, which begin at ``start`` with soi, at their own places, soi and
    eoi counted; of text and answers one place earlier. Each is the mean over its own labels; one without rows is 0."""
    drawn, text, asked = logits.split(counts)
    of_drawn, of_text, of_asked = labels.split(counts)
    pairs = (
        (drawn[:, start:], of_drawn[:, start:]),
        (text[:, :-1], of_text[:, 1:]),
        (asked[:, :-1], of_asked[:, 1:]),
    )
    return torch.stack(
        [F.cross_entropy(x.flatten(0, 1), y.flatten()) if len(x) else logits.new_zeros(()) for x, y in pairs]
    )
