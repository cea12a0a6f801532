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
from flashu.inference.actions import Append, Decode, DrawRequest
from flashu.inference.run import Run, complete
from flashu.inference.samplers.solvers import grid
from flashu.models.pictures import pixels
from flashu.models.showo2 import naive
from flashu.models.showo2.content import Shown, Words
from flashu.models.showo2.layout import UNCOND, question
from flashu.models.showo2.layout import words as text_of
from flashu.plan import MAIN
from flashu.plan.guidance import classifier_free
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import visible
from flashu.runtime.request import Row
from flashu.runtime.runner import Runner
from tests.models.showo2.golden.recorded import (
    LOGITS,
    ODE,
    Goldens,
    Trajectory,
    block_forward,
    close,
    context,
    image_block,
    recorded_noise,
    shown,
    words,
)


@pytest.fixture(scope="module")
def rows() -> Goldens:
    return load_file(str(Path(__file__).parent / "showo2_tiny_rows.safetensors"))


@pytest.mark.parametrize("group", ["v0", "v1"])
@torch.inference_mode()
def test_videos(group: str, rows: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """Layout, mask (whose block ends inside the frames of v0 and in the question of v1), tokens and their logits."""
    facts = golden_facts["common"]["mmu"]
    before = [250, *facts["sys_prompt_ids"], *facts["role_a"], 252]
    after = [253, *facts["questions"][int(group[1])], *facts["role_b"]]
    latents = rows[f"{group}.latents"]
    e_t, token = tiny.embed_time(torch.ones(1))
    segments = question(tiny, [before, after], [Shown(latents, e_t, token, 4 * len(latents))])
    close(torch.cat(tiny.embed([segment.content for segment in segments]))[None], rows[f"{group}.input_embeds"])
    layout, *later = (segment.layout for segment in context(*segments).segments)
    for more in later:
        layout = layout.cat(more)
    mask = visible(layout, layout)
    assert mask is not None
    assert torch.equal(mask, rows[f"{group}.mask_allowed"].bool())
    assert int(layout.visual.sum()) == 4 * len(latents)
    logits: list[Tensor] = []

    def greedy(step: Tensor) -> Tensor:
        logits.append(step)
        return step.argmax(-1)

    run = Run([Append((MAIN,), segments), Decode(MAIN, frozenset(), 12)], exact(), tiny.spec, choose=greedy)
    complete(Executor(Runner(tiny)), [run])
    assert run.text == rows[f"{group}.tokens"].tolist()
    close(torch.cat(logits), rows[f"{group}.logits"], LOGITS)


@pytest.mark.parametrize("which", ["f0", "f1"])
def test_frames_are_fitted_on_black(which: str, rows: Goldens) -> None:
    fitted = pixels(rows[f"{which}.frame"].numpy(), 24, 24, whole=True)
    levels = (fitted[0].permute(1, 2, 0) * 0.5 + 0.5).mul(255).round().to(torch.uint8)
    assert torch.equal(levels, rows[f"{which}.padded"])


def history(rows: Goldens) -> tuple[list[tuple[str, Tensor]], str]:
    """The texts and images that stand before the third image of `m`, and its own text."""
    (first, _), (second, _), (third, _) = rows["m.modality_positions"][0].tolist()
    ids = rows["m.text_tokens"][0].tolist()
    texts = [words(part) for part in (ids[1 : first - 1], ids[first + 18 : second - 1], ids[second + 18 : third - 1])]
    return list(zip(texts, rows["m.history"], strict=False)), texts[2]


@torch.inference_mode()
def test_the_row_of_an_image_after_others(rows: Goldens, tiny: flashu.ShowO2) -> None:
    before, prompt = history(rows)
    along = Trajectory(tiny, [DrawRequest(prompt, history=before, guidance=5.0)], 7)
    for name, ids, where in zip((MAIN, UNCOND), rows["m.text_tokens"], rows["m.modality_positions"], strict=True):
        (segment,) = along.contexts[0][name].segments
        row: list[int] = []
        images: list[list[int]] = []
        for part in segment.content.parts:
            if isinstance(part, Words):
                row += part.ids
            else:
                images.append([len(row), len(part)])
                row += [254] * len(part)
        start = int(where[2, 0])
        assert row == ids[:start].tolist()
        assert images == [place for place in where.tolist() if place[0] < start]


@pytest.mark.parametrize(("group", "guidance"), [("m", 5.0), ("m_nocfg", 0.0)])
@torch.inference_mode()
def test_an_image_after_others(
    group: str, guidance: float, rows: Goldens, tiny: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each velocity along the golden trajectory, and the whole drawing."""
    before, prompt = history(rows)
    along = Trajectory(tiny, [DrawRequest(prompt, history=before, guidance=guidance)], 7)
    for n in range(7):
        by_branch = dict(zip((MAIN, UNCOND), along.velocities(rows[f"{group}.x"][n], n), strict=False))
        close(classifier_free(by_branch, along.scales), rows[f"{group}.v"][n], 5e-4)
    recorded_noise(monkeypatch, rows["m.z"])
    engine = flashu.Engine(tiny, tiny.processor)
    drawn = engine.generate(prompt, history=before, guidance=guidance, steps=7, decode=False)
    close(drawn.latents, rows[f"{group}.final"], ODE)


@torch.inference_mode()
def test_the_naive_row_of_several_images_is_the_original(rows: Goldens, tiny: flashu.ShowO2) -> None:
    """The yardstick too: whole padded rows, every slot spliced and modulated at its own time."""
    ids, where, t = rows["m.text_tokens"], rows["m.modality_positions"], grid(7, 3.0)[3]
    z = rows["m.x"][3]
    latents = torch.cat((rows["m.history"], z, z, z, z))
    times = torch.ones(6)
    times[2] = times[5] = t
    _, v = naive.forward(tiny, ids, latents, times, naive.omni_mask(ids.shape[1], where), where)
    close((v[5] + 5.0 * (v[2] - v[5]))[None], rows["m.v"][3], 5e-4)


@pytest.mark.parametrize("group", ["h", "h_twice"])
@torch.inference_mode()
def test_the_hq_layout(group: str, rows: Goldens, tiny: flashu.ShowO2) -> None:
    """A configured grid that the position table does not have: naive and exact paths, at that size and another."""
    tiny.config = replace(tiny.config, image_latent_height=5, image_latent_width=5)
    ids, where, z = (rows[f"{group}.{name}"] for name in ("text_tokens", "modality_positions", "latents"))
    _, v = naive.forward(tiny, ids, z, rows[f"{group}.t"], naive.omni_mask(ids.shape[1], where), where)
    close(v, rows[f"{group}.v"])
    images = shown(tiny, z, rows[f"{group}.t"])
    assert {len(image) for image in images} == {int(where[0, 0, 1])}
    asked = [
        Row(context(text_of(row[:start])), image_block(image))
        for row, start, image in zip(ids.tolist(), where[:, 0, 0].tolist(), images, strict=True)
    ]
    close(torch.cat([output.values for output in block_forward(tiny, asked)]), rows[f"{group}.v"])
