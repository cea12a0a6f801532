"""What each forward computes: plain values, the methods that write them, and recipes. No torch."""

from flashu.plan.guidance import Guidance
from flashu.plan.plan import (
    FULL,
    MAIN,
    SOLVERS,
    TASKS,
    Draft,
    Gate,
    GateScale,
    Kind,
    LayerPlan,
    Observations,
    Plan,
    Probe,
    Route,
    Score,
    Side,
    Step,
    Task,
    share,
)
from flashu.plan.spec import ModelSpec, Work

__all__ = [
    "FULL",
    "MAIN",
    "SOLVERS",
    "TASKS",
    "Draft",
    "Gate",
    "GateScale",
    "Guidance",
    "Kind",
    "LayerPlan",
    "ModelSpec",
    "Observations",
    "Plan",
    "Probe",
    "Route",
    "Score",
    "Side",
    "Step",
    "Task",
    "Work",
    "share",
]
