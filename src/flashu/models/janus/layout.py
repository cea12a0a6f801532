"""How requests are written for Janus-Pro, and its results read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest
from flashu.inference.samplers.autoregressive import AutoregressiveSampler
from flashu.inference.samplers.noise import Noise
from flashu.models.defaults import GenerationDefaults
from flashu.models.fit import counted
from flashu.models.janus.config import JanusConfig
from flashu.models.janus.model import Janus, Seen
from flashu.models.janus.processor import Processor
from flashu.models.janus.spec import spec_of
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment, TokenLayout

UNCOND = "uncond"


class JanusLayout:
    """Rows of Janus-Pro, all of them causal. Drawing: [bos, prompt, boi], then the codes in reading order; in the
    guidance branch, padding stands for each word. Seeing: [bos, system, boi, patches, eoi, question]."""

    edits = thinks = False
    settings: frozenset[str] = frozenset()
    sees = True

    def __init__(self, model: Janus, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.defaults = processor.defaults
        self.draws = processor.vae is not None

    # -- drawing -----------------------------------------------------------------------------------------------
    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        for request in requests:
            if request.images or request.history or request.known is not None:
                raise FlashUError("Janus-Pro draws from a prompt alone: it takes no images to edit or complete")
            if request.shift is not None:
                raise FlashUError("Janus-Pro draws code after code: there is no time to shift, leave shift out")
        if recipe.padded:
            raise RecipeError("Janus-Pro's rows have no padding: leave reference mode")
        return [self._drawing(request) for request in requests]

    def _drawing(self, request: DrawRequest) -> list[Action]:
        side = code_side(self.model.config, request.height, request.width)
        if request.steps not in (None, side * side):
            raise FlashUError(f"Janus-Pro draws {side * side} codes one by one: leave steps out")
        prompt = self.processor.text.prompt(request.prompt)
        most = self.model.config.text.max_position_embeddings
        if len(prompt) + side * side > most:
            raise PromptError(f"this prompt and an image take more than the model's {most} positions: shorten it")
        scale = self.defaults.guidance if request.guidance is None else request.guidance
        scales = {} if scale in (0, 1) else {UNCOND: float(scale)}
        return drawing(
            self.model, prompt, self.processor.text.negative(prompt), scales, Noise(request.seed), self.processor.top_k
        )

    def padded_text(self, prompt: str) -> Segment:
        raise RecipeError("Janus-Pro's rows have no padding: leave reference mode")

    # -- seeing ------------------------------------------------------------------------------------------------
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        parts = [self._parts(request) for request in requests]
        distinct = {id(image): image for request in requests for image in request.images}
        seen = {key: self.processor.frames(image)[0][0] for key, image in distinct.items()}
        most, stop = self.model.config.text.max_position_embeddings, frozenset((self.processor.stop,))
        scripts: list[list[Action]] = []
        for request, ids in zip(requests, parts, strict=True):
            segments = row(self.model.config, ids, [seen[id(image)] for image in request.images])
            space = most - sum(segment.length for segment in segments)
            if space < 1:
                raise ImageError(
                    f"this question takes {most - space} tokens, the model has positions for {most}: show fewer "
                    "pictures, or shorten it"
                )
            limit = request.max_new_tokens or self.defaults.max_new_tokens
            scripts.append([Append((MAIN,), segments), Decode(MAIN, stop, min(limit, space))])
        return scripts

    def _parts(self, request: AnswerRequest) -> list[list[int]]:
        """Ids before, between and after the images."""
        count = len(request.images)
        if request.ids is None:
            return self.processor.text.question_parts(request.text, count)
        if not request.ids or not all(0 <= token < self.model.config.text.vocab_size for token in request.ids):
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

    # -- results -----------------------------------------------------------------------------------------------
    def pixels(self, drawn: Tensor) -> Tensor:
        """Of codes [B, h, w]; those not drawn yet are shown as code 0."""
        assert self.processor.vae is not None
        return self.processor.vae.decode(drawn.clamp(min=0)).clamp(-1, 1)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.text.decode(ids)

    def sizes(self, name: str) -> Sizes:
        return sizes_of(name, self.model.config, self.defaults)


def drawing(
    model: Janus,
    prompt: Sequence[int],
    negative: Sequence[int],
    scales: dict[str, float],
    noise: Noise,
    top_k: int,
) -> list[Action]:
    """The script of one image. ``top_k`` 0 = all codes."""
    codes, side = model.config.codes, model.config.vision.side

    def sampler(forwards: int, solver: str) -> AutoregressiveSampler:
        return AutoregressiveSampler((side, side), codes, tokens, noise, top_k or codes[1] - codes[0])

    contexts = [Append((MAIN,), (words(prompt),))]
    contexts += [Append((UNCOND,), (words(negative),))] if scales else []
    return [*contexts, Draw(Guidance(scales), side * side, sampler)]


def row(config: JanusConfig, parts: Sequence[Sequence[int]], pictures: Sequence[Tensor]) -> tuple[Segment, ...]:
    """Texts in turn with pictures [3, H, W], normalised."""
    segments: list[Segment] = []
    for n, ids in enumerate(parts):
        if len(ids):
            segments.append(words(ids))
        if n < len(pictures):
            count = config.vision.side**2
            layout = TokenLayout.causal([count])
            layout = replace(layout, visual=torch.ones_like(layout.visual))
            segments.append(Segment(Seen(pictures[n]), layout, count, ("picture", id(pictures[n]))))
    return tuple(segments)


def words(ids: Sequence[int]) -> Segment:
    return Segment(torch.tensor(ids), TokenLayout.causal([len(ids)]), len(ids), tuple(ids), ids=tuple(ids))


def tokens(ids: Tensor) -> Segment:
    """Codes that are drawn."""
    return Segment(ids, TokenLayout.causal([len(ids)]), len(ids))


def code_side(config: JanusConfig, height: int | None, width: int | None) -> int:
    """Codes of an image, each way; `ImageError` for another size than the one that the model draws."""
    side = config.vision.side * config.vq.factor
    if (height or side, width or side) != (side, side):
        raise ImageError(f"Janus-Pro draws images of {side}x{side} pixels only, not {width or side}x{height or side}")
    return config.vision.side


def sizes_of(name: str, config: JanusConfig, defaults: GenerationDefaults) -> Sizes:
    """What `plan.explain` needs; no weights are looked at."""
    return Sizes(
        name,
        spec_of(config),
        defaults,
        lambda height, width: code_side(config, height, width) ** 2,
        lambda count: count,
        None,
        lambda part: counted(lambda: Janus(config)),
    )
