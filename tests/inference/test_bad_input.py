"""What users get wrong: one clear error, nothing computed, the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import flashu
from flashu.inference.calibrate.calibration import CALIBRATION


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "words"),
    [
        ("", {}, flashu.PromptError, "empty"),
        ("   ", {}, flashu.PromptError, "empty"),
        ([], {}, flashu.PromptError, "at least one prompt"),
        (["w1", ""], {}, flashu.PromptError, "empty"),
        ("w1 " * 20, {}, flashu.PromptError, "at most 19"),
        ([7], {}, flashu.PromptError, "must be a string"),
        (7, {}, flashu.PromptError, "must be a string"),
        ("w1", {"steps": 0}, flashu.FlashUError, "steps"),
        ("w1", {"steps": 2.5}, flashu.FlashUError, "steps"),
        ("w1", {"guidance": -1}, flashu.FlashUError, "guidance"),
        ("w1", {"guidance": float("nan")}, flashu.FlashUError, "guidance"),
        ("w1", {"guidance": "5"}, flashu.FlashUError, "guidance"),
        ("w1", {"shift": 0}, flashu.FlashUError, "shift"),
        ("w1", {"shift": -1.0}, flashu.FlashUError, "shift"),
        ("w1", {"shift": float("nan")}, flashu.FlashUError, "shift"),
        ("w1", {"height": 0}, flashu.FlashUError, "height"),
        ("w1", {"width": 64.0}, flashu.FlashUError, "width"),
        ("w1", {"height": 60}, flashu.ImageError, "multiples of 16"),
        ("w1", {"width": 8}, flashu.ImageError, "multiples of 16"),
        ("w1", {"seed": [1, 2]}, flashu.FlashUError, "2 seeds for 1 image"),
        ("w1", {"seed": 1.5}, flashu.FlashUError, "whole number"),
        ("w1", {"seed": "seven"}, flashu.FlashUError, "whole number"),
        ("w1", {"seed": 2**64}, flashu.FlashUError, "between 0 and 4294967295"),
        ("w1", {"seed": 2**32}, flashu.FlashUError, "between 0 and 4294967295"),  # would draw seed 0's picture
        ("w1", {"seed": -1}, flashu.FlashUError, "between 0 and 4294967295"),
        ("w1", {"seed": None}, flashu.FlashUError, "whole number"),
        ("w1", {"images_per_prompt": 0}, flashu.PromptError, "at least one"),
        ("w1", {"images_per_prompt": 1.5}, flashu.FlashUError, "images_per_prompt"),
        ("w1", {"batch_size": 0}, flashu.FlashUError, "batch_size"),
    ],
)
def test_generate(prompts, settings, error, words, tiny_engine: flashu.Engine) -> None:
    with pytest.raises(error, match=words):
        tiny_engine.generate(prompts, **settings)


@pytest.mark.parametrize(
    ("image", "question", "settings", "error", "words"),
    [
        (Image.new("RGB", (64, 64)), "", {}, flashu.PromptError, "empty"),
        (Image.new("I", (64, 64)), "w1", {}, flashu.ImageError, "mode"),
        (Image.new("RGB", (0, 4)), "w1", {}, flashu.ImageError, "empty"),
        (torch.full((3, 64, 64), float("nan")), "w1", {}, flashu.ImageError, "NaN"),
        (torch.zeros(1, 64, 64), "w1", {}, flashu.ImageError, "3, H, W"),
        ("no-such-file.png", "w1", {}, flashu.ImageError, "no such file"),
        (object(), "w1", {}, flashu.ImageError, "must be a PIL image"),
        (Image.new("RGB", (64, 64)), "w1", {"max_new_tokens": 0}, flashu.FlashUError, "max_new_tokens"),
        (Image.new("RGB", (64, 64)), "w1", {"temperature": -1}, flashu.FlashUError, "temperature"),
        (Image.new("RGB", (64, 64)), "w1", {"top_p": 0.0, "temperature": 1}, flashu.FlashUError, "top_p"),
        (Image.new("RGB", (64, 64)), "w1", {"top_k": 0, "temperature": 1}, flashu.FlashUError, "top_k"),
        (Image.new("RGB", (64, 64)), "w1", {"seed": 0.5}, flashu.FlashUError, "whole number"),
        ([Image.new("RGB", (64, 64))], ["w1", "w2"], {}, flashu.ImageError, "1 images for 2 questions"),
        ([], [], {}, flashu.ImageError, "0 images"),
    ],
)
def test_answer(image, question, settings, error, words, tiny_engine: flashu.Engine) -> None:
    with pytest.raises(error, match=words):
        tiny_engine.answer(image, question, **settings)
    if isinstance(question, str):
        with pytest.raises(error, match=words):  # at once, not when the first piece is asked for
            tiny_engine.stream(image, question, **settings)


def test_settings_that_nobody_reads_are_refused(tiny_engine: flashu.Engine) -> None:
    image = Image.new("RGB", (64, 64))
    for call in (
        lambda: tiny_engine.generate("w1", height=32, size=32),  # type: ignore[call-arg]
        lambda: tiny_engine.edit(image, "w1", images_per_prompt=2),  # type: ignore[call-arg]
        lambda: tiny_engine.answer(image, "w1", steps=3),
        lambda: tiny_engine.chat("w1", top_q=3),
        lambda: tiny_engine.stream(image, "w1", guidance=3),
        lambda: tiny_engine.explain("generation", seed=3),
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()


def test_a_model_that_cannot_edit_says_so(tiny_engine: flashu.Engine) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(flashu.FlashUError, match="does not edit"):
        tiny_engine.edit(image, "w1")
    with pytest.raises(flashu.ImageError, match="2 images for 1 prompts"):
        tiny_engine.edit([image, image], "w1")


def test_steps_that_leave_no_forward(tiny_engine: flashu.Engine) -> None:
    """The released program takes one forward fewer than steps."""
    with pytest.raises(flashu.FlashUError, match="1 steps leave no forward"):
        tiny_engine.with_recipe(flashu.FlashUConfig(reference=True, steps=0)).generate("w1", steps=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_images_of_any_8_bit_mode_and_size_are_seen(mode: str, tiny_engine: flashu.Engine) -> None:
    for size in ((64, 64), (90, 70), (20, 33)):
        assert tiny_engine.answer(Image.new(mode, size), "w1", max_new_tokens=2).tokens


def test_too_little_memory_is_said_plainly(tiny_engine: flashu.Engine) -> None:
    """A latent plane of exabytes, asked of the real allocator."""
    with pytest.raises(flashu.FlashUError, match=r"not enough memory to .*: use a smaller batch_size"):
        tiny_engine.decode(torch.empty(1, 4, 1, 1).expand(1, 4, 2**24, 2**24))


def test_nan_weights_are_reported_not_drawn(tiny: flashu.ShowO2) -> None:
    with torch.no_grad():
        tiny.showo.model.norm.weight[0] = float("nan")
    engine = flashu.Engine(tiny, tiny.processor)
    with pytest.raises(flashu.FlashUError, match="not finite"):
        engine.generate("w1", steps=1)
    with torch.no_grad():
        tiny.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(flashu.CalibrationError, match="not finite"):
        engine.calibrate("generation", prompts=["w1"])


def test_a_model_without_an_autoencoder_draws_latents_only(tiny: flashu.ShowO2) -> None:
    tiny.processor.vae = None
    engine = flashu.Engine(tiny, tiny.processor)
    drawn = engine.generate("w1", steps=1)
    assert drawn.images == []
    assert drawn.latents.shape == (1, 4, 8, 8)
    with pytest.raises(flashu.FlashUError, match="without an autoencoder"):
        engine.decode(drawn.latents)
    with pytest.raises(flashu.FlashUError, match="cannot see"):
        engine.answer(Image.new("RGB", (64, 64)), "w1")


def test_calibration_of_other_weights_is_refused(tiny: flashu.ShowO2, tmp_path: Path) -> None:
    engine = flashu.Engine(tiny, tiny.processor)
    calibration = engine.calibrate("generation", prompts=["w1"])
    calibration.save(tmp_path / CALIBRATION)
    same = flashu.Calibration.load(tmp_path / CALIBRATION, calibration.model_hash)
    assert torch.equal(same.scores["generation"], calibration.scores["generation"])
    assert same.made_from == calibration.made_from
    with pytest.raises(flashu.CalibrationError, match="calibrate them anew"):
        flashu.Calibration.load(tmp_path / CALIBRATION, "0123")
    (tmp_path / "cut").write_bytes((tmp_path / CALIBRATION).read_bytes()[:100])
    with pytest.raises(flashu.CalibrationError, match="cannot be read"):
        flashu.Calibration.load(tmp_path / "cut")
    with pytest.raises(flashu.CalibrationError, match="flashu calibrate"):
        flashu.Calibration.load(tmp_path / "none")


def test_unknown_models_and_presets(tiny_engine: flashu.Engine) -> None:
    with pytest.raises(flashu.CheckpointError, match="scene"):
        flashu.load("scene")
    with pytest.raises(flashu.RecipeError, match="no preset 'papers'"):
        tiny_engine.with_recipe("papers")
