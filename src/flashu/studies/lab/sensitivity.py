"""Figures 8, 9 and 10: what r_p, r_LS and tau do to speed and score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flashu.plan.recipe import FlashUConfig, exact
from flashu.studies.lab.contest import Contender, drawing
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, INK, Claim, Result, Row, bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEPS = {
    "r_p": (0.0, 0.2, 0.4, 0.6, 0.1, 0.3, 0.5),
    "r_LS": (0.0, 0.2, 0.4, 0.1, 0.3, 0.5),
    "tau": (0.1, 0.3, 0.5, 0.2, 0.4, 0.7),
}
"""Settings in order of importance: a reduced run takes the first ones."""
FIGURES = {"r_p": "Figure 8", "r_LS": "Figure 9", "tau": "Figure 10"}


def settings(points: int) -> Iterator[tuple[str, str, float, FlashUConfig]]:
    """(sweep, guidance strategy, value, settings)."""
    for value in sorted(SWEEPS["r_p"][:points]):
        yield "r_p", "adaptive", value, FlashUConfig(r_p=value)
    for value in sorted(SWEEPS["r_LS"][:points]):
        yield "r_LS", "adaptive", value, FlashUConfig(r_LS=value)
    for value in sorted(SWEEPS["tau"][:points]):
        yield "tau", "adaptive", value, FlashUConfig(tau=value)
        yield "tau", "constant", value, FlashUConfig(tau=value, s_low=1, steps=0)


@dataclass(frozen=True)
class Sensitivity(Result):
    """Score (line with interval) and speed-up (dashed) over each setting."""

    title: ClassVar[str] = "Figures 8 to 10: sensitivity"
    size: ClassVar[tuple[float, float]] = (11.0, 4.0)

    def paint(self, figure: Figure) -> None:
        for axes, sweep in zip(figure.subplots(1, 3), SWEEPS, strict=True):
            fast = axes.twinx()
            kinds = list(dict.fromkeys(r["guidance"] for r in self.table if r["setting"] == sweep))
            for colour, kind in zip(COLOURS, kinds, strict=False):
                rows = [r for r in self.table if r["setting"] == sweep and r["guidance"] == kind]
                x = [r["value"] for r in rows]
                values, errors = bounds(rows, "Overall")
                axes.errorbar(
                    x, values, yerr=errors, color=colour, marker="o", capsize=2, label=f"score, {kind} guidance"
                )
                fast.plot(x, [r["speed-up"] for r in rows], color=colour, marker="s", ls="--", alpha=0.6)
            axes.axhline(self.about["vanilla"], color=INK, lw=0.8, ls=":")
            axes.set_xlabel(sweep)
            axes.set_title(FIGURES[sweep], loc="left")
            axes.set_ylabel("dense-prompt score (dots: vanilla)")
            fast.set_ylabel("speed-up (dashed)")
            axes.legend(frameon=False, fontsize=7.5)


def sensitivity(lab: Lab) -> Sensitivity:
    """Each setting varied from the paper's, on dense prompts."""
    chosen = list(settings(lab.size.points))
    names = [f"{sweep}={value:g}, {kind} guidance" for sweep, kind, value, _ in chosen]
    field = [
        Contender("vanilla", exact()),
        *(Contender(n, c.recipe(n)) for n, (_, _, _, c) in zip(names, chosen, strict=True)),
    ]
    places = drawing(lab, lab.dpg, field)
    rows: list[Row] = []
    for (sweep, kind, value, _), place in zip(chosen, places[1:], strict=True):
        rows.append({"setting": sweep, "guidance": kind, "value": value} | place.row("Facts"))
    score = {(r["setting"], r["guidance"], r["value"]): r for r in rows}
    return Sensitivity(
        tuple(rows), _claims(score), lab.about(vanilla=places[0].sheet.overall.value, images=len(lab.dpg.texts))
    )


def _claims(found: dict[tuple[str, str, float], Row]) -> tuple[Claim, ...]:
    pruned = [found[k] for k in found if k[0] == "r_p" and k[2] <= 0.2]
    skipped = sorted((k[2], r) for k, r in found.items() if k[0] == "r_LS")
    beyond = [r for value, r in skipped if value > 0.2]
    fine = [r for value, r in skipped if value <= 0.2]
    worst = min(beyond, key=lambda r: r["Overall"]) if beyond else None
    best = max(r["Overall"] for r in fine)
    at = sorted({k[2] for k in found if k[0] == "tau"})
    pairs = [(found["tau", "adaptive", v], found["tau", "constant", v]) for v in at]
    both = sum(a["speed-up"] > c["speed-up"] and a["Overall"] >= c["Overall"] for a, c in pairs)
    return (
        Claim(
            "up to r_p = 0.2 FFN pruning costs nothing",
            ", ".join(f"{r['value']:g}: {r['Overall']:.3f}" for r in pruned),
            "yes" if max(r["Overall"] for r in pruned) - pruned[-1]["Overall"] < 0.01 else "unclear",
        ),
        Claim(
            "the score collapses for r_LS beyond 0.2",
            "not measured" if worst is None else f"{best:.3f} up to 0.2, {worst['Overall']:.3f} at {worst['value']:g}",
            "unclear" if worst is None else "yes" if worst["Overall high"] < best - 0.05 else "no",
        ),
        Claim(
            "adaptive guidance with fewer steps is faster and better than a constant scale at every tau",
            f"both at {both} of {len(pairs)} settings of tau",
            "yes" if both == len(pairs) else "no" if both == 0 else "unclear",
        ),
    )
