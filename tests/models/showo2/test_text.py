"""Token layouts, and prompts and pictures that must be refused."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models

from flashu.errors import CheckpointError, ImageError, PromptError
from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import pixels, to_pil
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import Text
from tests.models.showo2 import showo2_tiny

TEXT = Text.qwen(showo2_tiny.tokenizer(), max_text=20)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(lambda t: "<" not in t)


def test_showo2_adds_its_four_tokens_in_order():
    added = [TEXT.tokenizer.token_to_id(t) for t in ("[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>")]
    assert added == [261, 262, 263, 264]
    assert TEXT.ids.pad == 261
    assert TEXT.tokenizer.get_vocab_size() == showo2_tiny.VOCABULARY
    again = Text.qwen(Tokenizer.from_str(TEXT.tokenizer.to_str()), max_text=20)
    assert again.ids == TEXT.ids
    assert again.tokenizer.get_vocab_size() == showo2_tiny.VOCABULARY


@settings(deadline=None)
@given(WORDS)
def test_decoding_undoes_encoding(words):
    assert TEXT.decode(TEXT.encode(words)) == unicodedata.normalize("NFC", words)


@settings(deadline=None)
@given(WORDS)
def test_a_prompt_is_framed_or_refused(words):
    ids = TEXT.encode(words)
    if not words.strip() or len(ids) > TEXT.max_text:
        with pytest.raises(PromptError):
            TEXT.prompt(words)
    else:
        assert TEXT.prompt(words) == [TEXT.ids.bos, *ids, TEXT.ids.boi]


def test_the_null_prompt():
    assert TEXT.null_prompt() == [TEXT.ids.bos, TEXT.ids.boi]


def test_a_question_has_its_parts_around_the_image():
    before, after = TEXT.question("how many?")
    i = TEXT.ids
    system = TEXT.encode("system\nYou are a helpful assistant.")
    assert before == [i.bos, *system, i.eos, *TEXT.encode("\n"), i.bos, *TEXT.encode("user\n"), i.boi]
    assert after == [i.eoi, *TEXT.encode("how many?\n"), i.bos, *TEXT.encode("assistant\n")]


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 10))
def test_the_padded_row(words, image_tokens, spare):
    prompt, i = TEXT.prompt("a" * words), TEXT.ids
    length = len(prompt) + image_tokens + 3 + spare
    row = TEXT.padded_row(prompt, image_tokens, length)
    assert row == [*prompt, *[i.img_pad] * (image_tokens + 1), i.eoi, i.eos, *[i.pad] * spare]
    with pytest.raises(PromptError, match="do not fit"):
        TEXT.padded_row(prompt, image_tokens, length - spare - 1)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [("", "empty"), (" \n", "empty"), ("a" * 21, "21 tokens, at most 20"), (None, "NoneType"), ("\ud800", "Unicode")],
)
def test_unusable_prompts(prompt, says):
    with pytest.raises(PromptError, match=says):
        TEXT.prompt(prompt)


def test_words_that_vanish_are_refused():
    silent = Tokenizer(models.BPE({"a": 0}, []))
    text = Text(silent, TEXT.ids, TEXT.chat, max_text=5)
    with pytest.raises(PromptError, match="no token"):
        text.prompt("zero")


def test_another_tokenizer_is_refused():
    with pytest.raises(CheckpointError, match=r"im_start.*Qwen2\.5"):
        Text.qwen(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), max_text=5)


# -- pictures ------------------------------------------------------------------------------------------------------
def picture(width, height, mode="RGB"):
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24))
def test_any_picture_covers_any_size(width, height, wanted_height, wanted_width):
    x = pixels(picture(width, height), wanted_height, wanted_width)
    assert x.shape == (1, 3, wanted_height, wanted_width)
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1


def test_the_short_side_is_resized_and_the_centre_kept():
    resized = picture(50, 20).resize((int(16 * 50 / 20), 16), Image.Resampling.BICUBIC).crop((12, 0, 28, 16))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255 * 2 - 1
    torch.testing.assert_close(pixels(picture(50, 20), 16, 16), expected)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pixels_and_pictures_round_trip_within_one_level(seed):
    levels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    back = np.array(to_pil(pixels(levels, 8, 12))[0])
    assert np.abs(back.astype(int) - levels).max() <= 1


def test_levels_are_truncated_and_clamped():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 5.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert np.array(to_pil(x)[0])[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_modes_are_converted_as_pil_does(mode):
    image = picture(8, 8, "L").convert(mode) if mode == "LA" else picture(8, 8, mode)
    assert torch.equal(pixels(image, 8, 8), pixels(image.convert("RGB"), 8, 8))


def test_all_kinds_of_input_agree(tmp_path):
    image = picture(8, 8)
    image.save(tmp_path / "a.png")
    expected, levels = pixels(image, 8, 8), np.array(image)
    tensor = torch.from_numpy(levels).permute(2, 0, 1)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), levels, tensor, tensor[None], expected, expected[0]):
        assert torch.equal(pixels(same, 8, 8), expected)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (3, "int"),
        (Image.new("I;16", (8, 8)), "8-bit"),
        (Image.new("F", (8, 8)), "8-bit"),
        (Image.new("RGB", (0, 8)), "empty"),
        (Image.new("RGB", (1, 1000)), "narrow"),
        (np.zeros((8, 8, 3)), "uint8"),
        (np.zeros((8, 8), np.uint8), "uint8"),
        (torch.zeros(3, 8), r"\[3, H, W\]"),
        (torch.zeros(2, 3, 8, 8), r"\[3, H, W\]"),
        (torch.zeros(3, 0, 8), r"\[3, H, W\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.full((3, 8, 8), 200.0), "uint8 for levels"),
    ],
)
def test_unusable_images(image, says):
    with pytest.raises(ImageError, match=says):
        pixels(image, 16, 16)


def test_unusable_files(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    picture(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name, says in [
        ("none.png", "no such file"),
        ("text.png", "not an image"),
        ("cut.png", "damaged"),
        ("", "regular file"),
    ]:
        with pytest.raises(ImageError, match=says):
            pixels(tmp_path / name, 16, 16)
    with pytest.raises(ImageError, match="positive"):
        pixels(tmp_path / "whole.png", 0, 16)


@pytest.mark.parametrize("bad", [torch.full((1, 3, 2, 2), float("inf")), torch.zeros(3, 2, 2), torch.zeros(1, 4, 2, 2)])
def test_unusable_pixels(bad):
    with pytest.raises(ImageError):
        to_pil(bad)


def test_a_processor_uses_its_sizes():
    processor = Processor(TEXT, None, GenerationDefaults(height=16, width=8))
    x = processor.pixels(picture(30, 30))
    assert x.shape == (1, 3, 16, 8)
    assert processor.to_pil(x)[0].size == (8, 16)


@pytest.mark.parametrize("values", [{"steps": 0}, {"height": 1.5}, {"shift": 0.0}, {"width": -1}])
def test_defaults_are_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        GenerationDefaults(**values)
