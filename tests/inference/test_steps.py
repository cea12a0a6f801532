"""What a caller sees of a drawing under way, and what it may change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu import Recipe
from flashu.plan import SOLVERS
from flashu.plan.methods import ChangeCache, LayerSkip
from tests.fakes.masked import MaskedModel, seeded

PROMPTS = ["w1 w2 w3", "w9", "w4 w5"]


def states(engine: flashu.Engine, prompts: Any, **settings: Any) -> tuple[list[Tensor], flashu.Generation]:
    """The state after each step, and the drawing."""
    seen: list[tuple[int, Tensor]] = []
    drawn = engine.generate(prompts, on_step=lambda step, plan, z: seen.append((step.index, z)), **settings)  # type: ignore[func-returns-value]
    assert [index for index, _ in seen] == list(range(len(drawn.trace)))
    return [state for _, state in seen], drawn


def test_every_step_is_seen_once_for_all_images(tiny_engine: flashu.Engine) -> None:
    seen, drawn = states(tiny_engine, PROMPTS, steps=4, seed=3)
    assert [state.shape for state in seen] == [(3, 4, 8, 8)] * 4
    assert torch.equal(seen[-1], drawn.latents)
    chunked, again = states_in_chunks(tiny_engine, steps=4, seed=3)
    assert chunked == [(0, 2), (1, 2), (2, 2), (3, 2), (0, 1), (1, 1), (2, 1), (3, 1)]
    torch.testing.assert_close(again.latents, drawn.latents, rtol=0, atol=5e-4)


def states_in_chunks(engine: flashu.Engine, **settings: Any) -> tuple[list[tuple[int, int]], flashu.Generation]:
    """(step, images) of each call for two images at a time."""
    seen: list[tuple[int, int]] = []
    note = lambda step, plan, z: seen.append((step.index, len(z)))  # noqa: E731
    return seen, engine.generate(PROMPTS, on_step=note, batch_size=2, **settings)


def test_images_stay_in_order_where_each_has_its_own_plan(tiny_engine: flashu.Engine) -> None:
    """One image reuses its head while another computes, and both probe: every state is that of the image alone."""
    engine = tiny_engine.with_recipe(Recipe((ChangeCache(threshold=0.3), LayerSkip("generation", 0.34, 2, 0.0))))
    together, drawn = states(engine, PROMPTS, seed=3)
    computed = [[trace.plan.features for trace in traces] for traces in drawn.traces]
    assert len({tuple(features) for features in computed}) > 1
    for n, prompt in enumerate(PROMPTS):
        alone, one = states(engine, prompt, seed=3 + n)
        assert [trace.plan for trace in one.trace] == [trace.plan for trace in drawn.traces[n]]
        for state, own in zip(together, alone, strict=True):
            torch.testing.assert_close(state[n], own[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_given_back_unchanged_changes_nothing(solver: str, tiny_engine: flashu.Engine) -> None:
    engine = tiny_engine.with_recipe(Recipe(solver=solver))
    plain = engine.generate(PROMPTS, steps=5).latents
    assert torch.equal(engine.generate(PROMPTS, steps=5, on_step=lambda step, plan, z: z.clone()).latents, plain)


def test_the_drawing_goes_on_from_what_was_given_back(tiny_engine: flashu.Engine) -> None:
    """Noise put in the place of the first step's result, at the time where the second begins: two more steps."""
    other = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))

    def replace(step: Any, plan: Any, z: Tensor) -> Tensor | None:
        return other if step.index == 0 else None

    one, two = (tiny_engine.generate("w1", steps=3, seed=seed, on_step=replace).latents for seed in (0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, tiny_engine.generate("w1", steps=3).latents)
    last = tiny_engine.generate("w1", steps=3, on_step=lambda step, plan, z: torch.ones_like(z)).latents
    assert torch.equal(last, torch.ones_like(last))


def test_a_change_is_part_of_what_a_method_sees(tiny_engine: flashu.Engine) -> None:
    """The head is computed again once the caller, not the model, has moved the latents."""
    engine = tiny_engine.with_recipe(Recipe((ChangeCache(threshold=1e6),)))

    def move(step: Any, plan: Any, z: Tensor) -> Tensor | None:
        return z + 1e8 if step.index == 3 else None

    trace = engine.generate("w1", steps=8, on_step=move).trace
    assert [step.plan.features for step in trace] == ["run", *["reuse"] * 3, "run", *["reuse"] * 3]


def test_codes_are_not_changed() -> None:
    model = seeded(MaskedModel)
    engine = flashu.Engine(model, model.processor)  # type: ignore[arg-type]
    seen, drawn = states(engine, PROMPTS, steps=4)
    assert torch.equal(seen[-1], drawn.latents)
    with pytest.raises(flashu.FlashUError, match="draws codes"):
        engine.generate("w1", steps=4, on_step=lambda step, plan, z: z)
