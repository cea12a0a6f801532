"""Dynamic layer skipping (paper section 3.3.2, Eqs. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import TASKS, ModelSpec, Observations, Plan, Probe, Step, Task
from flashu.plan.methods.base import Method, in_window, require_interval, require_ratio, require_tau


@dataclass(frozen=True)
class LayerSkip(Method):
    """Leave out the ``ratio`` of layers whose output is most similar to their input.

    Every ``interval`` forwards (T_LS) all layers run and their similarity is measured; the list holds until the next
    measurement. The last ``tau`` of the forwards run every layer. ``normed`` measures the last layer after the final
    norm, as the released program does.

    With a growing cache a skipped layer still computes its keys and values of the token, from its own input; later
    tokens that do run the layer attend to them.
    """

    name: ClassVar[str] = "layer_skip"
    tasks: ClassVar[frozenset[Task]] = frozenset(TASKS)
    fields: ClassVar[frozenset[str]] = frozenset({"layers.skip", "probe"})

    ratio: float = 0.20
    interval: int = 10
    tau: float = 0.3
    normed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio("r_LS", self.ratio)
        require_interval("T_LS", self.interval)
        require_tau(self.tau)

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if not in_window(step, self.tau) or self.ratio == 0:
            return plan
        if step.index % self.interval == 0:
            return replace(plan, probe=self._probe())
        if observed.similarity is None:
            return plan
        return replace(plan, layers=replace(plan.layers, skip=most_similar(observed.similarity, self.ratio)))

    def check(self, spec: ModelSpec) -> None:
        if self.ratio and int(spec.layers * self.ratio) == 0:
            raise RecipeError(f"r_LS={self.ratio} skips none of the {spec.layers} layers of this model ({spec.family})")

    def _probe(self) -> Probe:
        if self.normed:
            return "normed"
        return "tokens" if self.task == "generation" else "last"


def most_similar(similarity: tuple[float, ...], ratio: float) -> frozenset[int]:
    """Indices of the int(ratio * layers) most similar layers, the earlier one first on a tie."""
    order = sorted(range(len(similarity)), key=lambda i: -similarity[i])
    return frozenset(order[: int(len(similarity) * ratio)])
