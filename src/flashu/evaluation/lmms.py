"""FlashU as a model of the lmms-eval harness: ``--model flashu --model_args pretrained=...,preset=paper``.

Only lmms-eval imports this file, through the entry point group "lmms_eval.models" (0.7 and later).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.lmms_requests import cut, grouped, request_of
from flashu.evaluation.shard import Shard
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.models.registry import open_model
from flashu.models.weights import checkpoint_hash


def manifest() -> ModelManifest:
    """What lmms-eval reads at its start; the model's name there is "flashu"."""
    here = "flashu.evaluation.lmms"
    return ModelManifest(model_id="flashu", simple_class_path=f"{here}.FlashU", chat_class_path=f"{here}.FlashUChat")


class FlashU(lmms):
    """``pretrained``: a name, folder or hub id, loaded as stored unless ``dtype`` is given. ``preset``: a preset's name
    or a recipe file. ``calibration``: a file `flashu calibrate` wrote, else the checkpoint's, else it is gathered
    before the first question. ``quantize``, ``offload``, ``parts``: as of ``from_pretrained``.

    Greedy unless the task sets a temperature. Images stand before the question; a model that takes one alone is shown
    several side by side.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "scenes",
        preset: str = "exact",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        calibration: str | None = None,
        max_new_tokens: int = 128,
        quantize: str | None = None,
        offload: bool = False,
        parts: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise FlashUError(f"unknown model arguments {', '.join(sorted(unknown))}")
        shard = Shard.of_process()
        self._rank, self._world_size = shard.index, shard.count
        if shard.count > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()  # lmms-eval waits for the other processes through it
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        held: dict[str, Any] = {"quantize": quantize, "offload": offload} | ({"parts": parts} if parts else {})
        model = open_model(pretrained, recipe=preset, dtype=dtype, device=_place(device), **held)
        known = model.calibration
        if calibration is not None:
            known = Calibration.load(calibration, checkpoint_hash(model))
        self.engine = Engine(model, model.processor, preset, known)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer per request, in their order; those with equal settings are answered in batches."""
        found: list[str] = [""] * len(requests)
        for places, settings in grouped([self._settings(request) for request in requests], self.batch_size):
            answers = self._answers([requests[n] for n in places], settings)
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
                given = requests[place].args[0], self._settings(requests[place])
                self.cache_hook.add_partial("generate_until", given, answer)
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("FlashU answers questions; choose a task that generates (generate_until)")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("FlashU answers one question at a time; choose a task of one round")

    def _settings(self, request: Instance) -> dict[str, Any]:
        return request.args[1]

    def _messages(self, request: Instance) -> Sequence[Mapping[str, Any]]:
        """A request as messages, their contents in the order they are shown in."""
        context, _, visuals, doc, task, split = request.args
        found = list(visuals(self.task_dict[task][split][doc]) or ())
        if not all(isinstance(visual, Image.Image) for visual in found):
            raise FlashUError(f"task {task} shows something else than images: it cannot be answered here")
        shown = [{"type": "image", "url": visual} for visual in found]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": context}]}]

    def _answers(self, requests: list[Instance], settings: dict[str, Any]) -> list[str]:
        most, limit = self.engine.model.spec.pictures, int(settings.get("max_new_tokens") or self.max_new_tokens)
        asked = [request_of(self._messages(request), most, limit) for request in requests]
        answers = self.engine.respond(
            asked,
            temperature=float(settings.get("temperature") or 0) if settings.get("do_sample", True) else 0.0,
            top_p=settings.get("top_p") or None,
        )
        return [cut(answer.text, settings.get("until")) for answer in answers]


class FlashUChat(FlashU):
    """The same for tasks that give messages: pictures before, between and after the text, where the task puts them."""

    is_simple = False

    def _settings(self, request: Instance) -> dict[str, Any]:
        return request.args[2]

    def _messages(self, request: Instance) -> Sequence[Mapping[str, Any]]:
        _, messages, _, doc, task, split = request.args
        return messages(self.task_dict[task][split][doc])


def _place(device: str | None) -> torch.device:
    if device is not None and device != "cuda":
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
