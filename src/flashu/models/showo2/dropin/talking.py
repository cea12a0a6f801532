"""The original's token loops, over a growing cache."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from flashu.inference.actions import Action, Append, Decode
from flashu.inference.run import Run
from flashu.models.adopt import sampled_token
from flashu.models.showo2.content import Embedded, Row
from flashu.plan import MAIN
from flashu.plan.recipe import Recipe
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment, TokenLayout


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
    choose = partial(sampled_token, temperature=temperature, top_k=top_k, top_p=top_p)
    run = Run(after(x, layout, limit), recipe, executor.model.spec, choose=choose)
    with torch.inference_mode():
        while not run.done and not (run.text and run.text[-1] in stops):
            run.step(executor)
    run.close()
    return run.text
