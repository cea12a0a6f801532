"""Adapters: trained weights that replace or add to a model's while it draws, and their files.

A folder holds ``adapter.safetensors`` and ``adapter.json``. The tensors are ``<linear>.lora_A.weight`` [rank, in] and
``<linear>.lora_B.weight`` [out, rank] (kind "lora") or ``<linear>.weight`` [out, in] and ``.bias`` (kind "full") of
each linear layer, and those of the guidance scales' embedders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashu.errors import CheckpointError, FlashUError
from flashu.models.lora import LoRALinear, ScaleEmbedder, ScaleRange, linear_of, linears, with_modules
from flashu.models.protocol import UnifiedModel
from flashu.models.weights import checkpoint_hash

FORMAT = 1
TENSORS, FACTS = "adapter.safetensors", "adapter.json"
EMBEDDER = "scale_embedder"
SHIPPED = Path(__file__).parent.parent / "assets" / "adapters"


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter is. ``base``: hash of the weights that it was trained on. ``steps``, ``shift``: as it was trained
    to draw, by Euler. ``guidance``: scales that are folded in, by branch. ``stages``: how it was trained."""

    family: str
    base: str
    steps: int
    shift: float
    guidance: dict[str, ScaleRange]
    kind: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float = 16.0
    sampler: str = "euler"
    stages: list[Any] = field(default_factory=list)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> AdapterFacts:
        try:
            data = json.loads((folder / FACTS).read_text())
            data["guidance"] = {name: ScaleRange(*values) for name, values in data["guidance"].items()}
            if data.get("format") != FORMAT:
                raise CheckpointError(
                    f"{folder} has adapter format {data.get('format')!r}, this version reads {FORMAT}"
                )
            if strange := data.keys() - {f.name for f in fields(cls)}:
                raise CheckpointError(f"{folder / FACTS} has unknown entries {sorted(strange)}")
            facts = cls(**data)
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} holds no adapter: {FACTS} is missing") from error
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder / FACTS} is not an adapter's: {error}") from error
        if facts.kind not in ("lora", "full") or facts.sampler != "euler" or facts.rank < 1 or facts.steps < 1:
            raise CheckpointError(f"{folder / FACTS}: kind is lora or full, sampler euler, rank and steps at least 1")
        return facts


class Adapter:
    """Weights for one model's linear layers that draw (`drawing_linears`), untrained until they are trained or
    loaded. The model itself never changes."""

    def __init__(self, model: UnifiedModel, facts: AdapterFacts) -> None:
        names = drawing_linears(model)
        if tuple(facts.guidance) != model.spec.branches:
            raise CheckpointError(
                f"the adapter folds in guidance by {', '.join(facts.guidance) or 'nothing'}; this model "
                f"({model.spec.family}) is guided by {', '.join(model.spec.branches)}"
            )
        self.facts = facts
        assert isinstance(model, nn.Module)
        self.modules: dict[str, nn.Module] = {}
        for name, base in linears(model, names).items():
            if facts.kind == "lora":
                self.modules[name] = LoRALinear(base, facts.rank, facts.alpha)
            else:
                if not isinstance(base, nn.Linear):
                    raise FlashUError("full adapters need a model that is neither quantized nor packed")
                bias = None if base.bias is None else base.bias.detach().clone()
                self.modules[name] = linear_of(base.weight.detach().clone(), bias)
        self.scales = ScaleEmbedder(model.spec.hidden, facts.guidance).to(model.device, model.dtype)
        self.modules[EMBEDDER] = self.scales

    @classmethod
    def new(cls, model: UnifiedModel, **facts: Any) -> Adapter:
        """An untrained one; ``facts`` as of `AdapterFacts`, less the family and the base."""
        return cls(model, AdapterFacts(model.spec.family, checkpoint_hash(model), **facts))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters, under the names of the file."""
        for name, module in self.modules.items():
            for leaf, parameter in module.named_parameters():
                yield f"{name}.{leaf}", parameter

    def on(self, model: UnifiedModel) -> Any:
        """The model with these weights, sharing all others. Training it trains this adapter."""
        assert isinstance(model, nn.Module)
        return with_modules(model, self.modules)

    def merged(self, model: UnifiedModel) -> Any:
        """The same with LoRA merged into copies of the linear layers, so that it costs no time."""
        assert isinstance(model, nn.Module)
        merged = {n: m.merged() if isinstance(m, LoRALinear) else m for n, m in self.modules.items()}
        return with_modules(model, merged)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.named_parameters()}
        save_file(tensors, str(folder / TENSORS))
        (folder / FACTS).write_text(json.dumps(asdict(self.facts), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, model: UnifiedModel) -> Adapter:
        """`CheckpointError` unless the folder holds an adapter of exactly this model."""
        folder = Path(folder)
        facts = AdapterFacts.read(folder)
        if facts.family != model.spec.family or facts.base != checkpoint_hash(model):
            raise CheckpointError(
                f"the adapter in {folder} was trained on other weights ({facts.family}, {facts.base}): load that model"
            )
        adapter = cls(model, facts)
        try:
            given: dict[str, Tensor] = load_file(str(folder / TENSORS))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / TENSORS} cannot be read: {error}") from error
        own = dict(adapter.named_parameters())
        if wrong := sorted(given.keys() ^ own.keys()):
            raise CheckpointError(f"{folder / TENSORS} has missing or unknown tensors: {wrong[:6]}")
        for name, parameter in own.items():
            if given[name].shape != parameter.shape:
                raise CheckpointError(f"{name} is {list(given[name].shape)}, not {list(parameter.shape)}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given[name])
                parameter.requires_grad_(False)
        return adapter


def drawing_linears(model: UnifiedModel) -> list[str]:
    """Names of the linear layers that an adapter changes; `FlashUError` for a model that takes none."""
    names = getattr(model, "drawing_linears", None)
    if names is None:
        raise FlashUError(f"models of family {model.spec.family} take no adapters")
    return names()


def shipped(model: UnifiedModel, name: object) -> Path | None:
    """The folder of the adapter that comes with a model, by its name."""
    if not isinstance(name, str) or not model.name or not name.replace("-", "").isalnum():
        return None
    folder = SHIPPED / model.name.rpartition("/")[2] / name
    return folder if (folder / FACTS).is_file() else None
