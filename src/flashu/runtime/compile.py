"""Layers by `torch.compile`. The plan is branched on outside, so a compiled layer never sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flashu.models.ffn import FFNWeights
from flashu.models.layers import AttentionContext, KeyValue, Span

LIMIT = 32
"""Graphs of one function. A kind of input met after that runs eagerly; torch says so in one log line."""
SEGMENTS = (12, 4)
"""Layers that take a single token as one compiled function, the most that fit: each call costs, and any set of skipped
layers is made of these and single ones."""

FFN = Mapping[str, FFNWeights] | None


def run_layer(layer: Any, x: Tensor, context: AttentionContext, *more: Any) -> tuple[Tensor, KeyValue]:
    """A decoder layer (``more``: its FFN weights) or a head block (``more``: its condition)."""
    return layer(x, context, *more)


def run_segment(
    layers: Sequence[Any],
    x: Tensor,
    contexts: Sequence[AttentionContext],
    ffns: Sequence[FFN],
    norm: Callable[[Tensor, tuple[Span, ...]], Tensor] | None = None,
    collect: tuple[int, ...] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Neighbouring layers on a few tokens, and the final ``norm`` after the last: the output, and those of the layers
    to ``collect``. Keys and values go into the static cache."""
    collected = []
    for n, (layer, context, ffn) in enumerate(zip(layers, contexts, ffns, strict=True)):
        x, _ = layer(x, context, ffn)
        if n in collect:
            collected.append(x)
    return x if norm is None else norm(x, contexts[-1].spans), collected


class LayerCalls:
    """How layers are called: ``layer`` for image blocks, ``head_block`` for the drawing head's, ``segment`` for single
    tokens. ``device``: where they compute; ``options``: of `torch.compile`."""

    def __init__(self, compiled: bool = False, device: torch.device | str = "cpu", **options: Any) -> None:
        self.compiled = compiled
        self.layer, self.head_block, self.segment = run_layer, run_layer, run_segment
        if compiled:
            # Three functions of their own, so that each has its own count of graphs.
            self.layer = _compile(lambda *given: run_layer(*given), dynamic=True, **options)
            self.head_block = _compile(lambda *given: run_layer(*given), dynamic=True, **options)
            if "backend" not in options and torch.device(device).type == "cpu":
                # A token's kernels are so short that calling them from Python took a quarter of its time on `scenes`.
                options["options"] = {"cpp_wrapper": True, **options.get("options", {})}
            self.segment = _compile(lambda *given: run_segment(*given), dynamic=False, **options)


def hooked(layer: Any) -> bool:
    """Whether a part of a layer has forward hooks. Compiled code passes over those that came after it, and checking for
    them at every call costs 7 % of an answer on `scenes`; so a request looks once (torch has no public way to ask)."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())


def _compile(function: Any, **options: Any) -> Any:
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options |= {"recompile_limit": LIMIT, "isolate_recompiles": True}
        return torch.compile(function, **options)
    # torch before 2.12 has one limit for the whole process, and no public way to set it.
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    return torch.compile(function, **options)
