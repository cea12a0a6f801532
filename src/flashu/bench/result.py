"""The results of a benchmark: rows with medians and spreads, the machine, the conditions; written as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from flashu.bench.rows import EXACT, ORIGINAL
from flashu.evaluation.statistics import Spread

FORMAT = "flashu-bench-1"


@dataclass(frozen=True)
class RowResult:
    """One row. ``seconds`` of a request, end to end; ``flops`` and ``bytes`` of its forwards, without the autoencoder;
    ``model_seconds`` of these; ``parts``: median seconds by component; ``kinds``: how many steps of each kind there
    are, and what one costs. ``note``: why the row was skipped, or what it leaves out."""

    name: str
    note: str = ""
    recipe: dict[str, Any] | None = None
    forwards: int = 0
    seconds: Spread | None = None
    parts: dict[str, float] = field(default_factory=dict)
    kinds: tuple[dict[str, Any], ...] = ()
    flops: float = 0.0
    flops_predicted: float = 0.0
    bytes: float = 0.0
    model_seconds: float = 0.0
    peak_memory: int | None = None
    compile_seconds: float | None = None
    whole_seconds: float | None = None

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.model_seconds if self.model_seconds else math.nan

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.model_seconds if self.model_seconds else math.nan


@dataclass(frozen=True)
class Report:
    """A whole benchmark. ``sampled``: runs composed from one forward of each kind; ``units`` of one request."""

    subject: dict[str, Any]
    units: tuple[int, str]
    sampled: bool
    repeats: int
    machine: dict[str, Any]
    ceiling: dict[str, float]
    memory_means: str
    rows: tuple[RowResult, ...]
    command: str = ""

    def row(self, name: str) -> RowResult | None:
        return next((row for row in self.rows if row.name == name), None)

    def speedup(self, row: RowResult, over: str) -> float | None:
        """How many times faster a row is than the row named ``over``; None where either was not measured."""
        base = self.row(over)
        if base is None or base.seconds is None or row.seconds is None:
            return None
        return base.seconds.median / row.seconds.median

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        data = asdict(self)
        count, unit = self.units
        data["format"] = FORMAT
        for row, entry in zip(self.rows, data["rows"], strict=True):
            if row.seconds is None:
                continue
            entry["seconds"] = brief(row.seconds)
            entry[f"{unit}_per_second"] = count / row.seconds.median
            entry["flops_per_second"] = row.flops_per_second
            entry["bytes_per_second"] = row.bytes_per_second
            entry["share_of_flops_ceiling"] = row.flops_per_second / self.ceiling["flops"]
            entry["share_of_bytes_ceiling"] = row.bytes_per_second / self.ceiling["bytes"]
            entry["times_original"] = self.speedup(row, ORIGINAL)
            entry["times_exact"] = self.speedup(row, EXACT)
        return data


def brief(spread: Spread) -> dict[str, float]:
    """The median, the lowest and the highest of n values."""
    return {"median": spread.median, "low": spread.least, "high": spread.most, "n": len(spread.values)}
