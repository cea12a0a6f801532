"""The original sampler's calls, one per evaluation, as one run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashu.dropin.grid import evaluations
from flashu.dropin.masks import draws
from flashu.loops import canvas as rows
from flashu.loops.canvas import Canvas
from flashu.loops.denoise import evaluate
from flashu.models.showo2.model import ShowO2
from flashu.plan import Plan, Seen, Step
from flashu.recipe import Recipe
from flashu.run import Run

log = logging.getLogger("flashu")


@dataclass(frozen=True, eq=False)
class Call:
    """One evaluation as the original asks for it: R rows, under guidance [conditional; unconditional]."""

    latents: Tensor
    t: Tensor
    ids: Tensor
    mask: object
    positions: Tensor
    guidance: float

    @property
    def images(self) -> int:
        """Distinct images."""
        return len(self.latents) // (2 if self.guidance > 0 else 1)

    def unlike_any_drawing(self, patch: int) -> str | None:
        """Why this cannot be computed as one image block per row; None if it can. Cheap: looks at shapes only."""
        if not isinstance(self.latents, Tensor) or self.latents.ndim != 4:
            return "the latents are not one frame per row"
        count, _, height, width = self.latents.shape
        if len(self.ids) != count or tuple(self.positions.shape) != (count, 1, 2) or self.t.numel() != count:
            return "a row holds more than one image"
        if self.guidance > 0 and count % 2:
            return "guidance needs an even number of rows"
        if bool((self.positions[..., 1] != (height // patch) * (width // patch) + 1).any()):
            return "the image tokens are not those of the latents"
        return None

    def odd_start(self) -> str | None:
        """Why a first evaluation cannot begin a drawing; None if it can."""
        if not draws(self.mask, self.positions, self.ids.shape[1]):
            return "the mask is not causal text with one image block"
        if self.guidance > 0 and not torch.equal(*self.latents.chunk(2)):
            return "the two guidance halves have different latents"
        return None


@dataclass(eq=False)
class Drawing:
    """The images being drawn: their run, what has been asked for, and what identifies the batch."""

    run: Run
    canvas: Canvas
    ids: Tensor
    shape: torch.Size
    guidance: float
    texts: Tensor | None
    hint: int | None
    guess: int
    times: list[float] = field(default_factory=list)
    made: list[tuple[Seen, Plan]] = field(default_factory=list)
    warned: bool = False

    def continues(self, call: Call, t: float) -> bool:
        """Whether a call is the next evaluation of these images: t went on, and nothing else changed."""
        return (
            t > self.times[-1]
            and call.latents.shape == self.shape
            and call.guidance == self.guidance
            and call.ids.shape == self.ids.shape
            and torch.equal(call.ids, self.ids)
        )

    def velocity(self, call: Call, t: float) -> Tensor:
        """Guided velocity [images, c, H, W] of the next evaluation."""
        self.times.append(t)
        index = len(self.times) - 1
        total = self.hint if self.hint is not None else evaluations(self.times, self.guess)
        total = max(total, index + 1)
        self._check(total)
        self.run.forwards = total
        model, z = self.run.runner.model, call.latents[: call.images]
        e_t, time_token = model.embed_time(call.t.reshape(-1)[:1].to(model.device))
        step = Step("generation", "denoise", index, total)
        self.made.append((self.run.seen, self.run.recipe.plan(step, self.run.seen, self.run.guidance)))
        return evaluate(self.run, self.canvas, step, z, e_t, time_token[:, None], self.texts)[1]

    def _check(self, total: int) -> None:
        """Say so, once, if an earlier evaluation was planned for another number of them."""
        if self.warned or total == self.run.forwards:
            return
        for index, (seen, plan) in enumerate(self.made):
            step = Step("generation", "denoise", index, total)
            if self.run.recipe.plan(step, seen, self.run.guidance) != plan:
                log.warning(
                    "evaluation %d was planned for another number of them than the %d there are: "
                    "give FlashUConfig(steps=%d)",
                    index,
                    total,
                    total,
                )
                self.warned = True
                return


def lay_out(call: Call, padded: bool) -> Canvas:
    """The rows of a call: the text before each image once and the image block, or whole rows as they stand."""
    starts = call.positions[:, 0, 0].tolist()
    count = int(call.positions[0, 0, 1]) - 1
    listed = call.ids.tolist()
    if padded:
        return rows.padded(listed, starts, count)
    return rows.packed([row[:start] for row, start in zip(listed, starts, strict=True)], count)


def absolute(recipe: Recipe) -> int | None:
    """The number of evaluations a recipe insists on whatever is asked for, if it does."""
    few, many = recipe.forwards(1000), recipe.forwards(2000)
    return few if few == many else None


def embedded(model: ShowO2, canvas: Canvas) -> Tensor | None:
    return None if canvas.ids is None else model.embed_text(canvas.ids.to(model.device))
