"""The engine: a model, what surrounds it, and a recipe. `generate` draws, `answer` sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference import requests
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.interleaved import History, histories, stories
from flashu.inference.loops.canvas import Earlier
from flashu.inference.loops.denoise import OnStep, denoise
from flashu.inference.prepared import Fitted
from flashu.inference.requests import Shown, Visual, positive
from flashu.inference.run import Record, Run
from flashu.inference.samplers import flow
from flashu.models.offload import offloaded
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.plan import Task
from flashu.plan.explain import Sizes, tabulate
from flashu.plan.recipe import FlashUConfig, Recipe, load_recipe
from flashu.plan.table import PlanTable
from flashu.runtime.memory import enough_memory
from flashu.runtime.replays import CudaGraphs
from flashu.runtime.rooms import Rooms
from flashu.runtime.sampling import chooser


@dataclass(frozen=True, eq=False)
class Generation:
    """Drawn images. ``latents`` [B, c, h, w] fp32; ``seeds`` one per image; ``trace`` one record per forward."""

    images: list[Image.Image]
    latents: Tensor
    prompts: list[str]
    seeds: list[int]
    trace: list[Record] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer. ``tokens`` are the ids decoded to ``text``; ``trace`` is that of the batch it was answered in."""

    text: str
    tokens: list[int]
    trace: list[Record] = field(repr=False)


