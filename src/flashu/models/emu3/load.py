"""Emu3 checkpoints: the official layouts and ours, read; ours, written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config, VQConfig
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.official import (
    AUTHORS,
    TRANSFORMERS,
    VISION,
    official_config,
    official_defaults,
    official_vq,
    renamed,
    vq_weights,
)
from flashu.models.emu3.processor import SHOWN, Codec, Processor
from flashu.models.emu3.text import Template, Text
from flashu.models.emu3.tiktoken import FILE as TIKTOKEN
from flashu.models.emu3.tiktoken import from_tiktoken
from flashu.models.emu3.vq import VQ
from flashu.models.hub import PATTERNS, checkpoint_folder
from flashu.models.layers import RotaryEmbedding
from flashu.models.sizes import build, check_limits, described
from flashu.models.weights import check_savable, fill, read_json, read_weights, weight_files, write_weights

Source = str | os.PathLike[str]
Device = torch.device | str | None
Model = TypeVar("Model", bound=Emu3)
VQ_HUB = "BAAI/Emu3-VisionTokenizer"
VQ_FILE, SMALL_FILE = "image_tokenizer.safetensors", "vq.safetensors"
VQ_FOLDERS = ("Emu3-VisionTokenizer", "vq")
"""Where the authors' image tokenizer may lie in a folder of their language model."""
FILES = (*PATTERNS, TIKTOKEN, "preprocessor_config.json", *(f"{name}/*" for name in VQ_FOLDERS))
SMALL_FILES = ("*.json", TIKTOKEN, VQ_FILE, SMALL_FILE)
REQUIRED = {"format", "model_type", "config"}
PROCESSOR = {"template", "max_text", "max_question", "defaults", "area", "top_k", "codec"}
MOVQ, SMALL = "movq", "small"


@dataclass(frozen=True)
class Manifest:
    """A folder's config.json, understood. ``data`` is the file as it stands."""

    folder: Path
    config: Emu3Config
    data: dict[str, Any]

    @property
    def official(self) -> bool:
        return self.data.get("format") != "flashu"

    @property
    def apart(self) -> bool:
        """Whether the image tokenizer is a checkpoint of its own."""
        return self.data["model_type"] == AUTHORS


def read_manifest(folder: Path) -> Manifest:
    """Understands config.json and tries the sizes in it; nothing is allocated."""
    data = read_json(folder / "config.json")
    ours = data.get("format") == "flashu"
    if ours and (wrong := (data.keys() - REQUIRED - PROCESSOR) | (REQUIRED - data.keys())):
        raise CheckpointError(f"{folder}: config.json has missing or unknown keys: {', '.join(sorted(wrong))}")
    if data.get("model_type") not in (TRANSFORMERS, AUTHORS):
        kind = data.get("model_type") or data.get("_class_name") or "an unknown model"
        raise CheckpointError(f"{folder}: config.json describes {kind!r}, not an Emu3 model; is it the right folder?")
    with described(folder), torch.device("meta"):
        config = Emu3Config.from_dict(data["config"]) if ours else official_config(data)
        Emu3(config)
    return Manifest(folder, config, data)


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    device: Device = None,
    cls: type[Model] = Emu3,  # type: ignore[assignment]
    quantize: str | None = None,
) -> Model:
    """A model from a folder or hub id, in eval mode; ``dtype`` None = as stored. ``quantize``: as it is read.
    Errors: ``CheckpointError``."""
    manifest = read_manifest(checkpoint_folder(source, FILES))
    with torch.device("meta"):
        model = cls(manifest.config)
    found = {renamed(name): value for name, value in read_weights(weight_files(manifest.folder)).items()}
    weights = {name: value for name, value in found.items() if not name.startswith(VISION)}
    fill(model, weights, manifest.folder, dtype, device, quantize)
    fill_buffers(model, device)
    return model.eval()


