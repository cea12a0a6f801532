"""FFN banks as slices of the model's own weights: nothing copied, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import flashu
from flashu.inference.calibrate.bank import arrange, bank, restore, sliced
from flashu.models.ffn import FFN, GatedFFN, PlainFFN
from flashu.models.showo2.load import load_model, save_model
from flashu.models.weights import checkpoint_hash, stored
from tests.conftest import tiny_model

RECIPE = flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_p=0.25, r_LS=0.2)).recipe()
OTHER = flashu.FlashUConfig(r_p=0.4, understanding=flashu.UnderstandingConfig(r_p=0.25, r_LS=0.2)).recipe()
KINDS = (GatedFFN, PlainFFN)


@pytest.fixture(scope="module")
def calibration() -> flashu.Calibration:
    model = tiny_model()
    scores = {
        task: torch.rand(6, 96, generator=torch.Generator().manual_seed(n))
        for n, task in enumerate(("generation", "understanding"))
    }
    known = flashu.Calibration(checkpoint_hash(model), scores)
    return known.with_correlation(torch.linspace(-1, 1, 6))


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, values: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, values[name]) for name, p in model.named_parameters())


def in_place(calibration: flashu.Calibration, model: flashu.ShowO2 | None = None) -> flashu.Engine:
    """An engine whose model's neurons are in another order."""
    model = model or tiny_model()
    before = model.layers[0].mlp.up_proj.weight.clone()
    engine = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    engine.prepare("generation")
    assert not torch.equal(model.layers[0].mlp.up_proj.weight, before)
    return engine


class FFNs(nn.Module):
    """As much of a model as banks are made of."""

    quantization = None

    def __init__(self, kind: Callable[[int, int], FFN], width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(kind(6, width) for _ in range(2))

    def ffns(self) -> dict[tuple[int, str], FFN]:
        return {(n, "ffn"): part for n, part in enumerate(self.parts)}  # type: ignore[misc]


@settings(deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.integers(1, 20), st.integers(0, 1000))
def test_slices_compute_what_copies_do(data: st.DataObject, kind: type[FFN], width: int, seed: int) -> None:
    """For any one or two masks; and the whole FFN stays itself up to the order of its sum."""
    torch.manual_seed(seed)
    model, x = FFNs(kind, width), torch.randn(5, 6)
    masks = {}
    for name in data.draw(st.sampled_from(["a", "ab"])):
        count = data.draw(st.integers(1, width))
        masks[name] = [torch.randperm(width)[:count].sort().values for _ in model.parts]
    before = bits(model)
    copied = {name: bank(model, index) for name, index in masks.items()}
    whole = [part(x) for part in model.parts]
    stored_in = {p.untyped_storage().data_ptr() for p in model.parameters()}

    views = sliced(model, arrange(model, masks))

    for n, part in enumerate(model.parts):
        torch.testing.assert_close(part(x), whole[n], rtol=1e-5, atol=1e-5)
        for name in masks:
            own, theirs = views[name][n, "ffn"], copied[name][n, "ffn"]
            torch.testing.assert_close(part(x, own), part(x, theirs), rtol=1e-5, atol=1e-5)
            tensors = [t for projection in (*own.inputs, own.output) for t in projection if t is not None]
            assert {t.untyped_storage().data_ptr() for t in tensors} <= stored_in
    restore(model)
    assert same(model, before)


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.permutations(range(7)), min_size=1, max_size=4))
def test_any_order_and_back(kind: type[FFN], orders: list[list[int]]) -> None:
    ffn = kind(3, 7)
    before = bits(ffn)
    for order in orders:
        ffn.arrange(torch.tensor(order))
        for name, value in ffn.named_parameters():
            if name.startswith(kind.OUTPUT):
                expected = before[name][:, order] if name.endswith("weight") else before[name]
            else:
                expected = before[name][order]
            assert torch.equal(value, expected)
            assert torch.equal(stored(nn.ModuleList([ffn]), f"0.{name}"), before[name])
    ffn.arrange(None)
    assert same(ffn, before)


# -- state ---------------------------------------------------------------------------------------------------------
def test_everything_written_is_in_the_checkpoints_order(tmp_path: Path, calibration: flashu.Calibration) -> None:
    model = tiny_model()
    before, fingerprint = bits(model), checkpoint_hash(model)
    engine = in_place(calibration, model)
    assert checkpoint_hash(model) == fingerprint
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    save_model(model, tmp_path)
    assert same(load_model(tmp_path), before)
    engine.release()
    assert same(model, before)


