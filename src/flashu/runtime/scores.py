"""What a visual token is worth keeping: scores from what the layer before computed of it.

The paper's is the value norm (section 3.5.1); the others are what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.plan import Route, Score
from flashu.runtime.layout import TokenLayout, visible

NEED_QUERY: frozenset[Score] = frozenset({"attention"})
PIVOTS_PER_TOKEN = 1 / 8


@dataclass(frozen=True, eq=False)
class Inner:
    """What one layer computed of S tokens: key and value [B, kv_heads, S, d], query [B, heads, S, d] where asked for,
    and its output [B, S, h]."""

    layout: TokenLayout
    key: Tensor
    value: Tensor
    output: Tensor
    query: Tensor | None = None


def value_norm(inner: Inner, seed: int) -> Tensor:
    """Squared L2 norm of the whole value vector over heads and channels: [B, S]."""
    return inner.value.float().square().sum(dim=(1, 3))


def key_norm(inner: Inner, seed: int) -> Tensor:
    return inner.key.float().square().sum(dim=(1, 3))


def attention(inner: Inner, seed: int) -> Tensor:
    """Attention received from the text after the image, mean over heads and those tokens (FastV)."""
    assert inner.query is not None
    layout = inner.layout
    p = probabilities(inner.query, inner.key, layout).mean(1)
    after = text_after_images(layout).to(p.device, p.dtype)
    return (p * after[..., None]).sum(1) / after.sum(1, keepdim=True)


def random(inner: Inner, seed: int) -> Tensor:
    """The same numbers in every row, so that a row's do not depend on its batch."""
    numbers = torch.rand(inner.layout.shape[1], generator=torch.Generator().manual_seed(seed))
    return numbers.to(inner.value.device).expand(inner.layout.shape)


def duplication(inner: Inner, seed: int) -> Tensor:
    """Largest cosine similarity to a pivot (DART): tokens that repeat one can go. The pivots, the eighth of a row's
    visual tokens with the largest key norms, are worth most."""
    visual = inner.layout.visual.to(inner.output.device)
    counts = (visual.sum(1, keepdim=True) * PIVOTS_PER_TOKEN).long().clamp(min=1)
    norms = key_norm(inner, seed).masked_fill(~visual, -torch.inf)
    rank = norms.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    pivot = rank < counts
    x = F.normalize(inner.output.float(), dim=-1)
    similarity = (x @ x.transpose(1, 2)).masked_fill(~pivot[:, None], -torch.inf).amax(-1)
    return similarity.masked_fill(pivot, -torch.inf)


SCORES: dict[Score, Callable[[Inner, int], Tensor]] = {
    "value_norm": value_norm,
    "key_norm": key_norm,
    "attention": attention,
    "random": random,
    "duplication": duplication,
}
assert set(SCORES) == set(get_args(Score))


def text_after_images(layout: TokenLayout) -> Tensor:
    """bool [B, S]: valid tokens behind the last image token of their row."""
    at = torch.arange(layout.shape[1])
    last = at.masked_fill(~layout.visual, -1).amax(1, keepdim=True)
    return layout.valid & (at > last)


def probabilities(query: Tensor, key: Tensor, layout: TokenLayout) -> Tensor:
    """Attention probabilities [B, heads, S, S] of a prefill (no earlier tokens), fp32."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    mask = visible(layout, layout)
    if mask is not None:
        scores = scores.masked_fill(~mask.to(scores.device), -torch.inf)
    return scores.softmax(-1)


def dropped(inner: Inner, route: Route) -> Tensor | None:
    """Indices [B, K] of the tokens that stay, in order; None when nothing is dropped. A row loses its share of its own
    visual tokens, all images and frames together; -1 fills up the rows that lose more than others."""
    layout = inner.layout
    drops = [int(count * route.ratio) for count in layout.visual.sum(1).tolist()]
    if not any(drops):
        return None
    score = SCORES[route.score](inner, route.seed)
    score = score if route.side == "largest" else -score
    score = score.masked_fill(~layout.visual.to(score.device), -torch.inf)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    gone = rank < torch.tensor(drops, device=rank.device)[:, None]
    order = gone.long().argsort(dim=1, stable=True)
    index = order.masked_fill(gone.gather(1, order), -1)
    return index[:, : layout.shape[1] - min(drops)]