def fill_buffers(model: Emu3, device: Device = None) -> None:
    """Computes the rotary frequencies, which no checkpoint holds."""
    text = model.config.text
    fresh = RotaryEmbedding(text.hidden_size // text.num_attention_heads, text.rope_theta)
    model.decoder.rotary_emb.inv_freq = fresh.inv_freq.to(device or "cpu")


def load_processor(source: Source, device: Device = None, autoencoder: Source | None = "auto") -> Processor:
    """What surrounds the model of a folder or hub id.

    ``autoencoder`` "auto": the folder's own, or, for a checkpoint of the authors without one, theirs from the hub; a
    path or hub id: that one; None: none (text only). It computes in fp32 whatever the model does, as the authors' does:
    which code is nearest depends on it.
    """
    manifest = read_manifest(checkpoint_folder(source, FILES if autoencoder is not None else SMALL_FILES))
    if not manifest.official:
        return _our_processor(manifest, device, autoencoder)
    codec = None if autoencoder is None else _official_vq(manifest, autoencoder, device)
    factor = official_vq(manifest.data.get("vq_config") or {}).factor if codec is None else codec.factor
    defaults = official_defaults(manifest.data, factor)
    return Processor(_official_text(manifest, defaults, factor), codec, defaults, _area(manifest.folder))


def save_model(model: Emu3, folder: Source, processor: Processor | None = None) -> None:
    """Writes our format: model.safetensors, config.json and, with a processor, tokenizer.json and the image
    tokenizer."""
    check_savable(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"format": "flashu", "model_type": TRANSFORMERS, "config": model.config.to_dict()}
    if processor is not None:
        text = processor.text
        data |= {"template": asdict(text.template), "max_text": text.max_text, "max_question": text.max_question}
        data |= {"defaults": asdict(processor.defaults), "area": processor.area, "top_k": processor.top_k}
        data["codec"] = None if processor.vae is None else save_codec(processor.vae, folder)
        text.tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# -- image tokenizers ------------------------------------------------------------------------------------------------
def load_vq(source: Source, device: Device = None) -> VQ:
    """The authors' image tokenizer from its own folder or hub id, in fp32."""
    folder = checkpoint_folder(source)
    data = read_json(folder / "config.json")
    if data.get("model_type") not in ("Emu3VisionVQ", "emu3_vqgan"):
        raise CheckpointError(f"{folder}: config.json describes {data.get('model_type')!r}, not Emu3's image tokenizer")
    return built_vq(_checked_vq(data, folder), vq_weights(read_weights(weight_files(folder))), folder, device)


def built_vq(config: VQConfig, weights: Mapping[str, Tensor], where: object, device: Device = None) -> VQ:
    with torch.device("meta"):
        vq = VQ(config)
    fill(vq, weights, where, torch.float32, device)
    for name, buffer in list(vq.named_buffers()):
        if buffer.is_floating_point():  # batch statistics, which `fill` leaves as stored
            owner, _, leaf = name.rpartition(".")
            setattr(vq.get_submodule(owner), leaf, buffer.float())
    return vq.requires_grad_(False)


def save_codec(codec: Codec, folder: Path) -> dict[str, Any]:
    """Writes an image tokenizer into a folder of our format; returns what config.json says of it."""
    if isinstance(codec, VQ):
        write_weights_and_statistics(codec, folder / VQ_FILE)
        return {"kind": MOVQ, "config": asdict(codec.config)}
    save = getattr(codec, "save", None)
    if save is None:
        raise TypeError(f"a {type(codec).__name__} cannot be saved: there is no format for it")
    save(folder / SMALL_FILE)
    return {"kind": SMALL}


def write_weights_and_statistics(vq: VQ, file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous().cpu() for name, value in vq.state_dict().items()}, file, {"format": "pt"})


def _our_codec(manifest: Manifest, device: Device) -> Codec | None:
    codec, folder = manifest.data["codec"], manifest.folder
    if codec is None:
        return None
    file = folder / (VQ_FILE if codec["kind"] == MOVQ else SMALL_FILE)
    if not file.is_file():
        raise CheckpointError(f"{folder}: there is no {file.name}")
    if codec["kind"] == MOVQ:
        return built_vq(build(VQConfig, "codec", codec["config"]), read_weights([file]), file, device)
    from flashu.models.small_vq import SmallVQ

    small = SmallVQ.load(file)
    return small if device is None else small.to(device)


