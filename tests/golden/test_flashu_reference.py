"""`reference` mode against tensors of the released FlashU program: its decisions exactly, its latents closely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference import requests
from flashu.inference.calibrate.bank import bank, kept
from flashu.inference.calibrate.gather import text_only_scores
from flashu.inference.calibrate.importance import FFNNorms, wanda
from flashu.inference.loops import canvas
from flashu.inference.loops.denoise import denoise
from flashu.inference.samplers import flow
from flashu.plan import FULL, LayerPlan
from flashu.runtime.runner import Runner

Goldens = dict[str, Tensor]
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
LATENTS = 2e-3


def test_calibration_keeps_the_same_neurons(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    ids = goldens["e.calibration_tokens"]
    start = ids[0].tolist().index(252) + 1
    rows = canvas.padded(ids.tolist(), [start] * len(ids), 16)
    norms = FFNNorms(6)
    with torch.inference_mode():
        Runner(tiny, observer=norms).backbone(tiny.embed_text(ids), rows.tokens, LayerPlan())
    scores = wanda(tiny, norms.norms())
    torch.testing.assert_close(norms.norms(), goldens["e.wanda_down_proj_act_norm"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, goldens["e.wanda_down_proj"], rtol=1e-5, atol=1e-5)
    assert torch.equal(kept(scores, 0.25, 64), goldens["e.kept_neurons"])


def test_calibration_through_the_engine_keeps_them_too(
    goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2
) -> None:
    words = " ".join(f"w{n}" for n in golden_facts["common"]["prompts_token_ids"][0])
    scores = text_only_scores(tiny, tiny.processor, words)
    assert torch.equal(kept(scores, 0.25, 64), goldens["e.kept_neurons"])


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling(name: str, goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    recipe = flashu.FlashUConfig(**CONFIGS[name]).recipe()
    runner = Runner(tiny, {"generation": bank(tiny, goldens["e.kept_neurons"])})
    ids = [[250, *p[:19], 252] for p in golden_facts["common"]["prompts_token_ids"]]
    run, rows = requests.drawing(runner, tiny.processor, recipe, ids, (8, 8), 12, 5.0)
    final = denoise(run, rows, goldens["e.z"], flow.grid(run.forwards, 3.0))

    facts = golden_facts["flashu"]
    steps = facts["steps"] if name == "e" else facts["ablation_steps"][name]
    assert len(run.trace) == len(steps)
    pruned = CONFIGS[name]["r_p"] > 0
    for record, step in zip(run.trace, steps, strict=True):
        plan = record.plan
        assert (plan.probe != "off") == step["recalc"]
        assert sorted(plan.layers.skip) == step["layers_skipped"]
        assert (plan.head == "reuse") == step["head_cache_used"]
        assert plan.guidance == step["guidance"]
        assert (plan.layers.ffn != FULL) == (pruned and not step["full_network"])
        if "importances" in step:
            assert record.similarity is not None
            assert [1 - s for s in record.similarity] == pytest.approx(step["importances"], abs=1e-5)
    golden = goldens["e.final"] if name == "e" else goldens[f"e_ablation.{name}"]
    assert float((final - golden).abs().max()) <= LATENTS


def test_a_reuse_step_computes_nothing_upstream(
    goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2
) -> None:
    """Where the program runs all layers and throws the result away, no row goes through the decoder here."""
    recipe = flashu.FlashUConfig(**CONFIGS["e"]).recipe()
    runner = Runner(tiny, {"generation": bank(tiny, goldens["e.kept_neurons"])})
    ids = [[250, *p[:19], 252] for p in golden_facts["common"]["prompts_token_ids"]]
    run, rows = requests.drawing(runner, tiny.processor, recipe, ids, (8, 8), 12, 5.0)
    denoise(run, rows, goldens["e.z"], flow.grid(run.forwards, 3.0))
    dead = [r for r in run.trace if r.plan.head == "reuse" and r.plan.probe == "off"]
    assert (
        len(dead)
        == golden_facts["flashu"]["verification"]["dead_llm_on_cached_steps"][
            "steps_with_all_llm_outputs_replaced_by_noise"
        ]
    )
    assert all(r.rows == 0 for r in dead)
