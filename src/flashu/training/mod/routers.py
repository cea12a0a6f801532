"""The routers of a model: kept beside it, in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashu.errors import CheckpointError
from flashu.models.weights import read_json
from flashu.plan import ModelSpec
from flashu.training.mod.config import UniModConfig

WEIGHTS, SETTINGS = "routers.safetensors", "routers.json"


class Routers(nn.Module):
    """Weights [2, D] of each router of a config, by name. A new router is normal with deviation D^-0.5, and a hundredth
    of that where its weight is to start at 1."""

    def __init__(self, config: UniModConfig, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        config.check(spec)
        self.config, self.spec = config, spec
        generator = torch.Generator().manual_seed(seed)
        reach = spec.hidden**-0.5 * (0.01 if config.scale == "tanh" else 1.0)
        self.weight = nn.ParameterDict(
            {name: torch.randn(2, spec.hidden, generator=generator) * reach for name in config.names()}
        )

    def weights(self) -> Mapping[str, Tensor]:
        """By name; the parameters themselves, so that training changes what a runner holds."""
        return dict(self.weight.items())

    def save(self, folder: str | Path) -> None:
        """routers.safetensors and routers.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: w.detach().cpu().contiguous() for name, w in self.weight.items()}, folder / WEIGHTS)
        about = {"model": _about(self.spec), "config": self.config.to_dict()}
        (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, spec: ModelSpec) -> Routers:
        """Those that `save` wrote; `CheckpointError` for another model's."""
        folder = Path(folder)
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder} has no {WEIGHTS}: give the folder that the routers were saved to")
        about = read_json(folder / SETTINGS)
        if about.get("model") != _about(spec):
            raise CheckpointError(
                f"the routers in {folder} are of another model ({about.get('model')}), not of this one ({_about(spec)})"
            )
        routers = cls(UniModConfig.from_dict(about["config"]), spec)
        weights = load_file(folder / WEIGHTS)
        shapes = {name: list(w.shape) for name, w in weights.items()}
        expected = {name: list(w.shape) for name, w in routers.weight.items()}
        if shapes != expected:
            raise CheckpointError(
                f"{folder / WEIGHTS} holds {sorted(shapes)}, but its settings ask for {sorted(expected)}"
            )
        with torch.no_grad():
            for name, value in weights.items():
                routers.weight[name].copy_(value)
        return routers


def _about(spec: ModelSpec) -> dict[str, int | str]:
    return {"family": spec.family, "layers": spec.layers, "hidden": spec.hidden}
