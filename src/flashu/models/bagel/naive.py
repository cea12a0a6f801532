"""The original program's computation, one packed row at a time: the yardstick of the exact runtime.

A context is a cache of keys and values that every pass copies; each guidance branch is a pass of its own, and every
pass embeds its markers and its time anew. Its layers share no code with the ones that the runtime walks through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.bagel.experts import GEN, SUFFIX
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.vision import patches, table_rows

Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]


def unnamed(component: str) -> AbstractContextManager[None]:
    """The default of ``part``."""
    return nullcontext()


@dataclass
class Cache:
    """Keys and values [T, kv_heads, head_dim] by layer, and the next rotary position."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    position: int = 0

    def copy(self) -> Cache:
        return Cache([k.clone() for k in self.keys], [v.clone() for v in self.values], self.position)

    def lengthen(self, count: int) -> None:
        """As long as if so many tokens had joined, for timing: the last one's keys and values again."""
        self.keys, self.values = (
            [torch.cat((y, y[-1:].repeat(count, 1, 1))) for y in own] for own in (self.keys, self.values)
        )
        self.position += count


def passed(
    model: Bagel,
    x: Tensor,
    position: Tensor,
    cache: Cache,
    latents: slice | None,
    causal: bool,
    keep: bool,
) -> Tensor:
    """Embedded tokens x [S, h] behind a cache -> normed output [S, h]. ``latents``: those of the generation expert."""
    gen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if latents is not None:
        gen[latents] = True
    und_at, gen_at = (~gen).nonzero()[:, 0], gen.nonzero()[:, 0]
    frequencies = model.language_model.model.rotary_emb.inv_freq.float()
    angles = position[:, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def each(owner: Any, name: str, y: Tensor) -> Tensor:
        if latents is None:
            return owner._modules[name](y)
        und, generated = owner._modules[name](y[und_at]), owner._modules[name + SUFFIX[GEN]](y[gen_at])
        joined = y.new_zeros(len(y), *und.shape[1:])
        joined[und_at], joined[gen_at] = und, generated
        return joined

    def turned(y: Tensor) -> Tensor:
        a, b = y.chunk(2, dim=-1)
        return y * cos + torch.cat((-b, a), dim=-1) * sin

    keys, values = [], []
    for i, layer in enumerate(model.layers):
        attention: Any = layer.self_attn
        normed = each(layer, "input_layernorm", x)
        q, k, v = (each(attention, f"{n}_proj", normed).unflatten(-1, (-1, attention.head_dim)) for n in "qkv")
        q, k = turned(each(attention, "q_norm", q)), turned(each(attention, "k_norm", k))
        if cache.keys:
            held = len(cache.keys[i])
            merged = [y.new_empty(held + len(y), *y.shape[1:]) for y in (k, v)]
            for whole, old, new in zip(merged, (cache.keys[i], cache.values[i]), (k, v), strict=True):
                whole[:held], whole[held:] = old, new
            k, v = merged
        keys.append(k)
        values.append(v)
        every = q.shape[1] // k.shape[1]
        mask = None
        if causal:
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=x.device).tril(len(k) - len(q))
        wide = (q, k.repeat_interleave(every, 1), v.repeat_interleave(every, 1))
        heads_q, heads_k, heads_v = (one.transpose(0, 1)[None] for one in wide)
        y = F.scaled_dot_product_attention(heads_q, heads_k, heads_v, attn_mask=mask)
        x = x + each(attention, "o_proj", y[0].transpose(0, 1).flatten(1))
        x = x + each(layer, "mlp", each(layer, "post_attention_layernorm", x))
    if keep:
        cache.keys, cache.values = keys, values
    return each(model.language_model.model, "norm", x)


def embedded(model: Bagel, ids: Sequence[int]) -> Tensor:
    return model.embed_tokens(torch.tensor(list(ids), dtype=torch.long, device=model.device))


def add_text(model: Bagel, cache: Cache, ids: Sequence[int], part: Part = unnamed) -> Tensor:
    """A text block joins a context; returns its normed output."""
    at = torch.arange(cache.position, cache.position + len(ids), device=model.device)
    with part("LLM"):
        hidden = passed(model, embedded(model, ids), at, cache, None, causal=True, keep=True)
    cache.position += len(ids)
    return hidden


