"""The embedded Show-o2 as `training.scenes` trains it: its rows, and what it loses on them (see its `Network`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashu.models.defaults import GenerationDefaults
from flashu.models.layers import AttentionContext
from flashu.models.showo2.config import HeadConfig, LLMConfig, ShowO2Config, VisionConfig
from flashu.models.showo2.load import load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, SpecialIds, Text
from flashu.models.small_autoencoder import DOWNSAMPLE, LATENT_CHANNELS, PlainAutoencoder, SmallAutoencoder
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
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, IMG_PAD, PAD, build
from flashu.scenes.world import World

MAX_QUESTION = 16  # tokens
TIME_MEAN = -1.3  # of the logit of the time, which is 1 at the picture


class States(NamedTuple):
    """What a forward of the decoder leaves behind."""

    hidden: Tensor  # [B,S,h] normed output
    fused: Tensor  # [B,N,h] image tokens as they enter the decoder
    middle: Tensor  # [B,S,h] after half of the layers
    e_t: Tensor  # [B,d] time embedding


@dataclass(frozen=True)
class Rows:
    """Rows with one picture each. ``image``: the slots of the time token and the image tokens; ``pictures``: latents
    [B,c,h,w]; ``drawn``: whether they are to be drawn, else they are looked at."""

    tokens: Packed
    image: slice
    pictures: Tensor
    drawn: bool


class ScenesShowO2:
    """A model and the world it is for. A row to draw is [bos, text, boi, time, image], padded on the left so that the
    image has fixed slots; one to ask about [bos, boi, time, image, eoi, questions]."""

    codec = SmallAutoencoder
    tasks = ("draw", "answer")

    def __init__(self, module: ShowO2, world: World) -> None:
        self.module, self.world = module, world
        self.tokenizer = build(world)
        vocabulary = self.tokenizer.get_vocab()
        self.id = {word: vocabulary[word] for word in (BOS, EOS, BOI, EOI, ANSWER)}

    @classmethod
    def create(cls, world: World, seed: int, start: Path | None = None) -> ScenesShowO2:
        """A new model, or with ``start`` one that begins with the weights of a smaller world's."""
        torch.manual_seed(seed)
        words = build(world)
        module = ShowO2(config_of(words.get_vocab_size(), world))
        initialise(module)
        if start is not None:
            take_over(start, module, words)
        return cls(module, world)

    @classmethod
    def load(cls, folder: Path, world: World) -> ScenesShowO2:
        return cls(load_model(folder, torch.float32), world)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def width(self) -> int:
        return self.module.config.llm.hidden_size

    def rows(self, examples: Sequence[Example], pool: Pictures) -> Rows:
        drawn = examples[0].drawn is not None
        rows, image = [], self.image_asked
        for example in examples:
            if isinstance(example, Drawing):
                row, image = self.drawing(example.text)
            else:
                assert isinstance(example, Asking)
                row = self._asking(example)
            rows.append(row)
        pictures = pool.pictures[[e.drawn if drawn else e.shown for e in examples]]
        return Rows(pack(rows).to(self.device), image, pictures.to(self.device), drawn)

    def drawing(self, text: Sequence[int]) -> tuple[list[Part], slice]:
        """A row that ends with an image to draw, and its slots."""
        before = [self.id[BOS], *text, self.id[BOI]]
        pad, tokens = longest(self.world) + 2 - len(before), self.world.tokens + 1
        image = Part([0] * tokens, range(len(before), len(before) + tokens), block=True)
        return [padding(pad), Part(before, range(len(before))), image], slice(
            pad + len(before), pad + len(before) + tokens
        )

    @property
    def image_asked(self) -> slice:
        return slice(2, 3 + self.world.tokens)

    def _asking(self, example: Asking) -> list[Part]:
        """Each question sees the image and itself only, at positions right behind the image."""
        tokens = self.world.tokens + 1
        row = [
            Part([self.id[BOS], self.id[BOI]], (0, 1)),
            Part([0] * tokens, range(2, 2 + tokens), block=True),
            Part([self.id[EOI]], [2 + tokens]),
        ]
        left = 60 + 4 * self.world.most
        for number, (question, answer) in enumerate(example.asks, start=1):
            part = answered([*question, self.id[ANSWER]], [*answer, self.id[EOS]], tokens + 3, number)
            if len(part.ids) <= left:
                row.append(part)
                left -= len(part.ids)
        return [*row, padding(left)]

    def losses(self, rows: Rows) -> Outcome:
        images, tokens = rows.pictures, rows.tokens
        if not rows.drawn:
            states = self.forward(tokens, rows.image, images, torch.ones(len(images), device=self.device))
            wanted = tokens.targets != IGNORED
            answer = F.cross_entropy(self.module.logits(states.hidden[wanted]).float(), tokens.targets[wanted])
            return Outcome({"answer": answer}, shown=states.fused)
        t = torch.sigmoid(torch.randn(len(images), device=self.device) + TIME_MEAN)
        noise = torch.randn_like(images)
        states = self.forward(tokens, rows.image, torch.lerp(noise, images, t[:, None, None, None]), t)
        flow = F.mse_loss(self.velocity(states, tokens, rows.image).float(), images - noise)
        drawn, middle = (x[:, rows.image][:, 1:] for x in (states.hidden, states.middle))
        return Outcome({"flow": flow}, drawn, middle)

    def forward(self, tokens: Packed, image: slice, latents: Tensor, t: Tensor) -> States:
        """One plain forward over whole rows; latents [B, c, h, w], t [B]."""
        model = self.module
        fused = model.embed_latent(latents)
        e_t, token = model.embed_time(t)
        x = model.embed_tokens(tokens.ids)
        x = torch.cat((x[:, : image.start], token[:, None].to(x.dtype), fused.to(x.dtype), x[:, image.stop :]), dim=1)
        context = AttentionContext(model.rope(tokens.position), tokens.mask)
        for i, layer in enumerate(model.layers, 1):
            x, _ = layer(x, context)
            if i == len(model.layers) // 2:
                middle = x
        return States(model.norm(x), fused, middle, e_t)

    def velocity(self, states: States, tokens: Packed, image: slice) -> Tensor:
        """The flow head over whole rows -> velocity [B, c, h, w]."""
        model, head = self.module, self.module.head
        where = torch.zeros((*tokens.ids.shape, 1), dtype=torch.bool, device=tokens.ids.device)
        where[:, image] = True
        x, context = model.diff_proj(states.hidden), AttentionContext(head.rope(tokens.position), tokens.mask)
        for block in head.blocks:
            x, _ = block(x, context, states.e_t, where)
        side = self.world.size // DOWNSAMPLE
        return model.unpatchify(model.diffusion_head_b(x[:, image][:, 1:], states.e_t), side, side)

    def matrices(self) -> list[nn.Parameter]:
        """The matrices inside transformer layers, which Muon updates; embeddings, inputs and outputs are AdamW's."""
        parts = ("layers.", "diffusion_head_a", "fusion_proj", "diff_proj")
        named = [(name, p) for name, p in self.module.named_parameters() if p.ndim == 2]
        return [p for name, p in named if any(part in name for part in parts) and "adaLN" not in name]

    def compile(self) -> None:
        """Compile each layer; layers of one kind share the compiled code."""
        model = self.module
        for layer in (*model.layers, *model.diffusion_head_a, *model.und_trans.layers):
            layer.compile(dynamic=False)

    def copy(self, state: Mapping[str, Tensor]) -> ScenesShowO2:
        """Another model of these weights, for evaluation and export."""
        module = ShowO2(self.module.config).to(self.device)
        module.load_state_dict(state)
        return ScenesShowO2(module.eval().requires_grad_(False), self.world)

    def save(self, folder: Path, autoencoder: SmallAutoencoder) -> None:
        """config.json, tokenizer.json, autoencoder.safetensors and bf16 model.safetensors, in the project's format."""
        module = deepcopy(self.module).cpu().to(torch.bfloat16)
        save_model(module, folder, processor_of(autoencoder, self.world))


