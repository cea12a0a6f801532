"""The embedded Show-o as `training.scenes` trains it: its rows, and what it loses on them (see its `Network`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.defaults import GenerationDefaults
from flashu.models.layers import AttentionContext
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.load import load_model, save_model
from flashu.models.showo.model import ShowO
from flashu.models.showo.processor import Processor
from flashu.models.showo.text import ChatTemplate, SpecialIds, Text
from flashu.models.small_vq import CODES, SmallVQ
from flashu.models.training import (
    IGNORED,
    Asking,
    Drawing,
    Example,
    Outcome,
    Packed,
    Part,
    Pictures,
    answered,
    pack,
    padding,
)
from flashu.scenes.captions import longest
from flashu.scenes.tokenizer import ANSWER, BOS, EOS, build
from flashu.scenes.world import World

MAX_QUESTION = 16  # tokens
GUIDANCE = 0.5


@dataclass(frozen=True)
class Rows:
    """Rows with one picture each, ``image``: the slots of its codes; ``drawn``: whether they are to be drawn (then the
    targets are codes), else they are looked at."""

    tokens: Packed
    image: slice
    drawn: bool


class ScenesShowO:
    """A model and the world it is for. A row to draw is [t2i, sot, text, eot, soi, codes, eoi], padded on the left so
    that the image has fixed slots; one to ask about [mmu, soi, codes, eoi], then questions, each [sot, words, answer].
    """

    codec = SmallVQ
    tasks = ("draw", "answer")

    def __init__(self, module: ShowO, world: World) -> None:
        self.module, self.world = module, world
        self.tokenizer = build(world)
        self.text = text_of(self.tokenizer, world)
        self.answer = self.tokenizer.get_vocab()[ANSWER]

    @classmethod
    def create(cls, world: World, seed: int, start: Path | None = None) -> ScenesShowO:
        """A new model."""
        if start is not None:
            raise FlashUError("a Show-o is trained from the beginning: leave start out")
        torch.manual_seed(seed)
        module = ShowO(config_of(build(world).get_vocab_size(), world))
        initialise(module)
        return cls(module, world)

    @classmethod
    def load(cls, folder: Path, world: World) -> ScenesShowO:
        return cls(load_model(folder, torch.float32), world)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def width(self) -> int:
        return self.module.config.llm.hidden_size

    # -- rows ----------------------------------------------------------------------------------------------------
    def rows(self, examples: Sequence[Example], pool: Pictures) -> Rows:
        drawn = examples[0].drawn is not None
        codes = pool.pictures[[e.drawn if drawn else e.shown for e in examples]].flatten(1)
        count = codes.shape[1]
        start = longest(self.world) + 4 if drawn else 2
        if drawn:
            hidden = hidden_codes(len(codes), count)
            shown = torch.where(hidden, self.module.config.mask, codes + self.module.config.codes[0])
            targets = torch.where(hidden, codes, IGNORED)
            rows = [self._drawing(*row) for row in zip(examples, shown.tolist(), targets.tolist(), strict=True)]  # type: ignore[arg-type]
        else:
            shown = codes + self.module.config.codes[0]
            rows = [self._asking(*row) for row in zip(examples, shown.tolist(), strict=True)]  # type: ignore[arg-type]
        return Rows(pack(rows).to(self.device), slice(start, start + count), drawn)

    def packed(self, examples: Sequence[Example], pool: Pictures) -> Packed:
        """The rows alone, with ids of the vocabulary as targets."""
        rows = self.rows(examples, pool)
        if not rows.drawn:
            return rows.tokens
        targets = rows.tokens.targets
        return replace(rows.tokens, targets=targets + self.module.config.codes[0] * (targets != IGNORED))

    def _drawing(self, example: Drawing, codes: list[int], targets: list[int]) -> list[Part]:
        ids = self.text.ids
        before = [ids.t2i, ids.sot, *example.text, ids.eot]
        image = [ids.soi, *codes, ids.eoi]
        place = range(len(before), len(before) + len(image))
        return [
            padding(longest(self.world) + 3 - len(before)),
            Part(before, range(len(before))),
            Part(image, place, block=True, targets=[IGNORED, *targets, IGNORED]),
        ]

    def _asking(self, example: Asking, codes: list[int]) -> list[Part]:
        """Each question sees the image and itself only, at positions right behind the image."""
        ids = self.text.ids
        image = [ids.mmu, ids.soi, *codes, ids.eoi]
        row, left = [Part(image, range(len(image)), block=True)], 66 + 4 * self.world.most
        for number, (question, answer) in enumerate(example.asks, start=1):
            part = answered([ids.sot, *question, self.answer], [*answer, ids.eot], len(image), number)
            if len(part.ids) <= left:
                row.append(part)
                left -= len(part.ids)
        return [*row, padding(left)]

    # -- losses --------------------------------------------------------------------------------------------------
    def losses(self, rows: Rows) -> Outcome:
        model, tokens = self.module, rows.tokens
        x = model.embed_tokens(tokens.ids)
        context = AttentionContext(model.rope(tokens.position), tokens.mask)
        for i, layer in enumerate(model.layers, 1):
            x, _ = layer(x, context)
            if i == len(model.layers) // 2:
                middle = x[:, rows.image]
        hidden = model.norm(x)
        wanted = tokens.targets != IGNORED
        logits = model.logits(hidden[wanted], model.config.codes if rows.drawn else None)
        loss = F.cross_entropy(logits, tokens.targets[wanted])
        if rows.drawn:
            return Outcome({"codes": loss}, hidden[:, rows.image], middle)
        return Outcome({"answer": loss}, shown=middle)

    # -- what the trainer does with the weights --------------------------------------------------------------------
    def matrices(self) -> list[nn.Parameter]:
        """The matrices inside layers, which Muon updates; embeddings and output are AdamW's."""
        return [p for p in self.module.showo.model.layers.parameters() if p.ndim == 2]

    def compile(self) -> None:
        """Compile each layer; they share the compiled code."""
        for layer in self.module.layers:
            layer.compile(dynamic=False)

    def copy(self, state: Mapping[str, Tensor]) -> ScenesShowO:
        """Another model of these weights, for evaluation and export."""
        module = ShowO(self.module.config).to(self.device)
        module.load_state_dict(state)
        return ScenesShowO(module.eval().requires_grad_(False), self.world)

    def save(self, folder: Path, codec: SmallVQ) -> None:
        """config.json, tokenizer.json, vq.safetensors and bf16 model.safetensors, in the project's format."""
        module = deepcopy(self.module).cpu().to(torch.bfloat16)
        save_model(module, folder, processor_of(codec, self.world))


