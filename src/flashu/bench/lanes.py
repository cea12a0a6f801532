"""A row at work on a subject: its whole runs, and the short runs that meet every kind of forward once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashu.bench import original
from flashu.bench.kinds import DECODE_IMAGE, ENCODE, ORIGINAL, SETUP, Kind, Piece, script, tally
from flashu.bench.memory import Peak
from flashu.bench.rows import Row
from flashu.bench.subject import TASK, Subject
from flashu.bench.watch import AUTOENCODER, Clock, Watch, WatchedModel, WatchedRun, WatchedRunner
from flashu.inference import requests
from flashu.inference.calibrate.bank import bank, bank_in_place, kept
from flashu.inference.loops.decode import decode
from flashu.inference.loops.denoise import denoise
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.models.layers import FFNWeights
from flashu.models.showo2.model import ShowO2
from flashu.plan import Plan, Room
from flashu.plan.explain import folded
from flashu.plan.recipe import Recipe
from flashu.runtime.replays import CudaGraphs
from flashu.runtime.rooms import Rooms
from flashu.runtime.sampling import choose

REPEATED = 3
"""Decoding one token is short: a sampled run meets each kind of it this often."""


@dataclass(frozen=True)
class Take:
    """One run: its pieces, the seconds it took from end to end, the most memory it held beyond the weights."""

    pieces: list[Piece]
    seconds: float
    peak: int | None


class Banks:
    """Pruned FFN weights for timing: made-up masks of the right size, built once for all rows that need them."""

    def __init__(self, model: ShowO2) -> None:
        self.model = model
        self.made: dict[float, list[FFNWeights]] = {}

    def of(self, recipe: Recipe, task: str, in_place: bool = False) -> dict[str, list[FFNWeights]]:
        prunes = [m for m in recipe.ffn_prunes() if m.task == task]
        if in_place:
            return bank_in_place(self.model, {m.mask: self._mask(m.ratio) for m in prunes})
        return {m.mask: self._bank(m.ratio) for m in prunes}

    def _bank(self, ratio: float) -> list[FFNWeights]:
        if ratio not in self.made:
            self.made[ratio] = bank(self.model, self._mask(ratio))
        return self.made[ratio]

    def _mask(self, ratio: float) -> Tensor:
        llm, luck = self.model.config.llm, torch.Generator().manual_seed(0)
        return kept(torch.rand(llm.num_hidden_layers, llm.intermediate_size, generator=luck), ratio)


class Lane(ABC):
    """A row on a subject. Sampled runs leave out the decoding of the latents: it is the same for all rows."""

    def __init__(self, row: Row, subject: Subject, clock: Clock) -> None:
        self.row, self.subject = row, subject
        self.watch = Watch(clock)
        self.guided = subject.guidance is not None

    @property
    @abstractmethod
    def forwards(self) -> int:
        """Forwards of a whole run."""

    @abstractmethod
    def inside(self) -> Counter[Kind]:
        """How many forwards and prompt passes of each kind a whole run has."""

    @abstractmethod
    def draw(self) -> Tensor:
        """A whole run: latents."""

    @abstractmethod
    def answer(self) -> None:
        """A whole run: all tokens of the answers."""

    @abstractmethod
    def meet(self, known: Container[Kind]) -> None:
        """A short run that meets every kind of forward but the ``known``."""

    def counts(self) -> Counter[Kind]:
        """How many pieces of each kind a whole run is composed of."""
        drawing = self.subject.task == "t2i"
        around = [Kind(SETUP if drawing else ENCODE)]
        if drawing and self.subject.processor.vae is not None:
            around.append(Kind(DECODE_IMAGE))
        return self.inside() + Counter(around)

    def sample(self, at_least: float = 0.0, known: Container[Kind] = ()) -> Take:
        """Short runs, again and again for ``at_least`` seconds; none if every kind is ``known``."""
        if all(kind in known for kind in self.inside()):
            return Take([], 0.0, None)
        return self._take(lambda: self.meet(known), at_least)

    def whole(self) -> Take:
        """What a user waits for."""
        if self.subject.task == "mmu":
            return self._take(self.answer)
        return self._take(lambda: decode_image(self.watch, self.subject, self.draw()))

    def _take(self, play: Callable[[], object], at_least: float = 0.0) -> Take:
        clock = self.watch.clock
        pieces: list[Piece] = []
        seconds = 0.0
        clock.settle()
        with Peak(self.subject.model.device) as peak:
            while not pieces or seconds < at_least:
                start = clock.now()
                play()
                end = clock.now()
                pieces += self.watch.pieces()
                seconds += clock.between(start, end)
        return Take(pieces, seconds, peak.bytes)


class OriginalLane(Lane):
    """The released program's loop. Of its growing rows the shortest and the longest stand for all."""

    def __init__(self, row: Row, subject: Subject, clock: Clock) -> None:
        super().__init__(row, subject, clock)
        self.model = WatchedModel(subject.model, self.watch)

    @property
    def forwards(self) -> int:
        return original.evaluations(self.subject)

    def inside(self) -> Counter[Kind]:
        return Counter({Kind(ORIGINAL, guided=self.guided): self.forwards})

    def draw(self) -> Tensor:
        return original.draw(self.model, self.subject, self.forwards)

    def answer(self) -> None:
        original.answer(self.model, self.subject)

    def meet(self, known: Container[Kind]) -> None:
        if self.subject.task == "t2i":
            original.draw(self.model, self.subject, 1)
        else:
            original.answer(self.model, self.subject, (0, self.forwards - 1))


