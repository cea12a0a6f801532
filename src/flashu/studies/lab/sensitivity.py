"""Figures 8, 9 and 10: what r_p, r_LS and tau do to speed and score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flashu.evaluation.scenes_drawing import FACTS
from flashu.plan.presets import FlashUConfig
from flashu.studies.lab import figures
from flashu.studies.lab.cases import Case, vanilla
from flashu.studies.lab.compare import compare
from flashu.studies.lab.figures import groups
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds

SWEEPS = {
    "r_p": (0.0, 0.2, 0.4, 0.6, 0.1, 0.3, 0.5),
    "r_LS": (0.0, 0.2, 0.4, 0.1, 0.3, 0.5),
    "tau": (0.1, 0.3, 0.5, 0.2, 0.4, 0.7),
}
"""Settings in order of importance: a reduced run takes the first ones."""


def cases(points: int) -> Iterator[Case]:
    """Each setting varied from the paper's; tau also without adaptive guidance."""
    for name, values in SWEEPS.items():
        for value in sorted(values[:points]):
            yield _case(name, value, "adaptive", FlashUConfig(**{name: value}))  # type: ignore[arg-type]
            if name == "tau":
                yield _case(name, value, "constant", FlashUConfig(tau=value, s_low=1, steps=0))


def _case(name: str, value: float, guidance: str, config: FlashUConfig) -> Case:
    label = f"{name}={value:g}, {guidance} guidance"
    return Case(label, config.recipe(label), cells={"setting": name, "guidance": guidance, "value": value})


def sensitivity(lab: Lab) -> Result:
    """Speed and score on dense prompts."""
    swept = [replace(case, recipe=lab.fitted(case.recipe)) for case in cases(lab.size.points)]
    base, *outcomes = compare(lab, lab.dpg, [vanilla(), *swept])
    rows = [outcome.row(FACTS) for outcome in outcomes]
    about = lab.about(vanilla=base.scores.overall.value, images=len(lab.dpg.texts))
    return Result("Figures 8 to 10: sensitivity", rows, _claims(rows), about, figures.sensitivity, 4.0)


def _claims(rows: list[Row]) -> list[Claim]:
    by = groups(rows, "setting")
    pruned = [r for r in by["r_p"] if r["value"] <= 0.2]
    beyond = [r for r in by["r_LS"] if r["value"] > 0.2]
    worst = min(beyond, key=lambda r: r["Overall"]) if beyond else None
    best = max(r["Overall"] for r in by["r_LS"] if r["value"] <= 0.2)
    strategies = groups(by["tau"], "guidance")
    pairs = list(zip(strategies["adaptive"], strategies["constant"], strict=True))
    both = sum(a["speed-up"] > c["speed-up"] and a["Overall"] >= c["Overall"] for a, c in pairs)
    return [
        Claim(
            "up to r_p = 0.2 FFN pruning costs nothing",
            ", ".join(f"{r['value']:g}: {r['Overall']:.3f}" for r in pruned),
            holds(max(r["Overall"] for r in pruned) - pruned[-1]["Overall"] < 0.01, no=False),
        ),
        Claim(
            "the score collapses for r_LS beyond 0.2",
            "not measured" if worst is None else f"{best:.3f} up to 0.2, {worst['Overall']:.3f} at {worst['value']:g}",
            "unclear" if worst is None else holds(worst["Overall high"] < best - 0.05),
        ),
        Claim(
            "adaptive guidance with fewer steps is faster and better than a constant scale at every tau",
            f"both at {both} of {len(pairs)} settings of tau",
            holds(both == len(pairs), both == 0),
        ),
    ]
