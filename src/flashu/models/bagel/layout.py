"""How requests are written for BAGEL, and its results read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest, Fork
from flashu.inference.samplers.flow import FlowSampler
from flashu.inference.samplers.noise import Noise
from flashu.inference.samplers.solvers import times
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.processor import Processor
from flashu.models.bagel.rows import block_layout, drawn, seen, shown, words
from flashu.models.bagel.spec import IMAGE, TEXT, spec_of
from flashu.models.bagel.vision import unpatched
from flashu.models.defaults import GenerationDefaults
from flashu.models.fit import counted
from flashu.models.pictures import Picture
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Pieces, Sizes
from flashu.plan.limits import check_number
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment

log = logging.getLogger("flashu")

THOUGHT = 999
"""Most tokens of a thought: the released program's 1000 forwards, the last of which it does not use."""


def thought_limit(request: DrawRequest) -> int:
    """Most tokens of the thought before a drawing; `FlashUError` for an unusable number."""
    asked = request.own.get("max_think_tokens")
    check_number("max_think_tokens", asked)
    return THOUGHT if asked is None else int(asked)


@dataclass(frozen=True, eq=False)
class Viewed:
    """A picture for both paths: latents [z, h, w] (None: it is only looked at), pixels for the ViT [3, H, W]."""

    latents: Tensor | None
    pixels: Tensor


