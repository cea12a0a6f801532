"""The tuner on the tiny engine with stubbed scores; budgets, study files, and the presets it shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from typer.testing import CliRunner

import flashu
from flashu.cli.main import app
from flashu.errors import FlashUError, RecipeError
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import ItemScore, Spread
from flashu.models.weights import checkpoint_hash
from flashu.plan import TASKS, Task
from flashu.plan.presets import TUNED, Target, load_recipe, paper
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab.lab import Lab
from flashu.studies.tuner import preset, space, tuner
from flashu.studies.tuner.budget import Budget
from flashu.studies.tuner.scorer import Scorer, merged
from flashu.studies.tuner.search import Search, candidates


class Stub:
    """Scores a recipe by its methods' number: the more, the worse, of twenty items a round."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def score(self, recipe: Recipe, number: int) -> ScoreTable:
        self.seen.append(number)
        wrong = 4 * len(recipe.methods)
        return ScoreTable({"all": [ItemScore((number, k), float(k >= wrong)) for k in range(20)]}, ("all",))


def search(task: Task = "generation", budget: str = "score >= 0.5 of vanilla", scorer: Any = None) -> Search:
    cost = lambda recipe: 1 / (1 + len(recipe.methods))  # noqa: E731
    return Search(scorer or Stub(), task, 4, Budget.parse(budget), cost, rounds=3)


@given(st.integers(1, 1000), st.booleans(), st.sampled_from(["", " ", "  "]))
def test_budgets_are_read(thousandths: int, relative: bool, gap: str) -> None:
    least = thousandths / 1000
    text = f"score{gap}>={gap}{least}" + (" of vanilla" if relative else "")
    found = Budget.parse(text)
    assert found == Budget(least, relative)
    assert Budget.parse(str(found)) == found
    assert found.need(0.5) == (least * 0.5 if relative else least)


@given(st.text(max_size=30))
def test_other_words_are_no_budget(text: str) -> None:
    with pytest.raises(FlashUError, match="is no budget"):
        Budget.parse("s" + text)


