"""Weights that lie in main memory and visit the device: away between calls, and nothing computed differently."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flashu
from flashu.models.ffn import PlainFFN
from flashu.models.layers import AttentionContext
from flashu.models.offload import offload
from flashu.models.showo2.load import load_model, save_model
from flashu.models.weights import checkpoint_hash
from tests.conftest import tiny_model
from tests.recipes import GENERATION, UNDERSTANDING

RECIPE = flashu.Recipe((*GENERATION.values(), *UNDERSTANDING.values()))


@pytest.fixture(scope="module")
def twins() -> tuple[flashu.ShowO2, flashu.ShowO2]:
    """The same model, as it is and offloaded."""
    here, away = tiny_model(), tiny_model()
    offload(away, "cpu")
    return here, away


@pytest.mark.parametrize("in_place", [False, True])
def test_results_are_the_same_bits(twins: tuple[flashu.ShowO2, flashu.ShowO2], in_place: bool) -> None:
    """Full and pruned, calibration, skipped layers with a growing cache; banks copied and in place."""
    found = []
    for model in twins:
        engine = flashu.Engine(model, model.processor, RECIPE, in_place=in_place)
        scores = engine.calibrate("generation", prompts=["w1"]).scores["generation"]
        picture = engine.processor.to_pil(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))[0]
        engine.calibrate("understanding", pairs=[(picture, "w2")])
        drawn = [e.generate(["w1 w2", "w3"], steps=6).latents for e in (engine, engine.with_recipe("exact"))]
        said = [a.tokens for a in engine.answer(picture, ["w3 w4", "w5"], max_new_tokens=6)]
        found.append([scores.tolist(), [z.tolist() for z in drawn], said, engine.chat("w6", max_new_tokens=3).tokens])
        engine.release()
    assert found[0] == found[1]


def test_projections_are_away_between_calls(twins: tuple[flashu.ShowO2, flashu.ShowO2]) -> None:
    _, away = twins
    layer, block = away.layers[0], away.diffusion_head_a[0]
    flashu.Engine(away, away.processor).generate("w1", steps=2)
    assert layer.self_attn.q_proj.weight.is_meta
    assert block.adaLN_modulation[1].weight.is_meta
    assert away.showo.lm_head.weight.is_meta
    assert away.device.type == "cpu"


def test_another_device_gets_what_a_layer_needs() -> None:
    """Shown on the meta device, which computes shapes alone and refuses weights that lie on the CPU."""
    model = tiny_model()
    offload(model, "meta")
    layer = model.layers[0]
    x, position = torch.empty(2, 5, 64, device="meta"), torch.arange(5, device="meta").expand(2, -1)
    assert layer.mlp.up_proj.weight.device.type == "cpu"
    assert model.embed_tokens(torch.ones(1, 1, dtype=torch.long)).device.type == "cpu"
    context = AttentionContext(model.rope(position))
    for ffn in (None, {"ffn": layer.mlp.slice(0, 4)}):
        hidden, kv = layer(x, context, ffn)
        assert hidden.is_meta
    keys, _ = model.layers[1].keys_values(hidden, context._replace(past=kv))
    assert keys.shape[2] == 10
    rope = AttentionContext(model.head.rope(position))
    features = model.diff_proj(hidden)
    for block in model.head.blocks:
        features, _ = block(features, rope, torch.empty(2, 48, device="meta"), None)
    assert features.is_meta
    assert features.shape == (2, 5, 48)
    assert model.embed_latent(torch.empty(1, 4, 8, 8, device="meta")).is_meta
    assert model.logits(hidden).is_meta


class Worded(nn.Module):
    """A model of an FFN with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mlp = nn.Embedding(4, 6), PlainFFN(6, 8)

    def get_input_embeddings(self) -> nn.Module:
        return self.words


@torch.inference_mode()
def test_biases_go_along() -> None:
    model, x = Worded(), torch.randn(2, 6)
    expected = model.mlp(x), model.mlp(x, model.mlp.slice(0, 4))
    offload(model, "cpu")
    assert torch.equal(model.mlp(x), expected[0])
    assert torch.equal(model.mlp(x, model.mlp.slice(0, 4)), expected[1])
    offload(away := Worded(), "meta")
    assert away.mlp(x.to("meta"), away.mlp.slice(0, 4)).is_meta


def test_an_offloaded_model_is_saved_and_known_as_before(
    twins: tuple[flashu.ShowO2, flashu.ShowO2], tmp_path: Path
) -> None:
    here, away = twins
    assert checkpoint_hash(away) == checkpoint_hash(here)
    save_model(away, tmp_path)
    again = load_model(tmp_path)
    expected: dict[str, Tensor] = dict(here.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())


def test_loading_offloaded() -> None:
    engine = flashu.load("scenes", "paper", offload=True)
    plain = flashu.load("scenes", "paper")
    assert engine.model.layers[0].self_attn.o_proj.weight.is_meta
    drawn = [e.generate("a red circle", steps=6, decode=False).latents for e in (engine, plain)]
    assert torch.equal(*drawn)


def test_what_cannot_be(twins: tuple[flashu.ShowO2, flashu.ShowO2], monkeypatch: pytest.MonkeyPatch) -> None:
    _, away = twins
    with pytest.raises(flashu.FlashUError, match="neither compiled"):
        flashu.Engine(away, away.processor, compile=True)
    monkeypatch.setitem(sys.modules, "accelerate.hooks", None)
    with pytest.raises(flashu.FlashUError, match=r"\.\[offload\]"):
        flashu.load("scenes", offload=True)
