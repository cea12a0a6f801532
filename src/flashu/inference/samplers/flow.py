"""Drawing by flow matching: latents move along predicted velocities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from flashu.inference.samplers.solvers import SOLVERS
from flashu.runtime.layout import Segment
from flashu.runtime.request import Want

Block = Callable[[Tensor, float], Segment | Mapping[str, Segment]]
"""(latents, time) -> the tokens that show them, the same in every branch or by branch."""


class FlowSampler:
    """``noise`` [c, H, W] fp32; ``times`` [forwards + 1]: when velocities are evaluated, and the end; see `solvers`."""

    kind: Literal["block", "token"] = "block"
    want: Want = "prediction"
    codes: tuple[int, int] | None = None

    def __init__(self, noise: Tensor, times: Tensor, solver: str, block: Block) -> None:
        self.state = noise
        self.total = len(times) - 1
        self._times, self._sizes = times.tolist(), times.diff().tolist()
        self._solver, self.block = SOLVERS[solver](), block

    def time(self, index: int) -> float:
        return self._times[index]

    def space(self, index: int) -> int:
        return 0

    def segments(self, index: int) -> Segment | Mapping[str, Segment]:
        return self.block(self.state, self._times[index])

    def advance(self, prediction: Tensor, index: int) -> None:
        self.state = self._solver.advance(self.state, prediction, self._sizes[index])
