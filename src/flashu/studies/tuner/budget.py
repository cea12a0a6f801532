"""The budget: how much of the score a recipe must keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashu.errors import FlashUError

FORM = re.compile(r"score\s*>=\s*(\d+(?:\.\d+)?|\.\d+)(\s+of\s+vanilla)?")


@dataclass(frozen=True, slots=True)
class Budget:
    """At least the score ``least``, or if ``relative`` that share of the full model's."""

    least: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "score >= 0.98 of vanilla" or "score >= 0.85"; anything else raises `FlashUError`."""
        found = FORM.fullmatch(text.strip())
        if found is None:
            raise FlashUError(f'{text!r} is no budget: write "score >= 0.98 of vanilla" or "score >= 0.85"')
        least = float(found[1])
        if not 0 < least <= 1:
            raise FlashUError(f"a budget is above 0 and at most 1, {found[1]} is not")
        return cls(least, found[2] is not None)

    def need(self, vanilla: float) -> float:
        """The score needed where the full model scores ``vanilla``."""
        return self.least * vanilla if self.relative else self.least

    def __str__(self) -> str:
        return f"score >= {self.least:g}" + (" of vanilla" if self.relative else "")
