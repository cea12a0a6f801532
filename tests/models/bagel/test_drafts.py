"""Drafted answers are the same, for a model of two experts whose pictures stand at one position."""

from __future__ import annotations

import torch
from PIL import Image

from tests.drafts import check_answers
from tests.models.bagel.golden.engines import engine

PICTURE = Image.new("RGB", (32, 32))


def test_drafts() -> None:
    check_answers(engine(), lambda e: e.answer([PICTURE] * 2, ["5,7,9", "11,3,20,8"], max_new_tokens=10))
    check_answers(engine(), lambda e: e.chat(["5,7", "4,4,6"], max_new_tokens=10))


def test_a_drafted_thought_draws_the_same() -> None:
    """What was verified stays in the context that the drawing stands behind, and nothing else does."""
    made = engine()
    asked = {"seed": 3, "think": True, "max_think_tokens": 9, "steps": 4, "height": 32, "width": 32, "decode": False}
    want = made.generate("5,7,9", **asked)
    for draft in ("lookup", "self:2-3"):
        got = made.with_recipe("exact", draft=draft).generate("5,7,9", **asked)
        assert got.thoughts == want.thoughts
        torch.testing.assert_close(got.latents, want.latents, atol=1e-5, rtol=0)
