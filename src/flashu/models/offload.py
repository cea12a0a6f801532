"""Weights in main memory, brought to the device for the call that needs them and no longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flashu.errors import FlashUError
from flashu.models.ffn import FFN, FFNWeights, Projection

LARGE = (nn.Linear, nn.Conv2d)


def offload(model: Any, device: torch.device | str) -> None:
    """Let a model whose weights lie on the CPU compute on ``device``, for good.

    Projections are accelerate's to move, and on the meta device between calls. An FFN keeps its weights and is handed
    them as if they were a bank's, so a bank takes their place on the way too. Words are looked up on the CPU; norms and
    position tables stay on ``device``. `FlashUError` without accelerate.
    """
    try:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    except ModuleNotFoundError as error:
        raise FlashUError('offloading needs accelerate: pip install ".[offload]" in a clone of flashu') from error
    place = torch.device(device)
    words = model.get_input_embeddings()
    within = {projection for ffn in model.modules() if isinstance(ffn, FFN) for projection in ffn.children()}
    for module in list(model.modules()):
        if isinstance(module, FFN):
            module.register_forward_pre_hook(_hand_over(place))
        elif module is words:
            add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
        elif isinstance(module, LARGE):
            if module not in within:
                add_hook_to_module(module, AlignDevicesHook(place, offload=True))
        else:
            module._apply(lambda tensor: tensor.to(place), recurse=False)


def offloaded(model: Any) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _hand_over(device: torch.device) -> Callable[..., Any]:
    def moved(projection: Projection) -> Projection:
        weight, bias = projection
        return Projection(weight.to(device), None if bias is None else bias.to(device))

    def hook(ffn: FFN, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, weights, tap = (*args, None, None)[:3]
        inputs, output = weights or ffn.weights()
        return x, FFNWeights(tuple(map(moved, inputs)), moved(output)), tap

    return hook
