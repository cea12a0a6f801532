"""A run: one sample of a request, from its actions to its result. All of its state, and it dies with the request."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flashu.inference.actions import Action, Append, Decode, Draw, Fork
from flashu.inference.history import FeatureHistory, SharedObservations
from flashu.inference.samplers.base import Sampler
from flashu.inference.speculate import DraftLength, Speculation
from flashu.plan import MAIN, Draft, Kind, ModelSpec, Observations, Plan, Step
from flashu.plan.recipe import Recipe
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment
from flashu.runtime.request import Output, Row, StepRequest
from flashu.runtime.sampling import chooser

Choose: TypeAlias = Callable[[Tensor], Tensor]
"""Logits [B, V] -> next tokens [B]."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What one forward did: its plan, and how many rows x tokens went through the decoder (0 = none did), behind
    ``past`` earlier ones. ``shared``: tokens that went through before, once for this run and others. ``accepted``: of
    the drafted tokens, how many were right."""

    step: Step
    plan: Plan
    rows: int
    tokens: int
    past: int
    similarity: tuple[float, ...] | None = None
    shared: int = 0
    accepted: int = 0


@dataclass(frozen=True, eq=False)
class Event:
    """Something a run has done: a "token" of text (``data``: its id), a "step" of a drawing (the sampler's state), the
    whole "text" (ids), the "image" (what the sampler finished with)."""

    kind: Literal["token", "step", "text", "image"]
    index: int
    total: int
    data: Any
    trace: StepTrace | None = None


class Run:
    """Carries out the actions of one sample. `prepare` gives the forward it needs next, `accept` takes its output;
    `step` does both. Several runs go together when their requests are given to one executor.

    ``contexts``: what earlier runs left behind, by branch; this one goes on there. ``choose``: how the next token of
    text is chosen. ``check_every``: tokens between two looks at whether to stop, each of which waits for the device.
    ``observations``: shared with others whose layer-skipping list is one. ``speculation``: how text is drafted, by the
    drafter that the executor has; ``choose`` is then a `Chooser`.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        recipe: Recipe,
        spec: ModelSpec,
        *,
        choose: Choose | None = None,
        check_every: int = 1,
        observations: SharedObservations | None = None,
        contexts: Mapping[str, Context] | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.recipe, self.spec = recipe, spec
        self.contexts: dict[str, Context] = dict(contexts or {})
        self.trace: list[StepTrace] = []
        self.text: list[int] = []
        """Tokens of the latest text."""
        self.drawn: list[Tensor] = []
        """What the samplers finished with."""
        self.done = False
        self._choose: Any = choose or chooser()
        self._speculation = speculation
        self._check_every = check_every
        self._observations = observations or SharedObservations()
        self._events: list[Event] = []
        self._request: StepRequest | None = None
        self._script = self._perform(actions)

    def prepare(self) -> StepRequest | None:
        """The forward that comes next; None when the run is done."""
        if self._request is None and not self.done:
            self._go_on(None)
        return self._request

    def accept(self, output: Output) -> list[Event]:
        """Take the output of the forward that `prepare` gave. Returns what was done with it."""
        self._request, self._events = None, []
        self._go_on(output)
        return self._events

    def step(self, executor: Executor) -> list[Event]:
        """One forward of this run alone."""
        request = self.prepare()
        return [] if request is None else self.accept(executor.forward([request])[0])

    def close(self) -> None:
        """Stop: the contexts' memory is free for others."""
        self.done, self._request = True, None
        self._script.close()
        for context in self.contexts.values():
            context.close()

    def _go_on(self, output: Output | None) -> None:
        try:
            self._request = self._script.send(output)
        except StopIteration:
            self.close()

    # -- the script ---------------------------------------------------------------------------------------------
    # It gives forwards and is sent their outputs; between two steps it gives None, so that a step is planned when it is
    # asked for: by then, runs that share observations have all accepted the step before.
    def _perform(self, actions: Sequence[Action]) -> Generator[StepRequest | None, Output | None, None]:
        for action in actions:
            if isinstance(action, Append):
                for name in action.to:
                    for segment in action.segments:
                        self._context(name).append(segment)
            elif isinstance(action, Fork):
                self.contexts[action.name] = self._context(action.source).fork()
            elif isinstance(action, Decode):
                yield from self._decode(action)
            else:
                yield from self._draw(action)

    def _context(self, name: str) -> Context:
        return self.contexts.setdefault(name, Context())

    def _decode(self, action: Decode) -> Generator[StepRequest | None, Output | None, None]:
        """Text: a prefill, then one token per forward, or several that one forward verifies."""
        row = Row(self._context(action.branch))
        waiting: list[Tensor] = []
        self.text = []
        self._observations.begin()
        if self._speculation is not None:
            yield from self._speculate(action, row, self._speculation)
            return
        token: Tensor | None = None
        index = 0
        for index in range(action.limit):
            if index:
                yield None
            step = Step("understanding", "token" if index else "prefill", index, action.limit)
            plan = self.recipe.plan(step, self._observed(), {})
            space = action.limit - index
            output = yield StepRequest(step, plan, (row,), "logits", ids=token, spans=self.spec.text_spans, space=space)
            assert output is not None
            assert output.values is not None
            self._note(step, plan, 1, output)
            token = self._choose(output.values)
            waiting.append(token)
            if len(waiting) == self._check_every or index + 1 == action.limit:
                if self._said(torch.cat(waiting).tolist(), action):
                    break
                waiting = []
        self._close_text(action, row.context, index)

    def _close_text(self, action: Decode, context: Context, through: int) -> None:
        """The text is complete; ``through``: how many tokens behind the prefill went through the model."""
        self._events.append(Event("text", len(self.text), action.limit, list(self.text)))
        if action.tokens is not None:
            # Those after the text, where it was looked at late, are dropped.
            done = min(through, len(self.text))
            context.settle(action.tokens(self.text[:done]) if done else None, through - done)
            context.append(action.tokens([*self.text[done:], *action.close]))
            for name in action.also:
                self._context(name).append(action.tokens([*self.text, *action.close]))

    def _speculate(
        self, action: Decode, row: Row, speculation: Speculation
    ) -> Generator[StepRequest | None, Output | None, None]:
        """Text with drafts. A forward's tokens are those of as many forwards without: they share its plan."""
        lengths, ended = DraftLength(speculation), False
        known, spans = row.context.ids, self.spec.text_spans
        space = action.limit + 2 * speculation.most
        while not ended and len(self.text) < action.limit:
            index = len(self.text)
            step = Step("understanding", "token" if index else "prefill", index, action.limit)
            plan = self.recipe.plan(step, self._observed(), {})
            if not index:
                output = yield StepRequest(step, plan, (row,), "logits", spans=spans, space=space)
                assert output is not None
                assert output.values is not None
                tokens = self._choose(output.values).tolist()
            else:
                yield None
                length = self._same_plan(plan, step, min(lengths.next(), action.limit - index - 1))
                step = replace(step, kind="verify")
                plan = replace(plan, draft=Draft(length, speculation.drafter.layers))
                output = yield StepRequest(
                    step,
                    plan,
                    (row,),
                    "logits",
                    ids=torch.tensor(self.text[-1:]),
                    spans=spans,
                    space=space,
                    known=[*known, *self.text],
                    chooser=self._choose,
                )
                assert output is not None
                assert output.values is not None
                assert output.drafted is not None
                tokens = self._choose.verified(output.values[0], output.drafted, output.chances)
                lengths.learn(length, len(tokens) - 1)
            ended = self._said(tokens, action)
            used = len(self.text) - index + ended
            self._note(step, plan, 1, output, min(len(tokens) - 1, used))
            if index:
                # As without drafts, the last token said has not gone through the model; one that ends it never does.
                row.context.accept(used)
        self._close_text(action, row.context, max(len(self.text) - 1 + ended, 0))

    def _same_plan(self, plan: Plan, step: Step, most: int) -> int:
        """How many of the next ``most`` forwards have the plan of this one; none behind a probe."""
        if plan.probe != "off":
            return 0
        for n in range(1, most + 1):
            later = replace(step, index=step.index + n)
            if self.recipe.plan(later, self._observed(), {}) != plan:
                return n - 1
        return most

    def _said(self, ids: list[int], action: Decode) -> bool:
        """Note tokens of text, up to one that ends it; whether there was one."""
        for token in ids:
            if token in action.stop:
                return True
            self._events.append(Event("token", len(self.text), action.limit, token))
            self.text.append(token)
        return False

    def _draw(self, action: Draw) -> Generator[StepRequest | None, Output | None, None]:
        """An image: the sampler's forwards, each under its plan."""
        sampler = action.sampler(self.recipe.forwards(action.steps), self.recipe.solver)
        history, deltas = FeatureHistory(), dict[str, Tensor]()
        self._observations.begin()
        anchor: Tensor | None = None
        # A sampler whose caller moves the latents may correct its number of forwards on the way.
        for index in takewhile(lambda n: n < sampler.total, count()):
            if index:
                yield None
            kind: Kind = sampler.kind if index or sampler.kind == "block" else "prefill"
            step = Step("generation", kind, index, sampler.total, sampler.time(index))
            observed = self._observed(self._drift(sampler.state, anchor))
            plan = self.recipe.plan(step, observed, action.guidance.at(step.time))
            plan = plan.possible(history.branches, frozenset(deltas))
            reused = plan.features == "reuse"
            rows, place = self._rows(sampler, plan.branches, kind, index, every=reused or kind != "block")
            if reused:
                # The prediction follows from the features and the time alone: nothing upstream is computed.
                features = history.at(index, plan.order, plan.branches)
                output = yield StepRequest(step, plan, tuple(rows), sampler.want, sampler.codes, features=features)
            else:
                output = yield self._request_of(step, plan, rows, sampler, index)
            assert output is not None
            assert output.values is not None
            self._note(step, plan, len(rows) if output.tokens else 0, output)
            if not reused:
                if output.features is not None and sampler.kind == "block":
                    features = output.features[list(place.values())]
                    history.keep(index, plan.branches, features, plan.differences)
                anchor = sampler.state
            predictions = {name: output.values[place[name]] for name in plan.branches}
            for name in plan.scales:
                if name in plan.reuse:
                    predictions[name] = predictions[MAIN] - deltas[name]
                else:
                    deltas[name] = predictions[MAIN] - predictions[name]
            guided = action.guidance.formula(predictions, plan.scales)
            sampler.advance(guided, index)
            self._events.append(Event("step", index, sampler.total, sampler.state, self.trace[-1]))
        self.drawn.append(sampler.state)
        self._events.append(Event("image", sampler.total, sampler.total, sampler.state))

    def _request_of(self, step: Step, plan: Plan, rows: Sequence[Row], sampler: Sampler, index: int) -> StepRequest:
        request = StepRequest(step, plan, tuple(rows), sampler.want, sampler.codes)
        if sampler.kind == "block":
            return request
        request = replace(request, space=sampler.space(index))
        if step.kind == "prefill":
            return request
        segment = sampler.segments(index)
        assert isinstance(segment, Segment)
        return replace(request, ids=segment.content, spans=segment.layout.spans)

    def _rows(
        self, sampler: Sampler, branches: Sequence[str], kind: Kind, index: int, every: bool = False
    ) -> tuple[list[Row], dict[str, int]]:
        """The rows of a forward and which is each branch's: branches of equal contexts are one, unless ``every``."""
        segments = sampler.segments(index) if kind == "block" else None
        rows: list[Row] = []
        place: dict[str, int] = {}
        of_key: dict[Any, int] = {}
        for name in branches:
            context = self._context(name)
            segment = segments[name] if isinstance(segments, Mapping) else segments
            key = (context.key, id(segment))
            if every or context.key is None or key not in of_key:
                of_key[key] = len(rows)
                rows.append(Row(context, segment))
            place[name] = of_key[key]
        return rows, place

    def _note(self, step: Step, plan: Plan, rows: int, output: Output, accepted: int = 0) -> None:
        """Record a finished forward."""
        if output.similarity is not None:
            self._observations.note(step.index, output.similarity)
        self.trace.append(
            StepTrace(step, plan, rows, output.tokens, output.past, output.similarity, output.shared, accepted)
        )

    def _observed(self, drift: float | None = None) -> Observations:
        return Observations(self._observations.similarity, drift)

    def _drift(self, state: Tensor, anchor: Tensor | None) -> float | None:
        """How far the latents have moved since the head last ran, if the recipe wants to know."""
        if anchor is None or not self.recipe.reads("drift", "generation"):
            return None
        return float((state - anchor).abs().mean() / anchor.abs().mean())


def complete(
    executor: Executor, runs: Sequence[Run], on_events: Callable[[int, list[Event]], None] | None = None
) -> None:
    """Carry out runs together, forward by forward; ``on_events`` (index of the run, its events) after each."""
    while True:
        waiting = [(n, request) for n, run in enumerate(runs) if (request := run.prepare()) is not None]
        if not waiting:
            return
        outputs = executor.forward([request for _, request in waiting])
        for (n, _), output in zip(waiting, outputs, strict=True):
            events = runs[n].accept(output)
            if on_events is not None:
                on_events(n, events)
