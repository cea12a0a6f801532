"""What the rows compute on a subject: recipes on the project's own runs, and the original program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flashu.bench import steps
from flashu.bench.reads import Reads
from flashu.bench.rows import Row
from flashu.bench.steps import StepKind, count_kinds, shortest_run
from flashu.bench.subject import Subject
from flashu.bench.tracing import TracedExecutor, TracedGraphs, Tracer
from flashu.errors import FlashUError
from flashu.evaluation.components import AUTOENCODER, TracedModel, TracedRunner
from flashu.inference.calibrate.bank import arrange, sliced
from flashu.inference.engine import CHECK_EVERY, Engine
from flashu.inference.run import Event, Run, complete
from flashu.models.family import TimedReference
from flashu.models.memory import parameter_bytes
from flashu.models.registry import FAMILIES, family
from flashu.plan import Observations, Plan, Step
from flashu.plan.presets import fitting
from flashu.plan.recipe import Recipe
from flashu.plan.table import Forward, PlanTable
from flashu.runtime.compile import LayerCalls


class Program(ABC):
    """The computation of one row. ``steps``: what an image is asked for. ``note``: what of the row was left out."""

    note = ""

    def __init__(self, row: Row, subject: Subject, engine: Any) -> None:
        self.row, self.subject, self.engine = row, subject, engine
        self.steps = subject.steps
        tokens = [forward for forward in self.table.forwards if forward.step.kind == "token"]
        cached = fmean(forward.rows * forward.past for forward in tokens) if tokens else 0
        item = subject.dtype.itemsize
        layers = [*subject.model.layers]
        numbers = sum(p.numel() for layer in layers for p in layer.parameters())
        projection = parameter_bytes(*layers) / numbers if subject.model.quantization else item
        self.bytes_of = Reads(subject.sizes.spec, subject.task, item, projection, int(subject.batch * cached)).of

    @property
    def asked(self) -> int:
        """The steps that the engine is asked for."""
        return self.steps

    @property
    def table(self) -> PlanTable:
        """A request of one image or answer, forward by forward."""
        subject = self.subject
        if subject.drawing:
            settings = {"steps": self.asked, "prompt_tokens": subject.text_tokens, "edit": subject.edits}
            return self.engine.explain("generation", **settings)
        tokens = {"question_tokens": subject.text_tokens, "max_new_tokens": subject.new_tokens}
        return self.engine.explain("understanding", **tokens)

    @property
    def forwards(self) -> int:
        """Forwards of a whole request."""
        return len(self.table.forwards)

    @property
    def flops(self) -> float:
        """FLOPs of a whole request's forwards, from shapes alone."""
        table, batch = self.table, self.subject.batch
        # The guidance branches' prompts are the same for all images.
        prompts = sum(prompt.flops / prompt.rows * (batch + prompt.rows - 1) for prompt in table.prompts)
        return batch * sum(forward.flops for forward in table.forwards) + prompts

    @property
    def kinds(self) -> Counter[StepKind]:
        """How many steps of each kind a whole request has."""
        if not self.subject.drawing:
            return self.counts() + Counter([StepKind(steps.ENCODE)])
        around = [StepKind(steps.SETUP), *([StepKind(steps.DECODE_IMAGE)] if self.subject.layout.draws else [])]
        return self.counts() + Counter(around)

    @abstractmethod
    def counts(self) -> Counter[StepKind]:
        """How many forwards of each kind a whole request has."""

    @abstractmethod
    def run(self, tracer: Tracer, known: Container[StepKind] | None = None, *, eager: bool = False) -> Tensor:
        """A request: what was drawn [B, ...], or tokens [B, n]. ``known``: the shortest with every kind of forward but
        these. ``eager``: neither compiled nor captured, whatever the row says."""

    def whole(self, tracer: Tracer) -> Tensor:
        """A whole request: what a user waits for."""
        result = self.run(tracer)
        if self.subject.drawing:
            decode_image(self.subject, tracer, result)
        return result


class RecipeProgram(Program):
    """A recipe, on the runs and the executor that an engine has."""

    def __init__(self, row: Row, subject: Subject) -> None:
        assert row.recipe is not None
        # Which side is pruned does not change the cost; the other task's methods need not fit this model.
        wanted = replace(row.recipe, methods=row.recipe.of(subject.task)).resolved("largest")
        recipe = fitting(wanted, subject.sizes.spec)
        if not recipe.methods:
            wanted.check(subject.sizes.spec)
        missing = [method.name for method in wanted.methods if method not in recipe.methods]
        if missing:
            self.note = f"without {', '.join(missing)}, which has nothing to work on in this model"
        engine = Engine(subject.model, subject.processor, recipe, compile=row.compiled, graphs=row.graphs)
        super().__init__(row, subject, engine)
        pool = engine.prepared.graphs
        self.graphs = None if pool is None else TracedGraphs(pool.capture)
        self.pruned = {m.mask: m.ratio for m in recipe.ffn_prunes()}
        if row.in_place:
            masks = {name: subject.mask(ratio) for name, ratio in self.pruned.items()}
            self.banks = sliced(subject.model, arrange(subject.model, masks))
        else:
            self.banks = {name: subject.bank(ratio) for name, ratio in self.pruned.items()}

    def counts(self) -> Counter[StepKind]:
        return count_kinds(self.table, self.pruned)

    @torch.inference_mode()
    def run(self, tracer: Tracer, known: Container[StepKind] | None = None, *, eager: bool = False) -> Tensor:
        subject, recipe, prepared = self.subject, self.engine.recipe, self.engine.prepared
        plans = None if known is None else shortest_run(self.table.forwards, self.pruned, known)
        tracer.begin(StepKind(steps.SETUP if subject.drawing else steps.ENCODE))
        with tracer.component(steps.OTHER if subject.drawing else AUTOENCODER):
            scripts = subject.scripts(recipe, self.steps)
        # New ones for every run, as for every request of a user.
        model = TracedModel(subject.model, tracer.component)
        runner = TracedRunner(model, self.banks, LayerCalls() if eager else prepared.calls)
        graphs = None if eager else self.graphs
        if graphs is not None:
            graphs.tracer = tracer
        every = 1 if subject.device.type == "cpu" else CHECK_EVERY
        planned = recipe if plans is None else chosen(recipe, plans)
        runs = [Run(script, planned, model.spec, check_every=every) for script in scripts]
        last: dict[int, Event] = {}

        def note(n: int, events: Sequence[Event]) -> None:
            if events:
                last[n] = events[-1]
                if plans is not None and len(runs[n].trace) >= len(plans):
                    runs[n].close()

        complete(TracedExecutor(runner, graphs, tracer, self.pruned), runs, note)
        tracer.end()
        if not subject.drawing:
            return torch.tensor([run.text for run in runs])
        # Of a drawing cut short, what there is of it.
        return torch.stack([last[n].data for n in range(len(runs))])


