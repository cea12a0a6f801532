"""Thoughts in text before more comes: in batches, with drafts, and under methods that measure."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from flashu import Engine, RecipeError
from flashu.inference.actions import Action, Append, Decode, DrawRequest
from flashu.inference.history import SharedObservations
from flashu.inference.run import Run, complete
from flashu.inference.speculate import LookupDrafter, NetworkDrafter, SelfDrafter, Speculation
from flashu.models.draft import Eagle3, Eagle3Config
from flashu.plan import MAIN
from flashu.plan.methods import LayerSkip, UniMoD
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import BOI, BOS, EOS, TokenModel, text_segment

SKIPPING = Recipe((LayerSkip("understanding", 0.4, 10, 0),), "skipping")


@pytest.fixture(scope="module")
def model() -> Any:
    model = seeded(TokenModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that words depend on those before
    return model


def script(n: int, *limits: int) -> list[Action]:
    """Texts one after another, each of which stays in the row."""
    begin = Append((MAIN,), (text_segment([BOS, *range(n + 1, n + 4), BOI]),))
    return [begin, *(Decode(MAIN, frozenset((EOS,)), limit, (BOI,), text_segment) for limit in limits)]


def drafters(model: Any) -> list[Any]:
    torch.manual_seed(0)
    network = Eagle3(Eagle3Config.of(model, layers=2)).start(model)
    return [LookupDrafter(), SelfDrafter.skipping(model, [4, 5]), NetworkDrafter(network, model)]


def rows(model: Any, drafter: Any, batch: int) -> list[tuple[list[int], int]]:
    """The tokens of four rows whose thoughts have unlike lengths, and how many keys and values there are of them."""
    speculation = None if drafter is None else Speculation(drafter, 4, adapt=False)
    runs = [Run(script(n, 6 + 3 * n, 8), exact(), model.spec, speculation=speculation) for n in range(4)]
    with torch.inference_mode():
        for at in range(0, 4, batch):
            complete(Executor(Runner(model), drafter=drafter), runs[at : at + batch])
    contexts = [run.contexts[MAIN] for run in runs]
    return [(context.ids, context.computed().layouts[0].shape[1]) for context in contexts]


def test_a_thought_that_ends_takes_nothing_from_the_rows_beside_it(model: Any) -> None:
    want = rows(model, None, 1)
    for drafter in (None, *drafters(model)):
        assert rows(model, drafter, 4) == want, drafter


def test_what_a_thought_measured_says_nothing_of_what_comes_after(model: Any) -> None:
    observations = SharedObservations()
    run = Run(script(0, 3, 3), SKIPPING, model.spec, observations=observations)
    with torch.inference_mode():
        complete(Executor(Runner(model)), [run])
    first, second = run.trace[0], run.trace[3]
    assert first.similarity is not None
    assert second.similarity is not None
    assert (first.step.index, second.step.index) == (0, 0)
    assert observations.similarity == second.similarity


def test_stacked_contexts_go_with_the_drawings() -> None:
    """A server's executor lives as long as the server."""
    model: Any = seeded(MaskedModel)
    engine = Engine(model, model.processor)
    executor = engine.executor()
    for prompt in ("w1 w2", "w3", "w4 w5"):
        runs = engine.runs_to_draw([DrawRequest(prompt, steps=2)])
        with torch.inference_mode():
            complete(executor, runs)
        del runs
        gc.collect()
        assert len(executor.blocks._prepared) == 1


def test_routed_answers_are_not_drafted(model: Any) -> None:
    routed = Recipe((UniMoD("understanding", ((2, 0.5),)),), "routed")
    with pytest.raises(RecipeError, match="leave draft out"):
        Engine(model, model.processor, routed, draft="lookup")
    Engine(model, model.processor, routed)


def test_a_fork_keeps_what_its_source_had_decoded(model: Any) -> None:
    run = Run([*script(0, 4)[:1], Decode(MAIN, frozenset(), 4)], exact(), model.spec)
    executor = Executor(Runner(model))
    with torch.inference_mode():
        for _ in range(3):
            run.step(executor)
        fork = run.contexts[MAIN].fork()
        slot = run.contexts[MAIN].slot
        assert slot is not None
        kept = [k.clone() for k, _ in fork.computed().layers]
        for k, _ in slot.block.storage:
            k.zero_()  # as another's use of the block would
    assert all(torch.equal(k, want) for (k, _), want in zip(fork.computed().layers, kept, strict=True))
