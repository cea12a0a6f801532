"""Weights packed for a CPU's bf16 products: another layout of the same numbers, which never outlives them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.test_products import Operators
from torch import nn
from typer.testing import CliRunner

import flashu
from flashu.cli.main import app
from flashu.models.layers import GatedFFN
from flashu.models.products import Linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no bf16 products by oneDNN",
)


class Layouts(Operators):
    """Whether each product's weight was packed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::linear"):
            self.names.append("packed" if args[1].is_mkldnn else "plain")
        return func(*args, **(kwargs or {}))


def products(call: Callable[[], object]) -> set[str]:
    with Layouts() as ran, torch.inference_mode():
        call()
    return set(ran.names)


def loaded(**settings: Any) -> flashu.ShowO2:
    return flashu.ShowO2.from_pretrained("scenes", dtype=torch.bfloat16, **settings)


@pytest.fixture
def ffn() -> GatedFFN:
    torch.manual_seed(0)
    ffn = GatedFFN(32, 48).to(torch.bfloat16).requires_grad_(False)
    ffn.pack()
    ffn.down_proj.pack()
    return ffn


def unpacked(ffn: GatedFFN) -> GatedFFN:
    plain = GatedFFN(32, 48).to(torch.bfloat16).requires_grad_(False)
    plain.load_state_dict(ffn.state_dict())
    return plain


X = torch.linspace(-2, 2, 3 * 32).reshape(1, 3, 32).bfloat16()


@pytest.mark.parametrize("recipe", ["exact", "paper"])
def test_a_packed_model_draws_and_answers_the_same(recipe: str) -> None:
    plain, packed = loaded(), loaded(pack=True)
    assert packed.processor is not None
    assert plain.processor is not None
    one, two = (flashu.Engine(m, m.processor, recipe, m.calibration) for m in (plain, packed))  # type: ignore[arg-type]
    with Layouts() as ran:
        drawn = two.generate("a red circle", seed=3, steps=10)
    assert "packed" in ran.names
    torch.testing.assert_close(drawn.latents, one.generate("a red circle", seed=3, steps=10).latents, rtol=0, atol=0.1)
    asked = {"questions": "what colour is the circle?", "max_new_tokens": 4}
    assert two.answer(drawn.images[0], **asked).text == one.answer(drawn.images[0], **asked).text


@torch.inference_mode()
def test_every_product_of_a_packed_ffn_is_packed(ffn: GatedFFN) -> None:
    assert products(lambda: ffn(X)) == {"packed"}
    torch.testing.assert_close(ffn(X), unpacked(ffn)(X), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", GatedFFN.NEURONS)
@pytest.mark.parametrize("how", ["in place", "other data", "another parameter"])
def test_weights_changed_later_count(ffn: GatedFFN, name: str, how: str) -> None:
    part = getattr(ffn, name)
    changed = part.weight.flip(0) * 3
    if how == "in place":
        part.weight.copy_(changed)
    elif how == "other data":
        part.weight.data = changed
    else:
        part.weight = nn.Parameter(changed, requires_grad=False)
    with torch.inference_mode():
        torch.testing.assert_close(ffn(X), unpacked(ffn)(X), rtol=2e-2, atol=2e-2)


def test_casting_copying_and_training_mean_the_weights(ffn: GatedFFN) -> None:
    with torch.inference_mode():
        expected = unpacked(ffn)(X)
        assert torch.equal(copy.deepcopy(ffn)(X), expected)
        wide = copy.deepcopy(ffn).float()
    assert wide(X.float()).dtype is torch.float32
    ffn.requires_grad_(True)
    ffn(X).sum().backward()
    assert all(p.grad is not None for p in ffn.parameters())


def test_the_compiler_sees_plain_weights() -> None:
    layer = Linear(32, 16).to(torch.bfloat16).requires_grad_(False)
    layer.pack()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(X), layer(X), rtol=2e-2, atol=2e-2)


def test_a_packed_model_saves_as_it_was(tmp_path: Path) -> None:
    packed = loaded(pack=True)
    packed.save_pretrained(tmp_path)
    for name, value in flashu.ShowO2.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, packed.state_dict()[name]), name


def test_what_cannot_be_packed_says_so(tiny: flashu.ShowO2) -> None:
    with pytest.raises(flashu.FlashUError, match=r"not torch\.float32"):
        flashu.ShowO2.from_pretrained("scenes", pack=True)
    with pytest.raises(flashu.FlashUError, match="neither offloaded nor quantized"):
        loaded(pack=True, quantize="int8")
    model = copy.deepcopy(tiny).to(torch.bfloat16)
    model.quantization = "int8"
    with pytest.raises(flashu.FlashUError, match="cannot be packed"):
        model.pack()
    assert not model.packed
    engine = flashu.load("scenes", "paper", dtype=torch.bfloat16, pack=True, in_place=True)
    with pytest.raises(flashu.FlashUError, match="leave in_place out"):
        engine.prepare("generation")


def test_bench_measures_packed_and_quantized_weights(tmp_path: Path) -> None:
    """The original keeps torch's own products beside packed ones, and has no row beside quantized ones."""
    file = tmp_path / "bench.json"
    call = ["bench", "--task", "mmu", "--dtype", "bf16", "--rows", "original,exact,paper in place", "--repeats", "1"]
    assert CliRunner().invoke(app, [*call, "--new-tokens", "2", "--pack", "--json", str(file)]).exit_code == 0
    report = json.loads(file.read_text())
    assert report["subject"]["weights"] == "packed"
    first, second, third = report["rows"]
    assert first["seconds"]["n"] == second["seconds"]["n"] == 1
    assert second["flops"] == pytest.approx(second["flops_predicted"], rel=0.03)
    assert "in_place" in third["note"]
    result = CliRunner().invoke(app, [*call, "--pack", "--offload"])
    assert "one of the three" in result.output
