"""A run: all the mutable state of one request. It dies with the request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from flashu.loops.canvas import Canvas
from flashu.models.layers import KeyValue
from flashu.plan import LayerPlan, Plan, Seen, Step, Task
from flashu.recipe import Recipe
from flashu.runtime.runner import KV, Runner, View


@dataclass(frozen=True, slots=True)
class Record:
    """What one forward did: its plan and how many rows x tokens went through the decoder (0 = none did)."""

    step: Step
    plan: Plan
    rows: int
    tokens: int
    past: int
    similarity: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of the prompts under one layer plan, for the decoder and the flow head, and what the
    image rows see of them."""

    kv: KV | None
    head: list[KeyValue] | None
    view: View


class Run:
    """Plans the forwards of one request and keeps what they share: prompt prefixes, head features, the trace."""

    def __init__(
        self, runner: Runner, recipe: Recipe, task: Task, forwards: int, *, guidance: float | None = None
    ) -> None:
        self.runner = runner
        self.recipe = recipe
        self.task = task
        self.forwards = forwards
        self.guidance = guidance
        self.seen = Seen()
        self.features: Tensor | None = None
        self.trace: list[Record] = []
        self._prefixes: dict[tuple[LayerPlan, int], Prefix] = {}

    def steps(self) -> Iterator[Step]:
        """The forwards of a generation."""
        return (Step(self.task, "denoise", i, self.forwards) for i in range(self.forwards))

    def plan(self, step: Step) -> Plan:
        """What this forward computes. Without kept features of its rows there is nothing to reuse, so the head runs."""
        plan = self.recipe.plan(step, self.seen, self.guidance)
        if plan.head == "reuse" and self.features is None:
            plan = replace(plan, head="run")
        return plan

    def note(
        self, step: Step, plan: Plan, rows: int, tokens: int, past: int, similarity: tuple[float, ...] | None
    ) -> None:
        """Record a finished forward."""
        if similarity is not None:
            self.seen = Seen(similarity)
        self.trace.append(Record(step, plan, rows, tokens, past, similarity))

    def prefix(self, layers: LayerPlan, canvas: Canvas) -> Prefix:
        """The prompts' keys and values under ``layers``: text before the image never sees it, so they are computed
        once per layer plan (law a)."""
        key = (layers, canvas.tokens.shape[0])
        if key not in self._prefixes:
            self._prefixes[key] = self._prefill(layers, canvas)
        return self._prefixes[key]

    def _prefill(self, layers: LayerPlan, canvas: Canvas) -> Prefix:
        runner, model = self.runner, self.runner.model
        if canvas.prefix is None:
            return Prefix(None, None, runner.view(canvas.tokens, head=True))
        assert canvas.prefix_ids is not None
        assert canvas.prompt_of is not None
        view = runner.view(canvas.prefix, head=True)
        x = model.embed_text(canvas.prefix_ids.to(model.device))
        done = runner.backbone(x, canvas.prefix, layers, view=view, keep=True)
        assert done.kv is not None
        _, head = runner.head(done.hidden, None, view, None, None)
        kv = done.kv.rows(canvas.prompt_of)
        index = canvas.prompt_of.to(model.device)
        seen = runner.view(canvas.tokens, kv.tokens[0], head=True)
        return Prefix(kv, [(k[index], v[index]) for k, v in head], seen)