@pytest.mark.parametrize("assign", [False, True])
def test_what_is_loaded_is_in_the_checkpoints_order(calibration: flashu.Calibration, assign: bool) -> None:
    """While neurons lie otherwise: the engine then draws with the new weights, and gives them back as they came."""
    engine = in_place(calibration)
    model: flashu.ShowO2 = engine.model  # type: ignore[assignment]
    state = {name: 0.9 * value + 0.01 for name, value in model.state_dict().items()}
    twin = tiny_model()
    twin.load_state_dict(state)
    expected = flashu.Engine(twin, twin.processor, RECIPE, calibration).generate("w1", steps=3, decode=False).latents
    model.load_state_dict(state, assign=assign)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    drawn = engine.generate("w1", steps=3, decode=False).latents
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    engine.release()
    assert same(model, state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_state_joins_the_neurons_that_are_there(kind: type[FFN]) -> None:
    """One projection alone must not be taken for the order of all."""
    ffn, x = kind(3, 7), torch.randn(2, 3)
    name = f"{kind.OUTPUT}.weight"
    for part in (name, f"{kind.INPUTS[0]}.weight"):
        state = bits(ffn)
        state[part] = torch.randn_like(state[part])
        ffn.arrange(torch.randperm(7))
        ffn.load_state_dict({part: state[part]}, strict=False)
        twin = kind(3, 7)
        twin.load_state_dict(state)
        torch.testing.assert_close(ffn(x), twin(x))
        ffn.arrange(None)
        assert same(ffn, state)


def test_a_state_of_another_shape_is_refused(calibration: flashu.Calibration) -> None:
    model = in_place(calibration).model
    state = model.state_dict() | {"showo.model.layers.0.mlp.up_proj.weight": torch.zeros(90, 64)}  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state)  # type: ignore[attr-defined]


def test_an_adapter_on_moved_neurons_is_refused_and_not_forgotten(calibration: flashu.Calibration) -> None:
    """Its state would be in no order that a checkpoint has."""
    engine = in_place(calibration)
    mlp = engine.model.layers[3].mlp
    layer, mlp.up_proj = mlp.up_proj, nn.Sequential(mlp.up_proj)
    for use in (engine.model.state_dict, engine.release):  # type: ignore[attr-defined]
        with pytest.raises(flashu.FlashUError, match="merge what is around it"):
            use()
    mlp.up_proj = layer
    engine.release()
    assert same(engine.model, bits(tiny_model()))  # type: ignore[arg-type]


def test_an_adapter_is_refused_before_neurons_are_moved(calibration: flashu.Calibration) -> None:
    model = tiny_model()
    before = bits(model)
    layer, model.layers[3].mlp.gate_proj = model.layers[3].mlp.gate_proj, nn.Sequential(nn.Identity())
    engine = flashu.Engine(model, model.processor, RECIPE, calibration, in_place=True)
    with pytest.raises(flashu.FlashUError, match="merge what is around it"):
        engine.prepare("generation")
    model.layers[3].mlp.gate_proj = layer
    assert same(model, before)


MOVES: dict[str, Callable[[flashu.ShowO2], object]] = {
    "double": lambda model: model.double().float(),
    "copies": lambda model: model._apply(lambda tensor: tensor.clone()),
    "bf16": lambda model: model.bfloat16(),
    "storage": lambda model: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("used", [False, True], ids=["at once", "after another request"])
def test_release_after_a_cast_or_a_move(
    move: Callable[[flashu.ShowO2], object], used: bool, calibration: flashu.Calibration
) -> None:
    """Every neuron back in its place, bit for bit, whatever the weights were copied to meanwhile."""
    engine, plain = in_place(calibration), tiny_model()
    model: flashu.ShowO2 = engine.model  # type: ignore[assignment]
    move(model)
    move(plain)
    if used:
        copies = flashu.Engine(plain, plain.processor, RECIPE, calibration)
        expected, drawn = (e.generate("w1", steps=3, decode=False).latents for e in (copies, engine))
        close = 0.1 if model.dtype is torch.bfloat16 else 1e-4
        torch.testing.assert_close(drawn, expected, rtol=0, atol=close)
    engine.release()
    assert same(model, bits(plain))
    assert all(layer.mlp.order is None for layer in model.layers)


def test_weights_put_in_place_later_count(calibration: flashu.Calibration) -> None:
    """The slices are of the weights that are there now, not of those that were."""
    engine = in_place(calibration)
    model: flashu.ShowO2 = engine.model  # type: ignore[assignment]
    plain = tiny_model()
    for layer, other in zip(model.layers, plain.layers, strict=True):
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data * 1.5
        other.mlp.down_proj.weight.data = other.mlp.down_proj.weight.data * 1.5
    copies = flashu.Engine(plain, plain.processor, RECIPE, calibration)
    expected, drawn = (e.generate("w1", steps=3, decode=False).latents for e in (copies, engine))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


# -- engines -------------------------------------------------------------------------------------------------------
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
    mine, theirs = (e.prepared.banks["generation"] for e in (copied, alike))
    assert mine.keys() == theirs.keys()
    for key, weights in mine.items():
        assert torch.equal(weights.output.weight, theirs[key].output.weight)
        for own, other in zip(weights.inputs, theirs[key].inputs, strict=True):
            assert torch.equal(own.weight, other.weight)
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
    assert same(model, before)
