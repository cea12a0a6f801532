"""Janus-Pro: the architecture and its weights. Module names are those of transformers' class.

Words and codes have an embedding and a head each. Codes are the ids behind the words' (`JanusConfig.codes`), so that to
the core they are a range of one vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flashu.models.ffn import FFN
from flashu.models.janus.config import JanusConfig, TextConfig
from flashu.models.janus.spec import spec_of
from flashu.models.janus.vision import Aligner, CodeHead, VisionModel, stacked
from flashu.models.layers import Attention, DecoderLayer, RMSNorm, Rope, RotaryEmbedding, Span
from flashu.plan import ModelSpec


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture to be seen: pixels [3, H, W], normalised."""

    pixels: Tensor


Content: TypeAlias = "Tensor | Seen"
"""Ids [S], or a picture."""


class Decoder(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        head_dim = cfg.hidden_size // cfg.num_attention_heads
        rotary = RotaryEmbedding(head_dim, cfg.rope_theta)
        rotary.exact = True  # the original's frequencies are fp32 whatever the weights are

        def layer() -> DecoderLayer:
            heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
            attention = Attention(cfg.hidden_size, heads, kv_heads, head_dim, rotary, qkv_bias=False)
            return DecoderLayer(attention, cfg.hidden_size, cfg.intermediate_size, cfg.rms_norm_eps)

        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(layer() for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.rotary_emb = rotary


class Body(nn.Module):
    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        hidden, vision, vq = config.text.hidden_size, config.vision, config.vq
        self.vision_model = VisionModel(vision)
        self.aligner = Aligner(vision.hidden_size, hidden, vision.depth)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = Aligner(vq.embed_dim, hidden, vq.num_hidden_layers)
        self.generation_head = CodeHead(hidden, vq.projection_dim, vq.num_embeddings)
        self.language_model = Decoder(config.text)


class Janus(nn.Module):
    """One decoder that draws code after code and answers word after word."""

    name = ""
    quantization: str | None = None
    head = None

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.config)

    @property
    def decoder(self) -> Decoder:
        return self.model.language_model

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device

    @property
    def layers(self) -> Sequence[Any]:
        return self.decoder.layers  # type: ignore[return-value]

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        return {(i, "ffn"): layer.mlp for i, layer in enumerate(self.layers)}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield self.decoder.layers
        if lm_head:
            yield self.lm_head

    def layout(self, processor: Any) -> Any:
        from flashu.models.janus.layout import JanusLayout  # it writes requests, which are above the models

        return JanusLayout(self, processor)

    # -- what the core calls -----------------------------------------------------------------------------------
    def embed(self, contents: Sequence[Content]) -> list[Tensor]:
        """Each picture goes through the tower once."""
        pictures = {id(content.pixels): content.pixels for content in contents if isinstance(content, Seen)}
        blocks: dict[int, Tensor] = {}
        if pictures:
            seen = self.embed_pixels(stacked(list(pictures.values()), self.device))
            blocks = dict(zip(pictures, seen, strict=True))
        return [
            blocks[id(content.pixels)] if isinstance(content, Seen) else self.embed_tokens(content.to(self.device))
            for content in contents
        ]

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D]."""
        return self.model.aligner(self.model.vision_model(pixels))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Words, or codes, or both: which of them is not asked, as that would wait for the device."""
        first, end = self.config.codes
        words = self.decoder.embed_tokens(ids.clamp(max=first - 1))
        codes = self.model.generation_aligner(self.model.generation_embeddings((ids - first).clamp(0, end - first - 1)))
        return torch.where((ids < first)[..., None], words, codes)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def rope(self, position: Tensor) -> Rope:
        return self.decoder.rotary_emb(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        return self.decoder.norm(x)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        """Over the words, or over the codes."""
        return self.lm_head(hidden) if codes is None else self.model.generation_head(hidden)
