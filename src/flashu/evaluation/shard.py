"""Which part of the items a process does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flashu.errors import FlashUError

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0: every ``count``-th item."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise FlashUError(f"there is no part {self.index} of {self.count}: the parts are 0 to {self.count - 1}")

    def of(self, items: Sequence[Thing]) -> Sequence[Thing]:
        return items[self.index :: self.count]

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n"."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise FlashUError(f"a shard is written i/n, for instance 0/8, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_process(cls, environment: Mapping[str, str] | None = None) -> Shard:
        """From RANK and WORLD_SIZE as torchrun and accelerate set them; the whole where they did not."""
        env = os.environ if environment is None else environment
        rank, count = env.get("RANK", "0"), env.get("WORLD_SIZE", "1")
        try:
            return cls(int(rank), int(count))
        except ValueError as e:
            raise FlashUError(
                f"RANK={rank!r} of WORLD_SIZE={count!r} is no part of a run: unset both, or give --shard i/n"
            ) from e
