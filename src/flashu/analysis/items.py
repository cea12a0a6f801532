"""The lab's items by name, in the order the report tells them."""

from __future__ import annotations

from collections.abc import Callable

from flashu.analysis.ablation import ablation
from flashu.analysis.components import components
from flashu.analysis.cost import cost
from flashu.analysis.lab import Lab
from flashu.analysis.pareto import pareto
from flashu.analysis.quantization import quantization
from flashu.analysis.result import Result
from flashu.analysis.sensitivity import sensitivity
from flashu.analysis.similarity import similarity
from flashu.analysis.specialization import specialization
from flashu.analysis.tables import table1, table2, table3
from flashu.analysis.vnorm import vnorm

ITEMS: dict[str, Callable[[Lab], Result]] = {
    item.__name__: item
    for item in (
        table1, table2, table3, ablation, pareto, specialization, vnorm, similarity, sensitivity, components, cost,
        quantization,
    )
}  # fmt: skip
