"""The original sampler's calls, one per evaluation, as one run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashu.inference.loops import canvas as rows
from flashu.inference.loops.canvas import Canvas
from flashu.inference.loops.denoise import evaluate
from flashu.inference.requests import blocks
from flashu.inference.run import Run
from flashu.models.showo2.dropin.grid import evaluations
from flashu.models.showo2.dropin.masks import draws
from flashu.models.showo2.model import ShowO2
from flashu.plan import Plan, Seen, Step
from flashu.plan.recipe import Recipe

log = logging.getLogger("flashu")


@dataclass(frozen=True, eq=False)
class Call:
    """One evaluation as the original asks for it: R rows, under guidance [conditional; unconditional].

    ``last_only``: a row holds several images, of which the last one is drawn and the others stay as they are.
    """

    latents: Tensor
    t: Tensor
    ids: Tensor
    mask: object
    positions: Tensor
    guidance: float
    last_only: bool = False

    @property
    def halves(self) -> int:
        return 2 if self.guidance > 0 else 1

    @property
    def slots(self) -> int:
        """Images per row."""
        return self.positions.shape[1]

    @property
    def images(self) -> int:
        """Distinct images that are drawn."""
        return len(self.latents) // (self.halves * self.slots)

    @property
    def moving(self) -> Tensor:
        """The latents that are drawn, in each half [halves * images, c, H, W]."""
        return self.latents[self.slots - 1 :: self.slots]

    @property
    def drawn(self) -> Tensor:
        """The same, once [images, c, H, W]."""
        return self.moving[: self.images]

    @property
    def held(self) -> Tensor:
        """The latents before them in their row [slots - 1, c, H, W]."""
        return self.latents[: self.slots - 1]

    def placed(self, v: Tensor) -> Tensor:
        """What the original returns: the drawn images' velocity in each half, and none of the held ones."""
        if self.slots == 1:
            return torch.cat([v] * self.halves)
        out = v.new_zeros(self.latents.shape)
        out[self.slots - 1 :: self.slots] = v
        return out

    def unlike_any_drawing(self, patch: int) -> str | None:
        """Why this cannot be computed as one image block per row; None if it can. Cheap: looks at shapes only."""
        if not isinstance(self.latents, Tensor) or self.latents.ndim != 4:
            return "the latents are not one frame per row"
        count, _, height, width = self.latents.shape
        rows = len(self.ids)
        if (
            tuple(self.positions.shape) != (rows, self.slots, 2)
            or count != rows * self.slots
            or self.t.numel() != count
        ):
            return "there is not one image, and one time, per slot"
        if rows % self.halves:
            return "guidance needs an even number of rows"
        if self.slots > 1 and not self.last_only:
            return "a row holds more than one image, and all of them are drawn"
        if self.last_only and rows > self.halves:
            return "of several rows only the last image is drawn"
        if bool((self.positions[..., 1] != (height // patch) * (width // patch) + 1).any()):
            return "the image tokens are not those of the latents"
        return None

    def odd_start(self) -> str | None:
        """Why a first evaluation cannot begin a drawing; None if it can."""
        if not draws(self.mask, self.positions, self.ids.shape[1]):
            return "the mask is not causal text with one image block"
        if self.halves == 2 and not torch.equal(*self.moving.chunk(2)):
            return "the two guidance halves have different latents"
        if self.slots > 1:
            starts, length = self.positions[..., 0], self.positions[0, 0, 1]
            if bool((starts[0].diff() < length).any()) or bool(starts[1:].diff().any()):
                return "the images of a row are not one after another, the last one alone in the unconditional row"
        return None


@dataclass(eq=False)
class Drawing:
    """The images being drawn: their run, what has been asked for, and what identifies the batch."""

    run: Run
    canvas: Canvas
    ids: Tensor
    shape: torch.Size
    held: Tensor
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
            and torch.equal(call.held, self.held)
        )

    def velocity(self, call: Call, t: float) -> Tensor:
        """Guided velocity [images, c, H, W] of the next evaluation."""
        self.times.append(t)
        index = len(self.times) - 1
        total = self.hint if self.hint is not None else evaluations(self.times, self.guess)
        total = max(total, index + 1)
        self._check(total)
        self.run.forwards = total
        model, z = self.run.runner.model, call.drawn
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


def lay_out(model: ShowO2, call: Call, padded: bool) -> Canvas:
    """The rows of a call: what stands before each drawn image once and the image block, or whole rows as they stand."""
    *before, starts = call.positions[:, :, 0].T.tolist()
    count = int(call.positions[0, 0, 1]) - 1
    listed = call.ids.tolist()
    if padded:
        return rows.padded(listed, starts, count)
    prompts = [row[:start] for row, start in zip(listed, starts, strict=True)]
    if not before:
        return rows.packed(prompts, count)
    seen = [(at, block) for (at, *_), block in zip(before, blocks(model, call.held), strict=True)]
    # In the unconditional row all images lie in one place, and the last one covers the others.
    return rows.packed(prompts, count, [seen, ()][: call.halves])


def absolute(recipe: Recipe) -> int | None:
    """The number of evaluations a recipe insists on whatever is asked for, if it does."""
    few, many = recipe.forwards(1000), recipe.forwards(2000)
    return few if few == many else None


def embedded(model: ShowO2, canvas: Canvas) -> Tensor | None:
    return None if canvas.ids is None else model.embed_text(canvas.ids.to(model.device))
