"""The original's token loops over a growing cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

import torch
from torch import Tensor

from flashu.inference.loops.decode import decode
from flashu.inference.run import Run
from flashu.plan.recipe import Recipe
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import Tokens


def drawn_token(logits_BV: Tensor, *, temperature: float, top_k: int | None, top_p: float | None = None) -> Tensor:
    """Next token of each row [B], sampled as the original does, from torch's own generator.

    It samples even where one token is left (top_k 1), so that the generator goes on as with the original. Its top-p
    fails on an index; here it keeps the fewest tokens that hold ``top_p`` of the mass.
    """
    logits = logits_BV / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(-1)
        logits = logits.scatter(1, index, ordered.masked_fill((p.cumsum(-1) - p) > top_p, -torch.inf))
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


def talk(
    runner: Runner,
    recipe: Recipe,
    x: Tensor,
    tokens: Tokens,
    most: int,
    stops: Collection[int],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None = None,
) -> Iterator[int]:
    """Tokens that follow one embedded row x [1, S, h]; the stopping token is the last, as in the original."""
    if most < 1:
        return
    run = Run(runner, recipe, "understanding", most)
    pick = partial(drawn_token, temperature=temperature, top_k=top_k, top_p=top_p)
    for (token,) in decode(run, x, tokens, pick, None):
        assert token is not None
        yield token
        if token in stops:
            return
