"""Other rows than one prompt or question with one image, against the original program: videos, several images, HQ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import flashu
from flashu.inference.loops import canvas
from flashu.inference.loops.decode import decode
from flashu.inference.loops.denoise import denoise, look, velocity
from flashu.inference.requests import blocks, question_rows
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.models.showo2 import naive
from flashu.models.showo2.processor import pixels
from flashu.plan import Plan
from flashu.plan.recipe import exact
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import visible

FORWARD, LOGITS, ODE = 1e-4, 1e-4, 2e-3
Goldens = dict[str, Tensor]


@pytest.fixture(scope="module")
def rows() -> Goldens:
    return load_file(str(Path(__file__).parent / "showo2_tiny_rows.safetensors"))


def close(ours: Tensor, golden: Tensor, tolerance: float = FORWARD) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).abs().max()) <= tolerance


@pytest.mark.parametrize("group", ["v0", "v1"])
@torch.inference_mode()
def test_videos(group: str, rows: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """Layout, mask (whose block ends inside the frames of v0 and in the question of v1), tokens and their logits."""
    facts = golden_facts["common"]["mmu"]
    before = [250, *facts["sys_prompt_ids"], *facts["role_a"], 252]
    after = [253, *facts["questions"][int(group[1])], *facts["role_b"]]
    x, tokens = question_rows(tiny, [rows[f"{group}.latents"]], [(before, after)], [0])
    close(x, rows[f"{group}.input_embeds"])
    mask = visible(tokens, tokens)
    assert mask is not None
    assert torch.equal(mask, rows[f"{group}.mask_allowed"].bool())
    assert int(tokens.visual.sum()) == 4 * len(rows[f"{group}.latents"])
    logits: list[Tensor] = []

    def greedy(step: Tensor) -> Tensor:
        logits.append(step)
        return step.argmax(-1)

    run = Run(Runner(tiny), exact(), "understanding", 12)
    assert [token for (token,) in decode(run, x, tokens, greedy, None)] == rows[f"{group}.tokens"].tolist()
    close(torch.cat(logits), rows[f"{group}.logits"], LOGITS)


@pytest.mark.parametrize("which", ["f0", "f1"])
def test_frames_are_fitted_on_black(which: str, rows: Goldens) -> None:
    fitted = pixels(rows[f"{which}.frame"].numpy(), 24, 24, whole=True)
    levels = (fitted[0].permute(1, 2, 0) * 0.5 + 0.5).mul(255).round().to(torch.uint8)
    assert torch.equal(levels, rows[f"{which}.padded"])


def story(rows: Goldens, tiny: flashu.ShowO2, guided: bool) -> canvas.Canvas:
    """The rows of `m`: a third image after two, and the unconditional row, which sees neither."""
    ids, where = rows["m.text_tokens"], rows["m.modality_positions"]
    seen = blocks(tiny, rows["m.history"])
    (first, _), (second, _), (third, _) = where[0].tolist()
    prompts = [ids[0, :third].tolist(), ids[1, :2].tolist()]
    earlier = [((first, seen[0]), (second, seen[1])), ()]
    return canvas.packed(prompts[: 1 + guided], 16, earlier[: 1 + guided])


@pytest.mark.parametrize(("group", "guidance"), [("m", 5.0), ("m_nocfg", None)])
@torch.inference_mode()
def test_an_image_after_others(group: str, guidance: float | None, rows: Goldens, tiny: flashu.ShowO2) -> None:
    """Each velocity along the golden trajectory, and the whole drawing."""
    times, rows_of = flow.grid(7, 3.0), story(rows, tiny, guidance is not None)
    run = Run(Runner(tiny), exact(), "generation", 7, guidance=guidance)
    for n in range(7):
        e_t, time_token = tiny.embed_time(times[n : n + 1])
        z, plan = rows[f"{group}.x"][n], Plan(guidance=guidance)
        look(run, rows_of, plan, z, e_t, time_token[None], None)
        close(velocity(run, plan, z, e_t), rows[f"{group}.v"][n], 5e-4)
    run = Run(Runner(tiny), exact(), "generation", 7, guidance=guidance)
    close(denoise(run, rows_of, rows["m.z"], times), rows[f"{group}.final"], ODE)


@torch.inference_mode()
def test_the_naive_story_is_the_original(rows: Goldens, tiny: flashu.ShowO2) -> None:
    """The yardstick too: whole padded rows, every slot spliced and modulated at its own time."""
    ids, where, t = rows["m.text_tokens"], rows["m.modality_positions"], flow.grid(7, 3.0)[3]
    z = rows["m.x"][3]
    latents = torch.cat((rows["m.history"], z, z, z, z))
    times = torch.ones(6)
    times[2] = times[5] = t
    _, v = naive.forward(tiny, ids, latents, times, naive.omni_mask(ids.shape[1], where), where)
    close(flow.guide(v[2], v[5], 5.0)[None], rows["m.v"][3], 5e-4)


@pytest.mark.parametrize("group", ["h", "h_twice"])
@torch.inference_mode()
def test_the_hq_layout(group: str, rows: Goldens, tiny: flashu.ShowO2) -> None:
    """A configured grid that the position table does not have: naive and exact paths, at that size and another."""
    tiny.config = replace(tiny.config, image_latent_height=5, image_latent_width=5)
    ids, where, z = (rows[f"{group}.{name}"] for name in ("text_tokens", "modality_positions", "latents"))
    _, v = naive.forward(tiny, ids, z, rows[f"{group}.t"], naive.omni_mask(ids.shape[1], where), where)
    close(v, rows[f"{group}.v"])
    starts = where[:, 0, 0].tolist()
    packed = canvas.packed([row[:start] for row, start in zip(ids.tolist(), starts, strict=True)], where[0, 0, 1] - 1)
    run = Run(Runner(tiny), exact(), "generation", 1)
    e_t, time_token = tiny.embed_time(rows[f"{group}.t"])
    look(run, packed, Plan(), z, e_t, time_token[:, None], None)
    close(velocity(run, Plan(), z, e_t), rows[f"{group}.v"])
