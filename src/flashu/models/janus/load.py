"""Janus-Pro checkpoints in transformers' layout, read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.hub import PATTERNS, checkpoint_folder
from flashu.models.janus.config import Ids, JanusConfig, official_config
from flashu.models.janus.model import Janus
from flashu.models.janus.processor import HALF, LEAST, Processor
from flashu.models.janus.text import Text
from flashu.models.janus.vq import VQ
from flashu.models.layers import RotaryEmbedding
from flashu.models.weights import fill, read_json, read_weights, weight_files

Source = str | os.PathLike[str]
Device = torch.device | str | None
Model = TypeVar("Model", bound=Janus)
VISION = "model.vqmodel."
FILES = (*PATTERNS, "preprocessor_config.json", "processor_config.json")
MARKS = {"boi": "<begin_of_image>", "eoi": "<end_of_image>"}


def read_config(folder: Path) -> JanusConfig:
    """Understands config.json and tries the sizes in it; nothing is allocated."""
    data = read_json(folder / "config.json")
    if data.get("model_type") != "janus":
        raise CheckpointError(f"{folder}: config.json describes {data.get('model_type')!r}, not a Janus-Pro model")
    try:
        text = data.get("text_config") or {}
        known = {name: text.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
        known["image"] = data.get("image_token_id")
        config = official_config(data, Ids(**{name: value for name, value in known.items() if value is not None}))
        with torch.device("meta"):
            Janus(config), VQ(config.vq)
    except CheckpointError as e:
        raise CheckpointError(f"{folder}: {e}") from e
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError, AssertionError) as e:
        raise CheckpointError(f"{folder}: config.json does not describe a model that can be built ({e})") from e
    return config


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    device: Device = None,
    cls: type[Model] = Janus,  # type: ignore[assignment]
    quantize: str | None = None,
) -> Model:
    """A model from a folder or hub id, in eval mode; ``dtype`` None = as stored."""
    folder = checkpoint_folder(source, FILES)
    config = read_config(folder)
    found = read_weights(weight_files(folder))
    if "lm_head.weight" in found:  # config.json of some conversions says nothing, or that it is tied
        config = replace(config, tied=False)
    with torch.device("meta"):
        model = cls(config)
    weights = {name: value for name, value in found.items() if not name.startswith(VISION)}
    fill(model, weights, folder, dtype, device, quantize)
    model.decoder.rotary_emb.inv_freq = rotary(config, device)
    return model.eval()


def rotary(config: JanusConfig, device: Device = None) -> torch.Tensor:
    """The frequencies of positions, which are computed and not stored."""
    text = config.text
    return RotaryEmbedding(text.hidden_size // text.num_attention_heads, text.rope_theta).inv_freq.to(device or "cpu")


def load_processor(source: Source, device: Device = None, autoencoder: str | None = "auto") -> Processor:
    """What surrounds the model of a folder or hub id; ``autoencoder`` None: without the decoder of codes, which
    computes in fp32."""
    folder = checkpoint_folder(source, FILES if autoencoder is not None else ("*.json",))
    config = read_config(folder)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(read_json(folder / "tokenizer.json")))
    except CheckpointError:
        raise
    except Exception as e:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{folder}: tokenizer.json is not a tokenizer ({e})") from e
    marks = {name: token for name, mark in MARKS.items() if (token := tokenizer.token_to_id(mark)) is not None}
    if lacking := [mark for name, mark in MARKS.items() if name not in marks]:
        raise CheckpointError(f"{folder}: tokenizer.json lacks {', '.join(lacking)}: is it Janus-Pro's?")
    ids = Ids(config.ids.bos, config.ids.eos, config.ids.pad, marks["boi"], marks["eoi"], config.ids.image)
    shown = pictures(folder)
    mean, std = (tuple(shown.get(name) or HALF) for name in ("image_mean", "image_std"))
    vae = None
    if autoencoder is not None:
        with torch.device("meta"):
            vae = VQ(config.vq)
        found = {name.removeprefix(VISION): value for name, value in read_weights(weight_files(folder)).items()}
        unused = ("encoder.", "quant_conv.")
        own = {n: v for n, v in found.items() if not n.startswith(("model.", "lm_head.", *unused))}
        fill(vae, own, folder, torch.float32, device)
        vae.requires_grad_(False)
    least = shown.get("min_size") or LEAST
    return Processor(Text(tokenizer, ids), vae, defaults_of(config), config.vision.image_size, mean, std, least=least)


def pictures(folder: Path) -> dict[str, Any]:
    """How pictures are prepared, as the folder says it."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            return data.get("image_processor") or data
    return {}


def defaults_of(config: JanusConfig) -> GenerationDefaults:
    side = config.vision.side * config.vq.factor
    return GenerationDefaults(config.vision.side**2, guidance=5.0, shift=1.0, height=side, width=side)