def hidden_codes(rows: int, count: int) -> Tensor:
    """Which codes of each row are to be predicted, bool [rows, count]: a share cos(pi t / 2) of them for t ~ U(0, 1),
    at least one, at random places; drawn in the order of the original's training."""
    share = torch.cos(torch.rand(rows) * math.pi * 0.5).clamp(min=0)
    many = (count * share).round().clamp(min=1)
    return torch.rand(rows, count).argsort(-1) < many[:, None]


def config_of(vocabulary: int, world: World) -> ShowOConfig:
    llm = LLMConfig(vocabulary + 10 + CODES + 1, 128, 512, 12, 4)
    return ShowOConfig(llm, vocabulary, 10, CODES, world.tokens, longest(world) + 2)


def text_of(tokenizer: Tokenizer, world: World) -> Text:
    vocabulary = tokenizer.get_vocab()
    ids = SpecialIds.behind(tokenizer.get_vocab_size(), vocabulary[BOS], vocabulary[EOS])
    return Text(tokenizer, ids, ChatTemplate("", "", ANSWER), longest(world) + 2, MAX_QUESTION)


def processor_of(codec: SmallVQ, world: World) -> Processor:
    """Tokenizer, image tokenizer and defaults of a world's model."""
    from flashu.models.showo.codecs import CellCodes

    defaults = GenerationDefaults(world.tokens, GUIDANCE, 1.0, world.size, world.size, 4 * world.most + 4)
    return Processor(text_of(build(world), world), CellCodes(codec), defaults)


def initialise(model: ShowO) -> None:
    """Small normal weights; residual branches start at zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
            if name.endswith(("dense", "fc2")):
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
