"""The embedded Emu3 as `training.scenes` trains it: its rows, and what it loses on them (see its `Network`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config, Ids, TextConfig
from flashu.models.emu3.load import load_model, save_model
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.processor import Codec, Processor
from flashu.models.emu3.text import Template, Text
from flashu.models.layers import AttentionContext
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
from flashu.models.weights import read_weights, weight_files
from flashu.scenes.captions import longest
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, IMG_PAD, PAD, build
from flashu.scenes.world import World

MAX_QUESTION = 16  # tokens
TOP_K = 16  # codes that are drawn from, a sixteenth of them as in the released model
MARKS = 3  # tokens of the vocabulary between the words and the codes: end of line, end of image, before the codes


@dataclass(frozen=True)
class Rows:
    """Packed rows. ``drawn``, ``shown`` [B, N]: slots that predict the codes of an image to draw, in reading order, and
    slots of the codes of one that is shown."""

    packed: Packed
    drawn: Tensor | None = None
    shown: Tensor | None = None


class ScenesEmu3:
    """A model and the world it is for. A row to draw is [bos, text, mark, codes with ends of lines], padded on the left
    so that the codes have fixed slots; one to ask about [bos, image, questions]."""

    codec = SmallVQ
    tasks = ("draw", "answer")

    def __init__(self, module: Emu3, world: World) -> None:
        self.module, self.world = module, world
        self.tokenizer = build(world)
        self.text = text_of(self.tokenizer, module.config.ids, world)

    @classmethod
    def create(cls, world: World, seed: int, start: Path | None = None) -> ScenesEmu3:
        """A new model; with ``start``, one that begins with what fits of the weights in that folder: layers by number,
        words by name."""
        torch.manual_seed(seed)
        words = build(world)
        module = Emu3(config_of(words, CODES))
        initialise(module)
        if start is not None:
            take_over(start, module, words)
        return cls(module, world)

    @classmethod
    def load(cls, folder: Path, world: World) -> ScenesEmu3:
        return cls(load_model(folder, torch.float32), world)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def width(self) -> int:
        return self.module.config.text.hidden_size

    # -- rows --------------------------------------------------------------------------------------------------
    def rows(self, examples: Sequence[Example], pool: Pictures) -> Rows:
        """``pool.pictures``: codes [n, h, w]."""
        drawn = [self._drawing(e.text, pool.pictures[e.drawn]) for e in examples if isinstance(e, Drawing)]
        asked = [self._asking(e.asks, pool.pictures[e.shown]) for e in examples if isinstance(e, Asking)]
        parts, slots = zip(*(drawn or asked), strict=True)
        width = max(sum(len(part.ids) for part in row) for row in parts)
        if asked:
            width = -(-width // 32) * 32  # few shapes, so that compiled layers are few
        packed = pack([[*row, padding(width - sum(len(part.ids) for part in row))] for row in parts])
        where = torch.tensor(slots, device=self.device)
        return Rows(packed.to(self.device), *((where, None) if drawn else (None, where)))

    def packed(self, examples: Sequence[Example], pool: Pictures) -> Packed:
        """The rows alone."""
        return self.rows(examples, pool).packed

    def _drawing(self, words: list[int], codes: Tensor) -> tuple[list[Part], list[int]]:
        """A row and the slots that predict its codes. The last code need not be fed."""
        text = self.text
        ids = [text.ids.bos, *words, *text.image(codes)[:-3]]  # without what follows the last code
        following = [token if token >= text.ids.first else IGNORED for token in ids[1:]]
        left = longest(self.world) - len(words)
        slots = [left + i for i, token in enumerate(following) if token != IGNORED]
        return [padding(left), Part(ids[:-1], range(len(ids) - 1), targets=following)], slots

    def _asking(self, asks: Sequence[tuple[list[int], list[int]]], codes: Tensor) -> tuple[list[Part], list[int]]:
        """A row and the slots of the picture's codes. Each question sees the image and itself only, at positions right
        behind the image."""
        text = self.text
        shown = [*text.before(), *text.image(codes)]
        row = [Part(shown, range(len(shown)))]
        for group, (question, answer) in enumerate(asks, start=1):
            asked = [*question, *text.encode(text.template.assistant)]
            row.append(answered(asked, [*answer, text.ids.eos], len(shown), group))
        return row, [i for i, token in enumerate(shown) if token >= text.ids.first]

    # -- learning ----------------------------------------------------------------------------------------------
    def losses(self, rows: Rows) -> Outcome:
        model, packed = self.module, rows.packed
        middle, hidden = self._states(packed)
        wanted = packed.targets != IGNORED
        low = 0 if rows.drawn is None else model.config.ids.first
        logits = model.logits(hidden[wanted], None if rows.drawn is None else model.spec.codes)
        loss = F.cross_entropy(logits.float(), packed.targets[wanted] - low)
        if rows.drawn is None:
            assert rows.shown is not None
            return Outcome({"answer": loss}, shown=_at(middle, rows.shown))
        return Outcome({"codes": loss}, _at(hidden, rows.drawn), _at(middle, rows.drawn))

    def _states(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Hidden states [B, S, h] after half of the layers, and normed after all."""
        model = self.module
        x = model.embed_tokens(packed.ids)
        context = AttentionContext(model.rope(packed.position), packed.mask)
        middle = x
        for i, layer in enumerate(model.layers, 1):
            x, _ = layer(x, context)
            if i == len(model.layers) // 2:
                middle = x
        return middle, model.norm(x)

    def matrices(self) -> list[nn.Parameter]:
        """The matrices inside layers, which Muon updates; embeddings and the output are AdamW's."""
        return [p for p in self.module.decoder.layers.parameters() if p.ndim == 2]

    def compile(self) -> None:
        """Compile each layer; they share the compiled code."""
        for layer in self.module.layers:
            layer.compile(dynamic=False)

    # -- results -----------------------------------------------------------------------------------------------
    def copy(self, state: Mapping[str, Tensor]) -> ScenesEmu3:
        """Another model of these weights, for evaluation and export."""
        module = Emu3(self.module.config).to(self.device)
        module.load_state_dict(state)
        return ScenesEmu3(module.eval().requires_grad_(False), self.world)

    def save(self, folder: Path, codec: Codec) -> None:
        """config.json, tokenizer.json, the codec and bf16 model.safetensors, in the project's format."""
        module = deepcopy(self.module).cpu().to(torch.bfloat16)
        save_model(module, folder, processor_of(codec, self.world, self.text))


