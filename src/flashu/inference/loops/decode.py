"""Image and question to text: one prefill, then one token per forward over a growing cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashu.inference.run import Run
from flashu.plan import Step
from flashu.runtime.cache import Cache
from flashu.runtime.runner import KV, Pass
from flashu.runtime.scores import NEED_QUERY
from flashu.runtime.tokens import TEXT, Tokens


@torch.inference_mode()
def decode(
    run: Run, x: Tensor, tokens: Tokens, choose: Callable[[Tensor], Tensor], stop: int | None
) -> Iterator[list[int | None]]:
    """Embedded rows x [B, S, h] (right-padded) -> one list of B new tokens per forward; None once a row has stopped.

    ``choose``: logits [B, V] -> tokens [B]. ``stop``: the token that ends a row; it is not yielded.
    """
    logits, cache = prefill(run, x, tokens)
    going = [True] * len(x)
    for forward in range(1, run.forwards + 1):
        picked = choose(logits)
        new = picked.tolist()
        going = [on and token != stop for on, token in zip(going, new, strict=True)]
        if not any(going):
            return
        yield [token if on else None for on, token in zip(going, new, strict=True)]
        if forward < run.forwards:
            logits = one_more(run, forward, picked, cache)


def prefill(run: Run, x: Tensor, tokens: Tokens) -> tuple[Tensor, Cache]:
    """All of the rows through the decoder: logits [B, V] after them, and the cache. What several rows begin with, up to
    the end of their images, goes through once: nothing in it sees what comes after (law a)."""
    runner, model = run.runner, run.runner.model
    step = Step(run.task, "prefill", 0, run.forwards)
    plan = run.plan(step)
    past, held, begun = None, 0, 0
    later = any(route.score in NEED_QUERY for route in plan.layers.routes)  # judges images by the text after them
    common = None if later or plan.probe == "tokens" else beginnings(x, tokens)
    if common is not None:
        held, first, of = common
        begun = len(first) * held
        shown = tokens.part(0, held).rows(torch.tensor(first))
        kv = runner.backbone(x[first, :held], shown, plan.layers, keep=True).kv
        assert isinstance(kv, KV)
        past = kv.rows(torch.tensor(of))
        x, tokens = x[:, held:], tokens.part(held, tokens.shape[1])
    done = runner.backbone(x, tokens, plan.layers, past=past, probe=plan.probe, keep=True)
    run.note(step, plan, len(x), x.shape[1], held, done.similarity, begun)
    assert isinstance(done.kv, KV)
    # Law e: only the last token of each row has logits anybody reads.
    at = done.tokens.last.to(model.device)[:, None, None].expand(-1, 1, done.hidden.shape[-1])
    cache = Cache(model, done.kv.layers, done.kv.tokens, run.room)
    return model.logits(done.hidden.gather(1, at))[:, 0], cache


def one_more(run: Run, forward: int, picked: Tensor, cache: Cache) -> Tensor:
    """Forward ``forward``, counted from 0: the tokens ``picked`` [B] join the cache; logits [B, V] after them."""
    runner, model, taken = run.runner, run.runner.model, forward - 1
    step = Step(run.task, "decode", forward, run.forwards)
    plan = run.plan(step)

    def walk(picked: Tensor) -> Pass:
        x = model.embed_text(picked[:, None])
        return runner.backbone(x, cache.next(taken), plan.layers, past=cache, probe=plan.probe, keep=True)

    def logits(picked: Tensor) -> Tensor:
        return model.logits(walk(picked).hidden)[:, 0]

    if plan.probe == "off" and runner.observer is None:
        run.note(step, plan, len(picked), 1, cache.width(taken), None)
        return run.replay(plan.layers, logits, picked)
    done = walk(picked)
    run.note(step, plan, len(picked), 1, cache.width(taken), done.similarity)
    return model.logits(done.hidden)[:, 0]


def beginnings(x: Tensor, tokens: Tokens) -> tuple[int, list[int], list[int]] | None:
    """What rows x [B, S, h] share: how many tokens, the rows that show each different beginning, and which of these
    each row has. None if nothing is shared, or the images do not end at the same place."""
    seen = tokens.visual | (tokens.block != TEXT)
    ends = torch.where(seen, torch.arange(tokens.shape[1]) + 1, 0).amax(1)
    width = int(ends[0])
    if len(x) == 1 or width == 0 or bool((ends != width).any()) or bool((tokens.last < width).any()):
        return None
    first: list[int] = []
    of = []
    marks = torch.stack((tokens.block, tokens.visual.long(), tokens.pos), dim=-1)[:, :width]
    for row in range(len(x)):
        same = (
            n
            for n, other in enumerate(first)
            if torch.equal(marks[row], marks[other]) and torch.equal(x[row, :width], x[other, :width])
        )
        number = next(same, len(first))
        if number == len(first):
            first.append(row)
        of.append(number)
    return None if len(first) == len(x) else (width, first, of)
