"""What a model family offers. A family is one folder and one line in the registry; nothing else names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flashu.plan.explain import Sizes


@dataclass(frozen=True)
class Checkpoint:
    """A name and what it stands for. ``dtype`` None: as stored. ``family``: its name where it is known without looking,
    so that nothing is fetched to learn it. ``demo``: whether `flashu demo` shows it."""

    name: str
    source: str | Path
    summary: str
    dtype: torch.dtype | None = None
    family: str | None = None
    demo: bool = False


@runtime_checkable
class TimedReference(Protocol):
    """What a `Family.reference` has besides if `flashu bench` can time it; it is optional.

    ``only``: the forwards to compute, by index (None = all of a request), each over as many tokens as it has there.
    ``before``: called with the index of each forward before it. ``part``: name of a component ("features", "LLM",
    "logits", "head", "VAE") -> a context around its work.
    """

    def forwards(self, steps: int) -> int:
        """Forwards that the program takes where ``steps`` are asked for."""

    def latents(
        self,
        requests: Sequence[Any],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = ...,
        part: Callable[[str], AbstractContextManager[Any]] = ...,
    ) -> Tensor:
        """What a batch of `DrawRequest`s of as many forwards as their ``steps`` draws [B, ...]."""

    def tokens(
        self,
        requests: Sequence[Any],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = ...,
        part: Callable[[str], AbstractContextManager[Any]] = ...,
    ) -> Tensor:
        """The tokens [B, n] that answer a batch of `AnswerRequest`s, never stopping before ``max_new_tokens``."""


@dataclass(frozen=True)
class Family:
    """``name``: as in config.json and `ModelSpec.family`; ``title``: as people write it.

    ``matches``: (config.json) -> whether a folder holds this family. ``load``: (checkpoint, **options) -> a model with
    its ``processor`` and ``calibration``. ``sizes``: (checkpoint) -> what `plan.explain` needs, without weights.
    ``reference``: (model, processor) -> the original program's computation as an engine (generate, answer, explain);
    see `TimedReference`. ``save``: (model, folder,
    processor) writes what ``load`` reads. ``processor``: (checkpoint) -> its `Processor` alone, without an autoencoder;
    no weights are read. ``authors``: (module, recipe, calibration, **options) -> what answers the calls of an instance
    of the original authors' class, from its ``bind(module)`` to its ``unbind(module)``; ``recognizes``: (module) ->
    whether it is one; ``scripts``: the authors' loops by the method they call, for timing: (module, **settings) -> a
    function of an instance that gives latents or tokens.
    ``random``: name of a size -> (model, processor) with random weights, for timing; ``random_sizes``: those names.
    ``benchmarks``: settings of the authors' scripts by benchmark, as `Engine.generate` takes them. ``trainer``: (world,
    seed, folder to start from | None) -> a new model for `training.scenes`, as its `Network`. ``tuning``: (module of a
    class that others train) -> its calls as `models.batches.Tuning`; ``tunes``: (module) -> whether it is one.
    ``training_rows``: rows of the authors' training by name: task -> (length, real tokens, labels).
    ``routings``: published UniMoD schedules by name: (layers) -> shares to keep by task and layer.
    """

    name: str
    title: str
    matches: Callable[[Mapping[str, Any]], bool]
    load: Callable[..., Any]
    sizes: Callable[[Checkpoint], Sizes]
    reference: Callable[[Any, Any], Any]
    save: Callable[[Any, Path, Any], None] | None = None
    processor: Callable[[Checkpoint], Any] | None = None
    recognizes: Callable[[Any], bool] = lambda module: False
    authors: Callable[..., Any] | None = None
    scripts: Mapping[str, Callable[..., Callable[[Any], Tensor]]] = field(default_factory=dict)
    random: Callable[..., Any] | None = None
    random_sizes: tuple[str, ...] = ()
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trainer: Callable[..., Any] | None = None
    tuning: Callable[[Any], Any] | None = None
    tunes: Callable[[Any], bool] = lambda module: False
    training_rows: Mapping[str, Mapping[str, tuple[int, int, int]]] = field(default_factory=dict)
    routings: Mapping[str, Callable[[int], Mapping[str, Mapping[int, float]]]] = field(default_factory=dict)
