"""Checkpoints: the official layouts load to the same weights, what is saved comes back; others are refused in one clear
sentence, and nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.errors import CheckpointError
from flashu.models import registry
from flashu.models.showo.codecs import CellCodes
from flashu.models.showo.load import load_model, load_processor, save_model
from flashu.models.showo.magvit import MagVit
from flashu.models.showo.processor import Processor
from flashu.models.showo.public import ShowO
from flashu.models.small_vq import SmallVQ
from tests.models.showo.checkpoints import official_folder, state, write
from tests.models.showo.golden.recorded import IDS, SIZES, close, goldens, processor, tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return official_folder(tmp_path, monkeypatch)


# -- what is read ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["bin", "sharded bin", "safetensors"])
def test_every_official_layout(layout: str, folder: Path) -> None:
    write(layout, state(), folder)
    model = ShowO.from_pretrained(folder, autoencoder=None)
    assert model.config.llm == tiny_config().llm
    assert model.config.codes == tiny_config().codes
    assert model.config.max_text == 128
    assert {name: value for name, value in model.state_dict().items() if not torch.equal(value, state()[name])} == {}
    ids = goldens()["b.input_ids"]
    close(model.showo.model.rotary_emb.inv_freq, goldens()["b.rope_inv_freq"], 0)
    assert model.embed_tokens(ids).shape == (*ids.shape, SIZES["phi_config"]["hidden_size"])
    text = model.processor.text  # type: ignore[union-attr]
    assert {name: getattr(text.ids, name) for name in ("pad", "soi", "eoi", "t2i", "mmu", "sot", "eot")} == {
        name: IDS[name] for name in ("pad", "soi", "eoi", "t2i", "mmu", "sot", "eot")
    }
    assert text.prompt("w3 w4") == [IDS["t2i"], IDS["sot"], 3, 4, IDS["eot"]]


def test_the_family_is_found_by_its_config(folder: Path) -> None:
    write("safetensors", state(), folder)
    assert registry.family_of(registry.resolve(folder)).name == "showo"
    (folder / "config.json").write_text(json.dumps({"llm_model_path": "Qwen/Qwen2.5-1.5B-Instruct"}))
    assert registry.family_of(registry.resolve(folder)).name == "showo2"


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model, around = tiny_model(remasking="maskgit"), processor()
    torch.manual_seed(0)
    around.vae = CellCodes(SmallVQ(SIZES["codebook_size"]).eval())
    around.vae.module.codebook.normal_()
    side = 16 * round(SIZES["num_vq_tokens"] ** 0.5)
    defaults = flashu.models.defaults.GenerationDefaults(5, 3.0, 1.0, side, side, 4)
    around = Processor(around.text, around.vae, defaults)
    save_model(model, tmp_path, around)
    back = flashu.load(tmp_path)
    assert back.model.config == model.config
    assert back.processor.defaults == defaults
    assert back.processor.text.ids == around.text.ids
    drawn = back.generate("w1 w2", seed=3)
    assert torch.equal(drawn.latents, flashu.Engine(model, around).generate("w1 w2", seed=3).latents)
    assert drawn.images[0].size == (side, side)
    back.model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_magvit_of_other_sizes_is_refused(tmp_path: Path) -> None:
    small = MagVit(32, 6, ((1, 1), (1, 1)), ((1, 1), (1, 1)))
    around = processor()
    around.vae = small
    save_model(tiny_model(), tmp_path, around)
    with pytest.raises(CheckpointError, match="magvit: the weights do not fit"):
        load_processor(tmp_path)


@pytest.mark.parametrize("name", ["showlab/show-o", "showlab/show-o-512x512", "showlab/show-o-w-clip-vit-512x512"])
def test_official_names_are_planned_without_weights(name: str) -> None:
    checkpoint = registry.resolve(name)
    sizes = registry.family_of(checkpoint).sizes(checkpoint)
    count = 1024 if "512" in name else 256
    assert sizes.image_tokens(None, None) == count
    assert sizes.padded(count) == 129 + count + 2
    assert sizes.spec.codes == (50305, 58497)
    from flashu.plan.explain import tabulate
    from flashu.plan.recipe import exact

    table = tabulate(sizes, exact(), "generation", steps=10)
    assert [f.tokens for f in table.forwards] == [count + 2] * 10
    shown = 576 if "clip" in name else count
    asked = tabulate(sizes, exact(), "understanding", question_tokens=20)
    assert asked.forwards[0].tokens == shown + 22


# -- what is refused -------------------------------------------------------------------------------------------------
def refused(folder: Path, *says: str, load: Callable[[Path], Any] = load_model) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for words in says:
        assert words in str(caught.value)


def test_all_wrong_keys_are_named_in_one_error(folder: Path) -> None:
    weights: dict[str, Tensor] = state()
    del weights["showo.lm_head.bias"]
    weights["showo.model.layers.9.mlp.fc1.bias"] = torch.zeros(2)
    weights["showo.model.layers.0.mlp.fc1.bias"] = torch.zeros(5)
    weights["showo.model.layers.1.mlp.fc2.bias"][2] = float("nan")
    write("bin", weights, folder)
    refused(
        folder,
        f"1 missing: showo.lm_head.bias [{SIZES['vocab_size']}]",
        "1 unexpected: showo.model.layers.9.mlp.fc1.bias [2]",
        "showo.model.layers.0.mlp.fc1.bias [5] where the model has [128]",
        "showo.model.layers.1.mlp.fc2.bias",
        "nothing was loaded",
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"llm_model_path": "somewhere/Phi-3"}, "only phi-1_5 can be read"),
        ({"vocab_size": None}, "vocab_size must be a whole number"),
        ({"codebook_size": 63}, "63 codes and the mask make 224"),
        ({"num_vq_tokens": 15}, "not the codes of a square image"),
        ({"mask_token_id": 3}, "mask_token_id is 3, but the last id 224"),
    ],
)
def test_configs_that_contradict_themselves(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(official_folder(tmp_path, monkeypatch, **changes), says)


def test_a_missing_projector_or_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("bin", state(), official_folder(tmp_path, monkeypatch, w_clip_vit=True))
    refused(tmp_path, "4 missing: mm_projector.0.weight [64, 1024]")
    extra = {"mm_projector.0.weight": torch.zeros(64, 1024)}
    write("bin", state() | extra, official_folder(tmp_path, monkeypatch))
    refused(tmp_path, "1 unexpected: mm_projector.0.weight")


def test_folders_without_a_part(folder: Path) -> None:
    refused(folder, "no weights")
    refused(folder, "has no image tokenizer: put the files of showlab/magvitv2", load=load_processor)
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json: put the one of microsoft/phi-1_5 there", load=load_processor)
    (folder / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    refused(folder, "describes 'Other', not a Show-o model")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"].pop("w7")
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=r"not Phi-1\.5's of 150 tokens"):
        load_processor(folder, autoencoder=None)


def test_our_folders_with_wrong_keys(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    refused(tmp_path, "lacks chat, clip, codec", load=load_processor)
    for change, says in (
        ({"extra": 1}, "unknown keys: extra"),
        ({"config": data["config"] | {"remasking": "other"}}, "remasking must be"),
        ({"config": data["config"] | {"codebook_size": 3}}, "does not describe a model that can be built"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(data | change))
        refused(tmp_path, says)
