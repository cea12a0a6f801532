"""Checkpoints: the official layout and ours, and what each loader refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flashu
from flashu.errors import CheckpointError, FlashUError, ImageError, PromptError
from flashu.models.bagel.autoencoder import AutoencoderSizes, FluxAutoencoder
from flashu.models.bagel.load import load_model, load_processor, save_model
from flashu.models.bagel.processor import Resizing
from flashu.models.registry import family_of, resolve
from tests.models.bagel.golden.recorded import HERE
from tests.models.showo2 import showo2_tiny

NORM, TABLE = "language_model.model.norm", "latent_pos_embed.pos_embed"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder as the authors publish it."""
    folder = tmp_path_factory.mktemp("official")
    data = json.loads((HERE / "bagel_tiny.json").read_text())
    llm = data["llm_config"] | {"vocab_size": 300}
    vit = data["vit_config"] | {"num_hidden_layers": data["vit_config"]["num_hidden_layers"] + 1}
    names = ("vit_max_num_patch_per_side", "latent_patch_size", "max_latent_size")
    rest = {name: data[name] for name in names} | {"vae_config": {"z_channels": 4, "downsample": 8}}
    for name, part in (("llm_config", llm), ("vit_config", vit), ("config", rest | {"model_type": "bagel"})):
        (folder / f"{name}.json").write_text(json.dumps(part))
    weights = load_file(HERE / "bagel_tiny.safetensors")
    more = torch.randn(44, 64, generator=torch.Generator().manual_seed(0))
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        weights[name] = torch.cat((weights[name], more))
    save_file(weights, folder / "ema.safetensors")
    words = showo2_tiny.tokenizer()
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FluxAutoencoder(AutoencoderSizes(32, (1, 1, 1, 1), 1, 4)).save(folder)
    return folder


def test_the_official_layout_opens_and_draws_sees_and_edits(official, tmp_path):
    engine = (
        flashu.Engine.from_pretrained(official) if hasattr(flashu.Engine, "from_pretrained") else flashu.load(official)
    )
    picture = Image.new("RGB", (90, 70), (200, 30, 30))
    drawn = engine.generate("a red circle", steps=2, height=32, width=48)
    assert drawn.images[0].size == (48, 32)
    edited = engine.edit(picture, "make it blue", steps=2)
    size = load_processor(official).drawn.size(70, 90)
    assert edited.images[0].size == size[::-1]
    assert engine.answer(picture, "what is it?", max_new_tokens=3).tokens
    both = engine.answer([[picture, picture]], ["what differs?"], max_new_tokens=2)
    assert len(both) == 1
    save_model(engine.model, tmp_path / "ours", engine.processor)
    again = load_model(tmp_path / "ours")
    for name, value in engine.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    processor = load_processor(tmp_path / "ours")
    assert (processor.drawn, processor.editing) == (engine.processor.drawn, engine.processor.editing)


def test_the_class_by_itself_and_patched(official):
    own, picture = flashu.Bagel.from_pretrained(official), Image.new("RGB", (64, 64), (9, 90, 9))
    plain = own.t2i_generate("a red circle", steps=4, height=32, width=32)
    flashu.apply_flashu_patch(own, flashu.FlashUConfig())
    try:
        assert own.t2i_generate("a red circle", steps=4, height=32, width=32)[0].size == plain[0].size
        assert len(own.edit(picture, "make it blue", steps=4)) == 1
        assert isinstance(own.mmu_generate(picture, "what is it?", max_new_tokens=2), str)
    finally:
        flashu.remove_flashu_patch(own)
    again = own.t2i_generate("a red circle", steps=4, height=32, width=32)
    assert again[0].tobytes() == plain[0].tobytes()


def test_without_config_json(official, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(official, folder)
    (folder / "config.json").unlink()
    assert family_of(resolve(folder)).name == "bagel"


def test_understanding_alone_reads_one_expert(official):
    part = load_model(official, parts="understanding")
    assert part.spec.experts == ("und",)
    assert not any("_moe_gen" in name for name in part.state_dict())
    with pytest.raises(FlashUError, match="parts are"):
        load_model(official, parts="drawing")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, w: (f / "llm_config.json").unlink(), "there is no llm_config.json"),
        (lambda f, w: (f / "ema.safetensors").unlink(), "no weights"),
        (lambda f, w: w.pop("connector.fc1.bias"), "missing"),
        (lambda f, w: w.update({f"{NORM}_gen.weight": w.pop(f"{NORM}_moe_gen.weight")}), "norm_gen"),
        (lambda f, w: w.update({TABLE: w[TABLE][:-1].clone()}), "wrong shape"),
        (lambda f, w: (f / "tokenizer.json").unlink(), "there is no tokenizer.json"),
        (lambda f, w: (f / "ae.safetensors").unlink(), "ae"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(official, tmp_path, spoil, message):
    folder = tmp_path / "broken"
    shutil.copytree(official, folder)
    weights = load_file(folder / "ema.safetensors")
    before = dict(weights)
    spoil(folder, weights)
    if weights.keys() != before.keys() or any(weights[n] is not before[n] for n in weights):
        save_file(weights, folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match=message):
        flashu.load(folder)


def test_requests_that_cannot_be_met(official):
    engine = flashu.load(official)
    picture = Image.new("RGB", (64, 64))
    for error, message, call in (
        (ImageError, "has places for", lambda: engine.generate("a", height=16, width=144)),
        (ImageError, "multiples of 16", lambda: engine.generate("a", height=20, width=32)),
        (PromptError, "empty", lambda: engine.edit(picture, " ")),
        (ImageError, "1 prompts", lambda: engine.edit([], ["a"])),
        (FlashUError, "max_think_tokens", lambda: engine.generate("a", think=True, max_think_tokens="many")),
        (FlashUError, "max_think_tokens", lambda: engine.generate("a", think=True, max_think_tokens=0)),
        (FlashUError, "no renorm 'local'", lambda: engine.generate("a", renorm="local")),
        (TypeError, "unexpected keyword", lambda: engine.generate("a", renormalise="global")),
    ):
        with pytest.raises(error, match=message):
            call()


def test_sizes_that_pictures_are_resized_to():
    drawn, viewed = Resizing(1024, 512, 16), Resizing(980, 224, 14)
    assert drawn.size(1024, 1024) == (1024, 1024)
    assert drawn.size(300, 400) == (512, 688)
    assert drawn.size(3000, 2000) == (1024, 688)
    assert viewed.size(1024, 1024) == (980, 980)
    assert viewed.size(512, 688) == (518, 686)
