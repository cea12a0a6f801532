"""Training calls of the original Show-o class, answered by our model over its modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.layers import RotaryEmbedding
from flashu.models.shared import share_modules
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.model import ShowO
from flashu.models.training import IGNORED
from flashu.plan.schedules import last_half, level, ramp

ROUTINGS = {
    "show-o-paper": lambda layers: {"t2i": level(last_half(layers), 0.8), "mmu": ramp(last_half(layers))},
}
"""What the UniMoD paper ran: in the last half of the layers rows to draw keep 0.8 of their tokens, rows that answer 1
down to 0.2."""


def _row(length: int, codes: int, text: int = 40) -> dict[str, tuple[int, int, int]]:
    """Rows of ``length`` with so many codes, 2 / pi of which are hidden on average, and tokens of text."""
    drawn = (length, text + 3 + codes + 2, round(codes * 2 / math.pi) + 2)
    return {"t2i": drawn, "mmu": (length, text + 2 + codes + 3, text + 2)}


ROWS = {
    "256 px": _row(387, 256), "256 px, tuning": _row(640, 256), "512 px": _row(1155, 1024),
    "512 px, tuning": _row(1408, 1024),
}  # fmt: skip
"""Of the released configurations, with 40 text tokens."""


def recognizes(module: Any) -> bool:
    """Whether it is the original class, or has its parts."""
    decoder = getattr(getattr(module, "showo", None), "model", None)
    settings = getattr(module, "config", None)
    return (
        hasattr(decoder, "final_layernorm")
        and hasattr(settings, "llm_vocab_size")
        and hasattr(settings, "codebook_size")
    )


class Tuning:
    """See `models.batches.Tuning`. Rows come in the original's order: "t2i", "lm", "mmu"; a batch without labels is
    known by its first token."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.model = adopted(module)
        special = self.model.config.text_tokens
        self._pad, self._mmu = special, special + 6
        self._first = self.model.config.codes[0]

    def dropout(self) -> bool:
        return False

    def rows(
        self,
        input_ids: Tensor,
        input_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
        batch_size_t2i: int = 0,
        batch_size_lm: int = 0,
        batch_size_mmu: int = 0,
        max_seq_length: int = 128,
        labels_mask_text: Tensor | None = None,
        labels_mask_image: Tensor | None = None,
        **more: Any,
    ) -> list[TaskRows]:
        if input_embeddings is not None:
            raise FlashUError("rows are given by input_ids here, not by input_embeddings")
        if attention_mask is None:
            raise FlashUError("Show-o's rows need their attention_mask: without one nothing says who sees whom")
        mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1
        mask = mask.expand(len(input_ids), -1, -1, -1)
        if labels is None:
            return self._unlabelled(input_ids, mask)
        counts = {"t2i": batch_size_t2i, "lm": batch_size_lm, "mmu": batch_size_mmu}
        if sum(counts.values()) != len(input_ids):
            raise FlashUError(f"{len(input_ids)} rows, but batch sizes {counts}: they must add up")
        here = labels.clone()
        here[:, : max_seq_length + 1] = IGNORED
        following = torch.full_like(labels, IGNORED)
        following[:, :-1] = labels[:, 1:]
        found, start = [], 0
        for task, count in counts.items():
            part = range(start, start + count)
            start += count
            if count:
                found.append(self._rows(task, part, input_ids, mask, here if task == "t2i" else following))
        return found

    def output(self, losses: Any, auxiliary: Tensor, logits: Tensor | None, call: Mapping[str, Any]) -> Any:
        """As the original's: logits, and the losses of t2i, lm and mmu rows; the routers' loss is in the first of them
        that is there. A task without rows has loss 0, where the original has another batch's or none."""
        if losses is None:
            return logits
        zero = auxiliary.new_zeros(())
        tasks = {task: losses.tasks.get(task, zero) for task in ("t2i", "lm", "mmu")}
        carrier = next(task for task in ("t2i", "mmu", "lm") if task in losses.tasks)
        tasks[carrier] = tasks[carrier] + auxiliary
        return (logits, *tasks.values())

    def _unlabelled(self, ids: Tensor, mask: Tensor) -> list[TaskRows]:
        begins = torch.where(ids == self._pad, -1, ids)
        first = begins.gather(1, (begins >= 0).long().argmax(1, keepdim=True))[:, 0]
        nothing = torch.full_like(ids, IGNORED)
        found = []
        for task, own in (("mmu", first == self._mmu), ("t2i", first != self._mmu)):
            index = own.nonzero()[:, 0].tolist()
            if index:
                found.append(self._rows(task, index, ids, mask, nothing))
        return found

    def _rows(self, task: str, part: Any, ids: Tensor, mask: Tensor, targets: Tensor) -> TaskRows:
        index = torch.tensor(list(part), device=ids.device)
        own = ids[index]
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(own)
        return TaskRows(
            task, own, position, mask[index], own != self._pad, targets[index], visual=own >= self._first,
            lengths=(ids.shape[1],) * len(index), place=tuple(index.tolist()),
        )  # fmt: skip


def adopted(module: Any) -> ShowO:
    """Our model over the modules of the original class."""
    decoder = module.showo.model
    layer = decoder.layers[0]
    vocabulary, hidden = decoder.embed_tokens.weight.shape
    theirs = module.showo.config
    known = {name: getattr(theirs, name) for name in (f.name for f in fields(LLMConfig)) if hasattr(theirs, name)}
    rope = getattr(theirs, "rope_parameters", None) or {}
    known |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if rope.get(name) is not None}
    known |= {"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": len(decoder.layers)}
    known |= {"intermediate_size": len(layer.mlp.fc1.weight), "layer_norm_eps": layer.input_layernorm.eps}
    settings = module.config
    text, codes = int(settings.llm_vocab_size), int(settings.codebook_size)
    config = ShowOConfig(LLMConfig(**known), text, vocabulary - 1 - codes - text, codes)
    with torch.device("meta"):
        view = ShowO(config)
    rotary = RotaryEmbedding(config.llm.rotary_dim, config.llm.rope_theta)
    rotary.exact = True
    view.showo.model.rotary_emb = rotary.to(decoder.embed_tokens.weight.device)
    share_modules(view, module)
    return view
