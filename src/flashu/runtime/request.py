"""What runs ask of the executor, and what it gives them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from flashu.models.layers import Span
from flashu.plan import Plan, Step
from flashu.runtime.context import Context
from flashu.runtime.layout import Segment
from flashu.runtime.sampling import Chooser

Want = Literal["logits", "prediction", "nothing"]


class Row(NamedTuple):
    """One row of a forward: what stands before, and the tokens to compute (None: those pending in the context)."""

    context: Context
    segment: Segment | None = None


@dataclass(frozen=True, eq=False)
class StepRequest:
    """One forward of one run, one row per branch.

    By ``step.kind``: a "prefill" computes what is pending in the contexts; a "block" computes the rows' segments, which
    leave no keys and values behind; a "token" appends ``ids`` [S] to every row; a "verify" computes ``ids`` [1] and as
    many drafted tokens behind it as the plan says, of which the run then accepts some (`Context.accept`).

    ``want``: what the runs read: logits over ``codes`` (None = the vocabulary) at the rows' read tokens, or the head's
    prediction. ``features``: the head's earlier output [rows, N, d], from which alone the prediction follows; what goes
    through the decoder is for a probe. ``space``: tokens that a context will have to take in after its prefill.
    ``spans``: expert of the ``ids``. ``known``: the text tokens so far, ``chooser``: how the next are chosen; for
    drafts.
    """

    step: Step
    plan: Plan
    rows: tuple[Row, ...]
    want: Want
    codes: tuple[int, int] | None = None
    features: Tensor | None = None
    ids: Tensor | None = None
    spans: tuple[Span, ...] = ()
    space: int = 0
    known: Sequence[int] = ()
    chooser: Chooser | None = None

    @property
    def signature(self) -> Hashable:
        """Requests of equal signatures are computed together. Skip lists, times and lengths may differ."""
        segment = self.rows[0].segment
        shape = () if segment is None else (segment.length, segment.layout.spans, len(segment.reads))
        layers = replace(self.plan.layers, skip=frozenset())
        size = None if self.ids is None else len(self.ids)
        kept = self.features is None
        return (self.step.kind, self.want, self.codes, self.plan.probe, layers, shape, size, self.spans, kept)


@dataclass(frozen=True, eq=False)
class Output:
    """What a forward gave one run: ``values`` [rows, ...] as wanted; the head's ``features`` [rows, N, d] if it ran;
    the probe's ``similarity`` by layer; ``tokens`` of each row that went through the decoder, behind ``past`` earlier
    ones; ``shared``: tokens that went through before, for this run and others. Of a "verify", ``values`` [rows, K + 1,
    V] are the logits after ``ids`` and after each of the tokens ``drafted`` [K]; ``chances`` [K, V]: the distributions
    that those were drawn from, None = they were not drawn."""

    values: Tensor | None
    features: Tensor | None = None
    similarity: tuple[float, ...] | None = None
    tokens: int = 0
    past: int = 0
    shared: int = 0
    drafted: Tensor | None = None
    chances: Tensor | None = None


def shared_out(
    group: Sequence[StepRequest],
    values: Tensor | None,
    features: Tensor | None = None,
    similarity: Tensor | None = None,
    tokens: Sequence[int] = (),
    pasts: Sequence[int] = (),
    shared: Sequence[int] = (),
) -> list[Output]:
    """Each request's rows of what a group computed."""
    outputs, start = [], 0
    for n, request in enumerate(group):
        rows = slice(start, start + len(request.rows))
        start = rows.stop
        probed = None if similarity is None else tuple(similarity[rows].mean(0).tolist())
        outputs.append(
            Output(
                None if values is None else values[rows],
                None if features is None else features[rows],
                probed,
                tokens[n] if tokens else 0,
                pasts[n] if pasts else 0,
                shared[n] if shared else 0,
            )
        )
    return outputs
