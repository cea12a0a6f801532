"""FFN banks as slices of the model's own weights: nothing copied, nothing lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_model

import flashu
from flashu.inference.calibrate.bank import bank, bank_in_place, restore
from flashu.models.layers import GatedFFN
from flashu.models.showo2.load import load_model, save_model
from flashu.models.weights import checkpoint_hash

RECIPE = flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_p=0.25, r_LS=0.2)).recipe()
OTHER = flashu.FlashUConfig(r_p=0.4, understanding=flashu.UnderstandingConfig(r_p=0.25, r_LS=0.2)).recipe()


@pytest.fixture(scope="module")
def calibration() -> flashu.Calibration:
    model = tiny_model()
    scores = {
        task: torch.rand(6, 96, generator=torch.Generator().manual_seed(n))
        for n, task in enumerate(("generation", "understanding"))
    }
    known = flashu.Calibration(checkpoint_hash(model), scores)
    return known.with_correlation(torch.linspace(-1, 1, 6))


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Layers:
    """As much of a model as banks are made of."""

    num_layers = 2
    quantization = None
    packed = False
    device = torch.device("cpu")

    def __init__(self, width: int) -> None:
        self.layers = [SimpleNamespace(mlp=GatedFFN(6, width)) for _ in range(self.num_layers)]


@settings(deadline=None)
@given(st.data(), st.integers(1, 20), st.integers(0, 1000))
def test_slices_compute_what_copies_do(data: st.DataObject, width: int, seed: int) -> None:
    """For any one or two masks; and the whole FFN stays itself up to the order of its sum."""
    torch.manual_seed(seed)
    model, x = Layers(width), torch.randn(5, 6)
    masks = {}
    for name in data.draw(st.sampled_from(["a", "ab"])):
        count = data.draw(st.integers(1, width))
        masks[name] = torch.stack([torch.randperm(width)[:count].sort().values for _ in model.layers])
    before = [[w.detach().clone() for w in layer.mlp.weights()] for layer in model.layers]
    copied = {name: bank(model, index) for name, index in masks.items()}
    whole = [layer.mlp(x) for layer in model.layers]

    sliced = bank_in_place(model, masks)

    for i, layer in enumerate(model.layers):
        torch.testing.assert_close(layer.mlp(x), whole[i], rtol=1e-5, atol=1e-5)
        for name in masks:
            expected = layer.mlp(x, copied[name][i])
            torch.testing.assert_close(layer.mlp(x, sliced[name][i]), expected, rtol=1e-5, atol=1e-5)
            for view, own in zip(sliced[name][i], layer.mlp.weights(), strict=True):
                assert view.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
    restore(model)
    for layer, weights in zip(model.layers, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.mlp.weights(), weights, strict=True))


def test_everything_written_is_in_the_checkpoints_order(tmp_path: Path, calibration: flashu.Calibration) -> None:
    model = tiny_model()
    before, fingerprint = bits(model), checkpoint_hash(model)
    engine = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    engine.prepare("generation")
    assert not torch.equal(model.layers[0].mlp.up_proj.weight, before["showo.model.layers.0.mlp.up_proj.weight"])
    assert checkpoint_hash(model) == fingerprint
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())
    # What is loaded is in that order, too; the engine notices and moves it again.
    moved = engine.generate("w1", steps=2, decode=False).latents
    model.load_state_dict(state)
    assert model.layers[0].mlp.order is None
    assert torch.equal(engine.generate("w1", steps=2, decode=False).latents, moved)
    engine.release()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_engine_in_place_draws_and_answers_as_one_with_copies(calibration: flashu.Calibration) -> None:
    model, twin = tiny_model(), tiny_model()
    copies = flashu.Engine(twin, twin.processor, RECIPE, calibration)
    slices = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    vanilla = flashu.Engine(model, model.processor)
    full = vanilla.generate(["w1 w2"], steps=6).latents
    drawn = copies.generate(["w1 w2"], steps=6)
    torch.testing.assert_close(slices.generate(["w1 w2"], steps=6).latents, drawn.latents, rtol=1e-4, atol=1e-4)
    said = copies.answer(drawn.images[0], "w3", max_new_tokens=8).tokens
    assert slices.answer(drawn.images[0], "w3", max_new_tokens=8).tokens == said
    # Who shares the model draws as before, up to the order of a sum; after a release, bit by bit.
    torch.testing.assert_close(vanilla.generate(["w1 w2"], steps=6).latents, full, rtol=1e-4, atol=1e-4)
    slices.release()
    assert torch.equal(vanilla.generate(["w1 w2"], steps=6).latents, full)


def test_one_arrangement_at_a_time(calibration: flashu.Calibration) -> None:
    model = tiny_model()
    first = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    first.prepare("generation")
    same = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    same.prepare("understanding")
    with pytest.raises(flashu.FlashUError, match="release"):
        first.with_recipe(OTHER).generate("w1", steps=2)
    # Copies need no order of their own.
    copied = flashu.Engine(model, model.processor, OTHER, calibration)
    copied.prepare("generation")
    plain = tiny_model()
    alike = flashu.Engine(plain, plain.processor, OTHER, calibration)
    alike.prepare("generation")
    for mine, theirs in zip(copied.fitted.banks["generation"], alike.fitted.banks["generation"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    first.release()
    first.with_recipe(OTHER).prepare("generation")


def test_calibration_counts_the_checkpoints_neurons(calibration: flashu.Calibration) -> None:
    model, plain = tiny_model(), tiny_model()
    flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True).prepare("generation")
    moved = flashu.Engine(model, model.processor).calibrate("generation", prompts=["w1"])
    still = flashu.Engine(plain, plain.processor).calibrate("generation", prompts=["w1"])
    torch.testing.assert_close(moved.scores["generation"], still.scores["generation"], rtol=1e-4, atol=1e-5)
    assert moved.model_hash == still.model_hash


def test_the_patch_restores_what_it_moved(calibration: flashu.Calibration) -> None:
    model = tiny_model()
    before = bits(model)
    flashu.apply_flashu_patch(model, RECIPE, calibration=calibration, in_place=True)
    model.t2i_generate("w1", steps=2)
    assert model.layers[0].mlp.order is not None
    flashu.apply_flashu_patch(model, OTHER, calibration=calibration, in_place=True)
    flashu.remove_flashu_patch(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@settings(deadline=None)
@given(st.lists(st.permutations(range(7)), min_size=1, max_size=4))
def test_any_order_and_back(orders: list[list[int]]) -> None:
    ffn = GatedFFN(3, 7)
    before = bits(ffn)
    for order in orders:
        ffn.arrange(torch.tensor(order))
        assert torch.equal(ffn.up_proj.weight, before["up_proj.weight"][order])
        assert torch.equal(ffn.down_proj.weight, before["down_proj.weight"][:, order])
    ffn.arrange(None)
    assert all(torch.equal(p, before[name]) for name, p in ffn.named_parameters())
