"""Drafted answers are the same."""

from __future__ import annotations

import torch
from PIL import Image

from flashu import Engine
from tests.drafts import check_answers
from tests.models.showo.golden.recorded import processor, tiny_model


def test_drafts() -> None:
    engine = Engine(tiny_model(), processor())
    side = engine.layout.defaults.width
    noise = (torch.rand(2, side, side, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    images = [Image.fromarray(one) for one in noise]
    check_answers(engine, lambda e: e.answer(images, ["w1 w2", "w3 w4 w5"], max_new_tokens=10))
    check_answers(engine, lambda e: e.chat(["w9", "w1 w7 w3"], max_new_tokens=10))
