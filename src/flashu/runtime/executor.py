"""The executor: computes the forwards that runs ask for, the rows of many runs at a time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from flashu.runtime.blocks import Blocks
from flashu.runtime.drafting import Drafter
from flashu.runtime.graphs import GraphPool
from flashu.runtime.prefill import Prefills
from flashu.runtime.request import Output, StepRequest
from flashu.runtime.runner import Runner
from flashu.runtime.slots import SlotPool
from flashu.runtime.tokens import Tokens


class Executor:
    """Stacks the rows of requests and runs them. ``graphs``: captures forwards of tokens and of blocks. ``slots``:
    space for decodes that begin and end at any time. ``drafter``: proposes what forwards of kind "verify" verify. For
    one thread. ``drawing``: computes blocks instead of ``runner``, with other weights; what stands before them does not
    change."""

    def __init__(
        self,
        runner: Runner,
        graphs: GraphPool | None = None,
        slots: SlotPool | None = None,
        drafter: Drafter | None = None,
        drawing: Runner | None = None,
    ) -> None:
        self.runner = runner
        self.model = runner.model
        # Inner values cannot be observed in a captured forward.
        self.graphs = graphs if runner.observer is None else None
        prefills = Prefills(runner, drafter)
        self.blocks = Blocks(drawing or runner, prefills, self.graphs)
        tokens = Tokens(runner, self.graphs, slots, drafter)
        self._kinds = {
            "prefill": prefills.forward,
            "block": self.blocks.forward,
            "token": tokens.forward,
            "verify": tokens.verify,
        }

    def forward(self, requests: Sequence[StepRequest]) -> list[Output]:
        """The outputs of some requests, in order."""
        if len(requests) == 1:
            return self._kinds[requests[0].step.kind](list(requests))
        groups: dict[Hashable, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(request.signature, []).append(n)
        outputs: dict[int, Output] = {}
        for members in groups.values():
            group = [requests[n] for n in members]
            outputs |= zip(members, self._kinds[group[0].step.kind](group), strict=True)
        return [outputs[n] for n in range(len(requests))]
