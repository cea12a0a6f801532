"""The search: cheap recipes that keep the score, by a multi-objective study that can be taken up again."""

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
from flashu.studies.tuner.budget import Budget
from flashu.studies.tuner.judge import Judge, merged
from flashu.studies.tuner.space import draft, known

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STARTUP = 14
"""Trials before the sampler learns from them, the known ones included."""


@dataclass(frozen=True, eq=False)
class Tried:
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

    judge: Judge
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

    def run(self, study: Study, trials: int, tick: Callable[[Study], None] = lambda _: None) -> None:
        """Until ``trials`` are finished, those of earlier runs included. A trial that was interrupted is tried again
        first and not counted."""
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
                tried = self.judged(recipe, range(self.rounds))
            except RecipeError:  # the model lacks what a setting needs
                study.tell(trial, state=state.PRUNED)
            else:
                study.tell(trial, self._values(trial, tried))
            tick(study)

    def _values(self, trial: Trial, tried: Tried) -> tuple[float, float]:
        trial.set_user_attr("recipe", tried.recipe.to_dict())
        told = {"score": asdict(tried.score), "difference": asdict(tried.difference), "cost": tried.cost}
        trial.set_user_attr("tried", told | {"rounds": tried.rounds, "stopped": tried.stopped})
        short = self._need(range(tried.rounds)) - tried.score.value
        # Below the budget no saving counts: the sampler is told a cost above vanilla's.
        return tried.score.value, 1 + short if short > 0 else tried.cost

    def judged(self, recipe: Recipe, rounds: Sequence[int], early: bool = True) -> Tried:
        """A recipe round by round, until its score is surely below the budget: when even the upper end of its paired
        difference to vanilla is."""
        cost = self.cost(recipe)
        sheets: list[ScoreTable] = []
        while True:
            sheets.append(self.judge.sheet(recipe, rounds[len(sheets)]))
            done = rounds[: len(sheets)]
            whole, base = merged(sheets), self.base(done)
            change = whole.against(base)
            last = len(sheets) == len(rounds)
            hopeless = early and base.overall.value + change.high < self._need(done)
            if last or hopeless:
                return Tried(recipe, whole.overall, change, cost, len(sheets), hopeless)

    def base(self, rounds: Sequence[int]) -> ScoreTable:
        """Vanilla's work in these rounds."""
        for number in rounds:
            if number not in self.vanilla:
                self.vanilla[number] = self.judge.sheet(exact(), number)
        return merged([self.vanilla[number] for number in rounds])

    def _need(self, rounds: Sequence[int]) -> float:
        return self.budget.need(self.base(rounds).overall.value)

    def keeps(self, tried: Tried, rounds: Sequence[int]) -> bool:
        return not tried.stopped and tried.score.value >= self._need(rounds)

    def finalists(self, study: Study, most: int) -> list[Tried]:
        """Recipes within the budget, the cheapest first; of those as cheap, the better."""
        tried = [t for t in finished(study) if t.rounds == self.rounds]
        within = [t for t in tried if self.keeps(t, range(self.rounds))]
        if not within:
            raise FlashUError(f"no recipe tried keeps {self.budget}: allow more trials or a lower budget")
        within.sort(key=lambda t: (t.cost, -t.score.value))
        return within[:most]

    def frontier(self, study: Study) -> list[Tried]:
        """The trials that no other beats in both score and cost, as searched."""
        tried = [t for t in finished(study) if t.rounds == self.rounds]
        points = {(t.score.value, t.cost) for t in tried}

        def beaten(t: Tried) -> bool:
            mine = (t.score.value, t.cost)
            return any(p != mine and p[0] >= mine[0] and p[1] <= mine[1] for p in points)

        return sorted((t for t in tried if not beaten(t)), key=lambda t: t.cost)


def counted(study: Study) -> int:
    """Trials that were carried out, those included that asked too much of the model."""
    state = the_optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED)))


def finished(study: Study) -> list[Tried]:
    """What finished trials found, every recipe once."""
    done = [t for t in study.get_trials(deepcopy=False) if "tried" in t.user_attrs and t.state.is_finished()]
    return list({str(t.user_attrs["recipe"]): recalled(t) for t in done}.values())


def recalled(trial: FrozenTrial) -> Tried:
    """What a finished trial found."""
    told: dict[str, Any] = trial.user_attrs["tried"]
    return Tried(
        Recipe.from_dict(trial.user_attrs["recipe"]),
        Score(**told["score"]),
        Difference(**told["difference"]),
        told["cost"],
        told["rounds"],
        told["stopped"],
    )


def the_optuna() -> Any:
    """Optuna, which is an extra."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise FlashUError("the tuner searches with Optuna: pip install 'flashu[tune]'") from error
    return optuna
