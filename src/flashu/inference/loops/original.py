"""The released programs' own loops, with the work they do and no more.

Drawing: rows padded to full length, both guidance rows embedded, the mask built anew and logits at every position in
every forward. Answering: the whole row again for every token, its mask grown by a row and a column. No cache, eager,
and torch's own products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashu.inference.samplers import flow
from flashu.models.products import plain_products
from flashu.models.showo2 import naive
from flashu.models.showo2.model import ShowO2


def nothing(index: int) -> None:
    """The default of ``before``."""


@torch.inference_mode()
@plain_products()
def draw(
    model: ShowO2,
    ids: Tensor,
    blocks: Tensor,
    z: Tensor,
    times: Tensor,
    guidance: float | None,
    before: Callable[[int], None] = nothing,
    part: naive.Part = naive.unnamed,
) -> Tensor:
    """Euler steps of latents z [B, c, H, W] along ``times``; returns the last latents.

    ``ids`` [R, S]: padded rows, conditional then (under guidance) unconditional; ``blocks`` [R, 1, 2]: (offset,
    length) of their image. ``before``: called with the index of each forward; ``part``: see `naive.forward`.
    """
    for index, dt in enumerate(times.diff().tolist()):
        before(index)
        mask = additive(naive.omni_mask(ids.shape[1], blocks), model.dtype)
        t = times[index].expand(len(ids)).to(model.device)
        latents = z if guidance is None else z.repeat(2, 1, 1, 1)
        _, velocity = naive.forward(model, ids, latents, t, mask, blocks, part)
        if guidance is not None:
            conditional, unconditional = velocity.chunk(2)
            velocity = flow.guide(conditional, unconditional, guidance)
        z = flow.euler(z, velocity, dt)
    return z


@torch.inference_mode()
def answer(model: ShowO2, x: Tensor, mask: Tensor, forwards: int, part: naive.Part = naive.unnamed) -> Iterator[Tensor]:
    """Greedy tokens [B], one after another, of embedded rows x [B, S, h] with bool mask [B, 1, S, S]."""
    grown = additive(mask, model.dtype)
    for _ in range(forwards):
        with plain_products():
            _, logits = naive.decode(model, x, grown, part)
        token = logits[:, -1].argmax(-1)
        yield token
        x = torch.cat((x, model.embed_text(token[:, None])), dim=1)
        grown = with_one_more(grown)


def with_one_more(mask: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, 1, S+1, S+1]: the new token sees what the last one saw, and itself; nobody sees it."""
    below = torch.cat((mask, mask[:, :, -1:]), dim=2)
    beside = torch.full_like(below[..., :1], torch.finfo(mask.dtype).min)
    beside[:, :, -1] = 0
    return torch.cat((below, beside), dim=3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the program adds it to the scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
