"""A training run, as a YAML file says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from flashu.errors import FlashUError
from flashu.plan.files import given_text
from flashu.training.exact import Savings

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class TrainSettings:
    """``model``: a name, folder or hub id; ``output``: a folder. ``data``: {kind: records, path: ...}
    (`training.records`) or {kind: scenes, world: scenes, scenes: 8000}. ``rows``: of each task in a batch ("t2i",
    "mmu", ...), in each of ``accumulate`` batches per update and process; ``weights``: of each task's loss.

    ``lr`` rises over ``warmup`` updates, then follows ``schedule`` down to ``lr`` x ``last``. ``precision``: "no" = the
    model's, or "bf16" autocast. ``ema``: decay of an average of the weights, 0 = none. ``unimod``: settings of
    `UniModConfig`, {preset: name} with changes to it; ``savings``: of `Savings`. ``checkpoint``, ``log``: updates
    between two. ``router_lr``: factor of ``lr`` for routers.
    """

    model: str
    output: str
    data: Mapping[str, Any]
    rows: Mapping[str, int]
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1000
    accumulate: int = 1
    lr: float = 1e-4
    router_lr: float = 1.0
    schedule: Schedule = "cosine"
    warmup: int = 0
    last: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    precision: Literal["no", "bf16"] = "no"
    ema: float = 0.0
    seed: int = 0
    unimod: Mapping[str, Any] = field(default_factory=dict)
    savings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: int = 200
    log: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, known in (("schedule", get_args(Schedule)), ("precision", ("no", "bf16"))):
            if getattr(self, name) not in known:
                raise FlashUError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("steps", "accumulate", "checkpoint", "log"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise FlashUError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("lr", "router_lr", "clip"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise FlashUError(
                    f"{name} must be a number above 0, not {value!r} (YAML reads 1e-4 as text: write 1.0e-4)"
                )
        if not 0 <= self.ema < 1:
            raise FlashUError(f"ema must be in [0, 1), not {self.ema}")
        if not self.rows or any(not isinstance(n, int) or n < 1 for n in self.rows.values()):
            raise FlashUError(f"rows must give at least one row of a task, not {dict(self.rows)}")
        object.__setattr__(self, "betas", tuple(self.betas))

    def rate(self, step: int) -> float:
        """Factor of the learning rate at update ``step``, from 0 on."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        fall = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.last + (1 - self.last) * fall

    def exact(self) -> Savings:
        return Savings.of(**self.savings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainSettings:
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise FlashUError(f"unknown settings {unknown}; known are {', '.join(known)}")
        if missing := [name for name in ("model", "output", "data", "rows") if name not in data]:
            raise FlashUError(f"the settings lack {', '.join(missing)}")
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> TrainSettings:
        """From a YAML file."""
        try:
            import yaml
        except ImportError as error:
            raise FlashUError('settings are YAML: pip install ".[train]" in a clone of flashu') from error
        try:
            data = yaml.safe_load(given_text(Path(path)))
        except (yaml.YAMLError, RecursionError) as error:
            raise FlashUError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(data, dict):
            raise FlashUError(f"{path} must hold settings by name")
        return cls.from_dict(data)
