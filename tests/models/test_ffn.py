"""Feed-forward networks whose neurons are chosen, moved and sliced, against the plain formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flashu
from flashu.models.ffn import FFN, GatedFFN, PlainFFN

KINDS: dict[str, Callable[[], FFN]] = {"gated": lambda: GatedFFN(32, 48), "plain": lambda: PlainFFN(32, 48)}


@pytest.fixture(params=KINDS)
def ffn(request: pytest.FixtureRequest) -> FFN:
    torch.manual_seed(1)
    return KINDS[request.param]().requires_grad_(False)


def without(ffn: FFN, gone: Tensor, x: Tensor) -> Tensor:
    """The FFN with some neurons' outputs multiplied by nought."""
    output = getattr(ffn, ffn.OUTPUT)
    whole = output.weight.clone()
    output.weight[:, gone] = 0
    y = ffn(x)
    output.weight.copy_(whole)
    return y


def test_chosen_neurons_are_the_ffn_without_the_others(ffn: FFN) -> None:
    x = torch.randn(2, 5, 32)
    kept = torch.arange(0, 48, 3)
    gone = torch.tensor(sorted(set(range(48)) - set(kept.tolist())))
    expected = without(ffn, gone, x)
    torch.testing.assert_close(ffn(x, ffn.select(kept)), expected)
    ffn.arrange(torch.cat((kept, gone)))
    torch.testing.assert_close(ffn(x, ffn.slice(0, len(kept))), expected)
    torch.testing.assert_close(ffn(x, ffn.select(kept)), expected)  # named as the checkpoint has them


def test_another_order_is_another_order_only(ffn: FFN) -> None:
    x = torch.randn(2, 5, 32)
    before = {name: value.clone() for name, value in ffn.state_dict().items()}
    y, importance = ffn(x), ffn.importance(torch.arange(48.0))
    order = torch.randperm(48)
    ffn.arrange(order)
    assert torch.equal(ffn.order, order)
    torch.testing.assert_close(ffn(x), y)
    torch.testing.assert_close(ffn.importance(torch.arange(48.0)[order]), importance)
    assert all(torch.equal(value, before[name]) for name, value in ffn.state_dict().items())
    ffn.arrange(None)
    assert all(torch.equal(value, before[name]) for name, value in ffn.named_parameters())


class Doubled(nn.Module):
    """An adapter around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


def test_an_adapter_around_a_projection_counts_or_is_refused(ffn: FFN) -> None:
    """Whichever it is around; where only plain weights can be used it is refused, not forgotten."""
    x = torch.randn(1, 3, 32)
    for name in (*ffn.INPUTS, ffn.OUTPUT):
        plain, layer = ffn(x), getattr(ffn, name)
        setattr(ffn, name, Doubled(layer))
        assert not torch.allclose(ffn(x), plain)
        for use in (ffn.weights, lambda: ffn.select(torch.arange(8)), lambda: ffn.arrange(torch.randperm(48))):
            with pytest.raises(flashu.FlashUError, match=f"{name} is a Doubled"):
                use()
        setattr(ffn, name, layer)
        assert torch.equal(ffn(x), plain)
