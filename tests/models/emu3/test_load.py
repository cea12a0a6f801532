"""Every layout opens as the same model, and our own is what was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import flashu
from flashu import PromptError
from flashu.models.emu3 import load
from flashu.models.emu3.config import Emu3Config, Ids
from flashu.models.emu3.official import vq_weights
from flashu.models.emu3.processor import SHOWN, shown_size
from flashu.models.emu3.tiktoken import from_tiktoken
from flashu.models.registry import family_of, resolve
from tests.models.emu3 import checkpoints, emu3_tiny
from tests.models.emu3.golden.recorded import VISION, config, goldens, vq_config, weights

G = goldens()
LAYOUTS = {
    "class": checkpoints.as_transformers,
    "hub": lambda folder: checkpoints.as_transformers(folder, on_hub=True),
    "authors": checkpoints.as_authors,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / layout)
    assert family_of(resolve(folder)).name == "emu3"
    engine = flashu.load(folder)
    model, processor = engine.model, engine.processor
    assert model.config == config()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights()[name])
    assert processor.vae.config == vq_config()
    for name, value in processor.vae.state_dict().items():
        assert torch.equal(value, weights()[VISION + name])
    assert torch.equal(processor.vae.encode(G["vq.pixel_values"])[0], G["vq.codes0"])
    assert (processor.top_k, processor.defaults.guidance, processor.area) == (2048, 3.0, SHOWN)
    side = 32 if layout == "authors" else 720
    assert (processor.defaults.height, processor.defaults.width) == (side, side)
    assert not any(parameter.requires_grad for parameter in processor.vae.parameters())


def test_the_authors_image_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    folder = checkpoints.as_authors(tmp_path / "language", vq=None)
    apart = checkpoints.as_authors_vq(tmp_path / "vision")
    model = flashu.Emu3.from_pretrained(folder, autoencoder=apart)
    assert torch.equal(model.processor.vae.encode(G["vq.pixel_values"])[0], G["vq.codes0"])
    assert flashu.Emu3.from_pretrained(folder, autoencoder=None).processor.vae is None


def test_weights_of_lower_precision_leave_the_image_tokenizer_as_it_is(tmp_path: Path) -> None:
    """Which code is nearest depends on it: the authors' script has fp32 there and bf16 in the language model."""
    model = flashu.Emu3.from_pretrained(checkpoints.as_transformers(tmp_path), dtype=torch.bfloat16)
    assert model.dtype is torch.bfloat16
    assert model.decoder.rotary_emb.inv_freq.dtype is torch.float32
    assert model.processor.vae.dtype is torch.float32
    assert torch.equal(model.processor.vae.encode(G["vq.pixel_values"])[0], G["vq.codes0"])


def test_saved_and_opened_again(tmp_path: Path) -> None:
    model = flashu.Emu3.from_pretrained(checkpoints.as_transformers(tmp_path / "a"))
    model.processor.top_k = 7
    model.save_pretrained(tmp_path / "b")
    again = flashu.Emu3.from_pretrained(tmp_path / "b")
    assert again.config == model.config
    for ours, theirs in ((again, model), (again.processor.vae, model.processor.vae)):
        mine = ours.state_dict()
        assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items())
    assert again.processor.top_k == 7
    assert again.processor.text.ids == model.processor.text.ids
    assert again.processor.text.template == model.processor.text.template
    assert again.processor.defaults == model.processor.defaults
    sizes = family_of(resolve(tmp_path / "b")).sizes(resolve(tmp_path / "b"))
    assert sizes.image_tokens(None, None) == model.processor.defaults.steps


def test_every_key_of_the_authors_full_size_image_tokenizer_is_known() -> None:
    manifest = json.loads((Path(checkpoints.__file__).parent / "golden" / "emu3_manifest.json").read_text())
    wanted = {name.removeprefix(VISION) for name in manifest["tensors"] if name.startswith(VISION)}
    theirs = {checkpoints.authors_vq_name(VISION + name): torch.zeros(1) for name in wanted}
    assert len(theirs) == len(wanted) == 495
    assert vq_weights(theirs).keys() == wanted


