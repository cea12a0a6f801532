"""What a comparison measured, item by item, and the numbers that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from PIL import Image

from flashu.evaluation.statistics import Paired, Rate, mcnemar, wilson


@dataclass(frozen=True, eq=False)
class Drawn:
    """One image. ``seen``: what the detector found. ``seconds``: from prompt to picture."""

    category: str
    prompt: str
    seed: int
    image: Image.Image
    right: bool
    seen: str
    seconds: float
    forwards: int
    passes: int
    flops: int


@dataclass(frozen=True, eq=False)
class Answered:
    """One answer. ``verdict``: its last word, which is compared with ``truth``."""

    kind: str
    question: str
    truth: str
    image: Image.Image
    text: str
    verdict: str
    right: bool
    seconds: float
    forwards: int
    flops: int


@dataclass(frozen=True, eq=False)
class Side:
    """One recipe's results. ``answered`` is empty for a recipe that answers exactly as another does."""

    name: str
    recipe: dict[str, Any]
    drawn: list[Drawn] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)

    @property
    def score(self) -> Rate:
        return wilson(sum(d.right for d in self.drawn), len(self.drawn))

    @property
    def accuracy(self) -> Rate | None:
        return wilson(sum(a.right for a in self.answered), len(self.answered)) if self.answered else None

    @property
    def image_seconds(self) -> float:
        return median(d.seconds for d in self.drawn)

    @property
    def answer_seconds(self) -> float | None:
        return median(a.seconds for a in self.answered) if self.answered else None

    @property
    def image_flops(self) -> float:
        return fmean(d.flops for d in self.drawn)

    @property
    def answer_flops(self) -> float | None:
        return fmean(a.flops for a in self.answered) if self.answered else None

    def numbers(self) -> dict[str, Any]:
        accuracy = self.accuracy
        return {
            "images": len(self.drawn),
            "image_seconds_median": self.image_seconds,
            "image_forwards": fmean(d.forwards for d in self.drawn),
            "image_decoder_passes": fmean(d.passes for d in self.drawn),
            "image_gflops_mean": self.image_flops / 1e9,
            "generation_score": _rate(self.score),
            "questions": len(self.answered),
            "answer_seconds_median": self.answer_seconds,
            "answer_gflops_mean": None if self.answer_flops is None else self.answer_flops / 1e9,
            "answer_accuracy": None if accuracy is None else _rate(accuracy),
        }


@dataclass(frozen=True, eq=False)
class Result:
    """All recipes on the same items. ``about``: hardware, versions, settings, times; JSON-ready."""

    sides: list[Side]
    baseline: str
    about: dict[str, Any]

    def side(self, name: str) -> Side:
        return next(s for s in self.sides if s.name == name)

    @property
    def base(self) -> Side:
        return self.side(self.baseline)

    @property
    def fast(self) -> Side:
        """The recipe the demo is about: the last."""
        return self.sides[-1]

    def drawn_pairs(self) -> list[tuple[Drawn, Drawn]]:
        """(baseline, fast) of every prompt, by category."""
        order = list(by_group(self.base.drawn, "category"))
        pairs = zip(self.base.drawn, self.fast.drawn, strict=True)
        return sorted(pairs, key=lambda pair: order.index(pair[0].category))

    def answered_pairs(self) -> list[tuple[Answered, Answered]]:
        """(baseline, fast) of every question, by kind."""
        order = list(by_group(self.base.answered, "kind"))
        pairs = zip(self.base.answered, self.fast.answered, strict=True)
        return sorted(pairs, key=lambda pair: order.index(pair[0].kind))

    def image_speedup(self, side: Side) -> float:
        return self.base.image_seconds / side.image_seconds

    def answer_speedup(self, side: Side) -> float | None:
        mine, base = side.answer_seconds, self.base.answer_seconds
        return None if mine is None or base is None else base / mine

    def images_paired(self, side: Side) -> Paired:
        return mcnemar([d.right for d in self.base.drawn], [d.right for d in side.drawn])

    def answers_paired(self, side: Side) -> Paired | None:
        if not side.answered:
            return None
        return mcnemar([a.right for a in self.base.answered], [a.right for a in side.answered])

    def decomposition(self) -> list[tuple[str, float, float]]:
        """(what, baseline, fast) of an image, from what is planned to what the clock says."""
        base, fast = self.base, self.fast
        return [
            ("forwards", fmean(d.forwards for d in base.drawn), fmean(d.forwards for d in fast.drawn)),
            ("forwards through the decoder", fmean(d.passes for d in base.drawn), fmean(d.passes for d in fast.drawn)),
            ("GFLOPs", base.image_flops / 1e9, fast.image_flops / 1e9),
            ("milliseconds", base.image_seconds * 1e3, fast.image_seconds * 1e3),
        ]

    def to_dict(self) -> dict[str, Any]:
        recipes = {}
        for side in self.sides:
            pairs = {"images": _paired(self.images_paired(side))}
            answers = self.answers_paired(side)
            if answers is not None:
                pairs["answers"] = _paired(answers)
            speed = {"image_speedup": self.image_speedup(side), "answer_speedup": self.answer_speedup(side)}
            recipes[side.name] = side.numbers() | speed | {f"against_{self.baseline}": pairs, "recipe": side.recipe}
        return {"about": self.about, "baseline": self.baseline, "recipes": recipes, "items": self._items()}

    def _items(self) -> dict[str, Any]:
        left_out = {"image"}
        return {
            side.name: {
                "drawn": [_plain(d, left_out) for d in side.drawn],
                "answered": [_plain(a, left_out) for a in side.answered],
            }
            for side in self.sides
        }


def by_group(items: Sequence[Any], group: str) -> dict[str, tuple[int, int]]:
    """(right, all) of each category or kind, in order."""
    table: dict[str, tuple[int, int]] = {}
    for item in items:
        right, n = table.get(getattr(item, group), (0, 0))
        table[getattr(item, group)] = (right + item.right, n + 1)
    return table


def _plain(item: Any, left_out: set[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__ if name not in left_out}


def _rate(rate: Rate) -> dict[str, float]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "hits": rate.hits, "n": rate.n}


def _paired(paired: Paired) -> dict[str, float]:
    return {"lost": paired.lost, "won": paired.won, "same": paired.same, "mcnemar_p": paired.p}
