"""What stands behind a patched instance of transformers' class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flashu.errors import CheckpointError, RecipeError
from flashu.inference.actions import Action, Append, Decode, Draw
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.gather import UnderstandingWatch, observe
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.engine import RecipeSource
from flashu.inference.run import Run, StepTrace, complete
from flashu.inference.samplers.autoregressive import AutoregressiveSampler
from flashu.interfaces.bound import BoundMethods
from flashu.interfaces.instance import PatchedInstance
from flashu.models.adopt import place
from flashu.models.emu3.dropin.call import Call, Unlike, read
from flashu.models.emu3.dropin.rows import Chooser, Course, RowNoise, StepNoise, course
from flashu.models.emu3.layout import UNCOND, tokens, words
from flashu.models.emu3.load import fill_buffers
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.official import VISION, official_config
from flashu.plan import MAIN, Guidance, Task
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.executor import Executor

log = logging.getLogger("flashu")


def adopted(module: Any) -> Emu3:
    """Our model over the weights of an instance, shared and not copied; the image tokenizer stays the instance's.
    `CheckpointError` for another kind of model."""
    try:
        config = official_config(module.config.to_dict())
        with torch.device("meta"):
            view = Emu3(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{type(module).__name__} is not transformers' Emu3 class: {error}") from error
    share(view, module)
    return view.eval()


def share(view: Emu3, module: nn.Module) -> None:
    """Point every parameter of ``view`` at that of ``module``."""
    theirs = {name: p for name, p in module.named_parameters() if not name.startswith(VISION)}
    ours = dict(view.named_parameters())
    if wrong := sorted(theirs.keys() ^ ours.keys()):
        raise CheckpointError(f"{type(module).__name__} has other weights than an Emu3 of its size: {wrong[:6]}")
    for name, parameter in theirs.items():
        owner, leaf = place(view, name)
        setattr(owner, leaf, parameter)
    fill_buffers(view, view.device)


class DropIn(PatchedInstance):
    """See `PatchedInstance`."""

    model: Emu3

    def __init__(self, module: nn.Module, recipe: RecipeSource, calibration: Calibration | None = None) -> None:
        super().__init__(adopted(module), module, recipe, calibration)
        self.trace: list[StepTrace] = []
        """One entry per forward of the first row of the latest call; empty where the original answered it."""

    def check(self, recipe: Recipe) -> None:
        if recipe.padded:
            raise RecipeError("Emu3's rows have no padding: leave reference mode")
        super().check(recipe)

    def share(self, module: nn.Module) -> None:
        share(self.model, module)

    # -- the instance's method -------------------------------------------------------------------------------------
    def bind(self, module: nn.Module) -> None:
        """Answer the instance's ``generate`` from now on."""
        Emu3Methods(module, self).bind()

    @torch.no_grad()
    def generate(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the original's ``generate`` returns for a call; None where only the original can answer it."""
        self.trace = []
        self.refresh(module)
        try:
            call = read(module, self.model.config.ids.image, args, kwargs)
            rows = self._answered(call) if call.allowed is None else self._drawn(call)
        except Unlike as why:
            self._leave(str(why))
            return None
        longest = max(map(len, rows))
        padded = [row + [call.pad] * (longest - len(row)) for row in rows]
        given = torch.tensor(padded, dtype=call.ids.dtype, device=call.ids.device).view(len(rows), longest)
        sequences = torch.cat((call.asked, given), dim=1)
        if not call.as_dict:
            return sequences
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]

    # -- drawing -----------------------------------------------------------------------------------------------
    def _drawn(self, call: Call) -> list[list[int]]:
        """New tokens of each row."""
        low, high = self._codes
        courses = [course(call, row, self._codes) for row in range(len(call.rows))]
        if not all(one.drawn for one in courses):
            raise Unlike("nothing is to be drawn")
        actions = [self._drawing(call, row, one, None) for row, one in enumerate(courses)]
        executor = self._calibrated("generation", actions)
        noise = self._noise(call)
        if noise is not None:
            actions = [self._drawing(call, row, one, noise) for row, one in enumerate(courses)]
        runs = [Run(script, self.recipe, self.model.spec) for script in actions]
        self._complete(executor, runs)
        rows = []
        for run, one in zip(runs, courses, strict=True):
            codes = iter((run.drawn[0] + low).tolist())
            rows.append([next(codes) if token is None else token for token in one.tokens])
        if noise is not None:
            noise.go_to(max(map(len, rows)))
        for row, (one, real) in enumerate(zip(courses, rows, strict=True)):
            if course(call, row, (low, high), real) != one:
                raise Unlike("what it allows depends on the codes drawn")
        return rows

    def _drawing(self, call: Call, row: int, one: Course, noise: StepNoise | None) -> list[Action]:
        """The script of one row. ``noise`` None: greedy."""
        own: Any = None if noise is None else RowNoise(noise, row, one.drawn, self._codes)
        top_k = 1 if noise is None else call.top_k or self._codes[1] - self._codes[0]
        before, count = one.known_after(-1), len(one.drawn)
        forced = [one.known_after(index) for index in range(count)]

        def sampler(forwards: int, solver: str) -> AutoregressiveSampler:
            return AutoregressiveSampler((count,), self._codes, tokens, own, top_k, lambda index: forced[index])

        scales = {} if call.guidance is None else {UNCOND: float(call.guidance)}
        script: list[Action] = [Append((MAIN,), (words([*call.rows[row], *before]),))]
        if scales:
            script.append(Append((UNCOND,), (words([*call.negative[row], *before]),)))
        return [*script, Draw(Guidance(scales), count, sampler)]

    @property
    def _codes(self) -> tuple[int, int]:
        codes = self.model.spec.codes
        assert codes is not None
        return codes

    # -- answering -----------------------------------------------------------------------------------------------
    def _answered(self, call: Call) -> list[list[int]]:
        if call.limit < 1:
            raise Unlike("nothing is to be generated")
        actions: list[list[Action]] = [
            [Append((MAIN,), (self._row(row),)), Decode(MAIN, call.eos, call.limit)] for row in call.rows
        ]
        executor = self._calibrated("understanding", actions)
        noise = self._noise(call)
        runs = [
            Run(script, self.recipe, self.model.spec, choose=Chooser(call, noise, row))
            for row, script in enumerate(actions)
        ]
        self._complete(executor, runs)
        # What ends a row is not part of its text; a row without it went on to the limit.
        end = next(iter(call.eos), call.pad)
        return [run.text + [end] * (len(run.text) < call.limit) for run in runs]

    def _row(self, ids: Sequence[int]) -> Any:
        """One row, its codes marked as image tokens."""
        segment, (low, high) = words(ids), self._codes
        at = torch.tensor(ids)
        return replace(segment, layout=replace(segment.layout, visual=((at >= low) & (at < high))[None]))

    # -- inside ------------------------------------------------------------------------------------------------
    def _noise(self, call: Call) -> StepNoise | None:
        if not call.sampled:
            return None
        return StepNoise(len(call.rows), self.model.config.text.vocab_size, call.ids.device)

    def _complete(self, executor: Executor, runs: Sequence[Run]) -> None:
        complete(executor, runs)
        self.trace = runs[0].trace

    def _calibrated(self, task: Task, scripts: Sequence[Sequence[Action]]) -> Executor:
        """An executor with what the recipe needs for a task; statistics that it lacks are gathered on these scripts,
        with the full model."""
        with self._lock:
            if task in self.prepared.lacking(task):
                log.info("calibrating on the first call")
                watch = UnderstandingWatch(self.model) if task == "understanding" else None
                norms = FFNNorms() if watch is None else watch.norms
                for script in scripts:
                    observe(self.model, Run(script, exact(), self.model.spec), watch or norms)
                about = {"source": f"the caller's script, {len(scripts)} rows"}
                correlation = None if watch is None else watch.attended.correlation()
                self.prepared.learn(self.model, task, norms.scores(self.model), about, correlation)
            return self._ready(task)


class Emu3Methods(BoundMethods):
    """Calls on one instance, answered by a `DropIn`, or by the instance's own class where that cannot."""

    METHODS = ("generate",)

    def __init__(self, module: nn.Module, behind: DropIn) -> None:
        super().__init__(module)
        self.behind = behind

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As of transformers' class."""
        answer = self.behind.generate(self.module, args, kwargs)
        return self.original("generate")(*args, **kwargs) if answer is None else answer
