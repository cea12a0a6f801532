"""An embedded BAGEL as `training.scenes` trains it: its rows, and what it loses on them (see its `Network`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashu.models.bagel.config import BagelConfig, LLMConfig, VisionConfig
from flashu.models.bagel.experts import GEN, SUFFIX, UND
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.load import save_model
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.processor import Processor, Resizing
from flashu.models.bagel.text import SpecialIds, Text
from flashu.models.bagel.vision import patches
from flashu.models.defaults import GenerationDefaults
from flashu.models.layers import AttentionContext, Span
from flashu.models.registry import open_model
from flashu.models.small_autoencoder import DOWNSAMPLE, LATENT_CHANNELS, PlainAutoencoder, SmallAutoencoder, to_tensor
from flashu.models.training import (
    IGNORED,
    Asking,
    Drawing,
    Editing,
    Example,
    Outcome,
    Packed,
    Part,
    Pictures,
    answered,
    pack,
    padding,
)
from flashu.scenes import edits, sampler
from flashu.scenes.captions import longest
from flashu.scenes.tokenizer import BOI, BOS, EOI, EOS, IMG_PAD, PAD, build
from flashu.scenes.world import CELL, World, render

MARKERS = 2
TEXT = 48  # tokens of a prompt, an instruction or a question
ANSWERS = 100  # tokens of questions and answers about one picture
TIME_MEAN = 1.3  # of the logit of the time, which is 1 at noise
FIT, FIT_STEPS = 1500, 300  # scenes that the new entrances are fitted on, and updates of the ViT's


class Places(NamedTuple):
    """Columns of a row, after it is sorted by expert: of ViT tokens, of clean latents, of those to draw."""

    seen: slice | None = None
    clean: slice | None = None
    drawn: slice | None = None


@dataclass(frozen=True)
class Rows:
    """Rows whose tokens are sorted by expert. ``pixels`` [B,3,S,S] at ``places.seen``, ``source`` [B,z,h,w] at
    ``places.clean``, ``target`` [B,z,h,w] at ``places.drawn``."""

    tokens: Packed
    spans: tuple[Span, ...]
    places: Places
    pixels: Tensor | None = None
    source: Tensor | None = None
    target: Tensor | None = None


class ScenesBagel:
    """A model and the world it is for. Rows are what inference writes: to draw [text, latents], to edit [clean latents,
    ViT, text, latents], to ask [ViT, questions]. What is left out for guidance takes no position."""

    codec = SmallAutoencoder
    tasks = ("draw", "answer", "edit")

    def __init__(self, module: Bagel, world: World) -> None:
        self.module, self.world = module, world
        self.tokenizer = build(world, instructions=True)
        vocabulary = self.tokenizer.get_vocab()
        self.id = {word: vocabulary[word] for word in (PAD, BOS, EOS, BOI, EOI)}

    @classmethod
    def create(cls, world: World, seed: int, start: Path | None = None) -> ScenesBagel:
        """A new model, or with ``start`` one whose two experts begin as the decoder of another family's model of the
        same width, its words by name."""
        torch.manual_seed(seed)
        words = build(world, instructions=True)
        module = Bagel(config_of(words.get_vocab_size(), world))
        initialise(module)
        if start is not None:
            take_over(start, module, words, world)
        return cls(module, world)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def width(self) -> int:
        return self.module.config.llm.hidden_size

    # -- rows ----------------------------------------------------------------------------------------------------
    def rows(self, examples: Sequence[Example], pool: Pictures) -> Rows:
        first, device = examples[0], self.device
        if isinstance(first, Asking):
            rows = [self.asking(e) for e in examples]  # type: ignore[arg-type]
        elif isinstance(first, Drawing):
            rows = [self.drawing(e) for e in examples]  # type: ignore[arg-type]
        else:
            rows = [self.editing(e) for e in examples]  # type: ignore[arg-type]
        tokens, spans, places = sorted_by_expert(rows, self.world.tokens)
        shown = [e.shown for e in examples if e.shown is not None]
        drawn = [e.drawn for e in examples if e.drawn is not None]
        latents = pool.pictures
        return Rows(
            tokens.to(device),
            spans,
            places,
            pool.pixels(shown).to(device) if shown else None,
            latents[shown].to(device) if isinstance(first, Editing) else None,
            latents[drawn].to(device) if drawn else None,
        )

    def drawing(self, example: Drawing) -> list[tuple[str, Part]]:
        text = self._text(example.text, 0, longest(self.world) + 2)
        return [*text, *self._latents("drawn", sum(len(p.ids) for n, p in text if n == "text"))]

    def editing(self, example: Editing) -> list[tuple[str, Part]]:
        at, row = 0, []
        for name, kind in (("clean", "latents"), ("seen", "pixels")):
            if kind in example.without:
                row += [(name, padding(self.world.tokens)), ("marker", padding(MARKERS))]
            else:
                row += self._latents(name, at)
                at += 1
        text = self._text([] if "text" in example.without else example.text, at, edits.LONGEST + 2)
        return [*row, *text, *self._latents("drawn", at + sum(len(p.ids) for n, p in text if n == "text"))]

    def asking(self, example: Asking) -> list[tuple[str, Part]]:
        """Each question sees the picture and itself only."""
        row, left = self._latents("seen", 0), ANSWERS
        bos, eos = self.id[BOS], self.id[EOS]
        for number, (question, answer) in enumerate(example.asks, start=1):
            part = answered([bos, *question, eos, bos], [*answer, eos], 1, number)
            if len(part.ids) <= left:
                row.append(("text", part))
                left -= len(part.ids)
        return [*row, ("text", padding(left))]

    def _text(self, ids: Sequence[int], at: int, width: int) -> list[tuple[str, Part]]:
        """[bos, words, eos] with padding before it; no words, no text."""
        row = [self.id[BOS], *ids, self.id[EOS]] if ids else []
        return [("padding", padding(width - len(row))), ("text", Part(row, range(at, at + len(row))))]

    def _latents(self, name: str, at: int) -> list[tuple[str, Part]]:
        """A picture and its markers, one block at one position. Nobody sees one that is to be drawn."""
        group = 1 if name == "drawn" else 0
        count = self.world.tokens
        whole = Part([0] * count + [self.id[BOI], self.id[EOI]], [at] * (count + MARKERS), True, group)
        return [(name, whole)]

    # -- losses --------------------------------------------------------------------------------------------------
    def losses(self, rows: Rows) -> Outcome:
        tokens, target = rows.tokens, rows.target
        seen = None if rows.pixels is None else self.module.embed_pixels(rows.pixels)
        if target is None:
            hidden, _ = self.forward(rows, seen, None)
            wanted = tokens.targets != IGNORED
            logits = self.module.logits(hidden[wanted])
            return Outcome({"answer": F.cross_entropy(logits.float(), tokens.targets[wanted])}, shown=seen)
        time = torch.sigmoid(torch.randn(len(target), device=self.device) + TIME_MEAN)
        noise = torch.randn_like(target)
        noised = self.module.embed_latents(torch.lerp(target, noise, time[:, None, None, None]), time)
        hidden, middle = self.forward(rows, seen, noised)
        drawn = hidden[:, rows.places.drawn]
        velocity = self.module.llm2vae(drawn)
        wanted = patches(noise - target, self.module.config.latent_patch_size)
        flow = F.mse_loss(velocity.float(), wanted)
        return Outcome({"flow": flow}, drawn, middle[:, rows.places.drawn], seen)

    def forward(self, rows: Rows, seen: Tensor | None, noised: Tensor | None) -> tuple[Tensor, Tensor]:
        """One plain forward over whole rows: (normed hidden [B,S,h], the same after half of the layers, not normed).
        ``seen``, ``noised``: embedded ViT and noised latent tokens."""
        model, tokens, places = self.module, rows.tokens, rows.places
        x = model.embed_tokens(tokens.ids).clone()
        if rows.source is not None:
            zero = torch.zeros(len(rows.source), device=x.device)
            x[:, places.clean] = model.embed_latents(rows.source, zero).to(x.dtype)
        for where, what in ((places.seen, seen), (places.drawn, noised)):
            if where is not None and what is not None:
                x[:, where] = what.to(x.dtype)
        context = AttentionContext(model.rope(tokens.position), tokens.mask, None, rows.spans)
        middle = x
        for i, layer in enumerate(model.layers, 1):
            x, _ = layer(x, context)
            if i == len(model.layers) // 2:
                middle = x
        x = model.norm(x, rows.spans)
        if places.drawn is not None:
            x = torch.cat((x[:, : places.drawn.start], model.normed_latents(x[:, places.drawn])), dim=1)
        return x, middle

    # -- what the trainer does with it -------------------------------------------------------------------------------
    def matrices(self) -> list[nn.Parameter]:
        """The matrices inside transformer layers and the connector, which Muon updates."""
        named = [(name, p) for name, p in self.module.named_parameters() if p.ndim == 2]
        return [p for name, p in named if ".layers." in name or name.startswith("connector.fc2")]

    def compile(self) -> None:
        """Compile each layer; layers of one kind share the compiled code."""
        for layer in (*self.module.layers, *self.module.vit_model.vision_model.encoder.layers):
            layer.compile(dynamic=False)

    def copy(self, state: Mapping[str, Tensor]) -> ScenesBagel:
        """Another model of these weights, for evaluation and export."""
        module = Bagel(self.module.config).to(self.device)
        module.load_state_dict(state)
        return ScenesBagel(module.eval().requires_grad_(False), self.world)

    def save(self, folder: Path, autoencoder: SmallAutoencoder) -> None:
        """config.json, tokenizer.json, autoencoder.safetensors and bf16 model.safetensors, in the project's format."""
        save_model(deepcopy(self.module).cpu().to(torch.bfloat16), folder, processor_of(autoencoder, self.world))


