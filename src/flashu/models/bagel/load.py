"""BAGEL checkpoints: the official layout and ours, read; ours, written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tokenizers import Tokenizer

from flashu.errors import CheckpointError, FlashUError
from flashu.models.bagel.autoencoder import FILE as AE_FILE
from flashu.models.bagel.autoencoder import FluxAutoencoder
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.official import official_config, official_defaults
from flashu.models.bagel.processor import Processor, Resizing
from flashu.models.bagel.text import SpecialIds, Text, Thinking
from flashu.models.defaults import GenerationDefaults
from flashu.models.hub import checkpoint_folder
from flashu.models.layers import RotaryEmbedding
from flashu.models.pictures import Autoencoder
from flashu.models.sizes import build, check_ids, check_limits, described
from flashu.models.small_autoencoder import FILE as SMALL_FILE
from flashu.models.small_autoencoder import PlainAutoencoder, open_small
from flashu.models.weights import check_savable, fill, read_json, read_weights, weight_files, write_weights

Source = str | os.PathLike[str]
Device = torch.device | str | None
Parts = Literal["all", "understanding"]
Model = TypeVar("Model", bound=Bagel)

REQUIRED = {"format", "model_type", "config"}
PROCESSOR = {"special_ids", "thinking", "max_text", "defaults", "drawn", "viewed", "drawing", "editing", "autoencoder"}
SMALL_FILES = ("*.json", SMALL_FILE, AE_FILE)
PATTERNS = ("*.json", "*.safetensors")
WEIGHTS = "ema.safetensors"
DRAWING_PARTS = ("time_embedder.", "vae2llm.", "llm2vae.", "latent_pos_embed.")
FLUX, SCENES = "flux", "scenes"


@dataclass(frozen=True)
class Manifest:
    """A folder's config files, understood. ``data`` is its config.json as it stands."""

    folder: Path
    config: BagelConfig
    official: bool
    data: dict[str, Any]


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    device: Device = None,
    cls: type[Model] = Bagel,  # type: ignore[assignment]
    parts: Parts = "all",
    quantize: str | None = None,
) -> Model:
    """A model from a folder or hub id, in eval mode; ``dtype`` None = as stored. ``parts`` "understanding": without
    the generation expert and the latent path, whose weights are not read. ``quantize``: as it is read.
    Errors: ``CheckpointError``."""
    if parts not in ("all", "understanding"):
        raise FlashUError(f"parts are 'all' or 'understanding', not {parts!r}")
    manifest = read_manifest(checkpoint_folder(source, PATTERNS))
    config = manifest.config if parts == "all" else replace(manifest.config, visual_gen=False)
    with torch.device("meta"):
        model = cls(config)
    file = manifest.folder / WEIGHTS
    weights = read_weights([file] if manifest.official and file.is_file() else weight_files(manifest.folder))
    if not config.visual_gen:
        weights = {name: value for name, value in weights.items() if not _draws(name)}
    fill(model, weights, manifest.folder, dtype, device, quantize)
    fill_buffers(model, device)
    return model.eval()


def fill_buffers(model: Bagel, device: Device = None) -> None:
    """Computes the rotary frequencies, which no checkpoint holds."""
    llm = model.config.llm
    decoder = model.language_model.model
    decoder.rotary_emb = RotaryEmbedding(llm.head_dim, llm.rope_theta).to(device or "cpu")
    decoder.rotary_emb.exact = True


def load_processor(source: Source, device: Device = None, autoencoder: Source | None = "auto") -> Processor:
    """What surrounds the model of a folder or hub id. ``autoencoder`` "auto": the folder's own; a path or hub id: that
    one of FLUX's form; None: none (latents only)."""
    manifest = read_manifest(checkpoint_folder(source, SMALL_FILES))
    tokenizer = _tokenizer(manifest.folder)
    config = manifest.config
    if manifest.official:
        vae = _autoencoder(manifest, autoencoder, device)
        processor = Processor.usual(config, official_defaults(config), Text.qwen(tokenizer), vae)
    else:
        processor = _our_processor(manifest, tokenizer, autoencoder, device)
    if tokenizer.get_vocab_size() > config.llm.vocab_size:
        raise CheckpointError(
            f"{manifest.folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model "
            f"{config.llm.vocab_size}: they do not belong together"
        )
    return processor


