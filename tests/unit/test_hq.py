"""The high-resolution models at their real sizes, on the meta device: keys, grids, rows and whole runs as shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.conftest import GOLDEN

from flashu.bench.random_weights import named_model
from flashu.bench.subject import subject_of
from flashu.inference import requests
from flashu.inference.loops.denoise import denoise
from flashu.inference.requests import question_rows
from flashu.inference.samplers import flow
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.official import max_text, official_config, official_defaults
from flashu.models.showo2.processor import GenerationDefaults
from flashu.plan.recipe import exact
from flashu.runtime.runner import Runner

META = torch.device("meta")
SIZES = {"showo2-1.5b-hq-512": (512, 1024, 1280), "showo2-1.5b-hq": (1024, 4096, 4352)}


@pytest.mark.parametrize(("side", "pixels", "row"), [(32, 512, 1280), (64, 1024, 4352)])
def test_the_official_settings(side: int, pixels: int, row: int) -> None:
    """Those of the original's configs for 512 and 1024 px, and the length of its rows."""
    llm = "Qwen/Qwen2.5-1.5B-Instruct"
    config = official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})
    assert official_defaults(config) == GenerationDefaults(20, 5.0, 3.0, pixels, pixels)
    assert max_text(config) + side * side + 5 == row
    with META:
        model = ShowO2(config)
    manifest = json.loads((GOLDEN / "showo2_1.5b_manifest.json").read_text())
    folded = manifest["state_dict"]
    expected = {name.replace("*", str(i)): shape for name, (n, shape, _) in folded.items() for i in range(n)}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_a_benchmarks_subject_draws_and_sees(name: str) -> None:
    pixels, count, row = SIZES[name]
    model, processor = named_model(name, torch.bfloat16, META)
    subject = subject_of(name, model, processor, "t2i")
    assert (subject.size, subject.image_tokens, subject.steps) == ((pixels // 8,) * 2, count, 20)
    seen: list[tuple[int, ...]] = []
    model.und_trans.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    model.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    run, rows = requests.drawing(Runner(model), processor, exact(), subject.prompts, subject.size, 1, 5.0)
    z = torch.empty(1, 16, *subject.size, device=META)
    assert denoise(run, rows, z, flow.grid(1, 3.0)).shape == z.shape
    assert seen == [(2, 16, 1536), (1, count, 1152), (2, count + 1, 1536)]
    padded = requests.drawing_rows(model, processor, subject.prompts, subject.size, guided=True, padded=True)
    assert padded.ids is not None
    assert padded.ids.shape == (2, row)
    x, tokens = question_rows(model, z, [subject.question], [0])
    assert x.shape[1] == count + 1 + sum(map(len, subject.question))
    assert int(tokens.visual.sum()) == count


@pytest.mark.parametrize("side", [32, 64])
def test_the_position_table_is_resized_bicubically(side: int) -> None:
    """27 x 27 positions at another grid, by the cubic convolution kernel (a = -0.75) written out, edges repeated."""
    config = official_config(
        {"llm_model_path": "Qwen2.5-1.5B-Instruct", "image_latent_height": side, "image_latent_width": side}
    )
    with META:
        model = ShowO2(config)
    table = torch.randn(729, 3, generator=torch.Generator().manual_seed(side))
    model.position_embedding.weight = torch.nn.Parameter(table, requires_grad=False)
    ours = model._position_table(torch.empty(1, 16, 2 * side, 2 * side)).reshape(side, side, 3)

    def kernel(x: np.ndarray) -> np.ndarray:
        x, a = np.abs(x), -0.75
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    weights = np.zeros((side, 27))
    for to in range(side):
        at = (to + 0.5) * 27 / side - 0.5
        for source in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weights[to, min(max(source, 0), 26)] += kernel(np.array(at - source))
    expected = np.einsum("ri,cj,ijk->rck", weights, weights, table.reshape(27, 27, 3).double().numpy())
    assert float(np.abs(ours.numpy() - expected).max()) < 1e-5
