"""One drafter of each kind for any model; and that none of them changes an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flashu import Engine
from flashu.inference.results import Answer
from flashu.inference.speculate import LookupDrafter, NetworkDrafter, SelfDrafter, Speculation, ngrams
from flashu.models.draft import Eagle3, Eagle3Config, MetaConfig, MetaQueries


def drafters(engine: Engine, answers: Sequence[Answer]) -> dict[str, Any]:
    """One of each kind; the networks are untrained, so nearly all they propose is wrong."""
    model, count = engine.model, engine.model.spec.vocabulary
    torch.manual_seed(0)
    some = sorted({token for answer in answers for token in answer.tokens} | {0, 1})
    return {
        "lookup": LookupDrafter(),
        "ngrams": LookupDrafter(3, ngrams([answer.tokens for answer in answers], 3)),
        "self": SelfDrafter.skipping(model, [2, 3]),
        "eagle3": NetworkDrafter(Eagle3(Eagle3Config.of(model, layers=2)).start(model), model),
        "eagle3 of few": NetworkDrafter(Eagle3(Eagle3Config.of(model, len(some), norm_output=True), some), model),
        "meta": NetworkDrafter(MetaQueries(MetaConfig.of(model), model), model),
        "no queries": NetworkDrafter(
            MetaQueries(MetaConfig.of(model, count - 2, queries=0, layers=2, zero_init=False), model, range(count - 2)),
            model,
        ),
    }


def check_answers(engine: Engine, ask: Callable[[Engine], list[Answer]]) -> None:
    """What ``ask`` has of an engine is the same with drafts of every kind, right or wrong."""
    want = ask(engine)
    tried = right = 0
    for kind, drafter in drafters(engine, want).items():
        got = ask(engine.with_recipe("exact", draft=Speculation(drafter, 3, adapt=False)))
        assert [answer.tokens for answer in got] == [answer.tokens for answer in want], kind
        traces = [trace for answer in got for trace in answer.trace if trace.plan.draft is not None]
        tried += sum(trace.plan.draft.length for trace in traces)
        right += sum(trace.accepted for trace in traces)
    assert 0 < right < tried
