"""How requests are written for Show-o, and its results read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest, Known, Visual
from flashu.inference.samplers.masked import MaskedSampler, Schedule
from flashu.inference.samplers.noise import Noise
from flashu.models.defaults import GenerationDefaults
from flashu.models.fit import counted
from flashu.models.pictures import Picture, pixels
from flashu.models.showo.config import ShowOConfig
from flashu.models.showo.model import ShowO
from flashu.models.showo.processor import FACTOR, Processor
from flashu.models.showo.spec import spec_of
from flashu.models.showo.text import SpecialIds
from flashu.models.video import Video
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment, TokenLayout

UNCOND = "uncond"
PADDED = "the released FlashU program is for another family: leave reference and padded mode"
CLIP_COUNT = 576  # features of a picture by ViT-L/14 at 336 px
AT_ONCE = 8  # pictures the image tokenizer encodes at a time
SCHEDULES: Mapping[str, Schedule] = {"original": "compounding", "maskgit": "maskgit"}


class ShowOLayout:
    """Rows of Show-o. Drawing: the prompt [t2i, sot, words, eot], then the image block [soi, codes, eoi]. Seeing: [mmu,
    soi, codes, eoi], of which all is seen by all, then [sot, question]; by features [mmu, system, soi, features, eoi,
    conversation], of which all see the features. The original's left padding is left out: nothing but padding sees it,
    and the rotary embedding is relative."""

    edits = thinks = converses = False
    settings: frozenset[str] = frozenset()

    def __init__(self, model: ShowO, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.defaults: GenerationDefaults = processor.defaults
        self.draws = processor.vae is not None
        self.sees = processor.clip is not None if model.config.clip_size is not None else self.draws
        self.block = partial(block, processor.text.ids)

    # -- drawing -----------------------------------------------------------------------------------------------
    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        if recipe.padded:
            raise RecipeError(PADDED)
        for request in requests:
            if request.images:
                raise FlashUError("Show-o does not edit by instruction: draw a part again with generate(image=, mask=)")
            if request.history:
                raise FlashUError("Show-o draws one image per row: leave history out")
            if request.shift is not None:
                raise FlashUError("Show-o draws by masked codes, which have no time to shift: leave shift out")
            self.count(request.height, request.width)
            self.processor.text.prompt(request.prompt)
        return [self._drawing(request, recipe) for request in requests]

    def _drawing(self, request: DrawRequest, recipe: Recipe) -> list[Action]:
        text, config = self.processor.text, self.model.config
        scales = self.model.spec.scales(self.defaults.guidance if request.guidance is None else request.guidance)
        first, noise = self.first(request.known), Noise(request.seed)

        def sampler(forwards: int, solver: str) -> MaskedSampler:
            schedule = SCHEDULES[config.remasking]
            return MaskedSampler(first, forwards, config.codes, config.mask, self.block, noise, schedule=schedule)

        actions: list[Action] = [Append((MAIN,), (words(text.prompt(request.prompt)),))]
        if scales:
            actions.append(Append((UNCOND,), (words(text.null_prompt()),)))
        return [*actions, Draw(Guidance(scales), request.steps or self.defaults.steps, sampler)]

    def first(self, known: Known | None) -> Tensor:
        """The image [N] before the first forward: unknown, but for what is given."""
        config = self.model.config
        if known is None:
            return torch.full((config.image_tokens,), config.mask)
        codes = self.codes_of(known.image)
        return torch.where(self._drawn(known.mask), config.mask, codes + config.codes[0])

    def codes_of(self, image: Picture) -> Tensor:
        """Codes [N] of a picture, or what are codes already."""
        if isinstance(image, Tensor) and image.ndim == 1:
            count, size = self.model.config.image_tokens, self.model.config.codebook_size
            if (
                image.shape != (count,)
                or image.is_floating_point()
                or not 0 <= int(image.min()) <= int(image.max()) < size
            ):
                raise ImageError(f"given codes must be {count} whole numbers from 0 to {size - 1}")
            return image.cpu()
        return self.encode([self.processor.pixels(image)])[0].cpu()

    def _drawn(self, mask: Picture) -> Tensor:
        """Which codes a mask leaves to be drawn, bool [N]: where it is at least half white, bicubically resized to one
        value per code, as in the authors' program."""
        count = self.model.config.image_tokens
        if isinstance(mask, Tensor) and mask.dtype is torch.bool:
            if mask.numel() != count:
                raise ImageError(f"a mask of bools has one for each of the {count} codes, not {mask.numel()}")
            return mask.flatten().cpu()
        white = (pixels(mask, self.defaults.height, self.defaults.width).mean(1, keepdim=True) + 1) / 2
        side = round(count**0.5)
        return F.interpolate(white, size=(side, side), mode="bicubic", align_corners=False).flatten() >= 0.5

    def padded_text(self, prompt: str) -> Segment:
        raise RecipeError(PADDED)

    # -- seeing ------------------------------------------------------------------------------------------------
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        texts = [self._text(request) for request in requests]
        shown = self._shown(requests)
        stop = frozenset((self.processor.stop,))
        scripts: list[list[Action]] = []
        for request, text in zip(requests, texts, strict=True):
            segments = (*(shown[id(image)] for image in request.images), words(text))
            limit = request.max_new_tokens or self.defaults.max_new_tokens
            scripts.append([Append((MAIN,), segments), Decode(MAIN, stop, limit)])
        return scripts

    def _text(self, request: AnswerRequest) -> list[int]:
        """Ids after the picture."""
        text, count = self.processor.text, len(request.images)
        if count > 1:
            raise ImageError(f"Show-o answers about one picture, not {count}: ask about each by itself")
        if count and not self.sees:
            raise FlashUError("this model was loaded without what shows it pictures: load it with autoencoder and clip")
        if request.ids is None:
            clip = count and self.model.config.clip_size is not None
            return text.conversation(request.text) if clip else text.question(request.text)
        ids, place = list(request.ids), self.processor.placeholder
        if not ids or not all(0 <= token < self.model.config.llm.vocab_size for token in ids):
            raise PromptError("a row of ids holds at least one token, all of them the model's")
        if ids.count(place) != count or ids[:count] != [place] * count:
            raise ImageError(f"a row about {count} pictures begins with as many placeholders, and has no others")
        return ids[count:]

    def _shown(self, requests: Sequence[AnswerRequest]) -> dict[int, Segment]:
        """The segment of every picture that the requests show, encoded once."""
        distinct = {id(image): image for request in requests for image in request.images}
        if not distinct:
            return {}
        pictures = [self._still(visual) for visual in distinct.values()]
        if self.model.config.clip_size is None:
            coded = self.encode([self.processor.pixels(picture) for picture in pictures]).cpu()
            return {key: self.by_codes(codes) for key, codes in zip(distinct, coded, strict=True)}
        with torch.inference_mode():
            features = torch.cat(
                [self.processor.clip(pictures[n : n + AT_ONCE]) for n in range(0, len(pictures), AT_ONCE)]
            )
            projected = self.model.mm_projector(features.to(self.model.device, self.model.dtype))
        return {key: self.by_features(x) for key, x in zip(distinct, projected, strict=True)}

    def by_codes(self, codes: Tensor) -> Segment:
        """[mmu, soi, codes, eoi], of which all see all."""
        marks, offset = self.processor.text.ids, self.model.config.codes[0]
        ids = [marks.mmu, marks.soi, *(codes + offset).tolist(), marks.eoi]
        layout = TokenLayout.causal([len(ids)]).block(0, len(ids), slice(2, len(ids) - 1))
        return Segment(torch.tensor(ids), layout, len(ids), tuple(ids))

    def by_features(self, features: Tensor) -> Segment:
        """[mmu, system, soi, features, eoi] with features [F, h]: causal, but all see the features, also what stands
        before them."""
        marks = self.processor.text.ids
        before, count = self.processor.text.system(), len(features)
        start, stop = len(before), len(before) + count
        visual = torch.zeros(stop + 1, dtype=torch.bool)
        visual[start:stop] = True
        layout = seen_by_all(stop + 1, start, stop, visual)
        content = (torch.tensor(before), features, torch.tensor([marks.eoi]))
        return Segment(content, layout, stop + 1, ("features", id(features)))

    def _still(self, visual: Visual) -> Picture:
        if isinstance(visual, Video):
            raise ImageError("Show-o answers about pictures: give one frame of the video")
        return visual

    # -- results -----------------------------------------------------------------------------------------------
    def pixels(self, drawn: Tensor) -> Tensor:
        """``drawn``: codes [B, N], or [B, rows, columns]."""
        assert self.processor.vae is not None
        shape = None if drawn.ndim == 2 else (drawn.shape[1], drawn.shape[2])
        return self.processor.vae.decode(drawn.flatten(1), shape)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.text.decode(ids)

    def sizes(self, name: str) -> Sizes:
        clip = self.processor.clip
        count = CLIP_COUNT if clip is None else clip.count
        return sizes_of(name, self.model.config, self.defaults, self.processor.factor, count)

    # -- inside ------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def encode(self, pictures: Sequence[Tensor]) -> Tensor:
        """Codes [U, N] of pixels [1, 3, H, W]."""
        if self.processor.vae is None:
            raise FlashUError("this model was loaded without an image tokenizer: give codes, or load it with one")
        parts = torch.cat(list(pictures)).to(self.model.device).split(AT_ONCE)
        return torch.cat([self.processor.vae.encode(part) for part in parts])

    def count(self, height: int | None, width: int | None) -> int:
        """Codes of an image; `ImageError` for another size than the checkpoint's."""
        return image_tokens(self.model.config, self.processor.factor, height, width)


