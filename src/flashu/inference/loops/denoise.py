"""Text to image: flow sampling, one plan per forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashu.inference.loops.canvas import Canvas
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.plan import Plan, Step
from flashu.runtime.runner import Pass

OnStep = Callable[[Step, Plan, Tensor], None]
"""Called after each forward with the step, its plan and the latents [B, c, H, W]."""


@torch.inference_mode()
def denoise(run: Run, canvas: Canvas, z: Tensor, times: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Integrate latents z [B, c, H, W] (fp32 noise) along ``times`` [forwards + 1] of the recipe's solver; returns the
    final latents.

    ``canvas`` has B conditional rows, then B unconditional ones if the run has a guidance scale.
    """
    model = run.runner.model
    embeddings, time_tokens = model.embed_time(times[:-1].to(model.device))
    sizes = times.diff().tolist()
    solver = flow.SOLVERS[run.recipe.solver]()
    texts = None if canvas.ids is None else model.embed_text(canvas.ids.to(model.device))
    for step in run.steps():
        e_t, time_token = embeddings[step.index][None], time_tokens[step.index][None, None]
        plan, v = evaluate(run, canvas, step, z, e_t, time_token, texts)
        z = solver.advance(z, v, sizes[step.index])
        if on_step is not None:
            on_step(step, plan, z)
    return z


def evaluate(
    run: Run, canvas: Canvas, step: Step, z: Tensor, e_t: Tensor, time_token: Tensor, texts: Tensor | None
) -> tuple[Plan, Tensor]:
    """One forward of a run: its plan and the guided velocity [B, c, H, W] of latents z; arguments as of `look`."""
    run.see(z)
    plan = run.plan(step)
    rows = canvas if plan.branches == 2 else canvas.branch(len(z))
    if plan.head == "run" or plan.probe != "off":
        similarity = look(run, rows, plan, z, e_t, time_token, texts)
        past = 0 if rows.prefix is None else rows.prefix.shape[1]
        count, width = rows.tokens.shape
        run.note(step, plan, count, width, past, similarity)
    else:
        # Law c: the velocity depends on the kept features and t alone; nothing upstream is computed.
        run.note(step, plan, 0, 0, 0, None)
    return plan, velocity(run, plan, z, e_t)


def look(
    run: Run, canvas: Canvas, plan: Plan, z: Tensor, e_t: Tensor, time_token: Tensor, texts: Tensor | None
) -> tuple[float, ...] | None:
    """Everything before the last layer of the head: keeps the image tokens' features in the run; returns the probe.

    ``e_t`` [1 or B, d], ``time_token`` [1 or B, 1, h]; ``texts``: embedded rows when the canvas is padded.
    """
    model, runner = run.runner.model, run.runner
    count = canvas.tokens.shape[0]
    prefix = run.prefix(plan.layers, canvas)
    at = canvas.block.to(model.device)
    where = canvas.is_image
    where = None if where is None else where.to(model.device)

    def walk(z: Tensor, time_token: Tensor) -> Pass:
        # Law d: both guidance branches see the same latents, so they are embedded once.
        image = model.embed_latent(z)
        block = torch.cat((time_token.expand(len(z), -1, -1), image), dim=1).repeat(count // len(z), 1, 1)
        x = block if texts is None else texts[:count].scatter(1, at[..., None].expand_as(block), block)
        return runner.backbone(x, canvas.tokens, plan.layers, past=prefix.kv, view=prefix.view, probe=plan.probe)

    def features(hidden: Tensor, e_t: Tensor) -> Tensor:
        seen, _ = runner.head(hidden, e_t, prefix.view, prefix.head, where)
        return seen.gather(1, at[:, 1:, None].expand(-1, -1, seen.shape[-1]))

    def both(z: Tensor, e_t: Tensor, time_token: Tensor) -> Tensor:
        return features(walk(z, time_token).hidden, e_t)

    similarity = None
    if plan.head == "run" and plan.probe == "off" and runner.observer is None:
        kept = run.replay((plan.layers, count), both, z, e_t, time_token)
    else:
        done = walk(z, time_token)
        similarity = done.similarity
        if plan.head != "run":
            return similarity
        kept = features(done.hidden, e_t)
    run.keep(kept, plan.branches)
    run.anchor(z)
    return similarity


def velocity(run: Run, plan: Plan, z: Tensor, e_t: Tensor) -> Tensor:
    """Guided velocity [B, c, H, W] from the kept features."""
    model = run.runner.model
    features = run.recall(plan.order)[: plan.branches * len(z)]
    v = model.unpatchify(model.head_out(features, e_t), *z.shape[-2:])
    if plan.guidance is None:
        return v
    if plan.branches == 1:
        # v_u + s (v_c - v_u) with the last known distance of the branches
        assert run.gap is not None
        return v + (plan.guidance - 1) * run.gap
    conditional, unconditional = v.chunk(2)
    run.gap = conditional - unconditional
    return flow.guide(conditional, unconditional, plan.guidance)
