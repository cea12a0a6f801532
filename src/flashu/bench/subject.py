"""What is measured: a model, a task and its requests, the same for every row of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, DrawRequest, Layout
from flashu.inference.calibrate.bank import Mask, bank, kept
from flashu.models.ffn import FFN
from flashu.models.memory import held_bytes
from flashu.models.offload import offload, offloaded
from flashu.models.packing import PackedLinear, pack
from flashu.models.pretrained import check_placement
from flashu.models.protocol import UnifiedModel
from flashu.models.quantize import quantize
from flashu.models.registry import families, open_model
from flashu.plan import MAIN, Task
from flashu.plan.explain import Sizes
from flashu.plan.limits import check_number
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.runner import Bank

TASK: dict[str, Task] = {"t2i": "generation", "edit": "generation", "mmu": "understanding"}
NEW_TOKENS = 32
ONE_LAYER = "one layer for all"
SEED = 7
PROMPT = "a red circle above a blue square and a green triangle left of it"
INSTRUCTION = "make the red circle blue"
QUESTION = "is there a red circle above the blue square and a green triangle left of it"


@dataclass(frozen=True, eq=False)
class Subject:
    """``steps``: what an image is asked for before a recipe shortens it; ``new_tokens``: of every answer; ``edits``:
    images are drawn of others; ``layers``: of the decoder, where fewer were asked for than the ``whole``
    model has; the seconds and FLOPs of its decoder are then composed of theirs."""

    name: str
    model: Any
    processor: Any
    task: Task
    batch: int
    steps: int
    new_tokens: int
    edits: bool = False
    layers: int | None = None
    whole: int = 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def drawing(self) -> bool:
        return self.task == "generation"

    @cached_property
    def layout(self) -> Layout:
        return self.model.layout(self.processor)

    @cached_property
    def sizes(self) -> Sizes:
        return self.layout.sizes(self.name)

    @property
    def guidance(self) -> float | None:
        scale = self.layout.defaults.guidance
        return scale if self.drawing and self.model.spec.scales(scale) else None

    @property
    def weights(self) -> str:
        """How the weights are held: packed, offloaded, a quantization scheme, or "" for as the checkpoint has them."""
        if offloaded(self.model):
            return "offloaded"
        packed = any(isinstance(module, PackedLinear) for module in self.model.modules())
        return "packed" if packed else self.model.quantization or ""

    @property
    def one_layer(self) -> bool:
        """Whether all layers are one, because the weights of each did not fit."""
        return len(self.model.layers) > len({id(layer) for layer in self.model.layers}) == 1

    @property
    def depth(self) -> float:
        """How many times the decoder's layers the whole model's are."""
        return self.whole / self.layers if self.layers else 1.0

    @property
    def units(self) -> tuple[int, str]:
        """How much one request yields."""
        return (self.batch, "images") if self.drawing else (self.batch * self.new_tokens, "tokens")

    # -- requests ----------------------------------------------------------------------------------------------
    def images_to_draw(self, steps: int) -> list[DrawRequest]:
        if self.edits:
            shown = enumerate(self.pictures)
            return [DrawRequest(turned(INSTRUCTION, n), SEED + n, steps, images=(picture,)) for n, picture in shown]
        return [DrawRequest(turned(PROMPT, n), SEED + n, steps) for n in range(self.batch)]

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """Random ones."""
        size, generator = self.layout.defaults, torch.Generator().manual_seed(SEED)
        shape = (self.batch, size.height, size.width, 3)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy()
        return [Image.fromarray(picture) for picture in pictures]

    @cached_property
    def questions(self) -> list[AnswerRequest]:
        """About a random picture each."""
        return [
            AnswerRequest(turned(QUESTION, n), (picture,), self.new_tokens) for n, picture in enumerate(self.pictures)
        ]

    def scripts(self, recipe: Recipe, steps: int) -> list[list[Action]]:
        """The actions of each image or answer; no answer stops early."""
        if self.drawing:
            return self.layout.draw(self.images_to_draw(steps), recipe)
        scripts = self.layout.answer(self.questions)
        return [[replace(a, stop=frozenset()) if isinstance(a, Decode) else a for a in script] for script in scripts]

    @cached_property
    def text_tokens(self) -> int:
        """Of the first prompt, or of the first question without its picture; both with their special tokens."""
        first = self.scripts(exact(), self.steps)[0]
        appended = [action for action in first if isinstance(action, Append) and MAIN in action.to]
        if self.edits:
            return appended[-1].segments[-1].length
        total = sum(segment.length for action in appended for segment in action.segments)
        shown = self.sizes.shown or self.sizes.image_tokens(None, None)
        return total if self.drawing else total - shown - self.sizes.spec.markers

    # -- pruned FFNs -------------------------------------------------------------------------------------------
    def mask(self, ratio: float) -> Mask:
        """Neurons that FFNs pruned by ``ratio`` keep: random ones, which cost the same as any."""
        shape = (len(self.model.ffns()), self.sizes.spec.neurons)
        return kept(torch.rand(shape, generator=torch.Generator().manual_seed(0)), ratio)

    @cached_property
    def _banks(self) -> dict[float, Bank]:
        return {}

    def bank(self, ratio: float) -> Bank:
        """Copies of the weights that `mask` keeps, made once for all rows."""
        if ratio not in self._banks:
            if self.one_layer:
                each = [ffn.select(index, self.model.quantization) for ffn, index in self._first(ratio)]
                keys = self.model.ffns()
                self._banks[ratio] = {key: each[n % len(each)] for n, key in enumerate(keys)}
            else:
                self._banks[ratio] = bank(self.model, self.mask(ratio))
        return self._banks[ratio]

    def _first(self, ratio: float) -> list[tuple[FFN, Tensor]]:
        """The FFNs of the first layer and their masks."""
        ffns = [ffn for (layer, _), ffn in self.model.ffns().items() if layer == 0]
        return [(ffn, index) for ffn, index in zip(ffns, self.mask(ratio), strict=False) if index is not None]

    def about(self) -> dict[str, Any]:
        """What is measured, for the report."""
        defaults = self.layout.defaults
        return {
            "model": self.name,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "held_bytes": held_bytes(self.model),
            "task": "edit" if self.edits else next(name for name, task in TASK.items() if task == self.task),
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": " ".join(filter(None, (self.weights, ONE_LAYER if self.one_layer else ""))),
            "layers": self.layers,
            "whole_layers": self.whole or None,
            "device": str(self.device),
            "pixels": [defaults.height, defaults.width],
            "guidance": self.guidance,
            "steps": self.steps if self.drawing else None,
            "new_tokens": None if self.drawing else self.new_tokens,
            "prompt_tokens": self.text_tokens if self.drawing else None,
            "question_tokens": None if self.drawing else self.text_tokens,
            "image_tokens": self.sizes.image_tokens(None, None),
            "autoencoder": self.layout.draws,
        }


def turned(text: str, count: int) -> str:
    """The words of a text, begun at another: requests of a batch must differ, as equal ones are computed once."""
    words = text.split()
    first = count % len(words)
    return " ".join((*words[first:], *words[:first]))


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
    layers: int | None = None,
) -> Subject:
    """The subject of a name: a released size (random weights, bf16 by default), "scenes", a checkpoint.

    ``layers``: only so many decoder layers, of a released size. The weights are packed, quantized or offloaded as a
    user's would be; at most one of these.
    """
    check_placement(offloading, quantization, pack)
    random = next((known.random for known in families() if name in known.random_sizes), None)
    if random is None:
        if layers is not None:
            raise FlashUError(
                f"{name} has weights of its own: only a released size with random ones can have fewer layers"
            )
        model = open_model(name, dtype=dtype, device=device, offload=offloading, quantize=quantization, pack=pack)
        processor = model.processor
    else:
        model, processor = _random(random, name, dtype, torch.device(device), pack, quantization, offloading, layers)
    subject = subject_of(name, model, processor, task, batch=batch, steps=steps, new_tokens=new_tokens)
    if layers is None or random is None:
        return subject
    meta = torch.device("meta")
    whole, _ = random(name, model.dtype, meta, meta)
    return replace(subject, layers=layers, whole=len(whole.layers))


def _random(
    random: Any,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device,
    packing: bool,
    quantization: str | None,
    offloading: bool,
    layers: int | None,
) -> tuple[Any, Any]:
    """A model with random weights and its processor."""
    place = torch.device("cpu") if offloading else device
    model, processor = random(name, dtype or torch.bfloat16, place, device, layers)
    if packing:
        pack(model)
    if quantization is not None:
        quantize(model, quantization)
    if offloading:
        offload(model, device)
    return model, processor


def subject_of(
    name: str,
    model: UnifiedModel,
    processor: Any,
    task: str,
    *,
    batch: int = 1,
    steps: int | None = None,
    new_tokens: int | None = None,
) -> Subject:
    """The subject of a model in memory."""
    for limit, value in {"batch_size": batch, "steps": steps, "max_new_tokens": new_tokens}.items():
        check_number(limit, value)
    layout = model.layout(processor)
    if task_of(task) == "understanding" and not layout.sees:
        raise FlashUError(
            f'{name} cannot see as it is: if it lacks its autoencoder, pip install ".[wan]" in a clone of flashu'
        )
    if task == "edit" and not layout.edits:
        raise FlashUError(f"{name} does not edit images")
    defaults = layout.defaults
    return Subject(
        name, model, processor, TASK[task], batch, steps or defaults.steps, new_tokens or NEW_TOKENS, task == "edit"
    )
