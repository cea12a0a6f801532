"""The original authors' calling loops on an instance of their class: as it is, and with FlashU; timed in turns.

All run on the same weights, inputs and process, and their results are compared in the same run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from flashu.bench.rows import ORIGINAL
from flashu.errors import FlashUError
from flashu.evaluation.statistics import Spread
from flashu.evaluation.timing import clock_of, time_in_turns
from flashu.interfaces.patch import Config, apply_flashu_patch
from flashu.models.registry import families

CONFIGS: dict[str, Config] = {"exact": "exact", "FlashU": "paper"}


@dataclass(frozen=True)
class DropInTiming:
    """Seconds, the rounds' speed-ups over the original, and the ``difference`` of the last results: the largest of the
    latents, or the share of other tokens."""

    name: str
    seconds: Spread
    speedup: Spread
    difference: float

    def __str__(self) -> str:
        ratio = self.speedup
        return (
            f"{self.name}: {self.seconds.median:.3f} s, {ratio.median:.2f}x [{ratio.least:.2f}, {ratio.most:.2f}], "
            f"difference {self.difference:.2g}"
        )


def time_drop_in(
    module: nn.Module,
    task: str,
    configs: Mapping[str, Config] = CONFIGS,
    *,
    repeats: int = 3,
    **settings: Any,
) -> list[DropInTiming]:
    """Times ``repeats`` images ("t2i") or answers ("mmu") of each, after one that warms up and calibrates.

    ``module`` is an unpatched instance and stays one. ``settings``: of its family's script for the task (see
    `models.family.Family`).
    """
    scripts = next((known.scripts for known in families() if known.recognizes(module)), {})
    if task not in scripts or repeats < 1:
        known = " and ".join(scripts) or "none"
        raise FlashUError(f"of {type(module).__name__} the scripts are {known}; not {task!r}, {repeats} times")
    # The same weights under an instance of its own each.
    instances = {name: copy.copy(module) for name in (ORIGINAL, *configs)}
    for name, config in configs.items():
        apply_flashu_patch(instances[name], config)
    call = scripts[task](instances[ORIGINAL], **settings)
    results: dict[str, Tensor] = {}

    def run(name: str, number: int) -> None:
        results[name] = call(instances[name])

    clock = clock_of(next(module.parameters()).device)
    seconds = time_in_turns({name: partial(run, name) for name in instances}, repeats, clock)
    return [
        DropInTiming(name, own, own.speedup(seconds[ORIGINAL]), _difference(results[name], results[ORIGINAL]))
        for name, own in seconds.items()
    ]


def _difference(result: Tensor, base: Tensor) -> float:
    if result.is_floating_point():
        return float((result - base).abs().max())
    return float((result != base).float().mean())
