"""Drawing beyond the edge of a picture: a new image that begins with a strip of it, as in the authors' program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError, ImageError
from flashu.inference.engine import Engine
from flashu.models.pictures import Picture
from flashu.models.showo.layout import ShowOLayout

Direction = Literal["left", "right", "up", "down"]


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """The larger picture, and its codes [rows, columns], with which another may go on."""

    image: Image.Image | None
    codes: Tensor


def extrapolate(
    engine: Engine,
    image: Picture | Extrapolation,
    prompt: str,
    direction: Direction = "right",
    *,
    offset: int = 0,
    decode: bool = True,
    **settings: Any,
) -> Extrapolation:
    """A picture, or what was extrapolated before, made larger to one side.

    Half of the new image (less ``offset`` rows or columns of codes) is a strip from that side of the old one; the rest
    is drawn after the prompt. ``settings``: as of `Engine.generate` (seed, steps, guidance). Several in turn go along
    one axis. `FlashUError` for another family's model, `ImageError` for a picture of another shape.
    """
    layout = engine.layout
    if not isinstance(layout, ShowOLayout):
        raise FlashUError(f"{engine.model.spec.family} cannot draw beyond a picture's edge: that is Show-o's")
    if direction not in get_args(Direction):
        raise FlashUError(f"a direction is one of {', '.join(get_args(Direction))}, not {direction!r}")
    side = round(layout.model.config.image_tokens**0.5)
    strip = side // 2 - offset
    if not 0 < strip < side:
        raise FlashUError(f"an offset must lie between {side // 2 - side + 1} and {side // 2 - 1}, not {offset}")
    codes = image.codes if isinstance(image, Extrapolation) else layout.codes_of(image).view(side, side)
    # Turned so that it grows to the right.
    across = direction in ("up", "down")
    back = direction in ("left", "up")
    wide = codes.T if across else codes
    wide = wide.flip(1) if back else wide
    if len(wide) != side:
        raise ImageError(f"a picture that has grown along the other axis ({list(codes.shape)} codes) cannot grow here")
    known = torch.zeros(side, side, dtype=torch.long)
    hidden = torch.ones(side, side, dtype=torch.bool)
    known[:, :strip], hidden[:, :strip] = wide[:, -strip:], False
    known, hidden = (_turned(x, across, back) for x in (known, hidden))
    drawn = engine.generate(prompt, image=known.flatten(), mask=hidden, decode=False, **settings).latents[0]
    new = _turned(drawn.cpu().view(side, side), across, back, undo=True)
    grown = _turned(torch.cat((wide[:, :-strip], new), dim=1), across, back)
    return Extrapolation(engine.decode(grown[None])[0] if decode else None, grown)


def _turned(x: Tensor, across: bool, back: bool, undo: bool = False) -> Tensor:
    """From growing to the right to growing where it should, or back."""
    if undo:
        x = x.T if across else x
        return x.flip(1) if back else x
    x = x.flip(1) if back else x
    return (x.T if across else x).contiguous()
