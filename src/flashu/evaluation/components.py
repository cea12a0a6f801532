"""The components of a request: the calls through which all of its work goes, each named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from flashu.evaluation.timing import Clock
from flashu.inference.engine import Engine
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from flashu.runtime.slots import SlotPool

COMPONENTS = FEATURES, DECODER, LOGITS, HEAD, AUTOENCODER = "features", "LLM", "logits", "head", "VAE"
Part: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""Name of a component -> a context around its work."""


class TracedModel:
    """A model that embeds, gives logits and predicts (its head) inside ``part``. All else is the model's own."""

    def __init__(self, model: Any, part: Part) -> None:
        self._model, self.part = model, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def head(self) -> Any:
        head = self._model.head
        return None if head is None else _TracedHead(head, self.part)

    def embed(self, contents: Sequence[Any]) -> list[Tensor]:
        with self.part(FEATURES):
            return self._model.embed(contents)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        with self.part(LOGITS):
            return self._model.logits(hidden, codes)


class _TracedHead:
    def __init__(self, head: Any, part: Part) -> None:
        self._head, self._part = head, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def prediction(self, features: Tensor, contents: Sequence[Sequence[Any]]) -> Tensor:
        with self._part(HEAD):
            return self._head.prediction(features, contents)


class TracedRunner(Runner):
    """The runner of a `TracedModel`: decoder and head go inside its ``part``, from outside what may be compiled."""

    model: Any

    def walk(self, *args: Any, **settings: Any) -> Any:
        with self.model.part(DECODER):
            return super().walk(*args, **settings)

    def tokens(self, *args: Any, **settings: Any) -> Any:
        with self.model.part(DECODER):
            return super().tokens(*args, **settings)

    def head(self, *args: Any, **settings: Any) -> Any:
        with self.model.part(HEAD):
            return super().head(*args, **settings)


class TracedEngine(Engine):
    """Another engine's requests, their work done inside ``part``; encoding pictures is in no component."""

    def __init__(self, engine: Engine, part: Part) -> None:
        self._hold(engine.model, engine.processor, engine.speculation)
        self.prepared, self.part = engine.prepared, part

    def executor(self, slots: SlotPool | None = None) -> Executor:
        model: Any = TracedModel(self.model, self.part)
        runner = TracedRunner(model, self.prepared.banks, self.prepared.calls)
        drafter = None if self.speculation is None else self.speculation.drafter
        return Executor(runner, self.prepared.graphs, slots, drafter)

    @torch.inference_mode()
    def decode(self, latents: Tensor, batch_size: int = 8) -> list[Image.Image]:
        with self.part(AUTOENCODER):
            return super().decode(latents, batch_size)


class Stopwatch:
    """How much of a clock's unit passes in each component; ``part`` is what `TracedEngine` takes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._readings: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self._clock.now()
        yield
        self._readings.append((name, start, self._clock.now()))

    def take(self) -> dict[str, float]:
        """The amounts by component since the last call."""
        self._clock.settle()
        spent = dict.fromkeys(COMPONENTS, 0.0)
        for name, start, end in self._readings:
            spent[name] += self._clock.between(start, end)
        self._readings = []
        return spent
