"""Compiled layers: whatever is asked for, in whatever order, the results are the eager ones and the graphs few."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import flashu
from flashu import Engine, Recipe
from flashu.plan.methods import FFNPrune, LayerSkip
from flashu.runtime import compile as compiling
from flashu.runtime.compile import LIMIT, LayerCalls
from tests.conftest import tiny_model

FUNCTIONS = 3
REQUESTS = 200
RECIPES: tuple[Any, ...] = (
    "exact",
    Recipe((LayerSkip("generation", 0.34, 4), LayerSkip("understanding", 0.34, 3)), "skip"),
    Recipe((FFNPrune("generation", 0.25), FFNPrune("understanding", 0.25)), "prune"),
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def pair(recipe: Any, model: flashu.ShowO2, calls: LayerCalls) -> tuple[Engine, Engine]:
    """An eager engine and a compiled one with the same calibration."""
    eager = Engine(model, model.processor, recipe)
    for task in ("generation", "understanding"):
        eager.prepare(task)  # type: ignore[arg-type]
    compiled = Engine(model, model.processor, recipe, eager.calibration)
    compiled.prepared.calls = calls
    return eager, compiled


def mixed(engines: list[tuple[Engine, Engine]], count: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What eager and compiled engines make of random requests of every kind."""
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(20)]
    image = engines[0][0].generate("w1", steps=2).images[0]
    for _ in range(count):
        eager, compiled = draw.choice(engines)
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.5:
            size = {"height": draw.choice((32, 64)), "width": draw.choice((32, 64, 96))}
            settings = {"steps": draw.randint(1, 3), "guidance": draw.choice((0, 3.0)), "decode": False, **size}
            if draw.random() < 0.3:
                settings["history"] = [[("w7", image)] for _ in texts]
            yield (
                eager.generate(texts, seed=5, **settings).latents,  # type: ignore[arg-type]
                compiled.generate(texts, seed=5, **settings).latents,  # type: ignore[arg-type]
            )
        else:
            new = draw.randint(1, 6)
            for a, b in zip(
                eager.answer([image] * len(texts), texts, max_new_tokens=new),
                compiled.answer([image] * len(texts), texts, max_new_tokens=new),
                strict=True,
            ):
                yield torch.tensor(a.tokens), torch.tensor(b.tokens)


def test_a_mix_of_two_hundred_requests_equals_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    model, calls = tiny_model(), LayerCalls(True, backend="eager")
    engines = [pair(recipe, model, calls) for recipe in RECIPES]
    with caplog.at_level(logging.WARNING):
        for want, got in mixed(engines, REQUESTS, seed=0):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert 0 < counters["stats"]["unique_graphs"] <= FUNCTIONS * LIMIT
    assert sum("recompile_limit" in record.getMessage() for record in caplog.records) <= FUNCTIONS


def test_past_the_limit_layers_run_eagerly_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "LIMIT", 2)
    model, calls = tiny_model(), LayerCalls(True, backend="eager")
    engines = [pair("exact", model, calls)]
    with caplog.at_level(logging.WARNING):
        for want, got in mixed(engines, 40, seed=1):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] <= FUNCTIONS * 2
    said = [record.getMessage() for record in caplog.records if "recompile_limit" in record.getMessage()]
    assert 1 <= len(said) <= FUNCTIONS


def test_replaced_weights_count_in_every_compiled_part() -> None:
    """``.data =`` of any weight, of the decoder or the head, moves the compiled result as it moves the eager one."""
    model, calls = tiny_model(), LayerCalls(True, backend="eager")
    eager, compiled = pair("exact", model, calls)
    for name in (
        "showo.model.layers.2.self_attn.k_proj.weight",
        "showo.model.layers.4.mlp.up_proj.weight",
        "diffusion_head_a.1.mlp.down_proj.weight",
        "diffusion_head_a.0.self_attn.q_proj.weight",
    ):
        before = compiled.generate("w1 w2", steps=2, decode=False).latents
        parameter = model.get_parameter(name)
        parameter.data = parameter.data * 1.5
        want = eager.generate("w1 w2", steps=2, decode=False).latents
        got = compiled.generate("w1 w2", steps=2, decode=False).latents
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert not torch.equal(got, before), name


@pytest.mark.slow
def test_the_real_compiler_gives_the_eager_results() -> None:
    model, calls = tiny_model(), LayerCalls(True)
    engines = [pair(recipe, model, calls) for recipe in RECIPES]
    for want, got in mixed(engines, 12, seed=2):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
