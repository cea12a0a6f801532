"""What a drawing looks like on its way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashu.inference.engine import Engine
from flashu.inference.run import Event
from flashu.server.jobs import Sample, Stepped

log = logging.getLogger("flashu")


class Previews:
    """Gathers the previews that a forward's samples want, and decodes those of one size together.

    A flow's preview is where its latents are heading: continued in the direction of the last step to the end of time.
    Models that draw one token after another have none.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engine = next(iter(engines.values()))
        self._possible = self._engine.model.spec.drawing != "autoregressive" and self._engine.layout.draws
        self._due: dict[Any, list[tuple[Sample, Event, Tensor]]] = {}

    def wanted(self, sample: Sample, event: Event) -> bool:
        """Note a step; whether `show` will tell it, with a preview."""
        count = sample.job.previews
        if not count or not self._possible:
            return False
        state = self._heading(sample, event)
        # Evenly spaced, the finished image apart.
        at = (event.index + 1) * (count + 1) // event.total
        if event.index + 1 == event.total or at == event.index * (count + 1) // event.total:
            return False
        self._due.setdefault(state.shape, []).append((sample, event, state))
        return True

    def _heading(self, sample: Sample, event: Event) -> Tensor:
        """Where the latents are heading; the state itself where there is no telling."""
        state, latest = event.data, sample.state
        time = None if event.trace is None else event.trace.step.time
        sample.state = state
        if time is None or latest is None:
            return state
        # Only now is known at which time the latents before this forward stood.
        before, sample.point = sample.point, (time, latest)
        if before is None or before[0] == time:
            return state
        slope = (latest - before[1]) / (time - before[0])
        return latest + (float(time > before[0]) - time) * slope

    def show(self) -> None:
        for part in self._due.values():
            states = torch.stack([state for _, _, state in part])
            try:
                images: list[Any] = list(self._engine.decode(states)) if bool(states.isfinite().all()) else []
            except Exception:
                log.exception("previews could not be decoded")
                images = []
            for n, (sample, event, _) in enumerate(part):
                image = images[n] if images else None
                sample.job.tell(Stepped(sample.index, event.index + 1, event.total, image))
        self._due = {}
