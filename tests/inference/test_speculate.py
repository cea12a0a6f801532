"""Drafts change the speed of an answer and nothing else: on families that the core does not know, and on Show-o2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import flashu
from flashu import Engine, FlashUError, RecipeError
from flashu.inference.results import Answer
from flashu.inference.run import Run, complete
from flashu.inference.speculate import (
    DraftLength,
    LookupDrafter,
    NetworkDrafter,
    SelfDrafter,
    Speculation,
    speculation_of,
)
from flashu.models.layers import AttentionContext
from flashu.runtime.cache import KVBlock
from flashu.runtime.drafting import DraftBatch
from flashu.runtime.graphs import GraphPool
from tests.conftest import tiny_model
from tests.drafts import drafters
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import CODES, TokenModel
from tests.recipes import UNDERSTANDING, subsets
from tests.runtime.test_graphs import Addresses

MODELS = {"tokens": lambda: seeded(TokenModel), "masked": lambda: seeded(MaskedModel), "showo2": tiny_model}
QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8", "w9 w1"]
LIMIT = 14


def picture(seed: int) -> Image.Image:
    noise = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise * 255).byte().numpy()).resize((64, 64))


PICTURES = [picture(n) for n in range(len(QUESTIONS))]


def engine_of(name: str, recipe: Any = "exact", **options: Any) -> Engine:
    model: Any = MODELS[name]()
    return Engine(model, model.processor, recipe, **options)


class Scripted:
    """Proposes what it is told follows the known tokens, wrong where ``wrong`` says (by its place in the answer)."""

    collect: Sequence[int] = ()
    layers = None
    cost = 0.1

    def __init__(self, answers: Sequence[Sequence[int]], wrong: Any) -> None:
        self.answers, self.wrong = [list(answer) for answer in answers], wrong

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        raise AssertionError("nothing was asked for")

    def begin(self, contexts: Any, space: int) -> None:
        return None

    def observe(self, block: KVBlock, ids: Tensor, features: Tensor | None) -> None:
        assert features is None

    def propose(self, batch: DraftBatch, length: int) -> Tensor:
        rows = []
        for known in batch.known:
            said = [n for n in range(1, len(known) + 1) if any(a[:n] == list(known[-n:]) for a in self.answers)]
            count = max(said, default=0)
            answer = next((a for a in self.answers if count and a[:count] == list(known[-count:])), [])
            told = (answer[count:] + [0] * length)[:length]
            rows.append([(token + self.wrong(count + n)) % CODES[1] for n, token in enumerate(told)])
        return torch.tensor(rows)


def asked(engine: Engine, **sampling: Any) -> list[Answer]:
    return engine.answer(PICTURES, QUESTIONS, max_new_tokens=LIMIT, **sampling)


@pytest.mark.parametrize("adapt", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_without_a_draft(name: str, adapt: bool) -> None:
    plain = engine_of(name)
    want = asked(plain)
    for kind, drafter in drafters(plain, want).items():
        engine = plain.with_recipe("exact", draft=Speculation(drafter, 4, adapt))
        assert [a.tokens for a in asked(engine)] == [a.tokens for a in want], kind
        alone = engine.answer(PICTURES[1], QUESTIONS[1], max_new_tokens=LIMIT)
        assert alone.tokens == want[1].tokens, kind
        assert "".join(engine.stream(PICTURES[1], QUESTIONS[1], max_new_tokens=LIMIT)) == want[1].text
        if not adapt:
            assert any(trace.plan.draft.length == 4 for trace in alone.trace[1:]), kind  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_chat_and_several_images(name: str) -> None:
    plain = engine_of(name)
    engine = plain.with_recipe("exact", draft="self:1,3-4")
    assert engine.chat(QUESTIONS).__len__() == len(QUESTIONS)
    for a, b in zip(plain.chat(QUESTIONS, max_new_tokens=9), engine.chat(QUESTIONS, max_new_tokens=9), strict=True):
        assert a.tokens == b.tokens
    shown = [PICTURES[:2], PICTURES[2:]]
    for a, b in zip(plain.answer(shown, QUESTIONS[:2]), engine.answer(shown, QUESTIONS[:2]), strict=True):
        assert a.tokens == b.tokens


@pytest.mark.parametrize("name", ["tokens", "showo2"])
def test_under_every_recipe(name: str) -> None:
    """Layers skipped after probes, pruned FFNs that end with a window, dropped visual tokens: a chain ends where the
    plan changes, so the tokens are those of the same recipe without a draft."""
    plain = engine_of(name)
    plain.calibrate("understanding", pairs=[(PICTURES[0], QUESTIONS[0])])
    drafter = drafters(plain, [])
    for label, recipe in subsets(UNDERSTANDING).items():
        want = asked(plain.with_recipe(recipe))
        for kind in ("self", "eagle3", "meta"):
            got = asked(plain.with_recipe(recipe, draft=Speculation(drafter[kind], 3, adapt=False)))
            assert [a.tokens for a in got] == [a.tokens for a in want], (label, kind)
            for answer, other in zip(got, want, strict=True):
                plans = {trace.step.index: trace.plan.layers for trace in other.trace}
                for trace in answer.trace:
                    length = trace.plan.draft.length if trace.plan.draft else 0
                    assert all(
                        plans.get(trace.step.index + n, trace.plan.layers) == trace.plan.layers
                        for n in range(length + 1)
                    )


@settings(max_examples=6, deadline=None)
@given(wrong=st.sets(st.integers(1, LIMIT), max_size=8), length=st.integers(1, 6))
def test_rows_that_accept_unlike_numbers(wrong: set[int], length: int) -> None:
    """Proposals that are right but in known places: all answers are right, and the counts are those places'."""
    plain = engine_of("tokens")
    want = [answer.tokens for answer in asked(plain)]

    def drafting(answers: Sequence[Sequence[int]]) -> Engine:
        drafter = Scripted(answers, lambda place: int(place in wrong))
        return plain.with_recipe("exact", draft=Speculation(drafter, length, adapt=False))

    assert [answer.tokens for answer in asked(drafting(want))] == want
    for n, tokens in enumerate(want):
        (answer,) = drafting([tokens]).answer([PICTURES[n]], [QUESTIONS[n]], max_new_tokens=LIMIT)
        assert answer.tokens == tokens
        for trace in answer.trace[1:]:
            places = range(trace.step.index, min(trace.step.index + trace.plan.draft.length, len(tokens)))  # type: ignore[union-attr]
            assert trace.accepted == next((n for n, place in enumerate(places) if place in wrong), len(places))


