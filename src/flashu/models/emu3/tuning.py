"""Training calls of transformers' Emu3, answered by our model over its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.emu3.config import Emu3Config, Ids, TextConfig
from flashu.models.emu3.model import Emu3
from flashu.models.layers import RotaryEmbedding
from flashu.models.shared import share_modules
from flashu.models.training import IGNORED
from flashu.plan.schedules import last_half, level

ROUTINGS = {"emu3-paper": lambda layers: dict.fromkeys(("t2i", "mmu"), level(last_half(layers), 0.2))}
"""What the UniMoD paper ran: the last half of the layers keeps a fifth of both tasks' tokens."""

ROWS = {
    "512 px": {"t2i": (4250, 4250, 4096), "mmu": (4300, 4300, 80)},
    "512 px, rows to draw padded to 10240": {"t2i": (10240, 4250, 4096)},
}
"""With some 80 text tokens; the authors' script pads rows to draw, and there is none for rows that answer."""


def recognizes(module: Any) -> bool:
    """Whether it is transformers' `Emu3ForConditionalGeneration`, or has its parts."""
    body = getattr(module, "model", None)
    return hasattr(module, "lm_head") and hasattr(body, "text_model") and hasattr(body, "vocabulary_mapping")


class Tuning:
    """See `models.batches.Tuning`. A row is a "t2i" one if it has a code to predict, else an "mmu" one."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.model = adopted(module)
        self.first = min(module.model.vocabulary_mapping.image_tokens)
        self._image = module.config.image_token_id

    def dropout(self) -> bool:
        """Whether a forward would leave values out at random."""
        layers = self.module.model.text_model.layers
        return self.module.training and any(
            layer.dropout.p > 0 or getattr(layer.self_attn, "attention_dropout", 0) > 0 for layer in layers
        )

    def rows(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> list[TaskRows]:
        if input_ids is None or inputs_embeds is not None:
            raise FlashUError("rows are given by input_ids here, not by inputs_embeds")
        if cache is not None or more.get("past_key_values") is not None:
            raise FlashUError("a routed model generates by flashu's engine: open the trained weights there")
        ids = input_ids
        if pixel_values is not None:
            ids = self._shown(ids, pixel_values, image_sizes)
        valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if valid.ndim != 2:
            raise FlashUError("attention_mask must be [rows, tokens]: each token sees those before it")
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        targets = torch.full_like(ids, IGNORED)
        if labels is not None:
            targets[:, :-1] = labels[:, 1:]
        predicted = targets if labels is not None else ids
        drawn = (predicted >= self.first).any(1) if labels is not None else self._drawn(ids, valid)
        found = []
        for task, own in (("t2i", drawn), ("mmu", ~drawn)):
            index = own.nonzero()[:, 0]
            if len(index):
                visual = ids[index] >= self.first
                lengths = (ids.shape[1],) * len(index)
                found.append(
                    TaskRows(
                        task, ids[index], position[index], "causal", valid[index], targets[index], visual=visual,
                        lengths=lengths, place=tuple(index.tolist()),
                    )
                )  # fmt: skip
        return found

    def output(self, losses: Any, auxiliary: Tensor, logits: Tensor | None, call: Mapping[str, Any]) -> Any:
        """The class's own: the mean over all targets of the batch, with the routers' loss."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        if losses is None:
            return CausalLMOutputWithPast(logits=logits)
        sums = torch.stack([losses.tasks[task] * count for task, count in losses.counts.items()]).sum()
        items = call.get("num_items_in_batch")  # transformers' trainer, which accumulates gradients
        items = sum(losses.counts.values()) if items is None else items
        return CausalLMOutputWithPast(loss=sums / items + auxiliary, logits=logits)

    @torch.no_grad()
    def _shown(self, ids: Tensor, pixels: Tensor, sizes: Tensor | None) -> Tensor:
        """Ids with codes in place of placeholders; batch statistics would change the codes, so they are left alone."""
        tokenizer = self.module.model.vqmodel
        training = tokenizer.training
        tokenizer.eval()
        codes = self.module.model.get_image_tokens(pixels, sizes)
        tokenizer.train(training)
        return ids.masked_scatter(ids == self._image, codes.to(ids.dtype))

    def _drawn(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Rows whose last token is part of an image."""
        last = torch.where(valid, torch.arange(ids.shape[1], device=ids.device), -1).amax(1)
        return ids.gather(1, last[:, None])[:, 0] >= self.first


def adopted(module: Any) -> Emu3:
    """Our model over the modules of transformers' class."""
    theirs = module.config.text_config
    rope = getattr(theirs, "rope_parameters", None) or {"rope_theta": getattr(theirs, "rope_theta", 1e6)}
    known = {name: getattr(theirs, name) for name in (f.name for f in fields(TextConfig)) if hasattr(theirs, name)}
    text = TextConfig(**known | {"rope_theta": float(rope["rope_theta"])})
    codes = module.model.vocabulary_mapping.image_tokens
    pad = theirs.pad_token_id
    marks = dict.fromkeys((f.name for f in fields(Ids)), pad)  # their places play no part in a forward
    config = Emu3Config(text, Ids(**marks | {"first": min(codes)}), len(codes))
    with torch.device("meta"):
        view = Emu3(config)
    rotary = RotaryEmbedding(text.hidden_size // text.num_attention_heads, text.rope_theta)
    rotary.exact = True
    view.decoder.rotary_emb = rotary.to(module.lm_head.weight.device)
    share_modules(view, nn.ModuleDict({"model": _body(module), "lm_head": module.lm_head}))
    return view


def _body(module: Any) -> nn.Module:
    return nn.ModuleDict({"text_model": module.model.text_model})
