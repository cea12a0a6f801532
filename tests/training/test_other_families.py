"""Routing of families that the paper did not route: understanding rows of Show-o2, and of BAGEL's understanding
expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.bagel.golden import recorded as bagel
from tests.models.showo2 import showo2_tiny

import flashu
from flashu.models.batches import TaskRows
from flashu.plan import LayerPlan, Route
from flashu.plan.methods import UniMoD
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner
from flashu.training.exact import Savings
from flashu.training.mod import RoutedTraining, UniModConfig

MODELS: dict[str, Callable[[], Any]] = {"show-o2": showo2_tiny.model, "bagel": bagel.model}


def rows(model: Any) -> list[TaskRows]:
    """Questions whose picture, embedded already, is seen by all that follows and by itself."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 100, (2, 16), generator=generator)
    with torch.no_grad():
        x = model.embed_tokens(ids)
    x[:, 2:8] = torch.randn(2, 6, x.shape[-1], generator=generator)
    position = torch.arange(16).expand(2, -1)
    sees = position.clone()
    sees[:, 2:8] = 7
    valid = torch.arange(16) < torch.tensor([[16], [13]])
    mask = (position[:, None] <= sees[..., None]) & valid[:, None] | torch.eye(16, dtype=torch.bool)
    targets = torch.full((2, 16), -100)
    targets[:, 9:12] = ids[:, 10:13]
    visual = torch.zeros(2, 16, dtype=torch.bool)
    visual[:, 2:8] = True
    return [TaskRows("mmu", x, position, mask[:, None], valid, targets, visual=visual)]


@pytest.mark.parametrize("name", MODELS)
def test_understanding_rows_are_routed(name: str) -> None:
    model = MODELS[name]().requires_grad_(True)
    layers = model.spec.layers
    batch = rows(model)
    dense = [RoutedTraining(model, UniModConfig(), **s.__dict__)(batch).weighted for s in (Savings.none(), Savings())]
    torch.testing.assert_close(dense[0], dense[1], atol=1e-5, rtol=1e-5)
    every = UniModConfig({"mmu": dict.fromkeys(range(layers), 1.0)}, gate="none")
    torch.testing.assert_close(RoutedTraining(model, every)(batch).weighted, dense[0], atol=1e-5, rtol=1e-5)
    half = UniModConfig({"mmu": dict.fromkeys(range(1, layers), 0.5)}, force={"mmu": "answers"})
    found = []
    for savings in (Savings.none(), Savings(waste=0.5)):
        training = RoutedTraining(model, half, **savings.__dict__)
        losses = training(batch)
        model.zero_grad()
        training.total(losses).backward()
        gradient = model.layers[-1].get_parameter(next(n for n, _ in model.layers[-1].named_parameters())).grad
        found.append((losses.weighted.detach(), losses.auxiliary_sum.detach(), gradient.clone()))
        assert all(bool(w.grad.any()) for w in training.routers.parameters())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_of_several_experts_are_refused() -> None:
    model = bagel.model()
    experts = model.spec.experts
    layout = TokenLayout.causal([6], ((experts[0], 0, 3), (experts[1], 3, 6)))
    plan = LayerPlan(routes=(Route(1, mode="bypass", keep=0.5),))
    with pytest.raises(flashu.FlashUError, match="several experts"):
        Runner(model).walk(torch.randn(1, 6, model.spec.hidden), layout, plan)


def test_answers_of_a_flow_model_are_routed() -> None:
    """Random tokens; keeping all of them is the exact answer."""
    exact = flashu.load("scenes")
    image = exact.generate("a red circle", steps=2).images[0]
    question = "what colour is the circle?"
    every = UniMoD("understanding", tuple((n, 1.0) for n in range(6, exact.model.spec.layers)), gate="none")
    all_of_them = exact.with_recipe(flashu.Recipe((every,)))
    assert all_of_them.answer(image, question).tokens == exact.answer(image, question).tokens
    few = exact.with_recipe(flashu.Recipe((UniMoD("understanding", ((8, 0.3), (9, 0.3))),)))
    assert few.answer(image, [question, question], max_new_tokens=4)
