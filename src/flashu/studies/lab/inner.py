"""What the lab needs from inside a model. No other module of the lab names a model's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flashu.evaluation.scenes_items import asked_world
from flashu.inference import requests
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.engine import Engine
from flashu.inference.loops.denoise import denoise
from flashu.inference.samplers import flow
from flashu.models.protocol import UnifiedModel
from flashu.models.showo2.original_engine import NAME, Original
from flashu.plan import Plan, Step, Task
from flashu.plan.recipe import exact
from flashu.runtime.runner import Observer, Runner
from flashu.runtime.sampling import choose
from flashu.runtime.scores import SCORES, Inner
from flashu.runtime.tokens import TEXT, Tokens
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES
from flashu.scenes.world import SCENES, World

SEED = 11
ORIGINAL = NAME
FEATURES, LLM, HEAD = "features", "LLM", "head"


# -- engines ---------------------------------------------------------------------------------------------------------
def original(engine: Engine) -> Engine:
    """The original program on the same weights."""
    return Original(engine.model, engine.processor)


def endless(engine: Engine) -> Engine:
    """The engine with no token that ends an answer, for answers of a length that is asked for."""
    text = engine.processor.text
    processor = replace(engine.processor, text=replace(text, ids=replace(text.ids, eos=-1)))
    return engine.of(engine.model, processor, engine.fitted)


# -- parts -----------------------------------------------------------------------------------------------------------
def component_modules(engine: Engine) -> dict[str, Sequence[nn.Module]]:
    """The modules of each component; none lies inside another."""
    model = engine.model
    features = (model.image_embedder_und, model.image_embedder_gen, model.und_trans, model.fusion_proj)
    return {
        FEATURES: (*features, model.time_embed, model.time_embed_proj),
        LLM: (*model.layers, model.showo.model.norm),
        HEAD: (model.diff_proj, *model.diffusion_head_a, model.diffusion_head_b),
    }


def down_projections(engine: Engine) -> Iterator[Tensor]:
    """The weights that read each layer's FFN neurons [h, neurons], fp32."""
    model: UnifiedModel = engine.model
    for layer in model.layers:
        yield layer.mlp.down_proj.weight.detach().float()


def embed_time(engine: Engine, count: int) -> None:
    """Compute ``count`` time embeddings, which no plan counts."""
    engine.model.embed_time(torch.zeros(count, device=engine.model.device))


def encode(engine: Engine, image: Image.Image) -> None:
    """Compute the latents of one image."""
    vae = engine.processor.vae
    assert vae is not None
    vae.encode(engine.processor.pixels(image).to(engine.model.device))


@torch.inference_mode()
def pixels(engine: Engine, latents: Tensor) -> Tensor:
    """Latents [B, c, h, w] as images in [0, 1]."""
    vae = engine.processor.vae
    assert vae is not None
    return (vae.decode(latents.to(engine.model.device)).cpu() + 1) / 2


def prompt_tokens(engine: Engine, text: str) -> int:
    return len(engine.processor.text.prompt(text))


def question_tokens(engine: Engine, question: str) -> int:
    return sum(map(len, engine.processor.text.question(question)))


# -- inner values ----------------------------------------------------------------------------------------------------
def prompts(n: int, world: World = SCENES) -> list[str]:
    """n prompts from the training side of the scenes, the categories in turn."""
    each = -(-n // len(CATEGORIES))
    columns = [benchmark.prompts(category, each, SEED, "train", world) for category in CATEGORIES]
    return [column[k].text for k in range(each) for column in columns][:n]


@torch.inference_mode()
def observe(engine: Engine, task: Task, n: int, observer: Observer, at: Callable[[int], None] = lambda _: None) -> None:
    """The full model draws n prompts at once, or answers n questions one by one, under ``observer``. ``at`` is called
    with the number of each forward before it."""
    model, processor, defaults = engine.model, engine.processor, engine.processor.defaults
    world = asked_world(engine)
    runner = Runner(model, observer=observer)
    if task == "understanding":
        for image, question in samples.questions(n, world):
            at(0)
            _, stream = requests.asking(runner, processor, exact(), [image], [question], None, choose)
            for forward, _ in enumerate(stream, 1):
                at(forward)
        return
    size = requests.latent_size(model, processor, defaults.height, defaults.width)
    ids = [processor.text.prompt(text) for text in prompts(n, world)]
    run, rows = requests.drawing(runner, processor, exact(), ids, size, defaults.steps, defaults.guidance)
    z = torch.stack([flow.noise((model.config.image_latent_dim, *size), k) for k in range(len(ids))])

    def after(step: Step, plan: Plan, latents: Tensor) -> None:
        at(step.index + 1)

    at(0)
    denoise(run, rows, z.to(model.device), flow.grid(run.forwards, defaults.shift), after)


class SecondMoments(FFNNorms):
    """Observer of E[a_j^2] of every FFN neuron over all real tokens."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(num_layers)
        self.tokens = [0] * num_layers

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        super().__call__(layer, name, value, tokens)
        if name == "ffn":
            self.tokens[layer] += int(tokens.valid.sum())

    def moments(self) -> Tensor:
        """[layers, neurons]"""
        squares = self.norms().square()
        return squares / torch.tensor(self.tokens, device=squares.device)[:, None]


class LayerSimilarity:
    """Observer of the mean cosine similarity of each layer's input and output, by kind of token.

    The kinds: text, time (the token that opens the image block), image, and new (a token being decoded); the last
    token of a prefill, which Eq. 7 reads, is counted as "last" too.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.forward = 0
        self.found: dict[tuple[int, str, int], tuple[float, int]] = {}
        self._input: Tensor | None = None

    def at(self, forward: int) -> None:
        """The forward that comes next."""
        self.forward = forward

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        if name == "input":
            self._input = value
        elif name == "output":
            assert self._input is not None
            cosine = F.cosine_similarity(self._input.float(), value.float(), dim=-1).cpu()
            for kind, where in self._kinds(tokens).items():
                key = (self.forward, kind, layer)
                total, count = self.found.get(key, (0.0, 0))
                self.found[key] = (total + float(cosine[where].sum()), count + int(where.sum()))

    def _kinds(self, tokens: Tokens) -> dict[str, Tensor]:
        if self.task == "understanding" and tokens.shape[1] == 1:
            return {"new": tokens.valid}
        block = (tokens.block != TEXT) & tokens.valid
        last = torch.zeros_like(tokens.valid).scatter(1, tokens.last[:, None], True)
        kinds = {"image": tokens.visual, "time": block & ~tokens.visual, "text": ~block & tokens.valid}
        return kinds | ({"last": last} if self.task == "understanding" else {})

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"task": self.task, "forward": forward, "token": kind, "layer": layer + 1}
            | {"similarity": total / count, "n": count}
            for (forward, kind, layer), (total, count) in sorted(self.found.items())
            if count
        ]


class AttentionAndNorms:
    """Observer of prefills: attention received and value norm of the visual tokens, by layer and sample."""

    def __init__(self, num_layers: int) -> None:
        self.pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_layers)]
        self._seen: dict[str, Tensor] = {}

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        self._seen[name] = value
        if name != "value" or not bool(tokens.visual.any()):
            return
        inner = Inner(tokens, self._seen["key"], value, value, self._seen["query"])
        attention, norm = (SCORES[kind](inner, 0).cpu() for kind in ("attention", "value_norm"))
        for row, visual in enumerate(tokens.visual):
            self.pairs[layer].append((attention[row][visual], norm[row][visual].sqrt()))
