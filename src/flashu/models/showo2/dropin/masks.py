"""Dense attention masks read back into what they say: which runs of tokens see each other both ways."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashu.models.showo2 import naive
from flashu.runtime.layout import TokenLayout, visible


def allowed(mask: Tensor) -> Tensor:
    """bool: where a mask lets attend. An additive mask has 0 there, a large negative number elsewhere."""
    return mask if mask.dtype == torch.bool else mask >= 0


def layout_of(mask: Tensor, *, late: bool) -> TokenLayout | None:
    """The layout of one row that a dense mask [.., S, S] describes; None if it is not causal with whole blocks.

    ``late``: the blocks begin one token late, as in the original's question script (first image token to the token
    after the image); then their last token is no image token. Else their first one, the time token, is none.
    """
    if mask.numel() != mask.shape[-1] ** 2 or mask.shape[-2:] != (mask.shape[-1],) * 2:
        return None
    attends = allowed(mask).reshape(mask.shape[-2:]).cpu()
    at = torch.arange(len(attends))
    furthest = torch.where(attends, at, -1).amax(dim=1)
    layout = TokenLayout.causal([len(attends)])
    for end in furthest[furthest > at].unique().tolist():
        start = int((furthest == end).nonzero()[0])
        layout = layout.block(start, end + 1, slice(start + (not late), end + (not late)))
    rebuilt = visible(layout, layout)
    same = attends.all() if rebuilt is None else torch.equal(rebuilt[0, 0], attends)
    return layout if same else None


def with_images_marked(layout: TokenLayout, x: Tensor, words: Tensor) -> TokenLayout:
    """The same question [1, S] with each image token marked: what is no row of the embedding table ``words`` [V, h],
    save the time tokens. The mask of a question about a video shows the first frames only.

    If what stands before the first image is not made of such rows either, the embeddings are no plain look-up: the row
    stays as the mask says.
    """
    starts = _starts(layout)
    text = torch.isin(_keys(x[0]), _keys(words)).cpu()
    if not starts or starts[0] < 1 or not bool(text[: starts[0] - 1].all()):
        return layout
    visual = ~text
    visual[[start - 1 for start in starts]] = False
    return replace(layout, visual=visual[None])


def as_in_training(layout: TokenLayout) -> TokenLayout:
    """The same question with each late block where training has it: from the time token to the last image token."""
    moved = TokenLayout.causal([layout.shape[1]])
    for start in _starts(layout):
        after = (~layout.visual[0, start:]).nonzero()
        stop = start + int(after[0]) if len(after) else layout.shape[1]
        moved = moved.block(start - 1, stop)
    return replace(moved, visual=layout.visual)


def _starts(layout: TokenLayout) -> list[int]:
    """Where the blocks of one row begin."""
    order, sees = layout.order[0], layout.sees[0]
    first = (sees > order) & (sees != torch.cat((order[:1] - 1, sees[:-1])))
    return first.nonzero()[:, 0].tolist()


def _keys(rows: Tensor) -> Tensor:
    """The first eight bytes of each row, as one number [n]."""
    return rows[:, : 8 // rows.element_size()].contiguous().view(torch.int64)[:, 0]


def draws(mask: object, positions: Tensor, length: int) -> bool:
    """Whether a mask is the one for images at ``positions`` [R, M, 2] in rows of ``length`` tokens.

    What lies after the last image does not count: it cannot reach the image. A block mask is not dense, but made from
    the positions by its only maker, and taken at its word.
    """
    if not isinstance(mask, Tensor):
        return mask is not None
    if mask.shape != (len(positions), 1, length, length):
        return False
    wanted = naive.omni_mask(length, positions.to(mask.device))
    counts = torch.arange(length, device=mask.device) < positions.to(mask.device).sum(-1).amax(-1, keepdim=True)
    return bool(((wanted == allowed(mask)) | ~counts[:, None, :, None]).all())