def test_a_vocabulary_of_ranks(tmp_path: Path) -> None:
    """Of the authors' file: bytes and merges, their special tokens behind them."""
    file = tmp_path / "emu3.tiktoken"
    checkpoints.tiktoken(file, 900)
    made = from_tiktoken(file, Ids(pad=900))
    assert made.encode("ab", add_special_tokens=False).ids == [256 + 1]
    assert made.encode("a 90*90", add_special_tokens=False).ids == [97, 32, *b"90*90"]
    assert made.token_to_id("<|extra_203|>") == 900 + 3 + 203
    assert made.token_to_id("<|image end|>") == 900 + 3 + 205 + 2
    assert made.decode(made.encode("hello wörld", add_special_tokens=False).ids) == "hello wörld"
    assert made.encode("<|image start|>", add_special_tokens=False).ids == [900 + 3 + 205 + 1]


def test_official_sizes_need_no_files() -> None:
    for name, codes in (("BAAI/Emu3-Gen", 90 * 90), ("BAAI/Emu3-Chat", 64 * 64)):
        checkpoint = resolve(name)
        sizes = family_of(checkpoint).sizes(checkpoint)
        assert sizes.image_tokens(None, None) == sizes.defaults.steps == codes
        assert sizes.spec.layers == 32
        assert sizes.spec.codes == (151854, 184622)


@pytest.mark.parametrize(
    ("height", "width"), [(512, 512), (100, 80), (3000, 2000), (700, 701), (1024, 1030), (333, 1500), (1500, 333)]
)
def test_pictures_are_shown_in_the_originals_size(height: int, width: int) -> None:
    transformers = pytest.importorskip("transformers.models.emu3.image_processing_emu3")
    theirs = transformers.smart_resize(height, width, 8, *SHOWN)
    assert shown_size(height, width, 8, *SHOWN) == theirs


def test_pixels_are_those_of_the_original() -> None:
    """Resized alike, and normalised by a half: the class's own default is another model's."""
    import numpy as np
    from PIL import Image

    module = pytest.importorskip("transformers.models.emu3.image_processing_emu3")
    from tests.models.emu3.emu3_tiny import processor

    levels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    theirs = module.Emu3ImageProcessor(
        min_pixels=16 * 16, max_pixels=50 * 50, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )(Image.fromarray(levels), return_tensors="pt")["pixel_values"]
    surround = processor(None)
    surround.area = (16 * 16, 50 * 50)
    ours = surround.pixels(Image.fromarray(levels))
    torch.testing.assert_close(ours, theirs.view(ours.shape).float(), rtol=0, atol=1e-5)


def test_sizes_by_ratio() -> None:
    from tests.models.emu3.emu3_tiny import processor

    surround = processor(None)
    assert surround.size("1:1", 720 * 720) == (720, 720)
    assert surround.size("16:9", 720 * 720) == (544, 960)
    with pytest.raises(flashu.ImageError, match="16:9"):
        surround.size("wide")


def test_a_default_config_is_the_released_one() -> None:
    assert load.official_config({"model_type": "Emu3"}) == Emu3Config()


def test_pictures_stand_where_the_question_says() -> None:
    """Each of its texts is encoded apart; what surrounds the whole stays."""
    text = emu3_tiny.text()
    assert text.question_parts("w3 w4", 2) == [text.before(), [], text.question("w3 w4")]
    assert text.question_parts("w3 w4", 0) == [[*text.before(), *text.question("w3 w4")]]
    spread = text.question_parts("w3<image>w4<image>w5", 2)
    assert spread == [[*text.before(), *text.encode("w3")], text.encode("w4"), text.question("w5")]
    made = emu3_tiny.processor(None)
    assert made.row("w3<image>", 1) == [*text.before(), *text.encode("w3"), made.placeholder]
    with pytest.raises(PromptError, match="one place for each"):
        made.row("w3<image>", 2)
    with pytest.raises(PromptError, match="empty"):
        made.row("<image>", 1)
