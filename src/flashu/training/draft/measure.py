"""How many drafted tokens are accepted: counted on real answers, free of any clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashu.inference.engine import Engine
from flashu.inference.results import Answer
from flashu.inference.speculate import SelfDrafter, Speculation
from flashu.plan.methods import LayerSkip
from flashu.plan.methods.layer_skip import most_similar
from flashu.plan.recipe import Recipe
from flashu.training.draft.answers import Asked


@dataclass(frozen=True)
class Acceptance:
    """Counts over ``answers``: forwards that verified, tokens that they gave, and by position of a chain the drafted
    tokens that stood behind accepted ones alone (``tried``), and those accepted."""

    answers: int
    forwards: int
    given: int
    tried: tuple[int, ...]
    accepted: tuple[int, ...]
    by_answer: tuple[tuple[int, int], ...]
    """(tokens given, forwards) of each answer."""

    @property
    def tokens(self) -> float:
        """Tokens per forward that verified."""
        return self.given / max(self.forwards, 1)

    @property
    def rates(self) -> list[float]:
        return [a / max(t, 1) for a, t in zip(self.accepted, self.tried, strict=True)]

    def interval(self) -> tuple[float, float]:
        """95 % of `tokens`, answers taken as the unit: of a ratio of means, by its linearization."""
        n, mean = self.answers, self.tokens
        if n < 2 or not self.forwards:
            return mean, mean
        spread = sum((given - mean * count) ** 2 for given, count in self.by_answer) / (n - 1)
        half = 1.96 * (spread / n) ** 0.5 / (self.forwards / n)
        return mean - half, mean + half


def acceptance(answers: Sequence[Answer]) -> Acceptance:
    """Of answers with drafts."""
    tried: dict[int, int] = {}
    accepted: dict[int, int] = {}
    by_answer = []
    for answer in answers:
        given = forwards = 0
        for trace in answer.trace:
            if trace.step.kind != "verify" or trace.plan.draft is None:
                continue
            left = len(answer.tokens) - trace.step.index + (len(answer.tokens) < trace.step.total)
            used = min(trace.accepted + 1, left)
            given, forwards = given + used, forwards + 1
            for place in range(min(trace.plan.draft.length, used)):
                tried[place] = tried.get(place, 0) + 1
                accepted[place] = accepted.get(place, 0) + (place < trace.accepted)
        by_answer.append((given, forwards))
    places = range(len(tried))
    return Acceptance(
        len(answers),
        sum(count for _, count in by_answer),
        sum(given for given, _ in by_answer),
        tuple(tried[n] for n in places),
        tuple(accepted[n] for n in places),
        tuple(by_answer),
    )


def measured(
    engine: Engine, speculation: Speculation, asked: Sequence[Asked], *, limit: int | None = None, batch: int = 64
) -> Acceptance:
    """What is accepted of a draft where the engine answers some questions."""
    drafting = Engine.of(engine.model, engine.processor, engine.prepared, speculation)
    answers: list[Answer] = []
    for at in range(0, len(asked), batch):
        answers += drafting.respond([one.request(limit) for one in asked[at : at + batch]])
    return acceptance(answers)


def shorter(engine: Engine, asked: Sequence[Asked], *, most: int = 8, limit: int | None = None) -> list[int]:
    """The layers that the model leaves out to draft for itself: those whose output is most like their input at the
    end of some questions, as many as make the most tokens per time."""
    count = engine.model.spec.layers
    probing = engine.with_recipe(Recipe((LayerSkip("understanding", 0.5, 1, 0),), "probe"))
    probes = [answer.trace[0].similarity for answer in probing.respond([one.request(1) for one in asked])]
    mean = tuple(sum(values) / len(values) for values in zip(*(p for p in probes if p is not None), strict=True))
    best, chosen = 0.0, [0]
    for number in range(1, count - 1):
        skip = sorted(most_similar(mean, (number + 0.5) / count))
        drafter = SelfDrafter.skipping(engine.model, skip)
        found = measured(engine, Speculation(drafter, most, adapt=False), asked, limit=limit)
        chain = speed = tokens = 1.0
        for place, rate in enumerate(found.rates, start=1):
            chain *= rate
            tokens += chain
            speed = max(speed, tokens / (1 + place * drafter.cost))
        if speed > best:
            best, chosen = speed, skip
    return chosen
