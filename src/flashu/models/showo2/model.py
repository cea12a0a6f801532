"""Show-o2: the architecture, its weights and its rooms. It knows no acceleration method and keeps no run state.

Module names are the official checkpoint's. The forward is a set of rooms that the loops walk through:
``embed_text``, ``embed_latent``, ``embed_time`` -> ``layer(i, ...)`` -> ``norm`` -> ``logits`` or
``head_body`` -> ``head_out`` -> ``unpatchify``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.layers import (
    Attention,
    DecoderLayer,
    FFNWeights,
    Joining,
    KeyValue,
    Past,
    RMSNorm,
    Rope,
    RotaryEmbedding,
    Tap,
)
from flashu.models.products import Linear, check_packing
from flashu.models.showo2.config import LLMConfig, ShowO2Config
from flashu.models.showo2.head import FinalLayer, ModulatedBlock, TimestepEmbedder
from flashu.models.showo2.vision import PatchEmbed, SemanticLayers


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
        self.lm_head = Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class ShowO2(nn.Module):
    """Native unified model: text tokens and image latents through one decoder, velocities out of a flow head.

    ``quantization``: the scheme its projections are quantized by, None if they are not. ``packed``: whether its
    projections have copies packed for the CPU.
    """

    image_position_ids: Tensor
    quantization: str | None = None
    packed = False

    def __init__(self, config: ShowO2Config) -> None:
        super().__init__()
        self.config = config
        h, d, c, p = config.llm.hidden_size, config.head.hidden_size, config.image_latent_dim, config.patch_size
        self.showo = CausalLM(config.llm)
        self.image_embedder_und = PatchEmbed(c, config.vision.hidden_size, p)
        self.image_embedder_gen = PatchEmbed(c, h, p)
        self.und_trans = SemanticLayers(config.vision)
        self.position_embedding = nn.Embedding(config.vision.num_positions, config.vision.hidden_size)
        self.register_buffer("image_position_ids", torch.arange(config.vision.num_positions)[None], persistent=False)
        fused = config.vision.hidden_size + h
        self.fusion_proj = nn.Sequential(RMSNorm(fused, 1e-6), Linear(fused, h), nn.GELU(), Linear(h, h))
        self.time_embed = TimestepEmbedder(d)
        self.diff_proj = nn.Sequential(Linear(h, d), nn.GELU(), Linear(d, d)) if h != d else nn.Identity()
        self.time_embed_proj = Linear(d, h) if h != d else nn.Identity()
        self.diffusion_head_a = nn.ModuleList(ModulatedBlock(config.head) for _ in range(config.head.num_layers))
        self.diffusion_head_b = FinalLayer(d, p * p * c)
        for module in self.modules():
            if isinstance(module, RotaryEmbedding):
                module.exact = config.exact_rope

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def num_layers(self) -> int:
        return self.config.llm.num_hidden_layers

    @property
    def dtype(self) -> torch.dtype:
        return self.showo.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.showo.model.norm.weight.device

    @property
    def layers(self) -> nn.ModuleList:
        return self.showo.model.layers

    def join(self) -> None:
        """Lay the weights that read the same input side by side (see `layers.Joining`)."""
        for module in self.modules():
            if isinstance(module, Joining):
                module.join()

    def pack(self) -> None:
        """Give every projection a copy of its weights in the layout in which a CPU's bf16 products are quickest.

        Weights cast, moved or replaced later have none. `FlashUError`, with nothing done, where nothing is gained.
        """
        check_packing(self.dtype, self.device)
        if self.quantization is not None:
            raise FlashUError(f"quantized projections ({self.quantization}) cannot be packed: leave pack out")
        if any(p.is_meta for p in self.parameters()):
            raise FlashUError("an offloaded model cannot be packed: load it without offload")
        together = {part for m in self.modules() if isinstance(m, Joining) for part in map(m.get_submodule, m.JOINT)}
        for module in self.modules():
            if isinstance(module, Joining) or (isinstance(module, Linear) and module not in together):
                module.pack()
        self.packed = True

    # -- entrances ---------------------------------------------------------------------------------------------
    def embed_text(self, ids_BS: Tensor) -> Tensor:
        return self.showo.model.embed_tokens(ids_BS)

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

    def rope(self, pos_BS: Tensor) -> Rope:
        return self.showo.model.rotary_emb(pos_BS)

    def head_rope(self, pos_BS: Tensor) -> Rope:
        first: ModulatedBlock = self.diffusion_head_a[0]  # type: ignore[assignment]
        return first.self_attn.rotary_emb(pos_BS)

    # -- rooms -------------------------------------------------------------------------------------------------
    def layer(
        self,
        i: int,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None = None,
        past: Past | None = None,
        ffn: FFNWeights | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Decoder layer i on x [B, S, h]; returns its output and the keys and values seen (past and new)."""
        return self.layers[i](x, rope, mask, past, ffn, tap)

    def norm(self, x: Tensor) -> Tensor:
        return self.showo.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.showo.lm_head(hidden)

    def head_body(
        self,
        hidden: Tensor,
        e_t: Tensor | None,
        rope: Rope,
        mask: Tensor | None = None,
        past: list[KeyValue] | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """The cacheable part of the flow head: normed hidden [B, S, h] -> features [B, S, d] and each block's KV.

        ``e_t`` [B, d] ([B, S, d] where it differs by position), or None when all S positions are text. ``image`` bool
        [B, S]: positions of the image block (time token included), None when all are. ``past``: KV of each block at
        earlier positions.
        """
        x = self.diff_proj(hidden)
        where = None if image is None else image[..., None]
        seen = []
        for n, block in enumerate(self.diffusion_head_a):
            x, kv = block(x, e_t, rope, mask, None if past is None else past[n], where)
            seen.append(kv)
        return x, seen

    def head_out(self, features: Tensor, e_t: Tensor, image: Tensor | None = None) -> Tensor:
        """features [B, N, d] of the image tokens -> velocity patches [B, N, p*p*c]; ``image`` bool [B, N] where some
        are not."""
        return self.diffusion_head_b(features, e_t, None if image is None else image[..., None])

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
