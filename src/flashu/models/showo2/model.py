"""Show-o2: the architecture and its weights. Module names are the official checkpoint's.

It knows no acceleration method and keeps no state: the core calls ``embed``, the decoder ``layers``, ``norm``, then
``logits`` or the drawing `head`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.ffn import FFN
from flashu.models.layers import Attention, DecoderLayer, RMSNorm, Rope, RotaryEmbedding, Span
from flashu.models.showo2.config import LLMConfig, ShowO2Config
from flashu.models.showo2.content import Row, embed_rows
from flashu.models.showo2.head import FinalLayer, FlowHead, ModulatedBlock
from flashu.models.showo2.spec import spec_of
from flashu.models.showo2.vision import PatchEmbed, SemanticLayers
from flashu.models.timestep import TimestepEmbedder
from flashu.plan import ModelSpec


class Decoder(nn.Module):
    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        head_dim = cfg.hidden_size // cfg.num_attention_heads

        def layer() -> DecoderLayer:
            attention = Attention(
                cfg.hidden_size,
                cfg.num_attention_heads,
                cfg.num_key_value_heads,
                head_dim,
                RotaryEmbedding(head_dim, cfg.rope_theta),
                qkv_bias=True,
            )
            return DecoderLayer(attention, cfg.hidden_size, cfg.intermediate_size, cfg.rms_norm_eps)

        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(layer() for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(head_dim, cfg.rope_theta)


class CausalLM(nn.Module):
    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        self.model = Decoder(cfg)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class ShowO2(nn.Module):
    """Native unified model: text tokens and image latents through one decoder, velocities out of a flow head."""

    image_position_ids: Tensor
    name = ""
    quantization: str | None = None

    def __init__(self, config: ShowO2Config) -> None:
        super().__init__()
        self.config = config
        h, d, c, p = config.llm.hidden_size, config.head.hidden_size, config.image_latent_dim, config.patch_size
        self.showo = CausalLM(config.llm)
        self.image_embedder_und = PatchEmbed(c, config.vision.hidden_size, p)
        self.image_embedder_gen = PatchEmbed(c, h, p)
        self.und_trans = SemanticLayers(config.vision)
        self.position_embedding = nn.Embedding(config.vision.num_positions, config.vision.hidden_size)
        cells = config.image_latent_height * config.image_latent_width  # as the original has it, whatever the table
        self.register_buffer("image_position_ids", torch.arange(cells)[None], persistent=False)
        fused = config.vision.hidden_size + h
        self.fusion_proj = nn.Sequential(RMSNorm(fused, 1e-6), nn.Linear(fused, h), nn.GELU(), nn.Linear(h, h))
        self.time_embed = TimestepEmbedder(d)
        self.diff_proj = nn.Sequential(nn.Linear(h, d), nn.GELU(), nn.Linear(d, d)) if h != d else nn.Identity()
        self.time_embed_proj = nn.Linear(d, h) if h != d else nn.Identity()
        self.diffusion_head_a = nn.ModuleList(ModulatedBlock(config.head) for _ in range(config.head.num_layers))
        self.diffusion_head_b = FinalLayer(d, p * p * c)
        for module in self.modules():
            if isinstance(module, RotaryEmbedding):
                module.exact = config.exact_rope

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.config)

    @property
    def dtype(self) -> torch.dtype:
        return self.showo.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.showo.model.norm.weight.device

    @property
    def layers(self) -> Sequence[Any]:
        return self.showo.model.layers  # type: ignore[return-value]

    @property
    def head(self) -> FlowHead:
        return FlowHead(self)

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        return {(i, "ffn"): layer.mlp for i, layer in enumerate(self.layers)}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield from (self.showo.model.layers, self.diffusion_head_a, self.diffusion_head_b)
        if lm_head:
            yield self.showo.lm_head

    def layout(self, processor: Any) -> Any:
        from flashu.models.showo2.layout import ShowO2Layout  # it writes requests, which are above the models

        return ShowO2Layout(self, processor)

    # -- what the core calls -----------------------------------------------------------------------------------
    def embed(self, contents: Sequence[Row]) -> list[Tensor]:
        return embed_rows(self, contents)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.showo.model.embed_tokens(ids)

    def get_input_embeddings(self) -> nn.Module:
        return self.showo.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.showo.lm_head

    def rope(self, position: Tensor) -> Rope:
        return self.showo.model.rotary_emb(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        return self.showo.model.norm(x)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        return self.showo.lm_head(hidden)

    # -- images --------------------------------------------------------------------------------------------------
    def embed_latent(self, latents: Tensor) -> Tensor:
        """latents [B, c, H, W] -> fused image tokens [B, N, h] (semantic and generative paths)."""
        latents = latents.to(self.dtype)
        und = self.image_embedder_und(latents) + self._position_table(latents)
        gen = self.image_embedder_gen(latents)
        return self.fusion_proj(torch.cat((self.und_trans(und), gen), dim=-1))

    def embed_frames(self, latents: Tensor) -> Tensor:
        """latents [T, c, H, W] of a video's frames -> its tokens [T*n, h]: each frame's, brought to half the rows and
        columns (bilinear; 27 x 27 to 14 x 14), one frame after another."""
        rows, columns = (side // self.config.patch_size for side in latents.shape[-2:])
        grid = self.embed_latent(latents).mT.unflatten(-1, (rows, columns))
        small = F.interpolate(grid, size=((rows + 1) // 2, (columns + 1) // 2), mode="bilinear", align_corners=False)
        return small.flatten(2).mT.flatten(0, 1)

    def embed_time(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] -> (time embedding [B, d] for the head, time token [B, h] for the decoder)."""
        e_t = self.time_embed(t_B)
        return e_t, self.time_embed_proj(e_t)

    def unpatchify(self, patches: Tensor, height: int, width: int) -> Tensor:
        """patches [B, N, p*p*c] (channel fastest) -> [B, c, height, width]; the layout is ``config.unpatchify``."""
        p, c = self.config.patch_size, self.config.image_latent_dim
        if self.config.unpatchify == "raster":
            return patches.reshape(patches.shape[0], height, width, c).permute(0, 3, 1, 2)
        grid = patches.reshape(patches.shape[0], height // p, width // p, p, p, c)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], c, height, width)

    def _position_table(self, latents: Tensor) -> Tensor:
        """The learned position table at the latents' grid; resized bicubically unless it has the configured size."""
        table = self.position_embedding.weight
        rows, cols = (side // self.config.patch_size for side in latents.shape[-2:])
        if len(table) == rows * cols and len(table) == self.config.image_latent_height * self.config.image_latent_width:
            return table
        side = math.isqrt(len(table))
        grid = table.T.reshape(1, -1, side, side)
        resized = F.interpolate(grid, size=(rows, cols), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)[0]
