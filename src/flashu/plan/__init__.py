"""What each forward computes: plain values, the methods that write them, and recipes. No torch."""

from flashu.plan.plan import (
    FULL,
    SOLVERS,
    TASKS,
    Kind,
    LayerPlan,
    Plan,
    Probe,
    Room,
    Route,
    Score,
    Seen,
    Side,
    Step,
    Task,
    share,
)

__all__ = [
    "FULL",
    "SOLVERS",
    "TASKS",
    "Kind",
    "LayerPlan",
    "Plan",
    "Probe",
    "Room",
    "Route",
    "Score",
    "Seen",
    "Side",
    "Step",
    "Task",
    "share",
]
