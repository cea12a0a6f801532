"""A stand-in for the authors' class: its attributes and the shapes of its calls, written for these tests."""

from __future__ import annotations

import torch

from flashu.models.bagel import naive
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.vision import table_rows


class NaiveCache:
    """Keys and values [T, kv_heads, head_dim] by layer."""

    def __init__(self, layers: int) -> None:
        self.key_cache = dict.fromkeys(range(layers))
        self.value_cache = dict.fromkeys(range(layers))

    def taken(self, position: int) -> naive.Cache:
        if self.key_cache[0] is None:
            return naive.Cache(position=position)
        return naive.Cache(list(self.key_cache.values()), list(self.value_cache.values()), position)

    def put(self, cache: naive.Cache) -> None:
        self.key_cache = dict(enumerate(cache.keys))
        self.value_cache = dict(enumerate(cache.values))


class AuthorsBagel(Bagel):
    """Names and calls of the original; all of its computing is `naive`'s."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__(config)
        self.sizes, self.calls = config, []
        del self.config
        self.config = type("Config", (), {"vit_config": config.vit, "llm_config": config.llm})()
        self.latent_patch_size = config.latent_patch_size

    def forward_cache_update_vae(self, *given):
        raise NotImplementedError

    def own(self) -> Bagel:
        plain = Bagel.__new__(Bagel)
        plain.__dict__ = {**self.__dict__, "config": self.sizes}
        return plain

    def text(self, cache: NaiveCache, position: int, ids) -> int:
        held = cache.taken(position)
        naive.add_text(self.own(), held, ids)
        cache.put(held)
        return held.position

    def picture(self, cache: NaiveCache, position: int, latents, pixels, markers) -> int:
        held = cache.taken(position)
        naive.add_latents(self.own(), held, latents, markers)
        naive.add_seen(self.own(), held, pixels, markers)
        cache.put(held)
        return held.position

    def prepare_vae_latent(self, length: int, position: int, size, markers, noise):
        rows, columns = size
        count = rows * columns
        return {
            "packed_text_ids": torch.tensor(markers),
            "packed_init_noises": noise,
            "packed_vae_position_ids": table_rows(rows, columns, self.sizes.max_latent_size),
            "packed_seqlens": torch.tensor([count + 2], dtype=torch.int32),
            "packed_position_ids": torch.full((count + 2,), position),
            "key_values_lens": torch.tensor([length], dtype=torch.int32),
        }

    def generate_image(self, *, num_timesteps=24, timestep_shift=1.0, cfg_interval=(0, 1), cfg_text_scale=1.0,
                       cfg_img_scale=1.0, cfg_renorm_type="global", cfg_renorm_min=0.0, **given):  # fmt: skip
        self.calls.append("generate_image")
        places = given["packed_vae_position_ids"]
        side = self.sizes.max_latent_size
        size = int(places.max()) // side + 1, int((places % side).max()) + 1
        names = ("", "cfg_text_", "cfg_img_")
        caches = [given[f"{n}past_key_values"].taken(int(given[f"{n}packed_position_ids"][0])) for n in names]
        x, markers = given["packed_init_noises"], tuple(given["packed_text_ids"].tolist())
        u = torch.linspace(1, 0, num_timesteps)
        times = timestep_shift * u / (1 + (timestep_shift - 1) * u)
        for index in range(num_timesteps - 1):
            t = times[index]
            guided = bool(t > cfg_interval[0]) and bool(t <= cfg_interval[1])
            scales = (1.0, cfg_text_scale if guided else 1.0, cfg_img_scale if guided else 1.0)
            v = [
                naive.velocity(self.own(), x, float(t), size, cache, markers) if not n or scales[n] > 1 else None
                for n, cache in enumerate(caches)
            ]
            v = naive.guided(v[0], v[1], v[2], scales[1:], cfg_renorm_type, cfg_renorm_min)
            x = x - v * (t - times[index + 1])
        return x.split((given["packed_seqlens"] - 2).tolist())

    def generate_text(self, *, past_key_values, key_values_lens, packed_start_tokens, packed_query_position_ids,
                      max_length, do_sample=False, temperature=1.0, end_token_id=None):  # fmt: skip
        self.calls.append("generate_text")
        cache = past_key_values.taken(int(packed_query_position_ids[0])).copy()
        ids = [int(packed_start_tokens[0])]
        for token in naive.decoded(self.own(), cache, ids[0], max_length):
            if token == end_token_id or len(ids) == max_length:
                break
            ids.append(token)
        return torch.tensor(ids)[:, None]
