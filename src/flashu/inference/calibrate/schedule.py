"""Which forwards of a drawing to run when so many may: found offline, from the features of drawings that ran all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashu.errors import RecipeError
from flashu.inference.actions import DrawRequest
from flashu.inference.engine import Engine
from flashu.plan import MAIN
from flashu.plan.methods.skip_schedule import SkipSchedule


def searched(engine: Engine, prompts: Sequence[str], count: int, steps: int | None = None) -> SkipSchedule:
    """The schedule of ``count`` forwards under which features that are taken over differ least from those computed,
    over drawings of some prompts; optimal for that, by dynamic programming. ``steps``: forwards of each drawing."""
    if not engine.model.spec.keeps_features:
        raise RecipeError(f"this model ({engine.model.spec.family}) draws without features that could be kept")
    error = sum(_errors(features_of(engine.with_recipe("exact"), prompt, steps)) for prompt in prompts)
    assert isinstance(error, Tensor)
    return SkipSchedule(total=len(error), runs=tuple(best_runs(error, count)))


@torch.inference_mode()
def features_of(engine: Engine, prompt: str, steps: int | None = None) -> Tensor:
    """The main branch's features of every forward of one drawing [forwards, n]."""
    (run,) = engine.runs_to_draw([DrawRequest(prompt, steps=steps)])
    executor, kept = engine.executor(), []
    while (request := run.prepare()) is not None:
        (output,) = executor.forward([request])
        if request.step.task == "generation" and output.features is not None:
            kept.append(output.features[request.plan.branches.index(MAIN)].flatten().float())
        run.accept(output)
    return torch.stack(kept)


def _errors(features: Tensor) -> Tensor:
    """Squared distance of the features of forwards i and j, relative to their size [forwards, forwards]."""
    return torch.cdist(features[None], features[None])[0].square() / features.square().mean(0).sum()


def best_runs(error: Tensor, count: int) -> list[int]:
    """The ``count`` forwards, 0 among them, that leave the least sum of ``error[i, j]`` over all j, where i is the last
    of them up to j."""
    total = len(error)
    if not 1 <= count <= total:
        raise RecipeError(f"{count} of {total} forwards cannot run")
    # held[i][j]: the error of forwards i..j-1 if i runs and the others take its features.
    held = torch.cat((torch.zeros(total, 1).double(), error.double().cumsum(1)), dim=1)
    best = [[float("inf")] * (total + 1) for _ in range(count + 1)]
    came = [[0] * (total + 1) for _ in range(count + 1)]
    best[0][0] = 0.0
    for n in range(1, count + 1):
        for stop in range(n, total + 1):
            for start in range(n - 1, stop):
                cost = best[n - 1][start] + float(held[start, stop] - held[start, start])
                if cost < best[n][stop]:
                    best[n][stop], came[n][stop] = cost, start
    runs, stop = [], total
    for n in range(count, 0, -1):
        stop = came[n][stop]
        runs.append(stop)
    return runs[::-1]
