"""Parts that the families' layers are made of, against their definitions."""

from __future__ import annotations

import pytest
import torch

from flashu.models.layers import Slot, appended, attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query_is_attended_as_many_are(dtype: torch.dtype) -> None:
    """Heads that share keys, and a mask: the last of several queries and that query alone give the same."""
    q, k, v = (torch.randn(3, heads, 9, 16).to(dtype) for heads in (6, 2, 2))
    hidden = torch.arange(9) > torch.tensor([8, 5, 2])[:, None, None, None]
    mask = torch.zeros(3, 1, 9, 9).masked_fill(hidden, -torch.inf).to(dtype)
    for seen in (mask, None):
        together = attend(q, k, v, seen, grouped=True)
        alone = attend(q[:, :, -1:], k, v, None if seen is None else seen[:, :, -1:], grouped=True)
        torch.testing.assert_close(alone, together[:, -1:])


def test_shared_keys_are_those_of_consecutive_heads() -> None:
    q, k, v = (torch.randn(2, heads, 5, 8) for heads in (4, 2, 2))
    repeated = attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), None)
    torch.testing.assert_close(attend(q, k, v, None, grouped=True), repeated)


def test_new_keys_go_behind_the_past_or_into_their_slot() -> None:
    k, v = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    past = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    assert all(map(torch.equal, appended(k, v, None), (k, v)))
    assert all(map(torch.equal, appended(k, v, past), (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))))
    held = torch.zeros(2, 3, 8, 4), torch.zeros(2, 3, 8, 4)
    keys, values = appended(k, v, Slot(*held, torch.tensor([[1, 2], [6, 4]])))
    for row, places in enumerate(([1, 2], [6, 4])):
        rest = [n for n in range(8) if n not in places]
        assert torch.equal(keys[row][:, places], k[row])
        assert torch.equal(values[row][:, places], v[row])
        assert not keys[row][:, rest].any()