def config_of(vocabulary: int, world: World) -> ShowO2Config:
    return ShowO2Config(
        llm=LLMConfig(vocabulary, 128, 384, 12, 4, 2, tie_word_embeddings=True, rope_theta=1e4),
        vision=VisionConfig(64, 128, 2, 4, world.tokens),
        head=HeadConfig(96, 256, 3, 6, 2, 16),
        image_latent_dim=LATENT_CHANNELS,
        image_latent_height=world.side,
        image_latent_width=world.side,
        unpatchify="patch",
        understanding_block="training",
    )


def processor_of(autoencoder: SmallAutoencoder, world: World) -> Processor:
    """Tokenizer, autoencoder and defaults of a world's model."""
    tokenizer = build(world)
    vocabulary = tokenizer.get_vocab()
    names = {"bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI, "img_pad": IMG_PAD, "pad": PAD}
    ids = SpecialIds(**{name: vocabulary[token] for name, token in names.items()})
    text = Text(tokenizer, ids, ChatTemplate(system="", user="", assistant=ANSWER), longest(world), MAX_QUESTION)
    defaults = GenerationDefaults(50, 2.0, 3.0, world.size, world.size, 4 * world.most + 4)
    return Processor(text, PlainAutoencoder(autoencoder, LATENT_CHANNELS, DOWNSAMPLE), defaults)


def initialise(model: ShowO2) -> None:
    """Small normal weights; residual branches start at zero, modulation at the identity with gates open."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(("o_proj", "out_proj", "down_proj", "fc2", "diffusion_head_b.linear")):
                nn.init.zeros_(module.weight)
            if "adaLN_modulation" in name:
                nn.init.zeros_(module.weight)
            if "diffusion_head_a" in name and "adaLN_modulation" in name:
                assert module.bias is not None
                with torch.no_grad():
                    module.bias.view(6, -1)[[2, 5]] = 1.0  # the gates
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(model.showo.model.embed_tokens.weight, std=0.05)


@torch.no_grad()
def take_over(folder: Path, model: ShowO2, words: Tokenizer) -> None:
    """Copies a trained model into ``model``: words by name, positions resized, the rest where shapes agree."""
    known: ShowO2 = load_model(folder, torch.float32)
    their_words = load_processor(folder).text.tokenizer.get_vocab()
    state, theirs = model.state_dict(), known.state_dict()
    for name, value in state.items():
        if theirs[name].shape == value.shape:
            value.copy_(theirs[name])
    ours = words.get_vocab()
    shared = [word for word in ours if word in their_words]
    table, their_table = (m.showo.model.embed_tokens.weight for m in (model, known))
    table[[ours[w] for w in shared]] = their_table[[their_words[w] for w in shared]]
    side = model.config.image_latent_height
    latents = torch.zeros(1, model.config.image_latent_dim, *[side * model.config.patch_size] * 2)
    model.position_embedding.weight.copy_(known._position_table(latents))
