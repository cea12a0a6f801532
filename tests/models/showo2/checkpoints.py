"""Tiny checkpoint folders in the official layout, to be read or damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

from flashu.models import hub
from flashu.models.showo2 import official
from tests.models.showo2 import showo2_tiny

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
HEAD = "showo.lm_head.weight"


def official_folder(folder, monkeypatch):
    """Writes config.json. The parts it names stand for tiny ones, and nothing reaches the network."""
    monkeypatch.setitem(official.LLMS, "Tiny-LLM", replace(showo2_tiny.config().llm, vocab_size=999))
    monkeypatch.setitem(official.LLMS, "Untied-LLM", showo2_tiny.config(tied=False).llm)
    monkeypatch.setitem(official.VISIONS, "tiny-siglip", showo2_tiny.config().vision)
    monkeypatch.setattr(official, "HEAD", replace(showo2_tiny.config().head, num_layers=10))

    def offline(name, **_):
        raise ConnectionError(f"offline, cannot reach {name}")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    (folder / "config.json").write_text(json.dumps(OFFICIAL))
    return folder


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


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


def cut(file, share):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
