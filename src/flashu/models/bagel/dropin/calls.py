"""What the authors' inferencer gives the two methods that are replaced, understood; and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.vision import table_rows
from flashu.runtime.context import KV, Context
from flashu.runtime.layout import TokenLayout


class NotHere(Exception):
    """Why only the original can compute a call."""


@dataclass(frozen=True)
class Held:
    """One of the original's contexts: its cache, and where the next token stands."""

    keys: list[Tensor]
    values: list[Tensor]
    position: int

    @classmethod
    def of(cls, cache: Any, lengths: Any, position: Tensor) -> Held:
        """From a cache whose ``key_cache`` and ``value_cache`` hold [T, kv_heads, head_dim] by layer."""
        count = int(torch.as_tensor(lengths).sum())
        if not count:
            return cls([], [], int(position[0]))
        layers = range(len(cache.key_cache))
        keys, values = ([part[n] for n in layers] for part in (cache.key_cache, cache.value_cache))
        if any(x is None or len(x) != count for x in (*keys, *values)):
            raise NotHere("a cache holds another number of tokens than is said")
        return cls(keys, values, int(position[0]))

    def same(self, other: Held) -> bool:
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=False)
        alike = len(self.keys) == len(other.keys) and self.position == other.position
        return alike and all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)

    def context(self, key: object, dtype: torch.dtype) -> Context:
        if not self.keys:
            empty = Context()
            empty.position = self.position
            return empty
        layers = [
            tuple(x.to(dtype).transpose(0, 1)[None] for x in pair) for pair in zip(self.keys, self.values, strict=True)
        ]
        layout = TokenLayout.causal([len(self.keys[0])])
        return Context.holding(KV(layers, [layout] * len(layers)), self.position, key)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DrawCall:
    """One call of `generate_image` for one image."""

    noise: Tensor
    size: tuple[int, int]
    markers: tuple[int, int]
    main: Held
    text: Held
    image: Held
    points: int
    shift: float
    scales: tuple[float, float]
    interval: tuple[float, float]
    renorm: str
    renorm_min: float

    @classmethod
    def of(cls, given: Mapping[str, Any], config: BagelConfig) -> DrawCall:
        if len(given["packed_seqlens"]) != 1:
            raise NotHere("several images are packed into one call, whose norms the original mixes")
        if given.get("enable_taylorseer"):
            raise NotHere("the original's own TaylorSeer is asked for; give a recipe with taylor_seer")
        places, side = given["packed_vae_position_ids"].cpu(), config.max_latent_size
        rows, columns = int(places.max()) // side + 1, int((places % side).max()) + 1
        if not torch.equal(places, table_rows(rows, columns, side)):
            raise NotHere("the latents' positions are not those of one whole image")
        ids = given["packed_text_ids"].tolist()

        def held(prefix: str) -> Held:
            cache = given.get(f"{prefix}past_key_values")
            position = given[f"{prefix}packed_position_ids"]
            return Held.of(cache, given[f"{prefix}key_values_lens"], position)

        return cls(
            given["packed_init_noises"],
            (rows, columns),
            (ids[0], ids[1]),
            held(""),
            held("cfg_text_"),
            held("cfg_img_"),
            int(given.get("num_timesteps", 24)),
            float(given.get("timestep_shift", 1.0)),
            (float(given.get("cfg_text_scale", 1.0)), float(given.get("cfg_img_scale", 1.0))),
            tuple(given.get("cfg_interval", (0, 1))),
            given.get("cfg_renorm_type", "global"),
            float(given.get("cfg_renorm_min", 0.0)),
        )
