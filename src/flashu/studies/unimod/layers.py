"""Seconds of a training step at the released sizes: one layer with random weights, dense and at each share of tokens,
forward and backward; a step is the sum over a schedule's layers. Embedding, head and optimizer are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flashu.evaluation.statistics import Spread
from flashu.evaluation.timing import clock_of, time_in_turns
from flashu.models.ffn import PlainFFN
from flashu.models.layers import Attention, DecoderLayer, Rope, RotaryEmbedding, Span
from flashu.models.registry import CHECKPOINTS, families
from flashu.plan import LayerPlan, ModelSpec, Route
from flashu.runtime.layout import TokenLayout
from flashu.runtime.routing import Rows
from flashu.runtime.runner import Runner
from flashu.runtime.view import View
from flashu.studies.unimod.work import Row
from flashu.training.mod.config import preset


class OneLayer(nn.Module):
    """A decoder of one layer in the sizes of a spec: what a runner asks of a model."""

    head = None

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = replace(spec, layers=1, experts=spec.experts[:1])
        self.rotary = RotaryEmbedding(spec.head_dim, 1e4)
        attention = Attention(spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, self.rotary, qkv_bias=False)
        layer: Any = DecoderLayer(attention, spec.hidden, spec.neurons, 1e-5)
        if spec.ffn_matrices == 2:
            layer.mlp = PlainFFN(spec.hidden, spec.neurons)
        self.layers = nn.ModuleList([layer])

    @property
    def device(self) -> torch.device:
        return self.rotary.inv_freq.device

    def rope(self, position: Tensor) -> Rope:
        return self.rotary(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        return x


def layer_seconds(
    spec: ModelSpec,
    length: int,
    shares: Sequence[float],
    *,
    rows: int = 1,
    causal: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 7,
) -> dict[float | None, Spread]:
    """Seconds of a layer's forward and backward over rows of ``length``: dense (None) and by share of tokens computed,
    in turns. ``causal``: else a row sees its second half both ways, by a mask."""
    model = OneLayer(spec).to(device, dtype)
    router = nn.Parameter(torch.randn(2, spec.hidden, device=device) * spec.hidden**-0.5)
    runner: Any = Runner(model, routers={"router": router})  # type: ignore[arg-type]
    layout = TokenLayout.causal([length] * rows)
    mask: Any = "causal"
    if not causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask[length // 2 :] = True
        mask = mask[None, None]
    view = View(model.rope(layout.position.to(device)), mask)
    x = torch.randn(rows, length, spec.hidden, device=device, dtype=dtype, requires_grad=True)

    def step(share: float | None) -> Callable[[int], None]:
        routes = () if share is None else (Route(0, mode="bypass", keep=share, router="router"),)

        def run(number: int) -> None:
            done = runner.walk(x, layout, LayerPlan(routes=routes), view=view, rows=Rows((length,) * rows))
            done.hidden.float().square().mean().backward()
            for parameter in (x, router, *model.parameters()):
                parameter.grad = None

        return run

    cases: dict[str, Any] = {str(share): step(share) for share in (None, *dict.fromkeys(shares))}
    found = time_in_turns(cases, rounds, clock_of(torch.device(device)))
    return {share: found[str(share)] for share in (None, *dict.fromkeys(shares))}


def composed(seconds: Mapping[float | None, Spread], layers: int, keep: Mapping[int, float]) -> float:
    """Seconds of all layers, those in ``keep`` at their share."""
    return sum(seconds[keep.get(i)].median for i in range(layers))


def table(device: torch.device | str, dtype: torch.dtype, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Of every published schedule, task and kind of row: seconds of all layers for ``rows`` rows, padded and dense, and
    shares of that: without padding, routed, both."""
    found = []
    for family in families():
        for name in family.routings:
            known = next(c for c in CHECKPOINTS if c.family == family.name and str(c.source) == c.name)
            spec = family.sizes(known).spec
            keeps = preset(name, spec.layers).keep
            for kind, sizes in family.training_rows.items():
                for task, numbers in sizes.items():
                    one, keep = Row(*numbers), keeps[task]
                    causal = spec.drawing == "autoregressive" or task != "t2i"
                    at = {
                        length: layer_seconds(
                            spec, length, sorted(set(keep.values())), rows=rows, causal=causal, device=device,
                            dtype=dtype, rounds=rounds,
                        )
                        for length in dict.fromkeys((one.length, one.real))
                    }  # fmt: skip
                    dense = composed(at[one.length], spec.layers, {})
                    found.append(
                        {
                            "schedule": name, "rows": kind, "task": task, "seconds": dense,
                            "exact": composed(at[one.real], spec.layers, {}) / dense,
                            "unimod": composed(at[one.length], spec.layers, keep) / dense,
                            "both": composed(at[one.real], spec.layers, keep) / dense,
                        }
                    )  # fmt: skip
    return found
