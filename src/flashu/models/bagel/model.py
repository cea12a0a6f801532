"""BAGEL: the architecture and its weights. Module names are the official checkpoint's.

It knows no acceleration method and keeps no state: the core calls ``embed``, the decoder ``layers``, ``norm``, then
``logits`` or the drawing `head`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashu.models.bagel.config import BagelConfig, LLMConfig
from flashu.models.bagel.content import Content, Latents, embed_contents
from flashu.models.bagel.experts import GEN, SUFFIX, UND, ExpertLayer, each
from flashu.models.bagel.spec import spec_of
from flashu.models.bagel.vision import Connector, PositionTable, VisionModel, patches, table_rows, unpatched
from flashu.models.ffn import FFN
from flashu.models.layers import RMSNorm, Rope, RotaryEmbedding, Span
from flashu.models.lora import ScaleEmbedder
from flashu.models.timestep import TimestepEmbedder
from flashu.plan import ModelSpec


class Decoder(nn.Module):
    def __init__(self, cfg: LLMConfig, experts: Sequence[str]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(ExpertLayer(cfg, experts) for _ in range(cfg.num_hidden_layers))
        for expert in experts:
            self.add_module("norm" + SUFFIX[expert], RMSNorm(cfg.hidden_size, cfg.rms_norm_eps))
        self.rotary_emb = RotaryEmbedding(cfg.head_dim, cfg.rope_theta)
        self.rotary_emb.exact = True  # the released loading keeps the frequencies in fp32


class CausalLM(nn.Module):
    def __init__(self, cfg: LLMConfig, experts: Sequence[str]) -> None:
        super().__init__()
        self.model = Decoder(cfg, experts)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class Bagel(nn.Module):
    """Text, ViT and latent tokens through one decoder of two experts; velocities out of a linear head."""

    name = ""
    quantization: str | None = None
    scale_embedder: ScaleEmbedder | None

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        h, experts = config.llm.hidden_size, (UND, GEN) if config.visual_gen else (UND,)
        self.language_model = CausalLM(config.llm, experts)
        if config.visual_gen:
            self.time_embedder = TimestepEmbedder(h)
            self.vae2llm = nn.Linear(config.token_size, h)
            self.llm2vae = nn.Linear(h, config.token_size)
            self.latent_pos_embed = PositionTable(config.max_latent_size, h)
        self.register_module("scale_embedder", None)  # an adapter that guides by itself has one
        self.vit_model = VisionModel(config.vit)
        self.connector = Connector(config.vit.hidden_size, h)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, h)

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.config)

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.norm.weight.dtype  # type: ignore[union-attr,return-value]

    @property
    def device(self) -> torch.device:
        return self.language_model.model.norm.weight.device  # type: ignore[union-attr,return-value]

    @property
    def layers(self) -> Sequence[ExpertLayer]:
        return self.language_model.model.layers  # type: ignore[return-value]

    @property
    def head(self) -> LinearHead | None:
        return LinearHead(self) if self.config.visual_gen else None

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        return {(i, expert): layer.ffn(expert) for i, layer in enumerate(self.layers) for expert in self.spec.experts}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield self.language_model.model.layers
        if lm_head:
            yield self.language_model.lm_head

    def drawing_linears(self) -> list[str]:
        """Names of the drawing expert's linear layers, which adapters change."""
        return [name for name, part in self.named_modules() if SUFFIX[GEN] in name and hasattr(part, "in_features")]

    def layout(self, processor: Any) -> Any:
        from flashu.models.bagel.layout import BagelLayout  # it writes requests, which are above the models

        return BagelLayout(self, processor)

    # -- what the core calls -----------------------------------------------------------------------------------
    def embed(self, contents: Sequence[Content]) -> list[Tensor]:
        return embed_contents(self, contents)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def rope(self, position: Tensor) -> Rope:
        return self.language_model.model.rotary_emb(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        """Latent tokens are normed by the head: what can be kept between forwards, as TaylorSeer does, is the last
        layer's output."""
        norm, own = self.language_model.model.norm, spans or ((UND, 0, x.shape[1]),)
        return each(own, x, lambda span, y: norm(y) if span[0] == UND else y)  # type: ignore[operator]

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        return self.language_model.lm_head(hidden)

    # -- pictures ----------------------------------------------------------------------------------------------
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1], whole patches -> tokens [B, N, h]."""
        size, side = self.config.vit.patch_size, self.config.vit_max_num_patch_per_side
        rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
        places = table_rows(rows, columns, side).to(pixels.device)
        seen = self.vit_model.vision_model(patches(pixels.to(self.dtype), size), places)
        return self.connector(seen) + self.vit_pos_embed(rows, columns)

    def embed_latents(self, latents: Tensor, times: Tensor, scales: Tensor | None = None) -> Tensor:
        """latents [B, z, h, w] at times [B] -> tokens [B, N, D]. ``scales`` [B, 2]: of the text's and the pictures'
        guidance, for adapters that have learned to guide."""
        rows, columns = (cells // self.config.latent_patch_size for cells in latents.shape[-2:])
        tokens = patches(latents.to(self.dtype), self.config.latent_patch_size)
        condition = self.time_embedder(times)
        if scales is not None:
            assert self.scale_embedder is not None
            condition = condition + self.scale_embedder(scales)
        return self.vae2llm(tokens) + condition[:, None] + self.latent_pos_embed(rows, columns)

    def normed_latents(self, hidden: Tensor) -> Tensor:
        """The final norm of latent tokens."""
        return self.language_model.model.norm_moe_gen(hidden)  # type: ignore[operator]

    def velocity(self, hidden: Tensor, rows: int, columns: int) -> Tensor:
        """Output of the last layer [B, N, D] at latent tokens -> velocity [B, z, h, w], from data to noise."""
        tokens = self.llm2vae(self.normed_latents(hidden))
        return unpatched(tokens, self.config.latent_patch_size, rows, columns)


class LinearHead:
    """The head as the core calls it (see `models.protocol.Head`): no blocks, so what can be kept between forwards is
    the last layer's output at the latent tokens."""

    blocks: Sequence[Any] = ()

    def __init__(self, model: Bagel) -> None:
        self.model = model

    def rope(self, position: Tensor) -> Rope:
        return self.model.rope(position)

    def condition(self, contents: Sequence[Sequence[Any]], width: int) -> tuple[Tensor | None, ...]:
        return ()

    def enter(self, hidden: Tensor) -> Tensor:
        return hidden

    def prediction(self, features: Tensor, contents: Sequence[Sequence[Latents]]) -> Tensor:
        """Velocity [R, z, h, w] of the picture that each row draws, from noise to data, as samplers go."""
        cells = contents[0][0].latents.shape[-2:]
        size = self.model.config.latent_patch_size
        return -self.model.velocity(features, cells[0] // size, cells[1] // size)