def test_a_stop_token_inside_a_chain_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine_of("tokens")
    want = asked(plain)
    stop = want[0].tokens[5]
    monkeypatch.setattr("tests.fakes.tokens.EOS", stop)
    ended = asked(plain)
    assert len(ended[0].tokens) <= 5
    drafter = Scripted([answer.tokens for answer in want], lambda place: 0)
    for length in (2, 5, 9):
        got = asked(plain.with_recipe("exact", draft=Speculation(drafter, length, adapt=False)))
        assert [a.tokens for a in got] == [a.tokens for a in ended]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_the_limit_holds(limit: int) -> None:
    plain = engine_of("tokens")
    engine = plain.with_recipe("exact", draft=Speculation(SelfDrafter.skipping(plain.model, [0]), 6, adapt=False))
    for a, b in zip(
        plain.answer(PICTURES, QUESTIONS, max_new_tokens=limit),
        engine.answer(PICTURES, QUESTIONS, max_new_tokens=limit),
        strict=True,
    ):
        assert a.tokens == b.tokens
        assert len(b.tokens) <= limit


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["self", "eagle3", "meta"])
def test_contexts_hold_what_they_would_without_a_draft(kind: str) -> None:
    """What stands behind an answer (a drawing, the next turn) sees the same keys and values."""
    plain = engine_of("tokens")
    drafter = drafters(plain, [])[kind]
    from flashu.inference.actions import AnswerRequest

    held = []
    for speculation in (None, Speculation(drafter, 3, adapt=False)):
        engine = plain.with_recipe("exact", draft=speculation)
        (run,) = engine.runs_to_answer([AnswerRequest(QUESTIONS[0], (PICTURES[0],), 9)])
        executor = engine.executor()
        context = run._context("main")  # kept alive and in its block, which the run's end gives up
        slot = None
        while not run.done:
            run.step(executor)
            slot = context.slot or slot
        assert slot is not None
        held.append((slot.block.row(slot.row), run.text, context.length, context.position))
    (a, *rest), (b, *others) = held
    assert rest == others
    for (k1, v1), (k2, v2) in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(k1, k2, rtol=0, atol=1e-4)
        torch.testing.assert_close(v1, v2, rtol=0, atol=1e-4)


class Recorder:
    """A chooser that notes what was proposed."""

    def __init__(self, chooser: Any) -> None:
        self.chooser, self.greedy, self.drafted = chooser, chooser.greedy, []

    def __call__(self, logits: Tensor) -> Tensor:
        return self.chooser(logits)

    def verified(self, logits: Tensor, drafted: Tensor, chances: Tensor | None = None) -> list[int]:
        self.drafted.append(drafted.tolist())
        return self.chooser.verified(logits, drafted, chances)


