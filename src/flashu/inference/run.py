"""A run: all the mutable state of one request. It dies with the request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashu.inference.loops.canvas import Canvas
from flashu.models.layers import KeyValue
from flashu.plan import LayerPlan, Plan, Seen, Step, Task
from flashu.plan.recipe import Recipe
from flashu.runtime.replays import Replays
from flashu.runtime.runner import KV, Runner, View
from flashu.runtime.tokens import TEXT

HISTORY = 3
"""Head features kept: as many as a polynomial of order two needs."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one forward did: its plan and how many rows x tokens went through the decoder (0 = none did), behind
    ``past`` tokens. ``begun``: tokens that several rows begin with, which went through before, once for all."""

    step: Step
    plan: Plan
    rows: int
    tokens: int
    past: int
    similarity: tuple[float, ...] | None = None
    begun: int = 0


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of the prompts under one layer plan, for the decoder and the flow head, and what the
    image rows see of them."""

    kv: KV | None
    head: list[KeyValue] | None
    view: View


class Run:
    """Plans the forwards of one request and keeps what they share: prompt prefixes, head features (``kept``: of which
    forward, of ``branches`` branches), the ``gap`` between the branches' velocities, recorded forwards, the trace.

    ``room``: tokens that an answer's cache must take in after its prefill.
    """

    def __init__(
        self, runner: Runner, recipe: Recipe, task: Task, forwards: int, *, guidance: float | None = None
    ) -> None:
        self.runner = runner
        self.recipe = recipe
        self.task = task
        self.forwards = forwards
        self.room = forwards - 1
        self.guidance = guidance
        self.seen = Seen()
        self.kept: list[tuple[int, Tensor]] = []
        self.branches = 0
        self.gap: Tensor | None = None
        self.trace: list[Record] = []
        self.replay = Replays(runner.rooms.record() if runner.rooms.record else None)
        self._anchor: Tensor | None = None
        self._prefixes: dict[tuple[LayerPlan, int], Prefix] = {}

    def steps(self) -> Iterator[Step]:
        """The forwards of a generation."""
        return (Step(self.task, "denoise", i, self.forwards) for i in range(self.forwards))

    def plan(self, step: Step) -> Plan:
        """What this forward computes. Without kept features of its rows there is nothing to reuse, so the head runs."""
        plan = self.recipe.plan(step, self.seen, self.guidance)
        return plan.possible(self.branches if self.kept else 0, self.gap is not None)

    @property
    def features(self) -> Tensor | None:
        """The latest head features [rows, N, d]."""
        return self.kept[-1][1] if self.kept else None

    def keep(self, features: Tensor, branches: int) -> None:
        """Keep the head features of the forward under way; earlier ones stay while they are of the same rows."""
        if branches != self.branches:
            self.kept, self.branches = [], branches
        self.kept = [*self.kept, (len(self.trace), features)][-HISTORY:]

    def recall(self, order: int) -> Tensor:
        """Head features for the forward last noted: the latest kept, or continued by a Taylor polynomial through as
        many as ``order`` asks for and there are (TaylorSeer)."""
        (at, last), *earlier = reversed(self.kept)
        ahead = len(self.trace) - 1 - at
        if not order or not earlier or not ahead:
            return last
        slope = (last - earlier[0][1]) / (at - earlier[0][0])
        continued = last + ahead * slope
        if order == 1 or len(earlier) == 1:
            return continued
        before = (earlier[0][1] - earlier[1][1]) / (earlier[0][0] - earlier[1][0])
        return continued + ahead**2 * (slope - before) / (at - earlier[1][0])

    def see(self, latents: Tensor) -> None:
        """Note how far the latents have moved since the head last ran, if the recipe wants to know."""
        if self.recipe.reads("drift", self.task) and self._anchor is not None:
            drift = (latents - self._anchor).abs().mean() / self._anchor.abs().mean()
            self.seen = replace(self.seen, drift=float(drift))

    def anchor(self, latents: Tensor) -> None:
        """The head runs on these latents."""
        self._anchor = latents

    def note(
        self,
        step: Step,
        plan: Plan,
        rows: int,
        tokens: int,
        past: int,
        similarity: tuple[float, ...] | None,
        begun: int = 0,
    ) -> None:
        """Record a finished forward."""
        if similarity is not None:
            self.seen = replace(self.seen, similarity=similarity)
        self.trace.append(Record(step, plan, rows, tokens, past, similarity, begun))

    def prefix(self, layers: LayerPlan, canvas: Canvas) -> Prefix:
        """The prompts' keys and values under ``layers``: what stands before the image never sees it, so they are
        computed once per layer plan (law a)."""
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
        e_t, where = None, None
        if canvas.shown:
            # Earlier images are data, t = 1, whatever the time of the one that is drawn.
            e_t, _ = model.embed_time(torch.ones(1, device=model.device))
            where = (canvas.prefix.block != TEXT).to(model.device)
            for row, at, block in canvas.shown:
                x[row, at : at + len(block)] = block
        done = runner.backbone(x, canvas.prefix, layers, view=view, keep=True)
        assert isinstance(done.kv, KV)
        _, head = runner.head(done.hidden, e_t, view, None, where)
        kv = done.kv.rows(canvas.prompt_of)
        index = canvas.prompt_of.to(model.device)
        seen = runner.view(canvas.tokens, kv.tokens[0], head=True)
        return Prefix(kv, [(k[index], v[index]) for k, v in head], seen)
