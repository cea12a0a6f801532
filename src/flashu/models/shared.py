"""A model of ours over the modules of another class: one set of weights, two ways to compute."""

from __future__ import annotations

from torch import nn

from flashu.errors import CheckpointError


def share_modules(view: nn.Module, module: nn.Module) -> None:
    """Put into ``view``, wherever it has a part with parameters of its own, the part of ``module`` with that name: a
    linear layer, an embedding, a norm, or whatever wraps one there. `CheckpointError` unless all are there."""
    own = [
        name
        for name, part in view.named_modules()
        if name and not list(part.children()) and list(part.parameters(recurse=False))
    ]
    missing = [name for name in own if not _has(module, name)]
    if missing:
        raise CheckpointError(f"{type(module).__name__} has no {missing[0]}: it is of another structure")
    for name in own:
        theirs, ours = module.get_submodule(name), view.get_submodule(name)
        weight, expected = getattr(theirs, "weight", None), getattr(ours, "weight", None)
        if weight is not None and expected is not None and weight.shape != expected.shape:
            raise CheckpointError(f"{name} is {list(weight.shape)}, expected {list(expected.shape)}")
        owner, _, leaf = name.rpartition(".")
        setattr(view.get_submodule(owner), leaf, theirs)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
