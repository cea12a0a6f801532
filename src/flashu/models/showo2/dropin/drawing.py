"""The original sampler's calls, one per evaluation, as runs that go in step: one for each image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flashu.inference.actions import Action, Append, Draw
from flashu.inference.history import SharedObservations
from flashu.inference.run import Run, StepTrace
from flashu.inference.samplers.base import Sampler
from flashu.models.showo2.content import Part, Shown, Words
from flashu.models.showo2.dropin.grid import evaluations
from flashu.models.showo2.dropin.masks import draws
from flashu.models.showo2.layout import UNCOND
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.rows import image_in, row_of, with_image
from flashu.plan import MAIN, Guidance, Observations, Plan, Step
from flashu.plan.recipe import Recipe
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment
from flashu.runtime.request import Want

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

    @property
    def count(self) -> int:
        """Tokens of an image."""
        return int(self.positions[0, 0, 1]) - 1

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


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The rows that draw one image: what stands ``before`` it in each branch ({}: nothing, its rows are whole), and the
    ``block`` that shows it."""

    before: Mapping[str, Segment]
    block: Callable[[Shown], Segment | Mapping[str, Segment]]

    def actions(self, guidance: float, sampler: Sampler) -> list[Action]:
        scales = {UNCOND: guidance} if guidance > 0 else {}
        appends = [Append((name,), (segment,)) for name, segment in self.before.items()]
        return [*appends, Draw(Guidance(scales), sampler.total, lambda forwards, solver: sampler)]


def image_rows(model: ShowO2, call: Call, padded: bool) -> list[ImageRows]:
    """The rows of each image of a call: its prompts and the image block, or ``padded`` rows whole as they stand."""
    ids, starts = call.ids.tolist(), call.positions[:, :, 0].tolist()
    by_image = [range(n, len(ids), call.images) for n in range(call.images)]
    names = (MAIN, UNCOND)[: call.halves]
    if padded:
        return [_whole(dict(zip(names, ((ids[r], starts[r][0]) for r in own), strict=True)), call) for own in by_image]
    alone = with_image(0, call.count)
    held = shown(model, call.held, torch.ones(1), call.count)
    made = []
    for own in by_image:
        before = {}
        for name, row in zip(names, own, strict=True):
            # In the unconditional row all images lie in one place, and the last one covers the others.
            before[name] = row_of(_text_and_images(ids[row], starts[row], held if name == MAIN else ()))
        made.append(ImageRows(before, lambda image: image_in((), alone, 0, image)))
    return made


def _whole(rows: Mapping[str, tuple[Sequence[int], int]], call: Call) -> ImageRows:
    layouts = {name: with_image(start, call.count, len(ids)) for name, (ids, start) in rows.items()}

    def block(image: Shown) -> dict[str, Segment]:
        return {name: image_in(ids, layouts[name], start, image) for name, (ids, start) in rows.items()}

    return ImageRows({}, block)


def _text_and_images(ids: Sequence[int], starts: Sequence[int], held: Sequence[Shown]) -> list[Part]:
    """What stands before the last image of a row."""
    parts: list[Part] = []
    at = 0
    for start, image in zip(starts, held, strict=False):  # the last start is that of the image to draw
        parts += [Words(tuple(ids[at:start])), image]
        at = start + len(image)
    return [*parts, Words(tuple(ids[at : starts[-1]]))]


def shown(model: ShowO2, latents: Tensor, t: Tensor, count: int) -> list[Shown]:
    """Images [n, c, H, W] of ``count`` tokens each at one time t [1]."""
    e_t, token = model.embed_time(t.to(model.device))
    return [Shown(image, e_t, token, count) for image in latents]


