"""What the golden tests share: comparisons, recorded noise, and single forwards of recorded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference.actions import Append, Draw, DrawRequest
from flashu.models.showo2 import layout, reference
from flashu.models.showo2.content import Row as Content
from flashu.models.showo2.content import Shown, Words
from flashu.models.showo2.layout import UNCOND, ShowO2Layout
from flashu.plan import MAIN, Plan, Step
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment, TokenLayout
from flashu.runtime.request import Output, Row, StepRequest
from flashu.runtime.runner import Runner

FORWARD, LOGITS, ODE = 1e-4, 1e-4, 2e-3
"""Largest differences allowed: of one forward's velocities or hidden states, of logits, after a whole drawing."""
Goldens = dict[str, Tensor]


def close(ours: Tensor, golden: Tensor, tolerance: float = FORWARD) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).abs().max()) <= tolerance


def words(ids: Sequence[int]) -> str:
    """The text whose tokens these are, under the tiny model's tokenizer."""
    return " ".join(f"w{n}" for n in ids)


def recorded_noise(monkeypatch: pytest.MonkeyPatch, z: Tensor) -> None:
    """Seed n draws z[n]: what the original drew as a batch cannot be drawn anew one by one."""

    class Recorded:
        def __init__(self, seed: int) -> None:
            self.value = z[seed]

        def normal(self, *shape: int) -> Tensor:
            return self.value.reshape(shape)

    monkeypatch.setattr(layout, "Noise", Recorded)
    monkeypatch.setattr(reference, "Noise", Recorded)


def shown(model: flashu.ShowO2, latents: Tensor, t: Tensor) -> list[Shown]:
    """Images [n, c, H, W], each at its time [n]."""
    e_t, token = model.embed_time(t)
    count = (latents.shape[-2] // 2) * (latents.shape[-1] // 2)
    return [Shown(z, e_t[n : n + 1], token[n : n + 1], count) for n, z in enumerate(latents)]


def whole_row(ids: Sequence[int], images: Sequence[Shown], positions: Sequence[Sequence[int]]) -> Segment:
    """A padded row with its images at ``positions`` (offset, length); the first is what is read."""
    parts: list[Words | Shown] = []
    at, placed = 0, TokenLayout.causal([len(ids)])
    for image, (offset, length) in zip(images, positions, strict=True):
        parts += [Words(tuple(ids[at:offset])), image]
        at = offset + length
        placed = placed.block(offset, at, slice(offset + 1, at))
    start = positions[0][0]
    row = Content((*parts, Words(tuple(ids[at:]))))
    return Segment(row, placed, len(ids), read=range(start + 1, start + 1 + images[0].count))


def image_block(image: Shown) -> Segment:
    length = len(image)
    return Segment(Content((image,)), TokenLayout.causal([length]).block(0, length), length, read=range(1, length))


def context(*segments: Segment) -> Context:
    held = Context()
    for segment in segments:
        held.append(segment)
    return held


def block_forward(model: flashu.ShowO2, rows: Sequence[Row]) -> list[Output]:
    """One forward of image blocks, each a request of its own."""
    step = Step("generation", "block", 0, 1)
    executor = Executor(Runner(model))
    return executor.forward([StepRequest(step, Plan(), (row,), "prediction") for row in rows])


class Trajectory:
    """Forwards of drawing several prompts, each at latents that are given."""

    def __init__(
        self, model: flashu.ShowO2, requests: Sequence[DrawRequest], forwards: int, recipe: Recipe | None = None
    ) -> None:
        recipe = recipe or exact()
        requests = [replace(request, steps=forwards) for request in requests]
        self.executor = Executor(Runner(model))
        self.samplers, self.contexts = [], []
        for actions in ShowO2Layout(model, model.processor).draw(requests, recipe):  # type: ignore[arg-type]
            held = {MAIN: Context(), UNCOND: Context()}
            for action in actions:
                if isinstance(action, Append):
                    held[action.to[0]].append(*action.segments)
                else:
                    assert isinstance(action, Draw)
                    self.scales = action.guidance.scales
                    self.samplers.append(action.sampler(forwards, "euler"))
            self.contexts.append(held)

    def velocities(self, z: Tensor, index: int) -> Tensor:
        """Velocities [branches, prompts, c, H, W] of forward ``index`` at latents z [prompts, c, H, W]."""
        requests = []
        for sampler, held, latents in zip(self.samplers, self.contexts, z, strict=True):
            sampler.state = latents
            segment = sampler.segments(index)
            assert isinstance(segment, Segment)
            step = Step("generation", "block", index, sampler.total, sampler.time(index))
            rows = tuple(Row(held[name], segment) for name in (MAIN, *self.scales))
            requests.append(StepRequest(step, Plan(scales=self.scales), rows, "prediction"))
        values = [output.values for output in self.executor.forward(requests)]
        return torch.stack(values, dim=1)  # type: ignore[arg-type]
