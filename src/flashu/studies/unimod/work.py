"""FLOPs of training rows by formula, whole, exact and routed; a multiply-add counts two, backward twice the forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashu.models.registry import CHECKPOINTS, families
from flashu.plan import ModelSpec
from flashu.training.mod.config import UniModConfig, preset


@dataclass(frozen=True)
class Row:
    """A row of ``length`` tokens, ``real`` of which are no padding and ``labels`` of which have a target."""

    length: int
    real: int
    labels: int


def layer(spec: ModelSpec, tokens: int, keys: int, queries: int | None = None) -> int:
    """One layer over ``tokens`` that see ``keys``; with ``queries``, all but keys and values of so many alone."""
    if queries is None:
        return spec.attention.flops(tokens, keys) + spec.ffn(spec.neurons).flops(tokens)
    narrow = spec.keys_values
    rest = spec.attention.flops(queries, keys) - narrow.flops(queries) + spec.ffn(spec.neurons).flops(queries)
    return narrow.flops(tokens) + rest


def row(
    spec: ModelSpec,
    one: Row,
    keep: Mapping[int, float] | None = None,
    *,
    exact: bool = False,
    head: bool = True,
    skip: tuple[int, ...] = (),
) -> int:
    """Forward FLOPs of a row. ``exact``: without padding, the last layer and the head for labels alone; ``keep``:
    shares of the row's tokens that routed layers compute, with a router each; ``head``: count it."""
    length = one.real if exact else one.length
    total = 0
    for i in range(spec.layers):
        if i in skip:
            continue
        share = (keep or {}).get(i)
        count = length if share is None else min(length, math.ceil(share * length))
        queries = None
        if exact and i == spec.layers - 1:
            queries = min(count, math.ceil((share or 1.0) * one.labels))
        total += layer(spec, count, count, queries) + (0 if share is None else 4 * spec.hidden * length)
    return total + head * spec.logits.flops(one.labels if exact else one.length)


def mean(spec: ModelSpec, rows: Mapping[str, Row], config: UniModConfig | None = None, **how: Any) -> float:
    """Mean of the tasks' rows, forward."""
    found = [
        row(
            spec,
            one,
            config.keep.get(task) if config else None,
            skip=config.skip.get(task, ()) if config else (),
            **how,
        )
        for task, one in rows.items()
    ]
    return sum(found) / len(found)


def table() -> list[dict[str, Any]]:
    """Of every published schedule and the rows of the authors' training: forward and backward TFLOPs of a row (the mean
    of the tasks), and shares of the dense layers' work."""
    found = []
    for family in families():
        for name in family.routings:
            known = next(c for c in CHECKPOINTS if c.family == family.name and str(c.source) == c.name)
            spec = family.sizes(known).spec
            config = preset(name, spec.layers)
            for kind, sizes in family.training_rows.items():
                rows = {task: Row(*numbers) for task, numbers in sizes.items()}
                own = {task: shares for task, shares in config.keep.items() if task in rows}
                schedule = UniModConfig(own)
                dense = mean(spec, rows)
                bare = mean(spec, rows, head=False)
                found.append(
                    {
                        "schedule": name,
                        "rows": kind,
                        "dense": 3 * dense / 1e12,
                        "exact": mean(spec, rows, exact=True) / dense,
                        "unimod": mean(spec, rows, schedule) / dense,
                        "both": mean(spec, rows, schedule, exact=True) / dense,
                        "both over exact": mean(spec, rows, schedule, exact=True) / mean(spec, rows, exact=True),
                        "unimod, layers alone": mean(spec, rows, schedule, head=False) / bare,
                    }
                )
    return found
