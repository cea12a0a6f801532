"""The search: cheap recipes that keep the score, by a multi-objective study that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashu.errors import FlashUError, RecipeError
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference, Score
from flashu.plan import Task
from flashu.plan.recipe import Recipe, exact
from flashu.studies.frontier import frontier
from flashu.studies.tuner.budget import Budget
from flashu.studies.tuner.scorer import Scorer, merged
from flashu.studies.tuner.space import draft, known

if TYPE_CHECKING:
    from optuna import Study

STARTUP = 14
"""Trials before the sampler learns from them, the known ones included."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A recipe with its score over ``rounds``, its difference to vanilla there, and its FLOPs relative to vanilla's.
    ``stopped``: its score was out of reach before the last round."""

    recipe: Recipe
    score: Score
    difference: Difference
    cost: float
    rounds: int
    stopped: bool


@dataclass(frozen=True)
class Search:
    """``cost``: FLOPs of a recipe relative to vanilla's; ``rounds``: most rounds of a trial, the later rounds are
    never searched on."""

    scorer: Scorer
    task: Task
    layers: int
    budget: Budget
    cost: Callable[[Recipe], float]
    rounds: int = 3
    seed: int = 0
    name: str = "flashu"
    vanilla: dict[int, ScoreTable] = field(default_factory=dict)

    def study(self, path: Path | None) -> Study:
        """The study at ``path``, new or as it was left; None keeps it in memory."""
        optuna = the_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name=self.name, directions=["maximize", "minimize"], load_if_exists=True
        )
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials), n_startup_trials=STARTUP)
        return study

    def run(self, study: Study, trials: int, tick: Callable[[], object] = lambda: None) -> None:
        """Until ``trials`` are finished, those of earlier runs included. A trial that was interrupted is tried again
        first and not counted. ``tick`` is called after each."""
        state = the_optuna().trial.TrialState
        for interrupted in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            study.tell(interrupted.number, state=state.FAIL)
            study.enqueue_trial(interrupted.params)
        starts = known(self.task)
        while (done := counted(study)) < trials:
            if done < len(starts) and not study.get_trials(deepcopy=False, states=(state.WAITING,)):
                study.enqueue_trial(starts[done])
            # Not `study.optimize`: it calls an interrupted trial failed.
            trial = study.ask()
            recipe = draft(trial, self.task, self.layers)
            try:
                found = self.measure(recipe, range(self.rounds))
            except RecipeError:  # the model lacks what a setting needs
                study.tell(trial, state=state.PRUNED)
            else:
                trial.set_user_attr("recipe", recipe.to_dict())
                trial.set_user_attr("tried", {key: v for key, v in asdict(found).items() if key != "recipe"})
                short = self._need(range(found.rounds)) - found.score.value
                # Below the budget no saving counts: the sampler is given a cost above vanilla's.
                study.tell(trial, (found.score.value, 1 + short if short > 0 else found.cost))
            tick()

    def measure(self, recipe: Recipe, rounds: Sequence[int], early: bool = True) -> Candidate:
        """A recipe round by round, if ``early`` until its score is surely below the budget: when even the upper end of
        its paired difference to vanilla is."""
        cost = self.cost(recipe)
        tables: list[ScoreTable] = []
        while True:
            tables.append(self.scorer.score(recipe, rounds[len(tables)]))
            done = rounds[: len(tables)]
            whole, base = merged(tables), self.base(done)
            change = whole.against(base)
            hopeless = early and base.overall.value + change.high < self._need(done)
            if hopeless or len(tables) == len(rounds):
                return Candidate(recipe, whole.overall, change, cost, len(tables), hopeless)

    def base(self, rounds: Sequence[int]) -> ScoreTable:
        """Vanilla's scores in these rounds."""
        for number in rounds:
            if number not in self.vanilla:
                self.vanilla[number] = self.scorer.score(exact(), number)
        return merged([self.vanilla[number] for number in rounds])

    def _need(self, rounds: Sequence[int]) -> float:
        return self.budget.need(self.base(rounds).overall.value)

    def keeps(self, found: Candidate, rounds: Sequence[int]) -> bool:
        return not found.stopped and found.score.value >= self._need(rounds)

    def finalists(self, study: Study, most: int) -> list[Candidate]:
        """Recipes within the budget, the cheapest first; of those as cheap, the better."""
        within = [c for c in self._whole(study) if self.keeps(c, range(self.rounds))]
        if not within:
            raise FlashUError(f"no recipe tried keeps {self.budget}: allow more trials or a lower budget")
        return sorted(within, key=lambda c: (c.cost, -c.score.value))[:most]

    def frontier(self, study: Study) -> list[Candidate]:
        """The trials that no other beats in both score and cost, as searched."""
        found = self._whole(study)
        ahead = frontier([(c.score.value, -c.cost) for c in found])
        return sorted((c for c, first in zip(found, ahead, strict=True) if first), key=lambda c: c.cost)

    def _whole(self, study: Study) -> list[Candidate]:
        """What trials of all rounds found."""
        return [c for c in candidates(study) if c.rounds == self.rounds]


def counted(study: Study) -> int:
    """Trials that were carried out, those included that asked too much of the model."""
    state = the_optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED)))


def candidates(study: Study) -> list[Candidate]:
    """What finished trials found, every recipe once."""
    done = study.get_trials(deepcopy=False, states=(the_optuna().trial.TrialState.COMPLETE,))
    return list({str(t.user_attrs["recipe"]): _candidate(**t.user_attrs) for t in done}.values())


def _candidate(recipe: dict[str, Any], tried: dict[str, Any]) -> Candidate:
    scores = {"score": Score(**tried["score"]), "difference": Difference(**tried["difference"])}
    return Candidate(Recipe.from_dict(recipe), **(tried | scores))


def the_optuna() -> Any:
    """Optuna, which is an extra."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise FlashUError("the tuner searches with Optuna: pip install '.[tune]' in a clone of flashu") from error
    return optuna