def _official_vq(manifest: Manifest, wanted: Source, device: Device) -> VQ:
    folder = manifest.folder
    if wanted != "auto":
        return load_vq(wanted, device)
    if not manifest.apart:
        config = _checked_vq(manifest.data.get("vq_config") or {}, folder)
        found = {renamed(name): value for name, value in read_weights(weight_files(folder)).items()}
        weights = {name: value for name, value in found.items() if name.startswith(VISION)}
        if not weights:
            raise CheckpointError(
                f"{folder} has no image tokenizer (model.vqmodel...): name one (autoencoder=...), or leave it out "
                "(autoencoder=None) for text only"
            )
        return built_vq(config, vq_weights(weights), folder, device)
    for name in VQ_FOLDERS:
        if (folder / name / "config.json").is_file():
            return load_vq(folder / name, device)
    try:
        return load_vq(VQ_HUB, device)
    except CheckpointError as e:
        raise CheckpointError(
            f"{folder} has no image tokenizer: put {VQ_HUB} into {folder / VQ_FOLDERS[0]}, or name one "
            f"(autoencoder=...). {e}"
        ) from e


def _checked_vq(data: Mapping[str, Any], folder: Path) -> VQConfig:
    with described(folder, "config.json describes no image tokenizer that can be built"), torch.device("meta"):
        config = official_vq(data)
        VQ(config)
    return config


# -- text ------------------------------------------------------------------------------------------------------------
def _our_processor(manifest: Manifest, device: Device, autoencoder: Source | None) -> Processor:
    data, folder = manifest.data, manifest.folder
    if lacking := PROCESSOR - data.keys():
        raise CheckpointError(f"{folder}: config.json lacks {', '.join(sorted(lacking))}: it was saved without them")
    tokenizer = _tokenizer(folder / "tokenizer.json")
    with described(folder, "config.json holds what cannot be"):
        template, defaults = Template(**data["template"]), build(GenerationDefaults, "defaults", data["defaults"])
        area = None if data["area"] is None else (int(data["area"][0]), int(data["area"][1]))
        check_limits(data)
        text = Text(tokenizer, manifest.config.ids, template, data["max_text"], data["max_question"])
        if autoencoder is None:
            codec = None
        else:
            codec = _our_codec(manifest, device) if autoencoder == "auto" else load_vq(autoencoder, device)
    return Processor(text, codec, defaults, area, data["top_k"])


def _official_text(manifest: Manifest, defaults: GenerationDefaults, factor: int) -> Text:
    folder, config = manifest.folder, manifest.config
    if (folder / "tokenizer.json").is_file():
        tokenizer = _tokenizer(folder / "tokenizer.json")
    elif (folder / TIKTOKEN).is_file():
        tokenizer = from_tiktoken(folder / TIKTOKEN, config.ids)
    else:
        raise CheckpointError(f"{folder} has neither tokenizer.json nor {TIKTOKEN}: put one of them there")
    names = {"<|extra_203|>": config.ids.bos, "<|image start|>": config.ids.boi, "<|image token|>": config.ids.img}
    if wrong := [name for name, token in names.items() if tokenizer.token_to_id(name) != token]:
        raise CheckpointError(
            f"{folder}: the tokenizer's {', '.join(wrong)} are not where config.json has them: they do not belong "
            "together"
        )
    template = Template()
    block = defaults.steps + defaults.height // factor + 8  # the default image, its marks and size
    around = len(tokenizer.encode(template.positive).ids)
    most = max(config.text.max_position_embeddings - block - around - 1, 16)
    return Text(tokenizer, config.ids, template, most)


def _tokenizer(file: Path) -> Tokenizer:
    text = json.dumps(read_json(file))
    try:
        return Tokenizer.from_str(text)
    except Exception as e:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: not a tokenizer ({e})") from e


def _area(folder: Path) -> tuple[int, int]:
    """Limits of a shown picture's size. Its mean and deviation are .5 always: the class's defaults are another's."""
    if not (folder / "preprocessor_config.json").is_file():
        return SHOWN
    data = read_json(folder / "preprocessor_config.json")
    least, most = SHOWN
    return int(data.get("min_pixels", least)), int(data.get("max_pixels", most))
