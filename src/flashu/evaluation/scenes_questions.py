"""scenes-und: five suites of questions about held-out scenes, in the spirit of the paper's Table 1.

MME-like: a yes and a no question about each scene; acc counts questions, acc+ scenes with both right. GQA-like:
attributes, relations and comparisons in scenes of three or more objects. MMBench-like: multiple choice, circular. The
model's vocabulary has no words for lettered options, and ranking answers by likelihood would not depend on the order
of the options at all; so rotation k puts option k forward ("is there a red circle?"), and an item is right only if
every rotation is answered rightly. Counting. Vision-needed: each question is asked about two scenes with different
answers, so no guess from the words alone passes one half; "Blind" asks the same about an empty scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flashu.evaluation.scenes_items import SceneQuestion
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import ItemScore
from flashu.scenes import questions as ask
from flashu.scenes.questions import QUESTION_KINDS, Question, verdict, verdicts
from flashu.scenes.sampler import held_scene
from flashu.scenes.split import held_pairs
from flashu.scenes.world import SCENES, WORLDS, Scene, World, place

MME, MME_PLUS, GQA, MMB, COUNT, VISION, BLIND = (
    "MME acc", "MME acc+", "GQA", "MMB circular", "Counting", "Vision", "Blind",
)  # fmt: skip
SUITES = (MME, GQA, MMB, COUNT, VISION)


@dataclass(frozen=True)
class SuiteItem:
    """A question with its right answer. Questions of one ``group`` belong together."""

    text: str
    scene: Scene
    truth: str
    suite: str
    group: str

    @classmethod
    def of(cls, question: Question, suite: str, number: int) -> SuiteItem:
        return cls(question.text, question.scene, question.verdict, suite, f"{suite} {number}")


def _question(kind: str, want: str, rng: np.random.Generator, scene: Callable[[], Scene]) -> Question:
    """The first question of this kind and answer that a random scene allows."""
    while True:
        found = ask.ask(kind, scene(), want, rng)
        if found is not None:
            return found


def _crowded(rng: np.random.Generator, world: World) -> Scene:
    while True:
        scene = held_scene(rng, world)
        if len(scene.objects) > 2:
            return scene


def _mme(n: int, seed: int, world: World) -> list[SuiteItem]:
    rng = np.random.default_rng((seed, 301))
    made: list[SuiteItem] = []
    for k in range(max(1, n // 2)):
        kind = ("exist", "position", "compare")[k % 3]
        no = None
        while no is None:
            yes = _question(kind, "yes", rng, lambda: held_scene(rng, world))
            tries = (ask.ask(kind, yes.scene, "no", rng) for _ in range(20))
            no = next((q for q in tries if q is not None), None)
        made += [SuiteItem.of(q, MME, k) for q in (yes, no)]
    return made


def _gqa(n: int, seed: int, world: World) -> list[SuiteItem]:
    rng = np.random.default_rng((seed, 302))
    kinds = ("colour", "shape", "position", "compare")
    made = []
    for k in range(n):
        kind, turn = kinds[k % len(kinds)], k // len(kinds)
        options = verdicts(kind, world)
        want = options[turn % len(options)]
        made.append(SuiteItem.of(_question(kind, want, rng, lambda: _crowded(rng, world)), GQA, k))
    return made


def _mmb(n: int, seed: int, world: World) -> list[SuiteItem]:
    """Which colour has the only object of a shape, or which shape the only object of a colour: four options each."""
    rng = np.random.default_rng((seed, 303))
    made: list[SuiteItem] = []
    for k in range(n):
        colours = k % 2 == 0
        kind = "colour" if colours else "shape"
        values = verdicts(kind, world)
        right = str(rng.choice(values))
        scene = _question(kind, right, rng, lambda: _crowded(rng, world)).scene
        # The object asked about: the only one of its shape (or colour).
        about = next(
            o
            for o in scene.objects
            if (o.colour if colours else o.shape) == right
            and len(scene.matching(o.shape, None) if colours else scene.matching(None, o.colour)) == 1
        )
        wrong = [str(w) for w in rng.permutation([w for w in values if w != right])[:3]]
        options = [(right, "yes"), *((w, "no") for w in wrong)]
        for i in rng.permutation(len(options)):
            option, truth = options[i]
            noun = f"{option} {about.shape}" if colours else f"{about.colour} {option}"
            made.append(SuiteItem(f"is there a {noun}?", scene, truth, MMB, f"{MMB} {k}"))
    return made


def _counting(n: int, seed: int, world: World) -> list[SuiteItem]:
    rng = np.random.default_rng((seed, 304))
    wants = [world.numbers[k % len(world.numbers)] for k in range(n)]
    made = [_question("count", want, rng, lambda: held_scene(rng, world)) for want in wants]
    return [SuiteItem.of(q, COUNT, k) for k, q in enumerate(made)]


def _vision(n: int, seed: int, world: World) -> list[SuiteItem]:
    rng = np.random.default_rng((seed, 305))
    waiting: dict[tuple[str, str], dict[str, Question]] = {}
    pairs = sorted(sorted(pair) for pair in held_pairs(world))
    made: list[SuiteItem] = []
    for k in range(max(1, n // 2)):
        kind = QUESTION_KINDS[k % len(QUESTION_KINDS)]
        found: dict[str, Question] = {}
        while len(found) < 2:
            # Relations meet again soon only among few objects.
            if kind == "position":
                scene = place(pairs[int(rng.integers(len(pairs)))], rng, world=world)
            else:
                scene = held_scene(rng, world)
            want = str(rng.choice(verdicts(kind, world)))
            q = ask.ask(kind, scene, want, rng)
            if q is None:
                continue
            found = waiting.setdefault((kind, q.text), {})
            found.setdefault(q.verdict, q)
        chosen = list(found.values())
        del waiting[kind, chosen[0].text]
        made += [SuiteItem.of(q, VISION, k) for q in chosen]
    return made


WORDS = frozenset(word for world in WORLDS.values() for kind in QUESTION_KINDS for word in verdicts(kind, world))


def read(text: str) -> str | None:
    """The verdict of an answer: the word after "so", as the scenes model answers, else the first word that could be
    one ("Yes, there is.")."""
    found = verdict(text)
    if found is not None:
        return found
    words = (word.strip(".,!?:;\"'") for word in text.lower().split())
    return next((word for word in words if word in WORDS), None)


@dataclass(frozen=True)
class QuestionSuite:
    """The five suites and, at the end of `questions`, the vision-needed ones again about an empty scene."""

    items: tuple[SuiteItem, ...]

    @classmethod
    def make(cls, n: int = 300, seed: int = 0, world: World = SCENES) -> QuestionSuite:
        """About n items per suite: n questions in pairs for MME and vision, n for GQA and counting, n/2 choices."""
        suites = ((_mme, n), (_gqa, n), (_mmb, max(1, n // 2)), (_counting, n), (_vision, n))
        return cls(tuple(item for suite, count in suites for item in suite(count, seed, world)))

    @property
    def blind(self) -> list[SuiteItem]:
        return [item for item in self.items if item.suite == VISION]

    @property
    def questions(self) -> list[SceneQuestion]:
        return [(item.text, item.scene) for item in self.items] + [(item.text, None) for item in self.blind]

    def score(self, answers: Sequence[str]) -> ScoreTable:
        """Scores of the answers' texts, in the order of `questions`; those about an empty scene may be left out."""
        if len(answers) not in (len(self.items), len(self.questions)):
            raise ValueError(f"{len(answers)} answers to {len(self.questions)} questions")
        columns: dict[str, list[ItemScore]] = {c: [] for c in (MME, MME_PLUS, GQA, MMB, COUNT, VISION, BLIND)}
        groups: dict[tuple[str, str], list[bool]] = {}
        for item, text in zip(self.items, answers, strict=False):
            right = read(text) == item.truth
            groups.setdefault((item.suite, item.group), []).append(right)
            if item.suite != MMB:
                columns[item.suite].append(ItemScore(item.group, float(right)))
        for (suite, group), each in groups.items():
            if suite in (MME, MMB):
                columns[MME_PLUS if suite == MME else MMB].append(ItemScore(group, float(all(each))))
        for item, text in zip(self.blind, answers[len(self.items) :], strict=False):
            columns[BLIND].append(ItemScore(item.group, float(read(text) == item.truth)))
        return ScoreTable({column: scores for column, scores in columns.items() if scores}, SUITES)
