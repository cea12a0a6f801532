"""The recorded tiny routed models: their rows, plans and routers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.models.emu3.golden import recorded as emu3
from tests.models.showo.golden import recorded as showo
from torch import Tensor

from flashu.models.batches import TaskRows
from flashu.training.mod import Routers, UniModConfig

HERE = Path(__file__).parent / "golden"
ABOUT: dict[str, Any] = json.loads((HERE / "unimod_tiny.json").read_text())
TOLERANCE = ABOUT["suggested_tolerances"]
GROUPS = {"showo": ("t2i", "lm", "mmu"), "emu3": ("t2i", "mmu")}


@cache
def goldens() -> dict[str, Tensor]:
    return load_file(HERE / "unimod_tiny.safetensors")


def model(family: str) -> Any:
    return emu3.model() if family == "emu3" else showo.tiny_model().requires_grad_()


def batch(family: str) -> list[TaskRows]:
    """The training batch of the original's golden file."""
    if family == "emu3":
        g = emu3.goldens()
        ids, labels, valid = g["train.input_ids"], g["train.labels"], g["train.attention_mask"].bool()
        visual = ids >= emu3.config().ids.first
        following = _shifted(labels)
        return [_rows(task, part, ids, "causal", valid, following, visual) for task, part in parts("emu3").items()]
    g = showo.goldens()
    ids, labels, mask = g["e.input_ids"], g["e.labels"], g["e.mask_allowed"].bool()
    valid, first = ids != showo.IDS["pad"], showo.tiny_config().codes[0]
    here = labels.clone()
    here[:, : showo.SIZES["text_block_length"]] = -100
    following = _shifted(labels)
    own = parts("showo")
    return [
        _rows("t2i", own["t2i"], ids, mask, valid, here, ids >= first),
        _rows("lm", own["lm"], ids, mask, valid, following, ids >= first, 0.1),
        _rows("mmu", own["mmu"], ids, mask, valid, following, ids >= first),
    ]


def parts(family: str) -> dict[str, slice]:
    """Which rows of the recorded batch are each task's."""
    if family == "emu3":
        sizes = emu3.about()["common"]["train"]
        counts = {"t2i": sizes["rows_t2i"], "mmu": sizes["rows_und"]}
    else:
        train = showo.ABOUT["seeds_and_hparams"]["train"]
        counts = {task: len(train[f"{task}_text_lens"]) for task in GROUPS["showo"]}
    found, start = {}, 0
    for task, count in counts.items():
        found[task] = slice(start, start + count)
        start += count
    return found


def config(family: str, variant: str) -> UniModConfig:
    plans = ABOUT["common"][f"{family}.plans"]
    keep = plans["arank" if variant == "arank" else "preset"]
    if variant == "single":
        keep = dict.fromkeys(keep, keep["mmu"])
    return UniModConfig(
        keep,
        routers="layer" if variant == "single" else "task",
        gate="block" if variant == "block" else "ffn",
        force={"mmu": "answers"} if variant == "forced" else {},
    )


def routers(family: str, variant: str, spec: Any) -> Routers:
    made, g = Routers(config(family, variant), spec), goldens()
    order = ABOUT["common"]["router_order"]
    kept = "arank" if variant == "arank" else "preset"
    with torch.no_grad():
        for (task, layer), weight in zip(order[f"{family}.{kept}"], g[f"{family}.{kept}.routers"], strict=True):
            name = made.config.router(task, layer)
            if name is not None and (variant != "single" or task == "mmu"):
                made.weight[name].copy_(weight)
    return made


def _shifted(labels: Tensor) -> Tensor:
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), dim=1)


def _rows(
    task: str, part: slice, ids: Tensor, mask: Any, valid: Tensor, targets: Tensor, visual: Tensor, weight: float = 1.0
) -> TaskRows:
    position = torch.arange(ids.shape[1]).expand_as(ids[part])
    own = mask if isinstance(mask, str) else mask[part]
    lengths = (ids.shape[1],) * len(position)
    return TaskRows(
        task, ids[part], position, own, valid[part], targets[part], weight, visual=visual[part], lengths=lengths
    )
