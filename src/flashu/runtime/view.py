"""What the tokens of a forward attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flashu.models.layers import Rope


@dataclass(frozen=True, eq=False)
class View:
    """What the tokens of a forward attend to in the first layer: rotary tables (of the decoder and of the head's
    blocks) and mask, on the device. It can be kept while the same tokens look at the same past."""

    rope: Rope
    mask: Tensor | Literal["causal"] | None
    head_rope: Rope | None = None
