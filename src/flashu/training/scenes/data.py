"""Training data: a cached pool of scenes with their latents, and packed batches of fresh captions and questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flashu.models.small_autoencoder import SmallAutoencoder, to_tensor
from flashu.scenes import captions, questions
from flashu.scenes.captions import training_caption
from flashu.scenes.sampler import FAMILIES, training_scene
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, PAD, UNK
from flashu.scenes.world import SCENES, Scene, World, render

DROP_TEXT = 0.1
UNKNOWN_WORD = 0.03  # share of captions with an unknown word in them: users type such

GENERATION_MIX = {"single": 0.09, "pair": 0.62, "count": 0.14, "multi": 0.15}
UNDERSTANDING_MIX = {"single": 0.06, "pair": 0.22, "count": 0.17, "multi": 0.55}


@dataclass(frozen=True)
class Rows:
    """How long rows are and where the image is in them; N image tokens."""

    world: World

    @property
    def prefix(self) -> int:
        """bos, text, boi"""
        return captions.longest(self.world) + 2

    @property
    def image_drawn(self) -> slice:
        """Slots of the time token and the image in a row that ends with them."""
        return slice(self.prefix, self.prefix + self.world.tokens + 1)

    @property
    def header(self) -> int:
        """bos, boi, time, image, eoi"""
        return self.world.tokens + 4

    @property
    def image_asked(self) -> slice:
        """Slots of the time token and the image in a row that questions follow."""
        return slice(2, 3 + self.world.tokens)

    @property
    def questions(self) -> int:
        """Tokens of questions behind one image: five or six of them."""
        return 60 + 4 * self.world.most


@dataclass(frozen=True)
class Pool:
    """Scenes by family with latents [n,4,h,w] and labels [n,N,2] of each cell (shape, colour; 0 = empty)."""

    scenes: list[Scene]
    latents: Tensor
    cells: Tensor
    family: dict[str, np.ndarray]

    def draw(self, mix: dict[str, float], n: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        names = [FAMILIES[i] for i in rng.choice(len(FAMILIES), n, p=[mix[f] for f in FAMILIES])]
        return names, np.array([rng.choice(self.family[f]) for f in names])


def cell_labels(scenes: list[Scene], world: World) -> Tensor:
    labels = np.zeros((len(scenes), world.tokens, 2), int)
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            what = world.shapes.index(o.shape) + 1, world.colours.index(o.colour) + 1
            labels[i, o.row * world.side + o.column] = what
    return torch.from_numpy(labels)


@torch.inference_mode()
def build_pool(autoencoder: SmallAutoencoder, n: int, cache: Path, seed: int = 2, world: World = SCENES) -> Pool:
    """Draws n training scenes (the same for the same seed) and encodes them once; latents are cached on disk."""
    rng = np.random.default_rng(seed)
    shares = {"single": 0.1, "pair": 0.38, "count": 0.14, "multi": 0.38}
    names = [f for f, share in shares.items() for _ in range(round(n * share))]
    scenes = [training_scene(f, rng, world) for f in names]
    family = {f: np.flatnonzero(np.array(names) == f) for f in FAMILIES}
    if cache.exists():
        latents = torch.load(cache, weights_only=True)
    else:
        parts = [scenes[i : i + 500] for i in range(0, len(scenes), 500)]
        latents = torch.cat([autoencoder.encode(to_tensor(torch.from_numpy(render(p)))) for p in parts])
        torch.save(latents, cache)
    if len(latents) != len(scenes):
        raise ValueError(f"{cache} holds {len(latents)} latents for {len(scenes)} scenes: delete it")
    return Pool(scenes, latents.clone(), cell_labels(scenes, world), family)


@dataclass(frozen=True)
class Batch:
    """Token rows around an image block; `mask` bool [B,1,S,S], True = may attend."""

    ids: Tensor  # [B,S]; image and time slots hold PAD
    pos: Tensor  # [B,S]
    mask: Tensor
    image: slice  # slots of the time token and the image tokens
    latents: Tensor  # [B,4,h,w] clean
    cells: Tensor  # [B,N,2]
    targets: Tensor  # [B,S]: the token to predict at each slot, -100 = none

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, slice]:
        """As `Network.forward` takes them."""
        return self.ids, self.pos, self.mask, self.image

    @property
    def size(self) -> tuple[int, int]:
        """Of the latents."""
        height, width = self.latents.shape[-2:]
        return height, width


class Batcher:
    """Draws batches; each instance has its own random stream."""

    def __init__(self, pool: Pool, tokenizer: Tokenizer, seed: int, world: World = SCENES) -> None:
        self.pool, self.tokenizer, self.world, self.rows = pool, tokenizer, world, Rows(world)
        self.rng = np.random.default_rng(seed)
        vocabulary = tokenizer.get_vocab()
        self.id = {word: vocabulary[word] for word in (PAD, BOS, EOS, BOI, EOI, UNK, ANSWER)}

    def reseed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def generation(self, n: int) -> Batch:
        families, index = self.pool.draw(GENERATION_MIX, n, self.rng)
        texts = self.encode(
            [training_caption(f, self.pool.scenes[i], self.rng) for f, i in zip(families, index, strict=True)]
        )
        for text, chance in zip(texts, self.rng.random(n), strict=True):
            if chance < DROP_TEXT:
                text.clear()
            elif chance > 1 - UNKNOWN_WORD and len(text) < captions.longest(self.world):
                text.insert(int(self.rng.integers(len(text) + 1)), self.id[UNK])
        ids, pos, mask = generation_rows(texts, self.id, self.rows)
        targets = torch.full_like(ids, -100)
        return Batch(ids, pos, mask, self.rows.image_drawn, self.pool.latents[index], self.pool.cells[index], targets)

    def understanding(self, n: int) -> Batch:
        """Several questions to an image: each sees the image and itself only, at positions right behind the image."""
        _, index = self.pool.draw(UNDERSTANDING_MIX, n, self.rng)
        asked = [self._questions(self.pool.scenes[i]) for i in index]
        flat = self.encode([text for row in asked for pair in row for text in pair])
        header = self.rows.header
        ids = np.full((n, header + self.rows.questions), self.id[PAD])
        pos, segment = np.zeros_like(ids), np.full_like(ids, -1)
        targets = np.full_like(ids, -100)
        ids[:, 0], ids[:, 1], ids[:, header - 1] = self.id[BOS], self.id[BOI], self.id[EOI]
        pos[:, :header], segment[:, :header] = np.arange(header), 0
        texts = iter(flat)
        for row, pairs in enumerate(asked):
            at = header
            for number, (question, answer) in enumerate(((next(texts), next(texts)) for _ in pairs), start=1):
                tokens = [*question, self.id[ANSWER], *answer, self.id[EOS]]
                end = at + len(tokens)
                if end > ids.shape[1]:
                    continue
                ids[row, at:end], segment[row, at:end] = tokens, number
                pos[row, at:end] = header + np.arange(len(tokens))
                targets[row, at + len(question) : end - 1] = tokens[len(question) + 1 :]
                at = end
        image = self.rows.image_asked
        mask = understanding_mask(torch.from_numpy(segment), image)
        x, positions, wanted = (torch.from_numpy(row) for row in (ids, pos, targets))
        return Batch(x, positions, mask, image, self.pool.latents[index], self.pool.cells[index], wanted)

    def _questions(self, scene: Scene) -> list[questions.Ask]:
        """Six questions of random kinds with random wished-for verdicts; now and then a description."""
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


def generation_rows(texts: list[list[int]], special: dict[str, int], rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows [bos, text, boi, time, image], padded on the left so that the image block has fixed slots."""
    prefix, length = rows.prefix, rows.image_drawn.stop
    ids = np.full((len(texts), length), special[PAD])
    start = np.array([prefix - 2 - len(t) for t in texts])
    for row, text in enumerate(texts):
        ids[row, start[row] : prefix] = [special[BOS], *text, special[BOI]]
    slots = np.arange(length)
    pos = np.maximum(slots - start[:, None], 0)
    real = torch.from_numpy(slots >= start[:, None])
    mask = allowed(length, slice(prefix, length)) & real[:, None, :] | torch.eye(length, dtype=torch.bool)
    return torch.from_numpy(ids), torch.from_numpy(pos), mask[:, None]


def understanding_mask(segment: Tensor, image: slice) -> Tensor:
    """segment [B,S]: 0 = image prefix, k = question k, -1 = padding -> mask [B,1,S,S]."""
    query, key = segment[:, :, None], segment[:, None, :]
    mask = allowed(segment.shape[1], image) & ((key == 0) | (key == query))
    return (mask | torch.eye(segment.shape[1], dtype=torch.bool))[:, None]


def allowed(length: int, image: slice) -> Tensor:
    """Causal, except inside the image block. bool [S,S]."""
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[image, image] = True
    return mask
