"""Products by another library's kernel: the same numbers as torch's, wherever that kernel may step in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from flashu.models.layers import attend
from flashu.models.products import WORTH_IT, Linear, linear, plain_products

CHOICE = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="one library only"
)


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def by_onednn(x: torch.Tensor, layer: torch.nn.Linear) -> bool:
    with Operators() as ran:
        layer(x)
    return "mkldnn::_linear_pointwise" in ran.names


@settings(deadline=None)
@given(
    rows=st.integers(0, 70),
    out=st.integers(1, 300),
    width=st.integers(1, 300),
    bias=st.booleans(),
    cut=st.sampled_from(["", "x", "weight"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@torch.inference_mode()
def test_the_numbers_are_those_of_a_product(
    rows: int, out: int, width: int, bias: bool, cut: str, dtype: torch.dtype
) -> None:
    """Against fp64, for any shape, slices of larger tensors among them."""
    generator = torch.Generator().manual_seed(rows + 71 * out + 71 * 301 * width)

    def made(*shape: int, wide: bool = False) -> torch.Tensor:
        values = torch.randn(*shape[:-1], shape[-1] + 3 * wide, generator=generator).to(dtype)
        return values[..., : shape[-1]]

    x, weight = made(2, rows, width, wide=cut == "x"), made(out, width, wide=cut == "weight")
    b = made(out) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-1}
    torch.testing.assert_close(linear(x, weight, b).double(), expected, **close)


@CHOICE
def test_only_products_worth_it_go_another_way() -> None:
    layer = Linear(256, 512).requires_grad_(False)
    rows = WORTH_IT // layer.weight.numel()
    large, small = torch.ones(rows, 256), torch.ones(rows - 1, 256)
    with torch.inference_mode():
        assert by_onednn(large, layer)
        assert not by_onednn(small, layer)
        with plain_products():
            assert not by_onednn(large, layer)
        assert by_onednn(large, layer)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(large).dtype is torch.bfloat16


@CHOICE
def test_gradients_flow_through_a_large_product() -> None:
    layer = Linear(256, 512)
    layer(torch.ones(64, 256)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 64.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query_is_attended_as_many_are(dtype: torch.dtype) -> None:
    """Heads that share keys, and a mask: the last of several queries and that query alone give the same."""
    q, k, v = (torch.randn(3, heads, 9, 16).to(dtype) for heads in (6, 2, 2))
    mask = torch.zeros(3, 1, 9, 9).masked_fill(
        torch.arange(9) > torch.tensor([8, 5, 2])[:, None, None, None], -torch.inf
    )
    mask = mask.to(dtype)
    together = attend(q, k, v, mask, grouped=True)
    alone = attend(q[:, :, -1:], k, v, mask[:, :, -1:], grouped=True)
    torch.testing.assert_close(alone, together[:, -1:])
    torch.testing.assert_close(
        attend(q[:, :, -1:], k, v, None, grouped=True), attend(q, k, v, None, grouped=True)[:, -1:]
    )