class Engine:
    """Draws and sees with one model under one recipe. Engines with other recipes may share the model and calibration;
    all state of a request lives in its run, so an engine can be used from several threads.

    ``calibration``: FFN importance and value-norm statistics; gathered when first needed if not given. ``compile``:
    compile each kind of room once (first calls are slow). ``graphs``: record every kind of forward of a request as a
    CUDA graph and replay it. ``in_place``: FFN pruning takes no memory, because the model's own FFN neurons are put
    in an order in which what a task keeps is one slice; engines that share the model then compute as before up to
    rounding, but none can prune it in place by other masks (`FlashUError`) until `release`. Raises `RecipeError` when
    the model lacks what the recipe works on.
    """

    def __init__(
        self,
        model: ShowO2,
        processor: Processor,
        recipe: Recipe | FlashUConfig | str | Path = "exact",
        calibration: Calibration | None = None,
        *,
        compile: bool = False,
        graphs: bool = False,
        in_place: bool = False,
    ) -> None:
        if (compile or graphs) and offloaded(model):
            raise FlashUError("an offloaded model has neither compiled rooms nor graphs: load it without offload")
        if graphs and model.device.type != "cuda":
            raise FlashUError(f"CUDA graphs need a model on a CUDA device, not on {model.device}: leave graphs out")
        self.model = model
        self.processor = processor
        rooms = Rooms(compile, CudaGraphs if graphs else None)
        self.fitted = Fitted(load_recipe(recipe), calibration, rooms, in_place=in_place)
        self.fitted.check(model)

    @property
    def recipe(self) -> Recipe:
        return self.fitted.recipe

    @property
    def calibration(self) -> Calibration | None:
        return self.fitted.calibration

    def with_recipe(self, recipe: Recipe | FlashUConfig | str | Path) -> Engine:
        """An engine over the same weights with another recipe: a preset's name, a recipe file, settings or a recipe."""
        known = self.fitted
        fitted = Fitted(load_recipe(recipe), known.calibration, known.rooms, in_place=known.in_place)
        return self.of(self.model, self.processor, fitted)

    @classmethod
    def of(cls, model: ShowO2, processor: Processor, fitted: Fitted) -> Engine:
        """An engine for a recipe that is already fitted to the model."""
        engine = cls.__new__(cls)
        engine.model, engine.processor, engine.fitted = model, processor, fitted
        fitted.check(model)
        return engine

    # -- drawing -----------------------------------------------------------------------------------------------
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        history: History | Sequence[History] | None = None,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
        decode: bool = True,
    ) -> Generation:
        """Draw ``images_per_prompt`` images of each prompt.

        ``history``: (text, image) pairs that stand before a prompt in its row; with a list of prompts, a list of them
        for each. An image is a picture or the latents of one drawn, in the size of the image to draw, and stays as it
        is. The unconditional branch does not see it.
        ``seed``: of the first image, counted up from there, or one per image; an image depends on its own seed, not
        on its batch (up to rounding; a layer-skipping list, though, is the batch's). ``steps``: forwards before the
        recipe shortens them. ``guidance``: scale s0; 0 or 1 draws without an unconditional branch. ``height``,
        ``width``: pixels, multiples of 16. ``batch_size``: images at a time, default all.
        ``decode`` False: latents only. Defaults are the checkpoint's. Raises a `FlashUError` before anything is
        computed.
        """
        defaults = self.processor.defaults
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        if not listed or images_per_prompt < 1:
            raise PromptError("nothing to draw: give at least one prompt and one image per prompt")
        before = None if history is None else histories(history, listed, isinstance(prompts, str))
        ids = [self.processor.text.prompt(p) for p in listed]
        texts = [p for p in listed for _ in range(images_per_prompt)]
        seeds = list(range(seed, seed + len(texts))) if isinstance(seed, int) else [int(s) for s in seed]
        if len(seeds) != len(texts):
            raise FlashUError(f"{len(seeds)} seeds for {len(texts)} images: give one seed or one per image")
        steps = positive("steps", defaults.steps if steps is None else steps)
        scale = defaults.guidance if guidance is None else guidance
        if not 0 <= scale < float("inf"):
            raise FlashUError(f"guidance must be a finite number of at least 0, got {scale}")
        size = requests.latent_size(self.model, self.processor, height or defaults.height, width or defaults.width)
        chunk = positive("batch_size", len(texts) if batch_size is None else batch_size)
        earlier: list[Earlier] | None = None
        if before is not None:
            ids, given = stories(self.model, self.processor, listed, before, size)
            earlier = [seen for seen in given for _ in range(images_per_prompt)]
        wanted = [row for row in ids for _ in range(images_per_prompt)]
        self.prepare("generation", prompt=texts[0])

        noise = torch.stack([flow.noise((self.model.config.image_latent_dim, *size), s) for s in seeds])
        if self.recipe.reference:
            noise = noise.bfloat16().float()  # the released program draws its noise in bf16
        latents, trace = [], []
        for at in range(0, len(texts), chunk):
            part = wanted[at : at + chunk]
            shown = None if earlier is None else earlier[at : at + chunk]
            run, canvas = requests.drawing(
                self.fitted.runner(self.model), self.processor, self.recipe, part, size, steps, scale, shown
            )
            times = flow.times(run.forwards, defaults.shift if shift is None else shift, self.recipe.solver)
            with enough_memory(
                f"draw {len(part)} images at once", "use a smaller batch_size or image, or bf16 weights"
            ):
                latents.append(denoise(run, canvas, noise[at : at + chunk].to(self.model.device), times, on_step))
            trace += run.trace
        drawn = torch.cat(latents)
        if not bool(drawn.isfinite().all()):
            raise FlashUError("the latents are not finite: the weights or the settings are unusable")
        images = self.decode(drawn, min(chunk, 8)) if decode and self.processor.vae is not None else []
        return Generation(images, drawn, texts, seeds, trace)

    @torch.inference_mode()
    def decode(self, latents: Tensor, batch_size: int = 8) -> list[Image.Image]:
        """Images of latents [B, c, h, w]."""
        vae = self.processor.vae
        if vae is None:
            raise FlashUError("this model was loaded without an autoencoder, so latents cannot become images")
        with enough_memory("decode the images", "use a smaller batch_size, or the autoencoder's enable_tiling()"):
            return [image for part in latents.split(batch_size) for image in self.processor.to_pil(vae.decode(part))]

    # -- seeing ------------------------------------------------------------------------------------------------
    @overload
    def answer(self, images: Visual | Sequence[Shown], questions: str, **settings: Any) -> Answer: ...
    @overload
    def answer(self, images: Visual | Sequence[Shown], questions: Sequence[str], **settings: Any) -> list[Answer]: ...
    def answer(self, images: Any, questions: Any, **settings: Any) -> Any:
        """Answer a question about an image or a `Video`; a list of questions gives a list of answers, computed as one
        batch.

        With one image or video, all questions are about it; else ``images`` is a list with, per question, one or a
        list of several. Settings:
        ``max_new_tokens`` (default: the checkpoint's), ``temperature`` 0 (greedy), ``top_k`` and ``top_p`` None (off),
        ``seed`` 0 (row i samples with seed + i). Raises a `FlashUError` before anything is computed.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        shown = list(images) if isinstance(images, list | tuple) else [images] * len(asked)
        answers = self._answers(*self._asking(shown, asked, **settings), len(asked))
        return answers[0] if isinstance(questions, str) else answers

    @overload
    def chat(self, messages: str, **settings: Any) -> Answer: ...
    @overload
    def chat(self, messages: Sequence[str], **settings: Any) -> list[Answer]: ...
    def chat(self, messages: Any, **settings: Any) -> Any:
        """Answer a message without an image; a list of messages gives a list of answers. Settings as in `answer`."""
        said = [messages] if isinstance(messages, str) else list(messages)
        if not said:
            raise PromptError("nothing to answer: give at least one message")
        answers = self._answers(*self._talking(said, **settings), len(said))
        return answers[0] if isinstance(messages, str) else answers

    def stream(self, image: Shown, question: str, **settings: Any) -> Iterator[str]:
        """The pieces of one answer's text as they are decoded; settings as in `answer`."""
        _, columns = self._asking([image], [question], **settings)
        ids: list[int] = []
        said = ""
        for (token,) in columns:
            assert token is not None
            ids.append(token)
            text = self.processor.text.decode(ids)
            # A piece that ends inside a multi-byte character waits for the rest of it.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(said) :]
                said = text

    # -- planning ----------------------------------------------------------------------------------------------
    def explain(self, task: Task = "generation", **settings: Any) -> PlanTable:
        """What a request would compute, forward by forward, before anything runs; settings as in `explain.tabulate`.

        The table prints itself (rich) and has ``to_dict``.
        """
        return tabulate(Sizes.of(self.model.config, self.processor), self.recipe, task, **settings)

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
        and value-norm statistics over answering ``pairs`` of (image, question), default 20 procedural scenes.
        """
        return self.fitted.calibrate(self.model, self.processor, task, prompts=prompts, pairs=pairs)

    def prepare(self, task: Task, prompt: str | None = None) -> None:
        """Make the recipe ready for a task now rather than at the first request."""
        self.fitted.prepare(self.model, self.processor, task, prompt)

    def release(self) -> None:
        """Put FFN neurons that this engine moved (``in_place``) back in the checkpoint's order, bit for bit; the next
        request moves them again. Nothing may run on the model meanwhile."""
        self.fitted.release(self.model)

    # -- inside ------------------------------------------------------------------------------------------------
    def _asking(
        self, images: Sequence[Shown], asked: Sequence[str], *, max_new_tokens: int | None = None, **sampling: Any
    ) -> tuple[Run, Iterator[list[int | None]]]:
        pick = chooser(len(asked), **sampling)
        requests.check_questions(self.processor, images, asked)
        self.prepare("understanding")
        runner = self.fitted.runner(self.model)
        return requests.asking(runner, self.processor, self.recipe, images, asked, max_new_tokens, pick)

    def _talking(
        self, said: Sequence[str], *, max_new_tokens: int | None = None, **sampling: Any
    ) -> tuple[Run, Iterator[list[int | None]]]:
        pick = chooser(len(said), **sampling)
        self.prepare("understanding")
        runner = self.fitted.runner(self.model)
        return requests.talking(runner, self.processor, self.recipe, said, max_new_tokens, pick)

    def _answers(self, run: Run, stream: Iterator[list[int | None]], count: int) -> list[Answer]:
        with enough_memory(f"answer {count} questions at once", "ask fewer at a time, or use bf16 weights"):
            columns = list(stream)
        rows = [[token for column in columns if (token := column[row]) is not None] for row in range(count)]
        return [Answer(self.processor.text.decode(ids), ids, run.trace) for ids in rows]
