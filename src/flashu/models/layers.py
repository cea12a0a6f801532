"""Transformer parts shared by the models: norms, rotary embedding, attention, gated FFN, decoder layer.

Nothing here knows an acceleration method. Two arguments are the seams a plan reaches through:
``ffn`` (another weight triple for the gated FFN) and ``past`` (keys and values passed in, never stored).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.products import Linear, Snapshot, Weight, linear, pack

Rope: TypeAlias = tuple[Tensor, Tensor]
"""(cos, sin), each [B, 1, S, head_dim]; the first half of sin has its sign turned (see `rotate`)."""
KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""(k, v), each [B, kv_heads, T, head_dim]; keys are stored after the rotary embedding."""


class Slot(NamedTuple):
    """Keys and values of a decode with room for those to come: k, v [B, kv_heads, C, head_dim], which new ones are
    written into at the indices ``at`` [S]."""

    k: Tensor
    v: Tensor
    at: Tensor


Past: TypeAlias = KeyValue | Slot
FFNWeights: TypeAlias = tuple[Weight, Weight, Weight]
"""(gate [K, D], up [K, D], down [D, K]) of a gated FFN with K kept neurons."""
Tap: TypeAlias = Callable[[str, Tensor], None]
"""Observer of inner values, called as tap(name, value); used by calibration and analysis only."""


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back, then times the weight in the working dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Without a weight the fused norm ends in the working dtype, where the original multiplies by its own.
        return self.weight * F.rms_norm(x, x.shape[-1:], None, self.eps)


class RotaryEmbedding(nn.Module):
    """Half-split rotary frequencies as a non-persistent buffer, optionally with Llama-3 length scaling.

    Casting the model rounds the frequencies too, as in the original program, unless they are kept ``exact``.
    """

    inv_freq: Tensor
    exact = False

    def __init__(self, head_dim: int, theta: float, scaling: dict[str, float] | None = None) -> None:
        super().__init__()
        inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        if scaling is not None:
            inv_freq = llama3_scaled(inv_freq, **scaling)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        before = self.inv_freq
        super()._apply(fn, recurse)
        if self.exact and self.inv_freq.dtype != before.dtype:
            self.inv_freq = before.to(self.inv_freq.device)
        return self

    def forward(self, pos_BS: Tensor) -> Rope:
        angles = pos_BS[:, None, :, None].float() * self.inv_freq.float()
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def llama3_scaled(inv_freq: Tensor, *, factor: float, low: float, high: float, original_length: float) -> Tensor:
    """Slow frequencies are divided by ``factor``, fast ones kept, those between blended linearly."""
    wavelength = 2 * math.pi / inv_freq
    kept = ((original_length / wavelength - low) / (high - low)).clamp(0, 1)
    return inv_freq * kept + inv_freq / factor * (1 - kept)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of x [B, H, S, head_dim]: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    cos, sin = rope
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grouped: bool = False) -> Tensor:
    """Attention of q [B, H, S, d] to k, v [B, H_kv, T, d] -> [B, S, H*d].

    ``mask`` is bool (True = may attend) or additive, broadcastable to [B, H, S, T]; None = everything is visible.
    ``grouped``: each kv head serves H / H_kv consecutive query heads.
    """
    if grouped and q.shape[2] == 1:
        # The one query's heads that share keys are rows of one product: some kernels are slow at the same in heads.
        rows = q.view(len(q), k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(len(q), 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2).flatten(2)


def appended(k: Tensor, v: Tensor, past: Past | None) -> KeyValue:
    """All keys and values after k, v [B, kv_heads, S, head_dim] have joined ``past``."""
    if past is None:
        return k, v
    if isinstance(past, Slot):
        return past.k.index_copy_(2, past.at, k), past.v.index_copy_(2, past.at, v)
    return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)


class Joining(nn.Module):
    """A module with linear layers that read the same input. Once `join`ed their weights lie side by side, so that one
    product does for all where no gradient is asked for; the parameters stay what they are, views of that storage."""

    JOINT: ClassVar[tuple[str, ...]]
    _joint: tuple[list[tuple[nn.Linear, Tensor]], Tensor, Tensor | None] | None = None
    _packed: Snapshot | None = None

    @torch.no_grad()
    def join(self) -> None:
        parts = [getattr(self, name) for name in self.JOINT]

        def side_by_side(tensors: list[Tensor]) -> Tensor:
            joint = torch.cat(tensors)
            for tensor, view in zip(tensors, joint.split([len(t) for t in tensors]), strict=True):
                tensor.data = view
            return joint

        weight = side_by_side([part.weight for part in parts])
        bias = None if parts[0].bias is None else side_by_side([part.bias for part in parts])
        self._joint, self._packed = ([(part, part.weight) for part in parts], weight, bias), None

    def pack(self) -> None:
        """Pack the joint weight (see `products.Packed`)."""
        if self.joint() is None:
            self.join()
        assert self._joint is not None
        parts, weight, _ = self._joint
        self._packed = Snapshot.take(pack(weight), [own for _, own in parts])

    def joint(self) -> tuple[Weight, Tensor | None] | None:
        """The joint weight and bias; None unless they are there, current and enough."""
        if self._joint is None or torch.is_grad_enabled():
            return None
        parts, weight, bias = self._joint
        # Who puts another layer (an adapter), parameter (quantized, offloaded) or other data in place, means that one.
        for name, (part, own) in zip(self.JOINT, parts, strict=True):
            if self._modules[name] is not part or part.weight is not own:
                return None
        if torch.compiler.is_compiling():
            return weight, bias
        place = weight.data_ptr()
        for _, own in parts:
            if own.data_ptr() != place:
                return None
            place += own.nbytes
        packed = self._packed
        return weight if packed is None or not packed.holds(*(own for _, own in parts)) else packed.made, bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Joining:
        super()._apply(fn, recurse)
        if self._joint is not None:  # what moved or was cast no longer lies side by side
            self.join()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_joint": self._joint is not None, "_packed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        joined = state.pop("_joint")
        super().__setstate__(state)
        if joined:  # copied and unpickled parameters have storage of their own
            self.join()


