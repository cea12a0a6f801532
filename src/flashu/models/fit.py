"""Whether a model's weights fit where they are to lie: found out before any is loaded, from sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.ffn import FFN
from flashu.models.offload import LARGE
from flashu.plan.cost import bank_widths
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.plan.spec import WeightCounts

GB = 1e9
EIGHT_BITS = "int8-weight"
ASSUMED = torch.bfloat16
"""The dtype of weights whose own is not known before they are read; most are wider or as wide."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Holding:
    """How the weights are to be held. ``dtype``: None = as stored; ``device``: None = the CPU; ``in_place``: FFN banks
    are slices of the weights."""

    device: torch.device
    dtype: torch.dtype | None = None
    quantize: str | None = None
    offload: bool = False
    in_place: bool = False
    pack: bool = False
    part: str | None = None

    def allowed(self) -> bool:
        """Whether the options go together."""
        return sum((self.offload, self.quantize is not None, self.pack)) < 2 and not (
            self.in_place and (self.pack or self.quantize is not None)
        )

    def needed(self, counts: WeightCounts, bank: int) -> dict[torch.device, int]:
        """Bytes of the weights by device; ``bank``: values of an FFN bank that is copied."""
        width = (self.dtype or ASSUMED).itemsize
        copied = 0 if self.in_place else bank
        main = torch.device("cpu")
        if self.offload and self.device != main:
            return {self.device: counts.staying * width, main: (counts.total + copied) * width}
        if self.quantize is not None:
            return {self.device: (counts.total - counts.projections) * width + counts.projections + copied}
        return {self.device: (counts.total + copied) * width}

    def changed(self, banked: bool, parts: Sequence[str] = ()) -> list[tuple[tuple[str, ...], Holding]]:
        """Other ways of holding them, each after the options to give for it, the fewest first."""
        changes: dict[str, dict[str, Any]] = {}
        if banked and not self.in_place:
            changes["in_place=True"] = {"in_place": True}
        if self.dtype is not None and self.dtype.itemsize > ASSUMED.itemsize:
            changes["dtype=torch.bfloat16"] = {"dtype": ASSUMED}
        if self.quantize is None:
            changes[f"quantize={EIGHT_BITS!r}"] = {"quantize": EIGHT_BITS}
        if not self.offload and self.device.type != "cpu":
            changes["offload=True"] = {"offload": True}
        found = []
        for count in range(1, len(changes) + 1):
            for names in combinations(changes, count):
                other = self
                for name in names:
                    other = replace(other, **changes[name])
                if other.allowed():
                    found.append((names, other))
        if self.part is None:
            found += [((f"parts={part!r}",), replace(self, part=part)) for part in parts]
        return sorted(found, key=lambda way: len(way[0]))


def check_fits(sizes: Sizes, holding: Holding, recipe: Recipe | None = None) -> None:
    """`FlashUError` where the weights of ``sizes``, and the largest FFN bank of ``recipe``, are more than there is
    memory for: what is needed, what there is, and which options would fit. What is not known passes."""
    if sizes.weights is None or not holding.allowed():
        return
    bank = 0 if recipe is None else bank_values(sizes, recipe)
    counts = {part: sizes.weights(part) for part in (None, *sizes.parts)}
    if holding.part not in counts:  # all of it by another name, or what the loader refuses
        holding = replace(holding, part=None)
    needed = holding.needed(counts[holding.part], bank)
    if (short := _short(needed)) is None:
        return
    others = [(given, way.needed(counts[way.part], bank)) for given, way in holding.changed(bank > 0, sizes.parts)]
    fitting = [(given, amounts) for given, amounts in others if _short(amounts) is None]
    ways = ", or ".join(
        f"{' and '.join(given)} ({_said(amounts)})" for given, amounts in fitting if len(given) == len(fitting[0][0])
    )
    with_bank = f", a copied FFN bank of {recipe.name!r} included" if recipe and bank and not holding.in_place else ""
    advice = f"this would fit: {ways}" if ways else "neither quantize=, offload= nor in_place= would make it fit"
    raise FlashUError(
        f"{sizes.name} needs {_said(needed)} for its weights{with_bank}, and {_free(*short)}: {advice}. "
        "Nothing was loaded."
    )


def bank_values(sizes: Sizes, recipe: Recipe) -> int:
    """Values of the largest FFN bank of a recipe, of one expert: the least that a copy takes."""
    spec = sizes.spec
    widest = max(bank_widths(spec, recipe).values(), default=0)
    return spec.layers * spec.ffn_matrices * spec.hidden * widest


def counted(build: Callable[[], Any]) -> WeightCounts:
    """`weight_counts` of a model that takes no memory: it is built on the meta device."""
    with torch.device("meta"):
        return weight_counts(build())


def weight_counts(model: Any) -> WeightCounts:
    """Of a `UnifiedModel`."""
    narrowed = {m for part in model.projections() for m in part.modules() if isinstance(m, nn.Linear)}
    ffns = {m for m in model.modules() if isinstance(m, FFN)}
    words = model.get_input_embeddings()
    moved = {m for m in model.modules() if m is words or isinstance(m, LARGE)}
    total = _values(*model.parameters())
    away = _values(*(p for m in moved for p in m.parameters(recurse=False)))
    visitors = [_values(*m.parameters()) for m in (ffns | moved) - {words}]
    return WeightCounts(total, _values(*(m.weight for m in narrowed)), total - away + max(visitors, default=0))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that is not known."""
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return _main_memory() if device.type == "cpu" else None


def _main_memory() -> int | None:
    """What Linux says is available, within the limit of the process's control group."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Cached files count as used there, but make room when memory is asked for.
        return min(free, limit - used + int(stat["active_file"]) + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no such group, or one without a limit ("max")
        return free


def _short(needed: dict[torch.device, int]) -> tuple[torch.device, int] | None:
    """The first device that has less than is needed, and what it has."""
    for device, amount in needed.items():
        free = free_bytes(device)
        if free is not None and amount > free:
            return device, free
    return None


def _said(needed: dict[torch.device, int]) -> str:
    return " and ".join(f"{_gb(amount)} {_on(device)}" for device, amount in needed.items())


def _free(device: torch.device, free: int) -> str:
    return f"{_gb(free)} are available {_on(device)}"


def _gb(amount: float) -> str:
    return f"{amount / GB:,.1f} GB" if amount >= GB / 10 else f"{amount / GB:.3f} GB"


def _on(device: torch.device) -> str:
    return "of main memory" if device.type == "cpu" else f"on {device}"


def _values(*parameters: Tensor) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
