"""How a model is run unless a request says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from flashu.errors import FlashUError
from flashu.plan.limits import check_number, check_shift


@dataclass(frozen=True)
class GenerationDefaults:
    """How a checkpoint is run by default. ``steps`` are forwards; sizes are pixels."""

    steps: int = 50
    guidance: float = 5.0
    shift: float = 3.0
    height: int = 432
    width: int = 432
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("steps", "guidance", "shift", "height", "width", "max_new_tokens"):
            if getattr(self, name) is None:
                raise FlashUError(f"{name} is missing: there is no default for a default")
            if name != "shift":
                check_number(name, getattr(self, name))
        check_shift(self.shift)