def words(ids: Sequence[int]) -> Segment:
    """A segment of text."""
    return Segment(torch.tensor(ids), TokenLayout.causal([len(ids)]), len(ids), tuple(ids), ids=tuple(ids))


@lru_cache(maxsize=8)
def _image_layout(count: int) -> TokenLayout:
    return TokenLayout.causal([count + 2]).block(0, count + 2, slice(1, count + 1))


def block(marks: SpecialIds, ids: Tensor) -> Segment:
    """The image block [soi, ids, eoi]: bidirectional, soi and eoi as well; the codes are read."""
    content = F.pad(F.pad(ids, (1, 0), value=marks.soi), (0, 1), value=marks.eoi)
    return Segment(content, _image_layout(len(ids)), len(content), None, range(1, len(ids) + 1))


def seen_by_all(length: int, start: int, stop: int, visual: Tensor) -> TokenLayout:
    """A causal row in which all see the tokens start..stop, also what stands before them; ``visual`` [S]: image
    tokens."""
    layout = TokenLayout.causal([length])
    order, sees = layout.order.clone(), layout.sees.clone()
    order[:, start:stop], sees[:, start:stop] = -1, start - 1
    return replace(layout, order=order, sees=sees, visual=visual[None])


def image_tokens(config: ShowOConfig, factor: int, height: int | None, width: int | None) -> int:
    """Codes of an image in pixels (None: as the checkpoint draws); `ImageError` for another size."""
    side = round(config.image_tokens**0.5) * factor
    if (height or side, width or side) != (side, side):
        raise ImageError(f"this model draws {side}x{side} pixels, not {width or side}x{height or side}")
    return config.image_tokens


def sizes_of(
    name: str, config: ShowOConfig, defaults: GenerationDefaults, factor: int = FACTOR, features: int = CLIP_COUNT
) -> Sizes:
    """What `plan.explain` needs; no weights are looked at. ``features``: of a picture that is shown by them."""

    def tokens(height: int | None, width: int | None) -> int:
        return image_tokens(config, factor, height, width)

    return Sizes(
        name,
        spec_of(config),
        defaults,
        tokens,
        lambda count: config.max_text + count + 3,
        None,
        weights=lambda part: counted(lambda: ShowO(config)),
        shown=None if config.clip_size is None else features,
    )
