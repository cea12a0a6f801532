"""What the lab needs from inside a model: the original program, answers of a given length, and inner values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.evaluation.scenes_items import asked_world
from flashu.inference.actions import Action, AnswerRequest, Decode, DrawRequest
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.importance import UNSEEN, FFNNorms
from flashu.inference.engine import Engine
from flashu.inference.run import Run, complete
from flashu.models.family import TimedReference
from flashu.models.pictures import Picture
from flashu.models.protocol import UnifiedModel
from flashu.models.quantize import plain
from flashu.models.registry import family
from flashu.plan import Task
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Observer, Runner
from flashu.runtime.scores import SCORES, Inner
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES
from flashu.scenes.world import SCENES, World

SEED = 11
ORIGINAL = "original"


# -- engines ---------------------------------------------------------------------------------------------------------
def original(engine: Engine) -> Engine:
    """The original program on the same weights."""
    return family(engine.model.spec.family).reference(engine.model, engine.processor)


class Endless(Engine):
    """An engine that has no token that ends an answer."""

    def _runs(self, scripts: Sequence[Sequence[Action]], *more: Any, **settings: Any) -> list[Run]:
        endless = [[replace(a, stop=frozenset()) if isinstance(a, Decode) else a for a in script] for script in scripts]
        return super()._runs(endless, *more, **settings)


def answering(engine: Engine, tokens: int | None) -> Callable[[Picture, str], object]:
    """How an engine answers a question about an image; with exactly so many ``tokens`` if given."""
    if tokens is None:
        return engine.answer
    if isinstance(engine, TimedReference):
        return lambda image, question: engine.tokens([AnswerRequest(question, (image,), tokens)])
    endless = Endless.of(engine.model, engine.processor, engine.prepared)
    return lambda image, question: endless.answer(image, question, max_new_tokens=tokens)


@torch.inference_mode()
def pixels(engine: Engine, latents: Tensor) -> Tensor:
    """What was drawn [B, ...] as images in [0, 1]."""
    return (engine.layout.pixels(latents.to(engine.model.device)).cpu() + 1) / 2


# -- inner values ----------------------------------------------------------------------------------------------------
def prompts(n: int, world: World = SCENES) -> list[str]:
    """n prompts from the training side of the scenes, the categories in turn."""
    each = -(-n // len(CATEGORIES))
    columns = [benchmark.prompts(category, each, SEED, "train", world) for category in CATEGORIES]
    return [column[k].text for k in range(each) for column in columns][:n]


@torch.inference_mode()
def observe(engine: Engine, task: Task, n: int, observer: Observer, at: Callable[[int], None] = lambda _: None) -> None:
    """The full model draws n prompts at once, or answers n questions one by one, under ``observer``. ``at`` is called
    with the number of each forward before it."""
    layout, world = engine.layout, asked_world(engine)
    if task == "generation":
        batches = [layout.draw([DrawRequest(text, k) for k, text in enumerate(prompts(n, world))], exact())]
    else:
        asked = samples.questions(n, world)
        batches = [layout.answer([AnswerRequest(question, (image,))]) for image, question in asked]
    for scripts in batches:
        runs = [Run(script, exact(), engine.model.spec) for script in scripts]
        at(0)
        executor = Executor(Runner(engine.model, observer=observer))
        complete(executor, runs, lambda k, _, runs=runs: at(len(runs[k].trace)))  # type: ignore[misc]


class SecondMoments(FFNNorms):
    """Observer of E[a_j^2] of every FFN neuron over all real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Counter[tuple[int, str]] = Counter()

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        super().__call__(layer, expert, name, value, layout)
        if name == "ffn":
            self.tokens[layer, expert] += int(layout.valid.sum())

    def errors(self, model: UnifiedModel) -> Tensor:
        """E[a_j^2] ||w_j||^2 of the checkpoint's neurons [FFNs, neurons], as `UnifiedModel.ffns` lists them; `UNSEEN`
        where no token went through."""
        rows = []
        for key, ffn in model.ffns().items():
            error = torch.full((ffn.neurons,), UNSEEN)
            if key in self.squares:
                reads = plain(ffn.weights().output.weight).detach().float().square().sum(0)
                error = ffn.stored(self.squares[key] / self.tokens[key] * reads).cpu()
            rows.append(error)
        return torch.stack(rows)


class LayerSimilarity:
    """Observer of the mean cosine similarity of each layer's input and output, by kind of token.

    The kinds: text, image, marker (the other tokens of an image's block), and new (a token being decoded); the last
    token of a prefill, which Eq. 7 reads, is counted as "last" too.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.forward = 0
        self.found: dict[tuple[int, str, int], tuple[float, int]] = {}
        self._input: Tensor | None = None

    def at(self, forward: int) -> None:
        """The forward that comes next."""
        self.forward = forward

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        if name == "input":
            self._input = value
        elif name == "output":
            assert self._input is not None
            cosine = F.cosine_similarity(self._input.float(), value.float(), dim=-1).cpu()
            for kind, where in self._kinds(layout).items():
                key = (self.forward, kind, layer)
                total, count = self.found.get(key, (0.0, 0))
                self.found[key] = (total + float(cosine[where].sum()), count + int(where.sum()))

    def _kinds(self, layout: TokenLayout) -> dict[str, Tensor]:
        if self.forward and not bool(layout.visual.any()):
            return {"new" if self.task == "understanding" else "image": layout.valid}
        # In a block is who sees later tokens, and the last of those seen.
        reach = F.pad(layout.sees.cummax(1).values[:, :-1], (1, 0), value=-1)
        block = ((layout.sees > layout.order) | (reach >= layout.order)) & layout.valid
        last = torch.zeros_like(layout.valid).scatter(1, layout.last[:, None], True)
        kinds = {"image": layout.visual, "marker": block & ~layout.visual, "text": ~block & layout.valid}
        return kinds | ({"last": last} if self.task == "understanding" else {})

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"task": self.task, "forward": forward, "token": kind, "layer": layer + 1}
            | {"similarity": total / count, "n": count}
            for (forward, kind, layer), (total, count) in sorted(self.found.items())
            if count
        ]


class AttentionAndNorms:
    """Observer of prefills: attention received and value norm of the visual tokens, by layer and sample."""

    def __init__(self, layers: int) -> None:
        self.pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]
        self._seen: dict[str, Tensor] = {}

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        self._seen[name] = value
        if name != "value" or not bool(layout.visual.any()):
            return
        inner = Inner(layout, self._seen["key"], value, value, self._seen["query"])
        attention, norm = (SCORES[kind](inner, 0).cpu() for kind in ("attention", "value_norm"))
        for row, visual in enumerate(layout.visual):
            self.pairs[layer].append((attention[row][visual], norm[row][visual].sqrt()))
