"""What statistics are gathered on: prompts and questions from the training side of the scenes, never a test item."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image

from flashu.evaluation.scenes_items import asked_world
from flashu.inference import requests
from flashu.inference.calibrate import samples
from flashu.inference.engine import Engine
from flashu.inference.loops.denoise import denoise
from flashu.inference.samplers import flow
from flashu.plan import Plan, Step, Task
from flashu.plan.recipe import exact
from flashu.runtime.runner import Observer, Runner
from flashu.runtime.sampling import choose
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES
from flashu.scenes.world import SCENES, World

SEED = 11


def prompts(n: int, world: World = SCENES) -> list[str]:
    """n prompts, the categories in turn."""
    each = -(-n // len(CATEGORIES))
    columns = [benchmark.prompts(category, each, SEED, "train", world) for category in CATEGORIES]
    return [column[k].text for k in range(each) for column in columns][:n]


def questions(n: int, world: World = SCENES) -> list[tuple[Image.Image, str]]:
    """n (image, question) pairs over all kinds."""
    return samples.questions(n, world)


@torch.inference_mode()
def watch(engine: Engine, task: Task, n: int, observer: Observer, at: Callable[[int], None] = lambda _: None) -> None:
    """The full model draws n prompts at once, or answers n questions one by one, under ``observer``; ``at`` is told
    the number of each forward before it."""
    model, processor, defaults = engine.model, engine.processor, engine.processor.defaults
    world = asked_world(engine)
    runner = Runner(model, observer=observer)
    if task == "understanding":
        for image, question in questions(n, world):
            at(0)
            _, stream = requests.asking(runner, processor, exact(), [image], [question], None, choose)
            for forward, _ in enumerate(stream, 1):
                at(forward)
        return
    size = requests.latent_size(model, processor, defaults.height, defaults.width)
    ids = [processor.text.prompt(text) for text in prompts(n, world)]
    run, canvas = requests.drawing(runner, processor, exact(), ids, size, defaults.steps, defaults.guidance)
    z = torch.stack([flow.noise((model.config.image_latent_dim, *size), k) for k in range(len(ids))])

    def after(step: Step, plan: Plan, latents: torch.Tensor) -> None:
        at(step.index + 1)

    at(0)
    denoise(run, canvas, z.to(model.device), flow.grid(run.forwards, defaults.shift), after)
