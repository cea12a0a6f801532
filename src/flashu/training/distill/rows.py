"""Denoising forwards in training: what stands before a picture is the frozen teacher's, computed once for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.actions import Append, Draw, DrawRequest, Fork
from flashu.inference.engine import Engine
from flashu.inference.samplers.base import Sampler
from flashu.plan import MAIN, Guidance, LayerPlan
from flashu.runtime.context import Context
from flashu.runtime.layout import Segment, stack
from flashu.runtime.prefill import Prefills, stacked_or_none
from flashu.runtime.runner import Runner

PLAN = LayerPlan()


@dataclass(frozen=True, eq=False)
class Prompted:
    """One row of a batch: its contexts by branch, how it is guided, (latents, time) -> its block, and the times of a
    drawing in so many forwards, with its end; time 0 is noise."""

    contexts: Mapping[str, Context]
    guidance: Guidance
    block: Callable[[Tensor, float], Segment]
    times: Callable[[int], list[float]]


def times_of(sampler: Callable[[int, str], Sampler], forwards: int) -> list[float]:
    """The times of a drawing in so many forwards, and 1, its end."""
    drawing = sampler(forwards, "euler")
    return [*(float(drawing.time(n) or 0.0) for n in range(forwards)), 1.0]


@torch.no_grad()
def prompted(engine: Engine, requests: Sequence[DrawRequest], runner: Runner) -> list[Prompted]:
    """The rows of some requests of one kind, their contexts computed; `FlashUError` for a model without flow or for
    requests that think first."""
    if engine.model.spec.drawing != "flow":
        raise FlashUError(f"{engine.model.spec.family} does not draw by flow: it has no steps to distill")
    rows = []
    for script in engine.layout.draw(requests, engine.recipe):
        contexts: dict[str, Context] = {}
        for action in script:
            if isinstance(action, Append):
                for name in action.to:
                    for segment in action.segments:
                        contexts.setdefault(name, Context()).append(segment)
            elif isinstance(action, Fork):
                contexts[action.name] = contexts.setdefault(action.source, Context()).fork()
            elif not isinstance(action, Draw):
                raise FlashUError("thoughts are not distilled: leave think out")
        assert isinstance(action, Draw)
        if not action.guidance.scales:
            raise FlashUError(
                "without guidance there is nothing to fold into a student: its default scale is 1 or less"
            )
        branches = (MAIN, *action.guidance.scales)
        own = {name: contexts.setdefault(name, Context()) for name in branches}
        rows.append(Prompted(own, action.guidance, action.sampler(1, "euler").block, partial(times_of, action.sampler)))  # type: ignore[attr-defined]
    for name in rows[0].contexts:
        here = [row.contexts[name] for row in rows]
        Prefills(runner).fill(here, PLAN, bool(engine.model.head and engine.model.head.blocks))
    return rows


def velocities(
    runner: Runner,
    rows: Sequence[Prompted],
    latents: Tensor,
    times: Sequence[float],
    branch: str = MAIN,
    scales: Sequence[tuple[float, float]] | None = None,
) -> Tensor:
    """Predicted velocities [B, ...], from noise to data, of latents [B, ...] at ``times``, behind the contexts of a
    branch. ``scales``: text and picture guidance of each, embedded."""
    model = runner.model
    assert model.head is not None
    segments = [row.block(x, time) for row, x, time in zip(rows, latents, times, strict=True)]
    if scales is not None:
        segments = [
            replace(segment, content=replace(segment.content, scales=own))
            for segment, own in zip(segments, scales, strict=True)
        ]
    contexts = [row.contexts[branch] for row in rows]
    contents = [[segment.content] for segment in segments]
    x = torch.stack(model.embed([content for (content,) in contents]))
    layout = stack([context.placed(segment) for context, segment in zip(contexts, segments, strict=True)])
    past = stacked_or_none([context.kv(PLAN) for context in contexts])
    view = runner.view(layout, None if past is None else past.layouts[0])
    done = runner.walk(x, layout, PLAN, past=past, view=view)
    condition = model.head.condition(contents, x.shape[1])
    features, _ = runner.head(done.hidden, condition, view, None if past is None else past.head)
    read = segments[0].reads
    return model.head.prediction(features[:, read.start : read.stop], contents)


@torch.no_grad()
def guided(
    runner: Runner, rows: Sequence[Prompted], latents: Tensor, times: Sequence[float], scales: Sequence[Sequence[float]]
) -> Tensor:
    """The teacher's velocities, guided by ``scales`` of each row in the order of its guidance branches, as the engine
    combines them."""
    by_branch = {name: velocities(runner, rows, latents, times, name) for name in rows[0].contexts}
    found = []
    for n, row in enumerate(rows):
        own = dict(zip(row.guidance.scales, scales[n], strict=False))
        found.append(row.guidance.formula({name: value[n] for name, value in by_branch.items()}, own))
    return torch.stack(found).float()
