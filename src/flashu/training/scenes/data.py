"""Training data: a cached pool of pictures, and fresh captions, questions and instructions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flashu.models.small_autoencoder import to_tensor
from flashu.models.training import Asking, Drawing, Editing, Example
from flashu.scenes import captions, questions
from flashu.scenes.captions import training_caption
from flashu.scenes.edits import training_edit
from flashu.scenes.sampler import FAMILIES, training_scene
from flashu.scenes.tokenizer import UNK
from flashu.scenes.world import SCENES, Scene, World, render

DROP_TEXT = 0.1
UNKNOWN_WORD = 0.03  # share of captions with an unknown word in them: users type such
DROP_SHOWN = 0.1  # share of edits without the picture to edit
DROP_ONE = 0.07  # share of edits without one of the two ways it is shown

DRAWING_MIX = {"single": 0.07, "pair": 0.6, "count": 0.13, "multi": 0.2}
DRAWING_FORMS = {"pair": {"position": 0.36, "both": 0.4, "placed": 0.1, "layout": 0.12, "shapes": 0.02}}
ASKING_MIX = {"single": 0.06, "pair": 0.22, "count": 0.17, "multi": 0.55}
EDITING_MIX = {"single": 0.1, "pair": 0.3, "count": 0.15, "multi": 0.45}


@dataclass(frozen=True)
class Pool:
    """Scenes; ``pictures`` [n, ...], latents or codes of each; ``cells`` [n,N,2], shape and colour in each cell (0 =
    empty); ``family``: indices of the scenes to draw and ask about; ``edits``: (source, instruction, target), indices,
    the targets behind the other scenes."""

    scenes: list[Scene]
    pictures: Tensor
    cells: Tensor
    family: dict[str, np.ndarray]
    edits: list[tuple[int, str, int]] = field(default_factory=list)

    def choose(self, mix: dict[str, float], n: int, rng: np.random.Generator) -> list[tuple[str, int]]:
        """n random (family, index)."""
        names = [FAMILIES[i] for i in rng.choice(len(FAMILIES), n, p=[mix[f] for f in FAMILIES])]
        return [(f, int(rng.choice(self.family[f]))) for f in names]

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """The pictures themselves [n,3,S,S] in [-1,1]."""
        return to_tensor(torch.from_numpy(render(self.scenes[i] for i in indices)))


def cell_labels(scenes: Sequence[Scene], world: World) -> Tensor:
    labels = np.zeros((len(scenes), world.tokens, 2), int)
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            what = world.shapes.index(o.shape) + 1, world.colours.index(o.colour) + 1
            labels[i, o.row * world.side + o.column] = what
    return torch.from_numpy(labels)


@torch.inference_mode()
def build_pool(
    codec: Any, n: int, cache: Path | None = None, seed: int = 2, world: World = SCENES, edits: int = 0
) -> Pool:
    """Draws n training scenes (the same for the same seed), and ``edits`` edits of some; encodes all of them once.
    Latents are cached on disk."""
    rng = np.random.default_rng(seed)
    shares = {"single": 0.1, "pair": 0.38, "count": 0.14, "multi": 0.38}
    names = [f for f, share in shares.items() for _ in range(round(n * share))]
    scenes = [training_scene(f, rng, world) for f in names]
    family = {f: np.flatnonzero(np.array(names) == f) for f in FAMILIES}
    changes: list[tuple[int, str, int]] = []
    while len(changes) < edits:
        of = FAMILIES[int(rng.choice(len(FAMILIES), p=[EDITING_MIX[f] for f in FAMILIES]))]
        source = int(rng.choice(family[of]))
        made = training_edit(scenes[source], rng)
        if made is not None:
            changes.append((source, made.text, len(scenes)))
            scenes.append(made.target)
    if cache is not None and cache.exists():
        pictures = torch.load(cache, weights_only=True)
    else:
        parts = [scenes[i : i + 500] for i in range(0, len(scenes), 500)]
        pictures = torch.cat([codec.encode(to_tensor(torch.from_numpy(render(p)))) for p in parts])
        if cache is not None:
            torch.save(pictures, cache)
    if len(pictures) != len(scenes):
        raise ValueError(f"{cache} holds {len(pictures)} pictures for {len(scenes)} scenes: delete it")
    return Pool(scenes, pictures.clone(), cell_labels(scenes, world), family, changes)


class Batcher:
    """Draws examples; each instance has its own random stream. ``descriptions``: share of pictures whose every cell is
    described."""

    def __init__(
        self, pool: Pool, tokenizer: Tokenizer, seed: int, world: World = SCENES, descriptions: float = 0.0
    ) -> None:
        self.pool, self.tokenizer, self.world, self.descriptions = pool, tokenizer, world, descriptions
        self.rng = np.random.default_rng(seed)
        self.unknown = tokenizer.get_vocab()[UNK]

    def reseed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def state_dict(self) -> dict[str, Any]:
        """Where the random stream is."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def examples(self, task: str, n: int) -> Sequence[Example]:
        if task == "draw":
            return self.drawings(n)
        return self.askings(n) if task == "answer" else self.editings(n)

    def drawings(self, n: int) -> list[Drawing]:
        chosen = self.pool.choose(DRAWING_MIX, n, self.rng)
        texts = self.encode([training_caption(f, self.pool.scenes[i], self.rng, DRAWING_FORMS) for f, i in chosen])
        for text, chance in zip(texts, self.rng.random(n), strict=True):
            if chance < DROP_TEXT:
                text.clear()
            elif chance > 1 - UNKNOWN_WORD and len(text) < captions.longest(self.world):
                text.insert(int(self.rng.integers(len(text) + 1)), self.unknown)
        return [Drawing(text, i) for text, (_, i) in zip(texts, chosen, strict=True)]

    def askings(self, n: int) -> list[Asking]:
        indices = [i for _, i in self.pool.choose(ASKING_MIX, n, self.rng)]
        asked = [self._questions(self.pool.scenes[i]) for i in indices]
        flat = iter(self.encode([text for row in asked for pair in row for text in pair]))
        return [Asking(i, [(next(flat), next(flat)) for _ in row]) for i, row in zip(indices, asked, strict=True)]

    def editings(self, n: int) -> list[Editing]:
        chosen = [self.pool.edits[i] for i in self.rng.integers(len(self.pool.edits), size=n)]
        texts = self.encode([text for _, text, _ in chosen])
        return [
            Editing(source, text, target, self._without())
            for (source, _, target), text in zip(chosen, texts, strict=True)
        ]

    def _without(self) -> frozenset[str]:
        chance = self.rng.random()
        for share, dropped in (
            (DROP_TEXT, {"text"}),
            (DROP_SHOWN, {"latents", "pixels"}),
            (DROP_ONE, {"latents"}),
            (DROP_ONE, {"pixels"}),
        ):
            if chance < share:
                return frozenset(dropped)
            chance -= share
        return frozenset()

    def _questions(self, scene: Scene) -> list[questions.Ask]:
        """Six questions of random kinds with random wished-for verdicts, now and then a description first; or every
        cell described."""
        if self.descriptions and self.rng.random() < self.descriptions:
            return [questions.describe_cells(scene)]
        made: list[questions.Ask] = [questions.describe(scene)] if self.rng.random() < 0.15 else []
        while len(made) < 6:
            kind = questions.QUESTION_KINDS[int(self.rng.integers(len(questions.QUESTION_KINDS)))]
            verdicts = questions.verdicts(kind, self.world)
            want = verdicts[int(self.rng.integers(len(verdicts)))]
            found = questions.ask(kind, scene, want, self.rng)
            if found is not None:
                made.append((found.text, found.answer))
        bare = self.rng.random(len(made)) < 0.2  # users leave out the question mark
        return [(q.rstrip("?.") if b else q, a) for (q, a), b in zip(made, bare, strict=True)]
