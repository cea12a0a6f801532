"""The original authors' calling loops, on any instance of their class; for timing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flashu.models.showo import naive
from flashu.models.showo.dropin.adopt import sizes
from flashu.models.showo.text import SpecialIds

SEED, PROMPT, QUESTION = 7, 16, 32


def drawing(module: nn.Module, *, steps: int = 18, guidance: float = 5.0) -> Callable[[Any], Tensor]:
    """The call of the text-to-image script, as a function of an instance that gives codes [1, N]."""
    config, device = sizes(module), next(module.parameters()).device
    marks, end = SpecialIds.behind(config.text_tokens, -1, -1), config.text_tokens - 1
    words = _random_ids(config.text_tokens, min(PROMPT, config.max_text - 2))
    image = [marks.soi, *[config.mask] * config.image_tokens, marks.eoi]
    rows = []
    for text in (words, []):
        prompt = [marks.t2i, end, *text, end]
        rows.append([marks.pad] * (config.max_text + 1 - len(prompt)) + prompt + image)
    ids = torch.tensor(rows[: 1 + (guidance > 0)])
    mask = naive.additive(naive.drawing_mask(ids, marks.pad, marks.soi, marks.eoi), torch.float32).to(device)
    given = {
        "showo": SimpleNamespace(num_vq_tokens=config.image_tokens, llm_vocab_size=config.text_tokens),
        "preprocessing": SimpleNamespace(max_seq_length=config.max_text),
    }
    settings = SimpleNamespace(
        model=SimpleNamespace(showo=given["showo"]), dataset=SimpleNamespace(preprocessing=given["preprocessing"])
    )

    def draw(instance: Any) -> Tensor:
        generator = torch.Generator(device).manual_seed(SEED)
        return instance.t2i_generate(
            input_ids=ids[:1].to(device, copy=True),
            uncond_input_ids=ids[1:].to(device, copy=True) if guidance > 0 else None,
            attention_mask=mask,
            guidance_scale=guidance,
            timesteps=steps,
            generator=generator,
            config=settings,
        )

    return draw


def answering(module: nn.Module, *, new_tokens: int = 100) -> Callable[[Any], Tensor]:
    """The call of the understanding script, as a function of an instance that gives tokens [n]: one question about one
    image's codes, answered greedily."""
    config, device = sizes(module), next(module.parameters()).device
    marks = SpecialIds.behind(config.text_tokens, -1, -1)
    codes = [config.codes[0] + n for n in _random_ids(config.codebook_size, config.image_tokens)]
    row = [marks.mmu, marks.soi, *codes, marks.eoi, *_random_ids(config.text_tokens, QUESTION)]
    ids = torch.tensor([row], device=device)
    mask = naive.additive(naive.question_mask(ids, marks.eoi), torch.float32)

    def answer(instance: Any) -> Tensor:
        tokens = instance.mmu_generate(ids, attention_mask=mask, max_new_tokens=new_tokens, top_k=1)
        return torch.stack([token.reshape(()) for token in tokens])

    return answer


def _random_ids(count: int, length: int) -> list[int]:
    return torch.randint(0, count, (length,), generator=torch.Generator().manual_seed(SEED)).tolist()
