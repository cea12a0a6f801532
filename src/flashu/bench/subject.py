"""What is measured: a model, a task and its inputs. The same inputs for every row of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from flashu.bench.random_weights import NAMED, named_model
from flashu.errors import FlashUError
from flashu.inference import requests
from flashu.inference.samplers import flow
from flashu.models.offload import offload, offloaded
from flashu.models.quantize import quantize
from flashu.models.registry import open_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.plan import Task

TASK: dict[str, Task] = {"t2i": "generation", "mmu": "understanding"}
PROMPT_TOKENS, QUESTION_TOKENS, NEW_TOKENS = 16, 32, 32
SEED = 7


@dataclass(frozen=True, eq=False)
class Subject:
    """``steps``: what an image is asked for before a recipe shortens it; ``new_tokens``: of every answer.

    ``prompts``: a row of ids with its marks for each image; ``question``: ids before and after the picture.
    """

    name: str
    model: ShowO2
    processor: Processor
    task: str
    batch: int
    steps: int
    new_tokens: int
    prompts: list[list[int]]
    question: requests.Parts

    @property
    def size(self) -> tuple[int, int]:
        defaults = self.processor.defaults
        return requests.latent_size(self.model, self.processor, defaults.height, defaults.width)

    @property
    def image_tokens(self) -> int:
        rows, columns = self.size
        return rows * columns // self.model.config.patch_size**2

    @property
    def guidance(self) -> float | None:
        scale = self.processor.defaults.guidance
        return None if self.task == "mmu" or scale in (0, 1) else scale

    @property
    def weights(self) -> str:
        """How the weights are held, where that is not as the checkpoint has them."""
        if offloaded(self.model):
            return "offloaded"
        return "packed" if self.model.packed else self.model.quantization or ""

    @property
    def units(self) -> tuple[int, str]:
        """How much one request yields."""
        return (self.batch, "images") if self.task == "t2i" else (self.batch * self.new_tokens, "tokens")

    def noise(self) -> Tensor:
        """[B, c, h, w]"""
        shape = (self.model.config.image_latent_dim, *self.size)
        return torch.stack([flow.noise(shape, SEED + n) for n in range(self.batch)]).to(self.model.device)

    def pixels(self) -> list[Tensor]:
        """B made-up pictures [1, 3, H, W]."""
        defaults = self.processor.defaults
        generator = torch.Generator().manual_seed(SEED)
        return list(torch.rand(self.batch, 1, 3, defaults.height, defaults.width, generator=generator) * 2 - 1)


def task_of(name: str) -> Task:
    """The plan's name of a task; an unknown one raises `FlashUError`."""
    if name not in TASK:
        raise FlashUError(f"there is no task {name!r}: give {' or '.join(TASK)}")
    return TASK[name]


def open_subject(
    name: str,
    task: str,
    *,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    steps: int | None = None,
    new_tokens: int | None = None,
    pack: bool = False,
    quantization: str | None = None,
    offloading: bool = False,
) -> Subject:
    """The subject of a name: a released size (made-up weights, bf16 unless told otherwise), "scenes", a checkpoint.

    Its weights are packed, quantized or offloaded as a user's would be (see `ShowO2.from_pretrained`); one of these.
    """
    if sum((pack, quantization is not None, offloading)) > 1:
        raise FlashUError("weights are packed, quantized or offloaded: give one of the three")
    place = torch.device(device)
    weights = torch.device("cpu") if offloading else place
    if name in NAMED:
        model, processor = named_model(name, dtype or torch.bfloat16, weights, place)
    else:
        model, processor = open_model(name, dtype, weights, place)
    if pack:
        model.pack()
    if quantization is not None:
        quantize(model, quantization)
    if offloading:
        offload(model, place)
    return subject_of(name, model, processor, task, batch=batch, steps=steps, new_tokens=new_tokens)


def subject_of(
    name: str,
    model: ShowO2,
    processor: Processor,
    task: str,
    *,
    batch: int = 1,
    steps: int | None = None,
    new_tokens: int | None = None,
) -> Subject:
    """The subject of a model at hand."""
    task_of(task)
    if task == "mmu" and processor.vae is None:
        raise FlashUError(f'{name} has no autoencoder, so it cannot see: pip install "flashu[wan]"')
    text, ids = processor.text, processor.text.ids
    words = made_up(model.config.llm.vocab_size, set(astuple(ids)))
    asked = min(QUESTION_TOKENS, text.max_question)
    before, after = asked // 2, asked - asked // 2
    return Subject(
        name,
        model.requires_grad_(False),
        processor,
        task,
        requests.positive("batch", batch),
        requests.positive("steps", processor.defaults.steps if steps is None else steps),
        requests.positive("new_tokens", NEW_TOKENS if new_tokens is None else new_tokens),
        [[ids.bos, *islice(words, min(PROMPT_TOKENS - 2, text.max_text)), ids.boi] for _ in range(batch)],
        ([ids.bos, *islice(words, before - 2), ids.boi], [ids.eoi, *islice(words, after - 1)]),
    )


def made_up(vocabulary: int, special: set[int]) -> Iterator[int]:
    """Token ids of words, without end."""
    return cycle(n for n in range(min(vocabulary, 1000)) if n not in special)
