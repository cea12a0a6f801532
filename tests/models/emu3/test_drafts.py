"""Drafted answers are the same."""

from __future__ import annotations

import torch
from PIL import Image

from flashu import Engine
from tests.drafts import check_answers
from tests.models.emu3.emu3_tiny import processor
from tests.models.emu3.golden.recorded import model, vq


def test_drafts() -> None:
    engine = Engine(model(), processor(vq()))
    noise = (torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    images = [Image.fromarray(one) for one in noise]
    check_answers(engine, lambda e: e.answer(images, ["w1 w2", "w3 w4 w5"], max_new_tokens=10))
