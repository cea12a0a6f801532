"""What the runtime asks of a unified model. Show-o2 is the first to answer; others join by the same names."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from flashu.models.layers import FFNWeights, KeyValue, Past, Rope, Tap


class UnifiedModel(Protocol):
    """One transformer that draws and sees. Shapes: B rows, S tokens, h decoder width, d head width, N image tokens."""

    @property
    def num_layers(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def layers(self) -> Any: ...
    @property
    def quantization(self) -> str | None: ...

    packed: bool

    def embed_text(self, ids_BS: Tensor) -> Tensor: ...
    def embed_latent(self, latents: Tensor) -> Tensor: ...
    def embed_time(self, t_B: Tensor) -> tuple[Tensor, Tensor]: ...
    def rope(self, pos_BS: Tensor) -> Rope: ...
    def head_rope(self, pos_BS: Tensor) -> Rope: ...
    def layer(
        self,
        i: int,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None = None,
        past: Past | None = None,
        ffn: FFNWeights | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]: ...
    def norm(self, x: Tensor) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def head_body(
        self,
        hidden: Tensor,
        e_t: Tensor | None,
        rope: Rope,
        mask: Tensor | None = None,
        past: list[KeyValue] | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]: ...
    def head_out(self, features: Tensor, e_t: Tensor, image: Tensor | None = None) -> Tensor: ...
    def unpatchify(self, patches: Tensor, height: int, width: int) -> Tensor: ...
