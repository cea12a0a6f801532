"""A batch changes nothing for its members: under every recipe each image and answer has its own list of skipped
layers. Under `reference` a batch shares one list, as in the released program."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from PIL import Image

import flashu
from flashu.plan.methods.layer_skip import most_similar
from flashu.scenes import benchmark
from flashu.scenes.captions import CATEGORIES
from flashu.scenes.world import render

STEPS = {"exact": 8, "quality": 8, "paper": 20, "fast": 20}
"""Of the two that skip layers, enough for a second list."""
PROMPTS = [prompt.text for category in CATEGORIES for prompt in benchmark.prompts(category, 2, seed=5)]


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    return flashu.load("scenes")


@cache
def asked() -> tuple[list[Image.Image], list[str]]:
    """24 questions of all kinds, each about its own picture."""
    questions = [q for kind in benchmark.QUESTION_KINDS for q in benchmark.questions(kind, 4, seed=7)]
    return [Image.fromarray(picture) for picture in render([q.scene for q in questions])], [q.text for q in questions]


def skipped(trace: list) -> list[frozenset[int]]:
    return [step.plan.layers.skip for step in trace]


@pytest.mark.parametrize("recipe", STEPS)
def test_an_image_is_the_same_in_any_batch(recipe: str, engine: flashu.Engine) -> None:
    own = engine.with_recipe(recipe)
    together = own.generate(PROMPTS, seed=11, steps=STEPS[recipe], decode=False)
    lists = []
    for n, prompt in enumerate(PROMPTS):
        alone = own.generate(prompt, seed=11 + n, steps=STEPS[recipe], decode=False)
        assert skipped(alone.trace) == skipped(together.traces[n])
        torch.testing.assert_close(together.latents[n], alone.latents[0], rtol=0, atol=1e-4)
        lists.append(tuple(skipped(alone.trace)))
    # The lists are worth having: under the two that skip, not all images skip the same layers.
    assert (len(set(lists)) > 1) == (recipe in ("paper", "fast"))


@pytest.mark.parametrize("recipe", STEPS)
def test_an_answer_is_the_same_in_any_batch(recipe: str, engine: flashu.Engine) -> None:
    own = engine.with_recipe(recipe)
    images, questions = asked()
    together = own.answer(images, questions)
    for image, question, answer in zip(images, questions, together, strict=True):
        alone = own.answer(image, question)
        assert alone.tokens == answer.tokens
        assert skipped(alone.trace) == skipped(answer.trace)


def test_under_reference_a_batch_shares_one_list(engine: flashu.Engine) -> None:
    settings = flashu.FlashUConfig(reference=True, r_p=0, r_LS=0.3, T_LS=4, T_cache=1, tau=0)
    traces = engine.with_recipe(settings).generate(PROMPTS[:4], seed=11, steps=12, decode=False).traces
    probed = [n for n, step in enumerate(traces[0]) if step.plan.probe != "off"]
    assert probed == [0, 4]
    for first in probed:
        measured = torch.tensor([trace[first].similarity for trace in traces])
        assert len({tuple(row) for row in measured.tolist()}) == 4
        shared = most_similar(tuple(measured.mean(0).tolist()), 0.3)
        assert shared
        for trace in traces:
            assert all(step.plan.layers.skip == shared for step in trace[first + 1 : first + 4])
