"""Pictures shown by features: as transformers prepares and computes them, and one model that is shown them so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashu import Engine
from flashu.errors import CheckpointError
from flashu.models.showo.clip import ClipFeatures
from flashu.models.showo.public import ShowO
from tests.models.showo.golden.recorded import processor, tiny_config

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    transformers.CLIPVisionModel(config).save_pretrained(path)
    return path


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (60, 40)])
def test_features_are_those_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    ours = ClipFeatures.load(folder)
    assert (ours.size, ours.count) == (24, 4)
    image = picture(*size)
    prepare = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    prepared = prepare(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = ours.tower(prepared, output_hidden_states=True).hidden_states[-2][:, 1:]
    given = ours([image])
    assert given.shape == (1, 4, 24)
    torch.testing.assert_close(given, expected, atol=0.02, rtol=0.02)


def test_a_model_that_is_shown_features(folder: Path) -> None:
    """Questions about one picture share what stands before them; drawing needs no tower."""
    torch.manual_seed(1)
    model = ShowO(tiny_config(clip_size=24)).eval().requires_grad_(False)
    around = processor()
    around.text = replace(around.text, chat=replace(around.text.chat, system="w1 w2 w3"))
    around.clip = ClipFeatures.load(folder)
    engine = Engine(model, around)
    image, questions = picture(40, 40), ["w5 w6", "w7"]
    answers = engine.answer([image] * 2, questions, max_new_tokens=4)
    assert sum(answer.trace[0].shared for answer in answers) == 5 + 4 + 1
    for question, answer in zip(questions, answers, strict=True):
        assert engine.answer(image, question, max_new_tokens=4).tokens == answer.tokens
    assert not np.array_equal(answers[0].tokens, engine.answer(picture(90, 20), "w5 w6", max_new_tokens=4).tokens)
    pruned = engine.with_recipe("paper").answer(image, "w5 w6", max_new_tokens=4)
    assert pruned.trace[0].tokens == answers[0].trace[0].tokens + 10
    around.clip = None
    assert engine.with_recipe("exact").generate("w1", steps=2).latents.shape == (1, 16)


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a CLIP vision tower"):
        ClipFeatures.load(tmp_path)