@pytest.mark.parametrize(
    "text", ["", "0.98", "score > 0.9", "score >= 0", "score >= 1.2 of vanilla", "score >= 0.9 of paper", "score>=nan"]
)
def test_near_misses_are_no_budget(text: str) -> None:
    with pytest.raises(FlashUError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize("task", TASKS)
def test_every_known_start_is_in_the_space(task: Task) -> None:
    class Given:
        def __init__(self, params: dict[str, Any]) -> None:
            self.params, self.used = params, set[str]()

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            assert self.params[name] in choices
            self.used.add(name)
            return self.params[name]

    drafted = []
    for params in space.known(task):
        given = Given(params)
        drafted.append(space.draft(given, task, 12))
        assert given.used == set(params)
    assert drafted[0].methods == ()
    assert len(drafted[1].methods) >= 3


@given(st.data(), st.sampled_from(TASKS))
def test_every_recipe_of_the_space_is_one(data: st.DataObject, task: Task) -> None:
    """Whatever is chosen, no two methods want to write the same: the number of forwards, for one."""

    class Drawn:
        def suggest_categorical(self, name: str, choices: Any) -> Any:
            return data.draw(st.sampled_from(choices), label=name)

    recipe = space.draft(Drawn(), task, 12)
    assert recipe.of(task) == recipe.methods
    assert recipe.forwards(50) <= 50


def test_a_search_is_resumed_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    first = search()
    study = first.study(path)
    ticks: list[int] = []
    first.run(study, 3, lambda: ticks.append(len(study.trials)))
    assert len(ticks) == 3
    before = [t.recipe for t in candidates(study)]
    second = search()
    again = second.study(path)
    assert [t.recipe for t in candidates(again)] == before
    second.run(again, 3)  # already there
    assert not second.vanilla
    second.run(again, 5)
    assert sum(t.state.is_finished() for t in again.trials) == 5
    assert candidates(again)[0].recipe == replace(exact(), name="tuned")


def test_an_interrupted_trial_is_tried_again_and_not_counted(tmp_path: Path) -> None:
    class Interrupted(Stub):
        def score(self, recipe: Recipe, number: int) -> ScoreTable:
            if len(self.seen) == 7:
                raise KeyboardInterrupt
            return super().score(recipe, number)

    path = tmp_path / "study.log"
    first = search(scorer=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        first.run(first.study(path), 3)
    study = search().study(path)
    begun = study.trials[2].params
    tried: list[int] = []
    search().run(study, 3, lambda: tried.append(len(candidates(study))))
    assert tried == [3]
    complete = [t.params for t in study.trials if t.state.name == "COMPLETE"]
    assert complete[2] == begun == space.known("generation")[2]
    assert len(complete) == 3
    search().run(study, 10)
    complete = [t.params for t in study.trials if t.state.name == "COMPLETE"]
    assert complete[:9] == space.known("generation")
    assert len(complete) == 10


def test_hopeless_recipes_are_stopped_early_and_never_chosen() -> None:
    scorer = Stub()
    lookup = search(budget="score >= 0.9 of vanilla", scorer=scorer)
    bad = lookup.measure(paper(), range(3))
    assert (bad.stopped, bad.rounds) == (True, 1)
    assert not lookup.keeps(bad, range(3))
    good = lookup.measure(exact(), range(3))
    assert (good.stopped, good.rounds, good.score.n, good.difference.value) == (False, 3, 60, 0)
    whole = lookup.measure(paper(), range(3), early=False)
    assert (whole.stopped, whole.rounds) == (False, 3)
    study = lookup.study(None)
    lookup.run(study, 4)
    assert [t.recipe.methods for t in lookup.finalists(study, 3)] == [()]
    assert lookup.frontier(study)[-1].cost == 1


@pytest.mark.parametrize("task", TASKS)
def test_recipes_that_ask_too_much_of_a_model_are_passed_over(task: Task) -> None:
    lookup = search(task)

    small = replace(tiny_model().spec, layers=4, head_blocks=0)

    def cost(recipe: Recipe) -> float:
        recipe.check(small)  # too few layers to skip a tenth, no head to cache
        return 1 / (1 + len(recipe.methods))

    lookup = replace(lookup, cost=cost)
    study = lookup.study(None)
    lookup.run(study, 30)
    states = [t.state.name for t in study.trials]
    assert (len(states), set(states)) == (30, {"COMPLETE", "PRUNED"})
    assert len(candidates(study)) >= 3


def test_a_budget_nothing_keeps() -> None:
    class Worse(Stub):
        def score(self, recipe: Recipe, number: int) -> ScoreTable:
            return ScoreTable({"all": [ItemScore(k, 0.5) for k in range(9)]}, ("all",))

    lookup = search(budget="score >= 0.9", scorer=Worse())
    study = lookup.study(None)
    lookup.run(study, 2)
    with pytest.raises(FlashUError, match="no recipe tried keeps score"):
        lookup.finalists(study, 2)


@pytest.mark.parametrize("task", TASKS)
def test_from_search_to_preset_file(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command end to end on a random model, the scores stubbed and the clock too."""
    model = tiny_model()
    assert model.processor is not None
    engine = flashu.Engine(model, model.processor)
    monkeypatch.setattr("flashu.cli.tune.open_engine", lambda *_: engine)
    monkeypatch.setattr(tuner, "Scorer", lambda *_: Stub())
    monkeypatch.setattr(Lab, "times", lambda self, engines, task: dict.fromkeys(engines, Spread.of([1.0])))
    monkeypatch.setattr(Lab, "engine_of", lambda self, recipe, calibration=None: engine.with_recipe(recipe))
    run, words = CliRunner(), ["tune", "--task", task, "--budget", "score >= 0.5 of vanilla", "--trials", "3"]
    target = tmp_path / "mine.json"
    done = run.invoke(app, [*words, "-o", str(target), "--study", str(tmp_path / "s.log"), "--json"])
    assert done.exit_code == 0, done.stderr
    content = json.loads(target.read_text())
    assert json.loads(done.stdout) == content
    evidence = content["evidence"][task]
    assert evidence["budget"] == "score >= 0.5 of vanilla"
    assert {"score", "difference", "vanilla", "n", "machine", "model_hash", "command", "seed"} <= evidence.keys()
    assert evidence["recipe"]["methods"] == content["recipe"]["methods"]
    here = Target("tiny", model.spec, checkpoint_hash(model))
    assert (content["family"], content["model_hash"]) == (model.spec.family, here.hash)
    recipe = load_recipe(target, here)
    assert (recipe.name, recipe.to_dict()) == ("mine", content["recipe"])
    elsewhere = replace(here, hash="0123456789abcdef")
    with pytest.raises(RecipeError, match="was tuned on the weights"):
        load_recipe(target, elsewhere)

    other = next(t for t in TASKS if t != task)
    held = tmp_path / "held.json"
    held.write_text(json.dumps({"recipe": paper().to_dict(), "evidence": {other: {"n": 1}}}))
    joined = preset.joined("both", task, recipe, {"n": 2}, held, here)
    assert joined["evidence"] == {other: {"n": 1}, task: {"n": 2}}
    both = Recipe.from_dict(joined["recipe"])
    assert (both.of(task), both.of(other)) == (recipe.of(task), paper().of(other))
    with pytest.raises(RecipeError, match="was tuned on the weights"):
        preset.joined("both", task, recipe, {"n": 2}, target, elsewhere)


def test_a_file_that_cannot_be_joined_shows_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    engine = flashu.Engine(model, model.processor)
    monkeypatch.setattr("flashu.cli.tune.open_engine", lambda *_: engine)
    monkeypatch.setattr(tuner.Tuner, "tune", lambda *_: pytest.fail("searched"))
    words = ["tune", "--task", "generation", "--budget", "score >= 0.9", "--join", str(TUNED / "scenes-fast.json")]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "mine.json")])
    assert (done.exit_code, "was tuned on the weights" in done.stderr) == (1, True)


def test_wrong_usage_is_one_sentence() -> None:
    run = CliRunner()
    for words, said in (
        (["--task", "generation", "--budget", "score > 1"], "is no budget"),
        (["--task", "both", "--budget", "score >= 0.9"], "one task is tuned at a time"),
    ):
        done = run.invoke(app, ["tune", *words])
        assert (done.exit_code, said in done.stderr) == (1, True)


def test_rounds_meet_other_items_and_are_merged() -> None:
    model = tiny_model()
    processor = replace(model.processor, defaults=replace(model.processor.defaults, max_new_tokens=2))
    engine = flashu.Engine(model, processor)
    scorer = Scorer("understanding", lambda recipe: engine.with_recipe(recipe), items=12, ledger=Ledger())
    tables = [scorer.score(exact(), number) for number in (0, 1)]
    assert len(scorer.ledger.values) == 2
    scorer.score(exact(), 1)
    assert len(scorer.ledger.values) == 2
    whole = merged(tables)
    part = whole.mean_of[0]
    assert len(whole.columns[part]) == sum(len(s.columns[part]) for s in tables)
    assert len({m.cluster for m in whole.columns[part]}) == sum(
        len({m.cluster for m in s.columns[part]}) for s in tables
    )
    assert whole.against(whole).value == 0


# -- what is shipped ---------------------------------------------------------------------------------------------------
FILES = sorted(TUNED.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_shipped_presets_fit_the_model_they_name(path: Path) -> None:
    model = path.stem.rpartition("-")[0]
    content = json.loads(path.read_text())
    recipe = Recipe.from_dict(content["recipe"])
    assert recipe.name == path.stem
    assert flashu.load(model, path.stem).recipe.methods == recipe.methods
    assert set(content["evidence"]) == set(TASKS)
    for task, evidence in content["evidence"].items():
        assert [m.to_dict() for m in recipe.of(task)] == evidence["recipe"]["methods"]
        assert {"score", "difference", "vanilla", "n", "machine", "model_hash", "command", "seed"} <= evidence.keys()