def sorted_by_expert(rows: Sequence[Sequence[tuple[str, Part]]], count: int) -> tuple[Packed, tuple[Span, ...], Places]:
    """Rows of named parts, equally long and alike in where their pictures are, as tensors whose columns are sorted by
    expert: first the understanding one's. A part named "seen", "clean" or "drawn" begins with ``count`` image tokens;
    the latter two are the generation expert's."""
    packed = pack([[part for _, part in row] for row in rows])
    places: dict[str, slice] = {}
    at = 0
    for name, part in rows[0]:
        if name in Places._fields:
            places[name] = slice(at, at + count)
        at += len(part.ids)
    generated = torch.zeros(packed.ids.shape[1], dtype=torch.bool)
    for name in ("clean", "drawn"):
        if name in places:
            generated[places[name]] = True
    order = generated.long().argsort(stable=True)
    moved = order.argsort()
    places = {n: slice(int(moved[s.start]), int(moved[s.start]) + count) for n, s in places.items()}
    mask = packed.mask[:, :, order][..., order]
    tokens = Packed(packed.ids[:, order], packed.position[:, order], mask, packed.targets[:, order])
    edge = len(order) - int(generated.sum())
    spans = ((UND, 0, edge), (GEN, edge, len(order)))
    return tokens, spans if edge < len(order) else spans[:1], Places(**places)


