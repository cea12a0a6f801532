"""Captured graphs: here by a stand-in that, like a CUDA graph, knows only addresses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.models.showo2.layout import words
from flashu.plan import LayerPlan, Plan, Step
from flashu.plan.methods import LayerSkip, TaylorCache
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor
from flashu.runtime.graphs import Captured, GraphPool
from flashu.runtime.request import Row, StepRequest
from flashu.runtime.runner import Runner
from tests.conftest import tiny_model
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import TokenModel
from tests.recipes import GENERATION, UNDERSTANDING


class Addresses:
    """Capturing computes nothing; a replay does the work on the tensors that were captured, whatever they now hold, and
    writes the result where the captured one was."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Captured:
        self.captures += 1
        held = [x.clone() for x in inputs]
        output = torch.empty(0)

        def replay() -> None:
            self.replays += 1
            result = function(*held)
            output.resize_(result.shape).copy_(result)

        return Captured(held, output, replay)


class Owner:
    """The memory that graphs read besides their inputs."""


def test_a_function_is_called_then_captured_then_replayed() -> None:
    capture = Addresses()
    pool, owner, seen = GraphPool(capture), Owner(), []

    def double(x: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x

    results = [pool(owner, "double", double, torch.tensor([float(n)])) for n in range(4)]
    assert [float(result) for result in results] == [0, 2, 4, 6]  # a later replay does not write over an earlier result
    assert (capture.captures, capture.replays) == (1, 3)
    assert len({id(x) for x in seen[1:]}) == 1


def test_a_graph_belongs_to_its_owner_and_key_and_goes_with_the_owner() -> None:
    capture = Addresses()
    pool, first, second = GraphPool(capture), Owner(), Owner()
    for owner in (first, second):
        for key, factor in (("a", 1.0), ("b", 10.0)):
            for n in range(3):
                assert float(pool(owner, key, lambda x, f=factor: f * x, torch.tensor(float(n)))) == factor * n
    assert capture.captures == 4
    assert len(pool._graphs) == 2
    del first, second, owner
    gc.collect()
    assert len(pool._graphs) == 0


def both(model: Any, recipe: flashu.Recipe) -> tuple[flashu.Engine, flashu.Engine, Addresses]:
    """An engine that runs every forward and one that captures, with the same calibration."""
    plain = flashu.Engine(model, model.processor, recipe)
    image = plain.generate("w9").images[0]
    if recipe.ffn_prunes():
        plain.calibrate("generation", prompts=["w1 w2"])
        plain.calibrate("understanding", pairs=[(image, "w3")])
    captured, capture = plain.with_recipe(recipe), Addresses()
    captured.prepared.graphs = GraphPool(capture)
    return plain, captured, capture


HISTORY = flashu.Recipe((TaylorCache(),))  # reads the features of earlier forwards, which a replay must not write over


@pytest.mark.parametrize(
    "recipe", [flashu.Recipe(), flashu.Recipe(tuple(GENERATION.values())), HISTORY], ids=["exact", "all", "history"]
)
def test_replayed_drawings_are_the_same(recipe: flashu.Recipe) -> None:
    plain, captured, capture = both(tiny_model(), recipe)
    for prompts in (["w1 w2"], ["w3", "w4 w5 w6"]):
        expected = plain.generate(prompts, seed=3, steps=12)
        got = captured.generate(prompts, seed=3, steps=12)
        assert torch.equal(got.latents, expected.latents)
        assert got.traces == expected.traces
    assert capture.replays > 1


@pytest.mark.parametrize(
    "recipe", [flashu.Recipe(), flashu.Recipe(tuple(UNDERSTANDING.values()))], ids=["exact", "all"]
)
def test_replayed_answers_are_the_same(recipe: flashu.Recipe) -> None:
    plain, captured, capture = both(tiny_model(), recipe)
    images = plain.generate(["w1", "w2"], steps=2).images
    asked: list[Any] = ["w1 w2", "w5"]
    for settings in ({}, {"temperature": 1.0, "seed": 4}):
        expected = plain.answer(images, asked, max_new_tokens=14, **settings)
        got = captured.answer(images, asked, max_new_tokens=14, **settings)
        assert [answer.tokens for answer in got] == [answer.tokens for answer in expected]
        assert [answer.trace for answer in got] == [answer.trace for answer in expected]
    assert capture.replays > 6


@pytest.mark.parametrize("cls", [TokenModel, MaskedModel])
def test_codes_drawn_from_replays_are_the_same(cls: type[TokenModel]) -> None:
    for methods in ((), (LayerSkip("generation", 0.34, 4, 0.3),)):
        plain, captured, capture = both(seeded(cls), flashu.Recipe(methods))
        expected = plain.generate(["w1 w2 w3", "w4"], seed=2)
        assert torch.equal(captured.generate(["w1 w2 w3", "w4"], seed=2).latents, expected.latents)
        assert capture.replays > 1


def test_graphs_need_a_cuda_device(tiny: flashu.ShowO2) -> None:
    with pytest.raises(flashu.FlashUError, match="CUDA"):
        flashu.Engine(tiny, tiny.processor, graphs=True)


@torch.inference_mode()
def test_a_graph_is_of_the_rows_that_skip_a_layer(tiny_engine: flashu.Engine) -> None:
    """Two rows exchange their lists of skipped layers on the way: what was captured for one is not the other's."""
    model = tiny_engine.model
    lists = [({1, 4}, {2}), ({2}, {1, 4})]

    def logits(graphs: GraphPool | None) -> torch.Tensor:
        executor, contexts = Executor(Runner(model), graphs), [Context(), Context()]
        for context, ids in zip(contexts, ([250, 1, 2], [250, 3]), strict=True):
            context.append(words(ids))
        values = []
        for n in range(9):
            step = Step("understanding", "token" if n else "prefill", n, 9)
            skips = lists[n // 5] if n else (set(), set())
            requests = [
                StepRequest(
                    step,
                    Plan(LayerPlan(frozenset(skip))),
                    (Row(context),),
                    "logits",
                    ids=torch.tensor([n]) if n else None,
                    space=9,
                )
                for context, skip in zip(contexts, skips, strict=True)
            ]
            values += [output.values for output in executor.forward(requests)]
        return torch.cat(values)

    capture = Addresses()
    assert torch.equal(logits(GraphPool(capture)), logits(None))
    assert capture.captures == 2
