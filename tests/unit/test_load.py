"""Checkpoints: every layout loads to the same weights; every damaged one is refused in one clear sentence."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import showo2_tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from flashu.errors import CheckpointError
from flashu.models import hub, registry
from flashu.models.showo2 import official
from flashu.models.showo2.load import checkpoint_hash, load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import GenerationDefaults, Processor
from flashu.models.showo2.text import Text
from flashu.models.weights import fill

OFFICIAL = {
    "_class_name": "Showo2Qwen2_5",
    "llm_model_path": "somewhere/Tiny-LLM",
    "clip_pretrained_model_path": "google/tiny-siglip",
    "llm_vocab_size": showo2_tiny.VOCABULARY,
    "load_from_showo": True,
    "hidden_size": 32,
    "clip_latent_dim": 16,
    "num_diffusion_layers": 2,
    "image_latent_dim": 4,
    "image_latent_height": 4,
    "image_latent_width": 4,
    "add_time_embeds": True,
    "add_qk_norm": True,
    "num_und_trans_layers": 8,
    "something_new": None,
}
EMBED, HEAD = "showo.model.embed_tokens.weight", "showo.lm_head.weight"


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch):
    """The official layout names its parts; here the names stand for tiny ones, and nothing reaches the network."""
    monkeypatch.setitem(official.LLMS, "Tiny-LLM", replace(showo2_tiny.config().llm, vocab_size=999))
    monkeypatch.setitem(official.LLMS, "Untied-LLM", showo2_tiny.config(tied=False).llm)
    monkeypatch.setitem(official.VISIONS, "tiny-siglip", showo2_tiny.config().vision)
    monkeypatch.setattr(official, "HEAD", replace(showo2_tiny.config().head, num_layers=10))

    def offline(name, **_):
        raise ConnectionError(f"offline, cannot reach {name}")

    monkeypatch.setattr(hub, "snapshot_download", offline)


@pytest.fixture(scope="module")
def model():
    return showo2_tiny.model()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    return tmp_path


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


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
def write(layout, weights, folder):
    names = list(weights)
    if layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout == "old bin":
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "safetensors":
        save_file({n: w for n, w in weights.items() if n != HEAD}, folder / "model.safetensors")
    else:
        end, save = (".bin", torch.save) if layout == "sharded bin" else (".safetensors", save_file)
        stem = "pytorch_model" if end == ".bin" else "diffusion_pytorch_model"
        shards = {f"{stem}-{k + 1:05}-of-00003{end}": names[k::3] for k in range(3)}
        for file, keys in shards.items():
            save({n: weights[n].clone() for n in keys}, folder / file)
        index = {"metadata": {}, "weight_map": {n: file for file, keys in shards.items() for n in keys}}
        (folder / f"{stem}{end}.index.json").write_text(json.dumps(index))


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
    assert torch.equal(loaded.showo.model.rotary_emb.inv_freq, model.showo.model.rotary_emb.inv_freq)  # fp32 still
    assert load_model(folder).dtype == torch.float32


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
    model = showo2_tiny.model(tied, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
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
    autoencoders = pytest.importorskip("flashu.models.showo2.autoencoders")
    scenes = pytest.importorskip("flashu.scenes.autoencoder").Autoencoder().eval()
    for parameter in scenes.parameters():
        parameter.data = parameter.data.bfloat16().float()
    scenes.mean.fill_(0.1)
    plain = autoencoders.PlainAutoencoder(scenes, 4, 8)
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


# -- damage --------------------------------------------------------------------------------------------------------
def cut(file, share):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def refused(folder, *says):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    for words in says:
        assert words in str(caught.value)


def test_all_wrong_keys_are_named_in_one_error(model, folder):
    weights = state(model)
    del weights["time_embed.mlp.0.weight"]
    weights["time_embed.mlp.9.weight"] = torch.zeros(2, 3)
    weights["fusion_proj.1.bias"] = torch.zeros(5)
    weights["fusion_proj.3.bias"][2] = float("nan")
    weights["diffusion_head_b.linear.bias"][0] = float("-inf")
    weights["time_embed.mlp.2.bias"] = weights["time_embed.mlp.2.bias"].long()
    weights[HEAD] = weights[HEAD] + 1
    write("bin", weights, folder)
    refused(
        folder,
        "1 missing: time_embed.mlp.0.weight [24, 256]",
        "1 unexpected: time_embed.mlp.9.weight [2, 3]",
        "1 of the wrong shape: fusion_proj.1.bias [5] where the model has [32]",
        "2 with NaN or infinite values: fusion_proj.3.bias, diffusion_head_b.linear.bias",
        "time_embed.mlp.2.bias torch.int64",
        f"1 differing from the weights they are tied to: {HEAD}",
        "nothing was loaded",
    )


def test_long_lists_are_cut_short(model, folder):
    write("bin", {f"module.{name}": value for name, value in state(model).items()}, folder)
    number = len(model.state_dict())
    refused(folder, f"{number} missing: showo", f"{number} unexpected: module.showo", f"and {number - 10} more")


def test_a_model_is_not_touched_by_weights_that_do_not_fit(model):
    with torch.device("meta"):
        empty = ShowO2(model.config)
    weights = state(model)
    weights["fusion_proj.1.bias"][0] = float("nan")
    with pytest.raises(CheckpointError):
        fill(empty, weights, "here")
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize("layout", ["bin", "old bin", "safetensors", "sharded bin", "sharded safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_files(layout, share, model, folder):
    write(layout, state(model), folder)
    cut(max(folder.glob("*model*[nrs]"), key=lambda f: (f.suffix != ".json", f.name)), share)
    refused(folder, "model")


def test_a_pickle_with_code_is_refused_and_not_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    refused(folder, "can run code")
    torch.save({"a": Code()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refused(folder, "can run code")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)], {"model": {"a": torch.zeros(1)}}])
def test_other_content(content, folder):
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "something else than named tensors")


def test_other_files(model, folder):
    refused(folder, "no weights", "found config.json")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "git lfs pull")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "git lfs pull")


def test_renamed_files(model, folder):
    write("bin", state(model), folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(folder, "not a whole safetensors file")
    (folder / "model.safetensors").unlink()
    write("safetensors", state(model), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin")


def test_broken_indices(model, folder):
    write("sharded bin", state(model), folder)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    refused(folder, "1 of 3 shards are missing: pytorch_model-00002-of-00003.bin")
    for index in ({}, {"weight_map": {}}, {"weight_map": {"a": "../../etc/passwd"}}, {"weight_map": {"a": 1}}):
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        refused(folder, "weight_map")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "list"),
        ("{}", "not a Show-o2 model"),
        ('{"model_type": "qwen2"}', "'qwen2'"),
        (json.dumps(OFFICIAL | {"llm_model_path": "Qwen/Qwen9-1T"}), "Qwen9-1T"),
        (json.dumps(OFFICIAL | {"llm_model_path": ""}), "llm_model_path is missing"),
        (json.dumps(OFFICIAL | {"hidden_size": 33}), "hidden_size is 33"),
        (json.dumps(OFFICIAL | {"add_time_embeds": False}), "add_time_embeds"),
        (json.dumps(OFFICIAL | {"llm_vocab_size": -1}), "cannot be built"),
        (json.dumps(OFFICIAL | {"patch_size": "two"}), "cannot be built"),
        (json.dumps(OFFICIAL | {"num_diffusion_layers": "ten"}), "cannot be built"),
    ],
)
def test_wrong_configs(config, says, folder):
    (folder / "config.json").write_text(config)
    refused(folder, says.replace("cannot be built", "not describe a model that can be built"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "unknown keys: extra"),
        ({"model_type": "bagel"}, "'bagel'"),
        ({"config": {}}, "can be built"),
        ({"config": 3}, "can be built"),
        ({"config": showo2_tiny.config().to_dict() | {"colour": 1}}, "colour"),
        ({"config": showo2_tiny.config().to_dict() | {"llm": {"vocab_size": 3}}}, "can be built"),
    ],
)
def test_wrong_configs_of_ours(change, says, model, tmp_path):
    save_model(model, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | change))
    refused(tmp_path, says)


def test_wrong_folders(tmp_path):
    refused(tmp_path, "no config.json")
    refused(tmp_path / "nowhere", "neither a folder here nor a hub id")
    (tmp_path / "file.bin").write_text("")
    refused(tmp_path / "file.bin", "give the folder it lies in")


# -- processors ----------------------------------------------------------------------------------------------------
def test_faults_around_the_model(model, folder):
    refused("showlab/none", "offline", "hf download showlab/none", "give its path")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json: put the one of Qwen/Tiny-LLM there"):
        load_processor(folder)
    showo2_tiny.tokenizer().save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"put Wan2\.1_VAE\.pth there"):
        load_processor(folder)
    assert load_processor(folder, autoencoder=None).text.ids.pad == 261
    (folder / "config.json").write_text(json.dumps(OFFICIAL | {"llm_vocab_size": 200}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_processor(folder, autoencoder=None)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_processor(folder, autoencoder=None)


def test_faults_in_a_folder_of_ours(model, tmp_path):
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="saved without them"):
        load_processor(tmp_path)
    save_model(model, tmp_path, Processor(Text.qwen(showo2_tiny.tokenizer(), 12), None))
    data = json.loads((tmp_path / "config.json").read_text())
    wrong = {"special_ids": {"bos": 1}, "defaults": {"steps": 0}, "chat": {"user": "", "x": ""}, "autoencoder": "magic"}
    for key, value in wrong.items():
        (tmp_path / "config.json").write_text(json.dumps(data | {key: value}))
        with pytest.raises(CheckpointError):
            load_processor(tmp_path)


# -- names ---------------------------------------------------------------------------------------------------------
def test_names(tmp_path):
    assert registry.resolve("scenes").where == "in the package"
    assert registry.resolve("showlab/show-o2-7B").where == "Hugging Face hub, showlab/show-o2-7B"
    assert registry.resolve("someone/else").source == "someone/else"
    assert registry.resolve(tmp_path).where == f"folder {tmp_path}"
    with pytest.raises(CheckpointError, match="did you mean 'scenes'"):
        registry.resolve("scene")
    with pytest.raises(CheckpointError, match="known are scenes"):
        registry.resolve("/no/such/folder")


def test_a_model_is_opened_by_its_folder(model, tmp_path):
    save_model(model, tmp_path, Processor(Text.qwen(showo2_tiny.tokenizer(), 12), None))
    opened, processor = registry.open_model(tmp_path, dtype=torch.bfloat16)
    assert opened.dtype == torch.bfloat16
    assert processor.text.max_text == 12
    assert isinstance(opened, nn.Module)
