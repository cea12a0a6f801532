"""Checkpoint folders of the tiny model, in every layout that can be read."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.models.emu3.emu3_tiny import tokenizer
from tests.models.emu3.golden.recorded import VISION, config, sizes, weights


def transformers_config() -> dict[str, Any]:
    known = sizes()
    ids = config().ids
    codes = {f"<|visual token {n:06d}|>": ids.first + n for n in range(config().codes)}
    text = known["text_config"] | {"rope_parameters": {"rope_theta": known["rope_theta"], "rope_type": "default"}}
    words = known["vocabulary_map_non_visual"] | codes
    return {"model_type": "emu3", "text_config": text, "vq_config": known["vq_config"], "vocabulary_map": words}


def older(name: str) -> str:
    """The name of a tensor in the files on the hub."""
    if name.startswith("model.text_model."):
        return "text_model.model." + name.removeprefix("model.text_model.")
    return "text_model." + name if name.startswith("lm_head") else name.removeprefix("model.")


def _write(folder: Path, data: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def as_transformers(folder: Path, on_hub: bool = False) -> Path:
    tensors = {older(name) if on_hub else name: value for name, value in weights().items()}
    _write(folder, transformers_config(), tensors)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def authors_vq_name(name: str) -> str:
    name = name.removeprefix(VISION)
    for ours, theirs in (("down_block.down", "down"), ("up_block.up", "up"), ("middle_block", "mid")):
        name = name.replace(ours, theirs)
    name = name.replace(".mid.attn_norm.", ".mid.attn_1.norm.")
    name = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", name)
    return re.sub(r"\.(q|k|v)_proj\.", r".\1.", name).replace(".out_proj.", ".proj_out.")


def as_authors(folder: Path, vq: str | None = "Emu3-VisionTokenizer", vocabulary: bool = True) -> Path:
    """The language model in ``folder``, the image tokenizer in one of its own."""
    known, ids = sizes(), config().ids
    data = known["text_config"] | {"model_type": "Emu3", "rope_theta": known["rope_theta"], "image_area": 32 * 32}
    data |= {f"{name}_token_id": getattr(ids, name) for name in ("img", "boi", "eoi", "eol", "eof")}
    language = {n.replace("model.text_model.", "model."): v for n, v in weights().items() if not n.startswith(VISION)}
    _write(folder, data, language)
    if vocabulary:
        tokenizer().save(str(folder / "tokenizer.json"))
    if vq is not None:
        as_authors_vq(folder / vq)
    return folder


def as_authors_vq(folder: Path) -> Path:
    known = sizes()["vq_config"]
    names = {"latent_channels": "z_channels", "base_channels": "ch", "channel_multiplier": "ch_mult"}
    data = {
        names.get(name, name): value for name, value in known.items() if name not in ("hidden_size", "double_latent")
    }
    tensors = {}
    for name, value in weights().items():
        if name.startswith(VISION):
            matrix = re.search(r"\.(q|k|v|out)_proj\.weight$", name)
            tensors[authors_vq_name(name)] = value[:, :, None, None] if matrix else value
    return _write(folder, data | {"model_type": "Emu3VisionVQ", "double_z": False}, tensors)


def tiktoken(file: Path, count: int) -> None:
    """A vocabulary of all bytes, then of merges of two, in the authors' format."""
    letters = [bytes([n]) for n in range(256)]
    pairs = [a + b for a in letters[97:123] for b in letters[97:123]]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate([*letters, *pairs][:count])]
    file.write_text("\n".join(lines) + "\n")