def config_of(vocabulary: int, world: World) -> BagelConfig:
    side = world.side
    return BagelConfig(
        llm=LLMConfig(vocabulary, 128, 384, 12, 4, 2, tie_word_embeddings=True, rope_theta=1e4),
        vit=VisionConfig(64, 128, 2, 4, patch_size=CELL, image_size=world.size),
        vit_max_num_patch_per_side=side,
        max_latent_size=side,
        z_channels=LATENT_CHANNELS,
        downsample=DOWNSAMPLE,
    )


def initialise(model: Bagel) -> None:
    """Small normal weights; residual branches, the time embedding and the velocity start at zero. The tables of
    positions, fixed in the released model, are trained."""
    last = ("o_proj", "out_proj", "down_proj", "mlp.fc2", "llm2vae", "time_embedder.mlp.2")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.removesuffix(SUFFIX[GEN]).endswith(last):
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.05)  # type: ignore[arg-type]
    for table in (model.vit_pos_embed, model.latent_pos_embed):
        table.pos_embed.requires_grad_(True)
        with torch.no_grad():
            table.pos_embed.mul_(0.1)


@torch.no_grad()
def take_over(folder: Path, model: Bagel, words: Tokenizer, world: World) -> None:
    """Both experts begin as the decoder of a model of the same width, words by name; latents and pictures are embedded
    as that model embeds latents, as far as the new entrances can."""
    known = open_model(folder)
    for ours, theirs in zip(model.layers, known.layers, strict=True):
        weights = theirs.state_dict()
        for suffix in SUFFIX.values():
            for name, value in weights.items():
                module, _, leaf = name.rpartition(".")
                parts = module.split(".")
                where = ours
                # Of "self_attn.q_proj" the last name has the suffix, of "mlp.up_proj" the first.
                own = [parts[0] + suffix, *parts[1:]] if parts[0] != "self_attn" else [*parts[:-1], parts[-1] + suffix]
                for part in own:
                    where = getattr(where, part)
                getattr(where, leaf).copy_(value)
    table, theirs_table = (m.get_input_embeddings().weight for m in (model, known))
    mine, known_words = words.get_vocab(), known.processor.text.tokenizer.get_vocab()
    shared = [word for word in mine if word in known_words]
    table[[mine[w] for w in shared]] = theirs_table[[known_words[w] for w in shared]].float()  # type: ignore[index,operator]
    rng = np.random.default_rng(0)
    scenes = [sampler.training_scene(sampler.FAMILIES[n % len(sampler.FAMILIES)], rng, world) for n in range(FIT)]
    pixels = to_tensor(torch.from_numpy(render(scenes)))
    latents = torch.cat([known.processor.vae.encode(part) for part in pixels.split(250)])
    wanted = torch.cat([known.embed_latent(part).float() for part in latents.split(250)])
    fit_latents(model, latents, wanted)
    with torch.enable_grad():
        fit_vit(model, pixels, wanted)


