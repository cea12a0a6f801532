"""The model's own computation of questions and answers, as a draft learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashu.inference.actions import Append, Decode
from flashu.inference.engine import Engine
from flashu.plan import LayerPlan
from flashu.runtime.context import Context
from flashu.runtime.layout import TokenLayout, stack
from flashu.training.draft.answers import Asked


@dataclass(frozen=True, eq=False)
class Taught:
    """Rows of question and answer: embedded tokens x [B, S, D], the outputs [B, S, D] of the layers asked for, the
    normed last ones ``hidden``; ``first`` and ``length`` [B]: the answer's first token, and the row's end."""

    x: Tensor
    collected: Sequence[Tensor]
    hidden: Tensor
    first: Tensor
    length: Tensor


@torch.no_grad()
def taught(
    engine: Engine, collect: Sequence[int], asked: Sequence[Asked], answers: Sequence[Sequence[int]], limit: int | None
) -> Taught:
    """The rows of some questions, computed whole. An answer that ended has its stop token behind it."""
    model, spec = engine.model, engine.model.spec
    rows, layouts, first = [], [], []
    for script, answer in zip(engine.layout.answer([one.request(limit) for one in asked]), answers, strict=True):
        contexts: dict[str, Context] = {}
        for action in script:
            if isinstance(action, Append):
                for name in action.to:
                    for segment in action.segments:
                        contexts.setdefault(name, Context()).append(segment)
            elif isinstance(action, Decode):
                break
        assert isinstance(action, Decode)
        context = contexts[action.branch]
        ids = [*answer, *([min(action.stop)] if action.stop and len(answer) < action.limit else [])]
        embedded = model.embed([segment.content for segment in context.segments])
        said = model.embed_tokens(torch.tensor([ids], dtype=torch.long, device=model.device))[0]
        rows.append(torch.cat((*embedded, said)))
        layout = context.segments[0].layout
        for segment in context.segments[1:]:
            layout = layout.cat(segment.layout)
        spans = tuple((expert, 0, len(ids)) for expert, _, _ in spec.text_spans)
        layouts.append(layout.cat(TokenLayout.causal([len(ids)], spans).shifted(context.position, context.length)))
        first.append(context.length)
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    done = engine.prepared.runner(model).walk(x, stack(layouts), LayerPlan(), collect=collect)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    return Taught(x, done.collected, done.hidden, torch.tensor(first, device=model.device), lengths)
