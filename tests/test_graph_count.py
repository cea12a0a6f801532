"""Compiled rooms: how many graphs a whole run of the paper's preset compiles, counted by the compiler's back end."""

from __future__ import annotations

import torch
from torch._dynamo.testing import CompileCounter

import flashu
from flashu.runtime.rooms import Rooms
from tests.recipes import GENERATION, UNDERSTANDING

MOST = 4
"""For one task."""


def test_few_graphs_serve_every_plan(tiny: flashu.ShowO2) -> None:
    """Layer skipping, two FFN widths, prefixes of other lengths and batch sizes: the same few graphs."""
    torch._dynamo.reset()
    counter = CompileCounter()
    eager = flashu.Engine(tiny, tiny.processor, flashu.Recipe(tuple(GENERATION.values())))
    eager.calibrate("generation", prompts=["w1 w2 w3"])
    compiled = eager.with_recipe(eager.recipe)
    compiled.fitted.rooms = Rooms(compiled=True, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=MOST):
        for prompts in (["w1 w2"], ["w1 w2 w3 w4", "w5 w6"], ["w1 w2 w3"]):
            expected = eager.generate(prompts, seed=1).latents
            got = compiled.generate(prompts, seed=1).latents
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    assert 0 < counter.frame_count <= MOST


def test_few_graphs_serve_a_growing_cache(tiny: flashu.ShowO2) -> None:
    """One for prefills; of stretches one of four layers and one of a single layer, with a whole or a pruned FFN."""
    torch._dynamo.reset()
    counter = CompileCounter()
    eager = flashu.Engine(tiny, tiny.processor, flashu.Recipe(tuple(UNDERSTANDING.values())))
    image = flashu.Engine(tiny, tiny.processor).generate("w9", steps=2).images[0]
    eager.calibrate("understanding", pairs=[(image, "w3 w4")])
    compiled = eager.with_recipe(eager.recipe)
    compiled.fitted.rooms = Rooms(compiled=True, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=MOST):
        for question in ("w1 w2", "w1 w2 w3 w4 w5"):
            assert compiled.answer(image, question).tokens == eager.answer(image, question).tokens
    assert 0 < counter.frame_count <= MOST
