"""Weights packed for a CPU's bf16 products: another layout of the same numbers, for good."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flashu
from flashu.models.ffn import GatedFFN, PlainFFN
from flashu.models.packing import PackedLinear, is_packed, pack
from flashu.models.weights import checkpoint_hash
from tests.conftest import tiny_model

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no bf16 products by oneDNN",
)
X = torch.linspace(-2, 2, 3 * 32).reshape(1, 3, 32).bfloat16()
KINDS = (GatedFFN, PlainFFN)


class Products(TorchDispatchMode):
    """Whether each product's weight was packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::linear"):
            self.layouts.add("packed" if args[1].is_mkldnn else "plain")
        return func(*args, **(kwargs or {}))


def loaded(**settings: Any) -> flashu.ShowO2:
    return flashu.ShowO2.from_pretrained("scenes", dtype=torch.bfloat16, **settings)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """An FFN, and the same packed."""
    torch.manual_seed(0)
    plain = request.param(32, 48).to(torch.bfloat16).requires_grad_(False)
    packed = copy.deepcopy(plain)
    pack(packed)
    return plain, packed


@pytest.mark.parametrize("recipe", ["exact", "paper"])
def test_a_packed_model_draws_and_answers_the_same(recipe: str) -> None:
    plain, packed = loaded(), loaded(pack=True)
    one, two = (flashu.Engine(m, m.processor, recipe, m.calibration) for m in (plain, packed))
    with Products() as ran:
        drawn = two.generate("a red circle", seed=3, steps=10)
    assert "packed" in ran.layouts
    torch.testing.assert_close(drawn.latents, one.generate("a red circle", seed=3, steps=10).latents, rtol=0, atol=0.1)
    asked = {"questions": "what colour is the circle?", "max_new_tokens": 4}
    assert two.answer(drawn.images[0], **asked).text == one.answer(drawn.images[0], **asked).text


@torch.inference_mode()
def test_every_product_of_a_packed_ffn_is_packed(pair: tuple[nn.Module, nn.Module]) -> None:
    """Also of the neurons that a bank selects."""
    plain, packed = pair
    keep = torch.arange(0, 48, 3)
    for weights in ((None, None), (plain.select(keep), packed.select(keep))):
        with Products() as ran:
            found = packed(X, weights[1])
        assert ran.layouts == {"packed"}
        torch.testing.assert_close(found, plain(X, weights[0]), rtol=2e-2, atol=2e-2)


def test_only_the_packed_weight_is_held_and_it_is_the_weight(pair: tuple[nn.Module, nn.Module]) -> None:
    for (name, plain), packed in zip(pair[0].named_children(), pair[1].children(), strict=True):
        assert isinstance(packed, PackedLinear)
        assert packed.blocks.is_mkldnn
        assert torch.equal(packed.weight, plain.weight), name
        assert [n for n, _ in packed.named_parameters()] == [n for n, _ in plain.named_parameters() if n != "weight"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_packed(copied: Callable[[nn.Module], nn.Module], pair: tuple[nn.Module, nn.Module]) -> None:
    twin = copied(pair[1])
    assert all(isinstance(part, PackedLinear) for part in twin.children())
    with torch.inference_mode():
        assert torch.equal(twin(X), pair[1](X))


def test_a_model_packed_twice_is_packed() -> None:
    model = loaded(pack=True)
    weight = model.layers[0].mlp.up_proj.weight
    model.pack()
    assert torch.equal(model.layers[0].mlp.up_proj.weight, weight)


def test_packed_weights_are_not_compiled() -> None:
    """torch's compiler cannot read them."""
    with pytest.raises(flashu.FlashUError, match="leave compile out"):
        flashu.load("scenes", dtype=torch.bfloat16, pack=True, compile=True)


def test_the_checkpoints_hash_is_that_of_the_weights() -> None:
    """Whether its head is tied to its embeddings or not: a calibration or a tuned recipe is for both."""
    for tied in (True, False):
        model = tiny_model().bfloat16()
        if not tied:
            model.showo.lm_head.weight = nn.Parameter(model.showo.lm_head.weight.detach().clone() + 1)
        before = checkpoint_hash(model)
        model.pack()
        assert checkpoint_hash(model) == before


REFUSED: dict[str, Callable[[flashu.ShowO2, Path], object]] = {
    "moved": lambda model, _: model.to("meta"),
    "cast": lambda model, _: model.float(),
    "a part cast": lambda model, _: model.layers[0].mlp.up_proj.float(),
    "saved": lambda model, folder: model.save_pretrained(folder / "new"),
    "state": lambda model, _: model.state_dict(),
    "loaded": lambda model, _: model.load_state_dict(loaded().state_dict()),
    "loaded in part": lambda model, _: model.load_state_dict({}, strict=False),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_it_is_for_good(use: Callable[[flashu.ShowO2, Path], object], tmp_path: Path) -> None:
    """One error, and nothing half done."""
    model = loaded(pack=True)
    with pytest.raises(flashu.FlashUError, match="neither moved, cast, saved nor loaded into: load it without pack"):
        use(model, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert not list(tmp_path.iterdir())


def test_a_weight_is_not_replaced_and_passes_no_gradient(pair: tuple[nn.Module, nn.Module]) -> None:
    layer = next(pair[1].children())
    for weight in (layer.weight, nn.Parameter(layer.weight)):
        with pytest.raises(flashu.FlashUError, match="cannot be replaced"):
            layer.weight = weight
    x = X.clone().requires_grad_(True)
    with pytest.raises(flashu.FlashUError, match="no gradients"):
        layer(x)
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_what_cannot_be_packed_says_so(tiny: flashu.ShowO2) -> None:
    with pytest.raises(flashu.FlashUError, match=r"not torch\.float32"):
        flashu.ShowO2.from_pretrained("scenes", pack=True)
    with pytest.raises(flashu.FlashUError, match="neither offloaded nor quantized"):
        loaded(pack=True, quantize="int8")
    mixed = tiny.to(torch.bfloat16)
    mixed.diffusion_head_b.float()
    with pytest.raises(flashu.FlashUError, match=r"not torch\.float32"):
        mixed.pack()
    assert not is_packed(mixed)
    with pytest.raises(flashu.FlashUError, match="cannot be quantized"):
        loaded(pack=True).quantize("int8-weight")


def test_packing_and_in_place_exclude_each_other() -> None:
    engine = flashu.load("scenes", "paper", dtype=torch.bfloat16, pack=True, in_place=True)
    before = engine.model.layers[0].mlp.up_proj.weight
    with pytest.raises(flashu.FlashUError, match="leave in_place out"):
        engine.prepare("generation")
    assert torch.equal(engine.model.layers[0].mlp.up_proj.weight, before)
    assert engine.model.layers[0].mlp.order is None

    engine = flashu.load("scenes", "paper", dtype=torch.bfloat16, in_place=True)
    engine.prepare("generation")
    with pytest.raises(flashu.FlashUError, match="release"):
        engine.model.pack()
