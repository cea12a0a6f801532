"""Show-o2 checkpoints: the official layout and ours, read; ours, written."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.hub import checkpoint_folder
from flashu.models.pictures import Autoencoder
from flashu.models.showo2.autoencoders import find_wan, open_autoencoder, save_autoencoder
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.official import max_text, official_config, official_defaults
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, SpecialIds, Text
from flashu.models.showo2.vae import HUB_ID, WanAutoencoder
from flashu.models.sizes import build, check_ids, check_limits, described
from flashu.models.weights import (
    check_savable,
    checkpoint_hash,
    fill,
    read_json,
    read_weights,
    weight_files,
    write_weights,
)

__all__ = ["checkpoint_hash", "load_model", "load_processor", "save_model"]

Source = str | os.PathLike[str]
Device = torch.device | str | None
Model = TypeVar("Model", bound=ShowO2)
REQUIRED = {"format", "model_type", "config"}
PROCESSOR = {"special_ids", "chat", "max_text", "max_question", "defaults", "autoencoder"}
SMALL_FILES = ("config.json", "tokenizer.json", "autoencoder.safetensors", "Wan2.1_VAE.pth", "vae/*")


@dataclass(frozen=True)
class Manifest:
    """A folder's config.json, understood. ``data`` is the file as it stands."""

    folder: Path
    config: ShowO2Config
    official: bool
    data: dict[str, Any]


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    device: Device = None,
    cls: type[Model] = ShowO2,  # type: ignore[assignment]
    exact_rope: bool | None = None,
    quantize: str | None = None,
) -> Model:
    """A model from a folder or hub id, in eval mode; ``dtype`` None = as stored; ``quantize``: as it is read. Errors:
    ``CheckpointError``.

    The rotary frequencies get the weights' dtype, as by a cast, which is what the original's text-to-image script does;
    ``exact_rope`` keeps them in fp32 (None = as config.json says, which for the official ones is no).
    """
    manifest = read_manifest(checkpoint_folder(source))
    config = manifest.config if exact_rope is None else replace(manifest.config, exact_rope=exact_rope)
    with torch.device("meta"):
        model = cls(config)
    fill(model, read_weights(weight_files(manifest.folder)), manifest.folder, dtype, device, quantize)
    fill_buffers(model, device)
    return model.eval()


def load_processor(source: Source, device: Device = None, autoencoder: Source | None = "auto") -> Processor:
    """What surrounds the model of a folder or hub id.

    ``autoencoder`` "auto": the folder's own, or for an official checkpoint without one, Wan2.1 from the hub; a path
    or hub id: that Wan2.1; None: none (text only).
    """
    manifest = read_manifest(checkpoint_folder(source, SMALL_FILES))
    if manifest.official:
        text, defaults = _official_text(manifest), official_defaults(manifest.config)
    else:
        text, defaults = _our_text(manifest)
    if text.tokenizer.get_vocab_size() > manifest.config.llm.vocab_size:
        raise CheckpointError(
            f"{manifest.folder}: the tokenizer has {text.tokenizer.get_vocab_size()} tokens, the model "
            f"{manifest.config.llm.vocab_size}: they do not belong together"
        )
    return Processor(text, _autoencoder(manifest, autoencoder, device), defaults)


