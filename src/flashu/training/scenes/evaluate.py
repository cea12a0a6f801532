"""A small score of a model in training: plain padded forwards, guidance 2, 20 Euler steps."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashu.models.showo2.model import ShowO2
from flashu.scenes import benchmark
from flashu.scenes.autoencoder import Autoencoder, to_tensor, to_uint8
from flashu.scenes.detector import detect
from flashu.scenes.questions import longest, verdict
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, PAD
from flashu.scenes.world import render
from flashu.training.scenes.data import Batch, Batcher, generation_rows, understanding_mask

GUIDANCE, STEPS, SHIFT = 2.0, 20, 3.0


class States(NamedTuple):
    """What a forward of the decoder leaves behind."""

    hidden: Tensor  # [B,S,h] normed output
    e_t: Tensor  # [B,d] time embedding
    fused: Tensor  # [B,N,h] image tokens at the entrance
    middle: Tensor  # [B,S,h] after half of the layers


def hidden_states(model: ShowO2, batch: Batch, latents: Tensor, t: Tensor) -> States:
    """One plain forward over whole rows: entrances and all decoder layers."""
    fused = model.embed_latent(latents)
    e_t, token = model.embed_time(t)
    x = model.embed_text(batch.ids)
    first = batch.image.start
    x = torch.cat((x[:, :first], token[:, None].to(x.dtype), fused.to(x.dtype), x[:, batch.image.stop :]), dim=1)
    rope = model.rope(batch.pos)
    for i in range(model.num_layers):
        x, _ = model.layer(i, x, rope, mask=batch.mask)
        if i + 1 == model.num_layers // 2:
            middle = x
    return States(model.norm(x), e_t, fused, middle)


def velocity(model: ShowO2, hidden: Tensor, e_t: Tensor, batch: Batch) -> Tensor:
    """Flow head over the whole row -> velocity [B,4,h,w]."""
    where = torch.zeros(batch.ids.shape, dtype=torch.bool, device=hidden.device)
    where[:, batch.image] = True
    features, _ = model.head_body(hidden, e_t, model.head_rope(batch.pos), mask=batch.mask, image=where)
    return model.unpatchify(model.head_out(features[:, batch.image][:, 1:], e_t), *batch.latents.shape[-2:])


@torch.inference_mode()
def sample(model: ShowO2, batcher: Batcher, texts: list[str], seed: int) -> Tensor:
    """Prompts -> latents [n,4,h,w]."""
    n = len(texts)
    device = model.device
    rows = [*batcher.encode(texts), *([[]] * n)]
    ids, pos, mask = (x.to(device) for x in generation_rows(rows, batcher.id, batcher.rows))
    side = 2 * batcher.world.side
    z = torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    batch = Batch(ids, pos, mask, batcher.rows.drawn, z, ids, ids)
    u = torch.linspace(0, 1, STEPS + 1)
    times = u / (u + SHIFT - SHIFT * u)
    for now, then in pairwise(times):
        states = hidden_states(model, batch, torch.cat((z, z)), now.to(device).expand(2 * n))
        cond, uncond = velocity(model, states.hidden, states.e_t, batch).float().chunk(2)
        z = z + (then - now).item() * (uncond + GUIDANCE * (cond - uncond))
    return z


@torch.inference_mode()
def answer(model: ShowO2, batcher: Batcher, latents: Tensor, questions: list[str]) -> list[str]:
    """Clean latents [n,4,h,w] and one question each -> greedy answers."""
    n, special, device, header = len(questions), batcher.id, model.device, batcher.rows.header
    ids = np.full((n, header + longest(batcher.world)), special[PAD])
    ids[:, 0], ids[:, 1], ids[:, header - 1] = special[BOS], special[BOI], special[EOI]
    ends = np.full(n, header)
    for row, text in enumerate(batcher.encode(questions)):
        ends[row] += len(text) + 1
        ids[row, header : ends[row]] = [*text, special[ANSWER]]
    starts, done = ends.copy(), np.zeros(n, bool)
    image = batcher.rows.seen
    # What is not written yet comes later in the row, hence is invisible: no padding mask is needed.
    segment = torch.zeros(ids.shape, dtype=torch.long)
    mask = understanding_mask(segment, image).to(device)
    pos = torch.arange(ids.shape[1]).expand(n, -1).to(device)
    while not done.all():
        batch = Batch(torch.from_numpy(ids).to(device), pos, mask, image, latents, pos, pos)
        hidden = hidden_states(model, batch, latents, torch.ones(n, device=device)).hidden
        chosen = model.logits(hidden[torch.arange(n), torch.from_numpy(ends - 1)]).argmax(-1).cpu().numpy()
        done |= chosen == special[EOS]
        live = np.flatnonzero(~done)
        ids[live, ends[live]] = chosen[live]
        ends[live] += 1
        done |= ends >= ids.shape[1]
    return [batcher.tokenizer.decode(ids[r, starts[r] : ends[r]].tolist()) for r in range(n)]


def score(model: ShowO2, batcher: Batcher, autoencoder: Autoencoder, n: int, seed: int = 0) -> dict[str, float]:
    """n test prompts per category and n test questions per kind -> share right, with the two means."""
    table: dict[str, float] = {}
    world = batcher.world
    prompts = [p for c in benchmark.CATEGORIES for p in benchmark.prompts(c, n, seed, world=world)]
    images = to_uint8(autoencoder.decode(sample(model, batcher, [p.text for p in prompts], seed).cpu()))
    right = [benchmark.judge(p, found) for p, found in zip(prompts, detect(images.numpy(), world), strict=True)]
    for i, category in enumerate(benchmark.CATEGORIES):
        table[category] = float(np.mean(right[i * n : (i + 1) * n]))
    table["generation"] = float(np.mean(right))
    asked = [q for k in benchmark.QUESTION_KINDS for q in benchmark.questions(k, n, seed, world=world)]
    with torch.inference_mode():
        latents = autoencoder.encode(to_tensor(torch.from_numpy(render(q.scene for q in asked)))).to(model.device)
    answers = answer(model, batcher, latents, [q.text for q in asked])
    hits = [verdict(a) == q.verdict for a, q in zip(answers, asked, strict=True)]
    for i, kind in enumerate(benchmark.QUESTION_KINDS):
        table["ask " + kind] = float(np.mean(hits[i * n : (i + 1) * n]))
    table["understanding"] = float(np.mean(hits))
    return table