class OriginalProgram(Program):
    """The original program. Of an answer's growing rows, the shortest and the longest stand for all in a short run."""

    engine: Any

    def __init__(self, row: Row, subject: Subject) -> None:
        name = subject.sizes.spec.family
        if subject.weights:
            raise FlashUError(f"the original program knows no {subject.weights} weights")
        if name not in FAMILIES:
            raise FlashUError(f"{name} is no family of the registry, which would say what the original program is")
        reference = family(name).reference(subject.model, subject.processor)
        if not isinstance(reference, TimedReference):
            raise FlashUError(f"the original program of {name} cannot be timed forward by forward")
        super().__init__(row, subject, reference)

    @property
    def asked(self) -> int:
        return self.engine.forwards(self.steps)

    @property
    def flops(self) -> float:
        sizes, batch = self.subject.sizes, self.subject.batch
        images = sizes.image_tokens(None, None)
        # A question's image is embedded before the forwards.
        return super().flops - (0 if self.subject.drawing else batch * self._pictured(images))

    def _pictured(self, images: int) -> int:
        spec, sizes = self.subject.sizes.spec, self.subject.sizes
        shown = sizes.shown or images
        return (spec.picture or spec.image).flops(shown, shown)

    @cached_property
    def passes(self) -> list[StepKind]:
        """The kind of each forward. Those behind a cache, which are of one token, are unlike the others."""

        def kind(forward: Forward) -> StepKind:
            behind = forward.step.kind == "token" and forward.past > 0
            return StepKind(steps.ORIGINAL_TOKEN if behind else steps.ORIGINAL, guided=len(forward.plan.branches) > 1)

        return [kind(forward) for forward in self.table.forwards]

    def counts(self) -> Counter[StepKind]:
        return Counter(self.passes)

    @property
    def some(self) -> list[int]:
        """Forwards that stand for all: the first and the last of each kind, between which cost grows with the row; of
        blocks, which all cost the same, the first."""
        ends = {kind: [self.passes.index(kind)] for kind in self.passes}
        if self.table.forwards[0].step.kind != "block":
            for kind, found in ends.items():
                found.append(len(self.passes) - 1 - self.passes[::-1].index(kind))
        return sorted({index for found in ends.values() for index in found})

    @torch.inference_mode()
    def run(self, tracer: Tracer, known: Container[StepKind] | None = None, *, eager: bool = False) -> Tensor:
        def before(index: int) -> None:
            tracer.begin(self.passes[index])

        only = None if known is None else [index for index in self.some if self.passes[index] not in known]
        if self.subject.drawing:
            tracer.begin(StepKind(steps.SETUP))
            result = self.engine.latents(self.subject.images_to_draw(self.asked), only, before, tracer.component)
        else:
            tracer.begin(StepKind(steps.ENCODE))
            result = self.engine.tokens(self.subject.questions, only, before, tracer.component)
        tracer.end()
        return result


@dataclass(frozen=True)
class ChosenPlans(Recipe):
    """A recipe whose forwards are given."""

    plans: tuple[Plan, ...] = ()

    def plan(self, step: Step, observed: Observations, scales: Mapping[str, float]) -> Plan:
        # Several tokens are decoded between two looks at them: a few more than were asked for.
        return self.plans[min(step.index, len(self.plans) - 1)]


def chosen(recipe: Recipe, plans: Sequence[Plan]) -> ChosenPlans:
    flags = {"reference": recipe.reference, "padded": recipe.padded}
    return ChosenPlans(recipe.methods, recipe.name, **flags, solver=recipe.solver, plans=tuple(plans))


def program_of(row: Row, subject: Subject) -> Program:
    """What a row computes. `FlashUError` where the subject cannot compute it."""
    return OriginalProgram(row, subject) if row.recipe is None else RecipeProgram(row, subject)


def decode_image(subject: Subject, tracer: Tracer, drawn: Tensor) -> None:
    """What was drawn to pixels, in a span of its own; nothing without an autoencoder."""
    if subject.layout.draws:
        tracer.begin(StepKind(steps.DECODE_IMAGE))
        with torch.inference_mode(), tracer.component(AUTOENCODER):
            subject.layout.pixels(drawn)
        tracer.end()
