"""CUDA graphs: forwards recorded once and replayed, so that no time goes into launching their kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a recording reads and writes: replaying it reads ``inputs`` and writes ``output``, in place."""

    inputs: Sequence[Tensor]
    output: Tensor
    replay: Callable[[], Any]


Record = Callable[[Callable[..., Tensor], Sequence[Tensor]], Recorded]


class CudaGraphs:
    """Records a function of tensors as a CUDA graph; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Recorded:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        held = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = function(*held)
        return Recorded(held, output, graph.replay)


class Replays:
    """The recorded forwards of one run, by kind. ``record`` None: every call is an ordinary one.

    A function must be work on the device alone, the same for every call of its kind but for its inputs; what else it
    reads may change only in place.
    """

    def __init__(self, record: Record | None) -> None:
        self.record = record
        self._recorded: dict[Hashable, Recorded | None] = {}

    def __call__(self, kind: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``: called the first time, recorded the second, replayed from then on."""
        if self.record is None:
            return function(*inputs)
        if kind not in self._recorded:
            self._recorded[kind] = None
            return function(*inputs)
        recorded = self._recorded[kind]
        if recorded is None:
            recorded = self._recorded[kind] = self.record(function, inputs)
        for held, given in zip(recorded.inputs, inputs, strict=True):
            held.copy_(given)
        recorded.replay()
        return recorded.output.clone()  # the next replay writes over it