def recorded(run: Run) -> Recorder:
    run._choose = Recorder(run._choose)
    return run._choose


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["eagle3", "meta", "no queries"])
@pytest.mark.parametrize("name", ["tokens", "showo2"])
def test_networks_propose_what_they_would_of_whole_rows(name: str, kind: str) -> None:
    """A network's proposals, with its own cache, in a batch that answers join and leave: those of a fresh computation
    over all tokens so far, without any cache."""
    from flashu.inference.actions import AnswerRequest

    plain = engine_of(name)
    drafter = drafters(plain, [])[kind]
    engine = plain.with_recipe("exact", draft=Speculation(drafter, 3, adapt=False))
    limits = [14, 6, 10, 8]
    requests = [AnswerRequest(q, (p,), n) for q, p, n in zip(QUESTIONS, PICTURES, limits, strict=True)]
    runs = engine.runs_to_answer(requests)
    notes, executor = [recorded(run) for run in runs], engine.executor()
    for _ in range(2):  # the first two begin alone
        there = [(run, request) for run in runs[:2] if (request := run.prepare()) is not None]
        for (run, _), output in zip(there, executor.forward([request for _, request in there]), strict=True):
            run.accept(output)
    complete(executor, runs)
    for run, note, request in zip(runs, notes, requests, strict=True):
        said = 1
        proposals = iter(note.drafted)
        for trace in run.trace[1:]:
            drafted = next(proposals)
            assert drafted == fresh(plain, drafter, request, run.text[:said], len(drafted))
            said += trace.accepted + 1


def fresh(engine: Engine, drafter: NetworkDrafter, request: Any, said: list[int], length: int) -> list[int]:
    """What a network drafts after the tokens ``said``, by the definition."""
    from flashu.runtime.context import Context
    from flashu.runtime.layout import TokenLayout

    model, network, context = engine.model, drafter.network, Context()
    append, _ = engine.layout.answer([request])[0]
    for segment in append.segments:
        context.append(segment)
    layout = context.segments[0].layout
    for segment in context.segments[1:]:
        layout = layout.cat(segment.layout)
    spans = tuple((expert, 0, len(said)) for expert, _, _ in model.spec.text_spans)
    layout = layout.cat(TokenLayout.causal([len(said)], spans).shifted(context.position, context.length))
    x = torch.cat((*model.embed([s.content for s in context.segments]), model.embed_tokens(torch.tensor([said]))[0]))[
        None
    ]
    done = engine.executor().runner.walk(x, layout, flashu.plan.LayerPlan(), collect=network.collect)
    features = network.features([part[:, :-1] for part in done.collected])
    count = features.shape[1]
    mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
    rope = network.rope(torch.arange(count)[None])
    hidden, kvs = network(x[:, 1:], features, [AttentionContext(rope, mask)] * len(network.kv_shape()))
    drafted = []
    for n in range(length):
        best = int(network.logits(hidden[:, -1]).argmax())
        drafted.append(best if network.target_ids is None else int(network.target_ids[best]))
        rope = network.rope(torch.tensor([[count + n]]))
        contexts = [AttentionContext(rope, None, kv) for kv in kvs]
        hidden, more = network.extrapolated(model.embed_tokens(torch.tensor([drafted[-1:]])), hidden[:, -1:], contexts)
        kvs = [kv if new is None else new for kv, new in zip(kvs, more, strict=True)]
    return drafted


@pytest.mark.parametrize("name", MODELS)
def test_drawings_are_those_without_a_draft(name: str) -> None:
    plain = engine_of(name)
    engine = plain.with_recipe("exact", draft=Speculation(drafters(plain, [])["eagle3"]))
    want, got = (e.generate("w1 w2", seed=3, steps=4, decode=False) for e in (plain, engine))
    assert torch.equal(want.latents, got.latents)


def test_captured_graphs_verify_too() -> None:
    plain = engine_of("tokens")
    want = asked(plain)
    for kind, drafter in drafters(plain, want).items():
        engine = plain.with_recipe("exact", draft=Speculation(drafter, 3))
        engine.prepared.graphs = GraphPool(Addresses())
        for _ in range(2):
            assert [a.tokens for a in asked(engine)] == [a.tokens for a in want], kind


def test_the_length_follows_what_is_accepted() -> None:
    drafter = LookupDrafter(cost=0.1)
    good, bad = (DraftLength(Speculation(drafter, 8)) for _ in range(2))
    for _ in range(30):
        good.learn(8, 8)
        bad.learn(4, 0)
    assert good.next() == 8
    lengths = [bad.next() for _ in range(40)]
    assert set(lengths) == {0, 1}
    assert lengths.count(1) == 5  # tried again now and then
    assert DraftLength(Speculation(drafter, 8, adapt=False)).next() == 8


def test_what_a_draft_can_be() -> None:
    engine = engine_of("tokens")
    assert speculation_of(None, engine.model) is None
    assert isinstance(engine.with_recipe("exact", draft="lookup").speculation.drafter, LookupDrafter)  # type: ignore[union-attr]
    drafter = engine.with_recipe("exact", draft="self:1,3-4").speculation.drafter  # type: ignore[union-attr]
    assert drafter.layers.skip == {1, 3, 4}
    for wrong in ("self:", "self:9", "self:0-5", "self:a", "nowhere"):
        with pytest.raises(FlashUError):
            engine.with_recipe("exact", draft=wrong)
    with pytest.raises(FlashUError, match="between 1 and 64"):
        Speculation(LookupDrafter(), 0)
    with pytest.raises(RecipeError, match="token by token"):
        engine_of("showo2").with_recipe(flashu.FlashUConfig(reference=True), draft="lookup")
