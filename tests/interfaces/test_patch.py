"""The papers' interface: patched in place, used as before, removed without a trace."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import flashu
from flashu.interfaces.patch import engine_of
from tests.conftest import tiny_model

CONFIG = flashu.FlashUConfig(
    r_p=0.20,
    r_LS=0.20,
    T_LS=10,
    T_cache=5,
    tau=10,
    schedule=[(4, 5.0), (8, 7.5), (20, 11.0)],
    understanding=flashu.UnderstandingConfig(r_LS=0.2),
)


@pytest.fixture(scope="module")
def calibration() -> flashu.Calibration:
    model = tiny_model()
    engine = flashu.Engine(model, model.processor)
    engine.calibrate("generation", prompts=["w1 w2"])
    image = engine.generate("w9", steps=2).images[0]
    return engine.calibrate("understanding", pairs=[(image, "w3")])


def pictures(model: flashu.ShowO2) -> list[bytes]:
    return [image.tobytes() for image in model.t2i_generate(["w1 w2", "w3"], seed=5)]


def test_patch_and_remove(tiny: flashu.ShowO2, calibration: flashu.Calibration) -> None:
    image = tiny.t2i_generate("w7")[0]
    before, said = pictures(tiny), tiny.mmu_generate(image, "w3 w4")
    weights = {k: v.clone() for k, v in tiny.state_dict().items()}
    attributes = dict(vars(tiny))
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration)
    during = pictures(tiny)
    assert during != before
    assert isinstance(tiny.mmu_generate(image, "w3 w4"), str)
    assert vars(tiny).keys() == attributes.keys()
    flashu.remove_flashu_patch(tiny)
    assert pictures(tiny) == before
    assert tiny.mmu_generate(image, "w3 w4") == said
    assert all(torch.equal(v, weights[k]) for k, v in tiny.state_dict().items())


def test_applying_twice_is_applying_once(tiny: flashu.ShowO2, calibration: flashu.Calibration) -> None:
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration)
    once = pictures(tiny)
    flashu.apply_flashu_patch(tiny, CONFIG)
    assert pictures(tiny) == once
    flashu.remove_flashu_patch(tiny)
    with pytest.raises(flashu.FlashUError, match="not patched"):
        flashu.remove_flashu_patch(tiny)


def test_two_models_do_not_share_a_patch(tiny: flashu.ShowO2, calibration: flashu.Calibration) -> None:
    other = tiny_model()
    plain = pictures(other)
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration)
    assert pictures(other) == plain
    flashu.apply_flashu_patch(other, CONFIG, calibration=calibration)
    assert pictures(other) == pictures(tiny)
    flashu.remove_flashu_patch(tiny)
    assert pictures(tiny) == plain != pictures(other)


def test_copies_and_pickles_of_a_patched_model_are_plain(tiny: flashu.ShowO2, calibration: flashu.Calibration) -> None:
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration)
    twin = copy.deepcopy(tiny)
    assert engine_of(twin) is None
    tiny.processor = None  # a tokenizer pickles, the test's autoencoder is a local class
    revived = pickle.loads(pickle.dumps(tiny))
    assert engine_of(revived) is None
    assert revived.state_dict().keys() == tiny.state_dict().keys()


def test_casting_a_patched_model_works(tiny: flashu.ShowO2, calibration: flashu.Calibration) -> None:
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration)
    tiny.to(torch.float64)
    assert len(pictures(tiny)) == 2


@pytest.mark.parametrize("in_place", [False, True])
def test_a_cast_after_drawing_reaches_the_pruned_weights(
    in_place: bool, tiny: flashu.ShowO2, calibration: flashu.Calibration
) -> None:
    flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration, in_place=in_place)
    pictures(tiny)
    tiny.double()
    cast = tiny_model().double()
    flashu.apply_flashu_patch(cast, CONFIG, calibration=calibration, in_place=in_place)
    assert pictures(tiny) == pictures(cast)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_neurons_are_put_back_after_a_cast(
    dtype: torch.dtype, again: bool, tiny: flashu.ShowO2, calibration: flashu.Calibration
) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}

    def moved() -> bool:
        return any(not torch.equal(p, before[name].to(dtype)) for name, p in tiny.named_parameters())

    engine = flashu.apply_flashu_patch(tiny, CONFIG, calibration=calibration, in_place=True)
    for undo in (engine.release, lambda: flashu.remove_flashu_patch(tiny)):
        pictures(tiny)
        tiny.to(dtype)
        if again:
            pictures(tiny)
        assert moved()
        undo()
        assert not moved()


def test_a_forgotten_model_takes_its_patch_along(calibration: flashu.Calibration) -> None:
    model = tiny_model()
    flashu.apply_flashu_patch(model, CONFIG, calibration=calibration)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_generation_is_calibrated_on_the_first_image_and_then_kept(
    tiny: flashu.ShowO2, calibration: flashu.Calibration
) -> None:
    half = flashu.Calibration(
        calibration.model_hash, {"understanding": calibration.scores["understanding"]}, calibration.correlation
    )
    engine = flashu.apply_flashu_patch(tiny, CONFIG, calibration=half)
    assert "generation" not in engine.calibration.scores
    first = pictures(tiny)
    assert engine.calibration.made_from["generation"]["prompts"] == ["w1 w2"]
    scores = engine.calibration.scores["generation"]
    assert pictures(tiny) == first
    assert engine.calibration.scores["generation"] is scores
