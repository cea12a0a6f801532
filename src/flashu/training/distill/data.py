"""What a student is taught on: prompts and edits of training scenes, each with the picture that is to come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashu.inference.actions import DrawRequest
from flashu.models.small_autoencoder import to_tensor
from flashu.scenes.captions import training_caption
from flashu.scenes.edits import Edit, training_edit
from flashu.scenes.sampler import FAMILIES, training_scene
from flashu.scenes.world import Scene, World, render


def drawings(world: World, count: int, rng: np.random.Generator) -> tuple[list[DrawRequest], list[Scene]]:
    """Prompts about training scenes, and the scenes."""
    families = [FAMILIES[int(n)] for n in rng.integers(len(FAMILIES), size=count)]
    scenes = [training_scene(family, rng, world) for family in families]
    texts = [training_caption(family, scene, rng) for family, scene in zip(families, scenes, strict=True)]
    return [DrawRequest(text) for text in texts], scenes


def edits(world: World, count: int, rng: np.random.Generator) -> tuple[list[DrawRequest], list[Scene]]:
    """Instructions about pictures of training scenes, and the scenes that they should become."""
    made: list[Edit] = []
    while len(made) < count:
        scene = training_scene(FAMILIES[int(rng.integers(len(FAMILIES)))], rng, world)
        found = training_edit(scene, rng)
        if found is not None:
            made.append(found)
    pictures = render([edit.source for edit in made])
    requests = [
        DrawRequest(edit.text, int(rng.integers(2**31)), images=(Image.fromarray(picture),))
        for edit, picture in zip(made, pictures, strict=True)
    ]
    return requests, [edit.target for edit in made]


@torch.no_grad()
def latents_of(processor: Any, scenes: Sequence[Scene]) -> Tensor:
    """Latents [B, z, h, w] of pictures of scenes."""
    return processor.vae.encode(to_tensor(torch.from_numpy(render(scenes)))).float()
