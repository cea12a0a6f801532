"""What there is to learn from, whatever the family. Pictures are indices into a `data.Pool`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Ids: TypeAlias = "list[int]"


@dataclass(frozen=True)
class Drawing:
    """A picture to draw; no ``text``: without a prompt, for guidance."""

    text: Ids
    drawn: int

    @property
    def shown(self) -> None:
        return None


@dataclass(frozen=True)
class Asking:
    """Several questions about one picture, each with its answer."""

    shown: int
    asks: list[tuple[Ids, Ids]]

    @property
    def drawn(self) -> None:
        return None


@dataclass(frozen=True)
class Editing:
    """A picture to draw of another one and an instruction. ``without``: what is left out, for guidance ("text", and
    how the other picture is shown: "latents", "pixels")."""

    shown: int
    text: Ids
    drawn: int
    without: frozenset[str]


Example = Drawing | Asking | Editing
