"""How requests are written for Show-o2, and its results read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest, History
from flashu.inference.samplers.flow import FlowSampler
from flashu.inference.samplers.noise import Noise
from flashu.inference.samplers.solvers import times
from flashu.models.defaults import GenerationDefaults
from flashu.models.fit import counted
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.content import Shown, Words
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.rows import image_in, question, row_of, text_alone, with_image, words
from flashu.models.showo2.spec import spec_of
from flashu.models.video import Video
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment

UNCOND = "uncond"
AT_ONCE = 8  # pictures the autoencoder encodes at a time
FACTOR = 8  # pixels per latent cell, where no autoencoder says


class ShowO2Layout:
    """Rows of Show-o2. Drawing: the prompt [bos, words, boi], then the image block (time token, image tokens). Seeing:
    [bos, system, user, boi, time, image, eoi, question, assistant]."""

    edits = thinks = converses = False
    settings: frozenset[str] = frozenset()

    def __init__(self, model: ShowO2, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.defaults = processor.defaults
        self.draws = self.sees = processor.vae is not None
        self.edits = False

    # -- drawing -----------------------------------------------------------------------------------------------
    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        text = self.processor.text
        for request in requests:
            if request.images:
                raise FlashUError("Show-o2 draws and sees, but does not edit images")
            if request.history and recipe.padded:
                raise RecipeError("the released FlashU program draws one image per row: leave reference mode")
            text.prompt(request.prompt)
        shown = self._shown_images(requests)
        return [self._drawing(request, recipe, shown) for request in requests]

    def _drawing(self, request: DrawRequest, recipe: Recipe, shown: Mapping[int, Shown]) -> list[Action]:
        defaults, text = self.defaults, self.processor.text
        size = self.latent_size(request.height or defaults.height, request.width or defaults.width)
        scale = defaults.guidance if request.guidance is None else request.guidance
        # 0, the original's "off", and 1 need no unconditional branch.
        scales = {} if scale in (0, 1) else {UNCOND: float(scale)}
        start = Noise(request.seed).normal(self.model.config.image_latent_dim, *size)
        if recipe.reference:
            start = start.bfloat16().float()  # the released program draws its noise in bf16
        shift = defaults.shift if request.shift is None else request.shift

        def sampler(forwards: int, solver: str) -> FlowSampler:
            grid = times(forwards, shift, solver)
            at = self._times(grid[:-1])
            block = self._padded(request.prompt, size, at) if recipe.padded else self._block(size, at)
            return FlowSampler(start.to(self.model.device), grid, solver, block)

        actions: list[Action] = []
        if not recipe.padded:
            actions.append(Append((MAIN,), (self._prompt(request.prompt, request.history, shown),)))
            if scales:
                actions.append(Append((UNCOND,), (words(text.null_prompt()),)))
        return [*actions, Draw(Guidance(scales), request.steps or defaults.steps, sampler)]

    def _prompt(self, prompt: str, history: History, shown: Mapping[int, Shown]) -> Segment:
        """What stands before the image to draw. Earlier images are data, t = 1, whatever the time of the one drawn."""
        if not history:
            return words(self.processor.text.prompt(prompt))
        parts: list[Words | Shown] = []
        before = self.processor.text.before_images([text for text, _ in history], prompt)
        for ids, (_, image) in zip(before, (*history, ("", None)), strict=True):
            parts.append(Words(tuple(ids)))
            if image is not None:
                parts.append(shown[id(image)])
        return row_of(parts)

    def _block(self, size: tuple[int, int], at: Mapping[float, tuple[Tensor, Tensor]]) -> Callable[..., Segment]:
        """The image block alone, the same behind every prompt."""
        count = self._tokens(size)
        layout = with_image(0, count)

        def block(latents: Tensor, time: float) -> Segment:
            return image_in((), layout, 0, Shown(latents, *at[time], count))

        return block

    def _padded(
        self, prompt: str, size: tuple[int, int], at: Mapping[float, tuple[Tensor, Tensor]]
    ) -> Callable[..., Mapping[str, Segment]]:
        """Whole rows of equal length as the original's; padding is ordinary text there."""
        count = self._tokens(size)
        rows = {MAIN: self.processor.text.prompt(prompt), UNCOND: self.processor.text.null_prompt()}
        length = self._padded_length(count)
        layouts = {name: with_image(len(row), count, length) for name, row in rows.items()}
        ids = {name: self.processor.text.padded_row(row, count, length) for name, row in rows.items()}

        def blocks(latents: Tensor, time: float) -> dict[str, Segment]:
            image = Shown(latents, *at[time], count)
            return {name: image_in(ids[name], layouts[name], len(row), image) for name, row in rows.items()}

        return blocks

    def padded_text(self, prompt: str) -> Segment:
        row = self.processor.text.prompt(prompt)
        count = self._tokens(self.latent_size(self.defaults.height, self.defaults.width))
        return text_alone(self.processor.text.padded_row(row, count, self._padded_length(count)), len(row), count)

    # -- seeing ------------------------------------------------------------------------------------------------
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        if self.processor.vae is None and any(request.images for request in requests):
            raise FlashUError("this model was loaded without an autoencoder, so it cannot see images")
        text = self.processor.text
        parts = [self._parts(request) for request in requests]
        shown = self.shown(requests)
        stop = frozenset((text.ids.eos,))
        scripts: list[list[Action]] = []
        for request, ids in zip(requests, parts, strict=True):
            segments = question(self.model, ids, [shown[id(visual)] for visual in request.images])
            limit = request.max_new_tokens or self.defaults.max_new_tokens
            scripts.append([Append((MAIN,), segments), Decode(MAIN, stop, limit)])
        return scripts

    def _parts(self, request: AnswerRequest) -> list[list[int]]:
        """Ids before, between and after the images."""
        text, count = self.processor.text, len(request.images)
        if request.ids is None:
            return text.question_parts(request.text, count) if count else [text.message(request.text)]
        if not request.ids or not all(0 <= token < self.model.config.llm.vocab_size for token in request.ids):
            raise PromptError("a row of ids holds at least one token, all of them the model's")
        parts: list[list[int]] = [[]]
        for token in request.ids:
            if token == self.processor.placeholder:
                parts.append([])
            else:
                parts[-1].append(token)
        if len(parts) != count + 1:
            raise ImageError(f"a row with places for {len(parts) - 1} images is given {count}")
        return parts

    def shown(self, requests: Sequence[AnswerRequest]) -> dict[int, Shown]:
        """Every picture and video that the requests show, encoded once; they are clean data (t = 1)."""
        distinct = {id(visual): visual for request in requests for visual in request.images}
        if not distinct:
            return {}
        frames = {key: self.processor.frames(visual) for key, visual in distinct.items()}
        latents = self.encode([frame for group in frames.values() for frame in group])
        e_t, token = self._times(torch.ones(1))[1.0]
        shown = {}
        for (key, group), own in zip(frames.items(), latents.split([len(g) for g in frames.values()]), strict=True):
            video = isinstance(distinct[key], Video)
            count = self._tokens((own.shape[-2], own.shape[-1]))
            if video:
                rows, columns = (-(-side // (2 * self.model.config.patch_size)) for side in own.shape[-2:])
                count = len(group) * rows * columns
            shown[key] = Shown(own if video else own[0], e_t, token, count)
        return shown

    # -- results -----------------------------------------------------------------------------------------------
    def pixels(self, drawn: Tensor) -> Tensor:
        assert self.processor.vae is not None
        return self.processor.vae.decode(drawn)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.text.decode(ids)

    def sizes(self, name: str) -> Sizes:
        factor = FACTOR if self.processor.vae is None else self.processor.vae.factor
        return sizes_of(name, self.model.config, self.defaults, self.processor.text.max_text, factor)

    # -- inside ------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def encode(self, pixels: Sequence[Tensor]) -> Tensor:
        """Clean latents [U, c, h, w] of pictures [1, 3, H, W]."""
        assert self.processor.vae is not None
        parts = torch.cat(list(pixels)).to(self.model.device).split(AT_ONCE)
        return torch.cat([self.processor.vae.encode(part) for part in parts])

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent cells (rows, columns) of an image in pixels; `ImageError` unless the image tokens tile it."""
        factor = FACTOR if self.processor.vae is None else self.processor.vae.factor
        return latent_size(self.model.config, factor, height, width)

    def _tokens(self, size: tuple[int, int]) -> int:
        p = self.model.config.patch_size
        return (size[0] // p) * (size[1] // p)

    def _padded_length(self, count: int) -> int:
        return self.processor.text.max_text + count + 5

    @torch.inference_mode()
    def _times(self, at: Tensor) -> dict[float, tuple[Tensor, Tensor]]:
        """By time: its embedding [1, d] and its token [1, h]."""
        embeddings, tokens = self.model.embed_time(at.to(self.model.device))
        return {time: (embeddings[n : n + 1], tokens[n : n + 1]) for n, time in enumerate(at.tolist())}

    def _shown_images(self, requests: Sequence[DrawRequest]) -> dict[int, Shown]:
        """The images of all histories, every picture encoded once."""
        shown: dict[int, Shown] = {}
        for request in requests:
            size = self.latent_size(request.height or self.defaults.height, request.width or self.defaults.width)
            for _, image in request.history:
                if id(image) not in shown:
                    e_t, token = self._times(torch.ones(1))[1.0]
                    shown[id(image)] = Shown(self._latents(image, size), e_t, token, self._tokens(size))
        return shown

    def _latents(self, image: object, size: tuple[int, int]) -> Tensor:
        """Clean latents [c, h, w] of a picture, or what is latents already."""
        channels = self.model.config.image_latent_dim
        if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == channels != 3:
            if image.shape[1:] != size or not image.is_floating_point() or not bool(image.isfinite().all()):
                raise ImageError(
                    f"earlier latents must be finite [{channels}, {size[0]}, {size[1]}], the size of the image to "
                    f"draw, not {image.dtype} {list(image.shape)}"
                )
            return image.float()
        if self.processor.vae is None:
            raise FlashUError("this model was loaded without an autoencoder: give earlier images as latents")
        height, width = (cells * self.processor.vae.factor for cells in size)
        return self.encode([self.processor.pixels(image, height, width)])[0]  # type: ignore[arg-type]


def latent_size(config: ShowO2Config, factor: int, height: int, width: int) -> tuple[int, int]:
    """Latent cells (rows, columns) of an image in pixels; `ImageError` unless the image tokens tile it."""
    cell = factor * config.patch_size
    if height < cell or width < cell or height % cell or width % cell:
        raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
    return height // factor, width // factor


def sizes_of(
    name: str, config: ShowO2Config, defaults: GenerationDefaults, max_text: int, factor: int = FACTOR
) -> Sizes:
    """What `plan.explain` needs; no weights are looked at."""
    p = config.patch_size

    def image_tokens(height: int | None, width: int | None) -> int:
        rows, columns = latent_size(config, factor, height or defaults.height, width or defaults.width)
        return (rows // p) * (columns // p)

    return Sizes(
        name,
        spec_of(config),
        defaults,
        image_tokens,
        lambda count: max_text + count + 5,
        lambda forwards, solver: times(forwards, defaults.shift, solver).tolist(),
        lambda part: counted(lambda: ShowO2(config)),
    )
