"""What users give an engine: checked, and one of each per request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError
from flashu.inference.actions import AnswerRequest, History, Known, Visual
from flashu.inference.run import Event, StepTrace
from flashu.plan import Plan, Step

Shown: TypeAlias = "Visual | list[Visual] | tuple[Visual, ...]"
"""What a question is about: one picture or video, or several (a list or tuple)."""
OnStep: TypeAlias = Callable[[Step, Plan, Tensor], "Tensor | None"]
"""Called after each forward of a drawing with the step, its plan (the last image's, where methods plan each by itself)
and the state of all images: for flow, latents [B, c, H, W]. It may return another state to go on with."""


OnText: TypeAlias = Callable[[int, str], None]
"""Called with the index of an image and the next piece of the text that is thought before it is drawn."""


class Pieces:
    """A run's text, piece by piece, as its tokens come. ``decode``: ids -> text."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = ""

    def of(self, events: Sequence[Event]) -> str:
        """What events add to the text; a piece that ends inside a multi-byte character waits for the rest of it."""
        new = [event.data for event in events if event.kind == "token"]
        ended = any(event.kind == "text" for event in events)
        if not new and not ended:
            return ""
        self._ids += new
        text = self._decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not ended:
            return ""
        piece, self._shown = text[len(self._shown) :], text
        return piece


class Calls:
    """Calls ``on_step`` once for a step of ``count`` runs that go together, when the last of them has taken it, and
    ``on_text`` with each run's pieces of text, the runs numbered from ``first`` on."""

    def __init__(
        self,
        count: int,
        on_step: OnStep | None,
        on_text: OnText | None,
        decode: Callable[[Sequence[int]], str],
        first: int = 0,
    ) -> None:
        for name, called in (("on_step", on_step), ("on_text", on_text)):
            if called is not None and not callable(called):
                raise FlashUError(f"{name} must be a function, got {called!r:.80}")
        self._on_step, self._on_text, self._count, self._first = on_step, on_text, count, first
        self._pieces = [Pieces(decode) for _ in range(count)]
        self._steps: dict[int, dict[int, Tensor]] = {}
        self._at = [-1] * count
        """The latest step of each run."""

    def __call__(self, run: int, events: list[Event]) -> None:
        if self._on_text is not None and (piece := self._pieces[run].of(events)):
            self._on_text(self._first + run, piece)
        for event in events:
            if event.kind != "step" or self._on_step is None:
                continue
            states = self._steps.setdefault(event.index, {})
            states[run], self._at[run] = event.data, event.index
            if len(states) == self._count:
                assert event.trace is not None
                self._call(event.trace, [states[n] for n in range(self._count)])
                del self._steps[event.index]

    def _call(self, trace: StepTrace, states: Sequence[Tensor]) -> None:
        assert self._on_step is not None
        changed = self._on_step(trace.step, trace.plan, torch.stack(list(states)))
        if changed is None:
            return
        if trace.step.time is None:
            raise FlashUError("only latents can be changed between forwards, and this model draws codes")
        if any(at > trace.step.index for at in self._at):
            raise FlashUError("images that think first are not drawn in step: to change latents, set batch_size=1")
        for state, new in zip(states, changed, strict=True):
            state.copy_(new)  # the next forward reads this tensor


def texts_of(texts: str | Sequence[str]) -> list[str]:
    """One text, or all of several."""
    if not isinstance(texts, Iterable):
        raise PromptError(f"a text must be a string, or a list of them, not {type(texts).__name__}")
    return [texts] if isinstance(texts, str) else list(texts)


def seeds_of(seed: int | Sequence[int], count: int, of: str) -> list[int]:
    """One for each image or question: given, or counted up from the first."""
    given: Any = seed
    try:
        seeds = [index(given) + n for n in range(count)] if hasattr(given, "__index__") else [index(s) for s in given]
    except TypeError as error:
        raise FlashUError(f"a seed must be a whole number, got {seed!r}") from error
    if len(seeds) != count:
        raise FlashUError(f"{len(seeds)} seeds for {count} {of}: give one seed, or one for each")
    if not all(0 <= one < 2**32 for one in seeds):  # torch's CPU generator takes 32 bits: 2**32 would draw as 0 does
        raise FlashUError(f"a seed must be between 0 and {2**32 - 1}, got {seed!r}")
    return seeds


def questions_about(
    images: Shown | Sequence[Shown], questions: Sequence[str], max_new_tokens: int | None, think: bool = False
) -> list[AnswerRequest]:
    """A request per question: all about one image or video, or each about its own of a list."""
    shown = list(images) if isinstance(images, list | tuple) else [images] * len(questions)
    if not questions or len(shown) != len(questions):
        raise ImageError(f"{len(shown)} images for {len(questions)} questions: give one image per question")
    groups = [tuple(one) if isinstance(one, list | tuple) else (one,) for one in shown]
    if not all(groups):
        raise ImageError("a question about no image: give at least one, or send a message without images")
    return [
        AnswerRequest(text, group, max_new_tokens, think=think) for text, group in zip(questions, groups, strict=True)
    ]


def known_of(image: Any, mask: Any, count: int) -> list[Known | None]:
    """The image and mask of each prompt: one for all, or a list of as many; `ImageError` if one of them is missing."""
    if image is None and mask is None:
        return [None] * count
    if image is None or mask is None:
        raise ImageError("to draw a part of an image, give both image and mask (white where to draw)")
    images, masks = (list(x) if isinstance(x, list | tuple) else [x] * count for x in (image, mask))
    if len(images) != count or len(masks) != count:
        raise ImageError(f"{len(images)} images and {len(masks)} masks for {count} prompts: give one, or one for each")
    return [Known(*pair) for pair in zip(images, masks, strict=True)]


def histories_of(history: History | Sequence[History], prompts: Sequence[str], one: bool) -> list[History]:
    """A history per prompt: of ``one`` prompt a history itself, else a list of them. `PromptError` if it is neither."""
    listed: Any = [history] if one else history
    if not isinstance(listed, list | tuple) or len(listed) != len(prompts):
        raise PromptError("with a list of prompts, history is a list with (text, image) pairs for each prompt")
    for pairs in listed:
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise PromptError("a history is a list of (text, image) pairs, in the order of the row")
    return list(listed)
