"""Exact training and UniMoD for models that others' programs train: turned on, used by their own loops, turned off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from flashu.errors import FlashUError
from flashu.models.batches import Tuning
from flashu.models.registry import families
from flashu.training.exact import Prepared, Savings
from flashu.training.mod.config import UniModConfig, preset
from flashu.training.mod.method import RoutedTraining
from flashu.training.mod.routers import Routers

Dropout = Literal["refuse", "off"]


@dataclass(frozen=True, eq=False)
class Patched:
    """What answers a module's training calls. ``routers``: to be optimized with the module's parameters."""

    tuning: Tuning
    training: RoutedTraining
    logits: bool
    dropout: Dropout

    @property
    def routers(self) -> Routers:
        return self.training.routers

    @property
    def config(self) -> UniModConfig:
        return self.training.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.dropout == "refuse" and self.tuning.dropout():
            raise FlashUError(
                "this model drops values out at random in training, which is not computed here: set its dropout to 0, "
                'or say dropout="off" to train without'
            )
        batch = self.tuning.rows(*args, **kwargs)
        if kwargs.get("labels") is None and not any(bool((rows.targets >= 0).any()) for rows in batch):
            return self.tuning.output(None, torch.zeros(()), self.training.prepared.logits(batch), kwargs)
        losses = self.training.losses(batch)
        auxiliary = self.config.auxiliary * losses.auxiliary_sum
        logits = self.training.prepared.logits(batch) if self.logits else None
        return self.tuning.output(losses, auxiliary, logits, kwargs)


def apply_unimod(
    model: nn.Module,
    config: UniModConfig | str | Mapping[str, Any] = "dense",
    *,
    routers: Routers | None = None,
    seed: int = 0,
    logits: bool = False,
    dropout: Dropout = "refuse",
    **savings: Any,
) -> Patched:
    """Let UniMoD compute the forward of an instance of the original authors' class or of transformers'.

    Its arguments and results stay: losses, of which the routers' own is a part, and no logits unless ``logits`` asks
    for them. ``config``: settings, or the name of a preset; "dense" = exact training alone. ``routers``: trained ones
    (new ones by ``seed`` otherwise); optimize ``result.routers.parameters()`` with the model's. ``savings``: see
    `Savings`. ``dropout``: a model that would drop values out is refused, or trained without ("off"). Without labels a
    call gives all logits of routed rows. Applying again replaces the settings. A model of ours needs no patch: see
    `RoutedTraining`.
    """
    tuning = _tuning(model)
    if isinstance(config, str):
        config = preset(config, tuning.model.spec.layers)
    elif not isinstance(config, UniModConfig):
        config = UniModConfig.from_dict(config)
    if dropout not in ("refuse", "off"):
        raise FlashUError(f'dropout is "refuse" or "off", not {dropout!r}')
    training = RoutedTraining(tuning.model, config, routers, seed=seed, **savings)
    behind = Patched(tuning, training, logits, dropout)
    if patched(model) is not None:
        remove_unimod(model)
    if "forward" in model.__dict__:
        raise FlashUError(f"the forward of this {type(model).__name__} was replaced already: undo that first")
    model.__dict__["forward"] = behind.forward  # of this one instance
    return behind


def prepare(model: Any, **settings: Any) -> Prepared | Patched:
    """A model prepared for training without waste; equal losses, equal gradients. ``settings``: of `Savings`, all on by
    default.

    A model of ours: the result takes batches of `TaskRows` and gives `Losses`. An instance of the original authors'
    class or of transformers': its forward takes and gives what it always did (``settings`` also as of `apply_unimod`)
    until `remove_unimod`.
    """
    if hasattr(model, "spec") and hasattr(model, "layers"):
        return Prepared(model, Savings.of(**settings))
    return apply_unimod(model, "dense", **settings)


def remove_unimod(model: nn.Module) -> None:
    """Undo `apply_unimod`; the module's forward is its class's again, its weights as training left them."""
    if patched(model) is None:
        raise FlashUError("this model is not patched")
    del model.__dict__["forward"]


def patched(model: nn.Module) -> Patched | None:
    """What answers the calls of a patched model."""
    behind = getattr(model.__dict__.get("forward"), "__self__", None)
    return behind if isinstance(behind, Patched) else None


def _tuning(model: nn.Module) -> Tuning:
    for family in families():
        if family.tuning is not None and family.tunes(model):
            return family.tuning(model)
    titles = ", ".join(family.title for family in families() if family.tuning is not None)
    if hasattr(model, "spec") and hasattr(model, "layers"):
        raise FlashUError("a model of ours needs no patch: use flashu.training.RoutedTraining(model, config)")
    raise FlashUError(f"{type(model).__name__} is no class whose training calls are known here; known are {titles}")