class BagelLayout:
    """Rows of BAGEL. Text and pictures are blocks in the order they are given; a picture to edit is two, latents, then
    ViT tokens. Guidance: the branch "text" has what stands before the last text, "image" the texts alone."""

    settings = frozenset({"image_guidance", "interval", "renorm", "renorm_min", "max_think_tokens"})

    def __init__(self, model: Bagel, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.config, self.defaults = model.config, processor.defaults
        self.sees, self.thinks = True, processor.text.thinking is not None
        self.draws = processor.vae is not None and model.config.visual_gen
        self.edits = self.draws
        self.converses = True
        ids = processor.text.ids
        self.markers = (ids.boi, ids.eoi)

    # -- drawing -----------------------------------------------------------------------------------------------
    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        if not self.config.visual_gen:
            raise FlashUError("this model was loaded for understanding alone: load all its parts to draw")
        if recipe.padded:
            raise RecipeError("BAGEL's released program pads no rows: leave reference mode")
        for request in requests:
            self.processor.text.block("instruction" if request.images else "prompt", request.prompt)
        return [self._drawing(request) for request in requests]

    def _drawing(self, request: DrawRequest) -> list[Action]:
        noise = Noise(request.seed)
        inputs: list[str | Viewed] = []
        for text, image in request.history:
            inputs += [text] if text else []
            inputs.append(self.viewed(image, noise))
        inputs += [] if request.stands else [self.viewed(image, noise) for image in request.images]
        inputs.append(request.prompt)
        size = None
        if request.images and request.height is None and request.width is None:
            size = self.latent_size(*self._pixels(request.images[-1])[0].shape[-2:])
        return self.drawing(inputs, request, noise, size)

    def drawing(
        self,
        inputs: Sequence[str | Viewed],
        request: DrawRequest,
        noise: Noise,
        size: Sequence[int] | None = None,
    ) -> list[Action]:
        """The actions of a drawing after texts and pictures in any order. ``size``: latent cells; None: as requested.
        `DrawRequest.prompt` and its pictures are not looked at."""
        if size is None:
            size = self.latent_size(request.height or self.defaults.height, request.width or self.defaults.width)
        actions: list[Action] = []
        text = self.processor.text
        if request.think and not request.prompted:
            actions.append(Append((MAIN, IMAGE), (words(text.block("system prompt", self._thinking.draw)),)))
        for one in inputs:
            if isinstance(one, str):
                actions += [Fork(TEXT, MAIN), Append((MAIN, IMAGE), (words(text.block("prompt", one)),))]
            else:
                actions += [Append((MAIN,), self.both(one)), Fork(TEXT, MAIN)]
        if inputs and not isinstance(inputs[-1], str) and any(isinstance(one, str) for one in inputs):
            log.warning(
                "a text before the last picture stands in every guidance branch, so that text guidance has no effect: "
                "put the picture first"
            )
        if request.think:
            limit = thought_limit(request)
            bos = Append((MAIN,), (words((text.ids.bos,)),))
            actions += [bos, Decode(MAIN, frozenset((text.ids.eos,)), limit, (text.ids.eos,), words)]
        cells = size[0], size[1]
        channels = self.config.token_size
        rows, columns = (side // self.config.latent_patch_size for side in cells)
        start = unpatched(noise.normal(1, rows * columns, channels), self.config.latent_patch_size, rows, columns)[0]
        shift = self.defaults.shift if request.shift is None else request.shift

        behind_pictures = request.stands or (bool(inputs) and not isinstance(inputs[0], str))
        steering = self._steering(request, behind_pictures)
        scales = self._folded(request, steering)
        guidance = Guidance() if scales else steering.guidance(self.config.latent_patch_size)
        block = self._block(cells, scales)

        def sampler(forwards: int, solver: str) -> FlowSampler:
            return FlowSampler(start.to(self.model.device), grid(forwards, shift, solver), solver, block)

        return [*actions, Draw(guidance, request.steps or self.defaults.steps, sampler)]

    @property
    def _thinking(self) -> Any:
        if self.processor.text.thinking is None:
            raise FlashUError("this model was not trained to think: leave think out")
        return self.processor.text.thinking

    def _steering(self, request: DrawRequest, editing: bool) -> Steering:
        usual = self.processor.editing if editing else self.processor.drawing
        own = {name: request.own.get(name) for name in (f.name for f in fields(Steering)) if name in self.settings}
        return usual.changed(text=request.guidance, image=request.own.get("image_guidance"), **own)

    def _folded(self, request: DrawRequest, steering: Steering) -> tuple[float, float] | None:
        """Scales of the text's and the pictures' guidance that the model takes as input, None if it is guided by
        branches."""
        if self.model.scale_embedder is None:
            return None
        if set_ := sorted(n for n in ("interval", "renorm", "renorm_min") if request.own.get(n) is not None):
            raise FlashUError(f"guidance is folded into this adapter, without branches: leave {', '.join(set_)} out")
        ranges = self.model.scale_embedder.ranges
        text = ranges[TEXT].scale(TEXT, request.guidance, steering.text)
        return text, ranges[IMAGE].scale(IMAGE, request.own.get("image_guidance"), steering.image)

    def _block(self, size: tuple[int, int], scales: tuple[float, float] | None) -> Callable[[Tensor, float], Segment]:
        """Latents at a sampler's time, whose noise is at 0."""
        layout = block_layout(self.config, *size)
        return lambda latents, time: drawn(layout, latents, 1 - time, self.markers, scales)

    def both(self, picture: Viewed) -> tuple[Segment, ...]:
        """A picture for the branches that see it."""
        looked = seen(self.config, picture.pixels, self.markers)
        return (looked,) if picture.latents is None else (shown(self.config, picture.latents, self.markers), looked)

    # -- seeing ------------------------------------------------------------------------------------------------
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        distinct = {id(image): image for request in requests for image in request.images}
        # A video is refused there.
        viewed = {key: Viewed(None, self._pixels(image)[1]) for key, image in distinct.items()}  # type: ignore[arg-type]
        return [
            self._kept(request) if request.kept else self._answering(request, [viewed[id(x)] for x in request.images])
            for request in requests
        ]

    def _kept(self, request: AnswerRequest) -> list[Action]:
        """A question and its answer as texts of a row that later images follow: its pictures stand there as those to
        edit do, with latents (of seed 0's noise)."""
        text, noise, actions = self.processor.text, Noise(0), list[Action]()
        both = (MAIN, IMAGE)
        if request.think and not request.prompted:
            actions.append(Append(both, (words(text.block("system prompt", self._thinking.answer)),)))
        for image in request.images:
            shown = self.viewed(image, noise) if self.edits else Viewed(None, self._pixels(image)[1])  # type: ignore[arg-type]
            actions.append(Append((MAIN,), self.both(shown)))
        actions.append(Append(both, (words(text.block("question", request.text)), words((text.ids.bos,)))))
        eos = text.ids.eos
        limit = request.max_new_tokens or (THOUGHT if request.think else self.defaults.max_new_tokens)
        return [*actions, Decode(MAIN, frozenset((eos,)), limit, (eos,), words, (IMAGE,))]

    def _answering(self, request: AnswerRequest, pictures: Sequence[Viewed]) -> list[Action]:
        text, segments = self.processor.text, []
        if request.think:
            segments.append(words(text.block("system prompt", self._thinking.answer)))
        looked = [seen(self.config, picture.pixels, self.markers) for picture in pictures]
        if request.ids is None:
            segments += [*looked, words(text.block("question", request.text)), words((text.ids.bos,))]
        else:
            segments += self._placed(request.ids, looked)
        limit = request.max_new_tokens or (THOUGHT if request.think else self.defaults.max_new_tokens)
        return [Append((MAIN,), tuple(segments)), Decode(MAIN, frozenset((text.ids.eos,)), limit)]

    def _placed(self, ids: Sequence[int], looked: Sequence[Segment]) -> list[Segment]:
        """A whole row of ids, with pictures in their places."""
        if not ids or not all(0 <= token < self.config.llm.vocab_size for token in ids):
            raise PromptError("a row of ids holds at least one token, all of them the model's")
        if (places := list(ids).count(self.processor.placeholder)) != len(looked):
            raise ImageError(f"a row with places for {places} images is given {len(looked)}")
        segments: list[Segment] = []
        left, text = iter(looked), list[int]()
        for token in (*ids, None):
            if token is None or token == self.processor.placeholder:
                segments += [words(text)] if text else []
                segments += [] if token is None else [next(left)]
                text = []
            else:
                text.append(token)
        return segments

    def padded_text(self, prompt: str) -> Segment:
        raise RecipeError("BAGEL's released program pads no rows: leave reference mode")

    # -- results -----------------------------------------------------------------------------------------------
    def pixels(self, drawn: Tensor) -> Tensor:
        assert self.processor.vae is not None
        return self.processor.vae.decode(drawn)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.text.decode(ids)

    def sizes(self, name: str) -> Sizes:
        return sizes_of(name, self.config, self.defaults, self.processor)

    # -- pictures ------------------------------------------------------------------------------------------------
    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        return latent_size(self.config, height, width)

    @torch.inference_mode()
    def viewed(self, image: Picture, noise: Noise) -> Viewed:
        """A picture to edit, or that stands before one to draw. Its latents are a sample, which ``noise`` decides."""
        vae = self.processor.vae
        if vae is None:
            raise FlashUError("this model was loaded without an autoencoder, so it cannot edit images")
        first, second = self._pixels(image)
        self.latent_size(*first.shape[-2:])
        pixels = first[None].to(self.model.device)
        return Viewed(vae.encode(pixels, sample=True, generator=noise.generator)[0].float(), second)

    def _pixels(self, image: Picture) -> tuple[Tensor, Tensor]:
        first, second = self.processor.pixels(image)
        size, side = self.config.vit.patch_size, self.config.vit_max_num_patch_per_side
        if any(length % size or length > side * size for length in second.shape[-2:]):
            raise ImageError(
                f"the ViT has places for {side} patches of {size} pixels a side; an image of "
                f"{second.shape[-1]}x{second.shape[-2]} does not fit: check the sizes that pictures are resized to"
            )
        return first, second


def grid(forwards: int, shift: float, solver: str = "euler") -> Tensor:
    """Sampler times (noise at 0) of the original's, which are fp32 and have noise at 1: fp64, so that both agree."""
    if solver == "heun":
        return times(forwards, shift, solver).double()
    u = torch.linspace(1, 0, forwards + 1)
    return 1 - (shift * u / (1 + (shift - 1) * u)).double()


def latent_size(config: BagelConfig, height: int, width: int) -> tuple[int, int]:
    """Latent cells (rows, columns) of an image in pixels. `ImageError` unless the image tokens tile it and the table of
    positions has them: beyond it, the original takes the next row's positions."""
    cell, most = config.cell, config.max_latent_size * config.cell
    if height < cell or width < cell or height % cell or width % cell:
        raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
    if max(height, width) > most:
        raise ImageError(f"this model has places for {most} pixels a side; {width}x{height} is larger")
    return height // config.downsample, width // config.downsample


def sizes_of(name: str, config: BagelConfig, defaults: GenerationDefaults, processor: Processor | None = None) -> Sizes:
    """What `plan.explain` needs; no weights are looked at."""

    def image_tokens(height: int | None, width: int | None) -> int:
        rows, columns = latent_size(config, height or defaults.height, width or defaults.width)
        return (rows // config.latent_patch_size) * (columns // config.latent_patch_size)

    around = processor or Processor.usual(config, defaults)

    def viewed() -> int:
        size = config.vit.patch_size
        shown = around.drawn.size(defaults.height, defaults.width)
        rows, columns = (side // size for side in around.viewed.size(*shown))
        return rows * columns

    def contexts(prompt: int, image: int, edit: bool) -> dict[str, Pieces]:
        text = ("text", prompt)
        if not edit:
            return {MAIN: (text,), TEXT: (), IMAGE: (text,)}
        shown = ("latents", image + 2), ("ViT", viewed() + 2)
        return {MAIN: (*shown, text), TEXT: shown, IMAGE: (text,)}

    def guidance(scale: float | None, edit: bool) -> Guidance:
        return (around.editing if edit else around.drawing).changed(text=scale).guidance(config.latent_patch_size)

    return Sizes(
        name,
        spec_of(config),
        defaults,
        image_tokens,
        lambda count: count + 2,
        lambda forwards, solver: grid(forwards, defaults.shift, solver).tolist(),
        lambda part: counted(lambda: Bagel(config if part is None else replace(config, visual_gen=False))),
        ("understanding",),
        viewed(),
        guidance,
        contexts,
    )
