"""One storage, two views: our model over the weights of an instance of the original authors' class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import CheckpointError


def share_parameters(view: nn.Module, module: nn.Module, title: str) -> None:
    """Point every parameter of ``view``, a model of ``title``, at that of ``module``; `CheckpointError` unless they
    correspond, before any is."""
    theirs = dict(module.named_parameters(remove_duplicate=False))
    ours = dict(view.named_parameters(remove_duplicate=False))
    kind = type(module).__name__
    if wrong := sorted(theirs.keys() ^ ours.keys()):
        raise CheckpointError(f"{kind} has other weights than a {title} of its size: {wrong[:6]}")
    for name, parameter in theirs.items():
        if parameter.shape != ours[name].shape:
            raise CheckpointError(f"{name} is {list(parameter.shape)}, a {title} has {list(ours[name].shape)}")
    for name, parameter in theirs.items():
        owner, leaf = place(view, name)
        setattr(owner, leaf, parameter)


def stamp(module: nn.Module) -> tuple[object, ...]:
    """Changes whenever a weight or buffer is replaced, cast, moved or written to."""

    def state(t: Tensor) -> tuple[object, ...]:
        # The storage, as assigning ``.data`` (weights swapped for their average) changes neither id nor version.
        return id(t), t.untyped_storage().data_ptr(), t.dtype, t.device, None if t.is_inference() else t._version

    return tuple(state(t) for group in (module.parameters(), module.buffers()) for t in group)


def place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def sampled_token(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None = None) -> Tensor:
    """Next token of each row [B] from logits [B, V], sampled as the authors' loops do, from torch's own generator.

    It samples even where one token is left (top_k 1), so that the generator goes on as with the original. ``top_p``
    keeps the fewest tokens that hold so much of the mass.
    """
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(-1)
        logits = logits.scatter(1, index, ordered.masked_fill((p.cumsum(-1) - p) > top_p, -torch.inf))
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


def attribute(holder: Any, path: str, default: Any) -> Any:
    """An attribute of an attribute, "a.b"; the default where one is missing."""
    for name in path.split("."):
        holder = getattr(holder, name, None)
    return default if holder is None else holder
