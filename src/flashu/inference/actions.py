"""What a request does, as a list of actions on named branches; a family's layout writes it, a run carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from flashu.errors import PromptError
from flashu.inference.samplers.base import Sampler
from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Picture
from flashu.models.video import Video
from flashu.plan import Guidance
from flashu.plan.explain import Sizes
from flashu.plan.limits import check_number, check_shift
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment


@dataclass(frozen=True, eq=False)
class Append:
    """Segments join the contexts of some branches. Nothing is computed before it is read."""

    to: tuple[str, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Fork:
    """A branch that begins as another is now."""

    name: str
    source: str


@dataclass(frozen=True, eq=False)
class Decode:
    """Text after a branch's context, token by token: at most ``limit`` tokens, up to one of ``stop``, which is not part
    of it. ``close``: ids that follow it where more is to come after, and ``tokens`` makes a segment of ids then;
    ``also``: branches that this text joins as well."""

    branch: str
    stop: frozenset[int]
    limit: int
    close: tuple[int, ...] = ()
    tokens: Callable[[Sequence[int]], Segment] | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Draw:
    """An image after the contexts of the main branch and the guidance branches. ``steps``: forwards before the recipe
    shortens them. ``sampler``: (forwards, name of the solver) -> a new sampler."""

    guidance: Guidance
    steps: int
    sampler: Callable[[int, str], Sampler]


Action: TypeAlias = Append | Fork | Decode | Draw
Visual: TypeAlias = "Picture | Video"
"""What takes one place in a question."""
History: TypeAlias = Sequence[tuple[str, Any]]
"""What stands before the image to draw: texts, each with the image after it (a picture, or latents as drawn)."""


@dataclass(frozen=True, eq=False)
class Known:
    """An image of which only a part is to be drawn. ``image``: a picture, or codes [N] as drawn. ``mask``: what to
    draw: a picture, white there, or bool, one for each code in reading order."""

    image: Picture
    mask: Picture


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """One image to draw. None = the model's default; ``images``: those to edit; ``known``: one of which a part stays;
    ``think``: in text first; ``own``: settings that only some models have, of the names in their layout's
    ``settings``. Behind earlier requests (`Session`): ``prompted``: the row has the system prompt of thinking;
    ``stands``: it has pictures, ``images`` among them. `FlashUError` for unusable numbers."""

    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    height: int | None = None
    width: int | None = None
    history: History = ()
    images: Sequence[Picture] = ()
    known: Known | None = None
    think: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    prompted: bool = False
    stands: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "guidance", "height", "width"):
            check_number(name, getattr(self, name))
        check_shift(self.shift)


@dataclass(frozen=True, eq=False)
class AnswerRequest:
    """One question about images or videos; without any, a message. ``ids``: the whole row instead of ``text``, with a
    placeholder for each image, as the model's processor writes it; ``think``: in text first; ``prompted``: the row has
    the system prompt of thinking; ``kept``: the answer stays in the row, for requests that come after (`Session`)."""

    text: str = ""
    images: Sequence[Visual] = ()
    max_new_tokens: int | None = None
    ids: Sequence[int] | None = None
    think: bool = False
    prompted: bool = False
    kept: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"a question must be a string, not {type(self.text).__name__}")
        check_number("max_new_tokens", self.max_new_tokens)


class Layout(Protocol):
    """How a family writes its requests, and reads their results. Requests come together so that a picture that several
    show is encoded once. Errors are `FlashUError`s, before anything is computed."""

    defaults: GenerationDefaults
    draws: bool
    """Whether drawn samples can become images (an autoencoder is there)."""
    sees: bool
    edits: bool
    """Whether a drawing may begin from images (`DrawRequest.images`)."""
    converses: bool
    """Whether any request can go on behind earlier ones (``prompted``, ``stands``, ``kept``)."""
    thinks: bool
    """Whether it can be asked to think in text before it draws or answers."""
    settings: frozenset[str]
    """Names of drawing settings that only some models have."""

    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]: ...
    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]: ...
    def padded_text(self, prompt: str) -> Segment:
        """The padded row of a prompt with placeholders for its image, on which the released FlashU program calibrates;
        `RecipeError` where there is no such program."""

    def sizes(self, name: str) -> Sizes:
        """What `plan.explain` needs."""

    def pixels(self, drawn: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] of what samplers finished with [B, ...]."""

    def text(self, ids: Sequence[int]) -> str: ...
