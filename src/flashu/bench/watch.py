"""Watching a run from outside: a clock (seconds or FLOPs), and rooms that say which component they are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashu.bench.kinds import Kind, Piece, Pruned, kind_of, prompt_kind
from flashu.inference.loops.canvas import Canvas
from flashu.inference.run import Prefix, Run
from flashu.models.layers import KeyValue
from flashu.models.showo2.model import ShowO2
from flashu.plan import LayerPlan, Plan, Step
from flashu.runtime.runner import Pass, Runner, View

COMPONENTS = FEATURES, DECODER, LOGITS, HEAD, AUTOENCODER = "features", "LLM", "logits", "head", "VAE"


class Clock(Protocol):
    """Whatever can be read before and after."""

    def now(self) -> Any: ...
    def between(self, start: Any, end: Any) -> float: ...
    def settle(self) -> None:
        """Wait until every reading is final."""


class WallClock:
    """Seconds of a device whose calls return when done."""

    def now(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        pass


class CudaClock:
    """Seconds between events on the device, so that reading the clock does not hold the device up."""

    def now(self) -> torch.cuda.Event | None:
        if torch.cuda.is_current_stream_capturing():
            return None  # a recording takes no time of the device
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event | None, end: torch.cuda.Event | None) -> float:
        return 0.0 if start is None or end is None else start.elapsed_time(end) / 1000

    def settle(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else WallClock()


@dataclass
class _Open:
    kind: Kind
    start: Any
    end: Any = None
    parts: list[tuple[str, Any, Any]] = field(default_factory=list)
    within: list[_Open] = field(default_factory=list)


class Watch:
    """Pieces tile a run: `begin` ends the piece before it. `aside` is a piece inside another, taken out of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._pieces: list[_Open] = []
        self._current: _Open | None = None
        self._in_part = False

    def begin(self, kind: Kind) -> None:
        self.end()
        self._current = _Open(kind, self.clock.now())
        self._pieces.append(self._current)

    def end(self) -> None:
        if self._current is not None:
            self._current.end = self.clock.now()
            self._current = None

    @contextmanager
    def aside(self, kind: Kind) -> Iterator[None]:
        outer, inner = self._current, _Open(kind, self.clock.now())
        self._current = inner
        self._pieces.append(inner)
        if outer is not None:
            outer.within.append(inner)
        yield
        inner.end = self.clock.now()
        self._current = outer

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to a component; of nested parts the outermost counts."""
        if self._in_part or self._current is None:
            yield
            return
        self._in_part = True
        start = self.clock.now()
        yield
        self._current.parts.append((name, start, self.clock.now()))
        self._in_part = False

    def pieces(self) -> list[Piece]:
        """Everything watched since the last call."""
        self.end()
        self.clock.settle()
        read = [self._read(piece) for piece in self._pieces]
        self._pieces = []
        return read

    def _read(self, piece: _Open) -> Piece:
        parts: dict[str, float] = {}
        for name, start, end in piece.parts:
            parts[name] = parts.get(name, 0.0) + self.clock.between(start, end)
        inside = sum(self.clock.between(p.start, p.end) for p in piece.within)
        return Piece(piece.kind, self.clock.between(piece.start, piece.end) - inside, parts)


class WatchedModel(ShowO2):
    """The same weights as ``model``, with its entrances and exits watched."""

    def __init__(self, model: ShowO2, watch: Watch) -> None:
        nn.Module.__init__(self)  # ShowO2's own would build weights
        self.__dict__.update(vars(model))
        self.watch = watch

    def embed_latent(self, latents: Tensor) -> Tensor:
        with self.watch.part(FEATURES):
            return super().embed_latent(latents)

    def logits(self, hidden: Tensor) -> Tensor:
        with self.watch.part(LOGITS):
            return super().logits(hidden)

    def head_out(self, features: Tensor, e_t: Tensor, image: Tensor | None = None) -> Tensor:
        with self.watch.part(HEAD):
            return super().head_out(features, e_t, image)


class WatchedRunner(Runner):
    """A runner whose decoder and head are watched from outside the (possibly compiled) rooms."""

    model: WatchedModel

    def backbone(self, *args: Any, **settings: Any) -> Pass:
        with self.model.watch.part(DECODER):
            return super().backbone(*args, **settings)

    def head(
        self, hidden: Tensor, e_t: Tensor | None, view: View, past: list[KeyValue] | None, image: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        with self.model.watch.part(HEAD):
            return super().head(hidden, e_t, view, past, image)


class WatchedRun(Run):
    """A run whose forwards are pieces. ``plans``: what its forwards compute, instead of what the recipe says."""

    def __init__(self, run: Run, pruned: Pruned, plans: Sequence[Plan] | None = None) -> None:
        forwards = run.forwards if plans is None else len(plans)
        super().__init__(run.runner, run.recipe, run.task, forwards, guidance=run.guidance)
        assert isinstance(run.runner, WatchedRunner)
        self.room = max(run.room, forwards - 1)  # a short run's cache has the shapes of a whole one's
        self.watch = run.runner.model.watch
        self.pruned, self.plans = pruned, plans

    def plan(self, step: Step) -> Plan:
        plan = super().plan(step) if self.plans is None else self.plans[step.index]
        self.watch.begin(kind_of(plan, step.kind, self.pruned))
        return plan

    def _prefill(self, layers: LayerPlan, canvas: Canvas) -> Prefix:
        with self.watch.aside(prompt_kind(layers, self.guidance is not None, self.pruned)):
            return super()._prefill(layers, canvas)
