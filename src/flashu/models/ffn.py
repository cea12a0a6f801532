"""Feed-forward networks whose hidden neurons can be chosen, reordered and sliced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.packing import PackedLinear, linear, packed
from flashu.models.quantize import plain, requantized

Tap: TypeAlias = Callable[..., None]
"""Observer of inner values, called as tap(name, value); used by calibration and analysis only."""


class Projection(NamedTuple):
    """A weight [out, in] and its bias [out], where there is one."""

    weight: Tensor
    bias: Tensor | None


class FFNWeights(NamedTuple):
    """The projections of an FFN with K of its neurons: the input ones [K, D] and the output one [D, K]."""

    inputs: tuple[Projection, ...]
    output: Projection


class FFN(nn.Module):
    """output(activate(inputs(x))). A subclass names its linear layers and says what ``activate`` does.

    The order of the neurons is free. ``order`` [K] says which of the checkpoint's neurons each one is, None while they
    are as the checkpoint has them; in a state dict they always are.
    """

    INPUTS: ClassVar[tuple[str, ...]]
    OUTPUT: ClassVar[str]
    order: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_from_own_order)
        self.register_load_state_dict_pre_hook(_to_own_order)

    def activate(self, *inner: Tensor) -> Tensor:
        """The neurons' activations of what the input projections give."""
        raise TypeError(f"{type(self).__name__} must define activate")

    def forward(self, x: Tensor, weights: FFNWeights | None = None, tap: Tap | None = None) -> Tensor:
        """x [..., D] with the module's own weights, or with those passed in."""
        if weights is None:
            inner = self.activate(*(self._modules[name](x) for name in self.INPUTS))  # type: ignore[misc]
        else:
            inner = self.activate(*(linear(x, *projection) for projection in weights.inputs))
        if tap is not None:
            tap("ffn", inner)
        if weights is None:
            return self._modules[self.OUTPUT](inner)  # type: ignore[misc]
        return linear(inner, *weights.output)

    # -- the handle that pruning works with --------------------------------------------------------------------
    @property
    def neurons(self) -> int:
        return self._linear(self.OUTPUT).weight.shape[1]

    def weights(self) -> FFNWeights:
        """All neurons'. `FlashUError` if a projection is more than a linear layer (an adapter)."""
        inputs = tuple(Projection(p.weight, p.bias) for p in map(self._linear, self.INPUTS))
        output = self._linear(self.OUTPUT)
        return FFNWeights(inputs, Projection(output.weight, output.bias))

    def select(self, index: Tensor, scheme: str | None = None) -> FFNWeights:
        """Copies of the neurons at ``index`` [K] (of the checkpoint), quantized under ``scheme`` or packed as the
        module's own are."""
        keep = index.to(self._linear(self.OUTPUT).weight.device)
        if self.order is not None:
            keep = self.order.to(keep.device).argsort()[keep]

        def cut(layer: nn.Linear, dim: int) -> Projection:
            weight = requantized(plain(layer.weight).detach().index_select(dim, keep).contiguous(), scheme)
            bias = layer.bias if dim or layer.bias is None else layer.bias.detach()[keep]
            return Projection(packed(weight) if isinstance(layer, PackedLinear) else weight, bias)

        inputs = tuple(cut(self._linear(name), 0) for name in self.INPUTS)
        return FFNWeights(inputs, cut(self._linear(self.OUTPUT), 1))

    def slice(self, start: int, stop: int) -> FFNWeights:
        """Neurons start..stop as they now lie, as views of the module's own weights."""
        inputs, output = self.weights()
        kept = slice(start, stop)
        cut = tuple(Projection(w.detach()[kept], None if b is None else b.detach()[kept]) for w, b in inputs)
        return FFNWeights(cut, Projection(output.weight.detach()[:, kept], output.bias))

    @torch.no_grad()
    def arrange(self, order: Tensor | None) -> None:
        """Put the neurons in another order, in place and one matrix at a time; None = the checkpoint's."""
        places = torch.arange(self.neurons) if self.order is None else self.order.argsort()
        moved = places if order is None else places[order.cpu()]
        if any(isinstance(self._linear(name), PackedLinear) for name in (*self.INPUTS, self.OUTPUT)):
            raise FlashUError("packed FFN neurons cannot be moved: leave in_place out, so that they are copied")
        for name, tensor in list(self.named_parameters()):
            if (dim := self.neuron_dims().get(name)) is not None:
                tensor.copy_(tensor.index_select(dim, moved.to(tensor.device)))
        self.order = None if order is None else order.cpu()

    def stored(self, values: Tensor, dim: int = -1) -> Tensor:
        """Values of each neuron, along ``dim``, in the checkpoint's order."""
        return values if self.order is None else values.index_select(dim, self.order.argsort().to(values.device))

    def importance(self, norms: Tensor) -> Tensor:
        """Wanda score of each of the checkpoint's neurons: activation norm [K] times the sum of the |weights| that
        read it (FlashU Eq. 2)."""
        reads = plain(self._linear(self.OUTPUT).weight).float().abs().sum(0)
        return self.stored(norms * reads.to(norms.device))

    def _linear(self, name: str) -> nn.Linear:
        part = self._modules[name]
        if not isinstance(part, nn.Linear):
            raise FlashUError(
                f"{name} is a {type(part).__name__}, so its weights alone say too little: merge what is around it "
                "(peft: merge_and_unload) before they are pruned"
            )
        return part

    @classmethod
    def neuron_dims(cls) -> dict[str, int]:
        """The names of the parameters that have a value or row per neuron, and along which dimension."""
        return {f"{n}.{leaf}": 0 for n in cls.INPUTS for leaf in ("weight", "bias")} | {f"{cls.OUTPUT}.weight": 1}


class GatedFFN(FFN):
    """down(silu(gate x) * up x)."""

    INPUTS: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")
    OUTPUT: ClassVar[str] = "down_proj"

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def activate(self, *inner: Tensor) -> Tensor:
        gate, up = inner
        return F.silu(gate) * up


class PlainFFN(FFN):
    """fc2(gelu(fc1 x)), with biases; ``approximate``: of the GELU, "tanh" or "none"."""

    INPUTS: ClassVar[tuple[str, ...]] = ("fc1",)
    OUTPUT: ClassVar[str] = "fc2"

    def __init__(self, hidden: int, intermediate: int, approximate: str = "tanh") -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, intermediate)
        self.fc2 = nn.Linear(intermediate, hidden)
        self.approximate = approximate

    def activate(self, *inner: Tensor) -> Tensor:
        return F.gelu(inner[0], approximate=self.approximate)


def _from_own_order(ffn: FFN, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict is in the checkpoint's order."""
    if ffn.order is not None:
        _reorder(ffn, state, prefix, ffn.order.argsort())


def _to_own_order(ffn: FFN, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Whatever part of a state is loaded joins the neurons that are already here."""
    if ffn.order is not None:
        _reorder(ffn, state, prefix, ffn.order)


def _reorder(ffn: FFN, state: dict[str, Any], prefix: str, order: Tensor) -> None:
    ffn.weights()  # an adapter's weights have other names: they would be passed over
    for name, dim in ffn.neuron_dims().items():
        value = state.get(prefix + name)
        if value is not None and value.ndim > dim and value.shape[dim] == len(order):
            state[prefix + name] = value.detach().index_select(dim, order.to(value.device))
