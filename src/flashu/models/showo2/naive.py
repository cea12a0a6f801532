"""The original program's computation, whole rows at a time: the yardstick of the exact runtime.

Every row is padded to full length, every position goes through every layer, both guidance rows are embedded, logits
are computed everywhere, nothing is cached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.models.showo2.model import ShowO2


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
    x = model.embed_text(ids).clone()
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


def decode(model: ShowO2, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded rows [B, S, h] -> (normed hidden [B, S, h], logits [B, S, V]), at every position."""
    rope = model.rope(positions_of(x))
    for i in range(model.num_layers):
        x, _ = model.layer(i, x, rope, mask)
    hidden = model.norm(x)
    return hidden, model.logits(hidden)


def positions_of(x: Tensor) -> Tensor:
    """0..S-1 for every row of x [B, S, ...]."""
    return torch.arange(x.shape[1], device=x.device).expand(len(x), -1)


def forward(
    model: ShowO2, ids: Tensor, latents: Tensor, t: Tensor, mask: Tensor, modality_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """(logits [B, S, V], velocity [n, c, H, W]) of rows [B, S] holding n = B*M images.

    ``mask``: bool or additive [B, 1, S, S]; ``modality_positions`` [B, M, 2]: (index of the time token, image tokens
    + 1).
    """
    x, where, modulation = splice(model, ids, latents, t, modality_positions)
    hidden, logits = decode(model, x, mask)
    features, _ = model.head_body(hidden, modulation, model.head_rope(positions_of(x)), mask, image=where)
    patches = model.head_out(features, modulation, where)
    blocks = [
        patches[row, offset + 1 : offset + length]
        for row, positions in enumerate(modality_positions.tolist())
        for offset, length in positions
    ]
    return logits, model.unpatchify(torch.stack(blocks), *latents.shape[-2:])
