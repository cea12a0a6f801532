"""Drawing beyond the edge: by hand on the grid of codes, as the authors' program does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashu import Engine, FlashUError, ImageError
from flashu.models.showo.extrapolate import Direction, extrapolate
from tests.models.showo.golden.recorded import SIZES, processor, tiny_model

SIDE = round(SIZES["num_vq_tokens"] ** 0.5)
SETTINGS: dict[str, Any] = {"steps": 3, "seed": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), processor())


@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
@pytest.mark.parametrize("offset", [0, 1])
def test_one_step(engine: Engine, direction: Direction, offset: int) -> None:
    old, strip = torch.arange(SIDE * SIDE).view(SIDE, SIDE), SIDE // 2 - offset
    hidden, known = torch.ones(SIDE, SIDE, dtype=torch.bool), torch.zeros(SIDE, SIDE, dtype=torch.long)
    here, there = {
        "right": ((slice(None), slice(0, strip)), (slice(None), slice(SIDE - strip, None))),
        "left": ((slice(None), slice(SIDE - strip, None)), (slice(None), slice(0, strip))),
        "down": ((slice(0, strip),), (slice(SIDE - strip, None),)),
        "up": ((slice(SIDE - strip, None),), (slice(0, strip),)),
    }[direction]
    known[here], hidden[here] = old[there], False
    new = engine.generate("w1", image=known.flatten(), mask=hidden, **SETTINGS).latents.view(SIDE, SIDE)
    kept = {"right": old[:, :-strip], "left": old[:, strip:], "down": old[:-strip], "up": old[strip:]}[direction]
    parts = (kept, new) if direction in ("right", "down") else (new, kept)
    expected = torch.cat(parts, dim=1 if direction in ("left", "right") else 0)
    picture = engine.layout.pixels(old.flatten()[None])[0]
    given = extrapolate(engine, picture, "w1", direction, offset=offset, **SETTINGS)
    assert torch.equal(given.codes, expected)
    assert given.image is not None
    assert given.image.size == tuple(2 * n for n in reversed(expected.shape))


def test_several_in_turn(engine: Engine) -> None:
    picture = engine.generate("w1", steps=2).images[0]
    first = extrapolate(engine, picture, "w1", "right", **SETTINGS)
    second = extrapolate(engine, first, "w2", "left", decode=False, **SETTINGS)
    assert second.codes.shape == (SIDE, 2 * SIDE)
    with pytest.raises(ImageError, match="along the other axis"):
        extrapolate(engine, second, "w1", "up")


def test_bad_input(engine: Engine) -> None:
    picture = engine.generate("w1", steps=2).images[0]
    with pytest.raises(FlashUError, match="one of left, right, up, down"):
        extrapolate(engine, picture, "w1", "out")  # type: ignore[arg-type]
    with pytest.raises(FlashUError, match="between -1 and 1, not 2"):
        extrapolate(engine, picture, "w1", offset=2)
