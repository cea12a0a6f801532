"""Checkpoints: every layout loads to the same weights; what is saved comes back."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from flashu.errors import CheckpointError
from flashu.models import registry
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo2.load import checkpoint_hash, load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import Text
from flashu.models.small_autoencoder import PlainAutoencoder, SmallAutoencoder
from tests.models.showo2 import showo2_tiny
from tests.models.showo2.checkpoints import HEAD, OFFICIAL, cut, official_folder, state, write


@pytest.fixture(scope="module")
def model():
    return showo2_tiny.model()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return official_folder(tmp_path, monkeypatch)


def assert_same(loaded, model):
    assert loaded.config == model.config
    for (name, a), (other, b) in zip(
        [*loaded.state_dict().items(), *loaded.named_buffers(remove_duplicate=False)],
        [*model.state_dict().items(), *model.named_buffers(remove_duplicate=False)],
        strict=True,
    ):
        assert name == other
        assert torch.equal(a, b), name
    assert not loaded.training
    assert (
        loaded.showo.lm_head.weight is loaded.showo.model.embed_tokens.weight
    ) == model.config.llm.tie_word_embeddings


# -- layouts -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["bin", "old bin", "sharded bin", "safetensors", "sharded safetensors"])
def test_every_official_layout(layout, model, folder):
    write(layout, state(model), folder)
    assert_same(load_model(folder), model)


def test_the_untied_head_is_read(folder):
    untied = showo2_tiny.model(tied=False)
    (folder / "config.json").write_text(json.dumps(OFFICIAL | {"llm_model_path": "/data/Untied-LLM/"}))
    write("bin", state(untied), folder)
    assert_same(load_model(str(folder)), untied)


@pytest.mark.parametrize("side", [32, 64])
def test_high_resolution_variants(side, model, folder):
    grid = {"image_latent_height": side, "image_latent_width": side}
    (folder / "config.json").write_text(json.dumps(OFFICIAL | grid))
    write("bin", state(model), folder)
    Text.qwen(showo2_tiny.tokenizer(), 1).tokenizer.save(str(folder / "tokenizer.json"))
    assert load_model(folder).config == replace(model.config, **grid)
    processor = load_processor(folder, autoencoder=None)
    assert processor.defaults == GenerationDefaults(steps=20, height=16 * side, width=16 * side)
    assert processor.text.max_text == 251


def test_a_subclass_and_a_dtype(model, folder):
    class Own(ShowO2):
        pass

    write("bin", state(model), folder)
    loaded = load_model(folder, dtype=torch.bfloat16, device="cpu", cls=Own)
    assert type(loaded) is Own
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    rounded = dict(deepcopy(model).to(torch.bfloat16).named_buffers(remove_duplicate=False))
    for name, buffer in loaded.named_buffers(remove_duplicate=False):
        assert buffer.dtype == rounded[name].dtype
        assert torch.equal(buffer, rounded[name])
    assert load_model(folder).dtype == torch.float32


def test_exact_frequencies_stay_exact(model, folder, tmp_path):
    """At load, through casts and moves, saved and loaded again."""
    write("bin", state(model), folder)
    frequencies = {n: b for n, b in model.named_buffers(remove_duplicate=False) if n.endswith("inv_freq")}
    loaded = load_model(folder, dtype=torch.bfloat16, exact_rope=True)
    save_model(loaded, tmp_path / "ours")
    for exact in (loaded, loaded.half().to("cpu").bfloat16(), load_model(tmp_path / "ours")):
        assert exact.dtype == torch.bfloat16
        buffers = dict(exact.named_buffers(remove_duplicate=False))
        assert all(torch.equal(buffers[name], right) for name, right in frequencies.items())
    rounded = dict(load_model(tmp_path / "ours", exact_rope=False).named_buffers(remove_duplicate=False))
    assert all(rounded[name].dtype == torch.bfloat16 for name in frequencies)


def test_loading_leaves_the_random_state_alone(model, folder):
    write("bin", state(model), folder)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None, max_examples=12)
@given(
    tied=st.booleans(), seed=st.integers(0, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
)
def test_saving_and_loading_round_trip(tied, seed, dtype, tmp_path_factory):
    model = showo2_tiny.model(tied, seed).to(dtype)
    folder = tmp_path_factory.mktemp("saved")
    save_model(model, folder)
    loaded = load_model(folder)
    assert_same(loaded, model)
    assert checkpoint_hash(loaded) == checkpoint_hash(model)
    shutil.rmtree(folder)


def test_saving_over_the_folder_it_came_from(model, tmp_path):
    save_model(model, tmp_path)
    save_model(load_model(tmp_path), tmp_path)
    assert_same(load_model(tmp_path), model)
    assert HEAD not in load_file(tmp_path / "model.safetensors")


def test_a_processor_is_saved_with_the_model(model, tmp_path):
    text = Text.qwen(showo2_tiny.tokenizer(), max_text=12)
    save_model(model, tmp_path, Processor(text, None, GenerationDefaults(steps=7, height=64, width=64)))
    loaded = load_processor(tmp_path)
    assert loaded.defaults == GenerationDefaults(steps=7, height=64, width=64)
    assert (loaded.text.ids, loaded.text.chat, loaded.text.max_text) == (text.ids, text.chat, 12)
    assert loaded.text.question("what?") == text.question("what?")
    assert loaded.vae is None


def test_the_scenes_autoencoder_is_saved_and_loaded(model, tmp_path):
    scenes = SmallAutoencoder().eval()
    for parameter in scenes.parameters():
        parameter.data = parameter.data.bfloat16().float()
    scenes.mean.fill_(0.1)
    plain = PlainAutoencoder(scenes, 4, 8)
    text = Text.qwen(showo2_tiny.tokenizer(), max_text=12)
    save_model(model, tmp_path, Processor(text, plain, GenerationDefaults(height=64, width=64)))
    loaded = load_processor(tmp_path).vae
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents), plain.decode(latents))
        assert torch.equal(
            loaded.encode(torch.zeros(1, 3, 64, 64), sample=True), plain.encode(torch.zeros(1, 3, 64, 64))
        )
    cut(tmp_path / "autoencoder.safetensors", 0.5)
    with pytest.raises(CheckpointError, match="autoencoder"):
        load_processor(tmp_path)


# -- fingerprints --------------------------------------------------------------------------------------------------
def test_the_hash_follows_the_weights(model):
    assert checkpoint_hash(model) == checkpoint_hash(showo2_tiny.model())
    assert checkpoint_hash(showo2_tiny.model(seed=1)) != checkpoint_hash(model)
    assert checkpoint_hash(showo2_tiny.model().bfloat16()) == checkpoint_hash(model)
    assert checkpoint_hash(showo2_tiny.model(tied=False)) != checkpoint_hash(model)
    changed = showo2_tiny.model()
    changed.diffusion_head_b.linear.bias.data[3] += 1
    assert checkpoint_hash(changed) != checkpoint_hash(model)


# -- names ---------------------------------------------------------------------------------------------------------
def test_names(tmp_path):
    assert registry.where(registry.resolve("scenes")) == "in the package"
    assert registry.where(registry.resolve("showlab/show-o2-7B")) == "Hugging Face hub, showlab/show-o2-7B"
    assert registry.resolve("someone/else").source == "someone/else"
    assert registry.where(registry.resolve(tmp_path)) == f"folder {tmp_path}"
    with pytest.raises(CheckpointError, match="did you mean 'scenes'"):
        registry.resolve("scene")
    with pytest.raises(CheckpointError, match="known are scenes"):
        registry.resolve("/no/such/folder")


def test_a_model_is_opened_by_its_folder(model, tmp_path):
    save_model(model, tmp_path, Processor(Text.qwen(showo2_tiny.tokenizer(), 12), None))
    opened = registry.open_model(tmp_path, dtype=torch.bfloat16)
    assert opened.dtype == torch.bfloat16
    assert opened.name == str(tmp_path)
    assert opened.processor.text.max_text == 12
    assert isinstance(opened, nn.Module)
