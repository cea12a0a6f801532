"""Image and question to text: one prefill, then one token per forward over a growing cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashu.plan import Step
from flashu.run import Run
from flashu.runtime.cache import Cache
from flashu.runtime.runner import KV
from flashu.runtime.tokens import Tokens


@torch.inference_mode()
def decode(
    run: Run, x: Tensor, tokens: Tokens, choose: Callable[[Tensor], Tensor], stop: int | None
) -> Iterator[list[int | None]]:
    """Embedded rows x [B, S, h] (right-padded) -> one list of B new tokens per forward; None once a row has stopped.

    ``choose``: logits [B, V] -> tokens [B]. ``stop``: the token that ends a row; it is not yielded.
    """
    model, runner = run.runner.model, run.runner
    cache: Cache | None = None
    going = [True] * len(x)
    for index in range(run.forwards):
        step = Step(run.task, "decode" if index else "prefill", index, run.forwards)
        plan = run.plan(step)
        if cache is None:
            done = runner.backbone(x, tokens, plan.layers, probe=plan.probe, keep=True)
            run.note(step, plan, len(x), x.shape[1], 0, done.similarity)
            assert isinstance(done.kv, KV)
            cache = Cache(model, done.kv.layers, done.kv.tokens, run.forwards - 1)
            # Law e: only the last token of each row has logits anybody reads.
            at = done.tokens.last.to(model.device)[:, None, None].expand(-1, 1, done.hidden.shape[-1])
            hidden = done.hidden.gather(1, at)
        else:
            held = cache.width
            done = runner.backbone(x, cache.next, plan.layers, past=cache, probe=plan.probe, keep=True)
            run.note(step, plan, len(x), 1, held, done.similarity)
            hidden = done.hidden
        picked = choose(model.logits(hidden)[:, 0])
        new = picked.tolist()
        going = [on and token != stop for on, token in zip(going, new, strict=True)]
        if not any(going):
            return
        yield [token if on else None for on, token in zip(going, new, strict=True)]
        x = model.embed_text(picked[:, None])
