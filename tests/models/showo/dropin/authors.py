"""Stands for the original authors' class, which is on no package index: their attribute names and calls around
transformers' Phi, written from the description of what they compute."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from tests.models.showo.golden.recorded import HERE, NAME, SIZES

CONFIG = SimpleNamespace(
    model=SimpleNamespace(
        showo=SimpleNamespace(num_vq_tokens=SIZES["num_vq_tokens"], llm_vocab_size=SIZES["llm_vocab_size"])
    ),
    dataset=SimpleNamespace(preprocessing=SimpleNamespace(max_seq_length=SIZES["max_seq_length_text"])),
)


def cosine_schedule(t: Tensor) -> Tensor:
    return torch.cos(t * math.pi * 0.5)


class Showo(nn.Module):
    def __init__(self, w_clip_vit: bool = False) -> None:
        super().__init__()
        phi = dict(SIZES["phi_config"], use_cache=False)
        self.showo = PhiForCausalLM(PhiConfig(**phi)).eval()
        self.config = SimpleNamespace(
            vocab_size=SIZES["vocab_size"],
            llm_vocab_size=SIZES["llm_vocab_size"],
            mask_token_id=SIZES["mask_token_id"],
            num_vq_tokens=SIZES["num_vq_tokens"],
            w_clip_vit=w_clip_vit,
        )
        self.calls = 0

    def forward(self, input_ids: Any, input_embeddings: Any = None, attention_mask: Any = None) -> Tensor:
        self.calls += 1
        if input_embeddings is not None:
            input_ids = None
        out = self.showo(input_ids=input_ids, inputs_embeds=input_embeddings, attention_mask=attention_mask)
        return out.logits.float()

    def t2i_generate(
        self,
        input_ids: Any = None,
        uncond_input_ids: Any = None,
        attention_mask: Any = None,
        temperature: float = 1.0,
        timesteps: int = 18,
        guidance_scale: float = 0,
        noise_schedule: Any = cosine_schedule,
        generator: Any = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        count, offset = config.model.showo.num_vq_tokens, config.model.showo.llm_vocab_size + 10
        text, hidden = config.dataset.preprocessing.max_seq_length + 1, self.config.mask_token_id
        place = slice(-count - 1, -1)
        for step in range(timesteps):
            rows = input_ids
            if guidance_scale > 0:
                rows = torch.cat((rows, torch.cat((uncond_input_ids[:, :text], rows[:, text:]), dim=1)))
            logits = self(rows, attention_mask=attention_mask)[:, place, offset:-1]
            if guidance_scale > 0:
                c, u = logits.chunk(2)
                logits = (1 + guidance_scale) * c - guidance_scale * u
            p = logits.softmax(-1)
            drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])
            unknown = input_ids[:, place] == hidden
            drawn = torch.where(unknown, drawn, input_ids[:, place] - offset)
            sure = p.gather(-1, drawn[..., None])[..., 0].where(unknown, torch.finfo(p.dtype).max)
            done = (step + 1) / timesteps
            many = (count * noise_schedule(torch.tensor(done))).floor()
            many = (unknown.sum(-1, keepdim=True) - 1).minimum(many).clamp(min=1).long()
            temperature *= 1 - done
            uniform = torch.zeros_like(sure).uniform_(0, 1, generator=generator)
            gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
            score = sure.clamp(min=1e-20).log() + temperature * gumbel
            again = score < score.sort(-1).values.gather(-1, many)
            input_ids[:, place] = torch.where(again, hidden, drawn + offset)
        return drawn

    @torch.no_grad()
    def mmu_generate(
        self,
        idx: Any = None,
        input_embeddings: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        eot_token: Any = None,
    ) -> list[Tensor]:
        given, mask = [], attention_mask.reshape(attention_mask.shape[-2:])
        for _ in range(max_new_tokens):
            logits = self(idx, input_embeddings, mask[None, None])[:, -1] / temperature
            beside = torch.full((len(mask), 1), torch.finfo(logits.dtype).min)
            below = torch.cat((mask[-1:], torch.zeros(1, 1)), dim=1)
            mask = torch.cat((torch.cat((mask, beside), dim=1), below))
            if top_k is not None:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            token = torch.multinomial(logits.softmax(-1), 1)
            given.append(token[0][0])
            if self.config.w_clip_vit:
                input_embeddings = torch.cat((input_embeddings, self.showo.model.embed_tokens(token)), dim=1)
            else:
                idx = torch.cat((idx, token), dim=1)
            if eot_token is not None and int(token) == eot_token:
                break
        return given


def tiny(w_clip_vit: bool = False) -> Showo:
    model = Showo(w_clip_vit)
    model.load_state_dict(load_file(HERE / f"{NAME}.safetensors"))
    return model.eval().requires_grad_(False)
