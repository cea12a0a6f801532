"""A stand-in for the original authors' class: its attributes, names and calls, written from the description of what it
computes (whole padded rows, every layer, no cache). It shares no code with the package; the goldens judge both."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from tests.conftest import TINY
from torch import Tensor, nn


class Norm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        return self.weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt()).to(x.dtype)


class Rotary(nn.Module):
    def __init__(self, width: int, theta: float, scaled: bool = False) -> None:
        super().__init__()
        inv_freq = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
        if scaled:
            length = 2 * math.pi / inv_freq
            smooth = (8192 / length - 1) / 3
            between = (1 - smooth) * inv_freq / 32 + smooth * inv_freq
            slow = torch.where(length > 8192, inv_freq / 32, inv_freq)
            inv_freq = torch.where((length <= 8192) & (length >= 2048), between, slow)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        angle = torch.outer(torch.arange(count).float(), self.inv_freq.float())
        angle = torch.cat((angle, angle), -1)[None, None]
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv: int, size: int, rotary: Rotary, bias: bool, normed: bool) -> None:
        super().__init__()
        self.size, self.groups, self.normed = size, heads // kv, normed
        self.q_proj = nn.Linear(width, heads * size, bias=bias)
        self.k_proj = nn.Linear(width, kv * size, bias=bias)
        self.v_proj = nn.Linear(width, kv * size, bias=bias)
        self.o_proj = nn.Linear(heads * size, width, bias=False)
        if normed:
            self.q_norm, self.k_norm = Norm(size), Norm(size)
        self.rotary_emb = rotary

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = self.rotary_emb(x, x.shape[1])

        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        k, v = turned(k).repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        out = F.scaled_dot_product_attention(turned(q), k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, attention: Attention, width: int, inner: int, eps: float, modulated: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, Gated(width, inner)
        self.input_layernorm, self.post_attention_layernorm = Norm(width, eps), Norm(width, eps)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, mask: Tensor | None, e_t: Tensor | None = None, where: Any = None) -> Tensor:
        if e_t is None:
            x = x + self.self_attn(self.input_layernorm(x), mask)
            return x + self.mlp(self.post_attention_layernorm(x))
        six = placed(self.adaLN_modulation(e_t), where, x, 6)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six.chunk(6, -1)
        inside = inside_of(where, x)
        gate_a, gate_m = torch.where(inside, gate_a, 1), torch.where(inside, gate_m, 1)
        x = x + gate_a * self.self_attn(moved(self.input_layernorm(x), shift_a, scale_a), mask)
        return x + gate_m * self.mlp(moved(self.post_attention_layernorm(x), shift_m, scale_m))


class Final(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final, self.linear = Norm(width), nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, e_t: Tensor, where: Any) -> Tensor:
        shift, scale = placed(self.adaLN_modulation(e_t), where, x, 2).chunk(2, -1)
        return self.linear(moved(self.norm_final(x), shift, scale))


def moved(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (x.float() * (1 + scale.float()) + shift.float()).to(x.dtype)


def placed(values: Tensor, where: Tensor, x: Tensor, times: int) -> Tensor:
    """Each image's modulation at that image's positions, 0 elsewhere."""
    out = x.new_zeros(*x.shape[:2], times * x.shape[-1])
    for n, (row, start, length) in enumerate(spans(where)):
        out[row, start : start + length] = values[n]
    return out


def inside_of(where: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(*x.shape[:2], 1, dtype=torch.bool)
    for row, start, length in spans(where):
        out[row, start : start + length] = True
    return out


def spans(where: Tensor) -> list[tuple[int, int, int]]:
    return [(row, *slot) for row, slots in enumerate(where.tolist()) for slot in slots]


class Patches(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(width, heads), nn.Module()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.layer_norm2(x)), approximate="tanh"))


class Encoder(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(width, inner, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"last_hidden_state": x}


class LanguageModel(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        width, heads, kv, theta = (
            sizes.hidden_size,
            sizes.num_attention_heads,
            sizes.num_key_value_heads,
            sizes.rope_theta,
        )
        self.config = SimpleNamespace(rope_theta=theta)
        size = width // heads
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(sizes.vocab_size, width)
        self.model.layers = nn.ModuleList(
            Layer(
                Attention(width, heads, kv, size, Rotary(size, theta), True, False),
                width,
                sizes.intermediate_size,
                1e-6,
                False,
            )
            for _ in range(sizes.num_hidden_layers)
        )
        self.model.norm, self.model.rotary_emb = Norm(width), Rotary(size, theta)
        self.lm_head = nn.Linear(width, sizes.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        x = inputs_embeds
        for layer in self.model.layers:
            x = layer(x, attention_mask)
        x = self.model.norm(x)
        return {"logits": self.lm_head(x), "hidden": x}


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        frequency = torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
        angle = t.reshape(-1, 1).float() * frequency
        return self.mlp(torch.cat((angle.cos(), angle.sin()), -1).to(dtype))


class Original(nn.Module):
    """By default of the sizes of the goldens' tiny model."""

    def __init__(self, sizes: Any = TINY) -> None:
        super().__init__()
        head, vision = sizes.head, sizes.vision
        h, d, s, c = sizes.llm.hidden_size, head.hidden_size, vision.hidden_size, sizes.image_latent_dim
        self.showo = LanguageModel(sizes.llm)
        self.image_embedder_und, self.image_embedder_gen = Patches(c, s), Patches(c, h)
        self.und_trans = Encoder(s, vision.intermediate_size, vision.num_attention_heads, vision.num_hidden_layers)
        self.position_embedding = nn.Embedding(vision.num_positions, s)
        self.register_buffer("image_position_ids", torch.arange(vision.num_positions)[None], persistent=False)
        self.fusion_proj = nn.Sequential(Norm(s + h), nn.Linear(s + h, h), nn.GELU(), nn.Linear(h, h))
        self.time_embed, self.time_embed_proj = TimestepEmbedder(d), nn.Linear(d, h)
        self.diff_proj = nn.Sequential(nn.Linear(h, d), nn.GELU(), nn.Linear(d, d))
        heads, kv, size = head.num_attention_heads, head.num_key_value_heads, head.head_dim
        self.diffusion_head_a = nn.ModuleList(
            Layer(
                Attention(d, heads, kv, size, Rotary(size, 5e5, True), False, True),
                d,
                head.intermediate_size,
                1e-5,
                True,
            )
            for _ in range(head.num_layers)
        )
        self.diffusion_head_b = Final(d, 4 * c)

    def embed_latents(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.fusion_proj[1].weight.dtype)
        seen = self.image_embedder_und(latents) + self.position_embedding(self.image_position_ids)
        seen = self.und_trans(seen)["last_hidden_state"]
        return self.fusion_proj(torch.cat((seen, self.image_embedder_gen(latents)), -1))

    def splice(self, ids: Tensor, latents: Tensor, t: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        x = self.showo.model.embed_tokens(ids)
        image, e_t = self.embed_latents(latents), self.time_embed(t, x.dtype)
        for n, (row, start, length) in enumerate(spans(where)):
            x[row, start] = self.time_embed_proj(e_t)[n]
            x[row, start + 1 : start + length] = image[n, : max(length - 1, 0)]
        return x, e_t

    def forward(self, ids: Tensor, latents: Tensor, t: Tensor, mask: Tensor, where: Tensor) -> Tensor:
        x, e_t = self.splice(ids, latents, t, where)
        x = self.diff_proj(self.showo(x, mask)["hidden"])
        for block in self.diffusion_head_a:
            x = block(x, mask, e_t, where)
        x = self.diffusion_head_b(x, e_t, where)
        v = torch.stack([x[row, start + 1 : start + length] for row, start, length in spans(where)])
        return v.reshape(len(v), -1, latents.shape[1]).mT.reshape(len(v), *latents.shape[1:])

    @torch.no_grad()
    def t2i_generate(
        self,
        image_latents: Any = None,
        t: Any = None,
        text_tokens: Any = None,
        attention_mask: Any = None,
        modality_positions: Any = None,
        first_frame_as_cond: bool = False,
        only_denoise_last_image: bool = False,
        max_seq_len: Any = None,
        guidance_scale: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:
        v = self(text_tokens, image_latents, t, attention_mask, modality_positions)
        if guidance_scale <= 0:
            return v
        yes, no = v.chunk(2)
        return (no + guidance_scale * (yes - no)).repeat(2, 1, 1, 1)

    @torch.no_grad()
    def mmu_generate(
        self,
        input_embeds: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        eos_token: Any = None,
    ) -> list[Tensor]:
        tokens: list[Tensor] = []
        for _ in range(max_new_tokens):
            logits = self.showo(input_embeds, attention_mask)["logits"][:, -1] / temperature
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            new = torch.multinomial(logits.softmax(-1), 1)
            tokens.append(new[0][0])
            if eos_token is not None and int(new) == eos_token:
                break
            input_embeds = torch.cat((input_embeds, self.showo.model.embed_tokens(new)), 1)
            attention_mask = longer(attention_mask)
        return tokens

    @torch.no_grad()
    def mm_generate(self, input_ids: Any = None, **given: Any) -> str:
        where, mask = given["modality_positions"], given["attention_mask"]
        x, _ = self.splice(torch.tensor([input_ids]), given["image_latents"], given["t"], where)
        tokens = self.mmu_generate(
            x, mask, given["max_new_tokens"], 1.0, given["top_k"], given["tokenizer"].eos_token_id
        )
        return given["tokenizer"].decode([int(token) for token in tokens], skip_special_tokens=False)

    @torch.no_grad()
    def lm_generate(self, input_ids: Any = None, **given: Any) -> str:
        tokens: list[int] = []
        for _ in range(given["max_new_tokens"]):
            x = self.showo.model.embed_tokens(torch.tensor([input_ids]))
            tokens.append(int(self.showo(x, None)["logits"][0, -1].argmax()))
            input_ids.append(tokens[-1])
        return given["tokenizer"].decode(tokens, skip_special_tokens=False)


def longer(mask: Tensor) -> Tensor:
    """The mask of a row one token longer: the new token sees what the last one saw, and itself."""
    low = torch.finfo(mask.dtype).min
    wide = F.pad(mask, (0, 1), value=low)
    last = F.pad(mask[..., -1:, :], (0, 1), value=0.0)
    return torch.cat((wide, last), dim=-2)


def dense(ids: Tensor, where: Tensor) -> Tensor:
    """The additive mask their scripts build."""
    length = ids.shape[1]
    mask = torch.ones(len(ids), 1, length, length, dtype=torch.long).tril()
    for row, start, count in spans(where):
        mask[row, :, start : start + count, start : start + count] = 1
    mask = 1 - mask
    return mask.masked_fill(mask.bool(), torch.iinfo(torch.long).min).float()
