"""How requests are written for Emu3, and its results read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest
from flashu.inference.samplers.autoregressive import AutoregressiveSampler
from flashu.inference.samplers.noise import Noise
from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.processor import Processor
from flashu.models.emu3.spec import spec_of
from flashu.models.fit import counted
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment, TokenLayout

UNCOND = "uncond"
AT_ONCE = 8  # pictures the image tokenizer encodes at a time


class Emu3Layout:
    """Rows of Emu3, all of them causal. Drawing: [bos, prompt, boi, size, img], then codes row by row with an end of
    line after each; the guidance branch has a prompt of its own. Seeing: [bos, system, images, question]."""

    edits = thinks = converses = False
    settings: frozenset[str] = frozenset()

    def __init__(self, model: Emu3, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.defaults = processor.defaults
        self.draws = self.sees = processor.vae is not None

    # -- drawing -----------------------------------------------------------------------------------------------
    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        for request in requests:
            if request.images or request.history or request.known is not None:
                raise FlashUError("Emu3 draws from a prompt alone: it takes no images to edit or complete, no history")
            if request.shift is not None:
                raise FlashUError("Emu3 draws code after code: there is no time to shift, leave shift out")
        if recipe.padded:
            raise RecipeError("Emu3's rows have no padding: leave reference mode")
        return [self._drawing(request) for request in requests]

    def _drawing(self, request: DrawRequest) -> list[Action]:
        text, config, processor = self.processor.text, self.model.config, self.processor
        height, width = self.code_size(request.height, request.width)
        if request.steps not in (None, height * width):
            raise FlashUError(f"Emu3 draws {height * width} codes of this size one by one: leave steps out")
        opening = text.opening(height, width)
        prompt = [*text.prompt(request.prompt), *opening]
        most, needed = config.text.max_position_embeddings, len(prompt) + height * (width + 1) + 3
        if needed > most:
            raise ImageError(
                f"{width * processor.factor}x{height * processor.factor} pixels and this prompt take {needed} tokens, "
                f"the model has positions for {most}: ask for a smaller image or shorten the prompt"
            )
        negative = [*text.negative(), *(opening if processor.negative_image else ())]
        scale = self.defaults.guidance if request.guidance is None else request.guidance
        # 0 and 1 need no unconditional branch.
        scales = {} if scale in (0, 1) else {UNCOND: float(scale)}
        noise, codes = Noise(request.seed), (config.ids.first, config.ids.first + config.codes)

        def ends(index: int) -> tuple[int, ...]:
            return (config.ids.eol,) if index % width == width - 1 else ()

        def sampler(forwards: int, solver: str) -> AutoregressiveSampler:
            return AutoregressiveSampler((height, width), codes, tokens, noise, processor.top_k, ends)

        contexts = [Append((MAIN,), (words(prompt),))]
        contexts += [Append((UNCOND,), (words(negative),))] if scales else []
        return [*contexts, Draw(Guidance(scales), height * width, sampler)]

    def padded_text(self, prompt: str) -> Segment:
        raise RecipeError("Emu3's rows have no padding: leave reference mode")

    # -- seeing ------------------------------------------------------------------------------------------------
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        if self.processor.vae is None and any(request.images for request in requests):
            raise FlashUError("this model was loaded without an image tokenizer, so it cannot see images")
        parts = [self._parts(request) for request in requests]
        blocks = self.shown(requests)
        most, stop = self.model.config.text.max_position_embeddings, frozenset((self.processor.text.ids.eos,))
        scripts: list[list[Action]] = []
        for request, ids in zip(requests, parts, strict=True):
            segments = self._row(ids, [blocks[id(image)] for image in request.images])
            limit = request.max_new_tokens or self.defaults.max_new_tokens
            space = most - sum(segment.length for segment in segments)
            if space < 1:
                raise ImageError(
                    f"this question takes {most - space} tokens, the model has positions for {most}: show fewer or "
                    "smaller pictures, or shorten it"
                )
            scripts.append([Append((MAIN,), segments), Decode(MAIN, stop, min(limit, space))])
        return scripts

    def _parts(self, request: AnswerRequest) -> list[list[int]]:
        """Ids before, between and after the images."""
        text, count = self.processor.text, len(request.images)
        if request.ids is None:
            return text.question_parts(request.text, count)
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

    def _row(self, parts: Sequence[Sequence[int]], blocks: Sequence[Sequence[int]]) -> tuple[Segment, ...]:
        """What is decided by the images, and the text after them."""
        shown = [token for ids, block in zip(parts, blocks, strict=False) for token in (*ids, *block)]
        after = words(parts[-1]) if len(parts[-1]) else None
        if not shown:
            assert after is not None
            return (after,)
        before = words(shown)
        first, codes = self.model.config.ids.first, self.model.config.codes
        visual = (torch.tensor(shown) >= first) & (torch.tensor(shown) < first + codes)
        before = replace(before, layout=replace(before.layout, visual=visual[None]))
        return (before,) if after is None else (before, after)

    def shown(self, requests: Sequence[AnswerRequest]) -> Mapping[int, list[int]]:
        """The ids of every picture that the requests show, by its id; each encoded once, those of one size together.
        Padding to a common size would change their codes."""
        distinct = {id(image): image for request in requests for image in request.images}
        pixels = {key: self.processor.frames(image)[0] for key, image in distinct.items()}
        sizes: dict[tuple[int, ...], list[int]] = {}
        for key, picture in pixels.items():
            sizes.setdefault(tuple(picture.shape[-2:]), []).append(key)
        blocks: dict[int, list[int]] = {}
        for keys in sizes.values():
            codes = self.encode(torch.cat([pixels[key] for key in keys]))
            blocks |= {key: self.processor.text.image(one) for key, one in zip(keys, codes, strict=True)}
        return blocks

    # -- results -----------------------------------------------------------------------------------------------
    def pixels(self, drawn: Tensor) -> Tensor:
        """Of codes [B, h, w]; those not drawn yet are shown as code 0."""
        assert self.processor.vae is not None
        return self.processor.vae.decode(drawn.clamp(min=0)).clamp(-1, 1)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.text.decode(ids)

    def sizes(self, name: str) -> Sizes:
        return sizes_of(name, self.model.config, self.defaults, self.processor.factor)

    # -- inside ------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Codes [B, h, w], on the CPU, of pictures of one size [B, 3, H, W]."""
        assert self.processor.vae is not None
        parts = pixels.to(self.model.device).split(AT_ONCE)
        return torch.cat([self.processor.vae.encode(part).cpu() for part in parts])

    def code_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of codes of an image in pixels (None: the usual); `ImageError` unless they tile it."""
        return code_size(self.processor.factor, height or self.defaults.height, width or self.defaults.width)


def words(ids: Sequence[int]) -> Segment:
    return Segment(torch.tensor(ids), TokenLayout.causal([len(ids)]), len(ids), tuple(ids), ids=tuple(ids))


def tokens(ids: Tensor) -> Segment:
    """Codes and ends of lines that are drawn."""
    return Segment(ids, TokenLayout.causal([len(ids)]), len(ids))


def code_size(factor: int, height: int, width: int) -> tuple[int, int]:
    if height < factor or width < factor or height % factor or width % factor:
        raise ImageError(f"images are multiples of {factor} pixels, at least {factor}; {width}x{height} is not")
    return height // factor, width // factor


def sizes_of(name: str, config: Emu3Config, defaults: GenerationDefaults, factor: int) -> Sizes:
    """What `plan.explain` needs; no weights are looked at."""

    def image_tokens(height: int | None, width: int | None) -> int:
        rows, columns = code_size(factor, height or defaults.height, width or defaults.width)
        return rows * columns

    return Sizes(
        name,
        spec_of(config),
        defaults,
        image_tokens,
        lambda count: count,
        None,
        lambda part: counted(lambda: Emu3(config)),
    )
