"""What is compared: dense training, exact training, and every way to compute fewer tokens or layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.registry import family
from flashu.plan import ModelSpec
from flashu.studies.unimod.work import Row, mean
from flashu.training.exact import Savings
from flashu.training.mod.arank import ARank, by_arank
from flashu.training.mod.config import UniModConfig, matched, preset, randomly


@dataclass(frozen=True)
class Arm:
    """``about``: one line; ``savings``: of exact training, all unless said."""

    name: str
    about: str
    config: UniModConfig = field(default_factory=UniModConfig)
    savings: Savings = field(default_factory=Savings)


NAMES = (
    "dense", "whole", "fewer-layers", "early-exit", "random", "single-matched", "single-paper", "unimod",
    "unimod-arank", "gate-block", "gate-2p", "gate-tanh", "gamma-mod", "p-mod",
)  # fmt: skip
SCREENED = ("dense", "whole", "random", "single-matched", "unimod")
"""The arms of a first look."""


def arms(spec: ModelSpec, rows: Mapping[str, Row], found: Mapping[str, ARank]) -> dict[str, Arm]:
    """Every arm for a model; ``rows``: a typical one of each task, by which work is matched."""
    own = family(spec.family).routings
    if not own:
        raise FlashUError(f"there is no published schedule for {spec.family}")
    hand = preset(next(iter(own)), spec.layers)
    hand = replace(hand, keep={task: shares for task, shares in hand.keep.items() if task in rows}, padding=False)
    work: Callable[[UniModConfig], float] = lambda config: mean(spec, rows, config, exact=True)  # noqa: E731
    target = work(hand)
    single = replace(preset("single-router-paper", spec.layers), padding=False)

    def own_tasks(config: UniModConfig) -> UniModConfig:
        return replace(
            config,
            padding=False,
            keep={task: shares for task, shares in config.keep.items() if task in rows},
            skip={task: gone for task, gone in config.skip.items() if task in rows},
        )

    listed = [
        Arm("dense", "every token in every layer, nothing computed in vain"),
        Arm("whole", "the same, with padding, all logits and the whole last layer", savings=Savings.none()),
        Arm("fewer-layers", "layers of the last half left out until the work is UniMoD's", _fewer(spec, rows, target)),
        Arm("early-exit", "the last half of the layers left out", own_tasks(preset("early-exit", spec.layers))),
        Arm("random", "UniMoD's shares, of random tokens", randomly(hand)),
        Arm(
            "single-matched", "one router a layer for both tasks, shares matched to UniMoD's work",
            matched(own_tasks(single), work, target),
        ),
        Arm("single-paper", "one router a layer, both tasks as understanding (the paper's)", own_tasks(single)),
        Arm("unimod", "a router for each task and layer, the paper's schedule", hand),
        Arm("gate-block", "UniMoD, its weight on all that a layer adds", replace(hand, gate="block")),
        Arm("gate-2p", "UniMoD, weight 2p", replace(hand, scale="2p")),
        Arm("gate-tanh", "UniMoD, a weight that starts at 1", replace(hand, scale="tanh")),
        Arm("gamma-mod", "one router for all, half of the tokens", own_tasks(preset("gamma-mod", spec.layers))),
        Arm("p-mod", "tanh weights, shares along a cosine", own_tasks(preset("p-mod", spec.layers))),
    ]  # fmt: skip
    if found:
        chosen = by_arank(hand, found)
        listed.append(Arm("unimod-arank", "UniMoD's shares in the layers of lowest ARank", chosen))
    return {arm.name: arm for arm in listed}


def _fewer(spec: ModelSpec, rows: Mapping[str, Row], target: float) -> UniModConfig:
    """Layers left out, every second from the last half's first on, until no more than the target is left."""
    half = list(range(spec.layers - spec.layers // 2, spec.layers))
    order = [*half[::2], *half[1::2]]
    for count in range(len(order) + 1):
        gone = tuple(sorted(order[:count]))
        config = UniModConfig(skip=dict.fromkeys(rows, gone))
        if mean(spec, rows, config, exact=True) <= target:
            return config
    return config


def typical(batch: Sequence[TaskRows]) -> dict[str, Row]:
    """The mean row of each task."""
    found = {}
    for rows in batch:
        real = round(float(rows.valid.sum(1).float().mean()))
        labels = max(1, round(float((rows.targets >= 0).sum(1).float().mean())))
        found[rows.task] = Row(rows.shape[1], real, labels)
    return found


def to_dict(arm: Arm) -> dict[str, Any]:
    return {"name": arm.name, "about": arm.about, "config": arm.config.to_dict(), "savings": arm.savings.__dict__}
