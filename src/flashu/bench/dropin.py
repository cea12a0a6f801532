"""The original authors' calling loops on an instance of their class: as it is, adopted, with FlashU; timed in turns.

All run on the same weights, inputs and process, and what they yield is compared in the same run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from flashu.bench.watch import clock_of
from flashu.errors import FlashUError
from flashu.inference.samplers import flow
from flashu.interfaces.patch import Config, apply_flashu_patch
from flashu.models.showo2 import naive
from flashu.models.showo2.dropin.adopt import adopted, sizes
from flashu.models.showo2.model import ShowO2

ORIGINAL = "original"
CONFIGS: dict[str, Config] = {"exact": "exact", "FlashU": "paper"}
SEED, WORDS, QUESTION = 7, 16, 32
SHIFT = 3.0


@dataclass(frozen=True)
class Lap:
    """``seconds`` of every round; ``speedup`` over the original: the median of the rounds' ratios, with the least and
    the largest. ``apart``: largest difference of the final latents to the original's, or the share of other tokens."""

    name: str
    seconds: tuple[float, ...]
    speedup: float
    least: float
    most: float
    apart: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {median(self.seconds):.3f} s, {self.speedup:.2f}x "
            f"[{self.least:.2f}, {self.most:.2f}], apart {self.apart:.2g}"
        )


def laps(
    module: nn.Module,
    task: str,
    configs: Mapping[str, Config] = CONFIGS,
    *,
    repeats: int = 3,
    points: int = 50,
    guidance: float = 5.0,
    new_tokens: int = 100,
    padding: int = 256,
) -> list[Lap]:
    """Times ``repeats`` images ("t2i") or answers ("mmu") of each, after one that warms up and calibrates.

    ``module`` is an unpatched instance and stays one. ``points``: time points of the script's Euler sampler;
    ``padding``: tokens of its rows after prompt and image; ``new_tokens`` of every answer.
    """
    if task not in ("t2i", "mmu") or repeats < 1:
        raise FlashUError(f"tasks are t2i and mmu, rounds at least one; not {task!r}, {repeats}")
    module = copy.copy(module)  # the same weights under an instance of its own, as each of the patched ones
    runs = {ORIGINAL: module} | {name: copy.copy(module) for name in configs}
    for name, config in configs.items():
        apply_flashu_patch(runs[name], config)
    if task == "t2i":
        play = _drawing(module, points, guidance, padding)
    else:
        play = _answering(module, new_tokens)
    made = {name: play(run) for name, run in runs.items()}
    clock = clock_of(next(module.parameters()).device)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            clock.settle()
            start = clock.now()
            made[name] = play(run)
            end = clock.now()
            clock.settle()
            spent[name].append(clock.between(start, end))
    return [_lap(name, spent[name], spent[ORIGINAL], _apart(made[name], made[ORIGINAL])) for name in runs]


def _lap(name: str, seconds: list[float], original: list[float], apart: float) -> Lap:
    ratios = [slow / fast for slow, fast in zip(original, seconds, strict=True)]
    return Lap(name, tuple(seconds), median(ratios), min(ratios), max(ratios), apart)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Of latents the largest difference, of tokens the share that differs."""
    if ours.is_floating_point():
        return float((ours - theirs).abs().max())
    return float((ours != theirs).float().mean())


def _drawing(module: nn.Module, points: int, guidance: float, padding: int) -> Callable[[Any], Tensor]:
    """The loop of the authors' text-to-image script: one call per evaluation, Euler steps between them."""
    config, some = sizes(module), next(module.parameters())
    count = config.image_latent_height * config.image_latent_width
    random = torch.Generator().manual_seed(SEED)
    words = torch.randint(0, config.llm.vocab_size, (WORDS,), generator=random)
    length = WORDS + 1 + count + padding
    prompts = (words, words[:2]) if guidance > 0 else (words,)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    where = torch.tensor([[[len(prompt), count + 1]] for prompt in prompts])
    given: dict[str, Any] = {
        "text_tokens": ids.to(some.device),
        "attention_mask": _dense(length, where, some),
        "modality_positions": where.to(some.device),
        "max_seq_len": length,
        "guidance_scale": guidance,
    }
    shape = (config.image_latent_dim, *(side * config.patch_size for side in _sides(config)))
    z = flow.noise(shape, SEED)[None].to(some.device).expand(len(prompts), -1, -1, -1)
    times = flow.grid(points - 1, SHIFT)

    def draw(instance: Any) -> Tensor:
        x = z
        for t, dt in zip(times[:-1].tolist(), times.diff().tolist(), strict=True):
            v = instance.t2i_generate(
                image_latents=x.to(some.dtype), t=torch.full((len(x),), t, device=some.device), **given
            )
            x = x + dt * v.float()
        return x[:1]

    return draw


def _answering(module: nn.Module, new_tokens: int) -> Callable[[Any], Tensor]:
    """The call of the authors' understanding script: one embedded question about one image, the likeliest tokens."""
    view: ShowO2 = adopted(module)
    some = next(module.parameters())
    config = view.config
    count = config.image_latent_height * config.image_latent_width
    random = torch.Generator().manual_seed(SEED)
    words = torch.randint(0, config.llm.vocab_size, (QUESTION,), generator=random).to(some.device)
    shape = (config.image_latent_dim, *(side * config.patch_size for side in _sides(config)))
    half = QUESTION // 2
    with torch.no_grad():
        text = view.embed_text(words[None])
        _, time_token = view.embed_time(torch.ones(1, device=some.device))
        image = view.embed_latent(flow.noise(shape, SEED)[None].to(some.device))
        x = torch.cat((text[:, :half], time_token[:, None], image, text[:, half:]), dim=1)
    # The script's block begins one token after the time token and ends one after the image.
    mask = _dense(x.shape[1], torch.tensor([[[half + 1, count + 1]]]), some)

    def answer(instance: Any) -> Tensor:
        said = instance.mmu_generate(input_embeds=x, attention_mask=mask, max_new_tokens=new_tokens, top_k=1)
        return torch.stack([token.reshape(()) for token in said])

    return answer


def _dense(length: int, where: Tensor, like: Tensor) -> Tensor:
    """The additive mask [R, 1, S, S] of rows with image blocks."""
    mask = torch.zeros(len(where), 1, length, length, dtype=like.dtype)
    return mask.masked_fill(~naive.omni_mask(length, where), torch.finfo(like.dtype).min).to(like.device)


def _sides(config: Any) -> tuple[int, int]:
    return config.image_latent_height, config.image_latent_width
