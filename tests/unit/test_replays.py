"""Forwards recorded once and replayed: here by a stand-in that, like a CUDA graph, knows only addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from tests.recipes import GENERATION, UNDERSTANDING
from torch import Tensor

import flashu
from flashu.plan.methods.taylor_cache import TaylorCache
from flashu.runtime.replays import CudaGraphs, Recorded
from flashu.runtime.rooms import Rooms


class Addresses:
    """A recording runs nothing; a replay does the work on the tensors it was recorded with, whatever they now hold."""

    replays = 0

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Recorded:
        held = [x.clone() for x in inputs]
        output: list[Tensor] = []

        def replay() -> None:
            type(self).replays += 1
            result = function(*held)
            if output[0].numel() == 0:
                output[0].resize_(result.shape)
            output[0].copy_(result)

        shaped = torch.empty(0)
        output.append(shaped)
        return Recorded(held, shaped, replay)


def both(recipe: flashu.Recipe) -> tuple[flashu.Engine, flashu.Engine]:
    model = tiny_model()
    plain = flashu.Engine(model, model.processor, recipe)
    plain.calibrate("generation", prompts=["w1 w2"])
    image = plain.generate("w9", steps=2).images[0]
    plain.calibrate("understanding", pairs=[(image, "w3")])
    replayed = plain.with_recipe(recipe)
    replayed.fitted.rooms = Rooms(record=Addresses)
    return plain, replayed


HISTORY = flashu.Recipe((TaylorCache(),))  # reads the features of earlier forwards, which a replay must not write over


@pytest.mark.parametrize(
    "recipe", [flashu.Recipe(), flashu.Recipe(tuple(GENERATION.values())), HISTORY], ids=["exact", "all", "history"]
)
def test_replayed_drawings_are_the_same(recipe: flashu.Recipe) -> None:
    plain, replayed = both(recipe)
    Addresses.replays = 0
    for prompts in (["w1 w2"], ["w3", "w4 w5 w6"]):
        expected = plain.generate(prompts, seed=3, steps=12)
        got = replayed.generate(prompts, seed=3, steps=12)
        assert torch.equal(got.latents, expected.latents)
        assert [record.plan for record in got.trace] == [record.plan for record in expected.trace]
    assert Addresses.replays > 1


@pytest.mark.parametrize(
    "recipe", [flashu.Recipe(), flashu.Recipe(tuple(UNDERSTANDING.values()))], ids=["exact", "all"]
)
def test_replayed_answers_are_the_same(recipe: flashu.Recipe) -> None:
    plain, replayed = both(recipe)
    Addresses.replays = 0
    images = plain.generate(["w1", "w2"], steps=2).images
    asked: list[Any] = ["w1 w2", "w5"]
    for settings in ({}, {"temperature": 1.0, "seed": 4}):
        expected = plain.answer(images, asked, max_new_tokens=14, **settings)
        got = replayed.answer(images, asked, max_new_tokens=14, **settings)
        assert [answer.tokens for answer in got] == [answer.tokens for answer in expected]
    assert Addresses.replays > 6


def test_graphs_need_a_cuda_device(tiny: flashu.ShowO2) -> None:
    with pytest.raises(flashu.FlashUError, match="CUDA"):
        flashu.Engine(tiny, tiny.processor, graphs=True)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_graphs_give_what_eager_rooms_give(compile: bool) -> None:
    model = tiny_model().to("cuda")
    recipe = flashu.Recipe((*GENERATION.values(), *UNDERSTANDING.values()))
    plain = flashu.Engine(model, model.processor, recipe)
    image = plain.generate("w9", steps=2).images[0]
    plain.calibrate("understanding", pairs=[(image, "w3")])
    graphed = plain.with_recipe(recipe)
    graphed.fitted.rooms = Rooms(compile, CudaGraphs)
    expected = plain.generate(["w1", "w2 w3"], seed=3, steps=12).latents
    torch.testing.assert_close(graphed.generate(["w1", "w2 w3"], seed=3, steps=12).latents, expected, atol=1e-3, rtol=0)
    said = plain.answer(image, ["w1 w2", "w5"], max_new_tokens=14)
    again = graphed.answer(image, ["w1 w2", "w5"], max_new_tokens=14)
    assert [answer.tokens for answer in again] == [answer.tokens for answer in said]
