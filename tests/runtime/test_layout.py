"""Token layouts against the plain rule: a token sees the valid ones before it, and its whole block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flashu.runtime.layout import TokenLayout, stack, visible


@dataclass
class Case:
    """A layout made up of parts, and what it should be: valid tokens of each row, bidirectional blocks, experts."""

    layout: TokenLayout
    lengths: list[int]
    blocks: list[tuple[int, int]]
    experts: list[str]

    def sees(self, row: int, query: int, key: int) -> bool:
        together = any(start <= query < stop and start <= key < stop for start, stop in self.blocks)
        return key < self.lengths[row] and (key <= query or together)


@st.composite
def cases(draw: Any, rows: int | None = None, experts: bool = False) -> Case:
    """Rows of up to 12 tokens, with blocks that lie within the shortest."""
    count = rows or draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    layout = TokenLayout.causal(lengths)
    blocks, start = [], 0
    while draw(st.booleans()) and start < min(lengths):
        first = draw(st.integers(start, min(lengths) - 1))
        stop = draw(st.integers(first + 1, min(lengths)))
        layout, start = layout.block(first, stop), stop
        blocks.append((first, stop))
    width = max(lengths)
    names = draw(st.lists(st.sampled_from("ab"), min_size=width, max_size=width)) if experts else []
    spans: list[tuple[str, int, int]] = []
    for n, name in enumerate(names):
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], n + 1)
        else:
            spans.append((name, n, n + 1))
    return Case(TokenLayout(*layout.fields, tuple(spans)), lengths, blocks, names)


def mask(query: TokenLayout, keys: TokenLayout) -> Tensor:
    """bool [B, S_q, S_k]."""
    found = visible(query, keys)
    return (
        torch.ones(len(query.valid), query.shape[1], keys.shape[1], dtype=torch.bool) if found is None else found[:, 0]
    )


def experts(layout: TokenLayout) -> list[str]:
    """The expert of each token."""
    return [name for name, start, stop in layout.spans for _ in range(start, stop)]


@given(cases())
def test_visibility_is_the_plain_rule(case: Case) -> None:
    found, width = mask(case.layout, case.layout), max(case.lengths)
    for row in range(len(case.lengths)):
        for query in range(case.lengths[row]):
            assert found[row, query].tolist() == [case.sees(row, query, key) for key in range(width)]
    assert case.layout.lengths == case.lengths
    assert case.layout.last.tolist() == [length - 1 for length in case.lengths]
    inside = [any(start <= n < stop for start, stop in case.blocks) for n in range(width)]
    assert case.layout.visual.tolist() == [inside] * len(case.lengths)


@given(cases(experts=True), st.data())
def test_parts_see_what_they_saw_and_fit_together_again(case: Case, data: Any) -> None:
    whole, width = case.layout, max(case.lengths)
    cut = data.draw(st.integers(0, width))
    before, after = whole.part(0, cut), whole.part(cut, width)
    assert experts(before) + experts(after) == case.experts
    joined = before.cat(after)
    assert joined.spans == whole.spans
    assert all(torch.equal(a, b) for a, b in zip(joined.fields, whole.fields, strict=True))
    if cut < width:
        assert torch.equal(mask(after, whole), mask(whole, whole)[:, cut:])


@given(cases(experts=True), st.integers(0, 5))
def test_padding_is_seen_by_nobody_and_changes_nothing(case: Case, more: int) -> None:
    width = max(case.lengths)
    padded = case.layout.padded(width + more)
    found = mask(padded, padded)
    assert torch.equal(found[:, :width, :width], mask(case.layout, case.layout))
    assert not bool(found[:, :, width:].any())
    assert bool(found.any(-1).all())  # what sees nothing would make NaN
    assert padded.lengths == case.lengths
    assert not bool(padded.visual[:, width:].any())
    assert experts(padded)[:width] == case.experts
    assert len(experts(padded)) in (0, width + more)


@given(st.lists(cases(), min_size=1, max_size=3))
def test_stacked_rows_see_what_they_saw(several: list[Case]) -> None:
    stacked = stack([case.layout for case in several])
    found, row = mask(stacked, stacked), 0
    for case in several:
        width, alone = max(case.lengths), mask(case.layout, case.layout)
        part = found[row : row + len(case.lengths)]
        assert torch.equal(part[:, :width, :width], alone)
        assert not bool(part[:, :, width:].any())
        row += len(case.lengths)
    assert row == len(stacked.valid)
    assert stacked.lengths == [length for case in several for length in case.lengths]


@given(cases(), st.data())
def test_rows_and_gathered_tokens_keep_their_places(case: Case, data: Any) -> None:
    count, width = len(case.lengths), max(case.lengths)
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
    whole = mask(case.layout, case.layout)
    rows = case.layout.rows(torch.tensor(chosen))
    assert torch.equal(mask(rows, rows), whole[chosen])
    index = torch.tensor(
        [data.draw(st.lists(st.integers(-1, length - 1), min_size=3, max_size=3)) for length in case.lengths]
    )
    kept = case.layout.gather(index)
    found = mask(kept, kept)
    for row in range(count):
        for query, at in enumerate(index[row].tolist()):
            if at >= 0:
                seen = [key >= 0 and bool(whole[row, at, key]) for key in index[row].tolist()]
                assert found[row, query].tolist() == seen
    assert width >= 1


@given(cases(rows=1), cases(rows=1))
def test_a_segment_behind_others_sees_them_all(first: Case, second: Case) -> None:
    held, (length,) = first.layout, first.lengths
    placed = second.layout.shifted(length, length)
    found = mask(placed, held.cat(placed))
    assert bool(found[:, :, :length].all())
    assert torch.equal(found[:, :, length:], mask(second.layout, second.layout))
    assert placed.position[0].tolist() == [length + n for n in range(second.lengths[0])]
