"""`reference` mode against tensors of the released FlashU program: its decisions exactly, its latents closely."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashu
from flashu.inference.calibrate.bank import kept
from flashu.inference.calibrate.gather import text_only_scores
from flashu.inference.calibrate.importance import FFNNorms
from flashu.models.showo2.layout import ShowO2Layout
from flashu.plan import FULL, LayerPlan
from flashu.plan.cost import RELEASED_ALIGNMENT
from flashu.runtime.layout import TokenLayout, stack
from flashu.runtime.runner import Runner
from tests.models.showo2.golden.recorded import ODE, Goldens, close, recorded_noise, words

OFF: dict[str, Any] = {"r_p": 0, "r_LS": 0, "T_cache": 1, "tau": 0, "steps": 0, "s_low": 1, "reference": True}
SCHEDULE = ((4, 2.5), (4, 4.0), (4, 5.0))
CONFIGS: dict[str, dict[str, Any]] = {
    "e": {"r_p": 0.25, "r_LS": 0.34, "T_LS": 4, "T_cache": 3, "tau": 4, "schedule": SCHEDULE, "reference": True},
    "none": OFF,
    "prune_only": OFF | {"r_p": 0.25},
    "hybrid": OFF | {"r_p": 0.25, "tau": 4},
    "skip_only": OFF | {"r_LS": 0.34, "T_LS": 4},
    "cache_only": OFF | {"T_cache": 3},
    "guidance_only": OFF | {"schedule": SCHEDULE, "steps": 12},
}


def test_calibration_keeps_the_same_neurons(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    """On the golden's batch, whose rows all hold their image where the first does."""
    ids = goldens["e.calibration_tokens"]
    start = ids[0].tolist().index(252) + 1
    norms = FFNNorms()
    with torch.inference_mode():
        layout = stack([TokenLayout.causal([ids.shape[1]]).block(start, start + 17)] * len(ids))
        Runner(tiny, observer=norms).walk(tiny.embed_tokens(ids), layout, LayerPlan())
    own = torch.stack([squares.sqrt() for squares in norms.squares.values()])
    scores = norms.scores(tiny)
    torch.testing.assert_close(own, goldens["e.wanda_down_proj_act_norm"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, goldens["e.wanda_down_proj"], rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.stack(kept(scores, 0.25, RELEASED_ALIGNMENT)), goldens["e.kept_neurons"])


def test_calibration_through_the_engine_keeps_them_too(
    goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2
) -> None:
    prompt = words(golden_facts["common"]["prompts_token_ids"][0])
    scores = text_only_scores(tiny, ShowO2Layout(tiny, tiny.processor), prompt)
    assert torch.equal(torch.stack(kept(scores, 0.25, RELEASED_ALIGNMENT)), goldens["e.kept_neurons"])


@pytest.fixture
def drawn(
    request: pytest.FixtureRequest,
    goldens: Goldens,
    golden_facts: dict[str, Any],
    tiny: flashu.ShowO2,
    monkeypatch: pytest.MonkeyPatch,
) -> flashu.Generation:
    """The three golden prompts drawn as one batch from the golden noise and scores, under a configuration by name."""
    recorded_noise(monkeypatch, goldens["e.z"])
    config = flashu.FlashUConfig(**CONFIGS[request.param])
    known = flashu.Calibration("", {"generation": goldens["e.wanda_down_proj"]})
    engine = flashu.Engine(tiny, tiny.processor, config, known)
    prompts = [words(ids[:19]) for ids in golden_facts["common"]["prompts_token_ids"]]
    return engine.generate(prompts, seed=[0, 1, 2], steps=12, guidance=5.0, decode=False)


@pytest.mark.parametrize(("drawn", "name"), [(name, name) for name in CONFIGS], indirect=["drawn"])
def test_sampling(name: str, drawn: flashu.Generation, goldens: Goldens, golden_facts: dict[str, Any]) -> None:
    facts = golden_facts["flashu"]
    steps = facts["steps"] if name == "e" else facts["ablation_steps"][name]
    pruned = CONFIGS[name]["r_p"] > 0
    for trace in drawn.traces:
        assert len(trace) == len(steps)
        for record, step in zip(trace, steps, strict=True):
            plan = record.plan
            assert (plan.probe != "off") == step["recalc"]
            assert sorted(plan.layers.skip) == step["layers_skipped"]
            assert (plan.features == "reuse") == step["head_cache_used"]
            assert plan.guidance == step["guidance"]
            assert (plan.layers.ffn != FULL) == (pruned and not step["full_network"])
    for records, step in zip(zip(*drawn.traces, strict=True), steps, strict=True):
        if "importances" in step:  # measured over the whole batch
            probes = [record.similarity for record in records]
            assert all(probe is not None for probe in probes)
            means = [1 - sum(layer) / len(layer) for layer in zip(*probes, strict=True)]  # type: ignore[arg-type]
            assert means == pytest.approx(step["importances"], abs=1e-5)
    close(drawn.latents, goldens["e.final"] if name == "e" else goldens[f"e_ablation.{name}"], ODE)


@pytest.mark.parametrize("drawn", ["e"], indirect=True)
def test_a_reuse_step_computes_nothing_upstream(drawn: flashu.Generation, golden_facts: dict[str, Any]) -> None:
    """Where the program runs all layers and throws the result away, no row goes through the decoder here."""
    wasted = golden_facts["flashu"]["verification"]["dead_llm_on_cached_steps"]
    for trace in drawn.traces:
        dead = [record for record in trace if record.plan.features == "reuse" and record.plan.probe == "off"]
        assert len(dead) == wasted["steps_with_all_llm_outputs_replaced_by_noise"]
        assert all(record.rows == 0 for record in dead)
