"""Sampled answers with drafts follow the model's distribution: the rejection sampler, and whole answers."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from flashu import Engine
from flashu.inference.actions import AnswerRequest
from flashu.inference.speculate import NetworkDrafter, SelfDrafter, Speculation
from flashu.models.draft import Eagle3, Eagle3Config
from flashu.runtime.context import Context
from flashu.runtime.sampling import chooser, distribution
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel, question

V, K = 5, 3


def counted(sequences: Any, expected: dict[tuple[int, ...], float], count: int) -> float:
    """The p-value of the sequences' counts; rare ones are taken together."""
    seen = Counter(sequences)
    assert set(seen) <= set(expected)
    common = [key for key, p in expected.items() if p * count >= 5]
    rest = 1 - sum(expected[key] for key in common)
    observed, wanted = [seen[key] for key in common], [expected[key] * count for key in common]
    if rest * count >= 1:
        observed.append(count - sum(observed))
        wanted.append(rest * count)
    total = sum(wanted)
    return float(chisquare(observed, [w * sum(observed) / total for w in wanted]).pvalue)


@pytest.mark.parametrize("drafts", ["drawn", "certain", "drawn badly"])
def test_the_rejection_sampler_draws_the_models_tokens(drafts: str) -> None:
    """The first K tokens of every verification, over all sequences of a small vocabulary. After each prefix the model
    has another distribution; a prefix that was cut short is continued by the model."""
    generator = torch.Generator().manual_seed(3)
    model = {
        prefix: 2 * torch.randn(V, generator=generator) for n in range(K + 1) for prefix in product(range(V), repeat=n)
    }
    choose = chooser(temperature=0.8, seed=1)
    p = {prefix: choose.distribution(logits[None])[0] for prefix, logits in model.items()}
    scale = 3.0 if drafts == "drawn badly" else 0.5
    q = {prefix: (logits + scale * torch.randn(V, generator=generator)).softmax(-1) for prefix, logits in model.items()}
    count, sequences = 3000, []
    for _ in range(count):
        drafted: list[int] = []
        for _ in range(K):
            chances = q[tuple(drafted)]
            token = chances.argmax() if drafts == "certain" else choose.draw(chances[None])[0]
            drafted.append(int(token))
        prefixes = [tuple(drafted[:n]) for n in range(K + 1)]
        logits = torch.stack([model[prefix] for prefix in prefixes])
        given = None if drafts == "certain" else torch.stack([q[prefix] for prefix in prefixes[:K]])
        said = choose.verified(logits, torch.tensor(drafted), given)
        while len(said) < K:
            said.append(int(choose(model[tuple(said)][None])))
        sequences.append(tuple(said[:K]))
    expected = {}
    for sequence in product(range(V), repeat=K):
        expected[sequence] = float(torch.stack([p[sequence[:n]][token] for n, token in enumerate(sequence)]).prod())
    assert counted(sequences, expected, count) > 0.001


def test_greedy_verification_is_an_argmax() -> None:
    logits = torch.eye(4)[torch.tensor([2, 1, 3, 0])]
    greedy = chooser()
    assert greedy.verified(logits, torch.tensor([2, 1, 3])) == [2, 1, 3, 0]
    assert greedy.verified(logits, torch.tensor([2, 0, 3])) == [2, 1]
    assert greedy.verified(logits[:1], torch.tensor([], dtype=torch.long)) == [2]


@pytest.mark.parametrize("kind", ["self", "eagle3"])
@torch.inference_mode()
def test_sampled_answers_follow_the_models_distribution(kind: str) -> None:
    """The first three tokens of an answer, over all sequences that top-k 3 allows."""
    model: Any = seeded(TokenModel)
    torch.manual_seed(1)
    if kind == "self":
        drafter: Any = SelfDrafter.skipping(model, [1, 2])
    else:
        drafter = NetworkDrafter(Eagle3(Eagle3Config.of(model)).start(model), model)
    engine = Engine(model, model.processor, draft=Speculation(drafter, 2, adapt=False))
    count, settings = 1200, {"temperature": 1.5, "top_k": 3}
    requests = [AnswerRequest("w1 w2", (), 3)] * 200
    answers = [a for at in range(0, count, 200) for a in engine.respond(requests, seed=at, **settings)]
    # At the first position nothing is drafted: the first token is the prefill's.
    drafts = [trace for answer in answers for trace in answer.trace if trace.plan.draft]
    assert 0 < sum(trace.accepted for trace in drafts) < sum(t.plan.draft.length for t in drafts)  # type: ignore[union-attr]

    context = Context()
    for segment in question(AnswerRequest("w1 w2")):
        context.append(segment)

    def chances(said: tuple[int, ...]) -> Tensor:
        contents = torch.cat([segment.content for segment in context.segments])
        ids = torch.cat((contents, torch.tensor(said, dtype=torch.long)))
        from tests.fakes.test_families import naive

        return distribution(naive(model, ids.tolist(), ["text"] * len(ids))[None], 1.5, 3, None)[0]

    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        grown: dict[tuple[int, ...], float] = {}
        for said, p in expected.items():
            if said and said[-1] == 41:  # the stop token
                grown[said] = p
                continue
            following = chances(said)
            grown |= {(*said, int(t)): p * float(following[t]) for t in following.nonzero()[:, 0]}
        expected = grown
    merged: dict[tuple[int, ...], float] = {}
    for said, p in expected.items():
        key = tuple(token for token in said if token != 41)
        merged[key] = merged.get(key, 0) + p
    assert counted([tuple(answer.tokens) for answer in answers], merged, count) > 0.001


def test_a_rows_tokens_do_not_depend_on_its_batch() -> None:
    model: Any = seeded(TokenModel)
    engine = Engine(model, model.processor, draft=Speculation(SelfDrafter.skipping(model, [1]), 3, adapt=False))
    words = ["w1 w2", "w3", "w4 w5 w6"]
    together = engine.chat(words, temperature=1.0, seed=5, max_new_tokens=10)
    for n, text in enumerate(words):
        assert engine.chat(text, temperature=1.0, seed=5 + n, max_new_tokens=10).tokens == together[n].tokens
