"""CUDA graphs: forwards captured once and replayed, so that no time goes into launching their kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flashu.runtime.cache import KVPool


@dataclass(frozen=True, eq=False)
class Captured:
    """A captured function: a replay reads ``inputs`` and writes ``output``, in place."""

    inputs: Sequence[Tensor]
    output: Tensor
    replay: Callable[[], Any]


Capture = Callable[[Callable[..., Tensor], Sequence[Tensor]], Captured]


class CudaCapture:
    """Captures functions as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self.memory: Any = None

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Captured:
        self.memory = self.memory or torch.cuda.graph_pool_handle()
        held = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory):
            output = function(*held)
        return Captured(held, output, graph.replay)


class GraphPool:
    """The captured graphs of an engine. A graph belongs to an ``owner``, the memory it reads besides its inputs (a
    cache), and lives as long. One thread captures or replays at a time, as the graphs share memory.

    A function must be work on the device alone, the same for every call of its key but for its inputs.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture or CudaCapture()
        self.blocks = KVPool()
        """Where decodes get their memory: graphs over it outlive the request they were captured in."""
        self._lock = threading.Lock()
        self._graphs: WeakKeyDictionary[Any, dict[Hashable, Captured | None]] = WeakKeyDictionary()

    def __call__(self, owner: Any, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``: called the first time, captured the second, replayed from then on."""
        with self._lock:
            known = self._graphs.setdefault(owner, {})
            if key not in known:
                known[key] = None
                return function(*inputs)
            captured = known[key]
            if captured is None:
                captured = known[key] = self.capture(function, inputs)
            for held, given in zip(captured.inputs, inputs, strict=True):
                held.copy_(given)
            captured.replay()
            return captured.output.clone()  # the next replay writes over it
