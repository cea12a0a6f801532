"""The calls of transformers' documentation, on any instance of its class; for timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashu.models.emu3.naive import Allowed
from flashu.models.emu3.official import official_config

SEED, PROMPT, NEGATIVE, QUESTION = 7, 16, 40, 32


def drawing(module: nn.Module, *, height: int = 90, width: int = 90, guidance: float = 3.0) -> Callable[[Any], Tensor]:
    """An image of ``height`` x ``width`` codes, as a function of an instance that gives its tokens [n]; greedy."""
    config = official_config(module.config.to_dict())  # type: ignore[operator, union-attr]
    ids, like = config.ids, next(module.parameters())
    known = Allowed(ids, config.codes, height, width)
    # Digits of the size are words like others here.
    opening = [ids.boi, *_words(config.ids.pad, 3, 1), ids.img]
    prompt, negative = (
        torch.tensor([[ids.bos, *_words(ids.pad, count, seed), *opening]], device=like.device)
        for count, seed in ((PROMPT, 2), (NEGATIVE, 3))
    )

    def allowed(row: int, before: Tensor) -> Sequence[int]:
        return known.at(len(before) - int((before == ids.img).nonzero()[0, 0]))

    def draw(instance: Any) -> Tensor:
        given = instance.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            negative_prompt_ids=negative,
            prefix_allowed_tokens_fn=allowed,
            guidance_scale=guidance,
            max_new_tokens=height * (width + 1) + 3,
            eos_token_id=ids.eos,
            pad_token_id=ids.pad,
            do_sample=False,
        )
        return given[0, prompt.shape[1] :]

    return draw


def answering(
    module: nn.Module, *, new_tokens: int = 100, height: int = 64, width: int = 64
) -> Callable[[Any], Tensor]:
    """A greedy answer to a question about a picture of ``height`` x ``width`` codes, as a function of an instance that
    gives its tokens [n]; none ends it early."""
    config = official_config(module.config.to_dict())  # type: ignore[operator, union-attr]
    ids, like = config.ids, next(module.parameters())
    codes = torch.randint(config.codes, (height, width), generator=torch.Generator().manual_seed(SEED)) + ids.first
    picture = [token for row in codes.tolist() for token in (*row, ids.eol)]
    around = _words(ids.pad, QUESTION, 4)
    row = [ids.bos, *around[:8], ids.boi, *around[8:11], ids.img, *picture, ids.eof, ids.eoi, *around[11:]]
    asked = torch.tensor([row], device=like.device)

    def answer(instance: Any) -> Tensor:
        given = instance.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=new_tokens,
            eos_token_id=config.text.vocab_size,  # no token
            pad_token_id=ids.pad,
            do_sample=False,
        )
        return given[0, asked.shape[1] :]

    return answer


def _words(vocabulary: int, count: int, seed: int) -> list[int]:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
