"""Dense attention masks read back into what they say: which runs of tokens see each other both ways."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.models.showo2 import naive
from flashu.runtime.tokens import Tokens, visible


def allowed(mask: Tensor) -> Tensor:
    """bool: where a mask lets attend. An additive mask has 0 there, a large negative number elsewhere."""
    return mask if mask.dtype == torch.bool else mask >= 0


def tokens_of(mask: Tensor, *, late: bool) -> Tokens | None:
    """The tokens of one row that a dense mask [.., S, S] describes; None if it is not causal with whole blocks.

    ``late``: the blocks begin one token late, as in the original's question script (first image token to the token
    after the image); then their last token is no image token. Else their first one, the time token, is none.
    """
    if mask.numel() != mask.shape[-1] ** 2 or mask.shape[-2:] != (mask.shape[-1],) * 2:
        return None
    seen = allowed(mask).reshape(mask.shape[-2:]).cpu()
    width = len(seen)
    at = torch.arange(width)
    furthest = torch.where(seen, at, -1).amax(dim=1)
    block, visual = torch.zeros(1, width, dtype=torch.long), torch.zeros(1, width, dtype=torch.bool)
    for number, end in enumerate(furthest[furthest > at].unique().tolist(), start=1):
        start = int((furthest == end).nonzero()[0])
        block[0, start : end + 1] = number
        visual[0, start + (not late) : end + (not late)] = True
    tokens = Tokens(at[None], block, torch.ones(1, width, dtype=torch.bool), visual)
    rebuilt = visible(tokens, tokens)
    whole = seen.all() if rebuilt is None else torch.equal(rebuilt[0, 0], seen)
    return tokens if whole else None


def told_apart(tokens: Tokens, x: Tensor, words: Tensor) -> Tokens:
    """The same question [1, S] with each image token marked: what is no row of the embedding table ``words`` [V, h],
    save the time tokens. The mask of a question about a video shows the first frames only.

    If what stands before the first image is not made of such rows either, the embeddings are no plain look-up: the row
    stays as the mask says.
    """
    starts = _starts(tokens)
    spoken = torch.isin(_keys(x[0]), _keys(words)).cpu()
    if not starts or starts[0] < 1 or not bool(spoken[: starts[0] - 1].all()):
        return tokens
    visual = ~spoken
    visual[[start - 1 for start in starts]] = False
    return Tokens(tokens.pos, tokens.block, tokens.valid, visual[None])


def moved_to_training(tokens: Tokens) -> Tokens:
    """The same question with each late block where training has it: from the time token to the last image token."""
    block = torch.zeros_like(tokens.block)
    for number, start in enumerate(_starts(tokens), start=1):
        after = (~tokens.visual[0, start:]).nonzero()
        stop = start + int(after[0]) if len(after) else tokens.shape[1]
        block[0, start - 1 : stop] = number
    return Tokens(tokens.pos, block, tokens.valid, tokens.visual)


def _starts(tokens: Tokens) -> list[int]:
    """Where the blocks of one row begin."""
    block = tokens.block[0]
    return [int((block == number).nonzero()[0]) for number in block[block > 0].unique().tolist()]


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