def fit_latents(model: Bagel, latents: Tensor, wanted: Tensor) -> None:
    """``vae2llm`` and the table of positions by least squares: latents [n,z,h,w] -> ``wanted`` [n,N,h]."""
    tokens = patches(latents, model.config.latent_patch_size)
    middle, mean = wanted.mean(0), tokens.mean((0, 1))
    x = (tokens - mean).flatten(0, 1)
    weight = torch.linalg.lstsq(x, (wanted - middle).flatten(0, 1)).solution.T
    model.vae2llm.weight.copy_(weight)
    model.vae2llm.bias.copy_(middle.mean(0) - weight @ mean)
    model.latent_pos_embed.pos_embed.copy_(middle - middle.mean(0))


def fit_vit(model: Bagel, pixels: Tensor, wanted: Tensor) -> None:
    """The ViT and the connector by gradient descent: pixels [n,3,S,S] -> ``wanted`` [n,N,h]."""
    parts = (model.vit_model, model.connector, model.vit_pos_embed)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], 2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(FIT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / FIT_STEPS)
        index = torch.randint(len(pixels), (64,), generator=generator)
        F.mse_loss(model.embed_pixels(pixels[index]), wanted[index]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def processor_of(autoencoder: SmallAutoencoder, world: World) -> Processor:
    """Tokenizer, autoencoder and defaults of a world's model."""
    tokenizer = build(world, instructions=True)
    vocabulary = tokenizer.get_vocab()
    names = {"bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI, "img_pad": IMG_PAD, "pad": PAD}
    text = Text(tokenizer, SpecialIds(**{name: vocabulary[token] for name, token in names.items()}), max_text=TEXT)
    return Processor(
        text,
        PlainAutoencoder(autoencoder, LATENT_CHANNELS, DOWNSAMPLE),
        GenerationDefaults(25, 2.0, 3.0, world.size, world.size, ANSWERS),
        Resizing(world.size, world.size, CELL),
        Resizing(world.size, world.size, CELL),
        Steering(2.0, 1.0, (0.0, 1.0), "channel", 1.0),
        Steering(2.5, 1.25, (0.0, 1.0), "channel", 1.0),
    )
