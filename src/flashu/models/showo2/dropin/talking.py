"""The original's token loops, over a growing cache."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from flashu.inference.actions import Action, Append, Decode
from flashu.inference.run import Run
from flashu.models.showo2.content import Embedded, Row
from flashu.plan import MAIN
from flashu.plan.recipe import Recipe
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment, TokenLayout


def drawn_token(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None = None) -> Tensor:
    """Next token of each row [B] from logits [B, V], sampled as the original does, from torch's own generator.

    It samples even where one token is left (top_k 1), so that the generator goes on as with the original. Its top-p
    fails on an index; here it keeps the fewest tokens that hold ``top_p`` of the mass.
    """
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(-1)
        logits = logits.scatter(1, index, ordered.masked_fill((p.cumsum(-1) - p) > top_p, -torch.inf))
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


def after(x: Tensor, layout: TokenLayout, limit: int, stop: Collection[int] = ()) -> list[Action]:
    """Text after one embedded row x [1, S, h]."""
    row = Segment(Row((Embedded(x[0]),)), layout, x.shape[1])
    return [Append((MAIN,), (row,)), Decode(MAIN, frozenset(stop), limit)]


def answered(
    executor: Executor,
    recipe: Recipe,
    x: Tensor,
    layout: TokenLayout,
    limit: int,
    stops: Collection[int],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None = None,
) -> list[int]:
    """At most ``limit`` tokens that follow an embedded row; the stopping token is the last, as in the original."""
    choose = partial(drawn_token, temperature=temperature, top_k=top_k, top_p=top_p)
    run = Run(after(x, layout, limit), recipe, executor.model.spec, choose=choose)
    with torch.inference_mode():
        while not run.done and not (run.text and run.text[-1] in stops):
            run.step(executor)
    run.close()
    return run.text