class Attention(Joining):
    """Grouped-query attention with rotary positions; per-head q/k RMSNorm when ``qk_norm_eps`` is given."""

    JOINT: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotary: RotaryEmbedding,
        *,
        qkv_bias: bool,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.grouped = heads != kv_heads
        self.q_proj = Linear(hidden, heads * head_dim, bias=qkv_bias)
        self.k_proj = Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = Linear(heads * head_dim, hidden, bias=False)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.rotary_emb = rotary

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of x [B, S, D], one after another: [B, heads + 2 kv_heads, S, head_dim]."""
        joint = self.joint()
        if joint is not None:
            y = linear(x, *joint)
        else:
            y = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        # The count of heads is written out for the compiler, which else takes it for one more open size.
        return y.unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor, rope: Rope, past: Past | None) -> KeyValue:
        """Keys and values of x [B, S, D] behind those of ``past``."""
        heads = self.kv_heads, self.head_dim
        k, v = (proj(x).unflatten(-1, heads).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        if self.k_norm is not None:
            k = self.k_norm(k)
        return appended(rotate(k, rope), v, past)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None = None, past: Past | None = None, tap: Tap | None = None
    ) -> tuple[Tensor, KeyValue]:
        turned, v = self.project(x).split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = turned.split((self.heads, self.kv_heads), dim=1)
            turned = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        q, k = rotate(turned, rope).split((self.heads, self.kv_heads), dim=1)
        k, v = appended(k, v, past)
        if tap is not None:
            tap("query", q)
            tap("key", k)
            tap("value", v)
        return self.o_proj(attend(q, k, v, mask, self.grouped)), (k, v)


class GatedFFN(Joining):
    """down(silu(gate x) * up x), with the module's own weights or the triple passed in.

    The order of the neurons is free. ``order`` [K] says which of the checkpoint's neurons each one is, None while
    they are as the checkpoint has them; in a state dict they always are.
    """

    JOINT: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")
    NEURONS: ClassVar[dict[str, int]] = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    order: Tensor | None

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate, bias=False)
        self.up_proj = Linear(hidden, intermediate, bias=False)
        self.down_proj = Linear(intermediate, hidden, bias=False)
        self.register_buffer("order", None, persistent=False)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the projections; `FlashUError` if one is more than a projection."""
        for name in self.NEURONS:
            if not isinstance(part := self._modules[name], nn.Linear):
                raise FlashUError(
                    f"{name} is a {type(part).__name__}, so its weights alone say too little: merge what is around "
                    "it (peft: merge_and_unload) before they are pruned or compiled"
                )
        return self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight

    def stored(self, values: Tensor, dim: int = -1) -> Tensor:
        """Values of each neuron, along ``dim``, in the checkpoint's order."""
        return values if self.order is None else values.index_select(dim, self.order.argsort().to(values.device))

    @torch.no_grad()
    def arrange(self, order: Tensor | None) -> None:
        """Put the neurons in another order, in place and one matrix at a time; None = the checkpoint's."""
        places = torch.arange(len(self.gate_proj.weight)) if self.order is None else self.order.argsort().cpu()
        moved = places if order is None else places[order.cpu()]
        for weight, dim in zip(self.weights(), self.NEURONS.values(), strict=True):
            weight.copy_(weight.index_select(dim, moved.to(weight.device)))
        self.order = order

    def state_dict(self, *args: Any, **settings: Any) -> Any:
        state = super().state_dict(*args, **settings)
        if self.order is not None:
            for name, dim in self.NEURONS.items():
                key = f"{settings.get('prefix', '')}{name}.weight"
                state[key] = self.stored(state[key].detach(), dim)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}down_proj.weight" in state_dict:
            self.order = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor, ffn: FFNWeights | None = None, tap: Tap | None = None) -> Tensor:
        if ffn is not None:
            a, b = linear(x, ffn[0]), linear(x, ffn[1])
        elif (joint := self.joint()) is not None:
            a, b = linear(x, *joint).chunk(2, dim=-1)
        else:
            a, b = self.gate_proj(x), self.up_proj(x)
        inner = F.silu(a) * b
        if tap is not None:
            tap("ffn", inner)
        return self.down_proj(inner) if ffn is None else linear(inner, ffn[2])


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer (Qwen2 form)."""

    def __init__(self, attention: Attention, hidden: int, intermediate: int, eps: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = GatedFFN(hidden, intermediate)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None = None,
        past: Past | None = None,
        ffn: FFNWeights | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]:
        attended, kv = self.self_attn(self.input_layernorm(x), rope, mask, past, tap)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x), ffn, tap), kv

    def keys_values(self, x: Tensor, rope: Rope, past: Past | None = None) -> KeyValue:
        """What a skipped layer still owes a growing cache: its keys and values of x."""
        return self.self_attn.keys_values(self.input_layernorm(x), rope, past)