class RecipeLane(Lane):
    """A recipe on the project's own loops."""

    def __init__(self, row: Row, subject: Subject, clock: Clock, banks: Banks, *, compiled: bool) -> None:
        super().__init__(row, subject, clock)
        assert row.recipe is not None
        task = TASK[subject.task]
        # Which side is pruned does not change the cost; the other task's methods need not fit this model.
        self.recipe = replace(row.recipe, methods=row.recipe.of(task)).resolved("largest")
        self.steps = subject.steps
        self.pruned = {m.mask: m.ratio for m in self.recipe.ffn_prunes()}
        self.recipe.check(Room(subject.name, subject.model.num_layers, subject.model.config.head.num_layers))
        self.model = WatchedModel(subject.model, self.watch)
        self.rooms = Rooms(compiled, CudaGraphs if row.graphs else None)
        self.banks = banks.of(self.recipe, task, row.in_place)

    def runner(self) -> WatchedRunner:
        """A new one for every run, as for every request of a user."""
        return WatchedRunner(self.model, self.banks, self.rooms)

    @property
    def forwards(self) -> int:
        return self.recipe.forwards(self.steps) if self.subject.task == "t2i" else self.subject.new_tokens

    def plans(self) -> list[tuple[str, Plan]]:
        """(step kind, plan) of every forward of a whole run; which layers are skipped is made up."""
        subject = self.subject
        sequence = folded(self.recipe, TASK[subject.task], self.forwards, subject.model.num_layers, subject.guidance)
        return [(step.kind, plan) for step, plan in sequence]

    def inside(self) -> Counter[Kind]:
        return tally(self.plans(), self.pruned, prompts=self.subject.task == "t2i")

    def meet(self, known: Container[Kind]) -> None:
        if self.subject.task == "t2i":
            self.draw(script(self.plans(), self.pruned, known))
        else:
            self.answer(script(self.plans(), self.pruned, known, REPEATED))

    def draw(self, plans: Sequence[Plan] | None = None) -> Tensor:
        subject = self.subject
        self.watch.begin(Kind(SETUP))
        scale = subject.guidance or 0.0
        rows = subject.prompts
        run, canvas = requests.drawing(
            self.runner(), subject.processor, self.recipe, rows, subject.size, self.steps, scale
        )
        watched = WatchedRun(run, self.pruned, plans)
        times = flow.grid(watched.forwards, subject.processor.defaults.shift)
        z = denoise(watched, canvas, subject.noise(), times)
        self.watch.end()
        return z

    def answer(self, plans: Sequence[Plan] | None = None) -> None:
        subject = self.subject
        self.watch.begin(Kind(ENCODE))
        run = Run(self.runner(), self.recipe, "understanding", subject.new_tokens)
        watched = WatchedRun(run, self.pruned, plans)
        with self.watch.part(AUTOENCODER):
            latents = requests.encoded(subject.model, subject.processor, subject.pixels())
        shown = list(range(subject.batch))
        x, tokens = requests.question_rows(self.model, latents, [subject.question] * subject.batch, shown)
        for _ in decode(watched, x, tokens, choose, None):
            pass
        self.watch.end()


def decode_image(watch: Watch, subject: Subject, latents: Tensor) -> None:
    """Latents to pixels, one piece."""
    if subject.processor.vae is not None:
        watch.begin(Kind(DECODE_IMAGE))
        with watch.part(AUTOENCODER):
            subject.processor.vae.decode(latents)
        watch.end()
