"""Tables 4 and 5: what each part of FlashU gives and costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from flashu.plan.methods import METHODS
from flashu.plan.recipe import FlashUConfig, Recipe, exact, paper
from flashu.studies.lab.contest import Contender, Place, answering, drawing
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, FAINT, Claim, Result, bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GENERATION = {
    "without layer skipping": "layer_skip",
    "without adaptive guidance": "adaptive_guidance",
    "without head cache": "head_cache",
    "without FFN pruning": "ffn_prune",
}
UNDERSTANDING = {
    "without layer skipping": "layer_skip",
    "without FFN pruning": "ffn_prune",
    "without token pruning": "token_prune",
}


def never_full() -> Recipe:
    """FlashU without the Hybrid FFN: the pruned one to the end."""
    base = paper()
    bare = tuple(replace(m, tau=0.0) if m.name == "ffn_prune" else m for m in base.methods)  # type: ignore[call-arg]
    return replace(base, methods=bare, name="without hybrid")


def only(name: str) -> Recipe:
    """One method of FlashU alone."""
    return paper().without(*(set(METHODS) - {name}))


def contenders() -> list[Contender]:
    """For generation."""
    return [
        Contender("vanilla", exact()),
        Contender("FlashU", paper()),
        *(Contender(label, paper().without(name)) for label, name in GENERATION.items()),
        Contender("without hybrid", never_full()),
        Contender("FFN pruning only", only("ffn_prune")),
        Contender("fewer steps only", FlashUConfig(r_p=0, r_LS=0, T_cache=1, s_low=1).recipe("fewer steps")),
    ]


@dataclass(frozen=True)
class Ablation(Result):
    """Score against speed-up of every variant, one panel per task."""

    title: ClassVar[str] = "Tables 4 and 5: ablation"
    size: ClassVar[tuple[float, float]] = (11.0, 4.8)

    def paint(self, figure: Figure) -> None:
        tasks = list(dict.fromkeys(row["task"] for row in self.table))
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            rows = [row for row in self.table if row["task"] == task]
            for k, row in enumerate(rows):
                value, error = bounds([row], "Overall")
                colour = FAINT if k == 0 else COLOURS[(k - 1) % len(COLOURS)]
                axes.errorbar(
                    row["speed-up"], value[0], yerr=error, fmt="o", color=colour, capsize=2, label=row["method"]
                )
            axes.set_xlabel("speed-up, batch 1")
            axes.set_ylabel("overall score")
            axes.set_title(task, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3)


def ablation(lab: Lab) -> Ablation:
    """Generation on dense prompts, as in the paper; understanding on the five suites."""
    drawn = drawing(lab, lab.dpg, contenders())
    fast = paper()
    asked = answering(
        lab,
        [
            Contender("vanilla", exact()),
            Contender("FlashU", fast),
            *(Contender(label, fast.without(name)) for label, name in UNDERSTANDING.items()),
        ],
    )
    rows = tuple(
        {"task": task} | p.row("Facts" if task == "generation" else "Vision")
        for task, places in (("generation", drawn), ("understanding", asked))
        for p in places
    )
    return Ablation(rows, _claims(drawn), lab.about(images=len(lab.dpg.texts), questions=len(lab.und.items)))


def _claims(drawn: list[Place]) -> tuple[Claim, ...]:
    place = {p.label: p for p in drawn}
    fast, bare = place["FlashU"], place["without hybrid"]
    hybrid = fast.sheet.against(bare.sheet)
    gains = {label: _faster(fast, place[label]) for label in GENERATION}
    most = max(gains, key=lambda label: gains[label])
    pruning = place["FFN pruning only"].speedup
    return (
        Claim(
            "the Hybrid FFN prevents a significant drop",
            f"with it, against without: {hybrid}",
            "yes" if hybrid.significant and hybrid.value > 0 else "no" if hybrid.high < 0.005 else "unclear",
        ),
        Claim(
            "adaptive guidance and layer skipping bring most of the speed",
            f"largest single gain: {most.removeprefix('without ')} ({gains[most]:.2f}x)",
            "yes" if "guidance" in most or "layer" in most else "no",
        ),
        Claim("FFN pruning alone: 1.23x", f"{pruning:.2f}x", "yes" if pruning >= 0.95 * 1.23 else "no"),
    )


def _faster(whole: Place, part: Place) -> float:
    """How much the part left out of ``part`` speeds up the whole."""
    assert whole.pace is not None
    assert part.pace is not None
    return whole.pace.own.speedup(part.pace.own).seconds
