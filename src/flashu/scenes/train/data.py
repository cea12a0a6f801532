"""Training data: a cached pool of scenes with their latents, and packed batches of fresh captions and questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .. import questions
from ..autoencoder import Autoencoder, to_tensor
from ..captions import MAX_TEXT, training_caption
from ..sampler import FAMILIES, training_scene
from ..tokenizer import ANSWER, BOI, BOS, EOI, EOS, PAD, UNK
from ..world import COLOURS, GRID, SHAPES, Scene, render

TOKENS = GRID * GRID  # image tokens: one to a cell
PREFIX = MAX_TEXT + 2  # bos, text, boi
HEADER = TOKENS + 4  # bos, boi, time, image, eoi
QUESTIONS = 76  # tokens of questions behind one image: five or six of them
DROP_TEXT = 0.1
UNKNOWN_WORD = 0.03  # share of captions with an unknown word in them: users type such

GENERATION_MIX = {"single": 0.09, "pair": 0.62, "count": 0.14, "multi": 0.15}
UNDERSTANDING_MIX = {"single": 0.06, "pair": 0.22, "count": 0.17, "multi": 0.55}


@dataclass(frozen=True)
class Pool:
    """Scenes by family with latents [n,4,8,8] and per-cell labels [n,16,2] (shape, colour; 0 = empty)."""

    scenes: list[Scene]
    latents: Tensor
    cells: Tensor
    family: dict[str, np.ndarray]

    def draw(self, mix: dict[str, float], n: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        names = [FAMILIES[i] for i in rng.choice(len(FAMILIES), n, p=[mix[f] for f in FAMILIES])]
        return names, np.array([rng.choice(self.family[f]) for f in names])


def cell_labels(scenes: list[Scene]) -> Tensor:
    labels = torch.zeros(len(scenes), TOKENS, 2, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            labels[i, o.row * GRID + o.column] = torch.tensor([SHAPES.index(o.shape) + 1, COLOURS.index(o.colour) + 1])
    return labels


@torch.inference_mode()
def build_pool(autoencoder: Autoencoder, n: int, cache: Path, seed: int = 2) -> Pool:
    """Draws n training scenes (the same for the same seed) and encodes them once; latents are cached on disk."""
    rng = np.random.default_rng(seed)
    shares = {"single": 0.1, "pair": 0.38, "count": 0.14, "multi": 0.38}
    names = [f for f, share in shares.items() for _ in range(round(n * share))]
    scenes = [training_scene(f, rng) for f in names]
    family = {f: np.flatnonzero(np.array(names) == f) for f in FAMILIES}
    if cache.exists():
        latents = torch.load(cache, weights_only=True)
    else:
        parts = [scenes[i : i + 500] for i in range(0, len(scenes), 500)]
        latents = torch.cat([autoencoder.encode(to_tensor(torch.from_numpy(render(p)))) for p in parts])
        torch.save(latents, cache)
    if len(latents) != len(scenes):
        raise ValueError(f"{cache} holds {len(latents)} latents for {len(scenes)} scenes: delete it")
    return Pool(scenes, latents.clone(), cell_labels(scenes), family)


@dataclass(frozen=True)
class Batch:
    """Token rows around an image block; `mask` bool [B,1,S,S], True = may attend."""

    ids: Tensor  # [B,S]; image and time slots hold PAD
    pos: Tensor  # [B,S]
    mask: Tensor
    image: slice  # slots of the time token and the image tokens
    latents: Tensor  # [B,4,8,8] clean
    cells: Tensor  # [B,16,2]
    targets: Tensor  # [B,S]: the token to predict at each slot, -100 = none


class Batcher:
    """Draws batches; each instance has its own random stream."""

    def __init__(self, pool: Pool, tokenizer: Tokenizer, seed: int) -> None:
        self.pool, self.tokenizer = pool, tokenizer
        self.rng = np.random.default_rng(seed)
        self.id = {w: tokenizer.token_to_id(w) for w in (PAD, BOS, EOS, BOI, EOI, UNK, ANSWER)}

    def reseed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def generation(self, n: int) -> Batch:
        families, index = self.pool.draw(GENERATION_MIX, n, self.rng)
        captions = [training_caption(f, self.pool.scenes[i], self.rng) for f, i in zip(families, index, strict=True)]
        texts = self.encode(captions)
        for text, chance in zip(texts, self.rng.random(n), strict=True):
            if chance < DROP_TEXT:
                text.clear()
            elif chance > 1 - UNKNOWN_WORD and len(text) < MAX_TEXT:
                text.insert(int(self.rng.integers(len(text) + 1)), self.id[UNK])
        ids, pos, mask = generation_rows(texts, self.id)
        image = slice(PREFIX, PREFIX + TOKENS + 1)
        targets = torch.full_like(ids, -100)
        return Batch(ids, pos, mask, image, self.pool.latents[index], self.pool.cells[index], targets)

    def understanding(self, n: int) -> Batch:
        """Several questions to an image: each sees the image and itself only, at positions right behind the image."""
        _, index = self.pool.draw(UNDERSTANDING_MIX, n, self.rng)
        asked = [self._questions(self.pool.scenes[i]) for i in index]
        flat = self.encode([text for row in asked for pair in row for text in pair])
        ids = np.full((n, HEADER + QUESTIONS), self.id[PAD])
        pos, segment = np.zeros_like(ids), np.full_like(ids, -1)
        targets = np.full_like(ids, -100)
        ids[:, 0], ids[:, 1], ids[:, HEADER - 1] = self.id[BOS], self.id[BOI], self.id[EOI]
        pos[:, :HEADER], segment[:, :HEADER] = np.arange(HEADER), 0
        texts = iter(flat)
        for row, pairs in enumerate(asked):
            at = HEADER
            for number, (question, answer) in enumerate(((next(texts), next(texts)) for _ in pairs), start=1):
                tokens = [*question, self.id[ANSWER], *answer, self.id[EOS]]
                end = at + len(tokens)
                if end > ids.shape[1]:
                    continue
                ids[row, at:end], segment[row, at:end] = tokens, number
                pos[row, at:end] = HEADER + np.arange(len(tokens))
                targets[row, at + len(question) : end - 1] = tokens[len(question) + 1 :]
                at = end
        image = slice(2, 3 + TOKENS)
        mask = understanding_mask(torch.from_numpy(segment), image)
        rows = (torch.from_numpy(x) for x in (ids, pos))
        return Batch(*rows, mask, image, self.pool.latents[index], self.pool.cells[index], torch.from_numpy(targets))

    def _questions(self, scene: Scene) -> list[questions.Ask]:
        """Six questions of random kinds with random wished-for verdicts; now and then a description."""
        made: list[questions.Ask] = [questions.describe(scene)] if self.rng.random() < 0.15 else []
        while len(made) < 6:
            kind = questions.QUESTION_KINDS[int(self.rng.integers(len(questions.QUESTION_KINDS)))]
            verdicts = questions.VERDICTS[kind]
            want = verdicts[int(self.rng.integers(len(verdicts)))]
            found = questions.ask(kind, scene, want, self.rng)
            if found is not None:
                made.append((found.text, found.answer))
        bare = self.rng.random(len(made)) < 0.2  # users leave out the mark
        return [(q.rstrip("?.") if b else q, a) for (q, a), b in zip(made, bare, strict=True)]


def generation_rows(texts: list[list[int]], special: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows [bos, text, boi, time, image], padded on the left so that the image block has fixed slots."""
    length = PREFIX + 1 + TOKENS
    ids = np.full((len(texts), length), special[PAD])
    start = np.array([PREFIX - 2 - len(t) for t in texts])
    for row, text in enumerate(texts):
        ids[row, start[row] : PREFIX] = [special[BOS], *text, special[BOI]]
    slots = np.arange(length)
    pos = np.maximum(slots - start[:, None], 0)
    real = torch.from_numpy(slots >= start[:, None])
    mask = allowed(length, slice(PREFIX, length)) & real[:, None, :] | torch.eye(length, dtype=torch.bool)
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
