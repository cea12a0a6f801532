"""The engine: a model, what surrounds it, and a recipe. `generate` draws, `edit` changes, `answer` sees."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, DrawRequest, History, Visual
from flashu.inference.arguments import (
    Calls,
    OnStep,
    OnText,
    Pieces,
    Shown,
    histories_of,
    known_of,
    questions_about,
    seeds_of,
    texts_of,
)
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.history import SharedObservations
from flashu.inference.prepared import PreparedRecipe
from flashu.inference.results import Answer, Generation
from flashu.inference.run import Event, Run, complete
from flashu.inference.session import UNDO, Session
from flashu.inference.speculate import DraftSource, speculation_of
from flashu.models.adapter import Adapter, shipped
from flashu.models.offload import offloaded
from flashu.models.packing import is_packed
from flashu.models.pictures import Picture, to_pil
from flashu.models.protocol import UnifiedModel
from flashu.models.weights import checkpoint_hash
from flashu.models.words import IMAGE, around_images
from flashu.plan import Guidance, Observations, Step, Task
from flashu.plan.explain import Sizes, tabulate
from flashu.plan.limits import check_number
from flashu.plan.presets import PRESETS, RecipeSource, Target, load_recipe
from flashu.plan.recipe import Recipe
from flashu.plan.table import PlanTable
from flashu.runtime.compile import LayerCalls
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor
from flashu.runtime.graphs import GraphPool
from flashu.runtime.memory import enough_memory
from flashu.runtime.runner import Runner
from flashu.runtime.sampling import chooser
from flashu.runtime.slots import SlotPool

log = logging.getLogger("flashu")

CHECK_EVERY = 8
"""Tokens of text between two looks at whether to stop, on a device that a look waits for."""


def recipe_for(model: UnifiedModel, source: RecipeSource) -> Recipe:
    """The recipe of a source, as it is for this model; see `load_recipe`."""
    tuned = isinstance(source, str | Path) and source not in PRESETS
    fingerprint = checkpoint_hash(model) if tuned else None
    return load_recipe(source, Target(model.name, model.spec, fingerprint))


class Engine:
    """Draws and sees with one model under one recipe. Engines with other recipes may share the model and calibration;
    all state of a request lives in its runs, so an engine can be used from several threads.

    ``calibration``: FFN importance and value-norm statistics; gathered when first needed if not given. ``compile``:
    compile the layers (first calls are slow). ``graphs``: capture forwards as CUDA graphs and replay them.
    ``in_place``: FFN pruning takes no memory, because the model's own FFN neurons are put in an order in which what a
    task keeps is one slice; engines that share the model then compute as before up to rounding, but none can prune it
    in place by other masks (`FlashUError`) until `release`. ``routers``: weights [2, D] of the routers that the recipe
    names (`flashu.training.mod.Routers.weights`). ``draft``: what drafts answers, which makes them quicker and changes
    nothing else (see `speculation_of`). ``adapter``: its folder, or one that is loaded: weights that are used in the
    forwards that denoise and nowhere else, so that contexts and answers stay the model's. Raises `RecipeError` when
    the model lacks what the recipe works on.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: Any,
        recipe: RecipeSource = "exact",
        calibration: Calibration | None = None,
        *,
        compile: bool = False,
        graphs: bool = False,
        in_place: bool = False,
        routers: Mapping[str, Tensor] | None = None,
        draft: DraftSource = None,
        adapter: str | Path | Adapter | None = None,
    ) -> None:
        if (compile or graphs) and offloaded(model):
            raise FlashUError("an offloaded model is neither compiled nor captured: load it without offload")
        if compile and is_packed(model):
            raise FlashUError("packed weights are not compiled: leave compile out, or load the model without pack")
        if graphs and model.device.type != "cuda":
            raise FlashUError(f"CUDA graphs need a model on a CUDA device, not on {model.device}: leave graphs out")
        self._hold(model, processor, draft, adapter)
        calls, pool = LayerCalls(compile, model.device), GraphPool() if graphs else None
        self.prepared = PreparedRecipe(
            recipe_for(model, recipe), calibration, calls, pool, in_place=in_place, routers=routers
        )
        self._check()

    def _hold(
        self, model: UnifiedModel, processor: Any, draft: DraftSource, adapter: str | Path | Adapter | None = None
    ) -> None:
        self.model, self.processor = model, processor
        self.adapter = Adapter.load(adapter, model) if isinstance(adapter, str | Path) else adapter
        if self.adapter is not None and offloaded(model):
            raise FlashUError("an offloaded model takes no adapter: load it without offload")
        self._drawing = None if self.adapter is None else self.adapter.on(model)
        self.layout = (self._drawing or model).layout(processor)
        if self.adapter is not None:
            facts = self.adapter.facts
            self.layout.defaults = replace(self.layout.defaults, steps=facts.steps, shift=facts.shift)
        self.speculation = speculation_of(draft, model)

    def _check(self) -> None:
        self.recipe.check(self.model.spec)
        if self.adapter is not None:
            self._check_adapter()
        if self.speculation is not None and self.recipe.reference:
            raise RecipeError("the released FlashU program decodes token by token: leave draft out")
        token = Step("understanding", "token", 1, 2)
        if self.speculation is not None and self.recipe.plan(token, Observations(), {}).layers.bypasses:
            raise RecipeError("drafted tokens that bypass layers cannot be taken back: leave draft out for this recipe")

    def _check_adapter(self) -> None:
        """`RecipeError` for what does not go with weights that are used while denoising alone."""
        drawing = self.recipe.of("generation")
        if self.recipe.solver != "euler":
            raise RecipeError(f"adapters draw by Euler steps: leave the solver {self.recipe.solver!r} out")
        if names := [m.name for m in drawing if m.writes & {"scales", "reuse"}]:
            raise RecipeError(f"guidance is folded into the adapter: leave {', '.join(names)} out")
        if any(m.task == "generation" for m in self.recipe.ffn_prunes()):
            raise RecipeError(
                "FFN masks are of the model's own weights: with an adapter, leave ffn_prune out for drawing"
            )
        if self.prepared.in_place:
            raise RecipeError("neurons that an adapter shares cannot be moved: leave in_place out")

    def __repr__(self) -> str:
        spec, where = self.model.spec, f"{self.model.dtype}".removeprefix("torch.")
        name = self.model.name or spec.family
        return f"<Engine {name} ({spec.family}, {where}, {self.model.device}) recipe {self.recipe.name!r}>"

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    @property
    def calibration(self) -> Calibration | None:
        return self.prepared.calibration

    def with_recipe(
        self,
        recipe: RecipeSource = "exact",
        draft: DraftSource = None,
        adapter: str | Path | Adapter | None = None,
    ) -> Engine:
        """An engine over the same weights with another recipe: a preset's name, a recipe file, settings or a recipe.
        ``draft``: what drafts its answers (None: nothing). ``adapter``: as of `Engine` (None: none); the name of one
        that comes with the model ("6-step") may stand for the recipe."""
        if adapter is None and (folder := shipped(self.model, recipe)) is not None:
            recipe, adapter = "exact", folder
        known = self.prepared
        prepared = PreparedRecipe(
            recipe_for(self.model, recipe),
            known.calibration,
            known.calls,
            # Graphs read one recipe's banks: each has its own.
            None if known.graphs is None else GraphPool(known.graphs.capture),
            in_place=known.in_place,
            routers=known.routers,
        )
        return self.of(self.model, self.processor, prepared, draft, adapter)

    @classmethod
    def of(
        cls,
        model: UnifiedModel,
        processor: Any,
        prepared: PreparedRecipe,
        draft: DraftSource = None,
        adapter: str | Path | Adapter | None = None,
    ) -> Engine:
        """An engine for a recipe that is already prepared for the model."""
        engine = cls.__new__(cls)
        engine._hold(model, processor, draft, adapter)
        engine.prepared = prepared
        engine._check()
        return engine

    # -- drawing -----------------------------------------------------------------------------------------------
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        history: History | Sequence[History] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int | None = None,
        think: bool = False,
        on_step: OnStep | None = None,
        on_text: OnText | None = None,
        decode: bool = True,
        **own: Any,
    ) -> Generation:
        """Draw ``images_per_prompt`` images of each prompt.

        ``history``: (text, image) pairs that stand before a prompt in its row; with a list of prompts, a list of them
        for each. An image is a picture or the latents of one drawn, in the size of the image to draw, and stays as it
        is. The guidance branch does not see it.
        ``image``, ``mask``: draw the part of an image that the mask shows white (`inference.actions.Known`), for models
        that draw by masked codes; one for all prompts, or a list with one for each.
        ``seed``: of the first image, counted up from there, or one per image; an image depends on its own seed, not
        on its batch (up to rounding). ``steps``: forwards before the recipe shortens them. ``guidance``: as the model's
        authors count it; 0 draws without a guidance branch. ``height``, ``width``: pixels. ``batch_size``: images at a
        time, default all. ``think``: think in text first, for models trained to; ``on_text`` gets the pieces of it.
        ``decode`` False: latents only. ``own``: settings that only some models have (see their pages). Defaults are the
        checkpoint's. Raises a `FlashUError` before anything is computed.
        """
        listed = texts_of(prompts)
        if not listed or (isinstance(images_per_prompt, int) and images_per_prompt == 0):
            raise PromptError("nothing to draw: give at least one prompt and one image per prompt")
        check_number("images_per_prompt", images_per_prompt)
        before = [()] * len(listed) if history is None else histories_of(history, listed, isinstance(prompts, str))
        shared = {"steps": steps, "guidance": guidance, "shift": shift, "height": height, "width": width}
        shared |= self.asked(think, own)
        known = known_of(image, mask, len(listed))
        if known[0] is not None and self.model.spec.drawing != "masked":
            raise FlashUError(f"{self.model.spec.family} draws whole images: leave image and mask out")
        texts = [x for x in zip(listed, before, known, strict=True) for _ in range(images_per_prompt)]
        requests = [
            DrawRequest(text, s, history=shown, known=part, **shared)  # type: ignore[arg-type]
            for (text, shown, part), s in zip(texts, seeds_of(seed, len(texts), "images"), strict=True)
        ]
        return self._drawn(requests, batch_size, on_step, on_text, decode)

    def edit(
        self,
        images: Picture | Sequence[Picture],
        prompts: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        text_guidance: float | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int | None = None,
        think: bool = False,
        on_step: OnStep | None = None,
        on_text: OnText | None = None,
        decode: bool = True,
        **own: Any,
    ) -> Generation:
        """Change images as the prompts say, one prompt per image; settings as in `generate`. ``text_guidance``: what
        is ``guidance`` there. ``height``, ``width``: of the result, default as the image is shown to the model.
        `FlashUError` for a model that cannot."""
        asked, listed = self.asked(think, own), texts_of(prompts)
        shown = list(images) if isinstance(images, list | tuple) else [images] * len(listed)
        if not listed or len(shown) != len(listed):
            raise ImageError(f"{len(shown)} images for {len(listed)} prompts: give one image per prompt")
        shared = {"steps": steps, "guidance": text_guidance, "shift": shift, "height": height, "width": width}
        shared |= asked
        requests = [
            DrawRequest(text, s, images=(image,), **shared)  # type: ignore[arg-type]
            for text, image, s in zip(listed, shown, seeds_of(seed, len(listed), "images"), strict=True)
        ]
        check_number("batch_size", batch_size)
        if not self.layout.edits:
            family = self.model.spec.family
            raise FlashUError(f"this model ({family}) does not edit images, or was loaded without the parts for it")
        return self._drawn(requests, batch_size, on_step, on_text, decode)

    def session(self, image: Picture | None = None, *, limit: int | None = None, undo: int = UNDO) -> Session:
        """A conversation of drawings, questions and edits, each of which sees those before it without computing them
        again; see `Session`."""
        return Session(self, image, limit=limit, undo=undo)

    def editing(self, image: Picture) -> Session:
        """A session that begins with an image."""
        return self.session(image)

    def asked(self, think: bool, own: Mapping[str, Any]) -> dict[str, Any]:
        """What only some models can be asked; `FlashUError` for others."""
        if think and not self.layout.thinks:
            raise FlashUError(f"this model ({self.model.spec.family}) was not trained to think: leave think out")
        return {"think": think, "own": self.own_settings(own)}

    def own_settings(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        """Drawing settings that only some models have; `TypeError` for those that this one has not."""
        if own and (unknown := sorted(own.keys() - self.layout.settings)):
            known = ", ".join(sorted(self.layout.settings)) or "none"
            family = self.model.spec.family
            raise TypeError(f"unexpected keyword {', '.join(unknown)}: {family}'s own drawing settings are {known}")
        return own

    def _drawn(
        self,
        requests: Sequence[DrawRequest],
        batch_size: int | None,
        on_step: OnStep | None,
        on_text: OnText | None,
        decode: bool,
    ) -> Generation:
        check_number("batch_size", batch_size)
        chunk = int(batch_size or len(requests))  # of NumPy, too
        scripts = self._scripts(requests)
        done: list[Run] = []
        for at in range(0, len(requests), chunk):
            runs = self._runs(scripts[at : at + chunk])
            calls = Calls(len(runs), on_step, on_text, self.layout.text, first=at)
            self.complete(runs, calls)
            done += runs
        return self.generation(requests, done, decode, min(chunk, 8))

    def complete(self, runs: Sequence[Run], on_events: Callable[[int, list[Event]], None] | None = None) -> None:
        """Carry out drawings together."""
        advice = "use a smaller batch_size or image, or bf16 weights"
        with enough_memory(f"draw {len(runs)} images at once", advice), torch.inference_mode():
            complete(self.executor(), runs, on_events)

    def generation(
        self, requests: Sequence[DrawRequest], runs: Sequence[Run], decode: bool = True, batch_size: int = 8
    ) -> Generation:
        """What runs have drawn; with ``decode``, as pictures."""
        drawn = [run.drawn[-1] for run in runs]
        if any(one.is_floating_point() and not bool(one.isfinite().all()) for one in drawn):
            raise FlashUError("the latents are not finite: the weights or the settings are unusable")
        alike = len({one.shape for one in drawn}) == 1
        images: list[Image.Image] = []
        if decode and self.layout.draws:
            for part in [torch.stack(drawn)] if alike else [one[None] for one in drawn]:
                images += self.decode(part, batch_size)
        return Generation(
            images,
            torch.stack(drawn) if alike else drawn,
            [request.prompt for request in requests],
            [request.seed for request in requests],
            [run.trace for run in runs],
            [self.layout.text(run.text) for run in runs] if requests[0].think else [],
        )

    def runs_to_draw(
        self, requests: Sequence[DrawRequest], contexts: Sequence[Mapping[str, Context]] | None = None
    ) -> list[Run]:
        """A run for each image, not yet begun; `FlashUError` for what cannot be drawn. Several that go together are
        computed together; each run's ``drawn[-1]`` is what `decode` takes. ``contexts``: of each, what earlier runs
        left behind, on which it goes on."""
        return self._runs(self._scripts(requests), contexts=contexts)

    def _scripts(self, requests: Sequence[DrawRequest]) -> list[list[Action]]:
        """The actions of requests of equal steps; the recipe is prepared for them."""
        asked = requests[0].steps or self.layout.defaults.steps
        if self.recipe.forwards(asked) < 1:
            raise FlashUError(f"{asked} steps leave no forward under recipe {self.recipe.name!r}: ask for more")
        if self.adapter is not None and self.recipe.forwards(asked) != self.adapter.facts.steps:
            forwards, trained = self.recipe.forwards(asked), self.adapter.facts.steps
            log.warning("the adapter was trained to draw in %d steps, not in %d", trained, forwards)
        scripts = self.layout.draw(requests, self.recipe)
        self.prepare("generation", prompt=requests[0].prompt)
        return scripts

    @torch.inference_mode()
    def decode(self, latents: Tensor, batch_size: int = 8) -> list[Image.Image]:
        """Images of latents [B, c, h, w], or of codes [B, N]."""
        if not self.layout.draws:
            raise FlashUError("this model was loaded without an autoencoder, so latents cannot become images")
        with enough_memory("decode the images", "use a smaller batch_size, or the autoencoder's enable_tiling()"):
            return [image for part in latents.split(batch_size) for image in to_pil(self.layout.pixels(part))]

    # -- seeing ------------------------------------------------------------------------------------------------
    @overload
    def answer(self, images: Visual | Sequence[Shown], questions: str, **settings: Any) -> Answer: ...
    @overload
    def answer(self, images: Visual | Sequence[Shown], questions: Sequence[str], **settings: Any) -> list[Answer]: ...
    def answer(
        self, images: Any, questions: Any, *, max_new_tokens: int | None = None, think: bool = False, **sampling: Any
    ) -> Any:
        """Answer a question about an image or a `Video`; a list of questions gives a list of answers, computed as one
        batch.

        With one image or video, all questions are about it; else ``images`` is a list with, per question, one or a
        list of several. They stand before the question, or where it says ``<image>``, which it then does for each.
        Settings:
        ``max_new_tokens`` (default: the checkpoint's), ``temperature`` 0 (greedy), ``top_k`` and ``top_p`` None (off),
        ``seed`` 0 (answer i samples with seed + i; or one each), ``think`` (in text first, for models trained to; the
        thought is part of the answer). Raises a `FlashUError` before anything is computed.
        """
        answers = self.respond(questions_about(images, texts_of(questions), max_new_tokens, think), **sampling)
        return answers[0] if isinstance(questions, str) else answers

    @overload
    def chat(self, messages: str, **settings: Any) -> Answer: ...
    @overload
    def chat(self, messages: Sequence[str], **settings: Any) -> list[Answer]: ...
    def chat(self, messages: Any, *, max_new_tokens: int | None = None, think: bool = False, **sampling: Any) -> Any:
        """Answer a message without an image; a list of messages gives a list of answers. Settings as in `answer`."""
        texts = texts_of(messages)
        if not texts:
            raise PromptError("nothing to answer: give at least one message")
        answers = self.respond([AnswerRequest(text, (), max_new_tokens, think=think) for text in texts], **sampling)
        return answers[0] if isinstance(messages, str) else answers

    def stream(
        self, image: Shown, question: str, *, max_new_tokens: int | None = None, think: bool = False, **sampling: Any
    ) -> Iterator[str]:
        """The pieces of one answer's text as they are decoded; settings as in `answer`."""
        (run,) = self.runs_to_answer(questions_about([image], [question], max_new_tokens, think), **sampling)
        return self._pieces(run)

    def _pieces(self, run: Run) -> Iterator[str]:
        executor, pieces = self.executor(), Pieces(self.layout.text)
        while not run.done:
            with torch.inference_mode():
                events = run.step(executor)
            if piece := pieces.of(events):
                yield piece

    def respond(self, requests: Sequence[AnswerRequest], **sampling: Any) -> list[Answer]:
        """Answer requests as one batch; ``sampling`` as in `answer`."""
        runs = self.runs_to_answer(requests, **sampling)
        advice = "ask fewer at a time, or use bf16 weights"
        with enough_memory(f"answer {len(requests)} questions at once", advice), torch.inference_mode():
            complete(self.executor(), runs)
        return [Answer(self.layout.text(run.text), run.text, run.trace) for run in runs]

    def runs_to_answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] = 0,
        contexts: Sequence[Mapping[str, Context]] | None = None,
    ) -> list[Run]:
        """A run for each answer, not yet begun; settings as in `answer`, ``contexts`` as in `runs_to_draw`.
        `FlashUError` for what cannot be asked."""
        choices = [
            chooser(temperature=temperature, top_k=top_k, top_p=top_p, seed=one)
            for one in seeds_of(seed, len(requests), "questions")
        ]
        self.asked(any(request.think for request in requests), {})
        scripts = self.layout.answer([self._placed(request) for request in requests])
        self.prepare("understanding")
        return self._runs(scripts, choices, contexts)

    def _placed(self, request: AnswerRequest) -> AnswerRequest:
        """A question whose text says where its pictures stand, as a row of ids."""
        if request.ids is not None or IMAGE not in request.text:
            return request
        around_images(request.text, len(request.images))  # a place for each, or an error
        return replace(request, ids=self.processor.row(request.text, len(request.images)))

    # -- planning ----------------------------------------------------------------------------------------------
    def explain(self, task: Task = "generation", **settings: Any) -> PlanTable:
        """What a request would compute, forward by forward, before anything runs; settings as in
        `plan.explain.tabulate`. The table prints itself (rich) and has ``to_dict``."""
        return tabulate(self.sizes, self.recipe, task, **settings)

    @property
    def sizes(self) -> Sizes:
        sizes = self.layout.sizes("this model")
        # An adapter guides by itself: one branch.
        return sizes if self.adapter is None else replace(sizes, guidance=lambda scale, edit: Guidance())

    # -- calibration -------------------------------------------------------------------------------------------
    def calibrate(
        self,
        task: Task,
        *,
        prompts: Sequence[str] | None = None,
        pairs: Sequence[tuple[Picture, str]] | None = None,
    ) -> Calibration:
        """Gather what the methods need to know of this model for a task; returns (and keeps) the calibration.

        Generation: FFN importance over all forwards of drawing ``prompts`` (default: one image); under a `reference`
        recipe over one forward on text embeddings, as the released program does it. Understanding: FFN importance
        and value-norm statistics over answering ``pairs`` of (image, question), default 20 procedural scenes (a warning
        says so where the model is not one of those that the package ships).
        """
        return self.prepared.calibrate(self.model, self.layout, task, prompts=prompts, pairs=pairs)

    def prepare(self, task: Task, prompt: str | None = None) -> None:
        """Make the recipe ready for a task now rather than at the first request."""
        self.prepared.prepare(self.model, self.layout, task, prompt)

    def release(self) -> None:
        """Put FFN neurons that this engine moved (``in_place``) back in the checkpoint's order, bit for bit; the next
        request moves them again. Nothing may run on the model meanwhile."""
        self.prepared.release(self.model)

    # -- inside ------------------------------------------------------------------------------------------------
    def executor(self, slots: SlotPool | None = None) -> Executor:
        """Computes the forwards of this engine's runs, of one thread; ``slots``: so that answers may begin and end at
        any token of others. Make it after `prepare`."""
        drafter = None if self.speculation is None else self.speculation.drafter
        known = self.prepared
        drawing = None if self._drawing is None else Runner(self._drawing, calls=known.calls, routers=known.routers)
        return Executor(known.runner(self.model), known.graphs, slots, drafter, drawing)

    def _runs(
        self,
        scripts: Sequence[Sequence[Action]],
        choices: Sequence[Any] | None = None,
        contexts: Sequence[Mapping[str, Context]] | None = None,
    ) -> list[Run]:
        # The released program has one layer-skipping list for a whole batch.
        one = SharedObservations() if self.recipe.reference else None
        every = 1 if self.model.device.type == "cpu" else CHECK_EVERY
        return [
            Run(
                script,
                self.recipe,
                self.model.spec,
                choose=None if choices is None else choices[n],
                check_every=every,
                observations=one,
                contexts=None if contexts is None else contexts[n],
                speculation=self.speculation,
            )
            for n, script in enumerate(scripts)
        ]
