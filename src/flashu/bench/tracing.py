"""The tracer that divides a request into spans, by the kind of step and by component, and what it watches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor

from flashu.bench.steps import OTHER, Pruned, Span, StepKind, kind_of, prompt_kind
from flashu.evaluation.components import DECODER
from flashu.evaluation.timing import Clock
from flashu.plan import LayerPlan
from flashu.runtime.executor import Executor
from flashu.runtime.graphs import GraphPool
from flashu.runtime.request import Output, StepRequest
from flashu.runtime.runner import Runner


class Tracer:
    """Records the spans of a request: every interval between two readings belongs to one span and one component.

    ``depth``: what the decoder's amounts are multiplied by, for layers that are left out.
    """

    def __init__(self, clock: Clock, depth: float = 1.0) -> None:
        self.clock, self.depth = clock, depth
        self._kinds: list[StepKind] = []
        self._span: int | None = None
        self._component = OTHER
        self._readings: list[tuple[Any, int | None, str]] = []

    def begin(self, kind: StepKind) -> None:
        """A span begins, and the one before it ends."""
        self._kinds.append(kind)
        self._go_on(len(self._kinds) - 1, OTHER)

    def end(self) -> None:
        self._go_on(None, OTHER)

    @contextmanager
    def nested(self, kind: StepKind) -> Iterator[None]:
        """A span inside the current one, which goes on after it."""
        outer = self._span, self._component
        self.begin(kind)
        yield
        self._go_on(*outer)

    @contextmanager
    def component(self, name: str) -> Iterator[None]:
        """What is done inside belongs to a component; of nested ones to the outermost."""
        if self._component != OTHER:
            yield
            return
        self._go_on(self._span, name)
        yield
        self._go_on(self._span, OTHER)

    def collect(self) -> list[Span]:
        """All spans since the last call, in the order in which they began."""
        self.end()
        self.clock.settle()
        components: list[dict[str, float]] = [{} for _ in self._kinds]
        for (start, span, name), (end, _, _) in pairwise(self._readings):
            if span is not None:
                amount = self.clock.between(start, end) * (self.depth if name == DECODER else 1.0)
                components[span][name] = components[span].get(name, 0.0) + amount
        spans = [Span(kind, own) for kind, own in zip(self._kinds, components, strict=True)]
        self._kinds, self._readings = [], []
        return spans

    def _go_on(self, span: int | None, component: str) -> None:
        self._span, self._component = span, component
        if (now := self.clock.now()) is not None:
            self._readings.append((now, span, component))


class TracedGraphs(GraphPool):
    """A pool whose forwards count as the decoder's: a replay has no parts."""

    tracer: Tracer
    """Of the run under way."""

    def __call__(self, owner: Any, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with self.tracer.component(DECODER):
            return super().__call__(owner, key, function, *inputs)


class TracedExecutor(Executor):
    """An executor with a span for each forward, and one inside it for what blocks have before them: the prompts, which
    are computed and stacked once for each layer plan."""

    def __init__(self, runner: Runner, graphs: GraphPool | None, tracer: Tracer, pruned: Pruned) -> None:
        super().__init__(runner, graphs)
        self.tracer, self.pruned = tracer, pruned
        self.blocks.preparing = lambda under: tracer.nested(prompt_kind(under or LayerPlan(), self._guided, pruned))

    def forward(self, requests: Sequence[StepRequest]) -> list[Output]:
        self.tracer.begin(kind_of(requests[0].step, requests[0].plan, self.pruned))
        self._guided = len(requests[0].plan.branches) > 1
        return super().forward(requests)
