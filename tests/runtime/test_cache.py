"""The static cache: several tokens at a time, taken back again, against fresh runs without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flashu
from flashu.plan import LayerPlan, Route
from flashu.runtime.cache import MULTIPLE, KVBlock
from flashu.runtime.context import KV
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner, Skips

ids = st.integers(0, 249)


def walked(runner: Runner, row: list[int], plan: LayerPlan, layout: TokenLayout | None = None) -> tuple[Tensor, KV]:
    """A causal row anew: hidden [S, D], keys and values."""
    x = runner.model.embed_tokens(torch.tensor([row]))
    done = runner.walk(x, layout or TokenLayout.causal([len(row)]), plan, keep=True)
    assert done.kv is not None
    return done.hidden[0], done.kv


def next_tokens(runner: Runner, block: KVBlock, new: list[list[int]], plan: LayerPlan) -> Tensor:
    """Hidden states [B, S, D] of tokens that every row takes."""
    skips = Skips.of([plan.skip] * block.rows, runner.model.device)
    hidden, _ = runner.tokens(runner.model.embed_tokens(torch.tensor(new)), block, plan, skips)
    block.advance(len(new[0]))
    block.took(range(block.rows), len(new[0]))
    return hidden


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_written_together_and_taken_back_are_those_of_fresh_rows(data: Any, tiny_engine: flashu.Engine) -> None:
    """Rows of unequal lengths; each round writes some tokens to all and keeps another number in each."""
    runner = Runner(tiny_engine.model)
    rows = data.draw(st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=3), label="rows")
    plan = LayerPlan(skip=data.draw(st.frozensets(st.integers(0, 5), max_size=2), label="skipped layers"))
    rounds = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4), label="tokens of each round")
    with torch.inference_mode():
        held = [walked(runner, row, plan)[1] for row in rows]
        block = KVBlock(runner.model, held, [len(row) for row in rows], sum(rounds))
        for size in rounds:
            new = [data.draw(st.lists(ids, min_size=size, max_size=size), label="new") for _ in rows]
            before = block.reserve(size)
            hidden = next_tokens(runner, block, new, plan)
            for row, own, given_ids in zip(rows, hidden, new, strict=True):
                fresh, _ = walked(runner, row + given_ids, plan)
                torch.testing.assert_close(own, fresh[len(row) :], rtol=0, atol=1e-4)
            kept = [data.draw(st.integers(0, size), label="kept") for _ in rows]
            block.truncate(before, kept)
            for row, given_ids, count in zip(rows, new, kept, strict=True):
                row += given_ids[:count]
        for n, row in enumerate(rows):
            _, fresh_kv = walked(runner, row, plan)
            for mine, theirs in zip(block.row(n).layers, fresh_kv.layers, strict=True):
                for a, b in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_layers_that_hold_unequal_numbers_of_tokens(tiny_engine: flashu.Engine) -> None:
    """After token pruning, later layers hold fewer: three tokens at once are what they are one by one."""
    runner = Runner(tiny_engine.model)
    prune, plain = LayerPlan(routes=(Route(2, 0.5),)), LayerPlan()
    rows = [list(range(10, 22)), list(range(40, 47))]
    held = []
    for row in rows:
        layout = TokenLayout.causal([len(row)]).block(1, len(row) - 2)
        held.append(walked(runner, row, prune, layout)[1])
    assert [layout.shape[1] for layout in held[0].layouts] == [12, 12, 8, 8, 8, 8]
    new = [[1, 2, 3], [4, 5, 6]]
    together, single = (KVBlock(runner.model, held, [12, 7], 8) for _ in range(2))
    before = together.reserve(3)
    next_tokens(runner, together, [[9, 9, 9], [9, 9, 9]], plain)
    together.truncate(before, [0, 0])
    at_once = next_tokens(runner, together, new, plain)
    one_by_one = torch.cat([next_tokens(runner, single, [[row[n]] for row in new], plain) for n in range(3)], dim=1)
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_full_cache_says_so(tiny_engine: flashu.Engine) -> None:
    runner, plan = Runner(tiny_engine.model), LayerPlan()
    _, kv = walked(runner, [1, 2, 3], plan)
    block = KVBlock(runner.model, [kv], [3], 2)
    assert block.storage[0][0].shape[2] == MULTIPLE
    next_tokens(runner, block, [[4, 5]], plan)
    for ask in (block.reserve, block.contexts):
        with pytest.raises(IndexError, match="cannot take 2 after 2"):
            ask(2)
