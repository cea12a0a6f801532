"""The lab's items by name, in the order the report tells them."""

from __future__ import annotations

from collections.abc import Callable

from flashu.studies.lab.ablation import ablation
from flashu.studies.lab.components import components
from flashu.studies.lab.cost import cost
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.pareto import pareto
from flashu.studies.lab.quantization import quantization
from flashu.studies.lab.result import Result
from flashu.studies.lab.sensitivity import sensitivity
from flashu.studies.lab.similarity import similarity
from flashu.studies.lab.specialization import specialization
from flashu.studies.lab.tables import table1, table2, table3
from flashu.studies.lab.vnorm import vnorm

ITEMS: dict[str, Callable[[Lab], Result]] = {
    item.__name__: item
    for item in (
        table1, table2, table3, ablation, pareto, specialization, vnorm, similarity, sensitivity, components, cost,
        quantization,
    )
}  # fmt: skip
