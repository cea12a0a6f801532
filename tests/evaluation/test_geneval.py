"""GenEval's rules over detections made by hand, and the networks' side over tiny ones of transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import flashu
from flashu.evaluation.geneval import MOST, Detection, faults, relations, score
from flashu.evaluation.geneval_networks import COLOURS, GREY, ColourClassifier, Detector

Box = tuple[float, float, float, float]


def found(name: str, x: float = 0, y: float = 0, score: float = 0.95, size: float = 10) -> Detection:
    return Detection(name, score, (x, y, x + size, y + size))


def right(about: dict[str, Any], *seen: Detection, colours: dict[str, str] | None = None) -> bool:
    return not faults(about, seen, lambda one: (colours or {})[one.name])


def test_single_and_two() -> None:
    single = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    assert right(single, found("dog", score=0.31), found("cat"))
    assert right(single, found("dog"), found("dog", 40))
    assert not right(single, found("dog", score=0.3), found("cat"))
    two = {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    assert right(two, found("cat"), found("dog", 30))
    assert faults(two, [found("dog")], lambda _: "") == ["0 cat, 1 wanted"]


def test_counting_is_exact_among_what_is_sure() -> None:
    three = {
        "tag": "counting",
        "include": [{"class": "bus", "count": 3}],
        "exclude": [{"class": "bus", "count": 4}],
    }
    buses = [found("bus", 20 * n) for n in range(4)]
    assert not right(three, *buses[:2])
    assert right(three, *buses[:3], found("bus", 90, score=0.89), found("car", 120))
    assert faults(three, buses, lambda _: "") == ["4 bus, fewer than 4 wanted"]
    many = {"tag": "two_object", "include": [{"class": "bus", "count": MOST + 1}]}
    assert not right(many, *(found("bus", n) for n in range(30)))


def test_colours_are_those_of_the_surest() -> None:
    red = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    sure, unsure = found("car", score=0.9), found("car", 30, score=0.5)
    for colour, verdict in (("red", True), ("blue", False)):
        assert (not faults(red, [unsure, sure], lambda one, c=colour: c if one is sure else "green")) == verdict
    both = {
        "tag": "color_attr",
        "include": [
            {"class": "car", "count": 1, "color": "red"},
            {"class": "dog", "count": 1, "color": "brown"},
        ],
    }
    seen = found("car"), found("dog", 30)
    assert right(both, *seen, colours={"car": "red", "dog": "brown"})
    assert not right(both, *seen, colours={"car": "brown", "dog": "red"})


def test_positions_hold_between_the_surest() -> None:
    about = {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
    }
    assert right(about, found("dog", 50), found("cat", 0))
    assert not right(about, found("dog", 0), found("cat", 50))
    assert right(about, found("dog", 50), found("cat", 0, score=0.9), found("cat", 90, score=0.8))
    assert faults(about, [found("cat")], lambda _: "") == ["0 dog, 1 wanted", "nothing for cat to be left of"]


def test_sides_of_boxes() -> None:
    """Two boxes 10 wide: 2 of the distance do not count, and the rest must be more than half of the whole."""
    middle = found("b", 100, 100)
    assert relations(found("a", 100, 100), middle) == set()
    assert relations(found("a", 98.1, 100), middle) == set()  # within the margin
    assert relations(found("a", 96.1, 100), middle) == set()  # 1.9 beyond it, of 3.9
    assert relations(found("a", 95.9, 100), middle) == {"left of"}
    assert relations(found("a", 60, 60), middle) == {"left of", "above"}
    assert relations(found("a", 100, 160), middle) == {"below"}
    assert relations(found("a", 160, 120), middle) == {"right of"}


coordinates = st.integers(0, 500).map(float)
boxes = st.tuples(coordinates, coordinates, st.integers(1, 200), st.integers(1, 200)).map(
    lambda b: Detection("thing", 1.0, (b[0], b[1], b[0] + b[2], b[1] + b[3]))
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(boxes, boxes, st.integers(-300, 300))
def test_sides_are_mutual_and_move_along(a: Detection, b: Detection, shift: int) -> None:
    sides = relations(a, b)
    assert {OPPOSITE[side] for side in sides} == relations(b, a)
    assert not any(OPPOSITE[side] in sides for side in sides)
    moved = [Detection(f.name, f.score, tuple(edge + shift for edge in f.box)) for f in (a, b)]  # type: ignore[arg-type]
    assert relations(*moved) == sides


# -- a folder ----------------------------------------------------------------------------------------------------------
def folder_of(root: Path, *entries: dict[str, Any], images: int = 4) -> Path:
    for n, about in enumerate(entries):
        samples = root / f"{n:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(about))
        for k in range(images):
            Image.new("RGB", (32, 24), (n, k, 0)).save(samples / f"{k:04d}.png")
    return root


DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
NAMES = ("a detector", "a CLIP")
CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}


class Known:
    """Sees a dog in every image of the first prompt, and one cat more from image to image of the second."""

    names = frozenset({"dog", "cat"})

    def __call__(self, image: Image.Image, sure: float) -> list[Detection]:
        prompt, sample, _ = image.getpixel((0, 0))  # type: ignore[misc]
        assert sure == (0.9 if prompt else 0.3)
        return [found("dog")] if prompt == 0 else [found("cat", 10 * n) for n in range(sample + 1)]


def test_a_folder_is_scored_by_category(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, DOG, CATS)
    result = score(folder, Known(), lambda image, one: "red", networks=NAMES)
    assert (result.categories["single_object"].hits, result.categories["counting"].hits) == (4, 3)
    assert result.overall == pytest.approx((1 + 3 / 4) / 2)
    written = result.to_dict()
    assert written["categories"]["counting"].keys() == {"images", "right", "score", "low", "high"}
    assert (written["detector"], written["clip"]) == NAMES
    assert result.images[4] == {"file": "00001/samples/0000.png", "tag": "counting", "faults": ["1 cat, 2 wanted"]}
    assert 0 < result.categories["counting"].low < 0.75 < result.categories["counting"].high < 1
    strange = DOG | {"include": [{"class": "unicorn", "count": 1}]}
    with pytest.raises(flashu.FlashUError, match="knows no unicorn"):
        score(folder_of(tmp_path / "strange", strange), Known(), lambda image, one: "red", networks=NAMES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(flashu.FlashUError, match="flashu eval geneval"):
        score(tmp_path / "empty", Known(), lambda image, one: "red", networks=NAMES)
    with pytest.raises(flashu.FlashUError, match="GenEval's own file"):
        score(folder_of(tmp_path / "plain", {"prompt": "a dog"}), Known(), lambda image, one: "red", networks=NAMES)


# -- transformers' classes, tiny -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
    backbone = transformers.SwinConfig(image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"], **sizes)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label={0: "person", 1: "mouse", 2: "aeroplane"},
    )
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    # As the hub's file has it, which says nothing of torchvision.
    shape = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(shape))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16, **sizes}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={"image_size": 32, "patch_size": 16, **sizes}, projection_dim=8
    )
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    words = (
        "a photo of person computer mouse object - colored red orange yellow green blue purple pink brown black white"
    )
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *words.split()])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    pictures = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    images = pictures(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_the_detector_finds_boxes_around_masks(detector: Path) -> None:
    detect = Detector(str(detector))
    assert detect.names == {"person", "computer mouse", "airplane"}
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    seen = detect(Image.fromarray(noise), 0.0)
    assert seen
    for one in seen:
        assert one.name in detect.names
        assert 0 <= one.score <= 1
        assert one.mask is not None
        assert one.mask.shape == (24, 32)
        left, top, right_, bottom = (int(edge) for edge in one.box)
        assert one.mask[top:bottom, left:right_].sum() == one.mask.sum() > 0
    assert detect(Image.fromarray(noise), 1.0) == []


def test_a_colour_is_that_of_the_object_alone(clip: Path) -> None:
    """What lies outside of its mask does not count, and the answer is the nearest of the ten words to CLIP itself."""
    colour = ColourClassifier(str(clip))
    noise = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[8:24, 4:30] = True
    one = Detection("person", 0.9, (4, 8, 30, 24), mask)
    other = np.where(mask[..., None], noise, 7).astype(np.uint8)
    assert colour(Image.fromarray(noise), one) == colour(Image.fromarray(other), one)
    model, processor = transformers.CLIPModel.from_pretrained(clip), transformers.CLIPProcessor.from_pretrained(clip)
    crop = np.where(mask[..., None], noise, np.array(GREY)).astype(np.uint8)[8:24, 4:30]
    forms = ("a photo of a {} person", "a photo of a {}-colored person", "a photo of a {} object")
    votes = torch.zeros(len(COLOURS))
    for n, word in enumerate(COLOURS):
        texts = [form.format(word) for form in forms]
        with torch.no_grad():
            given_ = processor(text=texts, images=Image.fromarray(crop), return_tensors="pt", padding=True)
            said = model(**given_)
        mean = said.text_embeds.mean(0)
        votes[n] = (said.image_embeds[0] @ mean) / mean.norm()
    assert colour(Image.fromarray(noise), one) == COLOURS[int(votes.argmax())]


def test_the_command(detector: Path, clip: Path, tmp_path: Path) -> None:
    from flashu.cli.main import app

    person = {"tag": "single_object", "include": [{"class": "person", "count": 1}], "prompt": "a person"}
    blue = {"tag": "colors", "include": [{"class": "person", "count": 1, "color": "blue"}], "prompt": "a blue person"}
    folder = folder_of(tmp_path, person, blue, images=1)
    command = ["eval", "geneval-score", str(folder), "--detector", str(detector), "--clip", str(clip), "--sure", "0"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    printed, written = json.loads(done.stdout), json.loads((folder / "flashu-score.json").read_text())
    assert printed["scorer"] == written["scorer"] == "flashu, not the official GenEval scorer"
    assert printed["detector"] == str(detector)
    assert len(written["images"]) == 2
    shown = CliRunner().invoke(app, command)
    assert "not the official" in shown.stdout
    with pytest.raises(flashu.CheckpointError, match="hf download"):
        Detector(str(tmp_path / "nowhere"))
