"""What calibration learns of a model, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashu.errors import CalibrationError
from flashu.plan import Side

FORMAT = "flashu-calibration-1"
CALIBRATION = "calibration.safetensors"
"""Name of the calibration file in a checkpoint folder."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of one model, named by its checkpoint hash.

    ``scores``: FFN importance by mask name, each [FFNs, neurons] fp32 (Eq. 2; one FFN per layer and expert, -1 where no
    token went through). ``correlation`` [layers]: Spearman correlation over visual tokens of attention received from
    the text after them and value norm (Figure 5). ``made_from``: what each part was gathered on.
    """

    model_hash: str
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    correlation: Tensor | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def with_scores(self, mask: str, scores: Tensor, made_from: Mapping[str, Any]) -> Calibration:
        return replace(
            self, scores={**self.scores, mask: scores.cpu()}, made_from={**self.made_from, mask: dict(made_from)}
        )

    def with_correlation(self, correlation: Tensor) -> Calibration:
        return replace(self, correlation=correlation.cpu())

    def side(self, layer: int) -> Side | None:
        """The side whose tokens receive less attention after ``layer`` (counted from 1): "largest" norms where the
        correlation is negative, as the paper found, "smallest" where it is positive. None if not measured."""
        if self.correlation is None:
            return None
        return "largest" if self.norm_correlation(layer) < 0 else "smallest"

    def norm_correlation(self, layer: int) -> float:
        """Measured correlation in ``layer``, counted from 1."""
        if self.correlation is None or not 1 <= layer <= len(self.correlation):
            raise CalibrationError(f"no value-norm correlation was measured for layer {layer}")
        return float(self.correlation[layer - 1])

    def save(self, path: str | Path) -> None:
        tensors = {f"scores.{name}": value.contiguous() for name, value in self.scores.items()}
        if self.correlation is not None:
            tensors["correlation"] = self.correlation.contiguous()
        about = {"format": FORMAT, "model_hash": self.model_hash, "made_from": json.dumps(dict(self.made_from))}
        save_file(tensors, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path, model_hash: str | None = None) -> Calibration:
        """Read a calibration file; with ``model_hash``, refuse one made for other weights."""
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise CalibrationError(f"{path} is not a regular file: give what `flashu calibrate` wrote")
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise CalibrationError(f"no calibration file {path}: make one with `flashu calibrate`") from error
        except CalibrationError:
            raise
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CalibrationError(f"{path} cannot be read as a calibration file: {error}") from error
        if about.get("format") != FORMAT:
            raise CalibrationError(f"{path} is not a calibration file of this version; make it anew")
        try:
            made_from = json.loads(about["made_from"])
            made_for = about["model_hash"]
        except (KeyError, ValueError) as error:
            raise CalibrationError(f"{path} does not say what it was made from, or for; make it anew") from error
        if not isinstance(made_from, dict):
            raise CalibrationError(f"{path} does not say what it was made from; make it anew")
        if model_hash is not None and made_for != model_hash:
            raise CalibrationError(
                f"{path} was made for weights {made_for}, these are {model_hash}: calibrate them anew"
            )
        scores = {name.removeprefix("scores."): t for name, t in tensors.items() if name.startswith("scores.")}
        if any(t.ndim != 2 or not t.is_floating_point() or not torch.isfinite(t).all() for t in scores.values()):
            raise CalibrationError(f"{path} holds scores that are not finite [FFNs, neurons]; make it anew")
        correlation = tensors.get("correlation")
        if correlation is not None and (correlation.ndim != 1 or not bool(correlation.isfinite().all())):
            raise CalibrationError(f"{path} holds a correlation that is not finite [layers]; make it anew")
        return cls(made_for, scores, correlation, made_from)
