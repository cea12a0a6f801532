"""The demo's measurements, item by item, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean, median
from typing import Any, TypeVar

from flashu.demo.items import Item
from flashu.evaluation.statistics import Paired, Rate, mcnemar, wilson

T = TypeVar("T")
Pair = tuple[Item, Item]


@dataclass(frozen=True, eq=False)
class RecipeResult:
    """The results of one recipe, or of the original program."""

    name: str
    recipe: dict[str, Any]
    drawn: list[Item] = field(default_factory=list)
    answered: list[Item] = field(default_factory=list)
    edited: list[Item] = field(default_factory=list)
    """Nothing where the model does not edit."""

    @property
    def score(self) -> Rate:
        return _right(self.drawn)

    @property
    def edit_score(self) -> Rate:
        return _right(self.edited)

    @property
    def accuracy(self) -> Rate:
        return _right(self.answered)

    def numbers(self) -> dict[str, Any]:
        edits = (
            {
                "edits": len(self.edited),
                "edit_seconds_median": median(item.seconds for item in self.edited),
                "edit_forwards": fmean(item.forwards for item in self.edited),
                "edit_decoder_passes": fmean(item.passes for item in self.edited),
                "edit_score": _rate(self.edit_score),
            }
            if self.edited
            else {}
        )
        return edits | {
            "images": len(self.drawn),
            "image_seconds_median": median(item.seconds for item in self.drawn),
            "image_forwards": fmean(item.forwards for item in self.drawn),
            "image_decoder_passes": fmean(item.passes for item in self.drawn),
            "image_gflops_mean": fmean(item.flops for item in self.drawn) / 1e9,
            "generation_score": _rate(self.score),
            "questions": len(self.answered),
            "answer_seconds_median": median(item.seconds for item in self.answered),
            "answer_gflops_mean": fmean(item.flops for item in self.answered) / 1e9,
            "answer_accuracy": _rate(self.accuracy),
        }

    def to_dict(self) -> dict[str, Any]:
        """Every item, without its images."""
        names = [f.name for f in fields(Item) if f.name not in ("image", "source")]
        every = {"drawn": self.drawn, "answered": self.answered, "edited": self.edited}
        return {what: [{name: getattr(item, name) for name in names} for item in done] for what, done in every.items()}


@dataclass(frozen=True, eq=False)
class Result:
    """All recipes of one model on the same items. ``about``: the model, hardware, versions, settings, times;
    JSON-ready."""

    recipes: list[RecipeResult]
    about: dict[str, Any]

    @property
    def base(self) -> RecipeResult:
        """The baseline: the first."""
        return self.recipes[0]

    @property
    def fast(self) -> RecipeResult:
        """The recipe the demo is about: the last."""
        return self.recipes[-1]

    @property
    def edits(self) -> bool:
        return bool(self.base.edited)

    def edited_pairs(self) -> dict[str, list[Pair]]:
        """(baseline, fast) of every edit, by kind."""
        return grouped(zip(self.base.edited, self.fast.edited, strict=True), lambda pair: pair[0].group)

    def drawn_pairs(self) -> dict[str, list[Pair]]:
        """(baseline, fast) of every prompt, by category."""
        return grouped(zip(self.base.drawn, self.fast.drawn, strict=True), lambda pair: pair[0].group)

    def answered_pairs(self) -> dict[str, list[Pair]]:
        """(baseline, fast) of every question, by kind."""
        return grouped(zip(self.base.answered, self.fast.answered, strict=True), lambda pair: pair[0].group)

    def speedup(self, recipe: RecipeResult, what: str) -> float:
        """Over the baseline; ``what``: image, answer or edit."""
        name = f"{what}_seconds_median"
        return self.base.numbers()[name] / recipe.numbers()[name]

    def paired(self, recipe: RecipeResult) -> dict[str, Paired]:
        """What changed from the baseline, item by item."""
        every = {"images": (self.base.drawn, recipe.drawn), "answers": (self.base.answered, recipe.answered)}
        if self.edits:
            every["edits"] = (self.base.edited, recipe.edited)
        return {what: mcnemar([a.right for a in old], [b.right for b in new]) for what, (old, new) in every.items()}

    def to_dict(self) -> dict[str, Any]:
        recipes = {}
        for recipe in self.recipes:
            pairs = {
                name: {"lost": p.lost, "won": p.won, "same": p.same, "mcnemar_p": p.p}
                for name, p in self.paired(recipe).items()
            }
            kinds = ("image", "answer", "edit") if self.edits else ("image", "answer")
            speed = {f"{what}_speedup": self.speedup(recipe, what) for what in kinds}
            more = {f"against_{self.base.name}": pairs, "recipe": recipe.recipe}
            recipes[recipe.name] = recipe.numbers() | speed | more
        items = {recipe.name: recipe.to_dict() for recipe in self.recipes}
        return {"about": self.about, "baseline": self.base.name, "recipes": recipes, "items": items}


def grouped(items: Iterable[T], group: Callable[[T], str]) -> dict[str, list[T]]:
    """The items of each group; groups in the order in which they first occur."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    return groups


def _right(items: Sequence[Item]) -> Rate:
    return wilson(sum(item.right for item in items), len(items))


def _rate(rate: Rate) -> dict[str, float]:
    return {"value": rate.value, **asdict(rate)}
