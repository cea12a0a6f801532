"""Show-o checkpoints: the official layout and ours, read; ours, written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tokenizers import Tokenizer

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.hub import checkpoint_folder
from flashu.models.layers import RotaryEmbedding
from flashu.models.showo.codecs import MAGVIT, open_codec, save_codec
from flashu.models.showo.config import ShowOConfig
from flashu.models.showo.magvit import HUB_ID, MagVit
from flashu.models.showo.model import ShowO
from flashu.models.showo.official import official_config, official_defaults
from flashu.models.showo.processor import Codec, Processor
from flashu.models.showo.text import ChatTemplate, SpecialIds, Text
from flashu.models.sizes import build, check_ids, check_limits, described
from flashu.models.weights import check_savable, fill, read_json, read_weights, weight_files, write_weights

Source = str | os.PathLike[str]
Device = torch.device | str | None
Remasking = Literal["original", "maskgit"]
Model = TypeVar("Model", bound=ShowO)
REQUIRED = {"format", "model_type", "config"}
PROCESSOR = {"special_ids", "chat", "max_question", "defaults", "codec", "clip"}
SMALL_FILES = ("config.json", "tokenizer.json", "vq.safetensors", "magvit/*", "clip/*")
TOKENIZER = "microsoft/phi-1_5"


@dataclass(frozen=True)
class Manifest:
    """A folder's config.json, understood. ``data`` is the file as it stands."""

    folder: Path
    config: ShowOConfig
    official: bool
    data: dict[str, Any]


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    device: Device = None,
    cls: type[Model] = ShowO,  # type: ignore[assignment]
    remasking: Remasking | None = None,
    quantize: str | None = None,
) -> Model:
    """A model from a folder or hub id, in eval mode; ``dtype`` None = as stored, ``remasking``: see `ShowOConfig`, None
    = as the checkpoint says. ``quantize``: as it is read.
    Errors: ``CheckpointError``."""
    manifest = read_manifest(checkpoint_folder(source))
    config = manifest.config if remasking is None else replace(manifest.config, remasking=remasking)
    with torch.device("meta"):
        model = cls(config)
    fill(model, read_weights(weight_files(manifest.folder)), manifest.folder, dtype, device, quantize)
    model.showo.model.rotary_emb = rotary_of(config).to(device or "cpu")
    return model.eval()


def rotary_of(config: ShowOConfig) -> RotaryEmbedding:
    """The frequencies, which no checkpoint holds."""
    rotary = RotaryEmbedding(config.llm.rotary_dim, config.llm.rope_theta)
    rotary.exact = True
    return rotary


def load_processor(
    source: Source, device: Device = None, autoencoder: Source | None = "auto", clip: Source | None = "auto"
) -> Processor:
    """What surrounds the model of a folder or hub id.

    ``autoencoder`` "auto": the folder's own, or for an official checkpoint without one, MAGVIT-v2 from the hub; a path
    or hub id: that MAGVIT-v2; None: none (text and codes only). ``clip``: the same for the vision tower of a model that
    is shown pictures by features.
    """
    manifest = read_manifest(checkpoint_folder(source, SMALL_FILES))
    if manifest.official:
        text, defaults = _official_text(manifest), official_defaults(manifest.config)
    else:
        text, defaults = _our_text(manifest)
    if text.ids.pad != manifest.config.text_tokens:
        raise CheckpointError(
            f"{manifest.folder}: the tokenizer has {text.ids.pad} tokens before [PAD], the model "
            f"{manifest.config.text_tokens}: they do not belong together"
        )
    codec = _codec(manifest, autoencoder, device)
    tower = None if manifest.config.clip_size is None else _clip(manifest, clip, device)
    return Processor(text, codec, defaults, tower)


def save_model(model: ShowO, folder: Source, processor: Processor | None = None) -> None:
    """Writes our format: model.safetensors, config.json and, with a processor, tokenizer.json and the image tokenizer.
    A vision tower is named, not copied."""
    check_savable(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"format": "flashu", "model_type": "showo", "config": model.config.to_dict()}
    if processor is not None:
        text = processor.text
        data |= {"special_ids": asdict(text.ids), "chat": asdict(text.chat), "max_question": text.max_question}
        data |= {
            "defaults": asdict(processor.defaults),
            "clip": None if processor.clip is None else processor.clip.name,
        }
        data["codec"] = None if processor.vae is None else save_codec(processor.vae, folder)
        text.tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Understands config.json and tries the sizes in it; nothing is allocated."""
    data = read_json(folder / "config.json")
    ours = data.get("format") == "flashu"
    kind = data.get("model_type") or data.get("_class_name") or "an unknown model"
    if (ours and kind != "showo") or (not ours and "codebook_size" not in data):
        raise CheckpointError(f"{folder}: config.json describes {kind!r}, not a Show-o model; is it the right folder?")
    if ours and (wrong := (data.keys() - REQUIRED - PROCESSOR) | (REQUIRED - data.keys())):
        raise CheckpointError(f"{folder}: config.json has missing or unknown keys: {', '.join(sorted(wrong))}")
    with described(folder), torch.device("meta"):
        config = ShowOConfig.from_dict(data["config"]) if ours else official_config(data)
        ShowO(config)
    return Manifest(folder, config, not ours, data)


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
    return Text(tokenizer, ids, chat, manifest.config.max_text, data["max_question"]), defaults


def _official_text(manifest: Manifest) -> Text:
    folder, file = manifest.folder, manifest.folder / "tokenizer.json"
    if not file.is_file():
        try:
            file = checkpoint_folder(TOKENIZER, ("tokenizer.json",)) / "tokenizer.json"
        except CheckpointError as e:
            raise CheckpointError(f"{folder} has no tokenizer.json: put the one of {TOKENIZER} there. {e}") from e
    return Text.phi(_tokenizer(file), manifest.config.text_tokens, manifest.config.max_text)


def _tokenizer(file: Path) -> Tokenizer:
    text = json.dumps(read_json(file))
    try:
        return Tokenizer.from_str(text)
    except Exception as e:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: not a tokenizer ({e})") from e


def _codec(manifest: Manifest, wanted: Source | None, device: Device) -> Codec | None:
    if wanted is None:
        return None
    if wanted != "auto":
        return MagVit.load(wanted, device=device)
    if not manifest.official:
        kind = manifest.data["codec"]
        return None if kind is None else open_codec(kind, manifest.folder, device)
    own = manifest.folder / MAGVIT
    if own.is_dir():
        return MagVit.load(own, device=device)
    try:
        return MagVit.load(HUB_ID, device=device)
    except CheckpointError as e:
        raise CheckpointError(
            f"{manifest.folder} has no image tokenizer: put the files of {HUB_ID} into a folder {MAGVIT} there, or "
            f"name one (autoencoder=...). {e}"
        ) from e


def _clip(manifest: Manifest, wanted: Source | None, device: Device) -> Any:
    from flashu.models.showo.clip import HUB_ID as CLIP
    from flashu.models.showo.clip import ClipFeatures

    if wanted is None:
        return None
    own = manifest.folder / "clip"
    if wanted == "auto":
        wanted = own if own.is_dir() else manifest.data.get("clip") or CLIP
    tower = ClipFeatures.load(wanted, device=device)
    if tower.size != manifest.config.clip_size:
        raise CheckpointError(
            f"{wanted}: its features have {tower.size} channels, the model takes {manifest.config.clip_size}: give "
            "the vision tower it was trained with (clip=...)"
        )
    return tower
