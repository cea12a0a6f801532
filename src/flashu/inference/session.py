"""A conversation: drawings, questions and edits in turn, over one growing context."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.arguments import Calls, OnStep, OnText
from flashu.inference.results import Answer, Generation
from flashu.models.pictures import Picture
from flashu.models.words import IMAGE
from flashu.plan import MAIN

if TYPE_CHECKING:
    from flashu.inference.engine import Engine
    from flashu.runtime.context import Context

UNDO = 8
"""Turns that can be taken back, unless set otherwise: each keeps keys and values of its own."""


@dataclass(frozen=True, eq=False)
class _State:
    """What a conversation is between two turns. ``pending``: the latest picture has not joined the contexts yet.
    ``prompted``: the system prompts of thinking that stand in the row."""

    contexts: Mapping[str, Context] = field(default_factory=dict)
    image: Picture | None = None
    pending: bool = False
    prompted: frozenset[str] = frozenset()


class Session:
    """Each turn sees the texts and pictures before it; what was computed of them stays. Results are those of one
    request that has the whole conversation in its row. A turn that fails leaves the conversation as it was.

    ``image``: what the conversation begins with. ``limit``: most tokens that may stand before a turn (None: no limit).
    ``undo``: turns that can be taken back. `FlashUError` for a model that can go on behind no earlier request.
    """

    def __init__(
        self, engine: Engine, image: Picture | None = None, *, limit: int | None = None, undo: int = UNDO
    ) -> None:
        if not (engine.layout.edits or engine.layout.converses):
            family = engine.model.spec.family
            raise FlashUError(
                f"this model ({family}) does not edit images or hold conversations: its rows end with what is drawn or "
                "answered; send single requests"
            )
        if (limit is not None and limit < 1) or undo < 0:
            raise FlashUError(f"a session's limit is at least 1 and undo at least 0, got {limit} and {undo}")
        self.engine, self.limit = engine, limit
        self._state: _State | None = _State(image=image, pending=image is not None)
        self._past: deque[_State] = deque(maxlen=undo)

    @property
    def image(self) -> Picture | None:
        """The latest picture."""
        return self._open().image

    @property
    def tokens(self) -> int:
        """Tokens that stand before the next turn, the latest picture not counted until it joins them."""
        main = self._open().contexts.get(MAIN)
        return 0 if main is None else main.length

    def draw(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        think: bool = False,
        on_step: OnStep | None = None,
        on_text: OnText | None = None,
        **own: Any,
    ) -> Generation:
        """A new image, in a size of its own; settings as in `Engine.generate`. Where a picture stands before it, the
        defaults are those of edits."""
        self._converses("draw")
        state = self._open()
        before = (("", state.image),) if state.pending else ()
        shape = {"steps": steps, "guidance": guidance, "shift": shift, "height": height, "width": width}
        request = DrawRequest(prompt, seed, history=before, stands=state.image is not None, **shape)  # type: ignore[arg-type]
        return self._drawn(request, think, own, on_step, on_text)

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
        """The latest picture, changed; settings as in `Engine.edit`. A picture that a question has put in the row
        already goes through no second time; the result then has its size."""
        if not self.engine.layout.edits:
            raise FlashUError(f"this model ({self.engine.model.spec.family}) does not edit images")
        state = self._open()
        if state.image is None:
            raise FlashUError("there is no picture to edit yet: draw one, or begin the session with one")
        request = DrawRequest(
            prompt, seed, steps, text_guidance, shift, images=(state.image,), stands=not state.pending
        )
        return self._drawn(request, think, own, on_step, on_text)

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        think: bool = False,
        on_text: OnText | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer a question about what stands in the conversation; settings as in `Engine.answer`. ``on_text`` gets
        (0, the next piece of the answer)."""
        self._converses("answer in a conversation")
        if IMAGE in question:
            raise PromptError(f"in a session the pictures stand where they were drawn: leave {IMAGE} out")
        state, engine = self._begin(), self.engine
        shown = (state.image,) if state.pending and state.image is not None else ()
        request = AnswerRequest(
            question, shown, max_new_tokens, think=think, prompted="answer" in state.prompted, kept=True
        )
        (run,) = engine.runs_to_answer([request], contexts=[_forks(state)], **sampling)
        engine.complete([run], Calls(1, None, on_text, engine.layout.text))
        prompted = state.prompted | ({"answer"} if think else set())
        self._end(replace(state, contexts=run.contexts, pending=False, prompted=prompted))
        return Answer(engine.layout.text(run.text), run.text, run.trace)

    def undo(self) -> None:
        """Take the last turn back; nothing is computed again. `FlashUError` where none is kept."""
        self._open()
        if not self._past:
            raise FlashUError(f"no turn to take back: a session keeps the last {self._past.maxlen}")
        self._state = self._past.pop()

    def close(self) -> None:
        """End the conversation and give its memory back."""
        self._state = None
        self._past.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------
    def _drawn(
        self, request: DrawRequest, think: bool, own: Mapping[str, Any], on_step: OnStep | None, on_text: OnText | None
    ) -> Generation:
        state, engine = self._begin(), self.engine
        request = replace(request, prompted="draw" in state.prompted, **engine.asked(think, own))
        (run,) = engine.runs_to_draw([request], contexts=[_forks(state)])
        engine.complete([run], Calls(1, on_step, on_text, engine.layout.text))
        done = engine.generation([request], [run])
        self._end(_State(run.contexts, done.images[0], True, state.prompted | ({"draw"} if think else set())))
        return done

    def _converses(self, what: str) -> None:
        if not self.engine.layout.converses:
            raise FlashUError(
                f"this model ({self.engine.model.spec.family}) cannot {what} here: its sessions edit alone"
            )

    def _open(self) -> _State:
        if self._state is None:
            raise FlashUError("this session is closed: begin another with engine.session()")
        return self._state

    def _begin(self) -> _State:
        state = self._open()
        if self.limit is not None and self.tokens >= self.limit:
            raise FlashUError(
                f"the conversation holds {self.tokens} tokens of at most {self.limit}: undo, or begin another session"
            )
        return state

    def _end(self, state: _State) -> None:
        self._past.append(self._open())
        self._state = state


def _forks(state: _State) -> dict[str, Context]:
    return {name: context.fork() for name, context in state.contexts.items()}
