"""Edits of one image in turn, over one growing context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flashu.errors import FlashUError
from flashu.inference.actions import DrawRequest
from flashu.inference.arguments import Calls, OnStep, OnText
from flashu.inference.results import Generation
from flashu.models.pictures import Picture

if TYPE_CHECKING:
    from flashu.inference.engine import Engine
    from flashu.runtime.context import Context


class EditSession:
    """Each edit sees the image, the instructions and the results before it; what was computed of them stays."""

    def __init__(self, engine: Engine, image: Picture) -> None:
        if not engine.layout.edits:
            raise FlashUError(f"this model ({engine.model.spec.family}) does not edit images")
        self.engine, self.image = engine, image
        self._contexts: Mapping[str, Context] = {}

    def edit(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        text_guidance: float | None = None,
        shift: float | None = None,
        think: bool = False,
        on_step: OnStep | None = None,
        on_text: OnText | None = None,
        **own: Any,
    ) -> Generation:
        """The next edit, of what the last one drew; settings as in `Engine.edit`."""
        engine = self.engine
        asked = engine.asked(think, own)
        request = DrawRequest(prompt, seed, steps, text_guidance, shift, images=(self.image,), **asked)
        before = {name: context.fork() for name, context in self._contexts.items()}
        (run,) = engine.runs_to_draw([request], contexts=[before])
        engine.complete([run], Calls(1, on_step, on_text, engine.layout.text))
        done = engine.generation([request], [run])
        self.image, self._contexts = done.images[0], run.contexts
        return done