def add_seen(model: Bagel, cache: Cache, pixels: Tensor, markers: tuple[int, int], part: Part = unnamed) -> None:
    """A picture for the ViT joins a context; pixels [3, H, W]."""
    size, side = model.config.vit.patch_size, model.config.vit_max_num_patch_per_side
    rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
    places = table_rows(rows, columns, side).to(model.device)
    with part("features"):
        tokens = patches(pixels[None].to(model.device, model.dtype), size)
        viewed = (
            model.connector(model.vit_model.vision_model(tokens, places))[0] + model.vit_pos_embed.pos_embed[places]
        )
    _add_image(model, cache, viewed, markers, None, part)


def add_latents(model: Bagel, cache: Cache, latents: Tensor, markers: tuple[int, int], part: Part = unnamed) -> None:
    """A picture as clean latents [z, h, w] joins a context."""
    tokens = latent_tokens(model, latents)
    x = _latents_embedded(model, tokens, 0.0, *(side // model.config.latent_patch_size for side in latents.shape[-2:]))
    _add_image(model, cache, x, markers, slice(1, len(x) + 1), part)


def _add_image(
    model: Bagel, cache: Cache, x: Tensor, markers: tuple[int, int], latents: slice | None, part: Part
) -> None:
    text = embedded(model, markers)
    x = torch.cat((text[:1], x.to(text.dtype), text[1:]))
    at = torch.full((len(x),), cache.position, device=model.device)
    with part("LLM"):
        passed(model, x, at, cache, latents, causal=False, keep=True)
    cache.position += 1


def latent_tokens(model: Bagel, latents: Tensor) -> Tensor:
    """[z, h, w] -> [N, p * p * z]."""
    return patches(latents[None].to(model.device), model.config.latent_patch_size)[0]


def _latents_embedded(model: Bagel, tokens: Tensor, time: float, rows: int, columns: int) -> Tensor:
    places = table_rows(rows, columns, model.config.max_latent_size).to(model.device)
    times = torch.full((len(tokens),), time, device=model.device)
    return model.vae2llm(tokens.to(model.dtype)) + model.time_embedder(times) + model.latent_pos_embed.pos_embed[places]


def velocity(
    model: Bagel,
    tokens: Tensor,
    time: float,
    size: tuple[int, int],
    cache: Cache,
    markers: tuple[int, int],
    part: Part = unnamed,
) -> Tensor:
    """One pass: latent tokens [N, p * p * z] of ``size`` (rows, columns) at ``time`` (1 = noise) -> their velocity."""
    with part("features"):
        text = embedded(model, markers)
        x = _latents_embedded(model, tokens, time, *size)
        x = torch.cat((text[:1], x.to(text.dtype), text[1:]))
    with part("LLM"):
        at = torch.full((len(x),), cache.position, device=model.device)
        hidden = passed(model, x, at, cache, slice(1, len(x) - 1), causal=False, keep=False)
    with part("head"):
        return model.llm2vae(hidden[1:-1])


def guided(
    main: Tensor,
    text: Tensor | None,
    image: Tensor | None,
    scales: tuple[float, float],
    renorm: str,
    least: float,
) -> Tensor:
    """The velocities [N, p * p * z] of the passes, combined."""
    if text is None:
        return main

    def shrunk(u: Tensor, dim: int | None) -> Tensor:
        wanted, there = (x.norm() if dim is None else x.norm(dim=dim, keepdim=True) for x in (main, u))
        return u * (wanted / (there + 1e-8)).clamp(least, 1.0)

    u = text + scales[0] * (main - text)
    if renorm == "text_channel":
        u = shrunk(u, -1)
        return u if image is None else image + scales[1] * (u - image)
    if image is not None:
        u = image + scales[1] * (u - image)
    return shrunk(u, None if renorm == "global" else -1)


def decoded(model: Bagel, cache: Cache, bos: int, limit: int, part: Part = unnamed) -> Any:
    """Greedy tokens one by one, at most ``limit``, whatever they are; the cache grows."""
    token = bos
    for _ in range(limit):
        with part("LLM"):
            hidden = add_text(model, cache, [token])
        with part("logits"):
            token = int(model.logits(hidden[-1:])[0].argmax())
        yield token
