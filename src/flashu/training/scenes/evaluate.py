"""A small score of a model in training: plain padded forwards, guidance 2, 20 Euler steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from flashu.models.small_autoencoder import SmallAutoencoder, to_tensor, to_uint8
from flashu.scenes import benchmark
from flashu.scenes.detector import detect
from flashu.scenes.questions import longest, verdict
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, PAD
from flashu.scenes.world import render
from flashu.training.scenes.data import Batcher, generation_rows, understanding_mask
from flashu.training.scenes.network import Network

GUIDANCE, STEPS, SHIFT = 2.0, 20, 3.0


@torch.inference_mode()
def sample(network: Network, batcher: Batcher, texts: list[str], seed: int) -> Tensor:
    """Prompts -> latents [n,4,h,w]."""
    n = len(texts)
    device = network.device
    rows = [*batcher.encode(texts), *([[]] * n)]
    ids, pos, mask = (x.to(device) for x in generation_rows(rows, batcher.id, batcher.rows))
    side = 2 * batcher.world.side
    z = torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    image = batcher.rows.image_drawn
    u = torch.linspace(0, 1, STEPS + 1)
    times = u / (u + SHIFT - SHIFT * u)
    for now, then in pairwise(times):
        states = network.forward(ids, pos, mask, image, torch.cat((z, z)), now.to(device).expand(2 * n))
        cond, uncond = network.velocity(states, pos, mask, image, (side, side)).float().chunk(2)
        z = z + (then - now).item() * (uncond + GUIDANCE * (cond - uncond))
    return z


@torch.inference_mode()
def answer(network: Network, batcher: Batcher, latents: Tensor, questions: list[str]) -> list[str]:
    """Clean latents [n,4,h,w] and one question each -> greedy answers."""
    n, special, device, header = len(questions), batcher.id, network.device, batcher.rows.header
    ids = np.full((n, header + longest(batcher.world)), special[PAD])
    ids[:, 0], ids[:, 1], ids[:, header - 1] = special[BOS], special[BOI], special[EOI]
    ends = np.full(n, header)
    for row, text in enumerate(batcher.encode(questions)):
        ends[row] += len(text) + 1
        ids[row, header : ends[row]] = [*text, special[ANSWER]]
    starts, done = ends.copy(), np.zeros(n, bool)
    image = batcher.rows.image_asked
    # What is not written yet comes later in the row, hence is invisible: no padding mask is needed.
    segment = torch.zeros(ids.shape, dtype=torch.long)
    mask = understanding_mask(segment, image).to(device)
    pos = torch.arange(ids.shape[1]).expand(n, -1).to(device)
    while not done.all():
        rows = torch.from_numpy(ids).to(device)
        hidden = network.forward(rows, pos, mask, image, latents, torch.ones(n, device=device)).hidden
        chosen = network.logits(hidden[torch.arange(n), torch.from_numpy(ends - 1)]).argmax(-1).cpu().numpy()
        done |= chosen == special[EOS]
        live = np.flatnonzero(~done)
        ids[live, ends[live]] = chosen[live]
        ends[live] += 1
        done |= ends >= ids.shape[1]
    return [batcher.tokenizer.decode(ids[r, starts[r] : ends[r]].tolist()) for r in range(n)]


def score(network: Network, batcher: Batcher, autoencoder: SmallAutoencoder, n: int, seed: int = 0) -> dict[str, float]:
    """n test prompts per category and n test questions per kind -> share right, with the two means."""
    table: dict[str, float] = {}
    world = batcher.world
    prompts = [p for c in benchmark.CATEGORIES for p in benchmark.prompts(c, n, seed, world=world)]
    images = to_uint8(autoencoder.decode(sample(network, batcher, [p.text for p in prompts], seed).cpu()))
    right = [benchmark.judge(p, found) for p, found in zip(prompts, detect(images.numpy(), world), strict=True)]
    for i, category in enumerate(benchmark.CATEGORIES):
        table[category] = float(np.mean(right[i * n : (i + 1) * n]))
    table["generation"] = float(np.mean(right))
    asked = [q for k in benchmark.QUESTION_KINDS for q in benchmark.questions(k, n, seed, world=world)]
    with torch.inference_mode():
        latents = autoencoder.encode(to_tensor(torch.from_numpy(render(q.scene for q in asked)))).to(network.device)
    answers = answer(network, batcher, latents, [q.text for q in asked])
    hits = [verdict(a) == q.verdict for a, q in zip(answers, asked, strict=True)]
    for i, kind in enumerate(benchmark.QUESTION_KINDS):
        table["ask " + kind] = float(np.mean(hits[i * n : (i + 1) * n]))
    table["understanding"] = float(np.mean(hits))
    return table