def _at(x: Tensor, slots: Tensor) -> Tensor:
    """x [B, S, h] at slots [B, N] -> [B, N, h]."""
    return x.gather(1, slots[..., None].expand(-1, -1, x.shape[-1]))


def config_of(words: Tokenizer, codes: int) -> Emu3Config:
    """Ids: the words, then `MARKS`, then the codes."""
    names = {"pad": PAD, "image": IMG_PAD, "bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI}
    vocabulary = words.get_vocab()
    known = {name: vocabulary[word] for name, word in names.items()}
    count = words.get_vocab_size()
    ids = Ids(**known, eol=count, eof=count + 1, img=count + 2, first=count + MARKS)
    text = TextConfig(count + MARKS + codes, 128, 384, 12, 4, 2, max_position_embeddings=256, rope_theta=1e4)
    return Emu3Config(text, ids, codes)


def text_of(words: Tokenizer, ids: Ids, world: World) -> Text:
    template = Template(system="", assistant=ANSWER, positive="", negative="", size="")
    return Text(words, ids, template, longest(world), MAX_QUESTION)


def processor_of(codec: Codec, world: World, text: Text) -> Processor:
    """Tokenizer, codec and defaults of a world's model."""
    defaults = GenerationDefaults(world.tokens, 1.3, 1.0, world.size, world.size, 4 * world.most + 4)
    return Processor(text, codec, defaults, area=None, top_k=TOP_K)


def initialise(model: Emu3) -> None:
    """Small normal weights; residual branches start at zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            if name.endswith(("o_proj", "down_proj")):
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)


@torch.no_grad()
def take_over(folder: Path, model: Emu3, words: Tokenizer) -> None:
    """Copies what fits of another trained decoder: layers of equal shapes, the final norm, and words by name."""
    theirs = read_weights(weight_files(folder))
    layer = re.compile(r"(?:^|\.)(layers\.\d+\..*|norm\.weight|embed_tokens\.weight)$")
    known: dict[str, list[Tensor]] = {}
    for name, value in theirs.items():
        if match := layer.search(name):
            known.setdefault(match[1], []).append(value)

    def like(name: str, shape: torch.Size) -> Tensor | None:
        match = layer.search(name)
        fit = [v for v in known.get(match[1], []) if v.shape == shape] if match else []
        return fit[0] if fit else None

    for name, value in model.decoder.layers.named_parameters(prefix="layers"):
        if (found := like(name, value.shape)) is not None:
            value.copy_(found)
    table = next(
        (v for v in known.get("embed_tokens.weight", []) if v.shape[1] == model.decoder.norm.weight.numel()), None
    )
    their_words = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    ours = words.get_vocab()
    if table is not None:
        shared = [word for word in ours if word in their_words and their_words[word] < len(table)]
        rows = table[[their_words[word] for word in shared]].float()
        for ours_table in (model.decoder.embed_tokens.weight, model.lm_head.weight):
            ours_table[[ours[word] for word in shared]] = rows.to(ours_table.dtype)
