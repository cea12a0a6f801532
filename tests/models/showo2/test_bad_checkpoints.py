"""Damaged, wrong and dangerous checkpoints: each is refused in one clear sentence, and nothing is loaded."""

import json
import os

import pytest
import torch

from flashu.errors import CheckpointError
from flashu.models.registry import open_model
from flashu.models.showo2.load import load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import Text
from flashu.models.weights import fill
from tests.models.showo2 import showo2_tiny
from tests.models.showo2.checkpoints import HEAD, OFFICIAL, cut, official_folder, state, write


@pytest.fixture(scope="module")
def model():
    return showo2_tiny.model()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return official_folder(tmp_path, monkeypatch)


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


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "qwen2"}, "describes 'qwen2', not one of Show-o2"),
        ({}, "describes 'an unknown model', not one of Show-o2"),
    ],
)
def test_a_folder_of_no_family(config, says, tmp_path):
    """Opened by its path alone."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        open_model(tmp_path)


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