def save_model(model: ShowO2, folder: Source, processor: Processor | None = None) -> None:
    """Writes our format: model.safetensors, config.json and, with a processor, tokenizer.json and the autoencoder."""
    check_savable(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"format": "flashu", "model_type": "showo2", "config": model.config.to_dict()}
    if processor is not None:
        text = processor.text
        data |= {"special_ids": asdict(text.ids), "chat": asdict(text.chat)}
        data |= {"max_text": text.max_text, "max_question": text.max_question, "defaults": asdict(processor.defaults)}
        data["autoencoder"] = None if processor.vae is None else save_autoencoder(processor.vae, folder)
        text.tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Understands config.json and tries the sizes in it; nothing is allocated."""
    data = read_json(folder / "config.json")
    ours = data.get("format") == "flashu"
    if not ours and "llm_model_path" not in data:
        kind = data.get("model_type") or data.get("_class_name") or "an unknown model"
        raise CheckpointError(f"{folder}: config.json describes {kind!r}, not a Show-o2 model; is it the right folder?")
    if ours and (wrong := (data.keys() - REQUIRED - PROCESSOR) | (REQUIRED - data.keys())):
        raise CheckpointError(f"{folder}: config.json has missing or unknown keys: {', '.join(sorted(wrong))}")
    if ours and data["model_type"] != "showo2":
        raise CheckpointError(f"{folder}: config.json describes a {data['model_type']!r} model, not 'showo2'")
    with described(folder), torch.device("meta"):
        config = ShowO2Config.from_dict(data["config"]) if ours else official_config(data)
        ShowO2(config)
    return Manifest(folder, config, not ours, data)


def fill_buffers(model: ShowO2, device: Device = None) -> None:
    """Computes the buffers no checkpoint holds.

    They depend on head sizes, theta and the number of positions alone, so a real model that is one layer deep and
    one head wide has the same ones.
    """
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and dropped
        small = dict(type(model)(_shrunk(model.config)).named_buffers(remove_duplicate=False))
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            value = small[re.sub(r"\.\d+\.", ".0.", name)].to(device or "cpu", copy=True)
            if value.is_floating_point() and not model.config.exact_rope:
                value = value.to(model.dtype)
            nn.Module.__setattr__(model.get_submodule(owner), leaf, value)


def _shrunk(config: ShowO2Config) -> ShowO2Config:
    one: dict[str, Any] = {"intermediate_size": 1, "num_attention_heads": 1}
    width = config.llm.hidden_size // config.llm.num_attention_heads
    llm = replace(config.llm, **one, vocab_size=1, hidden_size=width, num_hidden_layers=1, num_key_value_heads=1)
    head = replace(config.head, **one, hidden_size=config.head.head_dim, num_layers=1, num_key_value_heads=1)
    vision = replace(config.vision, **one, hidden_size=1, num_hidden_layers=1)
    return replace(config, llm=llm, head=head, vision=vision)


def _our_text(manifest: Manifest) -> tuple[Text, GenerationDefaults]:
    data, folder = manifest.data, manifest.folder
    if lacking := PROCESSOR - data.keys():
        raise CheckpointError(f"{folder}: config.json lacks {', '.join(sorted(lacking))}: it was saved without them")
    tokenizer = _tokenizer(folder / "tokenizer.json")
    with described(folder, "config.json holds what cannot be"):
        ids, chat = SpecialIds(**data["special_ids"]), ChatTemplate(**data["chat"])
        defaults = build(GenerationDefaults, "defaults", data["defaults"])
        check_ids(ids, manifest.config.llm.vocab_size)
        check_limits(data)
    return Text(tokenizer, ids, chat, data["max_text"], data["max_question"]), defaults


def _official_text(manifest: Manifest) -> Text:
    folder, file = manifest.folder, manifest.folder / "tokenizer.json"
    if not file.is_file():
        llm = "Qwen/" + str(manifest.data["llm_model_path"]).rstrip("/").rsplit("/", 1)[-1]
        try:
            file = checkpoint_folder(llm, ("tokenizer.json",)) / "tokenizer.json"
        except CheckpointError as e:
            raise CheckpointError(f"{folder} has no tokenizer.json: put the one of {llm} there. {e}") from e
    return Text.qwen(_tokenizer(file), max_text(manifest.config))


def _tokenizer(file: Path) -> Tokenizer:
    text = json.dumps(read_json(file))
    try:
        return Tokenizer.from_str(text)
    except Exception as e:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: not a tokenizer ({e})") from e


def _autoencoder(manifest: Manifest, wanted: Source | None, device: Device) -> Autoencoder | None:
    if wanted is None:
        return None
    if wanted != "auto":
        return WanAutoencoder.load(wanted, device=device)
    if not manifest.official:
        kind = manifest.data["autoencoder"]
        return None if kind is None else open_autoencoder(kind, manifest.folder, device)
    found = find_wan(manifest.folder)
    try:
        return WanAutoencoder.load(found or HUB_ID, device=device)
    except CheckpointError as e:
        if found is not None:
            raise
        raise CheckpointError(
            f"{manifest.folder} has no autoencoder: put Wan2.1_VAE.pth there, or name one (autoencoder=...). {e}"
        ) from e