def save_model(model: Bagel, folder: Source, processor: Processor | None = None) -> None:
    """Writes our format: model.safetensors, config.json and, with a processor, tokenizer.json and the autoencoder."""
    check_savable(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"format": "flashu", "model_type": "bagel", "config": model.config.to_dict()}
    if processor is not None:
        text = processor.text
        data |= {"special_ids": asdict(text.ids), "max_text": text.max_text}
        data["thinking"] = None if text.thinking is None else asdict(text.thinking)
        names = ("defaults", "drawn", "viewed", "drawing", "editing")
        data |= {name: asdict(getattr(processor, name)) for name in names}
        data["autoencoder"] = _save_autoencoder(processor.vae, folder)
        text.tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Understands the config files and tries the sizes in them; nothing is allocated."""
    file = folder / "config.json"
    data = read_json(file) if file.is_file() or not (folder / "llm_config.json").is_file() else {}
    ours = data.get("format") == "flashu"
    if ours and (wrong := (data.keys() - REQUIRED - PROCESSOR) | (REQUIRED - data.keys())):
        raise CheckpointError(f"{folder}: config.json has missing or unknown keys: {', '.join(sorted(wrong))}")
    if data and data.get("model_type", "bagel") != "bagel":
        raise CheckpointError(f"{folder}: config.json describes a {data['model_type']!r} model, not 'bagel'")
    with described(folder, "its config files describe no model that can be built"), torch.device("meta"):
        config = BagelConfig.from_dict(data["config"]) if ours else _official(folder, data)
        Bagel(config)
    return Manifest(folder, config, not ours, data)


def _official(folder: Path, data: dict[str, Any]) -> BagelConfig:
    """The language model's and the ViT's sizes stand in files of their own, or in config.json."""

    def part(name: str) -> dict[str, Any]:
        file = folder / f"{name}.json"
        if not file.is_file() and isinstance(data.get(name), dict):
            return data[name]
        return read_json(file)

    return official_config(part("llm_config"), part("vit_config"), data)


def _draws(name: str) -> bool:
    return "_moe_gen" in name or name.startswith(DRAWING_PARTS)


def _our_processor(manifest: Manifest, tokenizer: Tokenizer, wanted: Source | None, device: Device) -> Processor:
    data, folder = manifest.data, manifest.folder
    if lacking := PROCESSOR - data.keys():
        raise CheckpointError(f"{folder}: config.json lacks {', '.join(sorted(lacking))}: it was saved without them")
    with described(folder, "config.json holds what cannot be"):
        thinking = None if data["thinking"] is None else Thinking(**data["thinking"])
        text = Text(tokenizer, SpecialIds(**data["special_ids"]), thinking, data["max_text"])
        check_ids(text.ids, manifest.config.llm.vocab_size)
        check_limits(data)
        defaults = build(GenerationDefaults, "defaults", data["defaults"])
        sizes = Resizing(**data["drawn"]), Resizing(**data["viewed"])
        steering = Steering.of(data["drawing"]), Steering.of(data["editing"])
    return Processor(text, _autoencoder(manifest, wanted, device), defaults, *sizes, *steering)


def _tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    text = json.dumps(read_json(file))
    try:
        return Tokenizer.from_str(text)
    except Exception as e:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: not a tokenizer ({e})") from e


def _autoencoder(manifest: Manifest, wanted: Source | None, device: Device) -> Autoencoder | None:
    if wanted is None:
        return None
    kind = FLUX if manifest.official or wanted != "auto" else manifest.data["autoencoder"]
    if kind is None:
        return None
    if kind not in (FLUX, SCENES):
        raise CheckpointError(f"{manifest.folder}: the autoencoder {kind!r} is unknown; there are {FLUX} and {SCENES}")
    if kind == SCENES:
        vae: Autoencoder = open_small(manifest.folder, device)
    else:
        vae = FluxAutoencoder.load(manifest.folder if wanted == "auto" else wanted)
        vae.to(device or "cpu")
    config = manifest.config
    if vae.latent_channels != config.z_channels or vae.factor != config.downsample:
        raise CheckpointError(
            f"{manifest.folder}: the autoencoder has {vae.latent_channels} channels and {vae.factor} pixels a cell, "
            f"the model {config.z_channels} and {config.downsample}: they do not belong together"
        )
    return vae


def _save_autoencoder(autoencoder: Autoencoder | None, folder: Path) -> str | None:
    if autoencoder is None:
        return None
    if isinstance(autoencoder, PlainAutoencoder):
        autoencoder.module.save(folder / SMALL_FILE)
        return SCENES
    if isinstance(autoencoder, FluxAutoencoder):
        autoencoder.save(folder)
        return FLUX
    raise TypeError(f"a {type(autoencoder).__name__} cannot be saved: there is no format for it")
