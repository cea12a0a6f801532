"""Benchmark scores of a trained arm: it draws and answers by the engine, with its routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashu.inference.engine import Engine
from flashu.scenes.world import WORLDS
from flashu.studies.unimod.study import Scored
from flashu.training.mod.method import RoutedTraining
from flashu.training.scenes.evaluate import score_engine


def scored_by(opened: Any, world: str, items: int) -> Scored:
    """Scores on ``items`` of each kind, of the scenes' own benchmark."""

    def scored(training: RoutedTraining) -> Mapping[str, float]:
        if any(training.config.skip.values()):
            return {}
        model = training.model.eval()
        routers = {name: w.detach() for name, w in training.routers.weights().items()}
        engine = Engine(model, opened.processor, training.config.recipe(), routers=routers)
        return score_engine(engine, ("draw", "answer"), WORLDS[world], items)

    return scored
