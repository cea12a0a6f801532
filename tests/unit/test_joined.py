"""Projections laid side by side: the same parameters, the same results."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import flashu
from flashu.models.layers import Attention, GatedFFN, Joining, RotaryEmbedding
from flashu.models.registry import open_model
from flashu.models.showo2.load import save_model


def attention() -> Attention:
    torch.manual_seed(1)
    return Attention(32, 4, 2, 8, RotaryEmbedding(8, 1e4), qkv_bias=True)


def answer(module: Joining, x: torch.Tensor) -> torch.Tensor:
    if isinstance(module, GatedFFN):
        return module(x)
    return module(x, module.rotary_emb(torch.arange(x.shape[1])[None]))[0]


@pytest.fixture(params=[attention, lambda: GatedFFN(32, 48)], ids=["attention", "ffn"])
def pair(request: pytest.FixtureRequest) -> tuple[Joining, Joining]:
    separate = request.param()
    joined = copy.deepcopy(separate)
    joined.join()
    return separate, joined


@torch.no_grad()
def test_same_values_and_one_storage(pair: tuple[Joining, Joining]) -> None:
    separate, joined = pair
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(answer(joined, x), answer(separate, x), rtol=0, atol=1e-6)
    assert joined.state_dict().keys() == separate.state_dict().keys()
    for name, value in separate.state_dict().items():
        assert torch.equal(joined.state_dict()[name], value)
    parts = [getattr(joined, name).weight for name in joined.JOINT]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


@torch.no_grad()
def test_casting_copying_and_loading_keep_them_current(pair: tuple[Joining, Joining]) -> None:
    separate, joined = pair
    x = torch.randn(1, 3, 32)
    torch.testing.assert_close(answer(joined.double(), x.double()), answer(separate.double(), x.double()))
    joined.float(), separate.float()
    twin = copy.deepcopy(joined)
    buffer = io.BytesIO()
    torch.save(joined, buffer)
    buffer.seek(0)
    thawed = torch.load(buffer, weights_only=False)
    for module in (separate, joined):
        getattr(module, module.JOINT[-1]).weight.mul_(2)
    torch.testing.assert_close(answer(joined, x), answer(separate, x), rtol=0, atol=1e-6)
    for other in (twin, thawed):
        other.load_state_dict(joined.state_dict())
        assert other.joint() is not None
        torch.testing.assert_close(answer(other, x), answer(separate, x), rtol=0, atol=1e-6)


def test_gradients_reach_the_parameters(pair: tuple[Joining, Joining]) -> None:
    _, joined = pair
    answer(joined, torch.randn(1, 3, 32)).sum().backward()
    assert all(getattr(joined, name).weight.grad is not None for name in joined.JOINT)


@torch.no_grad()
def test_a_parameter_put_in_place_counts(pair: tuple[Joining, Joining]) -> None:
    """What quantization and offloading do: another parameter under the old name."""
    separate, joined = pair
    x = torch.randn(1, 3, 32)
    for module in pair:
        for name in module.JOINT:
            part = getattr(module, name)
            part.weight = nn.Parameter(part.weight * 3)
    assert joined.joint() is None
    assert torch.equal(answer(joined, x), answer(separate, x))
    joined.join()
    for module in pair:
        for name in module.JOINT:
            part = getattr(module, name)
            part.weight.data = part.weight.data / 3
    assert joined.joint() is None
    assert torch.equal(answer(joined, x), answer(separate, x))


@torch.no_grad()
def test_a_layer_put_in_place_counts(pair: tuple[Joining, Joining]) -> None:
    """What adapters do: a layer of their own around the old one."""
    separate, joined = pair
    x = torch.randn(1, 3, 32)
    for module in pair:
        name = module.JOINT[1]
        part = getattr(module, name)
        adapted = nn.Linear(part.in_features, part.out_features)
        adapted.weight, adapted.bias = part.weight, nn.Parameter(torch.ones(part.out_features))
        setattr(module, name, adapted)
    assert joined.joint() is None
    assert torch.equal(answer(joined, x), answer(separate, x))


@pytest.mark.parametrize("name", GatedFFN.NEURONS)
@torch.no_grad()
def test_an_adapter_around_an_ffn_projection_counts(name: str) -> None:
    """Whichever of the three it is around; where only plain weights can be used it is refused, not forgotten."""

    class Doubled(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x)

    ffn = GatedFFN(32, 48)
    ffn.join()
    x = torch.randn(1, 3, 32)
    setattr(ffn, name, Doubled(getattr(ffn, name)))
    gate, up, down = (
        part(torch.eye(width)).T for part, width in ((ffn.gate_proj, 32), (ffn.up_proj, 32), (ffn.down_proj, 48))
    )
    torch.testing.assert_close(ffn(x), F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))
    with pytest.raises(flashu.FlashUError, match=f"{name} is a Doubled"):
        ffn.weights()


def test_a_loaded_model_is_joined_and_saves_as_it_was(tmp_path: Path) -> None:
    model, _ = open_model("scenes")
    with torch.no_grad():
        assert all(module.joint() is not None for module in model.modules() if isinstance(module, Joining))
    save_model(model, tmp_path)
    loaded = load_file(tmp_path / "model.safetensors")
    for name, value in loaded.items():
        assert torch.equal(model.state_dict()[name], value)
