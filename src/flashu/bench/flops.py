"""FLOPs counted from the operators a run dispatches and predicted from shapes; bytes that must be read at least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flashu.bench.kinds import ORIGINAL, PROMPT, Kind
from flashu.inference.calibrate.bank import alignment, keep_count
from flashu.models.quantize import weight_bytes
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.model import ShowO2
from flashu.plan import cost


def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted sum of q [B, H, S, d] over k, v [B, H', T, d]."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def product(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """x [..., in] times weight [out, in] transposed."""
    return 2 * math.prod(x) * weight[0]


# Of the CPU's own kernels torch counts neither attention nor oneDNN's products.
CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.mkldnn._linear_pointwise: product,
}


class FlopClock:
    """A clock that reads FLOPs; use inside `counting`."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=CPU)

    def now(self) -> float:
        return float(self.counter.get_total_flops())

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        pass


@contextmanager
def counting(clock: FlopClock) -> Iterator[None]:
    with clock.counter:
        yield


def original_forward(cfg: ShowO2Config, rows: int, length: int, image_tokens: int) -> int:
    """FLOPs of one forward of the released program's drawing loop: ``rows`` padded rows (guidance doubles them)."""
    llm, head = cfg.llm, cfg.head
    layers = llm.num_hidden_layers * cost.decoder_layer(cfg, length, length, llm.intermediate_size)
    logits = 2 * length * llm.hidden_size * llm.vocab_size
    out = cost.head_out(cfg, length)
    modulation = 2 * head.num_layers * 6 * head.hidden_size**2
    return rows * (
        cost.semantic_path(cfg, image_tokens) + layers + logits + cost.head_body(cfg, length, length) + modulation + out
    )


def original_token(cfg: ShowO2Config, rows: int, length: int) -> int:
    """FLOPs of one token of its answering loop, over rows already ``length`` long."""
    llm = cfg.llm
    layers = llm.num_hidden_layers * cost.decoder_layer(cfg, length, length, llm.intermediate_size)
    return rows * (layers + 2 * length * llm.hidden_size * llm.vocab_size)


class Reads:
    """Bytes a forward cannot do without: every weight it uses once, and the cache. ``cached``: tokens in the cache,
    over all rows of a batch."""

    def __init__(self, model: ShowO2, cached: int) -> None:
        layer, llm = model.get_submodule("showo.model.layers.0"), model.config.llm
        item = model.dtype.itemsize
        self.layers, self.neurons, self.neuron = (
            llm.num_hidden_layers,
            llm.intermediate_size,
            3 * llm.hidden_size * item,
        )
        self.attention = size(layer) - size(layer.get_submodule("mlp"))
        self.features = size(
            model.image_embedder_und, model.image_embedder_gen, model.und_trans, model.position_embedding
        ) + size(model.fusion_proj)
        self.head, self.out = size(model.diff_proj, model.diffusion_head_a), size(model.diffusion_head_b)
        self.logits = size(model.showo.lm_head)
        head_dim = llm.hidden_size // llm.num_attention_heads
        self.cache = cached * llm.num_hidden_layers * 2 * llm.num_key_value_heads * head_dim * item

    def of(self, kind: Kind, drawing: bool) -> int:
        """Bytes one forward of a kind reads."""
        neurons = keep_count(self.neurons, kind.pruned, alignment(self.neurons)) if kind.pruned else self.neurons
        decoder = (self.layers - kind.skipped) * (self.attention + neurons * self.neuron)
        reads = {
            "denoise": self.features + decoder + self.head + self.out,
            "reuse": self.out,
            "reuse with probe": self.features + decoder + self.out,
            PROMPT: decoder + self.head,
            "prefill": decoder + self.logits,
            "decode": decoder + self.logits + self.cache,
            ORIGINAL: decoder + self.logits + (self.features + self.head + self.out if drawing else 0),
        }
        return reads.get(kind.step, 0)


def size(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters."""
    return sum(map(weight_bytes, modules))
