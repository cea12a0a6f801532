"""The original authors' calling loops, on any instance of their class; for timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flashu.inference.samplers.noise import Noise
from flashu.inference.samplers.solvers import euler, grid
from flashu.models.showo2 import naive
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.dropin.adopt import adopted, sizes
from flashu.models.showo2.dropin.drawing import shown
from flashu.models.showo2.dropin.grid import SHIFT
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.reference import additive, embedded
from flashu.models.showo2.rows import question

SEED, PROMPT, QUESTION = 7, 16, 32


def drawing(
    module: nn.Module, *, points: int = 50, guidance: float = 5.0, padding: int = 256
) -> Callable[[Any], Tensor]:
    """The loop of the text-to-image script, as a function of an instance that gives latents [1, c, h, w]: one call per
    evaluation, Euler steps between the ``points`` in time. ``padding``: tokens of its rows after prompt and image."""
    config, like = sizes(module), next(module.parameters())
    count = config.image_latent_height * config.image_latent_width
    words = _random_ids(config, PROMPT)
    length = PROMPT + 1 + count + padding
    prompts = (words, words[:2]) if guidance > 0 else (words,)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    blocks = torch.tensor([[[len(prompt), count + 1]] for prompt in prompts])
    given: dict[str, Any] = {
        "text_tokens": ids.to(like.device),
        "attention_mask": additive(naive.omni_mask(length, blocks), like.dtype).to(like.device),
        "modality_positions": blocks.to(like.device),
        "max_seq_len": length,
        "guidance_scale": guidance,
    }
    noise = _noise(config).to(like.device).expand(len(prompts), -1, -1, -1)
    times = grid(points - 1, SHIFT)

    def draw(instance: Any) -> Tensor:
        z = noise
        for t, dt in zip(times[:-1].tolist(), times.diff().tolist(), strict=True):
            at = torch.full((len(z),), t, device=like.device)
            z = euler(z, instance.t2i_generate(image_latents=z.to(like.dtype), t=at, **given), dt)
        return z[:1]

    return draw


def answering(module: nn.Module, *, new_tokens: int = 100) -> Callable[[Any], Tensor]:
    """The call of the understanding script, as a function of an instance that gives tokens [n]: one embedded question
    about one image, answered greedily."""
    view: ShowO2 = adopted(module)
    words = _random_ids(view.config, QUESTION).tolist()
    count = view.config.image_latent_height * view.config.image_latent_width
    with torch.no_grad():
        images = shown(view, _noise(view.config), torch.ones(1), count)
        x, mask = embedded(view, question(view, (words[: QUESTION // 2], words[QUESTION // 2 :]), images))
    dense = additive(mask, view.dtype).to(view.device)

    def answer(instance: Any) -> Tensor:
        tokens = instance.mmu_generate(input_embeds=x[None], attention_mask=dense, max_new_tokens=new_tokens, top_k=1)
        return torch.stack([token.reshape(()) for token in tokens])

    return answer


def _random_ids(config: ShowO2Config, count: int) -> Tensor:
    return torch.randint(0, config.llm.vocab_size, (count,), generator=torch.Generator().manual_seed(SEED))


def _noise(config: ShowO2Config) -> Tensor:
    sides = (side * config.patch_size for side in (config.image_latent_height, config.image_latent_width))
    return Noise(SEED).normal(1, config.image_latent_dim, *sides)