class CallerSampler:
    """One image whose latents its caller moves: it is shown them before an evaluation and keeps the prediction.
    ``total``: evaluations that there will be, as far as is known."""

    kind: Literal["block", "token"] = "block"
    want: Want = "prediction"
    codes: tuple[int, int] | None = None

    def __init__(self, block: Callable[[Shown], Segment | Mapping[str, Segment]], total: int) -> None:
        self.total = total
        self.prediction: Tensor | None = None
        self._block = block
        self._image: Shown | None = None
        self._time = 0.0

    def show(self, image: Shown, time: float, total: int) -> None:
        """The latents of the next evaluation."""
        self._image, self._time, self.total, self.prediction = image, time, total, None

    def time(self, index: int) -> float:
        return self._time

    def space(self, index: int) -> int:
        return 0

    def segments(self, index: int) -> Segment | Mapping[str, Segment]:
        assert self._image is not None
        return self._block(self._image)

    def advance(self, prediction: Tensor, index: int) -> None:
        self.prediction = prediction
        self.total = max(self.total, index + 2)  # the caller may always ask for one more

    @property
    def state(self) -> Tensor:
        assert self._image is not None
        return self._image.latents


class Drawing:
    """The images being drawn: their runs, what has been asked for, and what identifies the batch. ``hint``: the number
    of evaluations, if the recipe says it; else it is inferred, from ``guess`` on."""

    def __init__(self, executor: Executor, recipe: Recipe, call: Call, hint: int | None, guess: int) -> None:
        self.executor, self.recipe, self.hint, self.guess = executor, recipe, hint, guess
        self.model: ShowO2 = executor.model  # type: ignore[assignment]
        self.total = hint or guess
        self.times: list[float] = []
        self.guidance, self.shape = call.guidance, call.latents.shape
        self.ids, self.held = call.ids.clone(), call.held.clone()
        rows = image_rows(self.model, call, recipe.padded)
        # The released program has one layer-skipping list for a whole batch.
        shared = SharedObservations() if recipe.reference else None
        self.observations = [shared or SharedObservations() for _ in rows]
        self.samplers = [CallerSampler(own.block, self.total) for own in rows]
        self.runs = [
            Run(own.actions(call.guidance, sampler), recipe, self.model.spec, observations=observed)
            for own, sampler, observed in zip(rows, self.samplers, self.observations, strict=True)
        ]
        self._planned: list[tuple[Observations, Plan]] = []
        self._warned = False

    @property
    def trace(self) -> list[StepTrace]:
        """The evaluations of the first image."""
        return self.runs[0].trace

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
        count = len(self.times)
        total = max(self.hint or evaluations(self.times, self.guess), count)
        self._check(total)
        self.total = total
        # Any drift but "not known" does: plans are only compared with others for the same one.
        observed = Observations(self.observations[0].similarity, 0.0)
        self._planned.append((observed, self._plan(count - 1, total, observed)))
        # A copy: some samplers move their latents in place.
        images = shown(self.model, call.drawn.clone(), call.t.reshape(-1)[:1], call.count)
        for sampler, image in zip(self.samplers, images, strict=True):
            sampler.show(image, t, total)
        return torch.stack(self._evaluated())

    def _evaluated(self) -> list[Tensor]:
        """Every sampler's prediction of the latents it was shown."""
        while True:
            pairs = zip(self.runs, self.samplers, strict=True)
            waiting = [(run, run.prepare()) for run, sampler in pairs if sampler.prediction is None]
            if not waiting:
                return [sampler.prediction for sampler in self.samplers if sampler.prediction is not None]
            outputs = self.executor.forward([request for _, request in waiting if request is not None])
            for (run, _), output in zip(waiting, outputs, strict=True):
                run.accept(output)

    def _check(self, total: int) -> None:
        """Say so, once, if an earlier evaluation was planned for another number of them."""
        if self._warned or total == self.total:
            return
        for index, (observed, plan) in enumerate(self._planned):
            if self._plan(index, total, observed) != plan:
                log.warning(
                    "evaluation %d was planned for another number of them than the %d there are: "
                    "give FlashUConfig(steps=%d)",
                    index,
                    total,
                    total,
                )
                self._warned = True
                return

    def _plan(self, index: int, total: int, observed: Observations) -> Plan:
        step = Step("generation", "block", index, total, self.times[index])
        return self.recipe.plan(step, observed, {UNCOND: self.guidance} if self.guidance > 0 else {})


def absolute(recipe: Recipe) -> int | None:
    """The number of evaluations a recipe insists on whatever is asked for, if it does."""
    few, many = recipe.forwards(1000), recipe.forwards(2000)
    return few if few == many else None
