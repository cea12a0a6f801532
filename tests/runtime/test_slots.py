"""Answers that join and leave a static cache at any token are those of the question alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

import flashu
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.run import Run
from flashu.plan import Plan, Step
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor
from flashu.runtime.request import Row, StepRequest
from flashu.runtime.runner import Runner
from flashu.runtime.slots import SlotPool
from tests.fakes.masked import seeded
from tests.fakes.tokens import BOI, BOS, CODES, EOL, TokenModel, text_segment

RECIPES = ("exact", "paper", "fast")


def requests_of(count: int) -> list[AnswerRequest]:
    """Questions of unlike lengths, some about a picture, some about none, of 1 to 7 tokens."""
    return [
        AnswerRequest(
            " ".join(f"w{(7 * n + k) % 200}" for k in range(1 + n % 4)),
            () if n % 3 == 2 else (Image.new("RGB", (64, 64), (30 * n % 255, 90, 200)),),
            max_new_tokens=1 + (5 * n) % 7,
        )
        for n in range(count)
    ]


@torch.inference_mode()
def carried_out(executor: Executor, runs: Sequence[Run], every: int) -> None:
    """A run joins ``every`` forwards, and leaves when it is done."""
    waiting, running, forwards = list(runs), [], 0
    while waiting or running:
        if waiting and forwards % every == 0:
            running.append(waiting.pop(0))
        forwards += 1
        asked = [(run, request) for run in running if (request := run.prepare()) is not None]
        for (run, _), output in zip(asked, executor.forward([r for _, r in asked]) if asked else [], strict=True):
            run.accept(output)
        running = [run for run in running if not run.done]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("rows", "every"), [(2, 1), (4, 2), (8, 1)])
def test_rows_join_and_leave(recipe: str, rows: int, every: int, tiny_engine: flashu.Engine) -> None:
    engine = tiny_engine.with_recipe(recipe)
    requests = requests_of(9)
    alone = [engine.respond([request])[0] for request in requests]
    runs = engine.runs_to_answer(requests)
    slots = SlotPool(rows, capacity=64)
    carried_out(engine.executor(slots), runs, every)
    for run, answer in zip(runs, alone, strict=True):
        assert run.text == answer.tokens
        assert [(s.plan, s.tokens, s.past) for s in run.trace] == [(s.plan, s.tokens, s.past) for s in answer.trace]


def test_logits_are_those_of_the_row_alone(tiny_engine: flashu.Engine) -> None:
    """Not the tokens only: what they are chosen from, up to rounding."""
    seen: dict[int, list[torch.Tensor]] = {}

    def watch(runs: Sequence[Run], offset: int) -> None:
        for n, run in enumerate(runs):
            choose = run._choose

            def noted(logits: torch.Tensor, n: int = n, choose=choose) -> torch.Tensor:  # type: ignore[no-untyped-def]
                seen.setdefault(n + offset, []).append(logits)
                return choose(logits)

            run._choose = noted

    requests = requests_of(6)
    engine = tiny_engine.with_recipe("paper")
    runs = engine.runs_to_answer(requests)
    watch(runs, 0)
    carried_out(engine.executor(SlotPool(4)), runs, 2)
    alone = engine.runs_to_answer(requests)
    watch(alone, 100)
    for run in alone:
        carried_out(engine.executor(), [run], 1)
    for n in range(6):
        torch.testing.assert_close(torch.cat(seen[n]), torch.cat(seen[100 + n]), rtol=0, atol=1e-4)


def test_drawing_token_by_token_joins_with_its_branches() -> None:
    model = seeded(TokenModel)
    engine = flashu.Engine(model, model.processor)  # type: ignore[arg-type]
    requests = [DrawRequest(" ".join(["w1", "w2", "w3"][: 1 + n % 3]), seed=n) for n in range(5)]
    alone = [run for request in requests for run in engine.runs_to_draw([request])]
    for run in alone:
        carried_out(engine.executor(), [run], 1)
    runs = [run for request in requests for run in engine.runs_to_draw([request])]
    carried_out(engine.executor(SlotPool(6)), runs, 3)
    for run, own in zip(runs, alone, strict=True):
        assert torch.equal(run.drawn[-1], own.drawn[-1])


@torch.inference_mode()
def test_a_closed_run_frees_its_row_and_leaves_the_others(tiny_engine: flashu.Engine) -> None:
    requests = [AnswerRequest(f"w{n} w2", (), max_new_tokens=6) for n in range(3)]
    alone = [engine_answer.tokens for engine_answer in (tiny_engine.respond([r])[0] for r in requests)]
    slots = SlotPool(2)
    executor = tiny_engine.executor(slots)
    first, second, third = tiny_engine.runs_to_answer(requests)
    for _ in range(3):
        for run, output in zip((first, second), executor.forward([first.prepare(), second.prepare()]), strict=True):  # type: ignore[list-item]
            run.accept(output)
    (block,) = slots._blocks
    assert block.free() == []
    first.close()
    assert block.free() == [0]
    carried_out(executor, [second, third], 1)
    assert len(slots._blocks) == 1
    assert [second.text, third.text] == alone[1:]


def test_a_row_that_needs_more_space_gets_a_larger_block(tiny_engine: flashu.Engine) -> None:
    requests = [AnswerRequest("w1", (), max_new_tokens=n) for n in (4, 200, 4)]
    alone = [tiny_engine.respond([r])[0].tokens for r in requests]
    slots = SlotPool(2, capacity=64)
    runs = tiny_engine.runs_to_answer(requests)
    carried_out(tiny_engine.executor(slots), runs, 1)
    assert sorted(block.capacity for block in slots._blocks) == [64, 256]
    assert [run.text for run in runs] == alone


@torch.inference_mode()
def test_a_full_row_goes_along_with_several_tokens_of_another() -> None:
    model = seeded(TokenModel)
    executor = Executor(Runner(model), None, SlotPool(2, capacity=64))  # type: ignore[arg-type]

    def tokens(context: Context, ids: list[int], index: int, space: int) -> Tensor:
        step, spans = Step("generation", "token", index, 100), (("image", 0, len(ids)),)
        request = StepRequest(step, Plan(), (Row(context),), "logits", ids=torch.tensor(ids), spans=spans, space=space)
        values = executor.forward([request])[0].values
        assert values is not None
        return values

    full, other, alone = Context(), Context(), Context()
    for context in (full, other, alone):
        context.append(text_segment([BOS, 1, 2, BOI]))
        prefill = StepRequest(Step("generation", "prefill", 0, 100), Plan(), (Row(context),), "logits")
        executor.forward([prefill])
    for n in range(59):
        tokens(full, [CODES[0]], 1 + n, 59 - n)
    assert full.held(None) == 63
    got = tokens(other, [CODES[0] + 1, EOL], 1, 20)
    assert full.slot is not None
    assert other.slot is not None
    assert full.slot.block is other.slot.block
    full.close()
    torch.testing.assert_close(got, tokens(alone, [CODES[0] + 1, EOL], 1, 20))
